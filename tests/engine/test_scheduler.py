"""The scheduler with a real tiny model: whatever the order, the tokens of each request alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from capax import LLM, SamplingParams
from capax.engine.engine import Engine
from capax.engine.scheduler import WaitingRequests
from capax.engine.sequence import Request
from capax.errors import CapacityError, CapaxError
from tests.models import gguf_model

LONG = SamplingParams(max_tokens=150, ignore_eos=True)
CONTEXT = 256  # tokens; the pool of the stateful test has 4 pages of 64


def load(**options: Any) -> LLM:
    options = {"threads": 1, "ctx_size": CONTEXT, "prefill_chunk": 48, **options}
    return LLM(gguf_model("llama", encoding="Q8_0"), **options)


def engine_of(llm: LLM) -> Engine:
    return llm.engine


def request_of(llm: LLM, prompt: list[int], **params: Any) -> Request:
    return llm.request(prompt, SamplingParams(**params))


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
    assert llm._store.native.n_in_use == 0


# --- any order of events --------------------------------------------------------------

_PROMPTS = st.tuples(
    st.sampled_from([0, 1]),  # which stem: prompts share prefixes, so kept caches are used
    st.integers(1, 80),  # two choices of this and 40 tokens just fit the 4 pages
)
_STEMS = [[(7 * i + k) % 300 + 3 for i in range(120)] for k in (0, 5)]
_REQUESTS = st.tuples(_PROMPTS, st.integers(1, 40), st.integers(1, 2), st.integers(0, 3))
_CALLERS = st.tuples(st.sampled_from(["", "a", "b"]), st.integers(0, 2))  # tenant, priority

_alone: dict[Any, list[list[int]]] = {}  # what each request answers by itself, on a fresh engine


class Schedule(RuleBasedStateMachine):
    """Submit, step, cancel and give way in any order; each answer is that of the request alone."""

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

    @rule(spec=_REQUESTS, caller=_CALLERS)
    def submit(self, spec: Any, caller: tuple[str, int]) -> None:
        (stem, n_prompt), max_tokens, n, seed = spec
        request = request_of(
            self.llm, _STEMS[stem][:n_prompt], max_tokens=max_tokens, n=n, seed=seed
        )
        request.tenant, request.priority = caller
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

    @precondition(lambda self: self.engine._scheduler.running)
    @rule(which=st.integers(0, 100))
    def give_way(self, which: int) -> None:
        """Any running request loses its pages, not only the one that should."""
        with self.engine.exclusive():
            running = self.engine._scheduler.running
            self.engine._scheduler.preempt(running[which % len(running)])

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 100), n=st.integers(1, 9))
    def read_slowly(self, which: int, n: int) -> None:
        """A request is paused until its news is fetched."""
        _, request = self.live[which % len(self.live)]
        request.max_events = n

    @precondition(lambda self: self.live)
    @rule()
    def fetch(self) -> None:
        for _, request in self.live:
            request.events.clear()

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
        for _, request in self.live:
            request.max_events = None
        drain(self.engine)
        for spec, request in self.live:
            assert tokens_of(request) == self.alone(spec)
        self.engine.check_integrity()
        self.llm.close()
        assert self.llm._store.native.n_in_use == 0

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


# --- turns ------------------------------------------------------------------------------

_ARRIVALS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 1)), min_size=1, max_size=30)


def waiting_request(tenant: str, priority: int) -> Request:
    request = Request([1], SamplingParams(), 1, None)  # type: ignore[arg-type]
    request.tenant, request.priority = tenant, priority
    return request


@given(_ARRIVALS, st.lists(st.booleans(), max_size=40))
def test_nobody_waits_for_more_than_its_turn(
    arrivals: list[tuple[str, int]], pops: list[bool]
) -> None:
    """Between arrival and turn, another tenant of the priority has at most one turn for each of
    one's own requests before it, and one more; whatever arrives in between."""
    waiting = WaitingRequests()
    turns: list[Request] = []
    arrived: dict[Request, tuple[int, int]] = {}  # turns taken before it; own requests up to it

    def pop() -> None:
        best = min(r.priority for r in waiting)
        turns.append(waiting.pop())
        assert turns[-1].priority == best

    for i, caller in enumerate(arrivals):
        request = waiting_request(*caller)
        waiting.append(request)
        own = sum((r.tenant, r.priority) == caller for r in waiting)
        arrived[request] = (len(turns), own)
        if i < len(pops) and pops[i]:
            pop()
    while waiting:
        pop()
    assert len(turns) == len(set(turns)) == len(arrivals)
    for request, (before, own) in arrived.items():
        between = turns[before : turns.index(request)]
        same = [r.tenant for r in between if r.priority == request.priority]
        assert all(same.count(other) <= own for other in "abc" if other != request.tenant)
        assert same.count(request.tenant) == own - 1


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
    assert small._store.native.n_in_use == 0
    assert engine_of(small).n_unfinished == 0


