"""A request and its choices on their way through the engine."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from capax.decoding.constraint import ConstraintFactory
from capax.decoding.params import SamplingParams
from capax.decoding.sampling import Sampled, Sampler, Scored
from capax.engine.outputs import FinishReason
from capax.errors import CapaxError
from capax.files.detokenize import StopStringMatcher, StreamingDetokenizer
from capax.files.tokenizer import Tokenizer
from capax.kv import KVCache, KVStore


class Event(NamedTuple):
    """A sequence got a token (None: it failed); `text` became final with it.

    `is_last`: of its request; every choice has ended, and everything about it is final.
    """

    sequence: Sequence
    sampled: Sampled | None
    text: str
    finish_reason: FinishReason | None
    is_last: bool = False


@dataclass(eq=False)
class Request:
    """One prompt with its settings; times are seconds of a monotonic clock.

    `tenant` is the namespace its pages are kept in, and takes turns with others; a lower
    `priority` comes first. `max_events`: while so much news has not been fetched, it is paused.
    """

    prompt_ids: list[int]
    params: SamplingParams
    max_tokens: int  # resolved: never more than the context has room for
    tokenizer: Tokenizer
    prompt: str | None = None
    tenant: str = ""
    priority: int = 0
    constraint: ConstraintFactory | None = None  # makes what bounds the tokens of one choice
    max_events: int | None = None
    sequences: list[Sequence] = field(default_factory=list)  # of choices that have begun
    events: deque[Event] = field(default_factory=deque)  # news not yet fetched, oldest first
    n_cached: int = 0  # prompt tokens that did not have to be computed
    is_counted: bool = False  # whether the engine has looked what is known of the prompt
    prompt_scores: list[Scored] = field(default_factory=list)  # of prompt tokens, as they come
    n_scored: int = 0  # prompt tokens in there
    started_s: float | None = None  # when the engine took it up
    first_token_s: float | None = None
    finished_s: float | None = None

    is_done: bool = False  # its last event is there to be fetched
    is_over: bool = False  # cancelled, or ended by an error
    error: BaseException | None = None  # what ended it, if a step failed as a whole

    @property
    def is_finished(self) -> bool:
        """Whether it was answered, or ended as a whole; true only behind the step that did it."""
        return self.is_over or self.is_done

    @property
    def has_ended(self) -> bool:
        """Whether every choice has ended. Changes within a step: for the engine alone."""
        return len(self.sequences) == self.params.n and all(
            s.finish_reason is not None for s in self.sequences
        )

    @property
    def needs_scores(self) -> bool:
        """Prompt tokens are still to be scored, so each of their rows must be computed."""
        return self.params.prompt_logprobs is not None and self.n_scored < len(self.prompt_ids) - 1

    @property
    def is_paused(self) -> bool:
        """Its reader is slow: it gets no more tokens until some are fetched."""
        return self.max_events is not None and len(self.events) >= self.max_events

    @property
    def n_tokens_to_hold(self) -> int:
        """Tokens of its longest unfinished choice, and one more."""
        unfinished = [len(s.tokens) for s in self.sequences if s.finish_reason is None]
        return 1 + max(unfinished, default=len(self.prompt_ids))

    def n_pages_to_come(self, store: KVStore) -> int:
        """Pages that the tokens known by now still need."""
        held = max((store.pages_for(s.cache.n_tokens) for s in self.sequences), default=0)
        return max(store.pages_for(self.n_tokens_to_hold) - held, 0)

    @property
    def next_to_prefill(self) -> Sequence | None:
        """The first choice with a prompt to compute; the others may then share its pages."""
        return next((s for s in self.sequences if s.is_prefilling), None)

    def begin(self, store: KVStore) -> None:
        """Start, or start again after waiting: the caches are empty."""
        self.started_s = self.started_s or time.perf_counter()
        if not self.sequences:
            self.sequences.append(Sequence(self, 0, store.new()))
        for sequence in self.sequences:
            sequence.is_prefill_begun = False

    def raise_error(self) -> None:
        """Raise what ended the request, if a step failed as a whole in another thread."""
        if isinstance(self.error, CapaxError):
            raise self.error
        if self.error is not None:
            raise CapaxError(
                f"a step failed in another thread ({type(self.error).__name__}: {self.error}) and "
                "this request with it; ask again"
            ) from self.error

    @property
    def has_failed(self) -> bool:
        """A choice had logits that were not finite."""
        return any(s.finish_reason == "error" for s in self.sequences)


class Sequence:
    """One choice of a request: its tokens, its cache, and the text that has come out.

    `tokens` is the prompt followed by what was sampled; the cache holds a prefix of it. The
    rest is pending: several tokens while prefilling, one while decoding.
    """

    def __init__(self, request: Request, index: int, cache: KVCache) -> None:
        params = request.params
        self.request = request
        self.index = index
        self.cache = cache
        self.tokens = list(request.prompt_ids)
        self.sampler = Sampler(params, choice=index, prompt_ids=request.prompt_ids)
        self.finish_reason: FinishReason | None = None
        self.text = ""
        self.sampled: list[Sampled] = []
        self.is_prefill_begun = False
        self._stop_ids = frozenset(params.stop_token_ids) | (
            frozenset() if params.ignore_eos else request.tokenizer.eos_ids
        )
        self._detokenizer = StreamingDetokenizer(
            request.tokenizer, skip_special=params.skip_special_tokens
        )
        self._matcher = StopStringMatcher(params.stop)
        self._constraint = None if request.constraint is None else request.constraint()
        if self._constraint is not None:
            self.sampler.native.set_mask(self._constraint.mask())

    @property
    def n_pending(self) -> int:
        return len(self.tokens) - self.cache.n_tokens

    @property
    def is_prefilling(self) -> bool:
        """It has more than one token to compute, or nobody has looked yet what is known of it."""
        return self.finish_reason is None and (not self.is_prefill_begun or self.n_pending > 1)

    @property
    def is_decoding(self) -> bool:
        return self.finish_reason is None and self.is_prefill_begun and self.n_pending == 1

    @property
    def output_ids(self) -> list[int]:
        return self.tokens[len(self.request.prompt_ids) :]

    def accept(self, sampled: Sampled) -> str:
        """Take the next token; returns the text that became final. May finish the sequence.

        Raises CapaxError if its constraint exceeds what it may cost.
        """
        self.tokens.append(sampled.token)
        self.sampled.append(sampled)
        is_complete = self._constrain(sampled.token)
        n_new = len(self.sampled)
        may_stop = n_new >= self.request.params.min_tokens
        if may_stop and sampled.token in self._stop_ids:
            return self._finish("stop", self._flush()[0])
        piece, stopped = self._push(self._detokenizer.push(sampled.token), may_stop)
        if stopped:
            return self._finish("stop", piece)
        if is_complete or n_new >= self.request.max_tokens:
            rest, stopped = self._flush()
            return self._finish("stop" if stopped or is_complete else "length", piece + rest)
        self.text += piece
        return piece

    def fail(self) -> None:
        """End the sequence without a token: its logits were not finite."""
        self.finish_reason = "error"

    def cancel(self) -> None:
        """End the sequence where it stands."""
        if self.finish_reason is None:
            self.finish_reason = "cancelled"

    def _constrain(self, token: int) -> bool:
        """Mask what may not follow `token`; returns whether nothing may."""
        if self._constraint is None:
            return False
        is_complete = self._constraint.accept(token)
        if not is_complete:
            self.sampler.native.set_mask(self._constraint.mask())
        return is_complete

    def _push(self, text: str, may_stop: bool) -> tuple[str, bool]:
        """More text; returns what is final and whether a stop string was found in it."""
        return self._matcher.push(text) if may_stop else (text, False)

    def _flush(self) -> tuple[str, bool]:
        """What was held back, when no more will come, and whether a stop string was found."""
        rest, stopped = self._matcher.push(self._detokenizer.flush())
        return rest + self._matcher.flush(), stopped

    def _finish(self, reason: FinishReason, piece: str) -> str:
        self.finish_reason = reason
        self.text += piece
        return piece
