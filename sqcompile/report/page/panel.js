// The side panel: a pass and what it did, a module and what it holds, a node and all that is known.

import { byId, html } from "report/dom.js";
import { withItems } from "report/facts.js";
import { big, decibels, duration, number, share, size } from "report/format.js";
import { kindOf, shortOp } from "report/kinds.js";
import { bars } from "report/bars.js";
import { code } from "report/listing.js";

const MOST = 60;

export class Panel {
  constructor(facts) {
    this.facts = facts;
    this.holder = byId("panel");
  }

  fill(...content) {
    this.holder.replaceChildren(...content.filter(Boolean));
    this.holder.scrollTop = 0;
  }

  show(explorer) {
    this.explorer = explorer;
    const { chosen, stage } = explorer;
    if (chosen.node) this.node(stage.byName.get(chosen.node), stage);
    else this.module(chosen.module, stage);
  }

  /** The pass and what it changed. */
  overview(explorer) {
    this.explorer = explorer;
    const { stage } = explorer;
    const { added, changed, removed } = stage.changes;
    const nodes = (names) => [...names].map((name) => stage.byName.get(name));
    this.fill(
      html("h3", {}, stage.name),
      html("p", {}, stage.about),
      list([
        ["nodes", String(stage.nodes.length)],
        ["pass took", stage.milliseconds ? duration(stage.milliseconds) : null],
        ["in backward", String(stage.nodes.filter((node) => node.backward || node.pass === "backward").length)],
      ]),
      stage.before && stage.begins === null && !added.size && !changed.size && !removed.length ? html("p", { class: "soft" }, "Changes nothing of this model.") : null,
      this.nodes("New", "added", nodes(added)),
      this.nodes("Changed", "changed", nodes(changed)),
      this.nodes("Gone", "removed", removed, true),
      html("p", { class: "soft" }, "Choose a node or a module in the graph. Forward runs down on the left, backward up on the right; dashed lines are what is kept between."),
    );
  }

