"""`LLM`: one model, loaded within a memory budget, that answers, streams and scores."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast, overload

import numpy as np
import numpy.typing as npt

from capax import _native
from capax.decoding.constraint import ConstraintCompiler, ConstraintFactory
from capax.decoding.params import (
    INT32_MAX,
    LIMITS,
    Limits,
    SamplingParams,
    check_number,
    elements_of,
    show,
)
from capax.decoding.sampling import Sampled, score_rows
from capax.decoding.structured import Form, StructuredOutputs
from capax.engine.background import Background
from capax.engine.contexts import Contexts
from capax.engine.engine import Engine
from capax.engine.method_contexts import MethodContexts
from capax.engine.outputs import (
    CompletionOutput,
    Logprob,
    PositionLogprobs,
    RequestOutput,
    Score,
    StreamPiece,
    Timings,
    Usage,
)
from capax.engine.sequence import Event, Request
from capax.engine.texts import Floats, Texts, TextTokens, check_finite, normalized
from capax.errors import CapacityError, ConfigError, ContextLengthError
from capax.files.chat_template import encode_chat
from capax.files.config import ModelConfig
from capax.files.model_file import ModelFile, open_model
from capax.files.registry import resolve
from capax.files.tokenizer import Tokenizer, load_tokenizer
from capax.kv import KVFootprint, kv_method
from capax.models import Model, ModelTensors, SequenceSlice, Step
from capax.planning.budget import Budget
from capax.planning.machine import read_machine, usable_threads
from capax.planning.plan import Plan, plan_run
from capax.planning.probe import cached_probe
from capax.planning.sizes import format_size, parse_size
from capax.settings import apply_isa
from capax.starting import without_collector

DEFAULT_PREFILL_CHUNK = 256
DEFAULT_PARALLEL = 16  # the heads of so many rows cost no more than that of one
COUNT = Limits(1, INT32_MAX, is_integer=True, may_be_none=True)

Prompt = str | Sequence[int]
Prompts = list[str] | list[list[int]]
Message = Mapping[str, Any]


class LLM:
    """A model from a registry name, a GGUF file or a Hugging Face directory.

    `memory`: a hard limit on everything capax holds (weights, packed copies, KV cache,
    scratch), as bytes or "300MiB"; None plans within what the machine has available.
    `ctx_size`: tokens of context; None takes the model's own, as far as the budget allows.
    `kv`: cache precision f32, f16, bf16 or int8, or a method such as "xquant:bits=4".
    `threads`: None takes the usable cores.
    `prefill_chunk`: prompt tokens per step; speed and scratch memory, never the result.
    `n_sequences`: whole contexts the KV cache has room for, fewer where the budget holds no more;
    shorter ones fit more often. `parallel`: most choices that run at once.

    Thread-safe: calls from several threads share the engine's steps. Raises FileFormatError
    for a bad file, ConfigError for a bad value, CapacityError when nothing fits.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        memory: int | str | None = None,
        ctx_size: int | None = None,
        threads: int | None = None,
        kv: str | None = None,
        seed: int = 0,
        prefill_chunk: int = DEFAULT_PREFILL_CHUNK,
        n_sequences: int = 1,
        parallel: int = DEFAULT_PARALLEL,
    ) -> None:
        started = time.perf_counter()
        for name, value in (("ctx_size", ctx_size), ("threads", threads)):
            check_number(name, value, COUNT)
        for name, value in (
            ("prefill_chunk", prefill_chunk),
            ("n_sequences", n_sequences),
            ("parallel", parallel),
        ):
            check_number(name, value, COUNT._replace(may_be_none=False))
        check_number("seed", seed, LIMITS["seed"]._replace(may_be_none=False))
        self.isa = apply_isa()
        self.name = str(model)
        with _native.DefaultFloatEnvironment():  # also what is derived here decides bits
            self.file: ModelFile = open_model(resolve(model))
        self.config: ModelConfig = self.file.config
        if self.config.encoder is not None:
            raise ConfigError(
                f"{self.name} is a {self.config.architecture} encoder, which writes no text; "
                "embed texts with it by capax.Embedder or 'capax embed'"
            )
        self.seed = seed
        machine = read_machine()
        self.plan: Plan = plan_run(
            self.file,
            Budget(memory=None if memory is None else parse_size(memory, "memory")),
            context_len=ctx_size,
            kv=kv,
            threads=threads,
            prefill_chunk=_chunk(prefill_chunk, parallel),
            n_sequences=n_sequences,
            logit_rows=max(parallel, DEFAULT_PARALLEL),
            machine=machine,
            probe=cached_probe(machine, self.isa, threads or usable_threads(machine).n),
            name=self.name,
        )
        self.threads = self.plan.threads
        with _native.DefaultFloatEnvironment(), without_collector():
            tensors = ModelTensors(self.file, self.plan.residency, n_threads=0)
        # Reading and packing weights leaves the interpreter free to build the tokenizer.
        packing = Background(lambda: tensors.pack(self.threads))
        with _native.DefaultFloatEnvironment(), without_collector(), packing:
            self.tokenizer: Tokenizer = load_tokenizer(self.file)
            self.file = self.file.without_merges()
            packing.result()
            # Else the scratch memory, much of which most runs never touch, would lie on the
            # 10 MiB that only making the tokenizer needed: 0.2 ms.
            _native.trim_heap()
            self._model = Model(
                self.config,
                tensors,
                context_len=self.plan.context_len,
                max_tokens=self.plan.prefill_chunk,
                max_logit_rows=self.plan.logit_rows,
                n_threads=self.threads,
            )
        method = kv_method(self.plan.kv)
        self._store = method.open(self.file, self.plan.n_pages, self.plan.n_running)
        self.text_tokens = TextTokens(self.tokenizer, self.config.vocab_size, self.context_len)
        self.engine = Engine(self._model, self._store, parallel)
        self._constraints = ConstraintCompiler(self.tokenizer, self.config.vocab_size)
        self._contexts_lock = threading.Lock()
        self.load_seconds = time.perf_counter() - started

    # --- what it is ---------------------------------------------------------------------

    @property
    def context_len(self) -> int:
        """Tokens of prompt and answer together that fit."""
        return self.plan.context_len

    def measured_memory(self) -> dict[str, int]:
        """Bytes held now: weights, KV pages taken so far, scratch."""
        return {
            "weights": self._model.weights_nbytes,
            "kv": self._store.nbytes,
            "scratch": self._model.scratch_nbytes,
        }

    def close(self) -> None:
        """Drop kept prefixes and grammars; memory goes back when the object does."""
        self.engine.forget()
        self._constraints.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- generating ---------------------------------------------------------------------

    @overload
    def generate(self, prompts: Prompt, params: SamplingParams | None = None) -> RequestOutput: ...
    @overload
    def generate(
        self, prompts: Prompts, params: SamplingParams | None = None
    ) -> list[RequestOutput]: ...
    def generate(
        self, prompts: Prompt | Prompts, params: SamplingParams | None = None
    ) -> RequestOutput | list[RequestOutput]:
        """Complete one prompt (text or token ids), or each of a list of them.

        Raises ConfigError for a prompt that leaves no room in the context.
        """
        params = params or SamplingParams()
        several, is_one = _as_list(prompts)
        outputs = self._generate([self.request(p, params) for p in several])
        return outputs[0] if is_one else outputs

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[StreamPiece]:
        """Yield news of the answer as it grows; leaving the loop early cancels the request."""
        return self._stream(self.request(prompt, params or SamplingParams()))

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        **template_options: Any,
    ) -> RequestOutput:
        """Answer a conversation of {"role", "content"} messages through the model's template."""
        ids = self.chat_ids(messages, **template_options)
        return self._generate([self.request(ids, params or SamplingParams())])[0]

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        **template_options: Any,
    ) -> Iterator[StreamPiece]:
        """Like `chat`, yielding pieces."""
        ids = self.chat_ids(messages, **template_options)
        return self._stream(self.request(ids, params or SamplingParams()))

    def chat_ids(self, messages: Sequence[Message], **template_options: Any) -> list[int]:
        """Render a conversation with the model's chat template and tokenise it."""
        return encode_chat(
            self.tokenizer, messages, template=self.file.chat_template, **template_options
        )

    def constraint(self, form: StructuredOutputs | Form) -> ConstraintFactory:
        """Compile the form of an answer. May take two seconds the first time.

        Raises ConfigError for one that does not compile.
        """
        return self._constraints.compile(form)

    # --- scoring ------------------------------------------------------------------------

    @overload
    def score(self, texts: Prompt) -> Score: ...
    @overload
    def score(self, texts: Prompts) -> list[Score]: ...
    def score(self, texts: Prompt | Prompts) -> Score | list[Score]:
        """Return the log-probability of each token of a text (or token ids) given those before."""
        several, is_one = _as_list(texts)
        scores = [self._score(self._prompt_ids(text)) for text in several]
        return scores[0] if is_one else scores

    def logits(
        self, token_ids: Sequence[int], *, chunk: int | None = None
    ) -> npt.NDArray[np.float32]:
        """Return the logits after each token: float32 [T, vocab_size].

        `chunk`: tokens per forward pass; the result does not depend on it, bit for bit.
        """
        ids = self._checked_ids(token_ids)
        out = np.empty((len(ids), self.config.vocab_size), np.float32)

        def keep(first: int, logits: npt.NDArray[np.float32]) -> None:
            out[first : first + len(logits)] = logits

        self._forward_all(ids, keep, chunk)
        return out

    def max_contexts(self, n_tokens: int) -> int:
        """Return how many contexts of `n_tokens` the KV cache has room for at once."""
        n = self._store.capacity // self._store.pages_for(n_tokens)
        return min(n, self.plan.n_running) if self.plan.kv_footprint.sequence else n

    @contextmanager
    def contexts(self, n: int, n_tokens: int) -> Iterator[Contexts]:
        """`n` empty contexts of up to `n_tokens` each, for code that chooses tokens itself.

        Waits until there is room. Raises CapacityError if there never will be.
        """
        if n > self.max_contexts(n_tokens):
            raise CapacityError(
                f"{n} contexts of {n_tokens} tokens do not fit: the KV cache holds "
                f"{self.max_contexts(n_tokens)}; raise the memory budget or n_sequences"
            )
        with ExitStack() as stack:
            with self._contexts_lock:  # one taker at a time: two with half of each would wait
                caches = [stack.enter_context(self.engine.direct_cache(n_tokens)) for _ in range(n)]
            yield Contexts(self.engine, self._model, caches)

    @contextmanager
    def contexts_by(self, methods: Sequence[str], n_tokens: int) -> Iterator[MethodContexts]:
        """One empty context of up to `n_tokens` by each of several KV methods over this model.

        They are for comparing methods and lie beside this object's own KV cache, which stays empty
        meanwhile. Raises CapacityError if they do not fit the budget together, ConfigError for a
        method that does not work with this model.
        """
        footprints = self.check_contexts_by(methods, n_tokens)
        stores = [
            kv_method(method).open(
                self.file, MethodContexts.COPIES * f.pages_for(n_tokens), MethodContexts.COPIES
            )
            for method, f in zip(methods, footprints, strict=True)
        ]
        contexts = MethodContexts(self.engine, self._model, stores)
        try:
            yield contexts
        finally:
            contexts.reset()

    def check_contexts_by(self, methods: Sequence[str], n_tokens: int) -> list[KVFootprint]:
        """Return what each method of `contexts_by` takes; raises as it does, and opens nothing."""
        if n_tokens > self.context_len:
            raise ContextLengthError(
                f"{n_tokens:,} tokens are wanted but the context holds {self.context_len:,}; "
                "raise ctx_size"
            )
        footprints = [kv_method(method).footprint(self.config) for method in methods]
        wanted = sum(f.nbytes(n_tokens, MethodContexts.COPIES) + f.scratch for f in footprints)
        room = self.plan.limit.nbytes - (self.plan.total_nbytes - self.plan.footprint.kv)
        if wanted > room:
            raise CapacityError(
                f"contexts of {n_tokens:,} tokens by {len(methods)} KV methods take "
                f"{format_size(wanted)} and the budget leaves {format_size(room)}; raise the "
                "memory budget, or compare fewer methods or fewer tokens"
            )
        return footprints

    # --- embedding ----------------------------------------------------------------------

    @property
    def n_dimensions(self) -> int:
        """Numbers in an embedding."""
        return self.config.d_model

    def embed(self, texts: Texts, *, truncate: int | None = None) -> Floats:
        """Return the embedding of each text (or list of token ids): float32 [n, n_dimensions].

        The mean of the text's final hidden states, after the last norm, brought to length 1.
        Models trained to write are middling at this; `Embedder` runs those trained for it.
        `truncate`: cut texts to so many tokens, keeping their beginning; without it a text
        that is too long raises ContextLengthError with both counts.
        """
        return self.embed_ids(self.text_tokens.ids_of(texts, truncate))

    def embed_ids(self, texts: Sequence[Sequence[int]]) -> Floats:
        """Return the embedding of each list of token ids."""
        ids = [self.text_tokens.checked(i, text).tolist() for i, text in enumerate(texts)]
        out = np.empty((len(ids), self.n_dimensions), np.float32)
        for i, text in enumerate(ids):
            total = np.zeros(self.n_dimensions)

            def add(_: int, hidden: Floats, total: npt.NDArray[np.float64] = total) -> None:
                for row in hidden:  # one by one: the order must not depend on the chunks
                    total += row

            self._forward_all(text, add, head=self._model.run_hidden)
            out[i] = normalized(total / len(text))
        check_finite(out)
        return out

    # --- benchmarking -------------------------------------------------------------------

    def bench_prefill(self, n_tokens: int, depth: int = 0) -> float:
        """Seconds to compute `n_tokens` of a prompt after `depth` cached ones."""
        return self._bench(n_tokens, depth, self._model.max_tokens)

    def bench_decode(self, n_tokens: int, depth: int = 0) -> float:
        """Seconds to decode `n_tokens` one by one, nothing sampled, after `depth` cached ones."""
        return self._bench(n_tokens, depth, 1)

    def bench_batch(self, n_sequences: int, n_tokens: int, depth: int) -> float:
        """Seconds to decode `n_tokens` of each of several sequences together, nothing sampled.

        Each begins with `depth` tokens of its own. Raises CapacityError if they do not fit.
        """
        rng = np.random.default_rng(self.seed)
        ids = rng.integers(0, self.config.vocab_size, (n_sequences, depth + n_tokens)).tolist()
        everyone = range(n_sequences)
        with self.contexts(n_sequences, depth + n_tokens) as contexts:
            for i in everyone:
                for begin in range(0, depth, self._model.max_tokens):
                    part = ids[i][begin : min(begin + self._model.max_tokens, depth)]
                    contexts.advance([(i, part)])
            started = time.perf_counter()
            for step in range(depth, depth + n_tokens):
                contexts.advance([(i, ids[i][step : step + 1]) for i in everyone])
            return time.perf_counter() - started

    # --- inside -------------------------------------------------------------------------

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self._checked_ids(self.tokenizer.encode(prompt))
        return self._checked_ids(prompt)

    def _checked_ids(self, token_ids: Sequence[int]) -> list[int]:
        ids = as_token_ids(token_ids)
        if not ids:
            raise ConfigError("the prompt is empty; at least one token is needed")
        for token in ids:
            if not 0 <= token < self.config.vocab_size:
                raise ConfigError(
                    f"token id {show(token)} is outside the vocabulary of {self.config.vocab_size}"
                )
        if len(ids) > self.context_len:
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens but the context holds {self.context_len}; "
                "shorten it or raise ctx_size"
            )
        return ids

    def request(self, prompt: Prompt, params: SamplingParams) -> Request:
        """Return a request for the engine. Raises ConfigError for what it cannot answer."""
        ids = self._prompt_ids(prompt)
        room = self.context_len - len(ids)
        wanted = max(room, 1) if params.max_tokens is None else params.max_tokens
        if wanted > room:
            raise ContextLengthError(
                f"{len(ids)} prompt tokens and max_tokens {wanted} are {len(ids) + wanted} but "
                f"the context holds {self.context_len}; shorten the prompt, lower max_tokens or "
                "raise ctx_size"
            )
        params.check_vocabulary(self.config.vocab_size)
        if params.seed is None:
            params = params.with_seed(self.seed)
        text = prompt if isinstance(prompt, str) else None
        request = Request(ids, params, wanted, self.tokenizer, text)
        if params.structured_outputs is not None:
            request.constraint = self.constraint(params.structured_outputs)
        return request

    def _generate(self, requests: list[Request]) -> list[RequestOutput]:
        try:
            for request in requests:
                self.engine.submit(request)
            while not all(r.is_finished for r in requests):
                self.engine.step()
            for request in requests:
                request.raise_error()
        except BaseException:
            for request in requests:
                self.engine.cancel(request)
            raise
        return [self._output(r) for r in requests]

    def _stream(self, request: Request) -> Iterator[StreamPiece]:
        try:
            self.engine.submit(request)
            while True:
                while request.events:
                    event = request.events.popleft()
                    yield self.piece(request, event)
                    if event.is_last:
                        return
                request.raise_error()
                if request.is_over:
                    return
                self.engine.step()
        finally:
            self.engine.cancel(request)

    def piece(self, request: Request, event: Event) -> StreamPiece:
        """Return an event of a request as callers see it."""
        wanted = request.params.logprobs is not None
        sampled = event.sampled
        return StreamPiece(
            event.sequence.index,
            event.text,
            [] if sampled is None else [sampled.token],
            [self._position(sampled)] if wanted and sampled is not None else None,
            event.finish_reason,
            self._output(request) if event.is_last else None,
        )

    def _output(self, request: Request) -> RequestOutput:
        wanted = request.params.logprobs is not None
        outputs = [
            CompletionOutput(
                index=s.index,
                text=s.text,
                token_ids=s.output_ids,
                finish_reason=s.finish_reason or "cancelled",
                cumulative_logprob=sum(x.logprob for x in s.sampled),
                logprobs=[self._position(x) for x in s.sampled] if wanted else None,
            )
            for s in request.sequences
        ]
        n_prompt, n_new = len(request.prompt_ids), sum(len(o.token_ids) for o in outputs)
        first = request.first_token_s or time.perf_counter()
        end = request.finished_s or time.perf_counter()
        return RequestOutput(
            prompt=request.prompt,
            prompt_token_ids=request.prompt_ids,
            outputs=outputs,
            usage=Usage(n_prompt, n_new, request.n_cached),
            timings=Timings(
                cache_n=request.n_cached,
                prompt_n=n_prompt - request.n_cached,
                prompt_ms=1e3 * (first - (request.started_s or first)),
                # The first token of each choice comes out of the prompt's own pass.
                predicted_n=max(0, n_new - len(outputs)),
                predicted_ms=1e3 * (end - first),
            ),
            prompt_logprobs=self._prompt_logprobs(request),
        )

    def _position(self, sampled: Sampled) -> PositionLogprobs:
        def entry(token: int, logprob: float, rank: int | None) -> Logprob:
            return Logprob(logprob, rank, self.tokenizer.token_text(token))

        position = {sampled.token: entry(sampled.token, sampled.logprob, None)}
        for rank, (token, logprob) in enumerate(sampled.top, start=1):
            position[token] = entry(token, logprob, rank)
        return position

    def _score(self, ids: list[int]) -> Score:
        logprobs: list[float | None] = [None]
        is_greedy: list[bool | None] = [None]

        def keep(first: int, logits: npt.NDArray[np.float32]) -> None:
            targets = ids[first + 1 : first + 1 + len(logits)]
            scored = score_rows(logits[: len(targets)], np.array(targets, np.int32))
            logprobs.extend(scored.logprobs)
            is_greedy.extend(scored.is_greedy)

        self._forward_all(ids, keep)
        return Score(ids, logprobs, is_greedy)

    def _prompt_logprobs(self, request: Request) -> list[PositionLogprobs | None] | None:
        if request.params.prompt_logprobs is None:
            return None
        tokens = iter(request.prompt_ids[1:])
        positions: list[PositionLogprobs | None] = [None]
        for scored in request.prompt_scores:
            for logprob, top in zip(scored.logprobs, scored.top, strict=True):
                positions.append(self._position(Sampled(next(tokens), logprob, top)))
        return positions

    def _forward_all(
        self,
        ids: list[int],
        keep: Callable[[int, npt.NDArray[np.float32]], None],
        chunk: int | None = None,
        head: Callable[[npt.NDArray[np.int32]], Floats] | None = None,
    ) -> None:
        """Compute every row's logits, a few rows at a time: keep(first row, logits).

        `head`: what else to compute of rows, in place of `Model.run_head`.
        """
        model = self._model
        head = head or model.run_head
        check_number("chunk", chunk, COUNT)
        chunk = min(chunk or model.max_tokens, model.max_tokens)
        with self.engine.direct_cache(len(ids)) as cache:
            for begin in range(0, len(ids), chunk):
                part = np.array(ids[begin : begin + chunk], np.int32)
                with self.engine.exclusive():
                    cache.reserve(len(part))
                    model.run_body(
                        Step(part, [SequenceSlice(cache, 0, len(part))], np.empty(0, np.int32))
                    )
                    for row in range(0, len(part), model.max_logit_rows):
                        rows = np.arange(
                            row, min(row + model.max_logit_rows, len(part)), dtype=np.int32
                        )
                        keep(begin + row, head(rows))

    def _bench(self, n_tokens: int, depth: int, chunk: int) -> float:
        if n_tokens < 1 or depth < 0 or depth + n_tokens > self.context_len:
            raise ConfigError(
                f"{n_tokens} tokens at depth {depth} do not fit the context of {self.context_len}"
            )
        # Tokens that differ; numpy's generators would cost 5 MiB and 10 ms to import.
        positions = np.arange(depth + n_tokens, dtype=np.int64)
        ids = ((self.seed + 1 + positions) * 7919 % self.config.vocab_size).astype(np.int32)
        nothing, first_row = np.empty(0, np.int32), np.zeros(1, np.int32)
        with self.engine.direct_cache(len(ids)) as cache, self.engine.exclusive():
            for begin in range(0, depth, self._model.max_tokens):
                part = ids[begin : min(begin + self._model.max_tokens, depth)]
                cache.reserve(len(part))
                self._model.run_body(Step(part, [SequenceSlice(cache, 0, len(part))], nothing))
            started = time.perf_counter()
            for begin in range(depth, len(ids), chunk):
                part = ids[begin : begin + chunk]
                cache.reserve(len(part))
                last = begin + len(part) == len(ids)
                rows = first_row + (len(part) - 1) if chunk == 1 or last else nothing
                self._model.forward(Step(part, [SequenceSlice(cache, 0, len(part))], rows))
            return time.perf_counter() - started


def _chunk(prefill_chunk: int, parallel: int) -> int:
    """Return the tokens of a step: as many prompt tokens beside those of all who decode."""
    return prefill_chunk if parallel <= DEFAULT_PARALLEL else max(prefill_chunk, 2 * parallel)


def as_token_ids(token_ids: Any) -> list[int]:
    """Return token ids as plain integers. Raises ConfigError for anything else."""
    ids = elements_of("the prompt", token_ids)
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int | np.integer):
            raise ConfigError(
                f"the prompt contains {show(token)} but must be text or a list of token ids"
            )
    return [int(token) for token in ids]


def _as_list(prompts: Prompt | Prompts) -> tuple[Sequence[Prompt], bool]:
    """Return the prompts as a sequence, and whether it was a single one (text or token ids)."""
    if isinstance(prompts, str):
        return [prompts], True
    several = elements_of("the prompt", prompts)
    if several and not isinstance(several[0], str | Sequence | np.ndarray):
        return [cast(Prompt, prompts)], True
    return cast(Sequence[Prompt], several), False
