"""The page while the server loads, is gone, wants a key; and the capacity it shows."""

from __future__ import annotations

from typing import Any

from tests.serving.conftest import wait_until
from tests.serving.page.conftest import answered, ask, watched_page
from tests.serving.page.scripted import MIB, Script, status_document


def test_loading_is_shown_with_its_phase_and_then_it_is_ready(
    browser: Any, origin: str, script: Script
) -> None:
    script.ready = {"status": "loading", "phase": "packing weights", "progress": 0.43}
    with watched_page(browser, origin) as page:
        notice = page.locator("#notice")
        notice.get_by_text("Loading the model: packing weights · 43 %").wait_for()
        page.fill("#prompt", "patience")
        assert page.locator("#send").is_disabled()
        page.keyboard.press("Enter")
        script.ready = {"status": "ready"}
        page.wait_for_selector("#server[data-state=ready]")
        assert notice.is_hidden()
        assert script.requests == []
        assert page.locator("#prompt").input_value() == "patience"
        page.keyboard.press("Enter")
        answered(page)


def test_a_failed_load_is_told(browser: Any, origin: str, script: Script) -> None:
    script.ready = {"status": "failed", "phase": "opening", "progress": 0.1}
    with watched_page(browser, origin) as page:
        page.locator("#notice", has_text="could not load its model").wait_for()


def test_a_server_without_a_chat_model_says_so(browser: Any, origin: str, script: Script) -> None:
    script.mute = True
    with watched_page(browser, origin) as page:
        page.locator("#notice", has_text="no model to talk to").wait_for()


def test_a_server_that_is_gone_is_noticed_and_so_is_its_return(page: Any, script: Script) -> None:
    page.route("**/*", lambda route: route.abort("connectionrefused"))
    page.locator("#notice", has_text="does not answer").wait_for()
    ask(page, "hello?")
    assert page.locator(".message").count() == 0
    page.unroute("**/*")
    page.locator("#notice").get_by_role("button", name="Now").click()
    page.wait_for_selector("#server[data-state=ready]")
    page.focus("#prompt")
    page.keyboard.press("Enter")
    answered(page)
    assert len(script.requests) == 1


def test_a_server_with_keys_asks_for_one_and_gets_it_with_every_request(
    browser: Any, origin: str, script: Script
) -> None:
    script.key = "open-sesame"
    with watched_page(browser, origin) as page:
        page.get_by_label("This server asks for an API key").fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_label("The server does not accept this key").fill("open-sesame")
        page.get_by_role("button", name="Use").click()
        page.wait_for_selector("#server[data-state=ready]")
        ask(page, "hello")
        assert "Hello there." in answered(page).inner_text()
        page.reload()
        page.wait_for_selector("#server[data-state=ready]")
        assert page.evaluate("JSON.stringify(localStorage)").count("sesame") == 0


def test_the_capacity_panel_shows_how_the_budget_is_spent(page: Any, script: Script) -> None:
    panel = page.locator("#capacity")
    assert "925 MiB planned of 1.00 GiB" in panel.inner_text().replace("\n", " ")
    label = page.get_attribute(".memory-bar", "aria-label")
    assert "Weights 118 MiB" in label
    assert "Free 99 MiB" in label
    widths = {
        name: page.locator(f".segment.{name}").bounding_box()["width"]
        for name in ("weights", "kv_cached")
    }
    assert abs(widths["kv_cached"] / widths["weights"] - 210 / 118) < 0.1
    memory = {**status_document()["memory"], "kv_used_bytes": 200 * MIB, "kv_cached_bytes": 0}
    script.status = {
        "memory": memory,
        "requests": {"running": 5, "waiting": 3},
        "prefix": {"query_tokens": 1000, "hit_tokens": 250},
    }
    page.locator(".gauge", has_text="3 queued").wait_for()
    text = panel.inner_text()
    assert "200 MiB" in text
    assert "25 %" in text
    assert page.locator(".segment.kv_cached").is_hidden()


def test_speed_is_made_of_what_was_generated_in_between(page: Any, script: Script) -> None:
    script.status = {"tokens": {"prompt": 0, "generation": 0}, "clock_s": 1e6}
    page.locator(".gauge", has_text="0 in all").first.wait_for()
    script.status = {"tokens": {"prompt": 50, "generation": 300}, "clock_s": 1e6 + 2}
    page.locator(".gauge", has_text="300 in all").wait_for()
    assert script.requests == []
    wait_until(lambda: "M" in (page.get_attribute(".gauge .spark-line", "d") or ""))
