"""The page's files over HTTP, without a browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from capax.serving import page

FILES = page.PATHS


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    app.include_router(page.router)
    return TestClient(app)


@pytest.mark.parametrize("path", FILES)
def test_every_file_is_served_with_its_type_and_the_policy(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    assert response.content == FILES[path].read_bytes()
    assert response.headers["content-type"] == page.MEDIA_TYPES[FILES[path].suffix]
    assert response.headers["content-security-policy"] == page.POLICY
    assert response.headers["x-content-type-options"] == "nosniff"


def test_a_known_file_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/page/main.js")
    again = client.get("/page/main.js", headers={"If-None-Match": f"W/{first.headers['etag']}"})
    assert (again.status_code, again.content) == (304, b"")
    other = client.get("/page/main.js", headers={"If-None-Match": '"other"'})
    assert other.status_code == 200


@pytest.mark.parametrize(
    "path", ["/page/", "/page/index.html", "/page/../page.py", "/page/%2e%2e/page.py", "/page/x.js"]
)
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_every_file_is_open_without_a_key() -> None:
    assert set(page.OPEN_PATHS) == set(FILES)


def test_the_policy_allows_nothing_foreign_and_nothing_inline() -> None:
    assert page.POLICY.startswith("default-src 'self'; ")
    assert "unsafe" not in page.POLICY
    assert "*" not in page.POLICY


def _sources(*suffixes: str) -> list[Path]:
    return [file for file in FILES.values() if file.suffix in suffixes]


def test_every_reference_of_the_page_is_a_file_of_it() -> None:
    served = set(FILES)
    html = FILES["/"].read_text()
    named = {f"/{name}" for name in re.findall(r'(?:src|href)="(page/[^"]+)"', html)}
    for file in _sources(".js"):
        for name in re.findall(r'from "(\.[^"]+)"', file.read_text()):
            target = (file.parent / name).resolve().relative_to(page.FOLDER.resolve())
            named.add(f"/page/{target.as_posix()}")
    assert named
    assert named | {"/"} == served


def test_no_file_makes_markup_or_code_of_strings() -> None:
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|DOMParser"
    )
    for file in _sources(".js"):
        assert not re.search(forbidden, file.read_text()), file.name


def test_the_page_has_nothing_inline() -> None:
    html = FILES["/"].read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", html)
