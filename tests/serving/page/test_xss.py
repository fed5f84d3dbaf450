"""Whatever a model writes stays text: nothing runs, nothing is loaded, no link is dangerous."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.serving.page.conftest import answered, ask, watched_page
from tests.serving.page.payloads import PAYLOADS
from tests.serving.page.scripted import Script

# What the page itself makes of an answer; anything else came out of a payload.
TAGS = """
    A ARTICLE BLOCKQUOTE BR BUTTON CODE DEL DIV EM FIGCAPTION FIGURE H3 H4 H5 H6 HR LI OL P PRE SPAN
    STRONG TABLE TBODY TD TH THEAD TR UL svg use
"""
ATTRIBUTES = """
    aria-busy aria-hidden aria-label class data-index data-switch dir href rel role start style
    tabindex target title type
"""
SURVEY = """root => {
  const nodes = [...root.querySelectorAll('*')];
  return {
    tags: [...new Set(nodes.map(node => node.tagName))],
    attributes: [...new Set(nodes.flatMap(node => node.getAttributeNames()))],
    styles: [...new Set(nodes.map(node => node.getAttribute('style')).filter(Boolean))],
    links: nodes.filter(node => node.tagName === 'A').map(node => [node.href, node.rel]),
    owned: window.owned ?? null,
  };
}"""
# Every prefix of every payload, as a stream may end an update anywhere: shown by the view itself.
EVERY_PREFIX = """async payloads => {
  const { MarkdownView } = await import('/page/markdown/view.js');
  const { TokensView } = await import('/page/tokens.js');
  const root = document.createElement('div');
  document.body.append(root);
  const problems = new Set();
  for (const payload of payloads) {
    const view = new MarkdownView();
    root.replaceChildren(view.node);
    for (let end = 1; end <= payload.length; end += 1) {
      view.update(payload.slice(0, end));
      for (const link of view.node.querySelectorAll('a')) {
        if (!['https:', 'http:', 'mailto:'].includes(link.protocol)) problems.add(payload);
      }
      if (view.node.querySelector('script,img,svg:not(.icon),iframe,style,form,input,object')) {
        problems.add(payload);
      }
    }
    const tokens = new TokensView();
    tokens.update([...payload].map(text => [text, -1, [[payload, -2]]]));
    root.append(tokens.node);
  }
  await new Promise(resolve => setTimeout(resolve, 100));
  root.remove();
  return [...problems];
}"""


def check(page: Any) -> None:
    """Nothing but the page's own elements is there, and no link but those it may make."""
    found = page.locator("#transcript").evaluate(SURVEY)
    assert set(found["tags"]) <= set(TAGS.split())
    assert set(found["attributes"]) <= set(ATTRIBUTES.split())
    assert all(style.startswith("--unlikely:") for style in found["styles"])
    for href, rel in found["links"]:
        assert urlsplit(href).scheme in ("http", "https", "mailto")
        assert "noopener" in rel
    assert found["owned"] is None
    assert page.watch.problems == []


def test_there_are_payloads_of_many_kinds() -> None:
    assert len(set(PAYLOADS)) == len(PAYLOADS) >= 80


def test_every_prefix_of_every_payload_is_harmless(page: Any) -> None:
    assert page.evaluate(EVERY_PREFIX, list(PAYLOADS)) == []
    check(page)


@pytest.mark.parametrize("width", [1, 3, 10_000])
def test_streamed_payloads_stay_text_and_from_history_too(
    page: Any, script: Script, width: int
) -> None:
    text = "\n\n".join(payload + ("\n```" if "```" in payload else "") for payload in PAYLOADS)
    script.say([text[at : at + width] for at in range(0, len(text), width)])
    ask(page, "".join(PAYLOADS[:20]))
    answer = answered(page)
    assert "alert(1)" in answer.inner_text()
    check(page)
    page.reload()
    answered(page)
    check(page)
    page.locator(".row").hover()
    check(page)


def test_payloads_as_tokens_titles_and_errors_stay_text(page: Any, script: Script) -> None:
    others = [(payload, 0.01) for payload in PAYLOADS[:5]]
    script.logprobs = [(payload, 0.5, others) for payload in PAYLOADS]
    page.get_by_role("button", name="Probabilities").click()
    ask(page, PAYLOADS[0])
    answer = answered(page)
    for n in range(0, len(PAYLOADS), 9):
        answer.locator(".token").nth(n).hover()
    assert page.locator("#title").inner_text() == PAYLOADS[0]
    check(page)
    script.error = (500, {"error": {"message": PAYLOADS[4]}})
    ask(page, "again")
    answered(page, 2)
    check(page)


def test_a_poisoned_storage_is_harmless(browser: Any, origin: str) -> None:
    with watched_page(browser, origin) as page:
        page.evaluate(
            """payloads => {
              const messages = payloads.map(text => ({
                id: text, role: 'assistant', content: text, finish: text, reasoning: text,
                stats: { nTokens: text, nPrompt: text }, tokens: [[text, 'x', []], 7, null],
                error: { message: text },
              }));
              localStorage['capax.conversations'] = JSON.stringify(
                [7, null, { id: 'a', title: payloads[0], updated: 'x' }, { id: payloads[4] }]);
              localStorage['capax.conversation.a'] = JSON.stringify(
                { messages: [...messages, 7, null, { role: 'system', content: 'x' }] });
              localStorage['capax.settings'] = '{"temperature": "<b>", "system": 7}';
              localStorage['capax.folded'] = '[1]';
            }""",
            list(PAYLOADS[:30]),
        )
        page.goto(f"{origin}/#a")
        page.reload()
        answered(page, 30)
        assert page.locator(".message").count() == 30
        assert page.evaluate("window.owned ?? null") is None


HARMS = {
    "dialog": "alert('harm')",
    "evil.invalid": "fetch('https://evil.invalid/x').catch(() => {})",
    "Content Security Policy": "Object.assign(new Image(), {src: 'https://evil.invalid/y'})",
    "TrustedHTML": "document.body.innerHTML = '<i>harm</i>'",
}


@pytest.mark.parametrize("sign", HARMS)
def test_the_watch_sees_what_it_is_there_for(browser: Any, origin: str, sign: str) -> None:
    """The negative control: each kind of harm, done on purpose, fails its test."""
    with pytest.raises(AssertionError, match=sign):
        do_harm(browser, origin, HARMS[sign])


def do_harm(browser: Any, origin: str, harm: str) -> None:
    with watched_page(browser, origin) as page:
        page.evaluate(f"setTimeout(() => {{ {harm} }})")
        for _ in range(200):
            if page.watch.problems:
                return
            page.wait_for_timeout(10)
