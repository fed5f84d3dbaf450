// The strip below the title, shown while the server cannot take messages, and the state's dot.

import { byId, el } from "./dom.js";
import { setApiKey } from "./key.js";
import { percent } from "./format.js";

const SHORT = {
  connecting: "Connecting",
  loading: "Loading",
  ready: "Ready",
  draining: "Shutting down",
  failed: "Failed",
  locked: "Needs a key",
  mute: "No chat model",
  gone: "Not reachable",
};

/** Keep the strip and the dot showing the state of `connection`. */
export function watchConnection(connection) {
  const show = () => {
    const { state, figures } = connection;
    byId("server").dataset.state = state;
    byId("server-text").textContent = state === "ready" && figures ? figures.model : SHORT[state];
    showNotice(connection);
  };
  connection.addEventListener("change", show);
  connection.addEventListener("figures", show);
  show();
}

function showNotice(connection) {
  const notice = byId("notice");
  const { state } = connection;
  if (notice.dataset.state === state && state !== "loading") return;
  const content = noticeContent(connection);
  if (notice.dataset.state === "loading" && state === "loading") {
    updateLoading(notice, connection);
    return;
  }
  notice.dataset.state = state;
  notice.hidden = content === null;
  notice.replaceChildren(...(content ?? []));
}

function noticeContent(connection) {
  switch (connection.state) {
    case "loading":
      return [el("span", {}, loadingText(connection)), loadingBar(connection)];
    case "draining":
      return ["The server is shutting down: what is running may finish."];
    case "failed":
      return ["The server could not load its model; its log says why."];
    case "mute":
      return ["This server embeds texts: it has no model to talk to."];
    case "gone":
      return [
        el("span", {}, "The server does not answer. Trying again…"),
        el(
          "button",
          { type: "button", class: "text-button", onclick: () => connection.askNow() },
          "Now",
        ),
      ];
    case "locked":
      return [keyForm(connection)];
    default:
      return null;
  }
}

function loadingText({ phase, progress }) {
  const what = phase ? `Loading the model: ${phase}` : "Loading the model";
  return progress === null ? what : `${what} · ${percent(progress, 0)}`;
}

function loadingBar({ progress }) {
  return el("progress", { max: "1", value: progress, "aria-label": "Loading" });
}

function updateLoading(notice, connection) {
  notice.firstChild.textContent = loadingText(connection);
  notice.lastChild.replaceWith(loadingBar(connection));
}

function keyForm(connection) {
  const input = el("input", {
    type: "password",
    id: "key",
    autocomplete: "off",
    spellcheck: "false",
    required: true,
  });
  const label = el("label", { for: "key" }, "This server asks for an API key");
  return el(
    "form",
    {
      class: "key-form",
      onsubmit: async (event) => {
        event.preventDefault();
        setApiKey(input.value);
        byId("setting-key").value = input.value;
        await connection.askNow();
        if (connection.state === "locked")
          label.textContent = "The server does not accept this key";
      },
    },
    label,
    input,
    el("button", { type: "submit", class: "button" }, "Use"),
  );
}
