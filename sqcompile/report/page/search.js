// Finding an op, a module or a node of the stage that is shown: a combobox.

import { byId, html } from "report/dom.js";
import { kindOf } from "report/kinds.js";

const MOST = 40;

export function startSearch(explorer) {
  const input = byId("search");
  const list = byId("found");
  let found = [];
  let active = -1;

  const close = () => {
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
    active = -1;
  };

  const go = (one) => {
    close();
    if (one.module !== undefined) explorer.goModule(one.module);
    else explorer.goNode(one.node.name);
  };

  const point = (n) => {
    active = n;
    [...list.children].forEach((item, at) => item.setAttribute("aria-selected", at === n));
    list.children[n]?.scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-activedescendant", `found-${n}`);
  };

  const look = () => {
    found = matches(explorer.stage, input.value.trim().toLowerCase());
    list.replaceChildren(...found.map((one, n) => item(one, n, () => go(one))));
    list.hidden = !input.value.trim();
    if (!found.length) list.append(html("li", { class: "none", role: "option", "aria-disabled": "true" }, "nothing in this stage"));
    input.setAttribute("aria-expanded", String(!list.hidden));
    if (found.length) point(0);
  };

  input.addEventListener("input", look);
  input.addEventListener("focus", () => input.value.trim() && look());
  input.addEventListener("blur", () => setTimeout(close, 150));
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return close();
    if (event.key === "Enter" && found[active]) go(found[active]);
    else if (event.key === "ArrowDown") point(Math.min(active + 1, found.length - 1));
    else if (event.key === "ArrowUp") point(Math.max(active - 1, 0));
    else return undefined;
    return event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) return;
    event.preventDefault();
    input.focus();
  });
}

function item(one, n, chosen) {
  const parts =
    one.module !== undefined
      ? [html("b", {}, one.module || "(model)"), html("span", { class: "soft" }, " module")]
      : [html("i", { class: kindOf(one.node.op) }), html("b", {}, one.node.name), html("span", { class: "soft" }, ` ${one.node.op} ${one.node.module}`)];
  return html("li", { role: "option", id: `found-${n}`, onmousedown: (event) => (event.preventDefault(), chosen()) }, ...parts);
}

/** Modules and nodes whose name, op, module or source line holds all words, the closest first. */
function matches(stage, query) {
  if (!query) return [];
  const words = query.split(/\s+/);
  const rank = (name) => (name === query ? 0 : name.startsWith(query) ? 1 : name.includes(query) ? 2 : 3);
  const holds = (text) => words.every((word) => text.includes(word));
  const modules = [...new Set(stage.nodes.map((node) => node.module))].filter((name) => name && holds(name.toLowerCase()));
  const nodes = [...stage.byName.values()].filter((node) => node.op !== "output" && holds(`${node.name} ${node.op} ${node.module} ${node.line}`.toLowerCase()));
  const ranked = [
    ...modules.map((module) => ({ module, rank: rank(module.toLowerCase()) })),
    ...nodes.map((node) => ({ node, rank: Math.min(rank(node.name.toLowerCase()), 0.5 + rank(node.op.replace(/^\w+\./, "").toLowerCase())) })),
  ];
  return ranked.sort((a, b) => a.rank - b.rank).slice(0, MOST);
}
