// Answers being written: asks the server, and puts what comes into the conversation's message.
//
// Dispatches "change" {conversation, message} as it grows, "start" and "end". An answer goes on
// when another conversation is shown; each conversation has at most one at a time.

import { streamChat } from "./api.js";
import { newId, UNTITLED } from "./store.js";

const SAVE_EVERY_MS = 1500;
const TITLE_LENGTH = 80;

export class Chat extends EventTarget {
  constructor(store, settings, modelName) {
    super();
    this.store = store;
    this.settings = settings;
    this.modelName = modelName; // a function: it is known once the server is ready
    this.running = new Map(); // conversation id -> {conversation, controller}
    this.progress = new Map(); // conversation id -> share of the prompt that is computed
    this.isLeaving = false; // what breaks now breaks because the page is left
    addEventListener("pagehide", () => {
      this.isLeaving = true;
      this.#saveRunning();
    });
    addEventListener("pageshow", () => {
      this.isLeaving = false;
    });
  }

  /** Whether an answer is being written in this conversation. */
  isAnswering(conversation) {
    return this.running.has(conversation.id);
  }

  /** Add the user's message and write an answer. */
  send(conversation, content) {
    conversation.messages.push({ id: newId(), role: "user", content });
    if (conversation.title === UNTITLED) conversation.title = titleOf(content);
    return this.answer(conversation);
  }

  /** Remove the last answer, if the conversation ends with one, and write another. */
  retry(conversation) {
    if (conversation.messages.at(-1)?.role === "assistant") conversation.messages.pop();
    return this.answer(conversation);
  }

  /** Stop the answer of a conversation; the server ends its work at the next step. */
  stop(conversation) {
    this.running.get(conversation.id)?.controller.abort();
  }

  /** Write an answer to the conversation as it is. Never throws: an error is part of the message. */
  async answer(conversation) {
    const body = this.#request(conversation);
    const message = { id: newId(), role: "assistant", content: "", finish: "" };
    conversation.messages.push(message);
    const controller = new AbortController();
    this.running.set(conversation.id, { conversation, controller });
    this.store.save(conversation);
    this.#tell("start", conversation, message);
    const answer = new Answer(message);
    let savedAt = performance.now();
    try {
      for await (const chunk of streamChat(body, controller.signal)) {
        this.#noteProgress(conversation, chunk);
        answer.take(chunk);
        this.#tell("change", conversation, message);
        if (performance.now() - savedAt > SAVE_EVERY_MS) {
          this.#save(conversation);
          savedAt = performance.now();
        }
      }
    } catch (error) {
      if (this.isLeaving) message.finish = "interrupted";
      else if (error.name === "AbortError") message.finish = "stopped";
      else answer.fail(error);
    }
    answer.end();
    this.running.delete(conversation.id);
    this.progress.delete(conversation.id);
    this.#save(conversation);
    this.#tell("end", conversation, message);
  }

  #request(conversation) {
    const system = this.settings.get("system");
    const messages = conversation.messages
      .filter(({ role, content }) => role === "user" || content !== "")
      .map(({ role, content }) => ({ role, content }));
    return {
      model: this.modelName(),
      messages: system ? [{ role: "system", content: system }, ...messages] : messages,
      stream: true,
      stream_options: { include_usage: true },
      return_progress: true,
      ...this.settings.requestFields(),
    };
  }

  #noteProgress({ id }, { prompt_progress: progress }) {
    if (progress?.total > 0) this.progress.set(id, progress.processed / progress.total);
  }

  /** Save a conversation, unless it was deleted meanwhile: then it stays so. */
  #save(conversation) {
    if (this.store.get(conversation.id) === conversation) this.store.save(conversation);
  }

  #saveRunning() {
    for (const { conversation } of this.running.values()) this.#save(conversation);
  }

  #tell(name, conversation, message) {
    this.dispatchEvent(new CustomEvent(name, { detail: { conversation, message } }));
  }
}

/** Takes the chunks of one stream into one message, and the time. */
class Answer {
  constructor(message) {
    this.message = message;
    this.startedAt = performance.now();
    this.firstAt = null;
    this.usage = null;
    this.timings = null;
  }

  take(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    if (chunk.timings) this.timings = chunk.timings;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    const { message } = this;
    const content = choice.delta?.content ?? "";
    const reasoning = choice.delta?.reasoning_content ?? choice.delta?.reasoning ?? "";
    if ((content || reasoning) && this.firstAt === null) this.firstAt = performance.now();
    message.content += content;
    if (reasoning) message.reasoning = (message.reasoning ?? "") + reasoning;
    const entries = choice.logprobs?.content;
    if (entries?.length) (message.tokens ??= []).push(...entries.map(asToken));
    if (choice.finish_reason) message.finish = choice.finish_reason;
  }

  fail(error) {
    this.message.finish = "error";
    this.message.error = { message: sentence(error) };
  }

  end() {
    const { message, usage, timings } = this;
    if (!message.finish) message.finish = "stop";
    if (this.firstAt === null) return;
    const now = performance.now();
    const nTokens = usage?.completion_tokens ?? message.tokens?.length;
    const decodeS = (now - this.firstAt) / 1000;
    const measured = nTokens > 1 && decodeS > 0 ? (nTokens - 1) / decodeS : undefined;
    message.stats = {
      firstTokenS: (this.firstAt - this.startedAt) / 1000,
      tokensPerSecond: timings?.predicted_per_second ?? measured,
      nTokens,
      nPrompt: usage?.prompt_tokens,
      nCached: usage?.prompt_tokens_details?.cached_tokens,
    };
  }
}

/** [text, logprob, alternatives], with three decimals: it is stored for every token. */
function asToken({ token, logprob, bytes, top_logprobs: alternatives }) {
  const pair = (entry) => [shown(entry), round(entry.logprob)];
  return [shown({ token, bytes }), round(logprob), (alternatives ?? []).map(pair)];
}

/** A token that is part of a character has no text of its own: its bytes are shown. */
function shown({ token, bytes }) {
  if (typeof token === "string" && !token.includes("\ufffd")) return token;
  const hex = (bytes ?? []).map((byte) => byte.toString(16).padStart(2, "0"));
  return hex.length ? `‹${hex.join(" ")}›` : String(token ?? "");
}

function round(logprob) {
  return typeof logprob === "number" ? Math.round(logprob * 1000) / 1000 : -9999;
}

function sentence(error) {
  if (error.status === 401) return "The server does not accept the API key.";
  if (error.status === 429 && error.retryAfterS !== null) {
    return `The server is busy: ${error.message} It says to try again in ${Math.ceil(error.retryAfterS)} s.`;
  }
  return error.message;
}

function titleOf(content) {
  const line = content.trim().split("\n")[0].replace(/\s+/g, " ");
  const characters = [...line];
  if (characters.length <= TITLE_LENGTH) return line;
  return `${characters.slice(0, TITLE_LENGTH).join("").trimEnd()}…`;
}
