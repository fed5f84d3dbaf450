// The server's API, as this page uses it. Addresses are relative: it works behind a prefix too.

import { apiKey } from "./key.js";
import { eventData } from "./sse.js";

const STATUS_TIMEOUT_MS = 5000;

/** The server refused or failed. `status` is 0 where it did not answer at all. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, retryAfterS = null } = {}) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
    this.retryAfterS = retryAfterS;
  }
}

/** Return {status, phase, progress} of /ready, which needs no key. Throws ApiError. */
export async function readiness() {
  const response = await request("ready", { signal: AbortSignal.timeout(STATUS_TIMEOUT_MS) });
  return jsonOf(response);
}

/** Return the figures of the capacity panel. Throws ApiError. */
export async function serverStatus() {
  const signal = AbortSignal.timeout(STATUS_TIMEOUT_MS);
  return jsonOf(await checked(await request("capax/v1/status", { signal })));
}

/** Yield the chunks of a streamed chat completion. Throws ApiError; AbortError when stopped. */
export async function* streamChat(body, signal) {
  const response = await checked(
    await request("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    }),
  );
  try {
    for await (const data of eventData(response.body)) {
      if (data === "[DONE]") return;
      const chunk = parsed(data);
      if (chunk.error) throw errorOf(chunk.error, { status: response.status });
      yield chunk;
    }
  } catch (error) {
    throw asApiError(error, "The connection broke while the answer was being written.");
  }
  throw new ApiError("The connection closed before the answer was complete.");
}

async function request(path, options) {
  const headers = { ...options.headers };
  if (apiKey()) headers.Authorization = `Bearer ${apiKey()}`;
  try {
    return await fetch(new URL(path, document.baseURI), { cache: "no-store", ...options, headers });
  } catch (error) {
    throw asApiError(error, "The server does not answer.");
  }
}

async function checked(response) {
  if (response.ok) return response;
  const retryAfter = Number.parseFloat(response.headers.get("retry-after"));
  const known = {
    status: response.status,
    retryAfterS: Number.isFinite(retryAfter) ? retryAfter : null,
  };
  let body = null;
  try {
    body = await response.json();
  } catch {
    // Something between us and the server answered, in its own words.
  }
  throw errorOf(body?.error ?? {}, known);
}

async function jsonOf(response) {
  try {
    return await response.json();
  } catch (error) {
    throw asApiError(error, "The server's answer is not JSON.");
  }
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ApiError("The server sent an event that is not JSON.");
  }
}

function errorOf(error, known) {
  const message = typeof error.message === "string" && error.message;
  return new ApiError(message || `The server answered with status ${known.status}.`, {
    ...known,
    code: typeof error.code === "string" ? error.code : null,
  });
}

function asApiError(error, message) {
  if (error instanceof ApiError || error.name === "AbortError") return error;
  return new ApiError(message);
}
