// A small histogram.

import { html, svg } from "report/dom.js";

const WIDTH = 300;
const HEIGHT = 64;

export function bars(title, counts, labels) {
  const most = Math.max(...counts, 1);
  const total = counts.reduce((a, b) => a + b, 0) || 1;
  const step = WIDTH / counts.length;
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT + 14}`, class: "bars", role: "img", "aria-label": `${title}: ${counts.join(", ")}` });
  counts.forEach((count, n) => {
    const height = (HEIGHT * count) / most;
    const bar = svg("rect", { x: n * step + step * 0.08, y: HEIGHT - height, width: step * 0.84, height: Math.max(height, count ? 1 : 0), rx: Math.min(2, step / 4) });
    bar.append(svg("title", {}, `${labels.length === counts.length ? labels[n] : n}: ${count} (${((100 * count) / total).toFixed(1)} %)`));
    picture.append(bar);
  });
  const every = labels.length === counts.length ? Math.ceil(labels.length / 16) : 1;
  labels.forEach((label, n) => {
    if (n % every) return;
    const x = labels.length === counts.length ? (n + 0.5) * step : n ? WIDTH : 0;
    picture.append(svg("text", { x, y: HEIGHT + 11, "text-anchor": labels.length === counts.length ? "middle" : n ? "end" : "start" }, label));
  });
  return html("figure", { class: "small" }, html("figcaption", {}, title), picture);
}
