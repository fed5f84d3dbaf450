// Light, dark, or as the system has it.

import { byId, icon } from "./dom.js";

const NAME = "capax.theme";
const NEXT = { system: "light", light: "dark", dark: "system" };
const ICONS = { system: "system", light: "sun", dark: "moon" };

/** Make the theme button work. */
export function startTheme() {
  const button = byId("theme");
  let theme = document.documentElement.dataset.theme ?? "system";
  const show = () => {
    const label = `Theme: ${theme}`;
    button.setAttribute("aria-label", label);
    button.title = label;
    button.replaceChildren(icon(ICONS[theme]));
  };
  button.addEventListener("click", () => {
    theme = NEXT[theme];
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem(NAME, theme);
    } catch {
      // It holds until the page is left.
    }
    show();
  });
  show();
}
