"""Request fields that every generating endpoint has, checked against the sampler's own limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from capax.decoding.params import (
    BIAS_LIMITS,
    INT32_MAX,
    LIMITS,
    MAX_LOGIT_BIAS,
    MAX_STOP_CHARS,
    MAX_STOP_TOKEN_IDS,
    MAX_STOPS,
    Limits,
    check_bias,
    check_number,
    check_stop_token_ids,
    check_stops,
    show,
)
from capax.errors import ConfigError
from capax.serving.body import OUT_OF_RANGE, RequestModel

MAX_SALT_CHARS = 256
PRIORITY_LIMITS = Limits(-1000, 1000, is_integer=True)


class Checked:
    """A field whose value goes through `check`, and its JSON schema.

    null means the same as leaving the field out, as the hosted APIs have it. What `check` raises
    becomes the error of the field.
    """

    def __init__(self, check: Callable[[Any], Any], schema: Mapping[str, Any]) -> None:
        self._check = check
        self._schema = schema

    def _validate(self, value: Any) -> Any:
        if value is None:
            return None
        try:
            return self._check(value)
        except ConfigError as error:
            raise PydanticCustomError(OUT_OF_RANGE, "{message}", {"message": str(error)}) from None

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._validate)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [dict(self._schema), {"type": "null"}]}


def number(name: str, limits: Limits | None = None) -> Checked:
    """Return the check of a numeric field; its range is the sampler's unless `limits` is given."""
    allowed = limits or LIMITS[name]
    schema = {
        "type": "integer" if allowed.is_integer else "number",
        "minimum": allowed.low,
        "maximum": allowed.high,
    }
    return Checked(lambda value: check_number(name, value, allowed), schema)


def _bias_of_json(value: Any) -> dict[int, float]:
    """Return token id -> bias; JSON writes the ids as strings."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"logit_bias is {show(value)} but must map token ids to numbers")
    return check_bias({_token_id(key): bias for key, bias in value.items()})


def _token_id(key: Any) -> int:
    text = str(key)
    if not (text.isascii() and text.isdecimal() and len(text) <= 10):
        raise ConfigError(
            f"logit_bias has the key {show(text)} but its keys must be token ids, for example "
            '{"42": -100}'
        )
    return int(text)


STOP = Checked(
    check_stops,
    {
        "anyOf": [
            {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS},
            {
                "type": "array",
                "maxItems": MAX_STOPS,
                "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS},
            },
        ]
    },
)
STOP_TOKEN_IDS = Checked(
    check_stop_token_ids,
    {
        "type": "array",
        "maxItems": MAX_STOP_TOKEN_IDS,
        "items": {"type": "integer", "minimum": 0, "maximum": INT32_MAX},
    },
)
LOGIT_BIAS = Checked(
    _bias_of_json,
    {
        "type": "object",
        "maxProperties": MAX_LOGIT_BIAS,
        "propertyNames": {"pattern": "^[0-9]{1,10}$"},
        "additionalProperties": {
            "type": "number",
            "minimum": BIAS_LIMITS.low,
            "maximum": BIAS_LIMITS.high,
        },
    },
)


def _salt(value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_SALT_CHARS:
        raise ConfigError(
            f"cache_salt is {show(value)} but must be a string of 1 to {MAX_SALT_CHARS} characters"
        )
    return value


class StreamOptions(RequestModel):
    """What a stream carries besides the text."""

    include_usage: bool | None = None


class SamplingFields(RequestModel):
    """What a request may say about how its tokens are chosen and how they are sent.

    Every field may be null or missing. Ranges are those of `SamplingParams`.
    """

    model: str | None = None
    temperature: Annotated[float | None, number("temperature")] = None
    top_p: Annotated[float | None, number("top_p")] = None
    top_k: Annotated[int | None, number("top_k")] = None
    min_p: Annotated[float | None, number("min_p")] = None
    presence_penalty: Annotated[float | None, number("presence_penalty")] = None
    frequency_penalty: Annotated[float | None, number("frequency_penalty")] = None
    repetition_penalty: Annotated[float | None, number("repetition_penalty")] = None
    seed: Annotated[int | None, number("seed")] = None
    n: Annotated[int | None, number("n")] = None
    stop: Annotated[tuple[str, ...] | None, STOP] = None
    stop_token_ids: Annotated[tuple[int, ...] | None, STOP_TOKEN_IDS] = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int | None, number("min_tokens")] = None
    logit_bias: Annotated[dict[int, float] | None, LOGIT_BIAS] = None
    prompt_logprobs: Annotated[int | None, number("prompt_logprobs")] = None
    skip_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    timings_per_token: bool | None = None
    cache_prompt: bool | None = None
    cache_salt: Annotated[str | None, Checked(_salt, {"type": "string", "minLength": 1})] = None
    priority: Annotated[int | None, number("priority", PRIORITY_LIMITS)] = None
    user: str | None = None

    def sampling(self) -> dict[str, Any]:
        """Return the arguments of `SamplingParams` that the request sets."""
        return {
            name: value for name in SAMPLING_NAMES if (value := getattr(self, name)) is not None
        }

    @property
    def includes_usage(self) -> bool:
        """Whether the stream ends with a chunk of token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


SAMPLING_NAMES = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "seed", "n", "stop", "stop_token_ids", "ignore_eos", "min_tokens",
    "logit_bias", "prompt_logprobs", "skip_special_tokens",
)  # fmt: skip
