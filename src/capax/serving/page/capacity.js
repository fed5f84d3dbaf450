// The capacity panel: what the budget is spent on, and what is got for it.

import { byId, el } from "./dom.js";
import { bytes, count, duration, percent, plural, rate } from "./format.js";
import { Sparkline } from "./sparkline.js";

/** The parts of the budget, in the order of the bar: [key, label, explanation]. */
const PARTS = [
  ["weights", "Weights", "The model's matrices, packed for this machine"],
  ["kv_used", "KV in use", "Context of the requests that are running"],
  [
    "kv_cached",
    "KV kept for reuse",
    "Context of earlier requests: the same beginning is not computed again",
  ],
  ["kv_free", "KV ready", "Pages reserved for context, empty now"],
  ["scratch", "Scratch", "Activations and logits of a step"],
  ["other", "Other", "Tokenizer, interpreter and libraries"],
  ["free", "Free", "Of the budget, not planned for anything"],
];

export class CapacityPanel {
  constructor(connection) {
    this.previous = null;
    this.memory = new MemoryBar();
    this.speed = new Gauge("Generation", "tok/s");
    this.prefill = new Gauge("Prompts", "tok/s");
    this.requests = new Gauge("Requests", "running");
    this.reuse = new Gauge("Prefix reuse", "hits", 1);
    this.facts = el("dl", { class: "facts" });
    byId("capacity").replaceChildren(
      this.memory.node,
      el(
        "div",
        { class: "gauges" },
        this.speed.node,
        this.prefill.node,
        this.requests.node,
        this.reuse.node,
      ),
      this.facts,
    );
    byId("capacity").classList.add("empty");
    connection.addEventListener("figures", () => this.show(connection.figures));
    connection.addEventListener("change", () => {
      byId("capacity").classList.toggle("stale", !connection.isReady);
      // A server that was away may have begun to count anew.
      if (!connection.isReady) this.previous = null;
    });
  }

  /** Show the status document of the server. */
  show(figures) {
    byId("capacity").classList.remove("empty");
    const { memory, requests, prefix } = figures;
    this.memory.show(memory);
    const { generation, prompt } = this.#rates(figures);
    this.speed.show(generation, rate(generation), `${count(figures.tokens.generation)} in all`);
    this.prefill.show(prompt, rate(prompt), `${count(figures.tokens.prompt)} in all`);
    this.requests.show(
      requests.running + requests.waiting,
      count(requests.running),
      requests.waiting ? `${count(requests.waiting)} queued` : "none queued",
    );
    const hit = prefix.query_tokens ? prefix.hit_tokens / prefix.query_tokens : 0;
    this.reuse.show(hit, percent(hit, 0), `${plural(prefix.hit_tokens, "token")} saved`);
    this.#showFacts(figures);
    this.previous = figures;
  }

  /** Tokens per second since the last document. */
  #rates({ clock_s: now, tokens }) {
    if (!this.previous || now <= this.previous.clock_s) return { generation: 0, prompt: 0 };
    const elapsed = now - this.previous.clock_s;
    const perSecond = (name) => Math.max(0, tokens[name] - this.previous.tokens[name]) / elapsed;
    return { generation: perSecond("generation"), prompt: perSecond("prompt") };
  }

  #showFacts({ model, context_len, kv, threads, isa, created, version }) {
    const facts = [
      ["Model", model],
      ["Context", `${plural(context_len, "token")}, KV ${kv}`],
      ["Processor", `${plural(threads, "thread")}, ${isa}`],
      ["Up", duration(Math.max(0, Date.now() / 1000 - created))],
      ["capax", version],
    ];
    this.facts.replaceChildren(
      ...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]),
    );
  }
}

/** A figure with its last minute. */
class Gauge {
  constructor(label, unit, least = 1) {
    this.spark = new Sparkline(label, least);
    this.value = el("span", { class: "gauge-value" }, "–");
    this.note = el("span", { class: "gauge-note" });
    this.node = el(
      "div",
      { class: "gauge" },
      el("h3", {}, label),
      el("p", {}, this.value, " ", el("span", { class: "unit" }, unit)),
      this.spark.node,
      this.note,
    );
  }

  show(value, text, note) {
    this.value.textContent = text;
    this.note.textContent = note;
    this.spark.push(value, text);
  }
}

/** The budget as one bar, and what its colours mean. */
class MemoryBar {
  constructor() {
    this.headline = el("p", { class: "memory-headline" });
    this.parts = PARTS.map(([key, label, help]) => {
      const segment = el("span", { class: `segment ${key}`, title: help });
      const size = el("span", { class: "number" });
      const row = el(
        "li",
        { title: help },
        el("i", { class: `swatch ${key}` }),
        el("span", {}, label),
        size,
      );
      return { key, label, segment, size, row };
    });
    this.bar = el(
      "div",
      { class: "memory-bar", role: "img" },
      ...this.parts.map(({ segment }) => segment),
    );
    this.node = el(
      "div",
      { class: "memory" },
      el("h3", {}, "Memory budget"),
      this.headline,
      this.bar,
      el("ul", { class: "legend" }, ...this.parts.map(({ row }) => row)),
    );
  }

  show(memory) {
    const limit = memory.limit_bytes;
    const sizes = sizesOf(memory);
    const taken = limit - sizes.free;
    this.headline.replaceChildren(
      el("strong", {}, bytes(taken)),
      ` planned of ${bytes(limit)}`,
      el("span", { class: "measured" }, `${bytes(memory.resident_bytes)} resident now`),
    );
    for (const { key, segment, size, row } of this.parts) {
      segment.style.flexGrow = sizes[key];
      segment.hidden = sizes[key] <= 0;
      row.classList.toggle("none", sizes[key] <= 0);
      size.textContent = bytes(sizes[key]);
    }
    const text = this.parts.map(({ key, label }) => `${label} ${bytes(sizes[key])}`).join(", ");
    this.bar.setAttribute("aria-label", `Memory budget ${bytes(limit)}: ${text}`);
  }
}

function sizesOf(memory) {
  const planned = PARTS.slice(0, -1).map(([key]) => [key, memory[`${key}_bytes`]]);
  const taken = planned.reduce((sum, [, size]) => sum + size, 0);
  return { ...Object.fromEntries(planned), free: Math.max(0, memory.limit_bytes - taken) };
}
