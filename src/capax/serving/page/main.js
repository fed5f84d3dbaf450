// Puts the page together: who tells whom.

import { CapacityPanel } from "./capacity.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { Connection } from "./connection.js";
import { showContext } from "./context_meter.js";
import { byId } from "./dom.js";
import { Drawers, startTabs } from "./drawers.js";
import { watchConnection } from "./notice.js";
import { Settings } from "./settings.js";
import { showSettings } from "./settings_view.js";
import { Sidebar } from "./sidebar.js";
import { ConversationStore } from "./store.js";
import { startTheme } from "./theme.js";
import { toast } from "./toast.js";
import { hideCard } from "./tokens.js";
import { showSuggestions, Transcript } from "./transcript.js";

const connection = new Connection();
const store = new ConversationStore();
const settings = new Settings();
const chat = new Chat(store, settings, () => connection.figures?.model ?? "");
const drawers = new Drawers();
const composer = new Composer();
const sidebar = new Sidebar(store, chat);
const transcript = new Transcript(chat, settings, { onEdit: (message) => composer.edit(message) });
let current = null;

function show(conversation) {
  current = conversation;
  location.replace(`#${conversation.id}`);
  transcript.show(conversation);
  sidebar.select(conversation);
  composer.edit(null);
  refresh();
}

/** Show what depends on the conversation's and the server's state together. */
function refresh() {
  byId("title").textContent = current.title;
  document.title = current.messages.length > 0 ? `${current.title} · capax` : "capax";
  composer.setState({ isAnswering: chat.isAnswering(current), canSend: connection.isReady });
  showContext(current, connection.figures?.context_len);
}

function showNew() {
  show(current && current.messages.length === 0 ? current : store.create());
  composer.focus();
}

function send({ text, editing }) {
  const at = editing ? current.messages.indexOf(editing) : -1;
  if (at >= 0) current.messages.length = at;
  chat.send(current, text);
}

composer.addEventListener("send", ({ detail }) => send(detail));
composer.addEventListener("stop", () => chat.stop(current));
sidebar.addEventListener("choose", ({ detail }) => {
  const conversation = store.get(detail.id);
  if (!conversation) return;
  if (conversation !== current) show(conversation);
  drawers.close();
});
sidebar.addEventListener("renamed", () => refresh());
sidebar.addEventListener("deleted", ({ detail }) => {
  if (detail.id === current.id) show(store.create());
});
store.addEventListener("full", () =>
  toast("This browser's storage is full: delete conversations to keep new ones."),
);
store.addEventListener("elsewhere", ({ detail }) => {
  const isOurs = chat.running.has(detail.id);
  if (isOurs) return;
  store.forget(detail.id);
  const conversation = detail.id === current.id ? store.get(detail.id) : null;
  if (conversation) {
    current = conversation;
    transcript.show(conversation);
    refresh();
  }
});
for (const name of ["start", "end"]) chat.addEventListener(name, refresh);
connection.addEventListener("change", refresh);
connection.addEventListener("figures", () => {
  settings.setDefaults(connection.figures.sampling_defaults);
  refresh();
});

byId("new-chat").addEventListener("click", () => {
  drawers.close();
  showNew();
});

const tokensToggle = byId("tokens-toggle");
function showTokensToggle() {
  tokensToggle.setAttribute("aria-pressed", String(Boolean(settings.get("tokens"))));
}
tokensToggle.addEventListener("click", () =>
  settings.set("tokens", !settings.get("tokens") || undefined),
);
settings.addEventListener("change", showTokensToggle);
showTokensToggle();

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.defaultPrevented) return;
  hideCard();
  if (!drawers.close() && chat.isAnswering(current)) chat.stop(current);
});

startTheme();
startTabs();
showSettings(settings, () => connection.askNow());
showSuggestions((text) => composer.write(text));
watchConnection(connection);
new CapacityPanel(connection);
show(store.get(location.hash.slice(1)) ?? store.create());
composer.focus();
connection.askNow();
