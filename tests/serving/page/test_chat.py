"""Talking to the model on the page, in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.serving.conftest import LiveServer, wait_until
from tests.serving.page.conftest import answered, ask, picture, watched_page
from tests.serving.page.scripted import Script

ADVICE = "## Plan\n\n1. **Measure**\n2. then `cut`\n\n```python\nprint('hi')\n```\n"


def test_an_answer_is_streamed_and_shown_with_its_cost(page: Any, script: Script) -> None:
    script.say([ADVICE[at : at + 5] for at in range(0, len(ADVICE), 5)])
    ask(page, "How do I begin?")
    answer = answered(page)
    assert answer.locator("h4").inner_text() == "Plan"
    assert answer.locator("ol > li").all_inner_texts() == ["Measure", "then cut"]
    assert answer.locator("pre").inner_text().strip() == "print('hi')"
    stats = answer.locator(".stats").inner_text()
    assert "412 tok/s" in stats
    assert "first token" in stats
    assert "96 of 120 prompt tokens cached" in stats
    assert page.locator("#prompt").input_value() == ""
    assert page.locator("#title").inner_text() == "How do I begin?"


def test_the_conversation_so_far_is_sent(page: Any, script: Script) -> None:
    script.say(["One."], ["Two."])
    ask(page, "first")
    answered(page)
    ask(page, "second")
    answered(page, 2)
    assert [(m["role"], m["content"]) for m in script.requests[1]["messages"]] == [
        ("user", "first"),
        ("assistant", "One."),
        ("user", "second"),
    ]
    assert script.requests[1]["model"] == "scripted"


def test_stopping_ends_the_stream_at_the_server_and_keeps_the_text(
    page: Any, script: Script
) -> None:
    script.holds = True
    script.say(["A beginning"])
    ask(page, "go on")
    page.locator(".prose", has_text="A beginning").wait_for()
    page.get_by_role("button", name="Stop", exact=True).click()
    answer = answered(page)
    wait_until(lambda: script.n_left == 1)
    assert "A beginning" in answer.inner_text()
    assert "stopped by you" in answer.inner_text()
    assert page.get_by_role("button", name="Send", exact=True).is_visible()


def test_a_long_prompt_shows_how_far_it_is(page: Any, script: Script) -> None:
    script.progress, script.holds = [10, 40], True
    ask(page, "read this")
    page.locator(".waiting", has_text="40 %").wait_for()
    page.keyboard.press("Escape")
    assert "stopped by you" in answered(page).inner_text()


def test_reasoning_is_folded_away_and_not_sent_back(page: Any, script: Script) -> None:
    script.reasoning = "Let me think."
    ask(page, "why?")
    reasoning = answered(page).locator(".reasoning")
    assert reasoning.get_by_text("Let me think.").is_hidden()
    reasoning.get_by_text("Reasoning").click()
    assert reasoning.get_by_text("Let me think.").is_visible()
    ask(page, "and?")
    answered(page, 2)
    assert "think" not in json.dumps(script.requests[1]["messages"])


def test_only_the_last_answer_can_be_written_again(page: Any, script: Script) -> None:
    for n in (1, 2):
        ask(page, f"question {n}")
        answered(page, n)
    again = page.get_by_role("button", name="Answer again")
    assert again.count() == 1  # those that are not shown have no role
    script.say(["Another."])
    again.click()
    page.locator(".prose", has_text="Another.").wait_for()
    assert page.locator(".message").count() == 4


def test_what_is_being_written_survives_a_reload(page: Any) -> None:
    page.fill("#prompt", "half a thought")
    page.reload()
    assert page.locator("#prompt").input_value() == "half a thought"


def test_a_reload_keeps_the_conversation(page: Any, script: Script) -> None:
    script.say(["Kept **text**."])
    ask(page, "remember this")
    answered(page)
    page.reload()
    answer = answered(page)
    assert answer.locator("strong").inner_text() == "text"
    assert page.locator(".bubble").inner_text() == "remember this"
    assert "412 tok/s" in answer.inner_text()


def test_an_answer_cut_by_a_reload_says_so(page: Any, script: Script) -> None:
    script.holds = True
    script.say(["Half an"])
    ask(page, "tell me")
    page.locator(".prose", has_text="Half an").wait_for()
    page.reload()
    answer = answered(page)
    assert "Half an" in answer.inner_text()
    assert "interrupted" in answer.inner_text()


def test_settings_reach_the_request_and_survive_a_reload(page: Any, script: Script) -> None:
    page.get_by_role("tab", name="Settings").click()
    assert page.get_attribute("#setting-temperature", "placeholder") == "0.2"
    page.fill("#setting-system", "Be brief.")
    values = {"temperature": 0.3, "top_p": 0.9, "min_p": 0.05, "top_k": 40, "max_tokens": 64}
    for name, value in {**values, "seed": 7}.items():
        page.fill(f"#setting-{name}", str(value))
    page.reload()
    page.wait_for_selector("#server[data-state=ready]")
    ask(page, "hello")
    answered(page)
    request = script.requests[0]
    assert {name: request[name] for name in values} == values
    assert request["seed"] == 7
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}
    page.get_by_role("tab", name="Settings").click()
    page.get_by_role("button", name="Reset to defaults").click()
    ask(page, "again")
    answered(page, 2)
    assert not set(script.requests[1]) & {*values, "seed"}
    assert script.requests[1]["messages"][0]["role"] == "user"


def test_a_value_out_of_range_is_marked_and_not_sent(page: Any, script: Script) -> None:
    page.get_by_role("tab", name="Settings").click()
    page.fill("#setting-temperature", "3")
    assert page.get_attribute("#setting-temperature", "aria-invalid") == "true"
    assert "Between 0 and 2" in page.inner_text("#setting-temperature-help")
    ask(page, "hello")
    answered(page)
    assert "temperature" not in script.requests[0]


def test_token_probabilities_are_shown_on_hover_and_by_arrow_keys(
    page: Any, script: Script
) -> None:
    script.logprobs = [("It", 0.9, [("The", 0.05)]), (" is", 0.5, [(" was", 0.4)]), (".", 1.0, [])]
    page.get_by_role("button", name="Probabilities").click()
    ask(page, "say it")
    answer = answered(page)
    assert script.requests[0]["top_logprobs"] == 5
    card = page.locator("#token-card")
    answer.locator(".token", has_text="is").hover()
    assert "50.0 %" in card.inner_text()
    assert "·was" in card.inner_text()
    picture(page, "token-hover")
    page.keyboard.press("Escape")
    assert card.is_hidden()
    answer.locator(".tokens").focus()
    page.keyboard.press("ArrowRight")
    assert "90.0 %" in card.inner_text()
    answer.get_by_role("button", name="Show as text").click()
    assert answer.locator(".prose").inner_text() == "It is."


def test_an_error_is_told_and_can_be_retried(page: Any, script: Script) -> None:
    message = "2 requests are waiting."
    script.error = (429, {"error": {"message": message, "code": "queue_full"}})
    ask(page, "hello")
    answer = answered(page)
    assert message in answer.inner_text()
    assert "2 s" in answer.inner_text()
    answer.get_by_role("button", name="Try again").click()
    page.locator(".prose", has_text="Hello there.").wait_for()
    assert page.locator(".message").count() == 2
    assert len(script.requests[1]["messages"]) == 1


def test_an_error_in_mid_stream_keeps_what_was_written(page: Any, script: Script) -> None:
    script.breaks = True
    ask(page, "hello")
    answer = answered(page)
    assert "Hello there." in answer.inner_text()
    assert "The engine has stopped" in answer.inner_text()


def test_conversations_are_made_renamed_deleted_and_brought_back(page: Any, script: Script) -> None:
    for text in ("apples", "pears"):
        page.get_by_role("button", name="New conversation").click()
        ask(page, text)
        answered(page)
    rows = page.locator(".conversation")
    assert rows.all_inner_texts() == ["pears", "apples"]
    rows.nth(1).click()
    assert page.locator(".bubble").inner_text() == "apples"
    page.locator(".row.current").hover()
    page.get_by_role("button", name="Rename “apples”").click()
    page.get_by_label("New title").fill("orchard")
    page.keyboard.press("Enter")
    assert page.locator("#title").inner_text() == "orchard"
    page.locator(".row.current").hover()
    page.get_by_role("button", name="Delete “orchard”").click()
    assert rows.all_inner_texts() == ["pears"]
    assert page.locator(".message").count() == 0
    page.get_by_role("button", name="Undo").click()
    assert sorted(rows.all_inner_texts()) == ["orchard", "pears"]
    assert page.locator(".bubble").inner_text() == "apples"


def test_conversations_are_exported(page: Any, script: Script, tmp_path: Path) -> None:
    ask(page, "keep this")
    answered(page)
    page.locator(".row").hover()
    with page.expect_download() as one:
        page.get_by_role("button", name="Export “keep this”").click()
    assert one.value.suggested_filename == "keep-this.md"
    one.value.save_as(tmp_path / "one.md")
    assert "Hello there." in (tmp_path / "one.md").read_text()
    with page.expect_download() as everything:
        page.get_by_role("button", name="Export all").click()
    everything.value.save_as(tmp_path / "all.json")
    (conversation,) = json.loads((tmp_path / "all.json").read_text())
    assert conversation["messages"][0]["content"] == "keep this"


def test_an_earlier_message_is_edited_and_what_followed_is_replaced(
    page: Any, script: Script
) -> None:
    for n, text in enumerate(("first", "second"), 1):
        ask(page, text)
        answered(page, n)
    page.locator(".message.user").first.hover()
    page.get_by_role("button", name="Edit and ask again").first.click()
    assert page.locator("#prompt").input_value() == "first"
    ask(page, "first, better")
    page.locator(".bubble", has_text="better").wait_for()
    answered(page)
    assert [m["content"] for m in script.requests[2]["messages"]] == ["first, better"]
    assert page.locator(".message").count() == 2


def test_an_answer_goes_on_while_another_conversation_is_shown(page: Any, script: Script) -> None:
    script.pause_s = 0.05
    script.say([f"{n} " for n in range(12)])
    ask(page, "count")
    page.locator(".prose", has_text="0").wait_for()
    page.get_by_role("button", name="New conversation").click()
    assert page.locator(".message").count() == 0
    page.locator(".conversation", has_text="count").click()
    assert "11" in answered(page).inner_text()


def test_the_page_talks_to_the_real_server(browser: Any, live_server: LiveServer) -> None:
    with watched_page(browser, live_server.base_url) as page:
        page.wait_for_selector("#server[data-state=ready]")
        page.get_by_role("tab", name="Settings").click()
        page.fill("#setting-max_tokens", "12")
        page.get_by_role("button", name="Probabilities").click()
        ask(page, "hello")
        answer = answered(page)
        assert answer.locator(".error").count() == 0
        assert answer.locator(".token").count() > 0
        assert "tok/s" in answer.locator(".stats").inner_text()
        page.get_by_role("tab", name="Capacity").click()
        assert "planned of" in page.inner_text("#capacity")
    live_server.wait_idle()
