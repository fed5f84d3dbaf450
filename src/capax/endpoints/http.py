"""Any OpenAI-compatible server as an endpoint.

What may be sent again is: a call that was refused (429, 503), or that failed without an answer.
Waiting follows Retry-After, else grows with jitter; every attempt is reserved and settled in the
ledger on its own, so a server that fails after doing the work cannot make a run exceed its cap.
Answers are untrusted: their size, shape and numbers are checked before use; redirects are not
followed.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx2
import msgspec
import tenacity

from capax.decoding.params import LIMITS, SamplingParams
from capax.decoding.structured import StructuredOutputs
from capax.endpoints.answers import (
    ChatAnswer,
    ChatChoice,
    ErrorAnswer,
    LegacyLogprobs,
    TextAnswer,
    TextChoice,
)
from capax.endpoints.endpoint import (
    Choice,
    Completion,
    GenerateRequest,
    Message,
    TokenScores,
)
from capax.endpoints.ledger import Ledger, Price, Reservation
from capax.engine.outputs import Usage
from capax.errors import ConfigError, ContextLengthError, EndpointError

MAX_ANSWER_NBYTES = 64 << 20
MAX_ERROR_CHARS = 300
MAX_WAIT_S = 60.0  # for one Retry-After; a server that asks for more has failed
MESSAGE_TOKENS = 16  # what a chat template may add to a message, for the reservation
REFUSED = frozenset({401, 403, 404, 413, 422, 429, 503})  # turned away before any work
WORTH_ANOTHER_TRY = frozenset({408, 409, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class HTTPSettings:
    """How patient and how busy the client is."""

    timeout_s: float = 600.0  # for one attempt, first byte to last
    connect_timeout_s: float = 10.0
    max_attempts: int = 5
    max_concurrency: int = 16
    max_requests_per_minute: float = math.inf


class HTTPEndpoint:
    """A model behind `base_url` (".../v1"), asked over its completion and chat routes.

    Use as an async context manager, or call `aclose`. Raises ConfigError for a URL that is not
    http(s) or has no host.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        name: str | None = None,
        ledger: Ledger | None = None,
        price: Price | None = None,
        settings: HTTPSettings | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"base_url is {base_url!r:.200} but must begin with http(s)://host")
        self._settings = settings or HTTPSettings()
        self._model = model
        self._name = name or f"{model}@{parts.hostname}"
        self._ledger = ledger or Ledger()
        self._price = price or Price()
        self._slots = asyncio.Semaphore(self._settings.max_concurrency)
        self._pace = _Pace(self._settings.max_requests_per_minute)
        self._client = httpx2.AsyncClient(
            base_url=base_url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {api_key or 'EMPTY'}"},
            timeout=httpx2.Timeout(
                self._settings.timeout_s, connect=self._settings.connect_timeout_s
            ),
            follow_redirects=False,
            transport=transport,
        )

    @property
    def name(self) -> str:
        return self._name

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    @property
    def max_choices(self) -> int:
        return int(LIMITS["n"].high)

    async def generate(self, request: GenerateRequest) -> Completion:
        params = request.params
        if params.max_tokens is None:
            raise ConfigError("max_tokens is needed: a server's own limit bounds no budget")
        fields = _sampling_fields(params)
        if request.is_chat:
            path = "chat/completions"
            body: dict[str, Any] = {"messages": list(request.prompt), **fields}
            if params.logprobs is not None:
                body |= {"logprobs": True, "top_logprobs": params.logprobs}
        else:
            path, body = "completions", {"prompt": request.prompt, **fields}
            if params.logprobs is not None:
                body["logprobs"] = params.logprobs
        started = time.monotonic()
        kind: type[TextAnswer | ChatAnswer] = ChatAnswer if request.is_chat else TextAnswer
        answer = await self._ask(
            path,
            body,
            kind,
            request.purpose,
            prompt_tokens=_most_tokens(request.prompt),
            new_tokens=params.n * params.max_tokens,
            also=request.ledger,
        )
        choices = tuple(sorted(map(_choice, answer.choices), key=lambda c: c.index))
        if [c.index for c in choices] != list(range(params.n)):
            raise EndpointError(
                f"{self._name} answered {len(choices)} choices, but {params.n} were asked for"
            )
        usage = answer.usage.counts() if answer.usage else Usage(0, 0)
        if len(choices) == 1 and answer.usage:  # all tokens are those of the one answer
            choices = (replace(choices[0], n_tokens=usage.completion_tokens),)
        return Completion(choices, usage, time.monotonic() - started, answer.model or self._model)

    async def count_prompt(self, prompt: str | Sequence[Message]) -> int:
        return _most_tokens(prompt)

    async def score(self, text: str) -> TokenScores:
        body = {"prompt": text, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        answer = await self._ask(
            "completions",
            body,
            TextAnswer,
            "score",
            prompt_tokens=len(text.encode()) + 1,
            new_tokens=1,
        )
        if len(answer.choices) != 1 or answer.choices[0].logprobs is None:
            raise EndpointError(
                f"{self._name} cannot score a text: it does not echo it with log-probabilities"
            )
        n_new = answer.usage.completion_tokens if answer.usage else 1
        return _scores(answer.choices[0].logprobs, n_new, self._name)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    # --- one call, and its attempts -------------------------------------------------------

    async def _ask(
        self,
        path: str,
        body: Mapping[str, Any],
        kind: type[Answer],
        purpose: str,
        *,
        prompt_tokens: int,
        new_tokens: int,
        also: Ledger | None = None,
    ) -> Answer:
        content = msgspec.json.encode({"model": self._model, **body, "stream": False})
        async for attempt in tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_TryAgain),
            stop=tenacity.stop_after_attempt(self._settings.max_attempts),
            wait=_wait,
            sleep=_sleep,
            reraise=True,
        ):
            with attempt:
                await self._pace.turn()
                async with self._slots:
                    with self._ledger.call(
                        self._name,
                        purpose,
                        self._price,
                        prompt_tokens=prompt_tokens,
                        new_tokens=new_tokens,
                        also=also,
                    ) as reservation:
                        raw = await self._attempt(path, content, reservation)
                        answer = _decode(raw, kind, self._name)
                        if answer.usage is not None:  # else the call stays unknown
                            reservation.settle(answer.usage.counts())
                        return answer
        raise EndpointError(f"{self._name} was not asked: no attempt is allowed")

    async def _attempt(self, path: str, content: bytes, reservation: Reservation) -> bytes:
        """Send a request once; returns the body of a 200."""
        headers = {"Content-Type": "application/json"}
        try:
            async with (
                asyncio.timeout(self._settings.timeout_s),
                self._client.stream("POST", path, content=content, headers=headers) as response,
            ):
                raw = await _read(response, self._name)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as e:
            reservation.refuse()
            raise _TryAgain(f"{self._name} cannot be reached: {e}") from None
        except (httpx2.TransportError, TimeoutError) as e:
            raise _TryAgain(
                f"{self._name} broke off without an answer ({type(e).__name__})"
            ) from None
        except httpx2.DecodingError as e:
            raise EndpointError(f"{self._name} answered with damaged compression: {e}") from None
        if response.status_code == 200:
            return raw
        if response.status_code in REFUSED or 400 <= response.status_code < 408:
            reservation.refuse()
        raise _failure(response, raw, self._name)


