// The slider through the passes.

import { byId, html } from "report/dom.js";

const PAUSE = 1400;

export function startSlider(explorer) {
  const { stages } = explorer;
  const slider = byId("stage");
  const play = byId("play");
  let playing = null;
  slider.max = stages.length - 1;

  const tell = () => {
    const { stage, number } = explorer;
    const { added, changed, removed } = stage.changes;
    const parts = [added.size && `+${added.size}`, changed.size && `~${changed.size}`, removed.length && `−${removed.length}`].filter(Boolean);
    slider.value = number;
    slider.setAttribute("aria-valuetext", `${number + 1} of ${stages.length}: ${stage.name}`);
    byId("stage-text").replaceChildren(
      html("b", {}, stage.name),
      html("span", { class: "soft" }, ` ${number + 1} of ${stages.length} · ${stage.nodes.length} nodes ${parts.join(" ")} · ${stage.about}`),
    );
    byId("earlier").disabled = number === 0;
    byId("later").disabled = number === stages.length - 1;
  };

  const stop = () => {
    clearInterval(playing);
    playing = null;
    play.textContent = "▶";
    play.setAttribute("aria-pressed", "false");
  };
  const step = (by) => explorer.setStage(Math.min(Math.max(explorer.number + by, 0), stages.length - 1));

  slider.addEventListener("input", () => (stop(), explorer.setStage(Number(slider.value))));
  byId("earlier").addEventListener("click", () => (stop(), step(-1)));
  byId("later").addEventListener("click", () => (stop(), step(1)));
  play.addEventListener("click", () => {
    if (playing) return stop();
    if (explorer.number === stages.length - 1) explorer.setStage(0);
    play.textContent = "❚❚";
    play.setAttribute("aria-pressed", "true");
    playing = setInterval(() => {
      step(1);
      if (explorer.number === stages.length - 1) stop();
    }, PAUSE);
    return undefined;
  });
  document.addEventListener("stagechange", tell);
  tell();
}