def test_the_younger_request_gives_way_when_the_pool_is_full(llm: LLM) -> None:
    expected = [llm.generate([i] * 60, LONG).token_ids for i in (5, 6)]
    small = load()  # four pages of 64 tokens, and each of the two comes to need four
    engine = engine_of(small)
    first, second = (request_of(small, [i] * 60, max_tokens=150, ignore_eos=True) for i in (5, 6))
    engine.submit(first)
    engine.submit(second)
    while not first.is_finished:
        engine.step()
        engine.check_integrity()
    assert engine.stats.n_preemptions > 0
    assert not second.is_finished
    assert second.sequences[0].sampled  # it had begun, and keeps what it has said
    drain(engine)
    assert [tokens_of(r)[0] for r in (first, second)] == expected


def test_a_request_that_has_to_wait_again_keeps_its_place(llm: LLM) -> None:
    small = load()
    engine = engine_of(small)
    requests = [request_of(small, [5 + i] * 100, max_tokens=100, ignore_eos=True) for i in range(4)]
    for request in requests:
        engine.submit(request)
    drain(engine)
    finished = [r.finished_s for r in requests]
    assert finished == sorted(finished)  # type: ignore[type-var]


def test_priorities_go_first_and_tenants_take_turns(llm: LLM) -> None:
    small = load()
    engine = engine_of(small)
    order = []
    for tenant, priority in [("a", 1), ("a", 1), ("a", 1), ("b", 1), ("b", 1), ("c", 0), ("c", 2)]:
        request = request_of(small, [5] * 100, max_tokens=140, ignore_eos=True)
        request.tenant, request.priority = tenant, priority
        engine.submit(request)
        order.append(request)
    drain(engine)
    begun = sorted(range(len(order)), key=lambda i: order[i].started_s or 0.0)
    assert begun == [5, 0, 3, 1, 4, 2, 6]


def test_a_long_prompt_does_not_stop_those_who_decode(llm: LLM) -> None:
    engine = engine_of(llm)
    talkers = [request_of(llm, [5 + i] * 9, max_tokens=60, ignore_eos=True) for i in range(3)]
    for request in talkers:
        engine.submit(request)
    engine.step()
    long = request_of(llm, [9] * 200, max_tokens=3)
    engine.submit(long)
    taken = []
    while not long.sequences or not long.sequences[0].sampled:
        before = [len(r.sequences[0].sampled) for r in talkers]
        held = long.sequences[0].cache.n_tokens if long.sequences else 0
        engine.step()
        assert [len(r.sequences[0].sampled) for r in talkers] == [n + 1 for n in before]
        taken.append(long.sequences[0].cache.n_tokens - held)
    assert taken[0] == 16 + 2 * 3
    assert taken[:-1] == sorted(taken[:-1], reverse=True)  # fewer, the more keys each attends to
    assert min(taken) < taken[0]
    drain(engine)


def test_more_decoding_sequences_than_a_chunk_leave_room_for_prompts() -> None:
    wide = load(n_sequences=2, parallel=40, prefill_chunk=8)
    assert wide.plan.prefill_chunk == 80
    answers = wide.generate([[5 + i] for i in range(60)], SamplingParams(max_tokens=4, seed=1))
    alone = load().generate([5 + 59], SamplingParams(max_tokens=4, seed=1))
    assert answers[59].token_ids == alone.token_ids


def test_a_paused_request_lets_the_others_go_on(llm: LLM) -> None:
    engine = engine_of(llm)
    slow = request_of(llm, [5, 6], max_tokens=30, ignore_eos=True)
    slow.max_events = 4
    quick = request_of(llm, [5, 7], max_tokens=30, ignore_eos=True)
    for request in (slow, quick):
        engine.submit(request)
    while not quick.is_finished:
        engine.step()
    assert len(slow.events) == 4
    assert engine.step() == []
    slow.events.clear()
    assert engine.step() == [slow]
    slow.max_events = None
    drain(engine)
    assert tokens_of(slow)[0] == llm.generate([5, 6], LONG).token_ids[:30]


def test_a_paused_request_does_not_hold_up_a_direct_pass(llm: LLM) -> None:
    small = load()
    slow = request_of(small, [5] * 100, max_tokens=60, ignore_eos=True)
    slow.max_events = 4
    engine_of(small).submit(slow)
    while not slow.is_paused:
        engine_of(small).step()
    assert small.score([9] * 200) == llm.score([9] * 200)
    assert engine_of(small).stats.n_preemptions == 1
    slow.max_events = None
    drain(engine_of(small))
    assert tokens_of(slow)[0] == llm.generate([5] * 100, LONG).token_ids[:60]


def test_a_namespace_sees_no_pages_of_another(llm: LLM) -> None:
    llm.close()
    engine = engine_of(llm)

    def cached(tenant: str) -> int:
        request = request_of(llm, [5] * 150, max_tokens=2)
        request.tenant = tenant
        engine.submit(request)
        drain(engine)
        return request.n_cached

    assert [cached(t) for t in ("a", "b", "a", "b", "ab", "")] == [0, 0, 149, 149, 0, 0]


