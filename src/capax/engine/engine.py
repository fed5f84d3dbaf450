"""From requests to steps: which sequences get how many tokens of the next forward pass.

A step is a ragged batch of at most `max_tokens` tokens: first one token for each decoding
sequence, then prompt tokens of prefilling ones, oldest first. A request is admitted when the
pages it may need at most are free, so a running sequence never runs out of memory. Logits do
not depend on what else is in a step, so neither do tokens.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from capax import _native
from capax.decoding.sampling import sampled_of
from capax.engine import lifetime
from capax.engine.prefix import KeptPrefix
from capax.engine.sequence import Event, Request, Sequence
from capax.errors import CapacityError, CapaxError
from capax.files.tokenizer import Tokenizer
from capax.kv import PAGE_TOKENS, PagedKVCache, PagePool, pages_for
from capax.models import Model, SequenceSlice, Step

STOP_TIMEOUT_S = 5.0  # longer than any step should take; exiting anyway beats hanging


class Engine:
    """Runs requests over one model. Every method may be called from any thread."""

    def __init__(self, model: Model, pool: PagePool, tokenizer: Tokenizer) -> None:
        self._model = model
        self._pool = pool
        self._tokenizer = tokenizer
        # Guards everything below but the two queues of requests, whose ends are atomic.
        self._lock = threading.Lock()
        self._pages_freed = threading.Condition(self._lock)
        self._is_stopped = False
        self._waiting: deque[Request] = deque()
        self._cancelled: deque[Request] = deque()
        self._running: list[Sequence] = []
        self._direct: list[tuple[PagedKVCache, int]] = []  # with the pages set aside for each
        self._n_direct_waiting = 0
        self._kept = KeptPrefix()
        lifetime.watch(self)

    def submit(self, request: Request) -> None:
        """Queue a request. Raises CapacityError if the cache could never hold it."""
        needed = self._pages_needed(request)
        if needed > self._pool.native.capacity:
            raise CapacityError(
                f"{request.params.n} choices of {len(request.prompt_ids)} prompt tokens and up to "
                f"{request.max_tokens} new ones need {needed} KV pages of {PAGE_TOKENS} tokens "
                f"but the budget holds {self._pool.native.capacity}; "
                "lower n or max_tokens, or raise the memory budget"
            )
        if request.params.n > self._model.max_logit_rows:
            raise CapacityError(
                f"n is {request.params.n} but a step has room for the logits of "
                f"{self._model.max_logit_rows} choices; lower n"
            )
        self._waiting.append(request)

    def step(self) -> None:
        """Run one forward pass and sample; what happened is appended to each request's events.

        If it fails, every running request is ended with the error, which is also raised here.
        Waits a moment if nothing can run until another thread's direct pass is over.
        """
        self._check_open()
        with self._lock:
            try:
                self._end_cancelled()
                self._admit()
                work = self._schedule()
                if work:
                    self._run(work)
                elif self._waiting and self._direct:
                    self._pages_freed.wait(timeout=0.1)
            except BaseException as error:
                for request in self._running_requests():
                    request.error = error
                    self._end(request)
                raise
        self._sweep()

    def cancel(self, request: Request) -> None:
        """End a request wherever it is and give its memory back.

        Never waits, as a generator's finaliser may call it in the middle of a step: then it
        takes effect at the end of that step.
        """
        self._cancelled.append(request)
        self._sweep()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the model for a pass outside `step`."""
        self._check_open()
        with self._lock:
            yield
        self._sweep()

    @contextmanager
    def direct_cache(self, n_tokens: int) -> Iterator[PagedKVCache]:
        """An empty cache for passes outside `step`, with pages set aside for `n_tokens`.

        Runs and waits for what runs before it until there are enough. Raises CapacityError if
        there never will be.
        """
        needed = pages_for(n_tokens)
        if needed > self._pool.native.capacity:
            raise CapacityError(
                f"{n_tokens} tokens need {needed} KV pages of {PAGE_TOKENS} tokens but the budget "
                f"holds {self._pool.native.capacity}; raise the memory budget"
            )
        cache = PagedKVCache(self._pool)
        self._set_aside(needed, cache)
        try:
            yield cache
        finally:
            with self._lock:
                self._direct = [d for d in self._direct if d[0] is not cache]
                cache.close()
                self._pages_freed.notify_all()

    def forget(self) -> None:
        """Drop every kept prefix and give free memory back to the system."""
        self._sweep()
        with self._lock:
            self._kept.drop()
            self._pool.native.trim()

    @property
    def n_unfinished(self) -> int:
        """Requests waiting or running."""
        self._sweep()
        with self._lock:
            return len(self._waiting) + len(self._running_requests())

    def check_integrity(self) -> None:
        """Raise RuntimeError if pages and sequences do not account for each other."""
        self._sweep()
        with self._lock:
            caches = [s.cache for s in self._running] + [cache for cache, _ in self._direct]
            referenced = {int(p) for cache in caches for p in cache.page_table}
            referenced |= self._kept.pages()
            if not self._pool.native.check_integrity():
                raise RuntimeError("free and used pages of the KV pool do not add up")
            if len(referenced) != self._pool.native.n_in_use:
                raise RuntimeError(
                    f"{self._pool.native.n_in_use} KV pages are in use, "
                    f"sequences refer to {len(referenced)}"
                )
            if self._n_committed + self._kept.n_pages > self._pool.native.capacity:
                raise RuntimeError(
                    f"{self._n_committed} KV pages are promised and {self._kept.n_pages} kept, "
                    f"the pool has {self._pool.native.capacity}"
                )

    # --- its lock, and what else may hold it ----------------------------------------------

    # `with self._lock` and nothing cleverer: an interrupt between a generator's acquiring and
    # its caller's `try` would leave the lock held for ever.

    def _sweep(self) -> None:
        """End the requests that were cancelled while somebody held the lock."""
        while self._cancelled and self._lock.acquire(blocking=False):
            try:
                self._end_cancelled()
            finally:
                self._lock.release()

    def _end_cancelled(self) -> None:
        while self._cancelled:
            request = self._cancelled.popleft()
            if request in self._waiting:
                self._waiting.remove(request)
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

    # --- the steps of a step ------------------------------------------------------------

    def _admit(self) -> None:
        while self._waiting and not self._n_direct_waiting:
            request = self._waiting[0]
            needed = self._n_committed + self._pages_needed(request)
            n_slots = request.params.n + sum(r.params.n for r in self._running_requests())
            if needed > self._pool.native.capacity or n_slots > self._model.max_logit_rows:
                return
            self._waiting.popleft()
            cache = self._kept.take(request.prompt_ids) or PagedKVCache(self._pool)
            if needed + self._kept.n_pages > self._pool.native.capacity:
                self._kept.drop()
            request.n_cached = cache.n_tokens
            request.started_s = time.perf_counter()
            first = Sequence(request, 0, cache, self._tokenizer)
            request.sequences.append(first)
            self._running.append(first)

    def _schedule(self) -> list[tuple[Sequence, int]]:
        """Choose (sequence, tokens) for the next step."""
        room = self._model.max_tokens
        work = []
        for sequence in self._running:
            if sequence.is_decoding and room > 0:
                work.append((sequence, 1))
                room -= 1
        for sequence in self._running:  # grows by the choices of a prompt that is done
            if sequence.is_prefilling and room > 0:
                n_new = min(sequence.n_pending, room)
                others = sequence.request.params.n - len(sequence.request.sequences)
                if others and n_new == sequence.n_pending:
                    # Choices share the prompt up to its last token; each computes that one
                    # itself, so that all of them have logits of their own to sample from.
                    n_new -= 1
                    if n_new == 0:
                        self._fork(sequence)
                        n_new = 1
                work.append((sequence, n_new))
                room -= n_new
        return work

    def _fork(self, first: Sequence) -> None:
        request = first.request
        for index in range(1, request.params.n):
            twin = Sequence(request, index, first.cache.fork(), self._tokenizer)
            request.sequences.append(twin)
            self._running.append(twin)

    def _run(self, work: list[tuple[Sequence, int]]) -> None:
        slices = []
        tokens: list[int] = []
        logit_rows = []
        ready = []
        for sequence, n_new in work:
            begin = len(tokens)
            cached = sequence.cache.n_tokens
            tokens += sequence.tokens[cached : cached + n_new]
            sequence.cache.reserve(n_new)
            slices.append(SequenceSlice(sequence.cache, begin, len(tokens)))
            if n_new == len(sequence.tokens) - cached:
                ready.append(sequence)
                logit_rows.append(len(tokens) - 1)
        step = Step(np.array(tokens, np.int32), slices, np.array(logit_rows, np.int32))
        self._accept(ready, self._model.sample(step, [s.sampler.native for s in ready]))

    def _accept(self, ready: list[Sequence], results: list[_native.SampleResult]) -> None:
        now = time.perf_counter()
        for sequence, result in zip(ready, results, strict=True):
            sampled = sampled_of(result)
            request = sequence.request
            request.first_token_s = request.first_token_s or now
            if sampled is None:
                sequence.fail()
                text = ""
            else:
                text = sequence.accept(sampled)
            request.events.append(Event(sequence, sampled, text, sequence.finish_reason))
            if sequence.finish_reason is not None and request.is_finished:
                request.finished_s = time.perf_counter()
                self._retire(request)

    def _end(self, request: Request) -> None:
        """End what is left of a request and take it off the engine."""
        for sequence in request.sequences:
            sequence.cancel()
        self._retire(request)

    def _retire(self, request: Request) -> None:
        """Take a finished request off the engine; keep the cache of its first choice."""
        mine = [s for s in self._running if s.request is request]
        if not mine:
            return
        self._running = [s for s in self._running if s.request is not request]
        # After an error nobody knows what the pages hold.
        if mine[0].cache.n_tokens > 0 and request.error is None and not request.has_failed:
            self._kept.keep(mine[0].tokens, mine[0].cache)
        else:
            mine[0].cache.close()
        for sequence in mine[1:]:
            sequence.cache.close()

    def _set_aside(self, n_pages: int, cache: PagedKVCache) -> None:
        self._n_direct_waiting += 1  # from here on nothing new is admitted
        try:
            while True:
                self._check_open()
                with self._lock:
                    self._end_cancelled()
                    free = self._pool.native.capacity - self._n_committed
                    if n_pages <= free:
                        if n_pages > free - self._kept.n_pages:
                            self._kept.drop()
                        self._direct.append((cache, n_pages))
                        return
                    if not self._running:  # other direct passes
                        self._pages_freed.wait(timeout=0.1)
                self.step()
        finally:
            self._n_direct_waiting -= 1

    def _running_requests(self) -> list[Request]:
        return list(dict.fromkeys(s.request for s in self._running))

    @property
    def _n_committed(self) -> int:
        """The pages that running requests and direct passes may come to need."""
        return sum(map(self._pages_needed, self._running_requests())) + sum(
            n_pages for _, n_pages in self._direct
        )

    def _pages_needed(self, request: Request) -> int:
        """The pages a request may come to need, shared prompt pages counted once."""
        n_prompt, n = len(request.prompt_ids), request.params.n
        whole = -(-(n_prompt + request.max_tokens) // PAGE_TOKENS)
        return whole + (n - 1) * (whole - (n_prompt - 1) // PAGE_TOKENS)
