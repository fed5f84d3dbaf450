"""What `LLM` promises its callers: shapes, stops, log-probabilities, seeds, and one answer each."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from capax import LLM, RequestOutput, SamplingParams
from capax.engine.outputs import PositionLogprobs
from capax.errors import CapacityError, ConfigError
from tests.models import CHAT_TEMPLATE, VOCAB_SIZE, gguf_model, hf_model

# Log-probabilities are float32 sums over 320 entries; against float64 they differ by at most:
LOGPROB_TOLERANCE = 1e-5  # measured when written: 9.4e-7
PROMPT = [41, 70, 9, 300, 12, 55]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(gguf_model("llama", encoding="Q8_0"), threads=2, n_sequences=8)


@pytest.fixture(autouse=True)
def _accounted(llm: LLM) -> Iterator[None]:
    yield
    llm.engine.check_integrity()
    assert llm.engine.n_unfinished == 0


def sampled(**options: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 24, "seed": 7, "ignore_eos": True, **options})


def some_prompts(n: int, seed: int = 1) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCAB_SIZE, int(rng.integers(1, 200))).tolist() for _ in range(n)]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    top = wide.max(axis=-1, keepdims=True)
    shifted: np.ndarray = wide - top - np.log(np.exp(wide - top).sum(axis=-1, keepdims=True))
    return shifted


def tokens_of(output: RequestOutput) -> list[list[int]]:
    return [choice.token_ids for choice in output.outputs]


# --- answers and their ends ---------------------------------------------------------------


def test_one_prompt_gives_one_output_and_a_list_a_list(llm: LLM) -> None:
    params = sampled(max_tokens=3)
    by_text = llm.generate("the tale", params)
    assert isinstance(by_text, RequestOutput)
    assert by_text.prompt == "the tale"
    by_ids = llm.generate(by_text.prompt_token_ids, params)
    assert by_ids.prompt is None
    assert by_ids.token_ids == by_text.token_ids
    by_array = llm.generate(np.array(by_text.prompt_token_ids), params)  # type: ignore[call-overload]
    assert by_array.token_ids == by_text.token_ids
    several = llm.generate(["the tale"], params)
    assert isinstance(several, list)
    assert several[0].token_ids == by_text.token_ids
    assert llm.generate([], params) == []
    assert llm.score([]) == []


@pytest.mark.parametrize("seed", range(12))
def test_stream_pieces_joined_are_the_generated_answer(llm: LLM, seed: int) -> None:
    """Random bytes come out of a random model: many pieces end inside a UTF-8 character."""
    params = sampled(
        seed=seed, max_tokens=60, n=1 + seed % 3, logprobs=2, ignore_eos=seed % 2 == 0,
        stop=("e", "zq") if seed % 4 == 3 else (),
    )  # fmt: skip
    whole = llm.generate(PROMPT, params)
    pieces = list(llm.stream(PROMPT, params))
    for choice in whole.outputs:
        mine = [p for p in pieces if p.index == choice.index]
        assert "".join(p.text for p in mine) == choice.text
        assert [t for p in mine for t in p.token_ids] == choice.token_ids
        assert [x for p in mine for x in p.logprobs or ()] == choice.logprobs
        assert [p.finish_reason for p in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1].finish_reason == choice.finish_reason
    assert [p.output is None for p in pieces[:-1]] == [True] * (len(pieces) - 1)
    last = pieces[-1].output
    assert last is not None
    assert last.outputs == whole.outputs


def test_text_is_what_the_tokens_decode_to(llm: LLM) -> None:
    for seed in range(10):
        answer = llm.generate(PROMPT, sampled(seed=seed, max_tokens=40))
        assert answer.text == llm.tokenizer.decode(answer.token_ids, skip_special=True)


def test_an_end_inside_a_character_is_shown_whatever_ended_it(llm: LLM) -> None:
    """A stop token may come while half a UTF-8 character is held back."""
    for seed in range(40):
        params = sampled(seed=seed, max_tokens=30)
        ids = llm.generate(PROMPT, params).token_ids
        half = next(
            (
                i
                for i in range(1, 29)
                if llm.tokenizer.decode(ids[:i], skip_special=True).endswith("\ufffd")
                and ids[i] not in ids[:i]
            ),
            None,
        )
        if half is None:
            continue
        stopped = llm.generate(PROMPT, sampled(seed=seed, stop_token_ids=(ids[half],)))
        assert stopped.token_ids == ids[: half + 1]
        assert stopped.text == llm.tokenizer.decode(ids[:half], skip_special=True)
        return
    pytest.fail("no seed ends a text inside a character")


def test_max_tokens_ends_with_length(llm: LLM) -> None:
    for n in (1, 2, 17):
        choice = llm.generate(PROMPT, sampled(max_tokens=n)).outputs[0]
        assert len(choice.token_ids) == n
        assert choice.finish_reason == "length"


def test_without_max_tokens_the_context_is_filled(llm: LLM) -> None:
    room = llm.context_len - 500
    answer = llm.generate([5] * 500, sampled(max_tokens=None))
    assert len(answer.token_ids) == room
    assert answer.outputs[0].finish_reason == "length"


def test_end_of_text_stops_unless_ignored(llm: LLM) -> None:
    (eos,) = llm.tokenizer.eos_ids & {2}
    bias = {eos: 100.0}
    stopped = llm.generate(PROMPT, SamplingParams(max_tokens=9, seed=1, logit_bias=bias))
    assert stopped.outputs[0].finish_reason == "stop"
    assert stopped.token_ids == [eos]
    assert stopped.text == ""
    ignored = llm.generate(PROMPT, sampled(max_tokens=9, logit_bias=bias))
    assert ignored.token_ids == [eos] * 9
    assert ignored.outputs[0].finish_reason == "length"
    at_least = llm.generate(
        PROMPT, SamplingParams(max_tokens=9, min_tokens=4, seed=1, logit_bias=bias)
    )
    assert at_least.token_ids == [eos] * 4


def test_a_stop_string_ends_the_text_before_it(llm: LLM) -> None:
    whole = llm.generate(PROMPT, sampled(max_tokens=60))
    text = whole.text
    stop = text[20:23]
    first = text.index(stop)
    stopped = llm.generate(PROMPT, sampled(max_tokens=60, stop=("never seen", stop)))
    assert stopped.text == text[:first]
    assert stopped.outputs[0].finish_reason == "stop"
    ids = stopped.token_ids
    assert ids == whole.token_ids[: len(ids)]
    assert stop in llm.tokenizer.decode(ids, skip_special=True)
    assert stop not in llm.tokenizer.decode(ids[:-1], skip_special=True)


def test_a_stop_string_before_min_tokens_is_text(llm: LLM) -> None:
    whole = llm.generate(PROMPT, sampled(max_tokens=40))
    stop = whole.text[:4]
    assert stop not in whole.text[30:]  # the last token may already stop
    answer = llm.generate(PROMPT, sampled(max_tokens=40, min_tokens=40, stop=(stop,)))
    assert answer.text == whole.text
    assert answer.token_ids == whole.token_ids


def test_chat_is_generate_of_the_rendered_template(llm: LLM) -> None:
    messages = [{"role": "user", "content": "the tea"}]
    ids = llm.chat_ids(messages)
    rendered = "<|im_start|>user\nthe tea<|im_end|>\n<|im_start|>assistant\n"
    assert "im_start" in CHAT_TEMPLATE
    assert llm.tokenizer.decode(ids, skip_special=False) == rendered
    answer = llm.chat(messages, sampled())
    assert answer.token_ids == llm.generate(ids, sampled()).token_ids
    assert "".join(p.text for p in llm.stream_chat(messages, sampled())) == answer.text


def test_usage_and_timings_add_up(llm: LLM) -> None:
    llm.close()
    for n in (1, 3):
        for expected_cached in (0, len(PROMPT) - 1):
            answer = llm.generate(PROMPT, sampled(n=n, max_tokens=8))
            usage, timings = answer.usage, answer.timings
            assert usage.prompt_tokens == len(PROMPT)
            assert usage.completion_tokens == sum(map(len, tokens_of(answer))) == 8 * n
            assert usage.total_tokens == len(PROMPT) + 8 * n
            assert usage.cached_tokens == timings.cache_n == expected_cached
            assert timings.cache_n + timings.prompt_n == usage.prompt_tokens
            assert timings.predicted_n == usage.completion_tokens - n
            assert timings.prompt_ms > 0
            assert timings.predicted_per_second == pytest.approx(
                1e3 * timings.predicted_n / timings.predicted_ms
            )
        llm.close()


# --- log-probabilities -------------------------------------------------------------------


def test_logits_have_one_finite_row_per_token(llm: LLM) -> None:
    logits = llm.logits(PROMPT)
    assert logits.shape == (len(PROMPT), VOCAB_SIZE)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    assert np.array_equal(llm.logits(PROMPT[:3]), logits[:3])


def test_scores_are_the_log_softmax_of_the_logits(llm: LLM) -> None:
    for ids in some_prompts(6):
        exact = log_softmax(llm.logits(ids))
        score = llm.score(ids)
        assert score.token_ids == ids
        assert score.logprobs[0] is None
        assert score.is_greedy[0] is None
        expected = [exact[i, token] for i, token in enumerate(ids[1:])]
        got = [x for x in score.logprobs if x is not None]
        np.testing.assert_allclose(got, expected, atol=LOGPROB_TOLERANCE, rtol=0)
        assert score.is_greedy[1:] == [int(exact[i].argmax()) == t for i, t in enumerate(ids[1:])]
        assert score.total == pytest.approx(sum(expected), abs=1e-4)


def test_prompt_logprobs_are_scores_with_the_best_tokens(llm: LLM) -> None:
    (ids,) = some_prompts(1, seed=8)
    exact = log_softmax(llm.logits(ids))
    positions = llm.generate(ids, sampled(max_tokens=1, prompt_logprobs=4)).prompt_logprobs
    assert positions is not None
    assert len(positions) == len(ids)
    assert positions[0] is None
    for i, position in enumerate(positions[1:]):
        assert position is not None
        _check_position(position, ids[i + 1], exact[i], n_top=4)


def test_logprobs_of_an_answer_are_those_of_its_tokens_teacher_forced(llm: LLM) -> None:
    answer = llm.generate(PROMPT, sampled(n=2, logprobs=3, temperature=1.3, top_k=40))
    for choice in answer.outputs:
        exact = log_softmax(llm.logits(PROMPT + choice.token_ids))[len(PROMPT) - 1 : -1]
        assert choice.logprobs is not None
        for position, token, row in zip(choice.logprobs, choice.token_ids, exact, strict=True):
            _check_position(position, token, row, n_top=3)
        total = sum(row[t] for row, t in zip(exact, choice.token_ids, strict=True))
        assert choice.cumulative_logprob == pytest.approx(total, abs=1e-4)


def _check_position(position: PositionLogprobs, token: int, exact: np.ndarray, n_top: int) -> None:
    assert next(iter(position)) == token
    best = set(np.argsort(-exact, kind="stable")[:n_top].tolist())
    assert set(position) == best | {token}
    for other, entry in position.items():
        assert entry.logprob == pytest.approx(exact[other], abs=LOGPROB_TOLERANCE)
        if other in best:
            assert entry.rank == 1 + int((exact > exact[other]).sum())


def test_greedy_takes_the_most_likely_token(llm: LLM) -> None:
    ids = llm.generate(PROMPT, sampled(temperature=0.0)).token_ids
    rows = llm.logits(PROMPT + ids)[len(PROMPT) - 1 : -1]
    assert ids == rows.argmax(axis=1).tolist()


# --- choices -----------------------------------------------------------------------------


def test_choices_differ_and_do_not_depend_on_how_many_there_are(llm: LLM) -> None:
    four = tokens_of(llm.generate(PROMPT, sampled(n=4)))
    assert len({tuple(ids) for ids in four}) == 4
    assert tokens_of(llm.generate(PROMPT, sampled(n=4))) == four
    assert tokens_of(llm.generate(PROMPT, sampled(n=2))) == four[:2]
    assert tokens_of(llm.generate(PROMPT, sampled(n=1))) == four[:1]


def test_choices_share_the_pages_of_the_prompt(llm: LLM) -> None:
    llm.close()
    prompt = some_prompts(1, seed=3)[0] * 3
    prompt = (prompt * 3)[:193]  # three full pages and one token
    stream = llm.stream(prompt, sampled(n=8, max_tokens=4))
    for _ in range(8):  # the first token of each choice: all out of the prompt's one pass
        next(stream)
    assert llm._store.native.n_in_use == 3 + 1
    next(stream)  # now each has a token of its own
    assert llm._store.native.n_in_use == 3 + 8
    list(stream)


# --- the same tokens whatever else happens --------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"threads": 1}, {"threads": 3}, {"prefill_chunk": 1}, {"prefill_chunk": 7},
     {"prefill_chunk": 200, "threads": 2}, {"n_sequences": 2}, {"ctx_size": 300}],
    ids=str,
)  # fmt: skip
def test_settings_of_speed_change_no_token(llm: LLM, options: dict[str, Any]) -> None:
    params = sampled(n=2, logprobs=1, max_tokens=16)
    other = LLM(gguf_model("llama", encoding="Q8_0"), **options)
    for prompt in some_prompts(4, seed=5):
        assert other.generate(prompt, params).outputs == llm.generate(prompt, params).outputs


def test_neighbours_kept_prefixes_and_cancelled_requests_change_no_token(llm: LLM) -> None:
    prompts = some_prompts(12, seed=6)
    prompts += [[*p, 9, 8] for p in prompts[:3]]
    llm.close()
    cold = []
    for prompt in prompts:
        cold.append(llm.generate(prompt, sampled(n=2)).outputs)
        llm.close()
    together = llm.generate(prompts, sampled(n=2))
    assert [answer.outputs for answer in together] == cold
    for prompt, expected in zip(prompts, cold, strict=True):
        first = llm.generate(prompt, sampled(n=2))
        warm = llm.generate(prompt, sampled(n=2))
        assert warm.usage.cached_tokens == len(prompt) - 1
        assert first.outputs == warm.outputs == expected
        left = llm.stream([*prompt[: len(prompt) // 2 + 1], 77], sampled(seed=99))
        next(left)
        left.close()  # type: ignore[attr-defined]
        assert llm.generate(prompt, sampled(n=2)).outputs == expected


def test_eight_threads_get_what_one_gets(llm: LLM) -> None:
    prompts = some_prompts(32, seed=9)
    expected = [llm.generate(p, sampled()).outputs for p in prompts]
    scores = [llm.score(p) for p in prompts]
    found: dict[int, Any] = {}

    def work(rank: int) -> None:
        for i in range(rank, len(prompts), 8):
            if rank % 2:
                text = "".join(p.text for p in llm.stream(prompts[i], sampled()))
                found[i] = (text == expected[i][0].text, llm.score(prompts[i]) == scores[i])
            else:
                ids = llm.generate(prompts[i], sampled()).outputs
                found[i] = (ids == expected[i], llm.score(prompts[i]) == scores[i])

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert found == dict.fromkeys(range(32), (True, True))


def test_leaving_a_stream_gives_its_pages_back(llm: LLM) -> None:
    llm.close()
    stream = llm.stream([5] * 300, sampled(max_tokens=100, n=3))
    next(stream)
    assert llm._store.native.n_in_use == 5
    del stream
    assert llm.engine.n_unfinished == 0
    llm.close()
    assert llm._store.native.n_in_use == 0


def test_a_stream_nobody_reads_holds_nothing(llm: LLM) -> None:
    llm.close()
    stream = llm.stream([5] * 300, sampled())
    assert llm._store.native.n_in_use == 0
    del stream


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "empty"),
        ([[]], "empty"),
        ([VOCAB_SIZE], r"token id 320 .* 320"),
        ([-1], "token id -1"),
        ([5, 10**40], "outside the vocabulary"),
        ([5, 10**400], "an integer of 1329 bits"),
        ([5, True], "True"),
        ([True], "True"),
        ([5, 1.0], r"1\.0"),
        ([1.0], r"1\.0"),
        ([5, None], "None"),
        ([[5, 1.0]], r"1\.0"),
        ([5, "a"], "'a'"),
        (5, "the prompt is 5"),
        (None, "None"),
        (b"abc", "b'abc'"),
        ({"a": 1}, "dict"),
        (np.array([0.5]), "float"),
    ],
)
def test_a_bad_prompt_is_refused(llm: LLM, prompt: Any, words: str) -> None:
    for call in (llm.generate, llm.score):
        with pytest.raises(ConfigError, match=words):
            call(prompt)


@pytest.mark.parametrize("ids", [[], [5, True], [5, 2.0], "abc", [VOCAB_SIZE], [-1], 7, [[5]]])
def test_bad_token_ids_are_refused_by_logits(llm: LLM, ids: Any) -> None:
    with pytest.raises(ConfigError):
        llm.logits(ids)


@pytest.mark.parametrize("chunk", [0, -1, True, 2.5, "7"])
def test_a_chunk_that_is_no_count_is_refused(llm: LLM, chunk: Any) -> None:
    with pytest.raises(ConfigError, match="chunk"):
        llm.logits(PROMPT, chunk=chunk)


def test_a_prompt_longer_than_the_context_is_refused_with_both_counts(llm: LLM) -> None:
    for call in (llm.generate, llm.score, llm.logits, llm.stream):
        with pytest.raises(ConfigError, match=r"513 tokens .* 512"):
            call([5] * 513)
    assert len(llm.score([5] * 512).logprobs) == 512


def test_more_tokens_than_the_context_has_room_for_are_refused(llm: LLM) -> None:
    with pytest.raises(ConfigError, match=r"500 prompt tokens and max_tokens 13 are 513 .* 512"):
        llm.generate([5] * 500, sampled(max_tokens=13))
    assert len(llm.generate([5] * 500, sampled(max_tokens=12)).token_ids) == 12
    with pytest.raises(ConfigError, match="512"):
        llm.generate([5] * 512)


def test_one_bad_prompt_refuses_the_whole_list_before_anything_runs(llm: LLM) -> None:
    llm.close()
    with pytest.raises(ConfigError):
        llm.generate([[5, 6], [VOCAB_SIZE]], sampled())
    small = LLM(gguf_model("llama", encoding="Q8_0"), ctx_size=128)
    with pytest.raises(CapacityError):
        small.generate([[5, 6], [7] * 100], sampled(max_tokens=20, n=16))
    for model in (llm, small):
        assert model._store.native.n_in_use == 0
        assert model.engine.n_unfinished == 0


@pytest.mark.parametrize(
    "options",
    [{"threads": 0}, {"threads": 10**6}, {"threads": True}, {"threads": 1.5}, {"threads": "2"},
     {"ctx_size": 0}, {"ctx_size": 513}, {"ctx_size": 2.0}, {"prefill_chunk": 0},
     {"prefill_chunk": "8"}, {"n_sequences": 0}, {"n_sequences": None}, {"kv": "f64"},
     {"kv": 16}, {"memory": "lots"}, {"memory": -1}, {"memory": 1.5}, {"seed": "x"},
     {"seed": 1.5}, {"seed": 2**64}],
    ids=str,
)  # fmt: skip
def test_a_bad_setting_is_refused_when_loading(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        LLM(gguf_model("llama", encoding="Q8_0"), **options)


def test_the_seed_of_the_model_is_the_default_of_its_requests() -> None:
    path = hf_model("llama")
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    by_default = LLM(path, seed=5).generate(PROMPT, params).token_ids
    explicit = LLM(path, seed=6).generate(PROMPT, params.with_seed(5)).token_ids
    assert by_default == explicit
    assert LLM(path, seed=6).generate(PROMPT, params).token_ids != explicit
    assert math.isfinite(LLM(path, seed=-1).generate(PROMPT, params).outputs[0].cumulative_logprob)
