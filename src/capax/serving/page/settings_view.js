// The form of the settings.

import { announce } from "./announcer.js";
import { byId, el } from "./dom.js";
import { apiKey, setApiKey } from "./key.js";
import { FIELDS, parseField } from "./settings.js";

/** Fill the panel's tab. `onKey` is called when the API key was changed. */
export function showSettings(settings, onKey) {
  const controls = FIELDS.map((field) => fieldControl(settings, field));
  settings.addEventListener("defaults", () => {
    for (const { show } of controls) show();
  });
  const system = el("textarea", {
    id: "setting-system",
    rows: "4",
    placeholder: "How the model should behave, in every conversation",
    oninput: () => settings.set("system", system.value || undefined),
  });
  system.value = settings.get("system") ?? "";
  const reset = el(
    "button",
    {
      type: "button",
      class: "text-button",
      onclick: () => {
        settings.reset();
        system.value = "";
        for (const { show } of controls) show();
        announce("Settings are the server's defaults again");
      },
    },
    "Reset to defaults",
  );
  byId("settings").replaceChildren(
    el(
      "div",
      { class: "setting" },
      el("label", { for: "setting-system" }, "System prompt"),
      system,
    ),
    ...controls.map(({ node }) => node),
    el("div", { class: "setting-foot" }, reset),
    keyControl(onKey),
  );
}

/** A number with its range; a slider too where the range is small. */
function fieldControl(settings, field) {
  const { name, label, min, max, step, help } = field;
  const id = `setting-${name}`;
  const attributes = { min, max, step };
  const hint = el("p", { class: "help", id: `${id}-help` }, help);
  const number = el("input", {
    ...attributes,
    id,
    type: "number",
    inputmode: field.isInteger ? "numeric" : "decimal",
    "aria-describedby": hint.id,
    oninput: () => take(number.value, number.validity.badInput),
  });
  const slider =
    field.start === undefined
      ? null
      : el("input", {
          ...attributes,
          type: "range",
          "aria-label": `${label}, slider`,
          oninput: () => {
            number.value = slider.value;
            take(slider.value, false);
          },
        });

  function take(text, isBad) {
    const value = isBad ? null : parseField(field, text);
    number.setAttribute("aria-invalid", String(value === null));
    hint.textContent = value === null ? `Between ${min} and ${max.toLocaleString("en-US")}.` : help;
    if (value === null) return;
    settings.set(name, value);
    showSlider();
  }

  function showSlider() {
    if (!slider) return;
    slider.value = settings.get(name) ?? settings.defaults[name] ?? field.start;
    const fraction = (slider.value - min) / (max - min);
    slider.style.setProperty("--filled", `${fraction * 100}%`);
    slider.classList.toggle("unset", settings.get(name) === undefined);
  }

  function show() {
    number.placeholder = settings.defaults[name] ?? field.start ?? field.placeholder;
    number.value = settings.get(name) ?? "";
    number.setAttribute("aria-invalid", "false");
    hint.textContent = help;
    showSlider();
  }

  show();
  const row = el("div", { class: "setting-row" }, el("label", { for: id }, label), number);
  return { node: el("div", { class: "setting" }, row, slider, hint), show };
}

function keyControl(onKey) {
  const input = el("input", {
    id: "setting-key",
    type: "password",
    autocomplete: "off",
    spellcheck: "false",
    placeholder: "none",
    onchange: () => {
      setApiKey(input.value);
      onKey();
    },
  });
  input.value = apiKey();
  return el(
    "form",
    { class: "setting", onsubmit: (event) => event.preventDefault() },
    el("label", { for: input.id }, "API key"),
    input,
    el("p", { class: "help" }, "Needed if the server asks for one. Kept until this tab is closed."),
  );
}