  nodes(title, kind, nodes, gone = false) {
    if (!nodes.length) return null;
    const counts = new Map();
    for (const node of nodes) counts.set(node.op, (counts.get(node.op) ?? 0) + 1);
    const told = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 6).map(([op, count]) => `${count} ${shortOp(op)}`).join(", ");
    return html("details", { class: `change ${kind}` }, html("summary", {}, `${title}: ${nodes.length}`, html("span", { class: "soft" }, ` ${told}`)), this.links(nodes.map((node) => node.name), gone));
  }

  links(names, gone = false) {
    const shown = names.slice(0, MOST).map((name) => (gone ? html("code", {}, name) : html("button", { class: "link", type: "button", onclick: () => this.explorer.goNode(name) }, html("code", {}, name))));
    const more = names.length > MOST ? [`and ${names.length - MOST} more`] : [];
    return html("p", { class: "links" }, ...[...shown, ...more].flatMap((one) => [one, " "]));
  }

  module(path, stage) {
    const inside = stage.nodes.filter((node) => node.module === path || (path && node.module.startsWith(`${path}.`)));
    const sides = [inside.filter((node) => !back(node)), inside.filter(back)];
    const products = this.facts.report.products.filter((one) => one.module === path || (path && one.module.startsWith(`${path}.`)));
    const times = inside.map((node) => this.facts.timeOf(node)).filter((value) => value !== null);
    const kept = [...this.facts.saved.values()].filter((one) => one.module === path || (path && one.module.startsWith(`${path}.`)));
    const tensors = (this.facts.report.tensors ?? []).filter((one) => one.module === path || (path && one.module.startsWith(`${path}.`)));
    const worst = tensors.filter((one) => one.sqnr_db !== null).sort((a, b) => a.sqnr_db - b.sqnr_db).slice(0, 5);
    const calls = (nodes) => nodes.filter((node) => node.op.includes("."));
    this.fill(
      html("h3", {}, path || "(model)"),
      list([
        ["ops", `${calls(sides[0]).length} forward, ${calls(sides[1]).length} backward`],
        ["products", products.length ? products.map((one) => `${one.role || one.op} ${one.operands.join(" × ")}`).join(", ") : null],
        ["multiply-accumulates", products.length ? big(products.reduce((sum, one) => sum + one.macs, 0)) : null],
        ["kept for backward", kept.length ? size(kept.reduce((sum, one) => sum + one.bytes, 0)) : null],
        ["kernels", times.length ? `${duration(times.reduce((a, b) => a + b, 0))}, ${threads(this.facts)}` : null],
      ]),
      html("button", { type: "button", class: "tool", onclick: () => this.explorer.open(path) }, "Open"),
      worst.length ? html("h4", {}, "Least signal over noise") : null,
      ...worst.map((one) => html("p", { class: "links" }, this.link(one.name), ` ${one.kind}, ${one.bits} bit: ${decibels(one.sqnr_db)}`)),
      html("h4", {}, "Ops"),
      this.links(calls(inside).map((node) => node.name)),
    );
  }

  link(name) {
    return html("button", { class: "link", type: "button", onclick: () => this.explorer.goNode(name) }, html("code", {}, name));
  }

  node(node, stage) {
    const last = this.explorer.stages.at(-1);
    const compiled = stage === last ? node : last.byName.get(node.name);
    const same = compiled?.op === node.op ? compiled : null;
    const { added, changed } = stage.changes;
    const readers = [...(stage.readers.get(node.name) ?? [])];
    this.fill(
      html("p", { class: "kind" }, html("i", { class: kindOf(node.op) }), shortOp(node.op), node.bits ? html("b", { class: "chip" }, `${node.bits} bit`) : null, added.has(node.name) ? html("b", { class: "chip added" }, "new") : null, changed.has(node.name) ? html("b", { class: "chip changed" }, "changed") : null),
      html("h3", {}, html("code", {}, node.name)),
      list([
        ["gives", html("code", {}, node.value)],
        ["module", html("button", { class: "link", type: "button", onclick: () => this.explorer.goModule(node.module) }, node.module || "(model)")],
        ["role", node.role || null],
        ["holds", node.port || null],
        ["in", node.pass || (node.backward ? "backward" : "forward")],
      ]),
      node.line ? html("pre", { class: "line" }, node.line.replace(/ {2}/, "\n")) : null,
      stage.lines.has(node.name) ? html("pre", { class: "statement" }, stage.lines.get(node.name)) : null,
      changed.has(node.name) ? html("details", {}, html("summary", {}, "before this pass"), html("pre", {}, stage.before.lines.get(node.name) ?? "")) : null,
      node.inputs.length ? html("h4", {}, "Reads") : null,
      node.inputs.length ? this.links(node.inputs) : null,
      readers.length ? html("h4", {}, "Read by") : null,
      readers.length ? this.links(readers) : null,
      ...(same ? this.measured(same, last) : [html("p", { class: "soft" }, "What is measured belongs to the compiled graph, which has no such node.")]),
    );
  }

  /** What is known of a node of the compiled graph. */
  measured(node, stage) {
    const all = withItems([node], stage);
    const tensors = [...new Set(all.flatMap((one) => this.facts.tensors.get(one.name) ?? []))];
    const kept = all.map((one) => this.facts.saved.get(one.name)).filter(Boolean);
    const read = tensors.length ? [] : [...new Set(node.inputs.flatMap((name) => this.facts.tensors.get(name) ?? []))];
    return [
      ...tensors.flatMap((one) => this.tensor(one)),
      read.length ? html("h4", {}, "Quantised before") : null,
      ...read.map((one) => html("p", { class: "links" }, this.link(one.name), ` ${one.kind}, ${one.bits} bit, ${one.groups > 1 ? `${one.groups} groups, ` : ""}${decibels(one.sqnr_db)}`)),
      !this.facts.report.tensors && /quant|norm/.test(node.op) ? html("p", { class: "soft" }, "Ranges and errors were not measured: compile with --stats.") : null,
      kept.length ? html("h4", {}, "Kept for backward") : null,
      kept.length ? list(kept.map((one) => [one.name, `${size(one.bytes)}${one.of ? `, packed from ${one.of}` : ""}`])) : null,
      ...this.kernel(node),
    ];
  }

  tensor(one) {
    const spread = (values) => (values.count === 1 ? number(values.least) : `${number(values.least)} … ${number(values.median)} … ${number(values.largest)} (${values.count})`);
    const { low, high, counts } = one.integers;
    const labels = counts.length === high - low + 1 ? counts.map((_, n) => String(low + n)) : [String(low), String(high)];
    return [
      html("h4", {}, `${one.kind}, ${one.bits} bit ${one.signed ? "signed" : "unsigned"}${one.role ? `, ${one.role}` : ""}`),
      list([
        ["SQNR", `${decibels(one.sqnr_db)} (relative squared error ${number(one.error)})`],
        ["range", `${number(one.min)} … ${number(one.max)}`],
        ["scale", spread(one.scales)],
        ["outer scale", one.outer ? spread(one.outer) : null],
        ["rounding", one.rounding],
        ["zeros", share(one.zeros)],
        ["clipped", share(one.clipped)],
        ["groups", one.groups > 1 ? String(one.groups) : null],
      ]),
      one.exponents ? bars("Channels in each ShiftQuant group", one.exponents, one.exponents.map((_, n) => `2^-${n}`)) : null,
      bars("How often each integer stands", counts, labels),
      html("button", { type: "button", class: "tool", onclick: () => document.dispatchEvent(new CustomEvent("plottensor", { detail: one })) }, "Plot channels and errors"),
    ];
  }

  kernel(node) {
    const found = this.facts.kernelOf(node);
    if (!found) return [];
    const { kernel, call } = found;
    const [pass, together] = call.split("/");
    const nodes = together.split("+");
    const others = this.facts.report.kernels[kernel].filter((one) => one !== call).length;
    const time = this.facts.report.times[`${pass}/${nodes[0]}`];
    const program = this.facts.programOf(node);
    const estimates = this.facts.report.estimates.filter((one) => one.kernel === kernel);
    return [
      html("h4", {}, "Kernel"),
      list([
        ["name", html("code", {}, kernel)],
        ["time", time === undefined ? (program || estimates.length ? null : "not timed: sqcompile bench DIR does") : `${duration(time)} a call, ${threads(this.facts)}`],
        ["cycles", program ? `${big(program.cycles)}, GEMM at work in ${share(program.utilisation)} (a model)` : null],
        ...estimates.map((one) => [one.architecture, `${+one.us.toPrecision(3)} µs on ${one.device}, bound by ${one.bound} (estimated)`]),
        ["with", nodes.length > 1 ? `${nodes.length} nodes in one kernel` : null],
        ["shared by", others ? `${others} other call${others > 1 ? "s" : ""}` : null],
      ]),
      nodes.length > 1 ? this.links(nodes) : null,
      ...code([...(program ? [`${node.pass}/${node.name}`] : []), kernel]),
    ];
  }
}

const back = (node) => node.backward || node.pass === "backward";
const threads = (facts) => `${facts.report.threads} thread${facts.report.threads === 1 ? "" : "s"}`;

function list(rows) {
  const told = rows.filter(([, value]) => value !== null && value !== undefined);
  return told.length ? html("dl", {}, ...told.flatMap(([name, value]) => [html("dt", {}, name), html("dd", {}, value)])) : null;
}
