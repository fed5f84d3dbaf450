"""Any value in any numeric field: an answer, or a 400 in the error's shape."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capax.decoding.params import LIMITS
from capax.serving.chat import ChatRequest
from capax.serving.completions import CompletionRequest
from tests.serving.conftest import LiveServer

FIELDS = sorted(
    {
        *LIMITS,
        "best_of",
        "max_completion_tokens",
        "max_total_tokens",
        "priority",
        "stop_token_ids",
        "top_logprobs",
    }
)
# JSON as text: some of these no encoder writes.
STRANGE = ["NaN", "Infinity", "-Infinity", "1e309", "-1e309", "true", "false", '"1"', "-0.0", "-0",
           "9223372036854775807", "9223372036854775808", "-9223372036854775809",
           "18446744073709551616", "1.0", "1.5", "1e2", "null", "[]", "[1]", "{}", '""', '"NaN"',
           "1" * 400, "0x10", "1_0", "١"]  # fmt: skip
NUMBERS = st.one_of(
    st.sampled_from(STRANGE),
    st.integers().map(str),
    st.integers(-2, 25).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
)
ROUTES = {
    "/v1/completions": '"prompt": "a", "max_tokens": 2',
    "/v1/chat/completions": '"messages": [{"role": "user", "content": "a"}], "max_tokens": 2',
}


@pytest.fixture(scope="module")
def http(live_server: LiveServer) -> Iterator[httpx2.Client]:
    headers = {"content-type": "application/json"}
    with httpx2.Client(base_url=live_server.base_url, headers=headers, timeout=60) as client:
        yield client


def test_every_numeric_field_is_among_them() -> None:
    for model in (ChatRequest, CompletionRequest):
        schema = model.model_json_schema()["properties"]
        numeric = {
            name
            for name, field in schema.items()
            if any(kind.get("type") in ("integer", "number") for kind in field.get("anyOf", []))
        }
        assert numeric <= set(FIELDS)


@pytest.mark.parametrize("path", ROUTES)
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(st.sampled_from(FIELDS), NUMBERS, min_size=1, max_size=3))
def test_numbers_are_answered_or_refused(
    http: httpx2.Client, path: str, fields: dict[str, str]
) -> None:
    members = [f'"{name}": {value}' for name, value in fields.items() if name != "max_tokens"]
    base = ROUTES[path]
    if "max_tokens" in fields:
        base = base.replace('"max_tokens": 2', f'"max_tokens": {fields["max_tokens"]}')
    body = "{" + ", ".join([base, *members]) + "}"
    check(http.post(path, content=body.encode()), body)


def check(response: httpx2.Response, body: str) -> None:
    assert response.status_code in (200, 400), (body, response.text)
    answer: dict[str, Any] = json.loads(response.text)
    if response.status_code == 400:
        assert set(answer) == {"error"}
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        assert answer["error"]["type"] == "invalid_request_error"
        assert answer["error"]["message"]


@pytest.mark.parametrize("value", [v for v in STRANGE if v not in ("null", "-0.0", "-0", "1.0")])
@pytest.mark.parametrize("name", ["temperature", "n", "seed", "top_p"])
def test_what_is_not_quite_a_number_is_no_server_error(
    http: httpx2.Client, name: str, value: str
) -> None:
    body = f'{{"prompt": "a", "max_tokens": 1, "{name}": {value}}}'
    check(http.post("/v1/completions", content=body.encode()), body)
