"""A request and its choices on their way through the engine."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from capax.decoding.params import SamplingParams
from capax.decoding.sampling import Sampled, Sampler
from capax.engine.outputs import FinishReason, PositionLogprobs
from capax.errors import CapaxError
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

    error: BaseException | None = None  # what ended it, if a step failed as a whole

    @property
    def is_finished(self) -> bool:
        return all(s.finish_reason is not None for s in self.sequences)

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
        return not self.sampled and self.finish_reason is None

    @property
    def is_decoding(self) -> bool:
        return bool(self.sampled) and self.finish_reason is None

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
            return self._finish("stop", self._flush()[0])
        piece, stopped = self._push(self._detokenizer.push(sampled.token), may_stop)
        if stopped:
            return self._finish("stop", piece)
        if n_new >= self.request.max_tokens:
            rest, stopped = self._flush()
            return self._finish("stop" if stopped else "length", piece + rest)
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
