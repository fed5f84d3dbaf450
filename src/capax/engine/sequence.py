"""A request and its choices on their way through the engine."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from capax.decoding.params import SamplingParams
from capax.decoding.sampling import Sampled, Sampler
from capax.engine.outputs import FinishReason, PositionLogprobs
from capax.files.detokenize import StopStringMatcher, StreamingDetokenizer
from capax.files.tokenizer import Tokenizer
from capax.kv import PagedKVCache


class Event(NamedTuple):
    """A sequence got a token (None: it failed); `text` became final with it."""

    sequence: Sequence
    sampled: Sampled | None
    text: str
    finish_reason: FinishReason | None


@dataclass(eq=False)
class Request:
    """One prompt with its settings; times are seconds of a monotonic clock."""

    prompt_ids: list[int]
    params: SamplingParams
    max_tokens: int  # resolved: never more than the context has room for
    prompt: str | None = None
    sequences: list[Sequence] = field(default_factory=list)
    events: deque[Event] = field(default_factory=deque)  # news not yet fetched, oldest first
    n_cached: int = 0
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    started_s: float | None = None  # when the engine took it up
    first_token_s: float | None = None
    finished_s: float | None = None

    @property
    def is_finished(self) -> bool:
        return all(s.finish_reason is not None for s in self.sequences)


class Sequence:
    """One choice of a request: its tokens, its cache, and the text that has come out.

    `tokens` is the prompt followed by what was sampled; the cache holds a prefix of it. The
    rest is pending: several tokens while prefilling, one while decoding.
    """

    def __init__(
        self, request: Request, index: int, cache: PagedKVCache, tokenizer: Tokenizer
    ) -> None:
        params = request.params
        self.request = request
        self.index = index
        self.cache = cache
        self.tokens = list(request.prompt_ids)
        self.sampler = Sampler(params, choice=index, prompt_ids=request.prompt_ids)
        self.finish_reason: FinishReason | None = None
        self.text = ""
        self.sampled: list[Sampled] = []
        self._stop_ids = frozenset(params.stop_token_ids) | (
            frozenset() if params.ignore_eos else tokenizer.eos_ids
        )
        self._detokenizer = StreamingDetokenizer(tokenizer, skip_special=params.skip_special_tokens)
        self._matcher = StopStringMatcher(params.stop)

    @property
    def n_pending(self) -> int:
        return len(self.tokens) - self.cache.n_tokens

    @property
    def is_prefilling(self) -> bool:
        return not self.sampled

    @property
    def output_ids(self) -> list[int]:
        return self.tokens[len(self.request.prompt_ids) :]

    def accept(self, sampled: Sampled) -> str:
        """Take the next token; returns the text that became final. May finish the sequence."""
        self.tokens.append(sampled.token)
        self.sampled.append(sampled)
        n_new = len(self.sampled)
        may_stop = n_new >= self.request.params.min_tokens
        if may_stop and sampled.token in self._stop_ids:
            return self._finish("stop", self._matcher.flush())
        piece, stopped = self._matcher.push(self._detokenizer.push(sampled.token))
        if stopped and may_stop:
            return self._finish("stop", piece)
        if n_new >= self.request.max_tokens:
            rest, stopped = self._matcher.push(self._detokenizer.flush())
            reason: FinishReason = "stop" if stopped else "length"
            return self._finish(reason, piece + rest + self._matcher.flush())
        self.text += piece
        return piece

    def fail(self) -> None:
        """End the sequence without a token: its logits were not finite."""
        self.finish_reason = "error"
        self.cache.close()

    def cancel(self) -> None:
        """End the sequence where it stands."""
        if self.finish_reason is None:
            self.finish_reason = "cancelled"

    def _finish(self, reason: FinishReason, piece: str) -> str:
        self.finish_reason = reason
        self.text += piece
        return piece
