// The two side columns. Wide screens keep them beside the chat and can fold them away; on
// narrow ones they slide over it, one at a time, and take the focus until they are closed.

import { byId } from "./dom.js";

const NAME = "capax.folded";
const NARROW = {
  sidebar: matchMedia("(max-width: 760px)"),
  panel: matchMedia("(max-width: 1080px)"),
};

export class Drawers {
  constructor() {
    this.folded = readFolded(); // on wide screens
    this.over = null; // the one that lies over the chat
    for (const name of Object.keys(NARROW)) {
      byId(`toggle-${name}`).addEventListener("click", () => this.toggle(name));
      document
        .querySelector(`[data-close="${name}"]`)
        .addEventListener("click", () => this.close());
      NARROW[name].addEventListener("change", () => {
        this.over = null;
        this.#show();
      });
    }
    byId("backdrop").addEventListener("click", () => this.close());
    this.#show();
  }

  /** Show a column, or fold it away. */
  toggle(name) {
    if (NARROW[name].matches) {
      this.over = this.over === name ? null : name;
    } else {
      this.folded[name] = !this.folded[name];
      keepFolded(this.folded);
    }
    this.#show();
    if (this.over) byId(this.over).querySelector(".drawer-close").focus();
  }

  /** Close the one over the chat; true if there was one. */
  close() {
    if (!this.over) return false;
    const name = this.over;
    this.over = null;
    this.#show();
    byId(`toggle-${name}`).focus();
    return true;
  }

  #show() {
    for (const [name, narrow] of Object.entries(NARROW)) {
      const isOpen = narrow.matches ? this.over === name : !this.folded[name];
      const drawer = byId(name);
      drawer.classList.toggle("open", isOpen);
      drawer.inert = !isOpen;
      byId("app").classList.toggle(`no-${name}`, !narrow.matches && !isOpen);
      byId(`toggle-${name}`).setAttribute("aria-expanded", String(isOpen));
    }
    byId("main").inert = this.over !== null;
    byId("backdrop").hidden = this.over === null;
  }
}

/** Make the tabs of the panel work, by arrow keys too. */
export function startTabs() {
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const choose = (chosen) => {
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
      byId(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
    }
  };
  for (const [i, tab] of tabs.entries()) {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = tabs[(i + step + tabs.length) % tabs.length];
      choose(next);
      next.focus();
    });
  }
}

function readFolded() {
  try {
    const { sidebar, panel } = JSON.parse(localStorage.getItem(NAME)) ?? {};
    return { sidebar: sidebar === true, panel: panel === true };
  } catch {
    return { sidebar: false, panel: false };
  }
}

function keepFolded(folded) {
  try {
    localStorage.setItem(NAME, JSON.stringify(folded));
  } catch {
    // They stay as they are until the page is left.
  }
}
