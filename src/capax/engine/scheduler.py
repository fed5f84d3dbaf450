"""Who runs, who waits, and how many tokens of each go into the next step.

Requests wait in order of priority (a lower number first); among those of one priority tenants
take turns, and each tenant's requests keep their order. Nobody overtakes the one whose turn it is,
so everybody's turn comes.

A step takes one token of every decoding sequence and fills up with prompt tokens, the oldest
prompt first. While others decode it takes few prompt tokens, so that a long prompt makes every
answer somewhat slower instead of stopping them.

Pages are taken as they are needed. When there are none left, pages that are only kept for reuse
go first; then the request that came last and matters least gives up its own and waits again.
What it has answered stays: it computes its tokens again, mostly from kept pages, and goes on with
the same bits.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass

from capax.engine.prefix_cache import PrefixCache
from capax.engine.sequence import Request, Sequence
from capax.kv import KVStore

# Work of prompts in a step in which others decode, in tokens at the begin of a prompt: a step of so
# many takes two to three times as long as one of decoding sequences alone (measured with 1 to 64).
INTERLEAVED_TOKENS = 16
INTERLEAVED_PER_DECODING = 2


@dataclass(frozen=True, slots=True)
class Work:
    """`n_new` pending tokens of a sequence for the next step."""

    sequence: Sequence
    n_new: int


class WaitingRequests:
    """Requests by priority, tenant and arrival."""

    def __init__(self) -> None:
        self._queues: dict[int, OrderedDict[str, deque[Request]]] = {}
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[Request]:
        for priority in sorted(self._queues):
            for queue in self._queues[priority].values():
                yield from queue

    def append(self, request: Request) -> None:
        """Queue a new request behind its tenant's others."""
        tenants = self._queues.setdefault(request.priority, OrderedDict())
        tenants.setdefault(request.tenant, deque()).append(request)
        self._n += 1

    def put_back(self, request: Request) -> None:
        """Queue a request that has run before: it is the next of its priority."""
        tenants = self._queues.setdefault(request.priority, OrderedDict())
        tenants.setdefault(request.tenant, deque()).appendleft(request)
        tenants.move_to_end(request.tenant, last=False)
        self._n += 1

    def first(self) -> Request | None:
        """Return the request whose turn it is."""
        return next(iter(self), None)

    def pop(self) -> Request:
        """Take the request whose turn it is; its tenant's next one waits for the other tenants."""
        request = next(iter(self))
        self.remove(request)
        tenants = self._queues.get(request.priority)
        if tenants and request.tenant in tenants:
            tenants.move_to_end(request.tenant)
        return request

    def remove(self, request: Request) -> bool:
        """Take a request out wherever it is; False if it does not wait."""
        tenants = self._queues.get(request.priority, OrderedDict())
        queue = tenants.get(request.tenant, ())
        if request not in queue:
            return False
        tenants[request.tenant].remove(request)
        self._n -= 1
        if not tenants[request.tenant]:
            del tenants[request.tenant]
        if not tenants:
            del self._queues[request.priority]
        return True


