// Markdown inside a line: text -> DOM nodes, made one by one. Emphasis, code, links; images
// are never loaded, only named. Everything else, HTML too, is text.

import { el } from "../dom.js";
import { safeUrl } from "./url.js";

const MAX_DEPTH = 8;
const MAX_LABEL = 400;
const MAX_URL = 2048;
const MAX_SPAN = 2000; // characters of emphasis or code: a closing mark is not looked for further
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const BARE_URL = /https?:\/\/[^\s<>"'`\\^{}|]{1,2000}/y;
const TRAILING = /[.,;:!?'"*_~]+$/;
const WORD = /[\p{L}\p{N}]/u;
const MARKS = [
  ["***", "both"],
  ["___", "both"],
  ["**", "strong"],
  ["__", "strong"],
  ["~~", "del"],
  ["*", "em"],
  ["_", "em"],
];

/** Return the nodes of `text`. */
export function inlineNodes(text, depth = 0) {
  const nodes = [];
  let plain = "";
  const flush = () => {
    if (plain) nodes.push(document.createTextNode(plain));
    plain = "";
  };
  let at = 0;
  while (at < text.length) {
    const found = depth < MAX_DEPTH ? readInline(text, at, depth) : null;
    if (found) {
      flush();
      nodes.push(found.node);
      at = found.end;
    } else if (text[at] === "\\" && ESCAPABLE.test(text[at + 1] ?? "")) {
      plain += text[at + 1];
      at += 2;
    } else if (text[at] === "\n") {
      flush();
      nodes.push(el("br"));
      at += 1;
    } else {
      const run = plainRun(text, at);
      plain += text.slice(at, run);
      at = run;
    }
  }
  flush();
  return nodes;
}

/** Return {node, end} of the construct that begins at `at`, null if none does. */
function readInline(text, at, depth) {
  switch (text[at]) {
    case "`":
      return readCode(text, at);
    case "!":
      return text[at + 1] === "[" ? readLink(text, at + 1, depth, true) : null;
    case "[":
      return readLink(text, at, depth, false);
    case "<":
      return readAutolink(text, at);
    case "h":
      return readBareUrl(text, at);
    case "*":
    case "_":
    case "~":
      return readEmphasis(text, at, depth);
    default:
      return null;
  }
}

function readCode(text, at) {
  let width = 1;
  while (text[at + width] === "`") width += 1;
  const end = codeEnd(text, at + width, width);
  if (end < 0) return { node: document.createTextNode("`".repeat(width)), end: at + width };
  const code = text.slice(at + width, end).replace(/\n/g, " ");
  const isPadded = code.startsWith(" ") && code.endsWith(" ") && code.trim() !== "";
  return { node: el("code", {}, isPadded ? code.slice(1, -1) : code), end: end + width };
}

/** Return where the next run of exactly `width` backticks begins, -1 if there is none near. */
function codeEnd(text, start, width) {
  const last = Math.min(text.length, start + MAX_SPAN);
  let at = start;
  while (at < last) {
    let run = 0;
    while (text[at + run] === "`") run += 1;
    if (run === width) return at;
    at += run || 1;
  }
  return -1;
}

/** [label](url) or, with `isImage`, ![label](url): an image is named and linked, not loaded. */
function readLink(text, at, depth, isImage) {
  const close = closing(text, at, "[", "]", MAX_LABEL);
  if (close < 0 || text[close + 1] !== "(") return null;
  const end = closing(text, close + 1, "(", ")", MAX_URL);
  if (end < 0) return null;
  const label = text.slice(at + 1, close);
  const target = text.slice(close + 2, end).trim();
  const destination = target.startsWith("<")
    ? target.slice(1, target.indexOf(">"))
    : target.split(/\s/)[0];
  const url = safeUrl(destination);
  const content = isImage
    ? [`Image: ${label || "without a description"}`]
    : label.trim()
      ? inlineNodes(label, depth + 1)
      : [destination];
  return { node: url ? link(url, content) : el("span", {}, ...content), end: end + 1 };
}

function readAutolink(text, at) {
  const end = at + text.slice(at, at + MAX_URL).indexOf(">");
  if (end < at) return null;
  const inner = text.slice(at + 1, end);
  const isMail = /^[^\s@<>:/]+@[^\s@<>:/]+$/.test(inner);
  if (!isMail && !/^(https?|mailto):/i.test(inner)) return null;
  const url = safeUrl(isMail ? `mailto:${inner}` : inner);
  return url && { node: link(url, [inner]), end: end + 1 };
}

function readBareUrl(text, at) {
  if (at > 0 && WORD.test(text[at - 1])) return null;
  BARE_URL.lastIndex = at;
  const match = BARE_URL.exec(text);
  if (!match) return null;
  let address = match[0].replace(TRAILING, "");
  if (address.endsWith(")") && !address.includes("(")) address = address.slice(0, -1);
  const url = safeUrl(address);
  return url && { node: link(url, [address]), end: at + address.length };
}

function readEmphasis(text, at, depth) {
  for (const [mark, kind] of MARKS) {
    if (!text.startsWith(mark, at)) continue;
    if (mark[0] === "_" && at > 0 && WORD.test(text[at - 1])) return null;
    const start = at + mark.length;
    const end = /\s/.test(text[start] ?? " ") ? -1 : emphasisEnd(text, start, mark);
    if (end > start) {
      const content = inlineNodes(text.slice(start, end), depth + 1);
      const node =
        kind === "both" ? el("strong", {}, el("em", {}, ...content)) : el(kind, {}, ...content);
      return { node, end: end + mark.length };
    }
  }
  return null;
}

/** Return where the mark that closes emphasis begins, -1 if nothing does. Code is jumped over. */
function emphasisEnd(text, start, mark) {
  const last = Math.min(text.length, start + MAX_SPAN);
  let at = start;
  while (at < last) {
    if (text[at] === "\\") {
      at += 2;
    } else if (text[at] === "`") {
      at = readCode(text, at).end;
    } else if (text[at] === mark[0]) {
      let width = 1;
      while (text[at + width] === mark[0]) width += 1;
      if (width >= mark.length && closes(text, at, at + width, mark)) {
        if (width === mark.length || width === 3) return at + width - mark.length;
      }
      at += width;
    } else {
      at += 1;
    }
  }
  return -1;
}

function closes(text, begin, end, mark) {
  if (/\s/.test(text[begin - 1])) return false;
  return mark[0] !== "_" || !WORD.test(text[end] ?? " ");
}

/** Return where the bracket opened at `at` closes, at most `limit` further on; -1 if nowhere. */
function closing(text, at, open, close, limit) {
  let depth = 0;
  const last = Math.min(text.length, at + limit);
  for (let i = at; i < last; i += 1) {
    if (text[i] === "\\") i += 1;
    else if (text[i] === open) depth += 1;
    else if (text[i] === close) {
      depth -= 1;
      if (depth === 0) return i;
    }
  }
  return -1;
}

function link(url, content) {
  return el(
    "a",
    { href: url, title: url, target: "_blank", rel: "noopener noreferrer nofollow" },
    ...content,
  );
}

/** Return the end of the text from `at` on in which nothing can begin; marks that open nothing. */
function plainRun(text, at) {
  let end = at + 1;
  if ("*_~".includes(text[at])) while (text[end] === text[at]) end += 1;
  while (end < text.length && !/[`![<h*_~\\\n]/.test(text[end])) end += 1;
  return end;
}
