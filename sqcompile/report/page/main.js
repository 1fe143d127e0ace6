// Starts everything: tables first, then the graph, then the plots when they come into view.

import { blob, along } from "report/data.js";
import { byId } from "report/dom.js";
import { Explorer } from "report/explorer.js";
import { Facts } from "report/facts.js";
import { stagesOf } from "report/model.js";
import { Panel } from "report/panel.js";
import { startPlots } from "report/plots.js";
import { startSearch } from "report/search.js";
import { startSlider } from "report/slider.js";
import { startTables } from "report/tables.js";
import { startTheme } from "report/theme.js";

startTheme();
startTables();
const [whole, report] = await Promise.all([blob("graphs"), blob("report")]);
const facts = new Facts(report);
if (whole) {
  const explorer = new Explorer(stagesOf(whole), facts, new Panel(facts));
  startSlider(explorer);
  startSearch(explorer);
  links(explorer);
  texts(whole);
}
startPlots(facts);
document.documentElement.dataset.ready = "true";

/** Names of nodes and modules in tables show them in the graph. */
function links(explorer) {
  document.querySelector("main").addEventListener("click", (event) => {
    const button = event.target.closest?.("button[data-node], button[data-module]");
    if (!button) return;
    if (button.dataset.node !== undefined) explorer.goNode(button.dataset.node);
    else explorer.goModule(button.dataset.module);
    byId("graph").scrollIntoView();
  });
}

/** Stages as text, filled in when they are opened. */
function texts(data) {
  for (const details of document.querySelectorAll("details[data-stage]"))
    details.addEventListener("toggle", () => {
      const text = details.querySelector("pre");
      if (!text.textContent) text.textContent = stageText(data, details.dataset.stage);
    });
}

/** The text of a stage; of forward and backward, which the graph shows as one, their part of it. */
function stageText(data, name) {
  const stage = data.stages.find((one) => one.name === name);
  const lines = along((stage ?? data.stages.at(-1)).text, data.lines);
  const cut = stage ? 0 : lines.findIndex((line) => line.startsWith("def backward("));
  if (stage || cut < 0) return lines.join("\n");
  return (name === "forward" ? lines.slice(0, cut) : lines.slice(cut)).join("\n");
}
