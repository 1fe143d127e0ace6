// Light or dark: the system's, until the button chooses.

import { byId } from "report/dom.js";

const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");

export function isDark() {
  return (root.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
}

/** The value of a colour of the style sheet: colour("product"). */
export function colour(name) {
  return getComputedStyle(root).getPropertyValue(`--${name}`).trim() || name;
}

export function startTheme() {
  const tell = () => document.dispatchEvent(new CustomEvent("themechange"));
  byId("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    tell();
  });
  dark.addEventListener("change", tell);
}
