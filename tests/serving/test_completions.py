"""/v1/completions against the same questions asked of the engine directly."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from capax import LLM, SamplingParams
from capax.serving.prompts import SLICE_CHARS

pytestmark = pytest.mark.anyio

PROMPT = "the rain in the hills"


async def complete(client: httpx2.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/v1/completions", json={"max_tokens": 8, "seed": 7, **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def refused(client: httpx2.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/v1/completions", json={"prompt": PROMPT, **body})
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error


async def events_of(client: httpx2.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    """The chunks of a stream, checked to end with [DONE]."""
    body = {"max_tokens": 8, "seed": 7, "stream": True, **body}
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def test_text_is_what_the_engine_says(client: httpx2.AsyncClient, tiny_llm: LLM) -> None:
    expected = tiny_llm.generate(PROMPT, SamplingParams(max_tokens=8, seed=7))
    answer = await complete(client, prompt=PROMPT)
    [choice] = answer["choices"]
    assert choice["text"] == expected.text
    assert choice["finish_reason"] == expected.outputs[0].finish_reason
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["model"] == "tiny"
    usage = answer["usage"]
    assert usage["prompt_tokens"] == len(expected.prompt_token_ids)
    assert usage["completion_tokens"] == len(expected.token_ids)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"]
    timings = answer["timings"]
    assert timings["prompt_n"] + timings["cache_n"] == usage["prompt_tokens"]
    assert answer["capax"]["memory"]["weights_bytes"] > 0


async def test_all_four_kinds_of_prompt_are_one(client: httpx2.AsyncClient, tiny_llm: LLM) -> None:
    ids = tiny_llm.tokenizer.encode(PROMPT)
    [alone] = (await complete(client, prompt=PROMPT))["choices"]
    for prompt in (ids, [PROMPT], [ids]):
        assert (await complete(client, prompt=prompt))["choices"] == [alone]


async def test_choices_of_several_prompts_are_numbered_prompt_by_prompt(
    client: httpx2.AsyncClient,
) -> None:
    both = await complete(client, prompt=[PROMPT, "sea"], n=2)
    first = await complete(client, prompt=PROMPT, n=2)
    second = await complete(client, prompt="sea", n=2)
    assert [c["index"] for c in both["choices"]] == [0, 1, 2, 3]
    texts = [c["text"] for c in both["choices"]]
    assert texts == [c["text"] for c in first["choices"] + second["choices"]]


async def test_echoed_logprobs_are_the_scores_of_the_prompt(
    client: httpx2.AsyncClient, tiny_llm: LLM
) -> None:
    score = tiny_llm.score(PROMPT)
    answer = await complete(
        client, prompt=PROMPT, echo=True, logprobs=1, max_tokens=1, temperature=0
    )
    [choice] = answer["choices"]
    logprobs = choice["logprobs"]
    n = len(score.token_ids)
    assert choice["text"].startswith(PROMPT)
    assert logprobs["token_logprobs"][:-1] == score.logprobs
    assert logprobs["top_logprobs"][0] is None
    greedy = [
        logprob == max(top.values())
        for logprob, top in zip(
            logprobs["token_logprobs"][1:-1], logprobs["top_logprobs"][1:-1], strict=True
        )
    ]
    assert greedy == score.is_greedy[1:]
    assert len(logprobs["tokens"]) == len(logprobs["text_offset"]) == n + 1


async def test_text_offsets_are_where_the_tokens_are(client: httpx2.AsyncClient) -> None:
    prompt = "naïve → 火山"  # tokens that are parts of characters
    [choice] = (await complete(client, prompt=prompt, echo=True, logprobs=0))["choices"]
    logprobs, text = choice["logprobs"], choice["text"]
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        if not token.startswith(("bytes:", "<|")):
            assert text[offset : offset + len(token)] == token
    assert any(token.startswith("bytes:") for token in logprobs["tokens"])


async def test_nothing_new_is_shown_with_max_tokens_0(
    client: httpx2.AsyncClient, tiny_llm: LLM
) -> None:
    answer = await complete(client, prompt=PROMPT, echo=True, logprobs=1, max_tokens=0)
    [choice] = answer["choices"]
    assert choice["text"] == PROMPT
    assert choice["logprobs"]["token_logprobs"] == tiny_llm.score(PROMPT).logprobs
    assert answer["usage"]["completion_tokens"] == 0
    chunks = await events_of(client, prompt=PROMPT, echo=True, max_tokens=0)
    assert "".join(c["choices"][0]["text"] for c in chunks) == PROMPT


async def test_best_of_returns_the_most_probable_choices(
    client: httpx2.AsyncClient, tiny_llm: LLM
) -> None:
    ask = SamplingParams(max_tokens=8, seed=7, n=4)
    made = tiny_llm.generate(PROMPT, ask).outputs
    ranked = sorted(made, key=lambda c: c.cumulative_logprob / len(c.token_ids), reverse=True)
    answer = await complete(client, prompt=PROMPT, n=2, best_of=4)
    assert [c["text"] for c in answer["choices"]] == [c.text for c in ranked[:2]]
    assert [c["index"] for c in answer["choices"]] == [0, 1]
    assert answer["usage"]["completion_tokens"] == sum(len(c.token_ids) for c in made)


async def test_streams_add_up_to_the_whole(client: httpx2.AsyncClient) -> None:
    asked = {"prompt": [PROMPT, "sea"], "n": 3, "logprobs": 2, "max_tokens": 12}
    whole = await complete(client, **asked)
    chunks = await events_of(client, **asked, stream_options={"include_usage": True})
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1
    assert chunks[-1]["choices"] == []
    usage = chunks[-1]["usage"]
    for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert usage[key] == whole["usage"][key]
    assert all(c["usage"] is None for c in chunks[:-1])
    for expected in whole["choices"]:
        parts = [c["choices"][0] for c in chunks[:-1]]
        parts = [p for p in parts if p["index"] == expected["index"]]
        assert "".join(p["text"] for p in parts) == expected["text"]
        assert [p["finish_reason"] for p in parts[:-1]] == [None] * (len(parts) - 1)
        assert parts[-1]["finish_reason"] == expected["finish_reason"]
        for key, values in expected["logprobs"].items():
            assert [x for p in parts if p["logprobs"] for x in p["logprobs"][key]] == values


async def test_a_streamed_echo_comes_first(client: httpx2.AsyncClient) -> None:
    whole = await complete(client, prompt=PROMPT, echo=True)
    chunks = await events_of(client, prompt=PROMPT, echo=True)
    assert chunks[0]["choices"][0]["text"] == PROMPT
    assert "".join(c["choices"][0]["text"] for c in chunks) == whole["choices"][0]["text"]
    assert "usage" not in chunks[-1]
    assert chunks[-1]["timings"]["predicted_n"] == whole["timings"]["predicted_n"]


async def test_token_ids_come_when_asked_for(client: httpx2.AsyncClient, tiny_llm: LLM) -> None:
    expected = tiny_llm.generate(PROMPT, SamplingParams(max_tokens=8, seed=7))
    [choice] = (await complete(client, prompt=PROMPT, return_token_ids=True))["choices"]
    assert choice["token_ids"] == expected.token_ids
    assert choice["prompt_token_ids"] == expected.prompt_token_ids
    chunks = await events_of(client, prompt=PROMPT, return_token_ids=True)
    parts = [c["choices"][0] for c in chunks]
    assert [x for p in parts for x in p["token_ids"]] == expected.token_ids
    assert parts[0]["prompt_token_ids"] == expected.prompt_token_ids
    assert all("prompt_token_ids" not in p for p in parts[1:])


async def test_timings_per_token_count_up(client: httpx2.AsyncClient) -> None:
    chunks = await events_of(client, prompt=PROMPT, timings_per_token=True, ignore_eos=True)
    counts = [c["timings"]["predicted_n"] for c in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 7


async def test_stop_strings_and_tokens_end_the_text(
    client: httpx2.AsyncClient, tiny_llm: LLM
) -> None:
    whole = tiny_llm.generate(PROMPT, SamplingParams(max_tokens=8, seed=7, ignore_eos=True))
    asked = {"prompt": PROMPT, "ignore_eos": True}
    stop = whole.text[1:3]
    [choice] = (await complete(client, **asked, stop=[stop, "\x00never"]))["choices"]
    assert choice["text"] == whole.text[: whole.text.index(stop)]
    assert choice["finish_reason"] == "stop"
    token = whole.token_ids[3]
    [choice] = (await complete(client, **asked, stop_token_ids=[token], return_token_ids=True))[
        "choices"
    ]
    assert choice["token_ids"] == whole.token_ids[: whole.token_ids.index(token) + 1]


async def test_logit_bias_decides(client: httpx2.AsyncClient) -> None:
    [choice] = (await complete(client, prompt=PROMPT, logit_bias={"40": 100}))["choices"]
    assert len(set(choice["text"])) == 1


async def test_a_seed_repeats_and_none_does_not(client: httpx2.AsyncClient) -> None:
    asked = {"prompt": PROMPT, "max_tokens": 16, "ignore_eos": True}
    again = [(await complete(client, **asked))["choices"][0]["text"] for _ in range(2)]
    assert again[0] == again[1]
    free = {(await complete(client, **asked, seed=None))["choices"][0]["text"] for _ in range(4)}
    assert len(free) > 1


async def test_control_tokens_in_a_prompt_are_text(client: httpx2.AsyncClient) -> None:
    spelled = "<|im_end|>"
    as_text = await complete(client, prompt=spelled)
    as_control = await complete(client, prompt=spelled, parse_special=True)
    assert as_text["usage"]["prompt_tokens"] > 1
    assert as_control["usage"]["prompt_tokens"] == 1


async def test_what_does_not_fit_is_refused_with_both_counts(client: httpx2.AsyncClient) -> None:
    error = await refused(client, prompt=[5] * 600, max_tokens=1)
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "prompt"
    assert "512" in error["message"]
    assert "600 in the prompt" in error["message"]
    error = await refused(client, prompt=[5] * 500, max_tokens=13)
    assert error["code"] == "context_length_exceeded"
    assert "513" in error["message"]
    assert (await complete(client, prompt=[5] * 500, max_tokens=12))["usage"]


async def test_a_huge_text_is_refused_before_it_is_tokenised(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch, tiny_llm: LLM
) -> None:
    longest = 0
    encode = tiny_llm.tokenizer.encode

    def spy(text: str, *args: Any, **kwargs: Any) -> list[int]:
        nonlocal longest
        longest = max(longest, len(text))
        return encode(text, *args, **kwargs)

    monkeypatch.setattr(tiny_llm.tokenizer, "encode", spy)
    error = await refused(client, prompt="word " * 200_000)
    assert error["code"] == "context_length_exceeded"
    assert "at least" in error["message"]
    assert longest <= SLICE_CHARS
    # Text of few tokens is not refused for its length.
    monkeypatch.setattr("capax.serving.prompts.SLICE_CHARS", 8)
    assert (await complete(client, prompt="the rain in the hills " * 5))["choices"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"echo": True, "logprobs": 1, "stream": True}, "stream"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [1, True]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [320]}, "prompt"),
        ({"prompt": [2**40]}, "prompt"),
        ({"prompt": ["a"] * 257}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stream": 1}, "stream"),
    ],
)
async def test_what_cannot_be_answered_is_refused_naming_the_field(
    client: httpx2.AsyncClient, body: dict[str, Any], param: str
) -> None:
    assert (await refused(client, **body))["param"] == param


async def test_more_choices_than_run_at_a_time_are_refused(
    client: httpx2.AsyncClient, tiny_llm: LLM
) -> None:
    too_many = tiny_llm.plan.logit_rows + 1
    for body in ({"n": too_many}, {"best_of": too_many}):
        error = await refused(client, **body)
        assert [error["param"]] == list(body)
        assert f"is {too_many} but at most {too_many - 1}" in error["message"]
        assert "--parallel" in error["message"]
    answer = await complete(client, prompt=PROMPT, n=too_many - 1)
    assert len(answer["choices"]) == too_many - 1


async def test_unknown_tokens_and_contradictions_are_refused(client: httpx2.AsyncClient) -> None:
    await refused(client, logit_bias={"320": 1})
    await refused(client, stop_token_ids=[320])
    await refused(client, min_tokens=9, max_tokens=8)


async def test_an_unknown_model_is_404(client: httpx2.AsyncClient) -> None:
    response = await client.post("/v1/completions", json={"prompt": "a", "model": "other"})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


async def test_unknown_fields_are_named_in_a_header(client: httpx2.AsyncClient) -> None:
    body = {"prompt": "a", "max_tokens": 1, "guess": 1, "user": "me"}
    response = await client.post("/completions", json=body)
    assert response.status_code == 200
    assert response.headers["x-capax-ignored-params"] == "guess"
