// One message: what was said, what it cost, and what can be done with it.

import { copyButton } from "./clipboard.js";
import { el, iconButton } from "./dom.js";
import { count, percent, plural, rate, seconds } from "./format.js";
import { MarkdownView } from "./markdown/view.js";
import { TokensView } from "./tokens.js";

/** Return the node of a message of the user; `onEdit` is called to say it differently. */
export function userNode(message, onEdit) {
  return el(
    "article",
    { class: "message user", "aria-label": "You" },
    el("div", { class: "bubble", dir: "auto" }, message.content),
    el(
      "div",
      { class: "message-tools" },
      copyButton("Copy message", () => message.content),
      iconButton("edit", "Edit and ask again", onEdit),
    ),
  );
}

/** An answer, which may still be growing. */
export class AnswerView {
  /** `onRetry` is called to answer again; `prefersTokens`: show tokens where there are any. */
  constructor(message, { onRetry, prefersTokens }) {
    this.message = message;
    this.onRetry = onRetry;
    this.showsTokens = prefersTokens;
    this.isRunning = false;
    this.prose = new MarkdownView();
    this.tokens = new TokensView();
    this.body = el("div", { class: "answer-body" });
    this.foot = el("div", { class: "answer-foot" });
    this.node = el(
      "article",
      { class: "message assistant", "aria-label": "Answer" },
      this.body,
      this.foot,
    );
  }

  /** Show the message as it is now; `progress`: the share of the prompt that is computed. */
  update(isRunning, progress) {
    this.isRunning = isRunning;
    const { message } = this;
    const hasTokens = Boolean(message.tokens?.length);
    const parts = [];
    if (message.reasoning) parts.push(this.#reasoning());
    if (hasTokens && this.showsTokens) {
      this.tokens.update(message.tokens);
      parts.push(this.tokens.node);
    } else if (message.content) {
      this.prose.update(message.content);
      parts.push(this.prose.node);
    }
    if (isRunning && parts.length === 0) parts.push(waiting(progress));
    if (message.error) parts.push(this.#error());
    setChildren(this.body, parts);
    this.node.classList.toggle("running", isRunning);
    this.node.setAttribute("aria-busy", String(isRunning));
    if (!isRunning) this.#showFoot(hasTokens);
    else this.foot.replaceChildren();
  }

  #showFoot(hasTokens) {
    const { message } = this;
    const tools = el("div", { class: "message-tools" });
    if (message.content) tools.append(copyButton("Copy answer", () => message.content));
    if (!message.error)
      tools.append(
        iconButton("retry", "Answer again", this.onRetry, { class: "icon-button retry" }),
      );
    if (hasTokens) tools.append(this.#tokensSwitch());
    this.foot.replaceChildren(tools, statsLine(message));
  }

  #tokensSwitch() {
    const [name, label] = this.showsTokens ? ["text", "Show as text"] : ["tokens", "Show tokens"];
    return iconButton(
      name,
      label,
      () => {
        this.showsTokens = !this.showsTokens;
        this.update(this.isRunning);
        this.foot.querySelector(`[data-switch]`)?.focus();
      },
      { "data-switch": true },
    );
  }

  #reasoning() {
    this.details ??= el(
      "details",
      { class: "reasoning" },
      el("summary", {}, "Reasoning"),
      el("div", { dir: "auto" }),
    );
    this.details.lastChild.textContent = this.message.reasoning;
    return this.details;
  }

  #error() {
    return el(
      "div",
      { class: "error", role: "alert" },
      el("span", {}, this.message.error.message),
      el("button", { type: "button", class: "button retry", onclick: this.onRetry }, "Try again"),
    );
  }
}

const FINISHES = new Map([
  ["stopped", "stopped by you"],
  ["interrupted", "interrupted: the page was left while this was written"],
  ["length", "stopped at the token limit"],
  ["content_filter", "ended by the server's filter"],
]);

function statsLine({ stats, finish }) {
  const parts = [];
  if (stats?.tokensPerSecond) parts.push(`${rate(stats.tokensPerSecond)} tok/s`);
  if (stats?.firstTokenS) parts.push(`first token ${seconds(stats.firstTokenS)}`);
  if (stats?.nTokens) parts.push(plural(stats.nTokens, "token"));
  if (stats?.nPrompt) {
    parts.push(`${count(stats.nCached ?? 0)} of ${count(stats.nPrompt)} prompt tokens cached`);
  }
  if (FINISHES.has(finish)) parts.push(FINISHES.get(finish));
  return el("p", { class: "stats" }, ...parts.map((text) => el("span", { class: "stat" }, text)));
}

function waiting(progress) {
  return el(
    "div",
    { class: "waiting", role: "status", "aria-label": "Waiting for the first token" },
    el("i"),
    el("i"),
    el("i"),
    progress > 0 &&
      progress < 1 &&
      el("span", {}, `Reading the conversation · ${percent(progress, 0)}`),
  );
}

/** Replace the children only where they differ: a node that stays keeps its state. */
function setChildren(node, children) {
  const isSame =
    node.childNodes.length === children.length &&
    children.every((child, i) => node.childNodes[i] === child);
  if (!isSame) node.replaceChildren(...children);
}