class _TryAgain(EndpointError):
    """An attempt failed in a way that another may not; waits `after_s` if the server said so."""

    def __init__(self, message: str, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


_sleep = asyncio.sleep
_backoff = tenacity.wait_random_exponential(multiplier=0.5, max=30)


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, _TryAgain) and error.after_s is not None:
        return error.after_s
    return float(_backoff(state))


class _Pace:
    """At most so many requests per minute, evenly spaced."""

    def __init__(self, per_minute: float) -> None:
        self._gap = 60.0 / per_minute
        self._next = 0.0

    async def turn(self) -> None:
        now = time.monotonic()
        wait = max(self._next - now, 0.0)
        self._next = max(self._next, now) + self._gap
        if wait > 0:
            await asyncio.sleep(wait)


# --- what is sent ---------------------------------------------------------------------------


def _sampling_fields(p: SamplingParams) -> dict[str, Any]:
    """Return the request fields of what differs from every server's defaults."""
    fields: dict[str, Any] = {
        "max_tokens": p.max_tokens,
        "temperature": p.temperature,
        "top_p": p.top_p,
        "n": p.n,
    }
    defaults = SamplingParams()
    for name in (
        "seed",
        "top_k",
        "min_p",
        "min_tokens",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "ignore_eos",
    ):
        if getattr(p, name) != getattr(defaults, name):
            fields[name] = getattr(p, name)
    if p.stop:
        fields["stop"] = list(p.stop)
    if p.stop_token_ids:
        fields["stop_token_ids"] = list(p.stop_token_ids)
    if p.structured_outputs is not None:
        fields |= _form_field(p.structured_outputs)
    if p.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in p.logit_bias.items()}
    return fields


