"""A browser, a scripted server and a page between them that is watched for what must not happen."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import uvicorn

from tests.serving.conftest import wait_until
from tests.serving.page.scripted import Script, scripted_app

CHROMIUM = which("chromium") or which("chromium-browser")
PICTURES = Path("build/page")
PATIENCE_MS = 10_000
WIDE = {"width": 1360, "height": 860}


@dataclass
class Watch:
    """What went wrong on a page, and everything it asked for from elsewhere."""

    origin: str
    problems: list[str] = field(default_factory=list)

    def on_request(self, request: Any) -> None:
        if not request.url.startswith((self.origin, "data:", "blob:" + self.origin)):
            self.problems.append(f"foreign request {request.url}")

    def on_console(self, message: Any) -> None:
        # A status that the test provoked is not news; a violated policy is.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.problems.append(f"console: {message.text}")

    def on_dialog(self, dialog: Any) -> None:
        self.problems.append(f"dialog {dialog.message}")
        dialog.dismiss()


@dataclass
class Stage:
    """A server whose script can be changed."""

    origin: str = ""
    script: Script = field(default_factory=Script)


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an application in a thread; the origin it is at."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        server.force_exit = True  # do not wait for streams that a failed test left open
        thread.join(20)


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """One Chromium for all tests of the page."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    if CHROMIUM is None:
        pytest.skip("needs a Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        # Without its sandbox, because tests may run as root; it only ever opens our own page.
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="package")
def stage() -> Iterator[Stage]:
    """The one server of all tests of the page; each puts its own script on it."""
    stage = Stage()
    with serving(scripted_app(lambda: stage.script)) as stage.origin:
        yield stage


@pytest.fixture
def script(stage: Stage) -> Script:
    """What the server says in this test."""
    stage.script = Script()
    return stage.script


@pytest.fixture
def origin(stage: Stage, script: Script) -> str:
    """Where the server is that follows `script`."""
    return stage.origin


@contextmanager
def watched_page(browser: Any, origin: str, **context: Any) -> Iterator[Any]:
    """A page in a browser context of its own, opened; fails if anything went wrong on it."""
    settings = {"viewport": WIDE, "color_scheme": "light", "reduced_motion": "reduce", **context}
    with browser.new_context(**settings) as opened:
        opened.set_default_timeout(PATIENCE_MS)
        watch = Watch(origin)
        opened.on("request", watch.on_request)
        page = opened.new_page()
        page.watch = watch
        page.on("console", watch.on_console)
        page.on("pageerror", lambda error: watch.problems.append(f"error: {error}"))
        page.on("dialog", watch.on_dialog)
        page.goto(origin)
        yield page
        assert not watch.problems, watch.problems


@pytest.fixture
def page(browser: Any, origin: str) -> Iterator[Any]:
    """The page on a wide screen, ready."""
    with watched_page(browser, origin) as opened:
        opened.wait_for_selector("#server[data-state=ready]")
        yield opened


def ask(page: Any, text: str) -> None:
    """Write a message and send it."""
    page.fill("#prompt", text)
    page.keyboard.press("Enter")


def answered(page: Any, n: int = 1) -> Any:
    """Wait until the n-th answer is complete and return it."""
    answer = page.locator(".message.assistant:not(.running)").nth(n - 1)
    answer.wait_for()
    return answer


def picture(page: Any, name: str) -> None:
    """Keep what the page looks like, for people."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png")