class Scheduler:
    """Chooses the work of each step. Not thread-safe: the engine's lock guards it.

    `max_tokens` and `max_sequences` bound a step; pages come from `store`, after `prefixes` has
    given up what nobody uses. `keys_per_token`: attending to so many keys takes a token as long as
    everything else does.
    """

    def __init__(
        self,
        store: KVStore,
        prefixes: PrefixCache,
        *,
        max_tokens: int,
        max_sequences: int,
        keys_per_token: float,
    ) -> None:
        self.waiting = WaitingRequests()
        self.running: list[Request] = []  # in the order of their admission
        self.n_preemptions = 0
        self.n_prompt_tokens = 0  # of requests that began
        self.n_hit_tokens = 0  # of them, known already
        self._store = store
        self._prefixes = prefixes
        self._max_tokens = max_tokens
        self._max_sequences = max_sequences
        self._keys_per_token = keys_per_token

    # --- who runs -----------------------------------------------------------------------

    def admit(self) -> None:
        """Let waiting requests run as long as there is room for what they need now."""
        if not self.waiting:
            return
        n_running = sum(request.params.n for request in self.running)
        promised = sum(request.n_pages_to_come(self._store) for request in self.running)
        while (request := self.waiting.first()) is not None:
            n_running += request.params.n
            if n_running > self._max_sequences:
                return
            # Room for the prompt, and for everybody's next page: what was let in should not be
            # thrown out a few steps later.
            pages = self._store.pages_for(request.n_tokens_to_hold)
            promised += pages if self._store.shared_pages else pages * request.params.n
            needed = promised + (n_running if self.running else 0)
            if needed > self._store.n_free and needed > self._store.n_free + self._n_kept_only:
                return
            self.waiting.pop()
            self.running.append(request)
            request.begin(self._store)

    def preempt(self, request: Request) -> None:
        """Take a running request's pages; it waits for its next turn, before all others."""
        self.n_preemptions += 1
        self.running.remove(request)
        for sequence in request.sequences:
            self._keep(sequence, partial=True)
            sequence.cache.close()
        self.waiting.put_back(request)

    def preempt_paused(self) -> bool:
        """Take the pages of a request that waits for its reader; False if none does."""
        paused = next((r for r in reversed(self.running) if r.is_paused), None)
        if paused is not None:
            self.preempt(paused)
        return paused is not None

    def retire(self, request: Request) -> None:
        """Take a request that is over off the running ones."""
        for sequence in request.sequences:
            self.release(sequence)
        if request in self.running:
            self.running.remove(request)

    def release(self, sequence: Sequence) -> None:
        """Take the pages of a sequence that is over; they are kept for reuse if they are sound."""
        # After an error nobody knows what the pages hold.
        if sequence.finish_reason != "error" and sequence.request.error is None:
            self._keep(sequence, partial=True)
        sequence.cache.close()

    def keep_prompt(self, sequence: Sequence) -> None:
        """Keep the full pages of a prompt that was just computed."""
        self._keep(sequence, partial=False)

    def _keep(self, sequence: Sequence, *, partial: bool) -> None:
        if sequence.cache.n_tokens:
            namespace = sequence.request.tenant
            self._prefixes.keep(namespace, sequence.tokens, sequence.cache, partial=partial)

    @property
    def _n_kept_only(self) -> int:
        return self._prefixes.n_evictable

    # --- what runs next -----------------------------------------------------------------

    def schedule(self) -> list[Work]:
        """Choose the next step and take the pages it needs. Empty if nothing can run."""
        decoding = [
            sequence
            for request in self.running
            if not request.is_paused
            for sequence in request.sequences
            if sequence.is_decoding
        ]
        work: dict[Sequence, Work] = {}
        for sequence in decoding:
            if len(work) < self._max_tokens and self._has_pages(sequence, 1, work):
                work[sequence] = Work(sequence, 1)
        room = self._max_tokens - len(work)
        effort = float("inf")  # what prompts may take of the step; nobody waits: all there is
        if work:
            effort = INTERLEAVED_TOKENS + INTERLEAVED_PER_DECODING * len(work)
        for request in list(self.running):
            prefilling = request.next_to_prefill
            if prefilling is None or room <= 0 or effort < 1 or request not in self.running:
                continue
            self._begin_prefill(prefilling)
            per_token = 1 + prefilling.cache.n_tokens / self._keys_per_token
            n_new = min(prefilling.n_pending, room)
            if n_new * per_token > effort:
                n_new = max(1, int(effort / per_token))
            if self._has_pages(prefilling, n_new, work):
                work[prefilling] = Work(prefilling, n_new)
                room -= n_new
                effort -= n_new * per_token
        return list(work.values())

    def _begin_prefill(self, sequence: Sequence) -> None:
        """Take what is known of the tokens, the first time a sequence runs since it waited."""
        if sequence.is_prefill_begun:
            return
        sequence.is_prefill_begun = True
        request = sequence.request
        if not request.needs_scores:
            self._prefixes.take(request.tenant, sequence.tokens, sequence.cache)
        if not request.is_counted:  # else it has waited in between; these pages are its own work
            request.is_counted = True
            request.n_cached = sequence.cache.n_tokens
            self.n_prompt_tokens += len(request.prompt_ids)
            self.n_hit_tokens += request.n_cached

    def _has_pages(self, sequence: Sequence, n_new: int, work: dict[Sequence, Work]) -> bool:
        """Reserve pages for more tokens, taking them from others if it must be.

        False if it is this sequence's request that had to give way.
        """
        while sequence.request in self.running:
            wanted = sequence.cache.pages_wanted(n_new) + self._pages_to_fork(sequence, n_new)
            if not wanted:  # most tokens, as a page has room for many
                return True
            missing = wanted - self._store.n_free
            if missing <= 0 or self._prefixes.evict(missing) >= missing:
                sequence.cache.reserve(n_new)
                return True
            victim = self._least_important()
            for other in victim.sequences:
                work.pop(other, None)
            self.preempt(victim)
        return False

    def _pages_to_fork(self, sequence: Sequence, n_new: int) -> int:
        """Pages for the copies that the other choices get when a prompt is done."""
        request = sequence.request
        begun = len(request.sequences)
        if self._store.shared_pages or begun == request.params.n or n_new < sequence.n_pending:
            return 0
        n_tokens = sequence.cache.n_tokens + n_new
        return (request.params.n - begun) * self._store.pages_for(n_tokens)

    def _least_important(self) -> Request:
        """Return the running request of least priority that was admitted last."""
        return max(enumerate(self.running), key=lambda entry: (entry[1].priority, entry[0]))[1]
