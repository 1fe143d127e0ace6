// The graph of a stage at a depth, with what is chosen in it: the page's state and its controls.

import { byId, html } from "report/dom.js";
import { drawn, rectangle } from "report/draw.js";
import { withItems } from "report/facts.js";
import { LEGEND } from "report/kinds.js";
import { PAINTS, paint } from "report/paint.js";
import { View } from "report/view.js";
import { svg } from "report/dom.js";

const LEVELS = { modules: "Modules", layers: "Layers", ops: "Ops" };
const READABLE = 0.55;
const FAR = 0.5;
const DEFS = `<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto-start-reverse"><path d="M0 0L8 4L0 8z"/></marker></defs>`;

export class Explorer {
  constructor(stages, facts, panel) {
    Object.assign(this, { stages, facts, panel, number: stages.length - 1, paintName: "kind", chosen: null });
    this.canvas = byId("canvas");
    this.canvas.innerHTML = DEFS;
    this.world = svg("g", { id: "world" });
    this.canvas.append(this.world);
    this.view = new View(this.canvas, this.world, () => this.canvas.classList.toggle("far", this.view.k < FAR));
    this.level = Object.keys(this.stage.levels)[0];
    this.controls();
    this.draw();
    this.showAll(false);
    panel.overview(this);
  }

  get stage() {
    return this.stages[this.number];
  }

  get picture() {
    return this.stage.levels[this.level];
  }

