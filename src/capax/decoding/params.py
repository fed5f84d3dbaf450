"""What a request may ask of the sampler: one typed set of fields, every range closed and checked.

Names and defaults follow vLLM, limits the hosted APIs. The native sampler checks its ranges again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, NamedTuple

from capax.errors import ConfigError

if TYPE_CHECKING:
    from capax.decoding.structured import StructuredOutputs


class Limits(NamedTuple):
    """A closed range of a numeric field, and whether the field may be None."""

    low: float
    high: float
    is_integer: bool = False
    may_be_none: bool = False


INT32_MAX = 2**31 - 1
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIAS = 4096
BIAS_LIMITS = Limits(-100.0, 100.0)
TOKEN_LIMITS = Limits(0, INT32_MAX, is_integer=True)

# The one home of the ranges; docs and the HTTP schema print them from here.
LIMITS: Mapping[str, Limits] = {
    "max_tokens": Limits(1, INT32_MAX, is_integer=True, may_be_none=True),
    "min_tokens": Limits(0, INT32_MAX, is_integer=True),
    "n": Limits(1, 128, is_integer=True),
    "temperature": Limits(0.0, 100.0),
    "top_k": Limits(-1, INT32_MAX, is_integer=True),
    "top_p": Limits(0.0, 1.0),
    "min_p": Limits(0.0, 1.0),
    "repetition_penalty": Limits(0.01, 100.0),
    "presence_penalty": Limits(-2.0, 2.0),
    "frequency_penalty": Limits(-2.0, 2.0),
    "seed": Limits(-(2**63), 2**64 - 1, is_integer=True, may_be_none=True),
    "logprobs": Limits(0, 20, is_integer=True, may_be_none=True),
    "prompt_logprobs": Limits(0, 20, is_integer=True, may_be_none=True),
}
FLAGS = ("ignore_eos", "skip_special_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are chosen. Raises ConfigError for a value out of range.

    Order of the steps: what the form allows, logit bias, repetition, presence and frequency
    penalty, temperature, top_k, top_p, min_p, one draw. Ties keep the lower token id.
    Log-probabilities are natural logarithms under the model's own distribution, before any of
    these steps.
    """

    max_tokens: int | None = None  # None: as many as the context has room for
    min_tokens: int = 0  # stop tokens and stop strings do not count before
    n: int = 1  # independent choices
    temperature: float = 1.0  # 0: the most likely token, always
    top_k: int = 0  # the k most likely tokens; 0 or -1: all
    top_p: float = 1.0  # the fewest tokens with this much probability; at least one
    min_p: float = 0.0  # tokens with this fraction of the most likely one's probability
    repetition_penalty: float = 1.0  # logits of seen tokens: x / r if positive, else x * r
    presence_penalty: float = 0.0  # subtracted once from tokens of the output
    frequency_penalty: float = 0.0  # subtracted for each occurrence in the output
    seed: int | None = None  # None: the engine's; taken modulo 2^64
    logprobs: int | None = None  # of this many best tokens per position; 0: of the chosen only
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> added to its logit
    stop: tuple[str, ...] = ()  # also a single string or any iterable of strings
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputs | None = None  # the form the whole answer must have

    def __post_init__(self) -> None:
        for name, limits in LIMITS.items():
            self._set(name, check_number(name, getattr(self, name), limits))
        for name in FLAGS:
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ConfigError(f"{name} is {show(value)} but must be true or false")
        self._set("top_k", max(self.top_k, 0))
        self._set("stop", check_stops(self.stop))
        self._set("stop_token_ids", check_stop_token_ids(self.stop_token_ids))
        self._set("logit_bias", check_bias(self.logit_bias))
        check_form(self.structured_outputs)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ConfigError(
                f"min_tokens is {self.min_tokens} but max_tokens is {self.max_tokens}; "
                "lower min_tokens or raise max_tokens"
            )

    def with_seed(self, seed: int) -> SamplingParams:
        """Return a copy with this seed."""
        return dataclasses.replace(self, seed=seed)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise ConfigError if a token id does not exist in a vocabulary of this size."""
        for name, tokens in (
            ("logit_bias", self.logit_bias),
            ("stop_token_ids", self.stop_token_ids),
        ):
            for token in tokens:
                if token >= vocab_size:
                    raise ConfigError(
                        f"{name} names token {token} but the vocabulary has {vocab_size} tokens, "
                        f"0 to {vocab_size - 1}"
                    )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


def check_number(name: str, value: Any, limits: Limits) -> int | float | None:
    """Return the value as a plain int or float, or raise ConfigError naming field, value, range."""
    if value is None and limits.may_be_none:
        return None
    kind = Integral if limits.is_integer else Real
    wrong = ConfigError(f"{name} is {show(value)} but must be {describe(limits)}")
    if isinstance(value, bool) or not isinstance(value, kind):
        raise wrong
    # Integers are compared as they are: 10**400 has no float. NaN fails every comparison, but a
    # range must not depend on that.
    number: Any = value
    if not isinstance(number, Integral) and not math.isfinite(number):
        raise wrong
    if not limits.low <= number <= limits.high:
        raise wrong
    return int(number) if limits.is_integer else float(number) + 0.0  # -0.0 becomes 0.0


def check_stops(stop: Any) -> tuple[str, ...]:
    """Return the stop strings as a tuple, or raise ConfigError."""
    if stop is None:
        return ()
    stops = (stop,) if isinstance(stop, str) else elements_of("stop", stop)
    if len(stops) > MAX_STOPS:
        raise ConfigError(f"stop has {len(stops)} strings but at most {MAX_STOPS} are allowed")
    for text in stops:
        if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARS:
            raise ConfigError(
                f"stop contains {show(text)} but must hold strings of 1 to {MAX_STOP_CHARS} "
                "characters"
            )
    return stops


def check_stop_token_ids(tokens: Any) -> tuple[int, ...]:
    """Return the token ids as a tuple, or raise ConfigError."""
    if tokens is None:
        return ()
    ids = elements_of("stop_token_ids", tokens)
    if len(ids) > MAX_STOP_TOKEN_IDS:
        raise ConfigError(
            f"stop_token_ids has {len(ids)} entries but at most {MAX_STOP_TOKEN_IDS} are allowed"
        )
    checked = (check_number("a token of stop_token_ids", token, TOKEN_LIMITS) for token in ids)
    return tuple(int(token) for token in checked if token is not None)


def check_bias(bias: Any) -> dict[int, float]:
    """Return token id -> bias as a plain dictionary, or raise ConfigError."""
    if bias is None:
        return {}
    if not isinstance(bias, Mapping):
        raise ConfigError(f"logit_bias is {show(bias)} but must map token ids to numbers")
    if len(bias) > MAX_LOGIT_BIAS:
        raise ConfigError(
            f"logit_bias has {len(bias)} entries but at most {MAX_LOGIT_BIAS} are allowed"
        )
    checked = {}
    for token, value in bias.items():
        token_id = check_number("a token of logit_bias", token, TOKEN_LIMITS)
        amount = check_number(f"logit_bias of token {token_id}", value, BIAS_LIMITS)
        if token_id is not None and amount is not None:
            checked[int(token_id)] = float(amount)
    return checked


def check_form(form: object) -> None:
    """Raise ConfigError unless `form` is None or a StructuredOutputs."""
    from capax.decoding.structured import StructuredOutputs

    if form is not None and not isinstance(form, StructuredOutputs):
        raise ConfigError(
            f"structured_outputs is {show(form)} but must be a StructuredOutputs, for example "
            "StructuredOutputs(json_object=True)"
        )


def elements_of(name: str, value: Any) -> tuple[Any, ...]:
    """Return the elements of a list-like value, or raise ConfigError."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ConfigError(f"{name} is {show(value)} but must be a list")
    return tuple(value)


def describe(limits: Limits) -> str:
    """Say a range in words."""
    kind = "an integer" if limits.is_integer else "a finite number"
    none = " or null" if limits.may_be_none else ""
    low, high = (int(x) if limits.is_integer else f"{x:g}" for x in (limits.low, limits.high))
    return f"{kind} from {low} to {high}{none}"


def show(value: object) -> str:
    """Print a hostile value briefly: without its control characters and never at length."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, str | bytes):
        return repr(value[:80]) + ("..." if len(value) > 80 else "")
    if isinstance(value, int | float | None):
        return repr(value)
    return f"of type {type(value).__name__}"
