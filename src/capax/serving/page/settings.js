// The settings of a request: what they are called, their ranges, and where they are kept.

const NAME = "capax.settings";

/** `name` is the field of the request; an empty value leaves the field out. */
export const FIELDS = [
  {
    name: "temperature",
    label: "Temperature",
    min: 0,
    max: 2,
    step: 0.05,
    start: 1,
    help: "0 always takes the likeliest token; higher is more varied.",
  },
  {
    name: "top_p",
    label: "Top-p",
    min: 0.01,
    max: 1,
    step: 0.01,
    start: 1,
    help: "Choose among the likeliest tokens that together have this probability.",
  },
  {
    name: "min_p",
    label: "Min-p",
    min: 0,
    max: 1,
    step: 0.01,
    start: 0,
    help: "Drop tokens less likely than this share of the likeliest one.",
  },
  {
    name: "top_k",
    label: "Top-k",
    min: 0,
    max: 100000,
    step: 1,
    isInteger: true,
    placeholder: "all",
    help: "Choose among this many tokens; 0 is all.",
  },
  {
    name: "max_tokens",
    label: "Max tokens",
    min: 1,
    max: 10000000,
    step: 1,
    isInteger: true,
    placeholder: "context",
    help: "The longest answer; empty is whatever the context holds.",
  },
  {
    name: "seed",
    label: "Seed",
    min: 0,
    max: Number.MAX_SAFE_INTEGER,
    step: 1,
    isInteger: true,
    placeholder: "random",
    help: "The same seed gives the same answer.",
  },
];

export const N_ALTERNATIVES = 5;

export class Settings extends EventTarget {
  constructor() {
    super();
    this.values = read();
    this.defaults = {};
  }

  /** Return the value of a field, undefined if it is left to the server. */
  get(name) {
    return this.values[name];
  }

  /** Set a field; undefined leaves it to the server. */
  set(name, value) {
    if (value === undefined) delete this.values[name];
    else this.values[name] = value;
    this.#keep();
  }

  /** Leave everything to the server again. */
  reset() {
    this.values = {};
    this.#keep();
  }

  /** Show what the server uses where a field is left out. */
  setDefaults(defaults) {
    if (JSON.stringify(defaults) === JSON.stringify(this.defaults)) return;
    this.defaults = defaults;
    this.dispatchEvent(new Event("defaults"));
  }

  /** Return the fields of a request for these settings. */
  requestFields() {
    const fields = {};
    for (const { name } of FIELDS) {
      if (this.values[name] !== undefined) fields[name] = this.values[name];
    }
    if (this.values.tokens) Object.assign(fields, { logprobs: true, top_logprobs: N_ALTERNATIVES });
    return fields;
  }

  #keep() {
    try {
      localStorage.setItem(NAME, JSON.stringify(this.values));
    } catch {
      // They hold until the page is left.
    }
    this.dispatchEvent(new Event("change"));
  }
}

/** Return the number that `text` is for this field; undefined if empty, null if not allowed. */
export function parseField(field, text) {
  if (text.trim() === "") return undefined;
  const value = Number(text);
  if (!Number.isFinite(value) || value < field.min || value > field.max) return null;
  return field.isInteger && !Number.isInteger(value) ? null : value;
}

function read() {
  let stored = null;
  try {
    stored = JSON.parse(localStorage.getItem(NAME));
  } catch {
    // Unreadable settings are no settings.
  }
  const values = {};
  for (const field of FIELDS) {
    const value = parseField(field, String(stored?.[field.name] ?? ""));
    if (typeof value === "number") values[field.name] = value;
  }
  if (typeof stored?.system === "string") values.system = stored.system;
  if (stored?.tokens === true) values.tokens = true;
  return values;
}