  controls() {
    byId("levels").append(
      ...Object.entries(LEVELS).map(([name, title]) => html("button", { type: "button", "data-level": name, onclick: () => this.setLevel(name) }, title)),
    );
    const select = byId("paint");
    for (const [name, way] of Object.entries(PAINTS))
      if (!way.there || way.there(this.facts)) select.append(html("option", { value: name }, way.title));
    select.addEventListener("change", () => this.repaint(select.value));
    byId("zoom-in").addEventListener("click", () => this.view.zoom(1.3));
    byId("zoom-out").addEventListener("click", () => this.view.zoom(1 / 1.3));
    byId("zoom-fit").addEventListener("click", () => this.showAll());
    byId("wide").addEventListener("click", () => this.widen());
    this.canvas.addEventListener("click", (event) => this.clicked(event));
    this.canvas.addEventListener("dblclick", (event) => this.opened(event));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.resized()).observe(this.canvas);
  }

  /** Keep the picture whole when the window changes, until it was moved. */
  resized() {
    if (this.untouched) this.showAll(false);
  }

  widen() {
    const wide = byId("explorer").classList.toggle("whole");
    document.body.classList.toggle("held", wide);
    byId("wide").setAttribute("aria-pressed", wide);
    requestAnimationFrame(() => (this.chosen ? this.reveal() : this.showAll(false)));
  }

  draw() {
    const { stage, picture } = this;
    this.world.innerHTML = drawn(picture, stage, this.facts);
    this.groups = [...this.world.querySelectorAll("[data-shape]")];
    this.edges = [...this.world.querySelectorAll("[data-edge]")];
    this.members = picture.shapes.map(([, , , , what]) => {
      const places = Array.isArray(what) ? what[1] : [what];
      return places.map((place) => stage.nodes[place]);
    });
    this.shapeOf = new Map();
    this.members.forEach((nodes, n) => withItems(nodes, stage).forEach((node) => this.shapeOf.set(node.name, n)));
    this.markChanges();
    this.repaint(this.paintName);
    this.mark();
    for (const button of byId("levels").children) {
      button.hidden = !(button.dataset.level in stage.levels);
      button.setAttribute("aria-pressed", button.dataset.level === this.level);
    }
  }

  markChanges() {
    const { added, changed, removed } = this.stage.changes;
    const gone = new Map();
    for (const node of removed) gone.set(node.module, (gone.get(node.module) ?? 0) + 1);
    this.groups.forEach((group, n) => {
      const nodes = withItems(this.members[n], this.stage);
      const [fresh, other] = [added, changed].map((set) => nodes.filter((node) => set.has(node.name)).length);
      if (!fresh && !other) return;
      group.classList.add(fresh ? "added" : "changed");
      if (this.members[n].length > 1) {
        const [x, y, width] = this.picture.shapes[n];
        const text = [fresh ? `+${fresh}` : "", other ? `~${other}` : ""].filter(Boolean).join(" ");
        const badge = svg("text", { class: "badge", x: x + width - 10, y: y + 43 }, text);
        group.append(badge);
      }
    });
  }

  repaint(name) {
    this.paintName = name;
    byId("paint").value = name;
    const nodes = this.members.map((several) => withItems(several, this.stage));
    const scale = paint(name, this.groups, nodes, this.facts);
    const kinds = LEGEND.filter(([kind]) => this.world.querySelector(`.${kind}`));
    byId("legend").replaceChildren(
      ...(scale
        ? [html("li", { class: "scale" }, html("span", {}, scale.least), html("i"), html("span", {}, scale.most))]
        : kinds.map(([kind, title]) => html("li", {}, html("i", { class: kind }), title))),
      ...(this.stage.changes.added.size ? [html("li", {}, html("i", { class: "ring added" }), "new")] : []),
      ...(this.stage.changes.changed.size ? [html("li", {}, html("i", { class: "ring changed" }), "changed")] : []),
      html("li", {}, html("i", { class: "line" }), "kept for backward"),
    );
  }

  /** Show what is chosen: its shape, its edges. */
  mark() {
    const chosen = this.chosenShape();
    this.canvas.classList.toggle("focus", chosen !== undefined);
    this.groups.forEach((group, n) => group.classList.toggle("chosen", n === chosen));
    const near = new Set([chosen]);
    this.picture.edges.forEach(([from, to], n) => {
      this.edges[n].classList.toggle("in", to === chosen);
      this.edges[n].classList.toggle("out", from === chosen);
      if (to === chosen) near.add(from);
      if (from === chosen) near.add(to);
    });
    this.groups.forEach((group, n) => group.classList.toggle("near", near.has(n)));
  }

  chosenShape() {
    if (this.chosen === null) return undefined;
    if (this.chosen.node) return this.shapeOf.get(this.chosen.node);
    const { module, side } = this.chosen;
    const found = this.picture.shapes.findIndex(([, , , , what, back]) => Array.isArray(what) && what[0] === module && back === side);
    return found < 0 ? undefined : found;
  }

  setLevel(name) {
    if (name === this.level) return;
    const place = this.anchor();
    this.level = name;
    this.draw();
    this.hold(place, true);
  }

  setStage(number) {
    if (number === this.number) return;
    const place = this.anchor();
    this.number = number;
    if (!(this.level in this.stage.levels)) this.level = "ops";
    if (this.chosen?.node && !this.stage.byName.has(this.chosen.node)) this.chosen = null;
    this.draw();
    if (this.untouched) this.showAll(false);
    else this.hold(place, false);
    if (this.chosen) this.panel.show(this);
    else this.panel.overview(this);
    document.dispatchEvent(new CustomEvent("stagechange", { detail: number }));
  }

  /** What to keep in place when the picture changes: the chosen shape, or the module in the middle. */
  anchor() {
    const chosen = this.chosenShape();
    const all = chosen === undefined ? this.placed() : [this.placed().find((one) => one.shape === chosen)];
    const middle = this.view.middle();
    const far = ({ at }) => Math.hypot(at.x + at.width / 2 - middle.x, at.y + at.height / 2 - middle.y);
    const near = all.reduce((best, one) => (!best || far(one) < far(best) ? one : best), null);
    return near && { path: near.path, side: near.side, screen: this.onScreen(near.at) };
  }

  onScreen({ x, y, width, height }) {
    return { x: (x + width / 2) * this.view.k + this.view.x, y: (y + height / 2) * this.view.k + this.view.y };
  }

  /** Everything that has a module's path: boxes and shapes. */
  placed() {
    const shapes = this.picture.shapes.map((one, shape) => ({
      at: rectangle(one),
      side: one[5],
      shape,
      path: Array.isArray(one[4]) ? one[4][0] : this.stage.nodes[one[4]].module,
    }));
    return [...this.picture.boxes.map((one) => ({ at: rectangle(one), side: one[5], path: one[4] })), ...shapes];
  }

  hold(place, closer) {
    const chosen = this.chosenShape();
    if (chosen !== undefined && closer) return this.reveal();
    const all = this.placed();
    const match =
      all.find((one) => one.shape !== undefined && one.shape === chosen) ??
      longest(all.filter((one) => place && one.side === place.side), place?.path ?? "");
    if (!match) return this.showAll(false);
    if (closer) return this.view.fit(this.beside(match), { most: 1, least: READABLE });
    const k = this.view.k;
    const { x, y, width, height } = match.at;
    return this.view.show(place.screen.x - (x + width / 2) * k, place.screen.y - (y + height / 2) * k, k);
  }

  /** A module's boxes on both sides. */
  beside({ path, at }) {
    const both = this.placed().filter((one) => one.path === path).map((one) => one.at);
    return surrounding(both.length ? both : [at]);
  }

  showAll(smooth = true) {
    this.untouched = true;
    const { width, height } = this.picture;
    this.view.fit({ x: 0, y: -26, width, height: height + 26 }, { smooth, most: 1.1, least: Math.min(READABLE, (this.view.width - 24) / width) });
  }

  clicked(event) {
    if (this.view.dragged) return;
    const group = event.target.closest?.("[data-shape]");
    if (!group) return this.choose(null);
    const [, , , , what, side] = this.picture.shapes[group.dataset.shape];
    this.choose(Array.isArray(what) ? { module: what[0], side } : { node: this.stage.nodes[what].name });
  }

  opened(event) {
    const group = event.target.closest?.("[data-shape]");
    const what = group && this.picture.shapes[group.dataset.shape][4];
    if (Array.isArray(what)) this.open(what[0]);
    else if (group) this.reveal(1);
  }

  choose(what) {
    this.untouched = false;
    this.chosen = what;
    this.mark();
    if (what) this.panel.show(this);
    else this.panel.overview(this);
  }

  /** Show a module one level deeper. */
  open(path) {
    const names = Object.keys(this.stage.levels);
    const deeper = names[Math.min(names.indexOf(this.level) + 1, names.length - 1)];
    this.untouched = false;
    this.level = deeper;
    this.draw();
    const match = longest(this.placed(), path);
    if (match) this.view.fit(this.beside(match), { most: 1, least: READABLE });
  }

  /** Choose a node and bring it into view, in the compiled graph where this stage does not have it. */
  goNode(name) {
    if (!this.stage.byName.has(name)) {
      const last = this.stages.findLastIndex((stage) => stage.byName.has(name));
      if (last < 0) return;
      this.setStage(last);
    }
    if (this.shapeOf.get(name) === undefined || this.members[this.shapeOf.get(name)].length > 1) {
      this.level = "ops";
      this.draw();
    }
    this.choose({ node: name });
    this.reveal(1);
  }

  goModule(path) {
    const here = this.placed().find((one) => one.shape !== undefined && this.members[one.shape].length > 1 && one.path === path);
    if (!here && this.level !== "ops" && path) {
      this.level = "layers" in this.stage.levels ? "layers" : "ops";
      this.draw();
    }
    const match = longest(this.placed(), path);
    this.choose({ module: path, side: match?.side ?? 0 });
    if (match) this.view.fit(this.beside(match), { most: 1, least: READABLE });
  }

  /** Bring what is chosen into view. */
  reveal(k = Math.max(this.view.k, READABLE)) {
    const shape = this.chosenShape();
    if (shape === undefined) return;
    this.untouched = false;
    const { x, y, width, height } = rectangle(this.picture.shapes[shape]);
    this.view.glide(this.view.width / 2 - (x + width / 2) * k, this.view.height / 2 - (y + height / 2) * k, k);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    this.untouched = false;
    if (!this.view.key(event.key, () => this.showAll()) && !this.walk(event.key)) return;
    event.preventDefault();
  }

  /** Keys that choose; false for others. */
  walk(key) {
    const shape = this.chosenShape();
    if (key === "Escape") this.choose(null);
    else if (key === "[" || key === "]") {
      const edge = this.picture.edges.find(([from, to]) => (key === "[" ? to : from) === shape);
      if (edge) this.chooseShape(edge[key === "[" ? 0 : 1]);
    } else if (key === "Enter") {
      const what = shape === undefined ? null : this.picture.shapes[shape][4];
      if (Array.isArray(what)) this.open(what[0]);
      else if (shape === undefined) this.chooseShape(this.nearest());
      else byId("panel").focus();
    } else return false;
    return true;
  }

  nearest() {
    const middle = this.view.middle();
    const far = ([x, y, width, height]) => Math.hypot(x + width / 2 - middle.x, y + height / 2 - middle.y);
    return this.picture.shapes.reduce((best, one, n, all) => (far(one) < far(all[best]) ? n : best), 0);
  }

  chooseShape(n) {
    const [, , , , what, side] = this.picture.shapes[n];
    this.choose(Array.isArray(what) ? { module: what[0], side } : { node: this.stage.nodes[what].name });
    this.reveal();
  }
}

function surrounding(all) {
  const x = Math.min(...all.map((one) => one.x));
  const y = Math.min(...all.map((one) => one.y));
  const right = Math.max(...all.map((one) => one.x + one.width));
  const bottom = Math.max(...all.map((one) => one.y + one.height));
  return { x, y, width: right - x, height: bottom - y };
}

/** The one with the path, or with the longest path around it or below it. */
function longest(all, path) {
  const exact = all.find((one) => one.path === path);
  if (exact) return exact;
  const around = all.filter((one) => one.path && `${path}.`.startsWith(`${one.path}.`));
  const below = all.filter((one) => path && `${one.path}.`.startsWith(`${path}.`));
  return around.reduce((best, one) => (!best || one.path.length > best.path.length ? one : best), null) ?? below[0] ?? null;
}
