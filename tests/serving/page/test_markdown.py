"""The Markdown of answers: what becomes of it, also while it is still being written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.page.conftest import Stage, watched_page

# The rendered text with its elements: [tag, children...]; blocks of code and tables without boxes.
RENDER = """async text => {
  const { MarkdownView } = await import('/page/markdown/view.js');
  const view = new MarkdownView();
  for (let end = 0; end <= text.length; end += Math.max(1, Math.ceil(text.length / 40))) {
    view.update(text.slice(0, end));
  }
  view.update(text);
  const clone = view.node.cloneNode(true);
  for (const caption of clone.querySelectorAll('figcaption')) {
    caption.replaceWith(caption.firstChild.textContent + ':');
  }
  const shown = node => node.nodeType === 3 ? node.data
    : `<${[node.localName, node.localName === 'a' ? node.getAttribute('href') : '']
        .filter(Boolean).join(' ')}>${[...node.childNodes].map(shown).join('')}</>`;
  return [...clone.childNodes].map(shown).join('');
}"""
CASES = {
    "plain": ("a < b & c", "<p>a < b & c</>"),
    "paragraphs": ("one\ntwo\n\nthree", "<p>one<br></>two</><p>three</>"),
    "emphasis": (
        "**a** *b* __c__ _d_ ***e*** ~~f~~",
        "<p><strong>a</> <em>b</> <strong>c</> <em>d</> <strong><em>e</></> <del>f</></>",
    ),
    "nested emphasis": ("**a *b* c**", "<p><strong>a <em>b</> c</></>"),
    "no emphasis": ("2 * 3 * 4, snake_case_name, a*", "<p>2 * 3 * 4, snake_case_name, a*</>"),
    "escapes": (r"\*not\* \[x\](y)", "<p>*not* [x](y)</>"),
    "code": ("use `a<b>` or ``x`y``", "<p>use <code>a<b></> or <code>x`y</></>"),
    "open code": ("an `open", "<p>an `open</>"),
    "heading": ("# A\n### B ##\n# C#", "<h3>A</><h5>B</><h3>C#</>"),
    "rule": ("a\n\n---\n\nb", "<p>a</><hr></><p>b</>"),
    "list": ("- a\n- b\n  - c\n- d", "<ul><li>a</><li>b<ul><li>c</></></><li>d</></>"),
    "ordered": ("3. a\n4. b\n\n5. c", "<ol><li>a</><li>b</><li>c</></>"),
    "list after text": ("See:\n* a\n* b", "<p>See:</><ul><li>a</><li>b</></>"),
    "code in a list": (
        "1. do\n\n   ```sh\n   ls\n   ```\n2. done",
        "<ol><li>do<figure>sh:<pre><code>ls</></></></><li>done</></>",
    ),
    "fence": ("```py\na\n\n  b\n```\nc", "<figure>py:<pre><code>a\n\n  b</></></><p>c</>"),
    "open fence": ("~~~\n# a", "<figure>text:<pre><code># a</></></>"),
    "quote": ("> a\n> - b\n\nc", "<blockquote><p>a</><ul><li>b</></></><p>c</>"),
    "table": (
        "| a | b |\n|---|:-:|\n| `1` | x\\|y |\n| 2 |",
        "<div><table><thead><tr><th>a</><th>b</></></><tbody><tr><td><code>1</></><td>x|y</></>"
        "<tr><td>2</><td></></></></></>",
    ),
    "not a table": ("a | b\nc | d", "<p>a | b<br></>c | d</>"),
    "link": ("[a *b*](https://x.org/y 't')", "<p><a https://x.org/y>a <em>b</></></>"),
    "addresses": (
        "See https://x.org/a_(b), <me@x.org>.",
        "<p>See <a https://x.org/a_(b)>https://x.org/a_(b)</>, <a mailto:me@x.org>me@x.org</>.</>",
    ),
    "no link": ("[a](javascript:x) [b] (c)", "<p><span>a</> [b] (c)</>"),
    "image": ("![a cat](https://x.org/c.png)", "<p><a https://x.org/c.png>Image: a cat</></>"),
    "html": ("<b>a</b>", "<p><b>a</b></>"),
}
# What makes a careless reader of Markdown go over the same text again and again.
SLOW = (
    "`" * 40_000 + "x`",
    "``a`" * 10_000,
    "*a " * 20_000,
    "**a *b " * 8_000,
    "_" * 40_000 + "a",
    "[" * 40_000,
    "![](" * 10_000,
    "<" * 40_000,
    "http://% " * 5_000,
    "http://[" * 5_000,
    "> " * 20_000 + "a",
    "- " * 20_000 + "a",
    "1. " * 15_000,
    "|" * 20_000 + "\n" + "|-" * 10_000,
    "```" + " " * 40_000 + "`",
    "# a" + " " * 40_000 + "b",
    " " * 40_000 + "x",
    "* " * 20_000 + "x",
    "\\" * 40_000,
    "- a\n" * 10_000,
)


@pytest.fixture(scope="module")
def shared_page(browser: Any, stage: Stage) -> Iterator[Any]:
    """One page for all cases: they leave nothing behind on it."""
    with watched_page(browser, stage.origin) as page:
        yield page


@pytest.mark.parametrize("name", CASES)
def test_markdown_becomes_elements(shared_page: Any, name: str) -> None:
    text, expected = CASES[name]
    assert shared_page.evaluate(RENDER, text) == expected


def test_no_text_takes_long(shared_page: Any) -> None:
    """Each is shown once, all within the patience of the driver; a quadratic reader takes hours."""
    shared_page.evaluate(
        """async texts => {
          const { MarkdownView } = await import('/page/markdown/view.js');
          for (const text of texts) new MarkdownView().update(text);
        }""",
        list(SLOW),
    )
