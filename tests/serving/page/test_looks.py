"""By keyboard only, in light and dark, on a phone, and without motion."""

from __future__ import annotations

from typing import Any

from tests.serving.page.conftest import answered, ask, picture, watched_page
from tests.serving.page.scripted import Script

ANSWER = """A **KV cache** keeps what was computed for the tokens before.

| part | grows with |
|:--|--:|
| weights | nothing |
| KV | the context |

```python
def reverse(text: str) -> str:
    return text[::-1]
```
"""
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
# The contrast of every text that can be seen with what is behind it, as WCAG counts it.
CONTRASTS = """() => {
  const context = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = colour => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b]
    .map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    for (let at = node; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] > 250) return colour;
    }
    return [255, 255, 255, 255];
  };
  const poor = [];
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    const options = { visibilityProperty: true, opacityProperty: true };
    if (!own || !node.checkVisibility(options)) continue;
    if (node.closest(':disabled, .visually-hidden, .skip')) continue;
    const [a, b] = [light(rgba(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${node.textContent.trim()}: ${ratio.toFixed(2)}`);
  }
  return poor;
}"""


def chat_once(page: Any, script: Script) -> None:
    script.say([ANSWER[at : at + 9] for at in range(0, len(ANSWER), 9)])
    page.wait_for_selector("#server[data-state=ready]")
    ask(page, "What is a KV cache?")
    answered(page)


def test_everything_can_be_done_by_keyboard(page: Any, script: Script) -> None:
    focused = "document.activeElement.id || document.activeElement.textContent"
    assert page.evaluate(focused) == "prompt"
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    answered(page)
    assert script.requests[0]["messages"][0]["content"] == "one\ntwo"
    script.holds = True
    page.keyboard.type("three")
    page.keyboard.press("Enter")
    page.locator(".message.running").wait_for()
    page.keyboard.press("Escape")
    assert "stopped by you" in answered(page, 2).inner_text()
    assert page.evaluate(focused) == "prompt"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "tokens-toggle"
    page.keyboard.press("Space")
    assert page.get_attribute("#tokens-toggle", "aria-pressed") == "true"
    page.keyboard.press("Shift+Tab")
    page.keyboard.type("done")  # a button with nothing to send cannot be reached
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    seen = page.evaluate(focused)
    assert seen == "send"
    for _ in range(3):
        page.keyboard.press("Tab")
        if page.evaluate(focused) == "tab-capacity":
            break
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == "tab-settings"
    assert page.locator("#settings").is_visible()


def test_the_focus_can_be_seen(page: Any) -> None:
    page.keyboard.press("Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_an_answer_is_read_out_once_it_is_complete(page: Any, script: Script) -> None:
    script.holds = True
    script.say(["The whole"])
    ask(page, "hello")
    page.locator(".prose", has_text="The whole").wait_for()
    assert page.locator("#announcer").inner_text() == "Answering"
    page.keyboard.press("Escape")
    page.locator("#announcer", has_text="The whole").wait_for()


def test_text_has_contrast_in_light_and_in_dark(browser: Any, origin: str, script: Script) -> None:
    for scheme in ("light", "dark"):
        with watched_page(browser, origin, color_scheme=scheme) as page:
            chat_once(page, script)
            assert page.evaluate(CONTRASTS) == []
            picture(page, scheme)
            page.get_by_role("tab", name="Settings").click()
            assert page.evaluate(CONTRASTS) == []
            page.evaluate("document.querySelector('#title').style.color = 'gray'")
            assert page.evaluate(CONTRASTS) == ["What is a KV cache?: 3.95"] or scheme == "dark"


def test_the_theme_can_be_chosen_and_is_kept(page: Any) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.get_by_role("button", name="Theme: system").click()
    assert page.evaluate(paper) == light
    page.get_by_role("button", name="Theme: light").click()
    dark = page.evaluate(paper)
    assert dark != light
    page.reload()
    assert page.evaluate(paper) == dark


def test_a_phone_shows_everything_without_scrolling_sideways(
    browser: Any, origin: str, script: Script
) -> None:
    overflow = "document.documentElement.scrollWidth - innerWidth"
    with watched_page(browser, origin, **PHONE) as page:
        chat_once(page, script)
        assert page.evaluate(overflow) == 0
        picture(page, "phone")
        page.get_by_role("button", name="Capacity and settings").tap()
        assert page.locator(".memory-bar").is_visible()
        picture(page, "phone-capacity")
        page.keyboard.press("Escape")
        assert page.locator(".memory-bar").is_hidden()
        page.get_by_role("button", name="Conversations", exact=True).tap()
        picture(page, "phone-conversations")
        page.get_by_role("button", name="New conversation").tap()
        assert page.locator("#sidebar").is_hidden()
        assert page.locator("#welcome").is_visible()
        assert page.evaluate(overflow) == 0


def test_nothing_moves_for_who_does_not_want_it(page: Any, script: Script) -> None:
    script.holds = True
    script.say([])
    ask(page, "hello")
    page.locator(".waiting").wait_for()
    assert page.evaluate("document.getAnimations().length") == 0
