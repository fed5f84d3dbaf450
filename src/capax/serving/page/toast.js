// A short word at the bottom, with at most one thing to do about it.

import { byId, el } from "./dom.js";

const SHOWN_MS = 7000;
let timer = null;

/** Show `text`, and a button `action` that calls `onAction`. */
export function toast(text, action, onAction) {
  const box = byId("toast");
  const hide = () => {
    box.hidden = true;
  };
  const button =
    action &&
    el(
      "button",
      {
        type: "button",
        class: "text-button",
        onclick: () => {
          hide();
          onAction();
        },
      },
      action,
    );
  box.replaceChildren(el("span", {}, text), button || "");
  box.hidden = false;
  clearTimeout(timer);
  timer = setTimeout(hide, SHOWN_MS);
}
