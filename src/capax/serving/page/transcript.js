// The messages of the conversation that is shown, and the scrolling that follows them.

import { announce } from "./announcer.js";
import { byId, el } from "./dom.js";
import { AnswerView, userNode } from "./message_view.js";
import { hideCard } from "./tokens.js";

const NEAR_PX = 60;

export class Transcript {
  constructor(chat, settings, { onEdit }) {
    this.chat = chat;
    this.settings = settings;
    this.onEdit = onEdit;
    this.conversation = null;
    this.views = new Map(); // message id -> AnswerView
    this.pending = null; // the next frame's update
    this.follows = true;
    this.scroller = byId("scroller");
    this.list = byId("transcript");
    this.scroller.addEventListener("scroll", () => this.#onScroll(), { passive: true });
    byId("jump").addEventListener("click", () => this.#toEnd());
    // A notice above or a longer message below makes it smaller.
    new ResizeObserver(() => this.follows && this.#toEnd()).observe(this.scroller);
    chat.addEventListener("start", ({ detail }) => this.#onNews(detail));
    chat.addEventListener("change", ({ detail }) => this.#onChange(detail));
    chat.addEventListener("end", ({ detail }) => this.#onEnd(detail));
  }

  /** Show a conversation from its first message. */
  show(conversation) {
    this.conversation = conversation;
    this.render();
    this.#toEnd();
  }

  /** Show the messages again, after some were added or removed. */
  render() {
    hideCard();
    this.views.clear();
    this.list.replaceChildren(...this.conversation.messages.map((message) => this.#node(message)));
    byId("welcome").hidden = this.conversation.messages.length > 0;
  }

  #node(message) {
    if (message.role === "user") return userNode(message, () => this.onEdit(message));
    const view = new AnswerView(message, {
      onRetry: () => this.#retry(message),
      prefersTokens: Boolean(this.settings.get("tokens")),
    });
    this.views.set(message.id, view);
    this.#updateView(view);
    return view.node;
  }

  #retry(message) {
    const isLast = this.conversation.messages.at(-1) === message;
    if (isLast && !this.chat.isAnswering(this.conversation)) this.chat.retry(this.conversation);
  }

  #isRunning(message) {
    return (
      this.chat.isAnswering(this.conversation) && this.conversation.messages.at(-1) === message
    );
  }

  #onNews({ conversation }) {
    if (conversation !== this.conversation) return;
    announce("Answering");
    this.render();
    this.#toEnd();
  }

  #onChange({ conversation, message }) {
    if (conversation !== this.conversation || this.pending) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = null;
      this.#update(message);
    });
  }

  #onEnd({ conversation, message }) {
    if (conversation !== this.conversation) return;
    this.#update(message);
    announce(message.error ? message.error.message : message.content);
  }

  #update(message) {
    const view = this.views.get(message.id);
    if (!view) return;
    this.#updateView(view);
    if (this.follows) this.#toEnd();
    else byId("jump").hidden = false;
  }

  #updateView(view) {
    view.update(this.#isRunning(view.message), this.chat.progress.get(this.conversation.id));
  }

  #onScroll() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.follows = scrollHeight - scrollTop - clientHeight < NEAR_PX;
    byId("jump").hidden = this.follows;
    hideCard();
  }

  #toEnd() {
    this.follows = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
    byId("jump").hidden = true;
  }
}

/** Fill the first screen with things to ask; `onPick` is given the text. */
export function showSuggestions(onPick) {
  const texts = [
    "Explain what a KV cache is, in three sentences.",
    "Write a haiku about a small computer.",
    "Make a table of three sorting algorithms and their complexity.",
    "Write a Python function that reverses a string.",
  ];
  byId("suggestions").replaceChildren(
    ...texts.map((text) =>
      el("button", { type: "button", class: "suggestion", onclick: () => onPick(text) }, text),
    ),
  );
}
