"""Bodies: what is no JSON, what is JSON and should not be, and what a model makes of it."""

from __future__ import annotations

import contextlib
import json

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capax import LLM
from capax.serving.body import PARSE_ELSEWHERE_NBYTES, parse_json
from capax.serving.errors import ApiError
from tests.serving.conftest import client_of

pytestmark = pytest.mark.anyio
DEPTH = 64

REFUSED = {
    "nothing": (b"", "empty"),
    "blanks": (b" \n\t", "empty"),
    "text": (b"hello", "not JSON"),
    "half an object": (b'{"a": 1', "not JSON"),
    "two objects": (b"{} {}", "not JSON"),
    "single quotes": (b"{'a': 1}", "not JSON"),
    "a comma too many": (b'{"a": 1,}', "not JSON"),
    "a comment": (b'{"a": 1} // x', "not JSON"),
    "no quotes": (b"{a: 1}", "not JSON"),
    "a leading zero": (b'{"a": 01}', "not JSON"),
    "hexadecimal": (b'{"a": 0x1}', "not JSON"),
    "a raw control character": (b'{"a": "\x01"}', "not JSON"),
    "a bad escape": (b'{"a": "\\x"}', "not JSON"),
    "NaN": (b'{"a": NaN}', "NaN"),
    "Infinity": (b'{"a": Infinity}', "Infinity"),
    "minus Infinity": (b'{"a": -Infinity}', "-Infinity"),
    "too large a float": (b'{"a": 1e309}', "too large"),
    "too small a float": (b'{"a": -1e400}', "too large"),
    "too many digits": (b'{"a": ' + b"9" * 5000 + b"}", "too many digits"),
    "a key twice": (b'{"a": 1, "a": 2}', "twice"),
    "a key twice, inside": (b'{"b": [{"a": 1, "a": 1}]}', "twice"),
    "a key twice, escaped": (b'{"a": 1, "\\u0061": 2}', "twice"),
    "not UTF-8": (b'{"a": "\xff"}', "UTF-8"),
    "overlong UTF-8": (b'{"a": "\xc0\xaf"}', "UTF-8"),
    "UTF-8 surrogates": (b'{"a": "\xed\xa0\x80"}', "UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "UTF-8"),
    "a byte-order mark": (b'\xef\xbb\xbf{"a": 1}', "not JSON"),
    "half a pair": (b'{"a": "\\ud800"}', "surrogate"),
    "the other half": (b'{"\\uDC00": 1}', "surrogate"),
    "lists too deep": (b"[" * (DEPTH + 1) + b"]" * (DEPTH + 1), "deeper"),
    "objects too deep": (b'{"a":' * (DEPTH + 1) + b"1" + b"}" * (DEPTH + 1), "deeper"),
    "deep and open": (b"[" * 1_000_000, "deeper"),
    "open objects": (b'{"a":' * 200_000, "deeper"),
    "quotes of escapes": (b'["' + b'\\"' * 400_000, "not JSON"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_strict_json_is_refused(kind: str) -> None:
    data, expected = REFUSED[kind]
    with pytest.raises(ApiError) as caught:
        parse_json(data, DEPTH)
    assert caught.value.status == 400
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text",
    [
        "[" * DEPTH + "]" * DEPTH,
        '{"a": "[[[[{{{{"}',
        '{"a": "\\ud83d\\ude00 \\u0000"}',
        '"' + "[" * 1000 + '"',
        '["\\\\", "' + "{" * 100 + '"]',
        json.dumps([{"a": []}] * 5000),
        '{"a": -0.0, "b": 1e308, "c": 123456789012345678901234567890}',
    ],
)
def test_what_is_json_is_what_json_says(text: str) -> None:
    assert parse_json(text.encode(), DEPTH) == json.loads(text)


texts = st.text(st.characters(codec="utf-8"))
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
documents = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda children: st.lists(children) | st.dictionaries(texts, children),
)


@given(documents)
def test_every_document_comes_back(document: object) -> None:
    for text in (json.dumps(document), json.dumps(document, ensure_ascii=False)):
        assert parse_json(text.encode(), DEPTH) == document


@given(st.binary(max_size=200) | documents.map(lambda d: json.dumps(d).encode()[:-1]))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    with contextlib.suppress(ApiError):
        parse_json(data, DEPTH)


async def test_fields_are_strict_and_refusals_name_them(client: httpx2.AsyncClient) -> None:
    for document, param in (
        ({"prompt": "x", "max_tokens": "1"}, "max_tokens"),
        ({"prompt": "x", "max_tokens": True}, "max_tokens"),
        ({"prompt": "x", "max_tokens": 1.5}, "max_tokens"),
        ({"prompt": "x", "temperature": "hot"}, "temperature"),
        ({"prompt": "x", "n": 129}, "n"),
        ({"prompt": "x", "n": 2**70}, "n"),
        ({"max_tokens": 1}, "prompt"),
    ):
        response = await client.post("/v1/completions", json=document)
        assert response.status_code == 400, document
        error = response.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param
        assert param in error["message"]


@pytest.mark.parametrize("text", ["[]", "1", '"x"', "null"])
async def test_a_body_is_an_object(client: httpx2.AsyncClient, text: str) -> None:
    response = await client.post(
        "/v1/completions", content=text, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 400
    assert "must be a JSON object" in response.json()["error"]["message"]


async def test_unknown_fields_are_named_in_a_header(client: httpx2.AsyncClient) -> None:
    document = {"prompt": "x", "max_tokens": 1, "zebra": 1, "aardvark": 2, "b\r\nad: x": 3}
    response = await client.post("/v1/completions", json=document)
    assert response.status_code == 200
    assert response.headers["X-Capax-Ignored-Params"] == "aardvark,zebra"
    assert "ad" not in response.headers
    known = await client.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
    assert "X-Capax-Ignored-Params" not in known.headers


async def test_strict_params_refuse_unknown_fields(tiny_llm: LLM) -> None:
    async with client_of(tiny_llm, strict_params=True) as client:
        response = await client.post("/v1/completions", json={"prompt": "x", "zebra": 1})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "zebra"


async def test_a_large_body_is_parsed_elsewhere_alike(client: httpx2.AsyncClient) -> None:
    document = {"prompt": "x", "max_tokens": 1, "user": "u" * PARSE_ELSEWHERE_NBYTES}
    assert (await client.post("/v1/completions", json=document)).status_code == 200
    response = await client.post(
        "/v1/completions",
        content=json.dumps(document).replace("{", '{"prompt": "y", ', 1),
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code == 400
    assert "twice" in response.json()["error"]["message"]
