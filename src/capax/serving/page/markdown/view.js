// Shows Markdown that may still grow: only blocks that changed are made again.

import { el } from "../dom.js";
import { parseBlocks } from "./blocks.js";
import { codeBlock } from "./code.js";
import { inlineNodes } from "./inline.js";

export class MarkdownView {
  constructor() {
    this.node = el("div", { class: "prose", dir: "auto" });
    this.sources = [];
  }

  /** Show `text`. */
  update(text) {
    const blocks = parseBlocks(text);
    let same = 0;
    while (same < blocks.length && this.sources[same] === blocks[same].source) same += 1;
    while (this.node.childNodes.length > same) this.node.lastChild.remove();
    this.node.append(...blocks.slice(same).map(blockNode));
    this.sources = blocks.map((block) => block.source);
  }
}

function blockNode(block) {
  switch (block.type) {
    case "heading":
      // The page's own headings are 1 and 2.
      return el(`h${Math.min(block.level + 2, 6)}`, { dir: "auto" }, ...inlineNodes(block.text));
    case "code":
      return codeBlock(block.language, block.text);
    case "rule":
      return el("hr");
    case "quote":
      return el("blockquote", {}, ...block.blocks.map(blockNode));
    case "list":
      return listNode(block);
    case "table":
      return tableNode(block);
    default:
      return el("p", { dir: "auto" }, ...inlineNodes(block.text));
  }
}

function listNode({ start, items }) {
  const isTight = items.every((blocks) => blocks.filter((b) => b.type === "paragraph").length < 2);
  const nodes = items.map((blocks) =>
    el("li", {}, ...blocks.flatMap((b) => itemNodes(b, isTight))),
  );
  return start === null ? el("ul", {}, ...nodes) : el("ol", { start }, ...nodes);
}

function itemNodes(block, isTight) {
  return isTight && block.type === "paragraph" ? inlineNodes(block.text) : [blockNode(block)];
}

function tableNode({ align, head, rows }) {
  const cell = (tag) => (text, column) => el(tag, { class: align[column] }, ...inlineNodes(text));
  const body = rows.map((row) => el("tr", {}, ...row.map(cell("td"))));
  return el(
    "div",
    { class: "table-box", tabindex: "0", role: "region", "aria-label": "Table" },
    el(
      "table",
      {},
      el("thead", {}, el("tr", {}, ...head.map(cell("th")))),
      el("tbody", {}, ...body),
    ),
  );
}