def _form_field(form: StructuredOutputs) -> dict[str, Any]:
    """Return OpenAI's field for JSON, which every server knows, and vLLM's for other forms."""
    if form.json_object:
        return {"response_format": {"type": "json_object"}}
    if form.json is not None:
        schema = json.loads(form.form().text)
        named = {"name": "answer", "strict": True, "schema": schema}
        return {"response_format": {"type": "json_schema", "json_schema": named}}
    given = {"regex": form.regex, "grammar": form.grammar, "choice": form.choice}
    return {"structured_outputs": {k: v for k, v in given.items() if v is not None}}


def _most_tokens(prompt: str | Sequence[Message]) -> int:
    """Return a bound on a prompt's tokens: every token stands for a byte or more."""
    if isinstance(prompt, str):
        return len(prompt.encode()) + 1
    return sum(len(msgspec.json.encode(message)) + MESSAGE_TOKENS for message in prompt)


# --- what comes back ------------------------------------------------------------------------


async def _read(response: httpx2.Response, name: str) -> bytes:
    parts, total = [], 0
    async for part in response.aiter_bytes():
        total += len(part)
        if total > MAX_ANSWER_NBYTES:
            raise EndpointError(f"{name} answered more than {MAX_ANSWER_NBYTES >> 20} MiB")
        parts.append(part)
    return b"".join(parts)


Answer = TypeVar("Answer", bound=TextAnswer | ChatAnswer)


def _decode(raw: bytes, kind: type[Answer], name: str) -> Answer:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as e:
        raise EndpointError(f"{name} answered 200 with something else than promised: {e}") from None


def _failure(response: httpx2.Response, raw: bytes, name: str) -> Exception:
    """Return what an error status means."""
    status = response.status_code
    code, message = _error_fields(raw)
    said = f"{name} answered {status}: {message}" if message else f"{name} answered {status}"
    if status == 400 and code == "context_length_exceeded":
        return ContextLengthError(said)
    if status in (400, 404, 413, 422):
        return ConfigError(said)
    retry = response.headers.get("x-should-retry", "").lower()
    if status in WORTH_ANOTHER_TRY and retry != "false":
        after = _retry_after(response.headers)
        if after is not None and after > MAX_WAIT_S:
            return EndpointError(f"{said} (asks to wait {after:.0f} s)")
        return _TryAgain(said, after)
    return EndpointError(said)


def _error_fields(raw: bytes) -> tuple[str | None, str]:
    """Return code and message of an error body, whatever it is."""
    try:
        error = msgspec.json.decode(raw[: 1 << 16], type=ErrorAnswer).error
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None, ""
    if isinstance(error, str):
        return None, error[:MAX_ERROR_CHARS]
    code = error.code if isinstance(error.code, str) else None
    return code, error.message[:MAX_ERROR_CHARS]


def _retry_after(headers: httpx2.Headers) -> float | None:
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    return None


def _choice(choice: TextChoice | ChatChoice) -> Choice:
    logprobs = choice.token_logprobs()
    return Choice(
        choice.index,
        choice.content(),
        choice.finish_reason,
        None if logprobs is None else tuple(x for x in logprobs if x is not None),
        choice.reasoning(),
    )


def _scores(echoed: LegacyLogprobs, n_new: int, name: str) -> TokenScores:
    """Read the log-probabilities of an echoed prompt, `n_new` further tokens left out."""
    n = len(echoed.tokens) - n_new
    logprobs, tops = echoed.token_logprobs[:n], echoed.top_logprobs or []
    lengths = {len(echoed.tokens), len(echoed.token_logprobs), len(echoed.text_offset), len(tops)}
    if len(lengths) != 1 or n < 1 or any(x is None for x in logprobs[1:]):
        raise EndpointError(f"{name} answered token log-probabilities that do not add up")
    greedy = [
        None if value is None or not top else value >= max(top.values())
        for value, top in zip(logprobs, tops[:n], strict=True)
    ]
    return TokenScores(
        tuple(echoed.tokens[:n]),
        tuple(echoed.text_offset[:n]),
        (None, *logprobs[1:]),
        (None, *greedy[1:]),
    )
