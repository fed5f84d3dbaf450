// Conversations, kept in this browser's local storage: one entry for the list, one for each.
//
// A conversation: {id, title, created, updated, messages: [{id, role: "user" | "assistant",
// content, reasoning?, tokens?, stats?, finish?, error?}]}. What is read back is checked like
// anything from outside: another version of the page, or another page, may have written it.

const LIST = "capax.conversations";
const ENTRY = "capax.conversation.";
export const UNTITLED = "New conversation";

export class ConversationStore extends EventTarget {
  constructor(storage = openStorage()) {
    super();
    this.storage = storage;
    this.open = new Map(); // the objects that views and answers share
    addEventListener("storage", (event) => this.#onOtherTab(event));
  }

  /** Return {id, title, updated} of every conversation, the latest first. */
  list() {
    const entries = this.#read(LIST);
    if (!Array.isArray(entries)) return [];
    return entries
      .filter((entry) => isObject(entry) && typeof entry.id === "string")
      .map(({ id, title, updated }) => ({
        id,
        title: textOr(title, UNTITLED),
        updated: Number(updated) || 0,
      }))
      .sort((a, b) => b.updated - a.updated);
  }

  /** Return a new conversation; it is stored once it is saved. */
  create() {
    const now = Date.now();
    const conversation = { id: newId(), title: UNTITLED, created: now, updated: now, messages: [] };
    this.open.set(conversation.id, conversation);
    return conversation;
  }

  /** Return a stored conversation, null if it is gone. */
  get(id) {
    if (!this.open.has(id)) {
      const read = asConversation(this.#read(ENTRY + id), id);
      if (!read) return null;
      this.open.set(id, read);
    }
    return this.open.get(id);
  }

  /** Write a conversation. Dispatches "full" when the browser's storage has no room for it. */
  save(conversation, { isNews = true } = {}) {
    if (isNews) conversation.updated = Date.now();
    const { id, title, updated } = conversation;
    const others = this.list().filter((entry) => entry.id !== id);
    const isKept =
      this.#write(ENTRY + id, conversation) || this.#write(ENTRY + id, withoutTokens(conversation));
    if (!isKept || !this.#write(LIST, [{ id, title, updated }, ...others])) {
      this.dispatchEvent(new Event("full"));
    }
    this.#changed();
  }

  /** Remove a conversation and return it. */
  remove(id) {
    const conversation = this.get(id);
    this.#write(
      LIST,
      this.list().filter((entry) => entry.id !== id),
    );
    this.storage.removeItem(ENTRY + id);
    this.open.delete(id);
    this.#changed();
    return conversation;
  }

  /** Put back what `remove` returned. */
  restore(conversation) {
    this.open.set(conversation.id, conversation);
    this.save(conversation, { isNews: false });
  }

  #onOtherTab(event) {
    if (event.key === LIST) this.#changed();
    else if (event.key?.startsWith(ENTRY)) {
      const id = event.key.slice(ENTRY.length);
      this.dispatchEvent(new CustomEvent("elsewhere", { detail: { id } }));
    }
  }

  /** Read a conversation again that another tab has changed. */
  forget(id) {
    this.open.delete(id);
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }

  #read(key) {
    try {
      return JSON.parse(this.storage.getItem(key));
    } catch {
      return null;
    }
  }

  #write(key, value) {
    try {
      this.storage.setItem(key, JSON.stringify(value));
      return true;
    } catch {
      return false;
    }
  }
}

/** Return an identifier that does not repeat; plain http has no crypto.randomUUID. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint32Array(3)), (n) => n.toString(36)).join("");
}

/** Return a conversation of unknown origin in the shape above, null if it has none. */
function asConversation(value, id) {
  if (!isObject(value) || !Array.isArray(value.messages)) return null;
  return {
    id,
    title: textOr(value.title, UNTITLED),
    created: Number(value.created) || 0,
    updated: Number(value.updated) || 0,
    messages: value.messages.filter(isMessage).map(asMessage),
  };
}

function isMessage(value) {
  return isObject(value) && ["user", "assistant"].includes(value.role);
}

function asMessage(value) {
  const message = {
    id: textOr(value.id, newId()),
    role: value.role,
    content: textOr(value.content, ""),
  };
  if (typeof value.reasoning === "string") message.reasoning = value.reasoning;
  if (Array.isArray(value.tokens)) message.tokens = value.tokens.filter(isToken);
  if (isObject(value.stats)) message.stats = numbersOf(value.stats);
  if (isObject(value.error)) message.error = { message: textOr(value.error.message, "Failed.") };
  if (value.role === "assistant") message.finish = textOr(value.finish, "") || "interrupted";
  return message;
}

/** A token is [text, logprob, [[text, logprob], ...]]. */
function isToken(value) {
  const isPair = ([text, logprob]) => typeof text === "string" && typeof logprob === "number";
  return (
    Array.isArray(value) &&
    isPair(value) &&
    Array.isArray(value[2]) &&
    value[2].every((alternative) => Array.isArray(alternative) && isPair(alternative))
  );
}

function numbersOf(value) {
  return Object.fromEntries(Object.entries(value).filter(([, figure]) => Number.isFinite(figure)));
}

function withoutTokens(conversation) {
  const messages = conversation.messages.map(({ tokens: _, ...rest }) => rest);
  return { ...conversation, messages };
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function textOr(value, otherwise) {
  return typeof value === "string" ? value : otherwise;
}

/** Local storage, or, where the browser keeps it closed, memory until the page is left. */
function openStorage() {
  try {
    localStorage.getItem(LIST);
    return localStorage;
  } catch {
    const held = new Map();
    return {
      getItem: (key) => held.get(key) ?? null,
      setItem: (key, value) => held.set(key, value),
      removeItem: (key) => held.delete(key),
    };
  }
}
