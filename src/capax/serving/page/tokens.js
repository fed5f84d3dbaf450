// An answer as the tokens it was made of: each tinted by how unlikely it was, with the
// alternatives in a card on hover, touch or with the arrow keys.

import { byId, el } from "./dom.js";
import { percent } from "./format.js";

const GAP_PX = 8;

/** Shows the tokens of one message; they may still be growing. */
export class TokensView {
  constructor() {
    this.tokens = [];
    this.node = el("div", {
      class: "tokens",
      tabindex: "0",
      role: "group",
      "aria-label": "Tokens and their probabilities; left and right arrow move",
      onpointerover: (event) => this.#showAt(indexOf(event.target)),
      onpointerleave: () => hideCard(),
      onkeydown: (event) => this.#onKey(event),
      onfocusout: () => hideCard(),
    });
  }

  /** Show `tokens`; those shown before are the first of them. */
  update(tokens) {
    if (tokens.length < this.node.childNodes.length) this.node.replaceChildren();
    const from = this.node.childNodes.length;
    this.node.append(...tokens.slice(from).map((token, i) => tokenNode(token, from + i)));
    this.tokens = tokens;
  }

  #onKey(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") hideCard();
    if (!step || this.tokens.length === 0) return;
    event.preventDefault();
    const current = this.node.querySelector(".current");
    const index = current ? indexOf(current) + step : step > 0 ? 0 : this.tokens.length - 1;
    this.#showAt(Math.max(0, Math.min(index, this.tokens.length - 1)));
  }

  #showAt(index) {
    if (index === null) return;
    hideCard();
    const node = this.node.childNodes[index];
    node.classList.add("current");
    showCard(node, this.tokens[index]);
  }
}

/** Take the card away. */
export function hideCard() {
  byId("token-card").hidden = true;
  document.querySelector(".token.current")?.classList.remove("current");
}

function tokenNode([text, logprob], index) {
  const node = el("span", { class: "token", "data-index": index }, text);
  node.style.setProperty("--unlikely", (1 - Math.exp(logprob)).toFixed(3));
  return node;
}

function indexOf(target) {
  const index = target.closest?.(".token")?.dataset.index;
  return index === undefined ? null : Number(index);
}

function showCard(node, [text, logprob, alternatives]) {
  const card = byId("token-card");
  const isListed = alternatives.some(([other]) => other === text);
  const rows = isListed ? alternatives : [...alternatives, [text, logprob]];
  card.replaceChildren(
    el(
      "div",
      { class: "token-card-head" },
      el("code", {}, visible(text)),
      el("strong", {}, percent(Math.exp(logprob))),
      el("span", {}, `log ${logprob.toFixed(2)}`),
    ),
    el("div", { class: "alternatives" }, ...rows.map((row) => alternativeRow(row, text))),
  );
  card.hidden = false;
  place(card, node.getClientRects()[0] ?? node.getBoundingClientRect());
}

function alternativeRow([text, logprob], chosen) {
  const probability = Math.exp(logprob);
  const bar = el("span", { class: "bar" });
  bar.style.width = `${probability * 100}%`;
  return el(
    "div",
    { class: text === chosen ? "alternative chosen" : "alternative" },
    el("code", {}, visible(text)),
    el("span", { class: "bar-box", "aria-hidden": "true" }, bar),
    el("span", { class: "number" }, percent(probability)),
  );
}

/** Put the card under the token, or above it where there is no room. */
function place(card, box) {
  const { offsetWidth: width, offsetHeight: height } = card;
  const left = Math.max(GAP_PX, Math.min(box.left, innerWidth - width - GAP_PX));
  const below = box.bottom + GAP_PX;
  const top = below + height <= innerHeight ? below : Math.max(GAP_PX, box.top - height - GAP_PX);
  card.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
}

function visible(text) {
  return text.replace(/ /g, "·").replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "(empty)";
}
