"""The engine: requests in, one forward pass after another, news of their answers out.

The scheduler says what a step computes; the engine runs it, gives every sequence its token and puts
the news into each request's events. Logits do not depend on what else is in a step, on how a
prompt is cut into steps, or on where its pages come from, so neither do tokens.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from capax import _native
from capax.decoding.sampling import sampled_of, score_rows
from capax.engine import lifetime
from capax.engine.prefix_cache import PrefixCache
from capax.engine.scheduler import Scheduler, Work
from capax.engine.sequence import Event, Request, Sequence
from capax.errors import CapacityError, CapaxError
from capax.files.config import ModelConfig
from capax.kv import KVCache, KVStore, SharedPagesCache
from capax.models import Model, SequenceSlice, Step
from capax.settings import preempt_every

STOP_TIMEOUT_S = 5.0  # longer than any step should take; exiting anyway beats hanging
FLOAT_COST = 2.5  # of a multiply-add in attention, in those of the matrices (measured)
COUNT_EVERY_S = 0.05  # at most so often are pages counted for `stats`


@dataclass(frozen=True, slots=True)
class EngineStats:
    """One snapshot. Pages `used` are held by requests, `cached` ones only kept for reuse.

    `n_running`, `n_waiting`: requests. Totals since the start: `prefix_query_tokens` of prompts
    that began, `prefix_hit_tokens` of them that were known, `prompt_tokens` computed,
    `generation_tokens` sampled.
    """

    n_running: int = 0
    n_waiting: int = 0
    kv_pages_used: int = 0
    kv_pages_cached: int = 0
    kv_pages_total: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    n_preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    n_steps: int = 0
    last_step_s: float = 0.0


class Engine:
    """Runs requests over one model, at most `parallel` choices at once.

    Every method may be called from any thread.
    """

    def __init__(self, model: Model, store: KVStore, parallel: int) -> None:
        self._model = model
        self._store = store
        self._parallel = parallel
        # Guards everything below but the two queues of requests, whose ends are atomic.
        self._lock = threading.Lock()
        self._pages_freed = threading.Condition(self._lock)
        self._is_stopped = False
        self._arrived: deque[Request] = deque()
        self._cancelled: deque[Request] = deque()
        self._prefixes = PrefixCache(store)
        self._scheduler = Scheduler(
            store,
            self._prefixes,
            max_tokens=model.max_tokens,
            max_sequences=parallel,
            keys_per_token=keys_per_token(model.config),
        )
        self._made: list[Event] = []  # by the step that runs
        self._direct: list[KVCache] = []
        self._n_direct_waiting = 0
        self._stats = EngineStats(kv_pages_total=store.capacity)
        self._counted_s = 0.0
        self._n_steps = self._n_prompt = self._n_generated = 0
        self._preempt_every = preempt_every()
        self._n_turns = 0
        lifetime.watch(self)

    # --- requests -----------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queue a request; never waits. Raises CapacityError if the cache could never hold it."""
        needed = self._pages_needed(request)
        if needed > self._store.capacity:
            raise CapacityError(
                f"{request.params.n} choices of {len(request.prompt_ids)} prompt tokens and up to "
                f"{request.max_tokens} new ones need {needed} KV pages of "
                f"{self._store.page_tokens} tokens but the budget holds {self._store.capacity}; "
                "lower n or max_tokens, or raise the memory budget"
            )
        if request.params.n > self._parallel:
            raise CapacityError(
                f"n is {request.params.n} but at most {self._parallel} choices run at once; "
                "lower n, or raise parallel"
            )
        self._arrived.append(request)

    def cancel(self, request: Request) -> None:
        """End a request wherever it is and give its memory back.

        Never waits, as a generator's finaliser may call it in the middle of a step: then it
        takes effect at the end of that step.
        """
        self._cancelled.append(request)
        self._sweep()

    def step(self) -> list[Request]:
        """Run one forward pass and sample; returns the requests that have news.

        If it fails, every running request is ended with the error, which is also raised here.
        Waits a moment if nothing can run until another thread's direct pass is over.
        """
        self._check_open()
        with self._lock:
            started = time.perf_counter()
            try:
                self._take_in()
                if not self._n_direct_waiting:
                    self._scheduler.admit()
                self._preempt_for_tests()
                work = self._scheduler.schedule()
                news = self._run(work) if work else []
                if not work and self._scheduler.waiting and self._direct:
                    self._pages_freed.wait(timeout=0.1)
            except BaseException as error:
                for request in list(self._scheduler.running):
                    request.error = error
                    self._end(request)
                raise
            else:
                self._count(time.perf_counter() - started if work else None)
            finally:
                self._publish()
        self._sweep()
        return news

    @property
    def has_work(self) -> bool:
        """Whether a request is waiting or running; a guess while another thread runs a step."""
        scheduler = self._scheduler
        return bool(self._arrived or self._cancelled or scheduler.running or scheduler.waiting)

    @property
    def n_waiting(self) -> int:
        """Requests that have not begun; a guess while another thread runs a step."""
        return len(self._arrived) + len(self._scheduler.waiting)

    @property
    def n_unfinished(self) -> int:
        """Requests waiting or running."""
        self._sweep()
        with self._lock:
            self._take_in()
            return len(self._scheduler.waiting) + len(self._scheduler.running)

    @property
    def stats(self) -> EngineStats:
        """The latest snapshot, and who waits now; never waits itself."""
        return replace(self._stats, n_waiting=self.n_waiting)

    # --- passes outside of steps ----------------------------------------------------------

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the model for a pass outside `step`."""
        self._check_open()
        with self._lock:
            yield
        self._sweep()

    @contextmanager
    def direct_cache(self, n_tokens: int) -> Iterator[KVCache]:
        """An empty cache for passes outside `step`, with room for `n_tokens`.

        Runs and waits for what runs before it until there is. Raises CapacityError if there
        never will be.
        """
        needed = self._store.pages_for(n_tokens)
        if needed > self._store.capacity:
            raise CapacityError(
                f"{n_tokens} tokens need {needed} KV pages of {self._store.page_tokens} tokens but "
                f"the budget holds {self._store.capacity}; raise the memory budget"
            )
        cache = self._store.new()
        self._set_aside(n_tokens, cache)
        try:
            yield cache
        finally:
            with self._lock:
                self._direct.remove(cache)
                cache.close()
                self._pages_freed.notify_all()

    def _set_aside(self, n_tokens: int, cache: KVCache) -> None:
        with self._lock:
            self._n_direct_waiting += 1  # from here on nothing new is admitted
        try:
            while True:
                self._check_open()
                with self._lock:
                    self._end_cancelled()
                    missing = self._store.pages_for(n_tokens) - self._store.n_free
                    if missing <= 0 or self._prefixes.evict(missing) >= missing:
                        cache.reserve(n_tokens)
                        self._direct.append(cache)
                        return
                    if self._scheduler.preempt_paused():  # it might hold its pages for long
                        self._count(None)
                        continue
                    if not self._scheduler.running:  # other direct passes
                        self._pages_freed.wait(timeout=0.1)
                self.step()
        finally:
            with self._lock:
                self._n_direct_waiting -= 1

    def forget(self) -> None:
        """Drop every kept page and give free memory back to the system."""
        self._sweep()
        with self._lock:
            self._prefixes.clear()
            self._store.trim()
            self._count(None, now=True)

    def check_integrity(self) -> None:
        """Raise RuntimeError if pages and those who hold them do not account for each other."""
        self._sweep()
        with self._lock:
            if not self._store.check_integrity():
                raise RuntimeError("free and used pages of the KV cache do not add up")
            pool = self._store.shared_pages
            if pool is None:
                return
            held = Counter(
                int(page)
                for cache in self._caches()
                if isinstance(cache, SharedPagesCache)
                for page in cache.page_table
            )
            held.update(self._prefixes.pages())
            if len(held) != pool.n_in_use:
                raise RuntimeError(f"{pool.n_in_use} KV pages are in use, {len(held)} are held")
            for page, n in held.items():
                if pool.references(page) != n:
                    raise RuntimeError(
                        f"KV page {page} counts {pool.references(page)} references, {n} are held"
                    )

    def _caches(self) -> Iterator[KVCache]:
        yield from self._direct
        for request in [*self._scheduler.running, *self._scheduler.waiting]:
            for sequence in request.sequences:
                yield sequence.cache

    # --- its lock, and what else may hold it ----------------------------------------------

    # `with self._lock` and nothing cleverer: an interrupt between a generator's acquiring and
    # its caller's `try` would leave the lock held for ever.

    def _sweep(self) -> None:
        """End the requests that were cancelled while somebody held the lock."""
        while self._cancelled and self._lock.acquire(blocking=False):
            try:
                self._end_cancelled()
                self._count(None)
            finally:
                self._lock.release()

    def _take_in(self) -> None:
        while self._arrived:
            self._scheduler.waiting.append(self._arrived.popleft())
        self._end_cancelled()

    def _end_cancelled(self) -> None:
        while self._cancelled:
            request = self._cancelled.popleft()
            if request in self._arrived:
                self._arrived.remove(request)
            self._scheduler.waiting.remove(request)
            self._end(request)

    def pause(self) -> None:
        """Wait for the step that is running and let no other begin until `resume`."""
        self._lock.acquire()

    def resume(self) -> None:
        self._lock.release()

    def stop(self) -> None:
        """Let no step begin any more; threads that want one wait for ever."""
        self._is_stopped = True
        self._lock.acquire(timeout=STOP_TIMEOUT_S)

    def _check_open(self) -> None:
        if self._is_stopped and threading.current_thread() is threading.main_thread():
            raise CapaxError("the interpreter is exiting: the engine takes no more work")

    # --- one step -------------------------------------------------------------------------

    def _run(self, work: list[Work]) -> list[Request]:
        slices: list[SequenceSlice] = []
        tokens: list[int] = []
        logit_rows: list[int] = []
        ready: list[list[Sequence]] = []  # the choices that each sampled row is for
        scored: list[tuple[Request, list[int], list[int]]] = []  # request, rows, their targets
        for sequence, n_new in ((w.sequence, w.n_new) for w in work):
            begin, cached = len(tokens), sequence.cache.n_tokens
            tokens += sequence.tokens[cached : cached + n_new]
            slices.append(SequenceSlice(sequence.cache, begin, len(tokens)))
            if sequence.request.needs_scores:
                scored.append(_rows_to_score(sequence, begin, n_new))
            if cached + n_new == len(sequence.tokens):
                choices = self._choices(sequence)
                ready.append(choices)
                logit_rows += [len(tokens) - 1] * len(choices)
            if not sequence.sampled:
                self._n_prompt += n_new
        step = Step(np.array(tokens, np.int32), slices, np.array(logit_rows, np.int32))
        samplers = [choice.sampler.native for choices in ready for choice in choices]
        results = self._compute(step, samplers, scored)
        return self._accept(ready, results)

    def _choices(self, sequence: Sequence) -> list[Sequence]:
        """Return the choices whose next token comes from a sequence's last row: all, at first."""
        request = sequence.request
        if len(request.sequences) == request.params.n:
            return [sequence]
        others = [
            Sequence(request, index, self._store.new()) for index in range(1, request.params.n)
        ]
        return [sequence, *others]

    def _compute(
        self,
        step: Step,
        samplers: list[_native.Sampler],
        scored: list[tuple[Request, list[int], list[int]]],
    ) -> list[_native.SampleResult]:
        if not scored:
            return self._model.sample(step, samplers)
        rows = np.array([row for _, some, _ in scored for row in some], np.int32)
        targets = np.array([token for _, _, some in scored for token in some], np.int32)
        owners = [request for request, some, _ in scored for _ in some]

        def visit(first: int, logits: npt.NDArray[np.float32]) -> None:
            begin = first
            while begin < first + len(logits):  # a stretch of one request at a time
                request, end = owners[begin], begin
                while end < first + len(logits) and owners[end] is request:
                    end += 1
                n_top = request.params.prompt_logprobs or 0
                part = logits[begin - first : end - first]
                request.prompt_scores.append(score_rows(part, targets[begin:end], n_top))
                request.n_scored += end - begin
                begin = end

        return self._model.sample_scoring(step, samplers, rows, visit)

    def _accept(
        self, ready: list[list[Sequence]], results: list[_native.SampleResult]
    ) -> list[Request]:
        now = time.perf_counter()
        news: dict[Request, None] = {}
        at = 0
        for choices in ready:
            first, *others = choices
            request = first.request
            request.first_token_s = request.first_token_s or now
            if not first.sampled and results[at][0] == "ok":
                self._scheduler.keep_prompt(first)
            for other in others:
                other.cache = first.cache.fork()
                other.is_prefill_begun = True
                request.sequences.append(other)
            for sequence, result in zip(choices, results[at : at + len(choices)], strict=True):
                self._take_token(sequence, result)
            at += len(choices)
            if request.has_ended and request.error is None:
                request.finished_s = time.perf_counter()
                self._scheduler.retire(request)
                self._made[-1] = self._made[-1]._replace(is_last=True)
            news[request] = None
        self._n_generated += len(results)
        return list(news)

    def _take_token(self, sequence: Sequence, result: _native.SampleResult) -> None:
        request = sequence.request
        if request.error is not None:
            return
        try:
            sampled = sampled_of(result)
            text = "" if sampled is None else sequence.accept(sampled)
        except CapaxError as error:  # of this request's constraint: nobody else's business
            request.error = error
            request.events.clear()
            self._end(request)
            return
        if sampled is None:
            sequence.fail()
        self._made.append(Event(sequence, sampled, text, sequence.finish_reason))
        if sequence.finish_reason is not None:
            self._scheduler.release(sequence)

    def _publish(self) -> None:
        """Hand out the events of a step when it is over: who reads one finds all else settled."""
        for event in self._made:
            request = event.sequence.request
            if request.error is None or event.is_last:
                request.events.append(event)
            if event.is_last:
                request.is_done = True
        self._made.clear()

    def _end(self, request: Request) -> None:
        """End what is left of a request and take it off the engine."""
        request.is_over = True
        for sequence in request.sequences:
            sequence.cancel()
        self._scheduler.retire(request)

    def _preempt_for_tests(self) -> None:
        running = self._scheduler.running
        self._n_turns += 1
        if self._preempt_every and running and self._n_turns % self._preempt_every == 0:
            self._scheduler.preempt(running[-1])

    def _pages_needed(self, request: Request) -> int:
        """The pages a request may come to need, shared prompt pages counted once."""
        n_prompt, n = len(request.prompt_ids), request.params.n
        whole = self._store.pages_for(n_prompt + request.max_tokens)
        shared = n_prompt // self._store.page_tokens if self._store.shared_pages else 0
        return whole + (n - 1) * (whole - shared)

    def _count(self, step_s: float | None, *, now: bool = False) -> None:
        """Take a snapshot for `stats`; pages are counted only every now and then."""
        if step_s is not None:
            self._n_steps += 1
        moment = time.perf_counter()
        scheduler, last = self._scheduler, self._stats
        used, cached = last.kv_pages_used, last.kv_pages_cached
        if now or moment - self._counted_s > COUNT_EVERY_S or not scheduler.running:
            self._counted_s = moment
            cached = self._prefixes.n_evictable
            used = self._store.capacity - self._store.n_free - cached
        self._stats = EngineStats(
            n_running=len(scheduler.running),
            kv_pages_used=used,
            kv_pages_cached=cached,
            kv_pages_total=self._store.capacity,
            prefix_query_tokens=scheduler.n_prompt_tokens,
            prefix_hit_tokens=scheduler.n_hit_tokens,
            n_preemptions=scheduler.n_preemptions,
            prompt_tokens=self._n_prompt,
            generation_tokens=self._n_generated,
            n_steps=self._n_steps,
            last_step_s=last.last_step_s if step_s is None else step_s,
        )


def keys_per_token(config: ModelConfig) -> float:
    """Return how many keys a token attends to in the time that all else about it takes.

    Multiply-adds of a layer's matrices over those for one key, which are floating-point ones.
    """
    c = config
    matrices = 2 * c.d_model * (c.d_q + c.d_kv) + 3 * c.d_model * c.d_ffn
    return matrices / (2 * c.d_q) / FLOAT_COST


def _rows_to_score(
    sequence: Sequence, begin: int, n_new: int
) -> tuple[Request, list[int], list[int]]:
    """Return which rows of a step score prompt tokens, and which tokens."""
    request = sequence.request
    cached = sequence.cache.n_tokens
    first = max(cached, request.n_scored)  # tokens scored before a wait are not scored again
    last = min(cached + n_new, len(request.prompt_ids) - 1)
    rows = list(range(begin + first - cached, begin + last - cached))
    return request, rows, request.prompt_ids[first + 1 : last + 1]
