// Numbers as people read them, as the tables of the page show them.

export function size(count) {
  for (const unit of ["B", "kB", "MB"]) {
    if (Math.abs(count) < 1000) return `${unit === "B" ? count : +count.toPrecision(3)} ${unit}`;
    count /= 1000;
  }
  return `${+count.toPrecision(3)} GB`;
}

export function big(count) {
  for (const unit of ["", " k", " M"]) {
    if (Math.abs(count) < 1000) return `${+count.toPrecision(3)}${unit}`;
    count /= 1000;
  }
  return `${+count.toPrecision(3)} G`;
}

export function duration(milliseconds) {
  if (milliseconds >= 1000) return `${+(milliseconds / 1000).toPrecision(3)} s`;
  if (milliseconds < 0.1) return `${+(milliseconds * 1000).toPrecision(3)} µs`;
  return `${+milliseconds.toPrecision(3)} ms`;
}

export const number = (value) => (value === null ? "" : String(+value.toPrecision(4)));
export const share = (part) => `${+(100 * part).toPrecision(3)} %`;
export const decibels = (value) => (value === null ? "exact" : `${value.toFixed(1)} dB`);