def test_no_more_choices_run_at_once_than_allowed() -> None:
    narrow = load(n_sequences=8, parallel=3)
    engine = engine_of(narrow)
    requests = [request_of(narrow, [5 + i], max_tokens=6, n=1 + i % 2) for i in range(8)]
    for request in requests:
        engine.submit(request)
    while engine.n_unfinished:
        engine.step()
        running = [r for r in requests if r.sequences and not r.is_finished]
        assert sum(r.params.n for r in running) <= 3
    with pytest.raises(CapacityError, match="n is 4 but at most 3 choices run at once"):
        narrow.generate([5], SamplingParams(n=4, max_tokens=1))


def test_requests_with_one_prompt_come_to_share_its_pages(llm: LLM) -> None:
    llm.close()
    engine = engine_of(llm)
    requests = [request_of(llm, [5] * 150, max_tokens=40, ignore_eos=True) for _ in range(4)]
    for request in requests:
        engine.submit(request)
    while not all(r.sequences and r.sequences[0].sampled for r in requests):
        engine.step()
    tables = [r.sequences[0].cache.page_table[:2].tolist() for r in requests]
    assert all(table == tables[0] for table in tables)
    drain(engine)


def test_a_prompt_is_computed_once_for_all_choices(llm: LLM) -> None:
    llm.close()
    before = engine_of(llm).stats.prompt_tokens
    llm.generate([7] * 150, SamplingParams(n=8, max_tokens=5))
    assert engine_of(llm).stats.prompt_tokens - before == 150


def test_scored_prompts_of_several_requests_share_steps(llm: LLM) -> None:
    prompts = [[3 + i, 9, 200, 7 + i] * n for i, n in enumerate((1, 5, 12, 30))]
    expected = [llm.score(p).logprobs for p in prompts]
    llm.close()
    params = SamplingParams(max_tokens=1, prompt_logprobs=2)
    steps = engine_of(llm).stats.n_steps
    outputs = llm.generate(prompts, params)
    assert engine_of(llm).stats.n_steps - steps < 10
    for prompt, logprobs, output in zip(prompts, expected, outputs, strict=True):
        assert output.prompt_logprobs is not None
        assert output.prompt_logprobs[0] is None
        for token, logprob, position in zip(
            prompt[1:], logprobs[1:], output.prompt_logprobs[1:], strict=True
        ):
            assert position is not None
            assert position[token].logprob == logprob
            assert len(position) in (2, 3)


@pytest.mark.parametrize("every", ["3", "7"])
def test_forced_preemption_changes_nothing(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, every: str
) -> None:
    prompts = [[5] * 100, [5] * 70 + [6] * 30, [9], [11] * 64]
    params = SamplingParams(max_tokens=30, n=2, seed=4, prompt_logprobs=1, logprobs=1)
    expected = [llm.generate(p, params) for p in prompts]
    monkeypatch.setenv("CAPAX_TEST_PREEMPT_EVERY", every)
    forced = load(n_sequences=8)
    outputs = forced.generate(prompts, params)
    assert engine_of(forced).stats.n_preemptions > 5
    engine_of(forced).check_integrity()
    for one, other in zip(expected, outputs, strict=True):
        assert one.outputs == other.outputs
        assert one.prompt_logprobs == other.prompt_logprobs


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
    page = llm._store.native.allocate()
    with pytest.raises(RuntimeError, match="KV pages are in use"):
        engine_of(llm).check_integrity()
    llm._store.native.release(page)


def test_negative_control_a_page_given_back_twice_is_seen(llm: LLM) -> None:
    stream = llm.stream([5] * 100, SamplingParams(max_tokens=9, ignore_eos=True))
    next(stream)
    (request,) = engine_of(llm)._scheduler.running
    page = int(request.sequences[0].cache.page_table[-1])
    llm._store.native.release(page)
    with pytest.raises(RuntimeError, match="are held"):
        engine_of(llm).check_integrity()
    assert llm._store.native.allocate() == page  # put it right again
    stream.close()  # type: ignore[attr-defined]


def test_negative_control_a_wrong_count_is_seen(llm: LLM) -> None:
    llm.generate([5] * 100, SamplingParams(max_tokens=2))
    page = next(iter(engine_of(llm)._prefixes.pages()))
    llm._store.native.retain(page)
    with pytest.raises(RuntimeError, match="counts 2 references, 1 are held"):
        engine_of(llm).check_integrity()
    llm._store.native.release(page)


def test_news_of_a_step_is_seen_only_when_the_step_is_over(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader in another thread never takes a half-settled request for a finished one."""
    engine = engine_of(llm)
    request = request_of(llm, [5, 6], max_tokens=5, n=3, ignore_eos=True)
    release = engine._scheduler.release
    seen: list[tuple[int, bool, int]] = []

    def watched(sequence: Any) -> None:
        seen.append((len(request.events), request.is_finished, engine.stats.generation_tokens))
        release(sequence)

    monkeypatch.setattr(engine._scheduler, "release", watched)
    before = engine.stats.generation_tokens
    engine.submit(request)
    drain(engine)
    assert set(seen) == {
        (4 * 3, False, before + 4 * 3)
    }  # within the last step: as after the fourth
    assert len(request.events) == 5 * 3
    assert [event.is_last for event in request.events] == [False] * 14 + [True]
    assert engine.stats.generation_tokens == before + 5 * 3
