// The plots: plotly is unpacked and run when the first of them comes into view.

import { blob, blobText } from "report/data.js";
import { byId, html } from "report/dom.js";
import { bitsFigure, channelsFigure } from "report/tensorplots.js";
import { colour } from "report/theme.js";

const COLOURS = ["product", "quantise", "norm", "pack", "loss", "view", "plain"];
let plotly = null;

function library() {
  plotly ??= blobText("plotly").then((text) => {
    const script = document.createElement("script");
    script.textContent = text;
    document.head.append(script);
    return window.Plotly;
  });
  return plotly;
}

export async function startPlots(facts) {
  const holders = [...document.querySelectorAll(".plot")];
  if (!holders.length) return;
  const tensors = facts.report.tensors ?? [];
  const shown = new Set();
  let chosen = tensors.reduce((best, one) => (spread(one) > spread(best) ? one : best), tensors[0]);

  const draw = async (holder) => {
    const name = holder.dataset.plot;
    const made = { channels: () => channelsFigure(chosen), bits: () => bitsFigure(chosen) }[name];
    const figure = made ? made() : (await blob("figures"))[name];
    if (!figure) return holder.replaceChildren(html("p", { class: "soft" }, "This tensor has no such measurement."));
    const Plotly = await library();
    if (!holder.classList.contains("js-plotly-plot")) holder.replaceChildren();
    holder.dataset.ready = "true";
    return Plotly.react(holder, figure.data.map(painted), styled(figure.layout, holder), { displaylogo: false, responsive: true, displayModeBar: false });
  };

  const watcher = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries)
      if (isIntersecting && !shown.has(target)) {
        shown.add(target);
        draw(target);
      }
  }, { rootMargin: "200px" });
  for (const holder of holders) watcher.observe(holder);

  const again = (names) => {
    for (const holder of shown) if (!names || names.includes(holder.dataset.plot)) draw(holder);
  };
  document.addEventListener("themechange", () => again(null));
  const select = byId("tensor");
  if (!select) return;
  const groups = new Map();
  tensors.forEach((one, n) => {
    const name = one.kind;
    if (!groups.has(name)) groups.set(name, html("optgroup", { label: name }));
    groups.get(name).append(html("option", { value: n }, `${one.name}  ${one.module || "(model)"}${one.role ? `, ${one.role}` : ""}`));
  });
  select.append(...groups.values());
  const choose = (one) => {
    chosen = one;
    select.value = String(tensors.indexOf(one));
    again(["channels", "bits"]);
  };
  choose(chosen);
  select.addEventListener("change", () => choose(tensors[Number(select.value)]));
  document.addEventListener("plottensor", ({ detail }) => {
    choose(detail);
    byId("plots").scrollIntoView();
  });
}

/** How many groups a tensor's channels are in: what is shown first has most to show. */
const spread = (tensor) => tensor.exponents?.filter(Boolean).length ?? 0;

/** A trace with the page's colours for the names of its own, or the next in line. */
function painted(trace, n) {
  const fallback = colour(COLOURS[n % COLOURS.length]);
  const named = (holder) => (holder?.color && /^[a-z]+$/.test(holder.color) ? { ...holder, color: colour(holder.color) } : { color: fallback, ...holder });
  return { ...trace, marker: { size: 7, ...named(trace.marker) }, line: { width: 2, ...named(trace.line) } };
}

function styled(layout, holder) {
  const axis = { gridcolor: colour("line"), zerolinecolor: colour("line"), linecolor: colour("line"), automargin: true, title: { standoff: 8 } };
  const axes = Object.fromEntries(
    ["xaxis", "yaxis", "yaxis2"].filter((name) => name in layout || name !== "yaxis2").map((name) => {
      const given = layout[name] ?? {};
      return [name, { ...axis, ...given, title: { ...axis.title, ...given.title } }];
    }),
  );
  const shapes = (layout.shapes ?? []).map((one) => ({ ...one, line: { ...one.line, color: colour(one.line.color) } }));
  return {
    ...layout,
    ...axes,
    shapes,
    font: { family: "system-ui, sans-serif", size: 12, color: colour("ink") },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 56, r: 16, t: 8, b: 44 },
    height: holder.clientHeight || 320,
    hoverlabel: { bgcolor: colour("raised"), bordercolor: colour("line"), font: { color: colour("ink") } },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    showlegend: layout.showlegend ?? true,
  };
}
