// How much of the model's context the conversation has filled, below the message box.

import { byId } from "./dom.js";
import { count, plural } from "./format.js";

/** Show the context of a conversation's last answer; nothing while either is unknown. */
export function showContext(conversation, contextLen) {
  const last = conversation.messages.findLast(({ stats }) => stats?.nPrompt);
  const isKnown = Boolean(last && contextLen);
  byId("context").hidden = !isKnown;
  if (!isKnown) return;
  const used = last.stats.nPrompt + (last.stats.nTokens ?? 0);
  const meter = byId("context-meter");
  meter.max = contextLen;
  meter.value = used;
  byId("context-fill").style.width = `${Math.min(1, used / contextLen) * 100}%`;
  byId("context-fill").classList.toggle("high", used > 0.85 * contextLen);
  byId("context-text").textContent = `${count(used)} / ${count(contextLen)}`;
  byId("context").title = `${plural(used, "token")} of the context of ${count(contextLen)} in use`;
}
