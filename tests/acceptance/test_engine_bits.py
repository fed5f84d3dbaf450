"""Whatever the engine does to save time, every request gets the logits of itself alone.

Kept prefixes, chunks, batching, threads, preemption and choices that share a prompt are switched on
and off in every combination. The logits each token was drawn from are compared, bit for bit, with
those of the same tokens in one pass outside the scheduler, over pages of their own; and the tokens
with those of each request alone, cold. The last tests break the engine on purpose and see that
these comparisons notice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest

from capax import LLM, SamplingParams
from capax.engine.engine import Engine
from capax.engine.prefix_cache import PrefixCache
from capax.engine.sequence import Request
from capax.kv import PAGE_TOKENS
from capax.models import Model, Step
from tests.models import gguf_model

CONTEXT = 320
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: gguf_model("llama", encoding="Q8_0"),
    "window": lambda: gguf_model("mistral", encoding="Q4_1"),
}
_STEM = [(7 * i) % 300 + 3 for i in range(150)]
PROMPTS = [
    _STEM,
    _STEM[:130] + [9] * 11,  # two pages in common, and two tokens of the third
    [11, 12],
    _STEM,
    [(11 * i) % 300 + 3 for i in range(64)],  # just a page
]
SEEDS = [1, 2, 3, 4, 5]
MAX_TOKENS = 14


@dataclass(frozen=True)
class Switches:
    """What the engine may do. `prefixes`: use kept pages of others; `together`: batch."""

    model: str
    kv: str
    prefixes: bool
    chunk: int
    together: bool
    threads: int
    preempt_every: int
    n: int

    def __str__(self) -> str:
        return (
            f"{self.model}-{self.kv}-{'kept' if self.prefixes else 'cold'}-chunk{self.chunk}-"
            f"{'together' if self.together else 'alone'}-threads{self.threads}-"
            f"preempt{self.preempt_every}-n{self.n}"
        )


def matrix() -> Iterator[Switches]:
    """Every combination for one model; for others, everything on."""
    axes = ((False, True), (24, 512), (False, True), (1, 2), (0, 7), (1, 3))
    for choice in itertools.product(*axes):
        yield Switches("llama", "f16", *choice)
    for model, kv in (("llama", "int8"), ("llama", "f32"), ("window", "f16"), ("window", "int8")):
        for chunk, threads in ((24, 1), (512, 2)):
            yield Switches(model, kv, True, chunk, True, threads, 7, 3)


ON = Switches("llama", "f16", True, 24, True, 1, 0, 3)


@cache
def loaded(model: str, kv: str, chunk: int, threads: int) -> LLM:
    return LLM(
        MODELS[model](),
        kv=kv,
        threads=threads,
        ctx_size=CONTEXT,
        prefill_chunk=chunk,
        n_sequences=8,
    )


@dataclass
class Found:
    """What a run gave: token ids by (request, choice), and logits by (request, choice, token)."""

    tokens: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    logits: dict[tuple[int, int, int], bytes] = field(default_factory=dict)
    n_cached: int = 0


@contextmanager
def recording(llm: LLM, requests: list[Request], found: Found) -> Iterator[None]:
    """Keep the logits that every token of the requests is drawn from."""
    model = llm._model
    sample = model.sample

    def recorded(step: Step, samplers: Any) -> Any:
        results = sample(step, samplers)
        owner = {id(s.sampler.native): (i, s) for i, r in enumerate(requests) for s in r.sequences}
        first_of = {}  # the choices of a prompt just computed come into being after the step
        for at, row in enumerate(step.logit_rows):
            piece = next(s for s in step.sequences if s.begin <= row < s.end)
            number, sequence = next((i, s) for i, s in owner.values() if s.cache is piece.cache)
            choice = sequence.index
            if id(samplers[at]) not in owner:
                first_of[number] = choice = first_of.get(number, 0) + 1
            key = (number, choice, piece.cache.n_tokens)
            assert key not in found.logits  # no token is drawn twice
            found.logits[key] = model.logits[at].tobytes()
        return results

    model.sample = recorded  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.sample


def run(switches: Switches) -> Found:
    """Answer the prompts twice (the second time they are known) and return what came out."""
    llm = loaded(switches.model, switches.kv, switches.chunk, switches.threads)
    engine = llm.engine
    llm.close()
    requests = []
    for i, prompt in enumerate(PROMPTS * 2):
        params = SamplingParams(
            max_tokens=MAX_TOKENS, n=switches.n, seed=SEEDS[i % len(SEEDS)], ignore_eos=True
        )
        request = llm.request(prompt, params)
        request.tenant = "" if switches.prefixes else str(i)
        requests.append(request)
    found = Found()
    engine._preempt_every = switches.preempt_every
    try:
        with recording(llm, requests, found):
            for request in requests:
                engine.submit(request)
                # Together: the next one arrives in the middle of the answers before it.
                for _ in range(3):
                    engine.step()
                if not switches.together:
                    finish(engine, request)
            for request in requests:
                finish(engine, request)
        engine.check_integrity()
        if switches.preempt_every:
            assert engine.stats.n_preemptions > 0
    finally:
        engine._preempt_every = 0
        for request in requests:
            engine.cancel(request)
        llm.close()
    for i, request in enumerate(requests):
        found.n_cached += request.n_cached
        for sequence in request.sequences:
            found.tokens[i, sequence.index] = sequence.output_ids
    return found


def finish(engine: Engine, request: Request) -> None:
    for _ in range(2000):
        if request.is_finished:
            return
        engine.step()
    raise AssertionError("the request does not end")


@cache
def reference_logits(model: str, kv: str, ids: tuple[int, ...]) -> np.ndarray:
    """The logits of every token, in one pass over pages of its own, by one thread."""
    return loaded(model, kv, 512, 1).logits(list(ids))


@cache
def reference_tokens(model: str, kv: str, i: int, n: int) -> list[list[int]]:
    """The choices of a request alone, cold, its prompt in one chunk."""
    llm = loaded(model, kv, 512, 1)
    llm.close()
    params = SamplingParams(max_tokens=MAX_TOKENS, n=n, seed=SEEDS[i], ignore_eos=True)
    return [choice.token_ids for choice in llm.generate(PROMPTS[i], params).outputs]


def differences(switches: Switches, found: Found) -> list[str]:
    """Say where tokens or logits are not those of the request alone."""
    wrong = []
    for (i, choice), ids in found.tokens.items():
        at = i % len(PROMPTS)
        if ids != reference_tokens(switches.model, switches.kv, at, switches.n)[choice]:
            wrong.append(f"tokens of choice {choice} of request {i}")
        prompt = PROMPTS[at]
        whole = reference_logits(switches.model, switches.kv, (*prompt, *ids))
        for n, _ in enumerate(ids, start=len(prompt)):
            if found.logits[i, choice, n] != whole[n - 1].tobytes():
                wrong.append(f"logits after {n} tokens of choice {choice} of request {i}")
    return wrong


@pytest.mark.parametrize("switches", list(matrix()), ids=str)
def test_no_optimisation_changes_a_bit(switches: Switches) -> None:
    found = run(switches)
    assert len(found.tokens) == 2 * len(PROMPTS) * switches.n
    assert len(found.logits) == len(found.tokens) * MAX_TOKENS
    assert (found.n_cached > 0) == switches.prefixes
    assert differences(switches, found) == []


# --- negative controls ------------------------------------------------------------------


def test_negative_control_a_chunk_that_loses_its_last_page_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    advance = Model._advance

    def losing(model: Model, step: Step) -> None:
        advance(model, step)
        for piece in step.sequences:
            if piece.end - piece.begin > 1:
                native = piece.cache.pool.native  # type: ignore[attr-defined]
                page = int(piece.cache.page_table[-1])  # type: ignore[attr-defined]
                native.write(page, bytes(native.page_nbytes))

    monkeypatch.setattr(Model, "_advance", losing)
    assert differences(ON, run(ON))


def test_negative_control_a_page_of_other_tokens_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefix cache that believes any page of the right place: the next tenant's, for example."""

    def take(self: PrefixCache, namespace: str, tokens: list[int], cache: Any) -> None:
        held = [block.page for block in self._blocks.values() if len(block.tokens) == PAGE_TOKENS]
        if held and len(tokens) > PAGE_TOKENS:
            cache.adopt(held[:1], PAGE_TOKENS)

    monkeypatch.setattr(PrefixCache, "take", take)
    assert differences(ON, run(ON))


def test_negative_control_namespaces_that_meet_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    apart = Switches("llama", "f16", False, 24, True, 1, 0, 1)
    assert run(apart).n_cached == 0
    monkeypatch.setattr("capax.engine.prefix_cache.root_key", lambda namespace: b"one for all")
    assert run(apart).n_cached > 0


def test_negative_control_a_choice_that_shares_the_page_it_writes_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the copy before the first write, choices overwrite each other's keys."""
    from capax.kv import PagedKVCache

    reserve = PagedKVCache.reserve

    def careless(self: PagedKVCache, n_new: int) -> None:
        last = self.n_tokens // PAGE_TOKENS
        before = int(self.page_table[last]) if self.n_tokens % PAGE_TOKENS else None
        reserve(self, n_new)
        if before is not None and int(self.page_table[last]) != before:
            self.replace_page(last, before)

    monkeypatch.setattr(PagedKVCache, "reserve", careless)
    assert differences(ON, run(ON))
