// A picture as SVG: modules as boxes, nodes and closed modules as shapes, what they read as curves.

import { kindOf, shortOp } from "report/kinds.js";
import { size } from "report/format.js";

const escaped = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

/** The end of a text: names of parameters differ there. */
const end = (text, most) => (text.length > most ? `…${text.slice(1 - most)}` : text);

/** Where things of a picture are, by number. */
export const rectangle = ([x, y, width, height]) => ({ x, y, width, height });

/** The markup of a picture of a stage; `facts` tells of bytes kept. */
export function drawn(picture, stage, facts) {
  const columns = [picture.boxes, picture.shapes].flat();
  const open = new Set(picture.boxes.map(([, , , , path]) => path));
  return [
    titles(columns),
    `<g class="boxes">${picture.boxes.map(box).join("")}</g>`,
    `<g class="edges">${picture.edges.map((one, n) => edge(one, n, picture.shapes)).join("")}</g>`,
    `<g class="shapes">${picture.shapes.map((one, n) => shape(one, n, { stage, facts, open })).join("")}</g>`,
  ].join("");
}

function titles(all) {
  return ["forward", "backward"]
    .map((name, side) => {
      const there = all.filter((one) => one[5] === side);
      if (!there.length) return "";
      const left = Math.min(...there.map((one) => one[0]));
      const right = Math.max(...there.map((one) => one[0] + one[2]));
      const arrow = side ? "↑" : "↓";
      return `<text class="column" x="${(left + right) / 2}" y="-2">${name} ${arrow}</text>`;
    })
    .join("");
}

function box([x, y, width, height, path, side], n) {
  const depth = path.split(".").length;
  return `<g class="box" data-box="${n}"><rect x="${x}" y="${y}" width="${width}" height="${height}" rx="10" class="${side ? "back" : "fore"} d${Math.min(depth, 4)}"/><text x="${x + 12}" y="${y + 19}">${escaped(path)}</text></g>`;
}

/** A curve from a shape to one that reads it, through the bends between. */
function edge([from, to, saved, ...bends], n, shapes) {
  const [sx, sy, sw, sh, , side] = shapes[from];
  const [tx, ty, tw, th] = shapes[to];
  if (saved) {
    const [x0, y0, x1, y1] = [sx + sw, sy + sh / 2, tx, ty + th / 2];
    const reach = Math.max(60, (x1 - x0) / 2);
    return `<path class="saved" data-edge="${n}" d="M${x0} ${y0}C${x0 + reach} ${y0} ${x1 - reach} ${y1} ${x1} ${y1}"/>`;
  }
  const points = [[sx + sw / 2, side ? sy : sy + sh]];
  for (let i = 0; i < bends.length; i += 2) points.push([bends[i], bends[i + 1]]);
  points.push([tx + tw / 2, side ? ty + th : ty]);
  const curves = points.slice(1).map(([x, y], i) => {
    const [px, py] = points[i];
    const middle = (py + y) / 2;
    return `C${px} ${middle} ${x} ${middle} ${x} ${y}`;
  });
  return `<path data-edge="${n}" d="M${points[0].join(" ")}${curves.join("")}"/>`;
}

function shape(one, n, within) {
  const [, , , , what] = one;
  return Array.isArray(what) ? moduleShape(one, n, within) : nodeShape(one, n, within.stage.nodes[what]);
}

/** A module's path without that of the open box around it. */
function inside(path, open) {
  for (let end = path.lastIndexOf("."); end > 0; end = path.lastIndexOf(".", end - 1))
    if (open.has(path.slice(0, end))) return path.slice(end + 1);
  return path;
}

function nodeShape([x, y, width, height], n, node) {
  const kind = kindOf(node.op);
  const small = height < 30;
  const name = held(node) ?? shortOp(node.op);
  const value = node.value.startsWith("(") ? `${node.value.split("], ").length} values` : node.value;
  const chip = node.bits && !small ? `<rect class="chip" x="${x + width - 32}" y="${y + 5}" width="26" height="14" rx="7"/><text class="bits" x="${x + width - 19}" y="${y + 15.5}">${node.bits} bit</text>` : "";
  const text = small
    ? `<text class="name" x="${x + 9}" y="${y + 13}">${escaped(node.port ? end(name, 20) : cut(name, 20))}</text>`
    : `<text class="name" x="${x + 10}" y="${y + 15}">${escaped(cut(name, node.bits ? 18 : 22))}</text><text class="value" x="${x + 10}" y="${y + 28}">${escaped(cut(value, 26))}</text>`;
  return `<g class="shape ${kind}${small ? " small" : ""}" data-shape="${n}"><title>${escaped(`${node.name}: ${node.value}\n${node.op}`)}</title><rect class="body" x="${x}" y="${y}" width="${width}" height="${height}" rx="${small ? 9 : 6}"/><rect class="mark" x="${x}" y="${y + 4}" width="4" height="${height - 8}" rx="2"/>${chip}${text}</g>`;
}

/** What a node holds: `stem_weight`, `input 0`, the name of a constant; null for an op. */
function held(node) {
  if (node.op === "constant") return node.name;
  return node.port ? node.port.replace(/^(parameter|buffer) /, "") : null;
}

function moduleShape([x, y, width, height, [path, places], side], n, { stage, facts, open }) {
  const nodes = places.map((place) => stage.nodes[place]);
  const ops = nodes.filter((node) => node.op.includes("."));
  const bits = [...new Set(nodes.map((node) => node.bits).filter(Boolean))].sort();
  const kept = side || stage.begins === null ? 0 : facts.keptBy(nodes, stage); // known of the compiled graph
  const told = [`${ops.length} op${ops.length === 1 ? "" : "s"}`];
  if (bits.length) told.push(`${bits.join(", ")} bit`);
  if (kept) told.push(`keeps ${size(kept)}`);
  const kinds = ["product", "quantise", "norm"].filter((kind) => ops.some((node) => kindOf(node.op) === kind));
  const dots = kinds.map((kind, i) => `<circle class="dot ${kind}" cx="${x + width - 15 - 13 * i}" cy="${y + 18}" r="4.5"/>`).join("");
  return `<g class="shape module" data-shape="${n}"><title>${escaped(path)}</title><rect class="body" x="${x}" y="${y}" width="${width}" height="${height}" rx="9"/>${dots}<text class="name" x="${x + 14}" y="${y + 23}">${escaped(cut(inside(path, open), 21))}</text><text class="value" x="${x + 14}" y="${y + 43}">${escaped(told.join(" · "))}</text></g>`;
}
