"""Caches outside the program under the engine: counted pages, no shared ones, the same promises."""

from __future__ import annotations

import pytest

from capax import LLM, SamplingParams
from capax.errors import CapacityError, ConfigError
from capax.kv import kv_name
from tests.kv import plain
from tests.models import gguf_model

KV = "plain-for-tests"
PAGE = plain.PAGE_TOKENS
PROMPTS = [[5 + i * 7 % 90 for i in range(n)] for n in (40, 3, 75, 64)]
GREEDY = SamplingParams(max_tokens=20, ignore_eos=True)


def load(kv: str = KV, **options: int) -> LLM:
    return LLM(
        gguf_model("llama", encoding="Q8_0"),
        kv=kv,
        threads=1,
        **{"ctx_size": 128, "prefill_chunk": 48, "n_sequences": 4, **options},
    )


def answers(llm: LLM, prompts: list[list[int]], params: SamplingParams) -> list[list[list[int]]]:
    outputs = llm.generate(prompts, params)
    llm.engine.check_integrity()
    return [[choice.token_ids for choice in output.outputs] for output in outputs]


def test_it_says_what_the_full_cache_says() -> None:
    with load() as llm, load("f32") as full:
        assert answers(llm, PROMPTS, GREEDY) == answers(full, PROMPTS, GREEDY)
        assert llm.plan.kv == KV


def test_together_is_as_alone_and_everything_is_given_back() -> None:
    with load() as llm:
        alone = [answers(llm, [prompt], GREEDY)[0] for prompt in PROMPTS]
        assert answers(llm, PROMPTS, GREEDY) == alone
        assert llm.engine._store.n_free == llm.engine._store.capacity
        assert llm.measured_memory()["kv"] == 0


def test_choices_get_copies_of_the_prompt() -> None:
    params = SamplingParams(n=3, max_tokens=12, temperature=1.0, seed=4, ignore_eos=True)
    with load() as llm, load("f32") as full:
        assert answers(llm, PROMPTS[:2], params) == answers(full, PROMPTS[:2], params)


def test_who_gives_way_goes_on_with_the_same_tokens() -> None:
    longer = SamplingParams(max_tokens=100, ignore_eos=True)
    short = [[7, 8, 9], [30, 20]]
    with load() as roomy, load(n_sequences=1) as narrow:
        expected = answers(roomy, short, longer)
        assert answers(narrow, short, longer) == expected
        assert narrow.engine.stats.n_preemptions > 0


def test_choices_that_could_never_fit_are_refused() -> None:
    with load(n_sequences=1) as llm, pytest.raises(CapacityError, match="6 KV pages of 32"):
        llm.generate([5] * 40, SamplingParams(n=3, max_tokens=20))


def test_prompt_logprobs_and_contexts_work_too() -> None:
    params = SamplingParams(max_tokens=2, prompt_logprobs=0)
    with load() as llm, load("f32") as full:
        some, others = (m.generate(PROMPTS[0], params).prompt_logprobs for m in (llm, full))
        assert some
        assert others
        for mine, theirs in zip(some[1:], others[1:], strict=True):
            assert mine
            assert theirs
            assert mine.keys() == theirs.keys()
            for token in mine:
                assert mine[token].logprob == pytest.approx(theirs[token].logprob, abs=1e-2)
        with llm.contexts(2, 64) as contexts:
            logits = contexts.extend([(0, PROMPTS[0]), (1, PROMPTS[1])])
            assert logits.shape == (2, llm.config.vocab_size)


def test_the_plan_counts_what_the_method_says() -> None:
    with load() as llm:
        c = llm.config
        assert llm.plan.footprint.kv == 4 * 128 * 2 * 4 * c.n_layers * c.d_kv
        assert llm.plan.n_pages == 4 * 128 // PAGE


def test_names() -> None:
    assert kv_name("full:type=int8") == kv_name("q8_0") == "int8"
    assert kv_name(" full ") == "f16"
    with pytest.raises(ConfigError, match=r"'q5' is unknown; use one of f32, .* or a method: full"):
        kv_name("q5")
