// Markdown's blocks: text -> a tree of plain objects. No DOM here, and no HTML: a tag in the
// text is text. What is still being written (an open code fence, half a table) has a meaning
// at every moment, so that a stream can be shown as it grows.
//
// Blocks: {type: "paragraph", text} {type: "heading", level, text} {type: "code", language, text}
// {type: "rule"} {type: "quote", blocks} {type: "list", start | null, items: [blocks]}
// {type: "table", align: [..], head: [text], rows: [[text]]}

const MAX_DEPTH = 8;
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])([ \t]+|$)/;
const DELIMITER_CELL = /^:?-+:?$/;

/** Return the blocks of `text`, each with `source`, the lines it was made of. */
export function parseBlocks(text) {
  return parse(text.split("\n"), 0);
}

function parse(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (isBlank(lines[at])) {
      at += 1;
      continue;
    }
    const [block, next] = readBlock(lines, at, depth);
    block.source = lines.slice(at, next).join("\n");
    blocks.push(block);
    at = next;
  }
  return blocks;
}

/** Return the block that begins at line `at` and the line after it. */
function readBlock(lines, at, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return readCode(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) {
    const text = withoutClosingMarks((heading[2] ?? "").trim());
    return [{ type: "heading", level: heading[1].length, text }, at + 1];
  }
  if (RULE.test(line)) return [{ type: "rule" }, at + 1];
  if (depth < MAX_DEPTH) {
    if (QUOTE.test(line)) return readQuote(lines, at, depth);
    if (ITEM.test(line)) return readList(lines, at, depth);
  }
  return isTableAt(lines, at) ? readTable(lines, at) : readParagraph(lines, at, depth);
}

/** "Title ##" -> "Title"; "C#" stays. */
function withoutClosingMarks(text) {
  let end = text.length;
  while (text[end - 1] === "#") end -= 1;
  return end === 0 || text[end - 1] === " " ? text.slice(0, end).trimEnd() : text;
}

function readCode(lines, at, [, mark, info]) {
  const indent = lines[at].search(/[`~]/);
  const isEnd = (line) => {
    const text = line.trim();
    return text.length >= mark.length && [...text].every((character) => character === mark[0]);
  };
  let end = at + 1;
  while (end < lines.length && !isEnd(lines[end])) end += 1;
  const body = lines.slice(at + 1, end).map((line) => withoutIndent(line, indent));
  const language = info.trim().split(/\s/)[0].slice(0, 32);
  return [{ type: "code", language, text: body.join("\n") }, Math.min(end + 1, lines.length)];
}

function readQuote(lines, at, depth) {
  let end = at;
  const inner = [];
  while (end < lines.length && QUOTE.test(lines[end])) {
    inner.push(lines[end].replace(QUOTE, ""));
    end += 1;
  }
  return [{ type: "quote", blocks: parse(inner, depth + 1) }, end];
}

function readList(lines, at, depth) {
  const kind = kindOf(ITEM.exec(lines[at])[2]);
  const start = kind === "-" ? null : Number.parseInt(ITEM.exec(lines[at])[2], 10);
  const items = [];
  let end = at;
  while (end < lines.length) {
    const item = ITEM.exec(lines[end]);
    if (!item || kindOf(item[2]) !== kind || RULE.test(lines[end])) break;
    const [inner, next] = itemLines(lines, end, item);
    items.push(parse(inner, depth + 1));
    end = next;
  }
  return [{ type: "list", start, items }, end];
}

/** Return the lines of one item without its indent, and the line after it. */
function itemLines(lines, at, [lead, indent, mark, gap]) {
  const width = indent.length + mark.length + (gap.length > 4 || gap === "" ? 1 : gap.length);
  const inner = [lines[at].slice(lead.length)];
  let end = at + 1;
  while (end < lines.length) {
    const line = lines[end];
    if (isBlank(line)) {
      const next = end + 1 < lines.length ? lines[end + 1] : "";
      if (isBlank(next) || (indentOf(next) < Math.min(width, 2) && !ITEM.test(next))) break;
      if (indentOf(next) < Math.min(width, 2)) return [inner, end + 1];
      inner.push("");
    } else if (indentOf(line) >= Math.min(width, 2)) {
      inner.push(withoutIndent(line, width));
    } else if (interrupts(line) || isBlank(lines[end - 1])) {
      break;
    } else {
      inner.push(line);
    }
    end += 1;
  }
  return [inner, end];
}

function isTableAt(lines, at) {
  if (at + 1 >= lines.length || !lines[at].includes("|") || !lines[at + 1].includes("-"))
    return false;
  const delimiters = cells(lines[at + 1]);
  return (
    delimiters.length === cells(lines[at]).length &&
    delimiters.every((cell) => DELIMITER_CELL.test(cell))
  );
}

function readTable(lines, at) {
  const head = cells(lines[at]);
  const align = cells(lines[at + 1]).map((cell) => {
    if (cell.endsWith(":")) return cell.startsWith(":") ? "center" : "right";
    return "left";
  });
  const rows = [];
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|") && !isBlank(lines[end])) {
    const row = cells(lines[end]).slice(0, head.length);
    while (row.length < head.length) row.push("");
    rows.push(row);
    end += 1;
  }
  return [{ type: "table", align, head, rows }, end];
}

function readParagraph(lines, at, depth) {
  let end = at + 1;
  while (end < lines.length && !isBlank(lines[end])) {
    if (depth < MAX_DEPTH && interrupts(lines[end])) break;
    if (isTableAt(lines, end)) break;
    end += 1;
  }
  const text = lines.slice(at, end).map((line) => line.trim());
  return [{ type: "paragraph", text: text.join("\n") }, end];
}

/** Whether a line ends the paragraph above it without a blank line between. */
function interrupts(line) {
  return [FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => pattern.test(line));
}

function cells(line) {
  const row = line.trim().replace(/^\|/, "");
  const found = [];
  let cell = "";
  for (let i = 0; i < row.length; i += 1) {
    if (row[i] === "\\" && row[i + 1] === "|") {
      cell += "|";
      i += 1;
    } else if (row[i] === "|") {
      found.push(cell.trim());
      cell = "";
    } else {
      cell += row[i];
    }
  }
  if (cell.trim() !== "" || found.length === 0) found.push(cell.trim());
  return found;
}

function kindOf(mark) {
  return /\d/.test(mark) ? mark.at(-1) : "-";
}

function isBlank(line) {
  return line.trim() === "";
}

function indentOf(line) {
  return line.length - line.trimStart().length;
}

function withoutIndent(line, width) {
  return line.slice(Math.min(width, indentOf(line)));
}
