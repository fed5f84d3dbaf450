// Copying text, with an answer on the button itself.

import { announce } from "./announcer.js";
import { icon, iconButton } from "./dom.js";

const SHOWN_MS = 1600;

/** Return a button that copies what `text()` returns when it is pressed. */
export function copyButton(label, text) {
  const button = iconButton("copy", label, async () => {
    const isCopied = await copy(text());
    announce(isCopied ? "Copied" : "Copying is not allowed here");
    button.replaceChildren(icon(isCopied ? "check" : "close"));
    setTimeout(() => button.replaceChildren(icon("copy")), SHOWN_MS);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text);
  }
}

/** Plain http from another machine has no clipboard API; the older way still works there. */
function copyBySelection(text) {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "visually-hidden";
  const focused = document.activeElement;
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return isCopied;
}
