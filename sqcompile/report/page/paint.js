// Colouring the shapes of a picture by what was measured of their nodes.

import { decibels, duration, size } from "report/format.js";

const sum = (values) => {
  const told = values.filter((value) => value !== null);
  return told.length ? told.reduce((a, b) => a + b, 0) : null;
};

/** Ways to colour, by name: title, the value of nodes (null: unknown), how it is written, and
 * whether less is what one looks for. */
export const PAINTS = {
  kind: { title: "kind of op" },
  error: { title: "quantisation error", of: (nodes, facts) => facts.worst(nodes), written: decibels, less: true, there: (facts) => facts.report.tensors?.length },
  saved: { title: "bytes kept", of: (nodes, facts) => sum(nodes.map((node) => facts.saved.get(node.name)?.bytes ?? null)), written: size, there: () => true },
  time: { title: "time of kernels", of: (nodes, facts) => sum(nodes.map((node) => facts.timeOf(node))), written: duration, there: (facts) => Object.keys(facts.report.times).length },
};

/** Paint every shape: `groups` are their elements, `nodes` the nodes of each -> what the legend says. */
export function paint(name, groups, nodes, facts) {
  const way = PAINTS[name];
  if (!way.of) {
    for (const group of groups) group.querySelector(".heat")?.remove();
    return null;
  }
  const values = nodes.map((several) => way.of(several, facts));
  const told = values.filter((value) => value !== null && value !== 0);
  const [least, most] = [Math.min(...told), Math.max(...told)];
  groups.forEach((group, n) => {
    group.querySelector(".heat")?.remove();
    const value = values[n];
    if (value === null || value === 0) return;
    const part = most > least ? (value - least) / (most - least) : 1;
    const heat = group.querySelector(".body").cloneNode();
    heat.setAttribute("class", "heat");
    heat.setAttribute("fill-opacity", (0.06 + 0.5 * (way.less ? 1 - part : part)).toFixed(2));
    group.querySelector(".body").after(heat);
    group.dataset.heat = way.written(value);
  });
  return told.length ? { least: way.written(way.less ? most : least), most: way.written(way.less ? least : most) } : { least: "", most: "nothing measured" };
}
