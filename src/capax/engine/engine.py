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
from capax.engine.prefix import KeptPrefix
from capax.engine.sequence import Event, Request, Sequence
from capax.errors import CapacityError
from capax.files.tokenizer import Tokenizer
from capax.kv import PAGE_TOKENS, PagedKVCache, PagePool
from capax.models import Model, SequenceSlice, Step


class Engine:
    """Runs requests over one model. Every method may be called from any thread."""

    def __init__(self, model: Model, pool: PagePool, tokenizer: Tokenizer) -> None:
        self._model = model
        self._pool = pool
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._waiting: deque[Request] = deque()
        self._running: list[Sequence] = []
        self._n_committed = 0  # pages the running requests may come to need
        self._kept = KeptPrefix()

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
        with self._lock:
            self._waiting.append(request)

    def step(self) -> None:
        """Run one forward pass and sample; what happened is appended to each request's events.

        If the pass fails as a whole, its requests are ended and the error is raised.
        """
        with self._lock:
            self._admit()
            work = self._schedule()
            if not work:
                return
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
            try:
                results = self._model.sample(step, [s.sampler.native for s in ready])
            except BaseException:
                for sequence, _ in work:
                    sequence.cancel()
                    self._retire(sequence.request)
                raise
            self._accept(ready, results)

    def cancel(self, request: Request) -> None:
        """End a request wherever it is and give its memory back."""
        with self._lock:
            if request in self._waiting:
                self._waiting.remove(request)
            for sequence in request.sequences:
                sequence.cancel()
            self._retire(request)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the model for a pass outside `step`."""
        with self._lock:
            yield

    def commit(self, n_pages: int) -> None:
        """Set pages aside for a pass outside `step` (negative: give them back).

        Raises CapacityError if running requests leave too few.
        """
        with self._lock:
            free = self._pool.native.capacity - self._n_committed
            if n_pages > free:
                raise CapacityError(
                    f"{n_pages} KV pages of {PAGE_TOKENS} tokens are needed and running requests "
                    f"leave {free} of {self._pool.native.capacity}; wait for them or raise the "
                    "memory budget"
                )
            if n_pages > free - self._kept.n_pages:
                self._kept.drop()
            self._n_committed += n_pages

    def forget(self) -> None:
        """Drop every kept prefix and give free memory back to the system."""
        with self._lock:
            self._kept.drop()
            self._pool.native.trim()

    @property
    def n_unfinished(self) -> int:
        """Requests waiting or running."""
        with self._lock:
            return len(self._waiting) + len({id(s.request) for s in self._running})

    def check_integrity(self) -> None:
        """Raise RuntimeError if pages and sequences do not account for each other."""
        with self._lock:
            referenced = {int(p) for s in self._running for p in s.cache.page_table}
            referenced |= self._kept.pages()
            if not self._pool.native.check_integrity():
                raise RuntimeError("free and used pages of the KV pool do not add up")
            if len(referenced) != self._pool.native.n_in_use:
                raise RuntimeError(
                    f"{self._pool.native.n_in_use} KV pages are in use, "
                    f"sequences refer to {len(referenced)}"
                )

    # --- the steps of a step ------------------------------------------------------------

    def _admit(self) -> None:
        while self._waiting:
            request = self._waiting[0]
            needed = self._pages_needed(request)
            n_slots = len(self._running) + request.params.n
            if self._running and (
                self._n_committed + needed > self._pool.native.capacity
                or n_slots > self._model.max_logit_rows
            ):
                return
            self._waiting.popleft()
            cache = self._kept.take(request.prompt_ids) or PagedKVCache(self._pool)
            if self._n_committed + needed + self._kept.n_pages > self._pool.native.capacity:
                self._kept.drop()
            request.n_cached = cache.n_tokens
            request.started_s = time.perf_counter()
            self._n_committed += needed
            first = Sequence(request, 0, cache, self._tokenizer)
            request.sequences.append(first)
            self._running.append(first)

    def _schedule(self) -> list[tuple[Sequence, int]]:
        """Choose (sequence, tokens) for the next step."""
        room = self._model.max_tokens
        work = []
        for sequence in self._running:
            if not sequence.is_prefilling and room > 0:
                work.append((sequence, 1))
                room -= 1
        for sequence in self._running:
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

    def _retire(self, request: Request) -> None:
        """Take a finished request off the engine; keep the cache of its first choice."""
        mine = [s for s in self._running if s.request is request]
        if not mine:
            return
        self._running = [s for s in self._running if s.request is not request]
        self._n_committed -= self._pages_needed(request)
        for sequence in mine[1:]:
            sequence.cache.close()
        if mine[0].finish_reason == "error":
            mine[0].cache.close()
        else:
            self._kept.keep(mine[0].tokens, mine[0].cache)

    def _pages_needed(self, request: Request) -> int:
        """The pages a request may come to need, shared prompt pages counted once."""
        n_prompt, n = len(request.prompt_ids), request.params.n
        whole = -(-(n_prompt + request.max_tokens) // PAGE_TOKENS)
        return whole + (n - 1) * (whole - (n_prompt - 1) // PAGE_TOKENS)
