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
  const steps = new Map(data.stages.map((stage) => [stage.name, stage.text]));
  for (const details of document.querySelectorAll("details[data-stage]")) {
    const name = steps.has(details.dataset.stage) ? details.dataset.stage : "compiled";
    details.addEventListener("toggle", () => {
      const text = details.querySelector("pre");
      if (!text.textContent) text.textContent = along(steps.get(name), data.lines).join("\n");
    });
  }
}
