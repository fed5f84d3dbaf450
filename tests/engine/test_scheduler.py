"""The scheduler with a real tiny model: whatever the order, the tokens of each request alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from capax import LLM, SamplingParams
from capax.engine.engine import Engine
from capax.engine.sequence import Request
from capax.errors import CapacityError, CapaxError
from tests.models import gguf_model

CONTEXT = 256  # tokens; the pool of the stateful test has 4 pages of 64


def load(**options: Any) -> LLM:
    options = {"threads": 1, "ctx_size": CONTEXT, "prefill_chunk": 48, **options}
    return LLM(gguf_model("llama", encoding="Q8_0"), **options)


def engine_of(llm: LLM) -> Engine:
    return llm._engine


def request_of(llm: LLM, prompt: list[int], **params: Any) -> Request:
    return llm._request(prompt, SamplingParams(**params))


def drain(engine: Engine, *, at_most: int = 10_000) -> None:
    for _ in range(at_most):
        if engine.n_unfinished == 0:
            return
        engine.step()
    raise AssertionError(f"still unfinished after {at_most} steps")


def tokens_of(request: Request) -> list[list[int]]:
    return [s.output_ids for s in request.sequences]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return load(n_sequences=8)


@pytest.fixture(autouse=True)
def _accounted(llm: LLM) -> Iterator[None]:
    yield
    drain(engine_of(llm))
    engine_of(llm).check_integrity()
    llm.close()
    assert llm._pool.native.n_in_use == 0


# --- any order of events --------------------------------------------------------------

_PROMPTS = st.tuples(
    st.sampled_from([0, 1]),  # which stem: prompts share prefixes, so kept caches are used
    st.integers(1, 80),  # two choices of this and 40 tokens just fit the 4 pages
)
_STEMS = [[(7 * i + k) % 300 + 3 for i in range(120)] for k in (0, 5)]
_REQUESTS = st.tuples(_PROMPTS, st.integers(1, 40), st.integers(1, 2), st.integers(0, 3))

_alone: dict[Any, list[list[int]]] = {}  # what each request answers by itself, on a fresh engine


class Schedule(RuleBasedStateMachine):
    """Submit, step and cancel in any order; each answer is that of the request alone."""

    llm: LLM
    reference: LLM

    @initialize()
    def start(self) -> None:
        cls = type(self)
        if not hasattr(cls, "llm"):
            cls.llm = load()
            cls.reference = load()
        self.engine = engine_of(cls.llm)
        self.live: list[tuple[Any, Request]] = []

    @rule(spec=_REQUESTS)
    def submit(self, spec: Any) -> None:
        (stem, n_prompt), max_tokens, n, seed = spec
        request = request_of(
            self.llm, _STEMS[stem][:n_prompt], max_tokens=max_tokens, n=n, seed=seed
        )
        self.engine.submit(request)
        self.live.append((spec, request))

    @rule(n=st.integers(1, 20))
    def step(self, n: int) -> None:
        for _ in range(n):
            self.engine.step()

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 100))
    def cancel(self, which: int) -> None:
        _, request = self.live.pop(which % len(self.live))
        before = tokens_of(request)
        self.engine.cancel(request)
        assert tokens_of(request) == before

    @precondition(lambda self: any(r.sequences and r.is_finished for _, r in self.live))
    @rule()
    def check(self) -> None:
        for entry in [e for e in self.live if e[1].sequences and e[1].is_finished]:
            self.live.remove(entry)
            assert tokens_of(entry[1]) == self.alone(entry[0])

    @rule(n_tokens=st.integers(1, CONTEXT))
    def score_meanwhile(self, n_tokens: int) -> None:
        ids = (_STEMS[0] + _STEMS[1] + _STEMS[0])[:n_tokens]
        assert len(self.llm.score(ids).logprobs) == n_tokens

    @invariant()
    def pages_are_accounted(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check_integrity()

    def teardown(self) -> None:
        drain(self.engine)
        for spec, request in self.live:
            assert tokens_of(request) == self.alone(spec)
        self.engine.check_integrity()
        self.llm.close()
        assert self.llm._pool.native.n_in_use == 0

    def alone(self, spec: Any) -> list[list[int]]:
        if spec not in _alone:
            (stem, n_prompt), max_tokens, n, seed = spec
            params = SamplingParams(max_tokens=max_tokens, n=n, seed=seed)
            self.reference.close()  # cold
            answer = self.reference.generate(_STEMS[stem][:n_prompt], params)
            _alone[spec] = [choice.token_ids for choice in answer.outputs]
        return _alone[spec]


TestSchedule = Schedule.TestCase
TestSchedule.settings = settings(
    max_examples=60,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


# --- single claims ---------------------------------------------------------------------


def test_every_request_finishes_in_order_of_arrival_of_its_first_token(llm: LLM) -> None:
    """No starvation: among equal requests nobody's first token overtakes by a whole answer."""
    small = load()  # one context of pages: requests wait for each other
    engine = engine_of(small)
    requests = [request_of(small, [3 + i] * 100, max_tokens=20, ignore_eos=True) for i in range(12)]
    for request in requests:
        engine.submit(request)
    started: list[Request] = []
    while engine.n_unfinished:
        engine.step()
        started += [r for r in requests if r.sequences and r not in started]
        engine.check_integrity()
    assert started == requests
    assert all(len(r.sequences[0].output_ids) == 20 for r in requests)


