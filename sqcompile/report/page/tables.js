// Tables that sort by a click or a key on a column's head, and filter by words.

import { html } from "report/dom.js";

const LONG = 8;

export function startTables() {
  for (const table of document.querySelectorAll("table.sortable")) {
    sortable(table);
    if (table.tBodies[0].rows.length > LONG) filterable(table);
  }
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = html("button", { type: "button", onclick: () => sort(table, heads, column) }, ...head.childNodes);
    head.append(button);
  });
}

/** Descending first for numbers, ascending for text; then the other way round. */
function sort(table, heads, column) {
  const head = heads[column];
  const numeric = head.classList.contains("n");
  const first = numeric ? "descending" : "ascending";
  const order = head.getAttribute("aria-sort") === first ? (numeric ? "ascending" : "descending") : first;
  for (const one of heads) one.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...table.tBodies[0].rows].map((row) => ({ row, key: key(row.cells[column], numeric) }));
  rows.sort((a, b) => {
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null); // what is unknown goes last
    return sign * (numeric ? a.key - b.key : a.key.localeCompare(b.key, undefined, { numeric: true }));
  });
  table.tBodies[0].append(...rows.map(({ row }) => row));
}

function key(cell, numeric) {
  const text = cell.dataset.v ?? cell.textContent.trim();
  if (text === "") return null;
  return numeric ? Number(text) : text;
}

function filterable(table) {
  const rows = [...table.tBodies[0].rows];
  const words = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const count = html("span", { class: "soft", "aria-live": "polite" });
  const region = table.closest(".scroll");
  const input = html("input", { type: "search", placeholder: "Filter", "aria-label": `Filter ${region.getAttribute("aria-label")}` });
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const row of rows) {
      row.hidden = !wanted.every((word) => words.get(row).includes(word));
      shown += !row.hidden;
    }
    count.textContent = input.value ? `${shown} of ${rows.length}` : "";
  });
  region.before(html("div", { class: "filter" }, input, count));
}
