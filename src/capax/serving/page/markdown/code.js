// A block of code with its language and a button that copies it.

import { copyButton } from "../clipboard.js";
import { el } from "../dom.js";

/** Return the node of a block of code. */
export function codeBlock(language, text) {
  return el(
    "figure",
    { class: "code" },
    el(
      "figcaption",
      {},
      el("span", {}, language || "text"),
      copyButton("Copy code", () => text),
    ),
    el("pre", { tabindex: "0", dir: "ltr" }, el("code", {}, text)),
  );
}