def test_a_finished_choice_gets_no_more_tokens_while_others_go_on(llm: LLM) -> None:
    params = SamplingParams(max_tokens=40, n=4, seed=3, ignore_eos=True)
    whole = llm.generate([5, 6, 7, 8], params).outputs
    stop = whole[0].token_ids[3]
    stopping = SamplingParams(max_tokens=40, n=4, seed=3, ignore_eos=True, stop_token_ids=(stop,))
    stopped = llm.generate([5, 6, 7, 8], stopping).outputs
    for before, after in zip(whole, stopped, strict=True):
        ids = before.token_ids
        cut = ids.index(stop) + 1 if stop in ids else len(ids)
        assert after.token_ids == ids[:cut]
        assert after.finish_reason == ("stop" if cut < len(ids) or ids[-1] == stop else "length")
    assert len({len(choice.token_ids) for choice in stopped}) > 1


def test_more_choices_than_a_step_has_logit_rows_wait(llm: LLM) -> None:
    prompts = [[5, 6, 7 + i] for i in range(9)]
    params = SamplingParams(max_tokens=5, n=8, seed=1)
    together = llm.generate(prompts, params)
    for prompt, answer in zip(prompts, together, strict=True):
        alone = llm.generate(prompt, params)
        assert [c.token_ids for c in answer.outputs] == [c.token_ids for c in alone.outputs]


def test_a_request_that_can_never_fit_is_refused_with_its_numbers(llm: LLM) -> None:
    small = load()
    with pytest.raises(CapacityError, match=r"4 choices of 100 prompt tokens.* up to 150 .*"):
        small.generate([5] * 100, SamplingParams(max_tokens=150, n=4))
    engine_of(small).check_integrity()
    assert small._pool.native.n_in_use == 0
    assert engine_of(small).n_unfinished == 0


def test_requests_wait_while_the_pool_is_full(llm: LLM) -> None:
    small = load()
    engine = engine_of(small)
    first = request_of(small, [5] * 100, max_tokens=150, ignore_eos=True)
    second = request_of(small, [6] * 100, max_tokens=150, ignore_eos=True)
    engine.submit(first)
    engine.submit(second)
    while not (first.sequences and first.is_finished):
        engine.step()
        assert not second.sequences or first.is_finished
    drain(engine)
    assert len(second.sequences[0].output_ids) == 150
    assert second.started_s is not None
    assert first.finished_s is not None
    assert second.started_s >= first.finished_s


def test_scoring_waits_for_running_requests_instead_of_failing(llm: LLM) -> None:
    small = load()
    expected = small.score([9] * 200)
    pieces = small.stream([5] * 100, SamplingParams(max_tokens=100, seed=1, ignore_eos=True))
    got = next(pieces).token_ids
    assert small.score([9] * 200) == expected
    for piece in pieces:
        got += piece.token_ids
    small.close()
    again = small.generate([5] * 100, SamplingParams(max_tokens=100, seed=1, ignore_eos=True))
    assert got == again.token_ids


def test_a_failed_step_ends_its_requests_and_leaves_the_engine_usable(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(llm)
    expected = llm.generate([5, 6, 7], SamplingParams(max_tokens=8, seed=1)).token_ids
    for error in (CapaxError("broken"), MemoryError("none"), KeyboardInterrupt()):
        for name in ("sample", "_advance"):
            stream = llm.stream([9] * 90, SamplingParams(max_tokens=60, ignore_eos=True))
            for _ in range(3):
                next(stream)

            def fail(*_: Any, error: BaseException = error) -> Any:
                raise error

            with monkeypatch.context() as patched:
                patched.setattr(llm._model, name, fail)
                with pytest.raises(type(error)):
                    llm.generate([5, 6, 7], SamplingParams(max_tokens=8, seed=1, n=3))
            with pytest.raises(CapaxError):  # its step failed too: never a short answer
                list(stream)
            engine.check_integrity()
            assert engine.n_unfinished == 0
            again = llm.generate([5, 6, 7], SamplingParams(max_tokens=8, seed=1))
            assert again.token_ids == expected


def test_an_error_while_a_token_is_accepted_leaves_the_engine_usable(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = llm.generate([5, 6, 7], SamplingParams(max_tokens=8, seed=1)).token_ids

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("capax.engine.engine.sampled_of", interrupt)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([5, 6, 7], SamplingParams(max_tokens=8, seed=1, n=2))
    engine_of(llm).check_integrity()
    assert engine_of(llm).n_unfinished == 0
    assert llm.generate([5, 6, 7], SamplingParams(max_tokens=8, seed=1)).token_ids == expected


def test_cancelling_in_the_middle_of_a_step_takes_effect_after_it(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generator's finaliser may run anywhere, also in the thread that holds the lock."""
    engine = engine_of(llm)
    stream = llm.stream([9] * 30, SamplingParams(max_tokens=100, ignore_eos=True))
    next(stream)
    sample = type(llm._model).sample

    def closing(model: Any, *arguments: Any) -> Any:
        stream.close()  # type: ignore[attr-defined]
        return sample(model, *arguments)

    expected = llm.generate([5, 6, 7], SamplingParams(max_tokens=6, seed=1)).token_ids
    with monkeypatch.context() as patched:
        patched.setattr(type(llm._model), "sample", closing)
        done: list[list[int]] = []
        worker = threading.Thread(
            target=lambda: done.append(
                llm.generate([5, 6, 7], SamplingParams(max_tokens=6, seed=1)).token_ids
            ),
            daemon=True,
        )
        worker.start()
        worker.join(timeout=30)
    assert done == [expected]
    assert engine.n_unfinished == 0
    engine.check_integrity()


def test_negative_control_a_leaked_page_is_seen(llm: LLM) -> None:
    page = llm._pool.native.allocate()
    with pytest.raises(RuntimeError, match="KV pages are in use"):
        engine_of(llm).check_integrity()
    llm._pool.native.release(page)
