"""/metrics and the log: right numbers, names that dashboards know, nothing a client can forge."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from capax import LLM
from capax.serving.histogram import FIRST_TOKEN_S, REQUEST_S, Histogram
from capax.serving.logs import FIELDS, JsonFormatter, TextFormatter, log_event, start_logging
from tests.serving.conftest import client_of

pytestmark = pytest.mark.anyio

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]

VLLM_NAMES = {
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:request_success_total",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:e2e_request_latency_seconds_bucket",
    "vllm:request_queue_time_seconds_bucket",
    "vllm:request_prefill_time_seconds_bucket",
    "vllm:request_decode_time_seconds_bucket",
    "vllm:kv_cache_usage_perc",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:prompt_tokens_cached_total",
}


async def scrape(client: httpx2.AsyncClient) -> Samples:
    response = await client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted({"model_name": "tiny", **labels}.items()))]


async def ask(client: httpx2.AsyncClient, **fields: Any) -> Any:
    body = {"prompt": "one two", "max_tokens": 5, "ignore_eos": True, "temperature": 0, **fields}
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 200
    return response.json()


async def test_requests_and_tokens_are_counted(client: httpx2.AsyncClient) -> None:
    before = await scrape(client)
    answer = await ask(client, n=2, max_tokens=200)
    after = await scrape(client)

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert grown("capax_prompt_tokens_total") == answer["usage"]["prompt_tokens"]
    assert grown("capax_generation_tokens_total") == answer["usage"]["completion_tokens"] == 400
    assert grown("capax_requests_total", finished_reason="length") == 2
    assert grown("capax_time_to_first_token_seconds_count") == 1
    assert grown("capax_inter_token_latency_seconds_count") >= 1
    for part in ("duration", "queue", "prefill", "decode"):
        assert grown(f"capax_request_{part}_seconds_count") == 1
    assert grown("capax_engine_steps_total") >= 5
    assert grown("capax_weight_read_bytes_total", tier="memory") > 0
    assert grown("capax_flops_total") > 0
    assert value(after, "capax_requests_running") == 0


async def test_memory_is_shown_by_what_holds_it(client: httpx2.AsyncClient) -> None:
    samples = await scrape(client)
    kinds = {
        dict(labels)["kind"]: bytes_
        for (name, labels), bytes_ in samples.items()
        if name == "capax_memory_bytes"
    }
    assert set(kinds) == {"weights", "kv", "scratch", "cache", "other"}
    assert kinds["weights"] > 0
    assert value(samples, "capax_memory_limit_bytes") > sum(kinds.values()) / 2
    assert any(name == "process_resident_memory_bytes" for name, _ in samples)


async def test_names_carry_no_colon_unless_asked_for(tiny_llm: LLM) -> None:
    async with client_of(tiny_llm) as client:
        assert not [name for name, _ in await scrape(client) if ":" in name]
    async with client_of(tiny_llm, metrics_compat="vllm") as client:
        await ask(client)
        samples = await scrape(client)
        assert {name for name, _ in samples if ":" in name} >= VLLM_NAMES
        assert value(samples, "vllm:generation_tokens_total") == value(
            samples, "capax_generation_tokens_total"
        )
        assert value(samples, "vllm:request_success_total", finished_reason="length") == 1


async def test_no_request_makes_a_new_label(client: httpx2.AsyncClient) -> None:
    await ask(client)
    before = set(await scrape(client))
    for word in ("evil\n# TYPE x counter\nx 1", 'a"} 1\nb{c="', "\x1b[31m"):
        body = {"model": word, "user": word, "prompt": word, "max_tokens": 1}
        await client.post("/v1/completions", json=body)
        await client.get(f"/v1/models/{word.encode().hex()}")
    assert set(await scrape(client)) == before


def test_a_histogram_counts_as_prometheus_wants() -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.observe(0.5)
    histogram.observe(1.0, count=3)  # an edge belongs to its own bucket
    histogram.observe(5.0)
    samples = {
        (s.name, s.labels.get("le")): s.value
        for s in histogram.family("h", "text", {"a": "b"}).samples
    }
    assert samples == {
        ("h_bucket", "1.0"): 4,
        ("h_bucket", "2.0"): 4,
        ("h_bucket", "+Inf"): 5,
        ("h_count", None): 5,
        ("h_sum", None): 8.5,
    }


def test_buckets_reach_as_far_as_vllms() -> None:
    assert (FIRST_TOKEN_S[0], FIRST_TOKEN_S[-1]) == (0.001, 2560.0)
    assert (REQUEST_S[0], REQUEST_S[-1]) == (0.3, 7680.0)


HOSTILE = 'a\r\n2026-01-01 fake line\x1b[31m "quoted" \u2028 \x00'


def record_of(event: str, **fields: Any) -> logging.LogRecord:
    record = logging.LogRecord("capax.serving", logging.INFO, "", 0, event, None, None)
    setattr(record, FIELDS, fields)
    return record


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_a_log_line_is_one_line_of_plain_characters(formatter: logging.Formatter) -> None:
    line = formatter.format(record_of(HOSTILE, path=HOSTILE, request_id="r"))
    assert line.isascii()
    assert line.isprintable()


def test_json_lines_keep_what_was_said() -> None:
    line = json.loads(JsonFormatter().format(record_of("request", path=HOSTILE)))
    assert line["event"] == "request"
    assert line["path"] == HOSTILE
    assert line["level"] == "info"


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What the server writes to stderr, as JSON."""
    loggers = [logging.getLogger(name) for name in ("capax", "uvicorn.error")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    start_logging("json")
    yield stream
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


async def test_requests_are_logged_without_prompt_and_key(tiny_llm: LLM, log: io.StringIO) -> None:
    async with client_of(tiny_llm, api_keys=("key-of-somebody",)) as client:
        client.headers["Authorization"] = "Bearer key-of-somebody"
        await client.post(
            "/v1/completions",
            json={"prompt": "canary-in-the-prompt", "max_tokens": 1},
            headers={"x-request-id": "id-1"},
        )
        await client.get("/nowhere", headers={"Authorization": "Bearer wrong-key"})
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    [asked] = [line for line in lines if line.get("request_id") == "id-1"]
    assert asked["event"] == "request"
    assert asked["path"] == "/v1/completions"
    assert asked["status"] == 200
    assert asked["duration_ms"] > 0
    assert any(line.get("status") == 401 for line in lines)
    for secret in ("canary", "key-of-somebody", "wrong-key"):
        assert secret not in log.getvalue()


async def test_prompts_are_logged_if_the_operator_asks(tiny_llm: LLM, log: io.StringIO) -> None:
    async with client_of(tiny_llm, log_prompts=True) as client:
        await client.post("/v1/completions", json={"prompt": "canary here", "max_tokens": 1})
    [line] = [x for x in map(json.loads, log.getvalue().splitlines()) if x["event"] == "prompt"]
    assert line["text"] == "canary here"


async def test_a_failure_nobody_expected_is_logged_and_not_told(
    tiny_llm: LLM, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client_of(tiny_llm) as client:

        def fail(*_: object) -> None:
            raise ZeroDivisionError("a secret of the implementation")

        monkeypatch.setattr("capax.serving.capacity.exposition", fail)
        response = await client.get("/metrics", headers={"x-request-id": "id-2"})
        assert response.status_code == 500
        assert response.json()["error"]["type"] == "server_error"
        assert response.headers["x-should-retry"] == "false"
        assert response.headers["x-request-id"] == "id-2"
        assert "secret" not in response.text
    [line] = [
        x for x in map(json.loads, log.getvalue().splitlines()) if x["event"].startswith("internal")
    ]
    assert line["request_id"] == "id-2"
    assert "ZeroDivisionError" in line["traceback"]


def test_events_have_their_fields(log: io.StringIO) -> None:
    log_event("draining", n_running=3)
    assert json.loads(log.getvalue())["n_running"] == 3
