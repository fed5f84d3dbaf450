// Where messages are written. Enter sends, Shift+Enter is a new line; one button sends or stops.

import { byId, icon } from "./dom.js";

const DRAFT = "capax.draft";
const MAX_HEIGHT_PX = 240;

export class Composer extends EventTarget {
  constructor() {
    super();
    this.input = byId("prompt");
    this.button = byId("send");
    this.isAnswering = false;
    this.canSend = false;
    this.editing = null; // the message that what is written replaces
    this.input.value = readDraft();
    this.input.addEventListener("input", () => this.#onInput());
    this.input.addEventListener("keydown", (event) => this.#onKey(event));
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    byId("cancel-edit").addEventListener("click", () => this.edit(null));
    this.#show();
  }

  /** Say whether an answer is being written, and whether the server takes messages. */
  setState({ isAnswering, canSend }) {
    this.isAnswering = isAnswering;
    this.canSend = canSend;
    this.#show();
  }

  /** Begin to rewrite an earlier message; null leaves that again. */
  edit(message) {
    const was = this.editing;
    this.editing = message;
    byId("editing").hidden = message === null;
    if (message) this.write(message.content);
    else if (was) this.#clear();
  }

  /** Put `text` into the box and go there. */
  write(text) {
    this.input.value = text;
    this.#onInput();
    this.input.focus();
  }

  /** Go to the box, unless that would open a keyboard on the screen. */
  focus() {
    if (matchMedia("(hover: hover)").matches) this.input.focus();
  }

  #clear() {
    this.input.value = "";
    this.#onInput();
  }

  #onKey(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!this.isAnswering) this.#submit();
    } else if (event.key === "Escape" && this.editing && !this.isAnswering) {
      event.stopPropagation();
      this.edit(null);
    }
  }

  #submit() {
    if (this.isAnswering) {
      this.dispatchEvent(new Event("stop"));
      return;
    }
    const text = this.input.value;
    if (!this.canSend || text.trim() === "") return;
    const { editing } = this;
    this.edit(null);
    this.#clear();
    this.dispatchEvent(new CustomEvent("send", { detail: { text, editing } }));
  }

  #onInput() {
    keepDraft(this.input.value);
    this.#show();
  }

  #show() {
    this.input.style.height = "auto";
    this.input.style.height = `${Math.min(this.input.scrollHeight, MAX_HEIGHT_PX)}px`;
    const label = this.isAnswering ? "Stop" : "Send";
    if (this.button.getAttribute("aria-label") !== label || !this.button.title) {
      this.button.setAttribute("aria-label", label);
      this.button.title = label;
      this.button.classList.toggle("stop", this.isAnswering);
      this.button.replaceChildren(icon(this.isAnswering ? "stop" : "send"));
    }
    const isEmpty = this.input.value.trim() === "";
    this.button.disabled = !this.isAnswering && (isEmpty || !this.canSend);
  }
}

function readDraft() {
  try {
    return sessionStorage.getItem(DRAFT) ?? "";
  } catch {
    return "";
  }
}

function keepDraft(text) {
  try {
    sessionStorage.setItem(DRAFT, text);
  } catch {
    // A draft that is not kept is only lost on reload.
  }
}
