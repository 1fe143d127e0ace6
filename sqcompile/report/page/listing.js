// The code of a kernel, unpacked when it is opened.

import { listings, unpack } from "report/data.js";
import { html } from "report/dom.js";
import { size } from "report/format.js";

/** Details for every text that there is of kernels. */
export function code(kernels) {
  return kernels.flatMap((kernel) => listings(kernel)).map(({ title, file, packed }) => {
    if (!packed) return html("p", { class: "soft" }, `${title}: too long for this page, see `, html("code", {}, file));
    const text = html("pre", { tabindex: "0", class: "code" });
    const details = html("details", { class: "listing" }, html("summary", {}, title, html("span", { class: "soft" }, ` ${file}`)), text);
    details.addEventListener("toggle", async () => {
      if (text.textContent) return;
      const whole = await unpack(packed);
      text.textContent = whole;
      details.querySelector(".soft").textContent = ` ${file}, ${whole.split("\n").length} lines, ${size(whole.length)}`;
    });
    return details;
  });
}
