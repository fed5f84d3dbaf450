// The list of conversations: choose, rename, delete (with a way back), export.

import { byId, el, iconButton } from "./dom.js";
import { asMarkdown, download } from "./export.js";
import { toast } from "./toast.js";
import { UNTITLED } from "./store.js";

const DAY_MS = 86_400_000;

export class Sidebar extends EventTarget {
  constructor(store, chat) {
    super();
    this.store = store;
    this.chat = chat;
    this.current = null;
    this.renaming = null;
    this.list = byId("conversations");
    byId("export-all").addEventListener("click", () => this.#exportAll());
    store.addEventListener("change", () => this.#show());
    chat.addEventListener("start", () => this.#show());
    chat.addEventListener("end", () => this.#show());
  }

  /** Mark the conversation that is shown. */
  select(conversation) {
    this.current = conversation.id;
    this.#show();
  }

  #show() {
    if (this.renaming) return;
    const focused = this.list.contains(document.activeElement)
      ? document.activeElement.dataset.focus
      : null;
    const nodes = [];
    let group = null;
    for (const entry of this.store.list()) {
      const name = groupOf(entry.updated);
      if (name !== group) nodes.push(el("li", { class: "group", role: "presentation" }, name));
      group = name;
      nodes.push(this.#row(entry));
    }
    this.list.replaceChildren(...nodes);
    byId("export-all").disabled = nodes.length === 0;
    if (focused) this.list.querySelector(`[data-focus="${CSS.escape(focused)}"]`)?.focus();
  }

  #row({ id, title }) {
    const isCurrent = id === this.current;
    const open = el(
      "button",
      {
        type: "button",
        class: "conversation",
        "data-focus": `open ${id}`,
        "aria-current": isCurrent ? "true" : null,
        title,
        onclick: () => this.#choose(id),
        ondblclick: () => this.#rename(id, row),
      },
      el("span", { dir: "auto" }, title),
      this.chat.running.has(id) && el("i", { class: "busy", "aria-label": "answering" }),
    );
    const row = el(
      "li",
      { class: isCurrent ? "row current" : "row" },
      open,
      el(
        "span",
        { class: "row-tools" },
        iconButton("edit", `Rename “${title}”`, () => this.#rename(id, row), {
          "data-focus": `rename ${id}`,
        }),
        iconButton("download", `Export “${title}”`, () => this.#export(id), {
          "data-focus": `export ${id}`,
        }),
        iconButton("trash", `Delete “${title}”`, () => this.#delete(id), {
          "data-focus": `delete ${id}`,
        }),
      ),
    );
    return row;
  }

  #choose(id) {
    this.dispatchEvent(new CustomEvent("choose", { detail: { id } }));
  }

  #rename(id, row) {
    const conversation = this.store.get(id);
    if (!conversation) return;
    this.renaming = id;
    const input = el("input", {
      class: "rename",
      "aria-label": "New title",
      maxlength: "120",
      dir: "auto",
    });
    input.value = conversation.title;
    const end = (isKept) => {
      if (this.renaming !== id) return;
      this.renaming = null;
      const title = input.value.trim();
      if (isKept && title) {
        conversation.title = title;
        this.store.save(conversation, { isNews: false });
        this.dispatchEvent(new CustomEvent("renamed", { detail: { id } }));
      } else {
        this.#show();
      }
      this.list.querySelector(`[data-focus="${CSS.escape(`open ${id}`)}"]`)?.focus();
    };
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") end(true);
      else if (event.key === "Escape") {
        event.stopPropagation();
        end(false);
      }
    });
    input.addEventListener("blur", () => end(true));
    row.replaceChildren(input);
    input.focus();
    input.select();
  }

  #delete(id) {
    const conversation = this.store.get(id);
    if (!conversation) return;
    this.chat.stop(conversation);
    this.store.remove(id);
    this.dispatchEvent(new CustomEvent("deleted", { detail: { id } }));
    toast(`Deleted “${conversation.title}”`, "Undo", () => {
      this.store.restore(conversation);
      this.#choose(id);
    });
  }

  #export(id) {
    const conversation = this.store.get(id);
    if (!conversation) return;
    const name = conversation.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "");
    download(`${name.slice(0, 60) || UNTITLED}.md`, "text/markdown", asMarkdown(conversation));
  }

  #exportAll() {
    const all = this.store
      .list()
      .map(({ id }) => this.store.get(id))
      .filter(Boolean);
    download("capax-conversations.json", "application/json", JSON.stringify(all, null, 2));
  }
}

function groupOf(updated) {
  const today = new Date().setHours(0, 0, 0, 0);
  if (updated >= today) return "Today";
  if (updated >= today - DAY_MS) return "Yesterday";
  return updated >= today - 7 * DAY_MS ? "Last seven days" : "Earlier";
}
