// Plots of one quantised tensor: the range of its channels, and its error at other bits and groups.

/** Absmax of every channel, with the borders of ShiftQuant's groups; null where channels are not measured. */
export function channelsFigure(tensor) {
  if (!tensor?.channels) return null;
  const { absmax, borders, sorted, count } = tensor.channels;
  const largest = Math.max(...absmax.filter((value) => value !== null));
  const group = (value) => borders.filter((border) => value <= border).length;
  const present = [...new Set(absmax.map(group))].sort((a, b) => a - b);
  const data = present.map((number) => {
    const chosen = absmax.map((value, n) => [n, value]).filter(([, value]) => group(value) === number);
    return {
      type: "bar",
      name: tensor.groups > 1 ? `group ${number}: scale 2^-${number}` : "channels",
      x: chosen.map(([n]) => n),
      y: chosen.map(([, value]) => value),
      hovertemplate: "channel %{x}: %{y:.3g}<extra></extra>",
    };
  });
  const lines = borders.map((y) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: { color: "soft", width: 1, dash: "dot" } }));
  const least = Math.min(...absmax.filter((value) => value > 0), largest);
  return {
    data,
    layout: {
      barmode: "overlay",
      xaxis: { title: { text: sorted ? `${absmax.length} of ${count} channels, by range` : `${count} channels` } },
      yaxis: { title: { text: "absmax" }, type: "log", range: [Math.log10(least / 2), Math.log10(largest * 1.3)] },
      shapes: lines,
    },
  };
}

/** Relative squared error against bits, a line for every number of groups; null where not measured. */
export function bitsFigure(tensor) {
  if (!tensor?.errors) return null;
  const { bits, groups, relative } = tensor.errors;
  const data = groups.map((count, n) => ({
    type: "scatter",
    mode: "lines+markers",
    name: `${count} group${count > 1 ? "s" : ""}`,
    x: bits,
    y: relative[n],
    hovertemplate: `%{x} bit, ${count} groups: %{y:.3g}<extra></extra>`,
  }));
  data.push({
    type: "scatter",
    mode: "markers",
    name: "as compiled",
    x: [tensor.bits],
    y: [tensor.error],
    marker: { color: "ink", size: 12, symbol: "diamond-open", line: { width: 2 } },
    hovertemplate: `as compiled, ${tensor.groups} groups: %{y:.3g}<extra></extra>`,
  });
  return {
    data,
    layout: { xaxis: { title: { text: "bits" }, dtick: 1 }, yaxis: { title: { text: "relative squared error" }, type: "log", exponentformat: "power" } },
  };
}
