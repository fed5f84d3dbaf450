"""Choose what fits a budget, predict what it will cost, or say what would fit.

A KV cache for several whole contexts holds as many as fit, but never less than one. Then, in this
order, the first that fits is taken:
  1. every matrix packed in memory, the whole context, KV in f16;
  2. the same with KV in int8;
  3. a context shrunk to what fits, not below 2,048 tokens;
  4. matrices streamed from the file, as few as needed, at that least context;
  5. every matrix streamed and a context down to 256 tokens.
What the caller fixed (context, KV type) is never changed. More memory never gives a worse
plan. Whatever differs from the model's own figures is said in `Plan.notes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from capax.errors import CapacityError, ConfigError
from capax.files.model_file import ModelFile
from capax.kv import PAGE_TOKENS, KVFootprint, kv_method, kv_name
from capax.planning.budget import Budget, Limit
from capax.planning.footprint import (
    Footprint,
    Shape,
    footprint,
    matrix_names,
    packed_matrix_nbytes,
    stream_buffer_nbytes,
)
from capax.planning.machine import Machine, read_machine, thread_notes, usable_threads
from capax.planning.prediction import Prediction, decode_seconds, output_name, predict
from capax.planning.probe import Probe
from capax.planning.sizes import MAX_NBYTES, MIB, format_size, size_argument
from capax.weights import Residency

PREFILL_CHUNK = 256
LOGIT_ROWS = 16
USEFUL_CONTEXT = 2048
LEAST_CONTEXT = 256
MAX_THREADS = 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """What was chosen, what it will hold and, where the machine is probed, how fast it is.

    `limit`: the bytes it stays below; `footprint.total` is its own figure. `residency`: one
    entry per matrix. `kv_footprint`: what `footprint.kv` is made of. `notes`: one sentence per
    choice that differs from what the model or the machine would give without a budget.
    """

    model: str
    limit: Limit
    shape: Shape
    threads_reason: str
    residency: Mapping[str, Residency]
    footprint: Footprint
    kv_footprint: KVFootprint
    prediction: Prediction | None
    notes: tuple[str, ...]

    @property
    def context_len(self) -> int:
        return self.shape.context_len

    @property
    def kv(self) -> str:
        """The KV method's spelling; a precision alone is that of the full cache."""
        return self.shape.kv

    @property
    def threads(self) -> int:
        return self.shape.threads

    @property
    def prefill_chunk(self) -> int:
        return self.shape.prefill_chunk

    @property
    def n_sequences(self) -> int:
        return self.shape.n_sequences

    @property
    def logit_rows(self) -> int:
        return self.shape.logit_rows

    @property
    def n_pages(self) -> int:
        """KV pages for every sequence's whole context."""
        return self.n_sequences * self.kv_footprint.pages_for(self.context_len)

    @property
    def n_running(self) -> int:
        """Sequences at once that have room for what their method keeps besides pages."""
        return max(self.n_sequences, self.logit_rows)

    @property
    def total_nbytes(self) -> int:
        return self.footprint.total

    @property
    def streamed(self) -> frozenset[str]:
        return self.shape.streamed

    def to_json(self) -> dict[str, Any]:
        shape = asdict(self.shape)
        shape["streamed"] = sorted(self.shape.streamed)
        return {
            "model": self.model,
            "limit_bytes": self.limit.nbytes,
            "limit_source": self.limit.source,
            "fits": True,
            "bytes": self.footprint.to_json(),
            "kv_bytes": asdict(self.kv_footprint),
            **shape,
            "threads_reason": self.threads_reason,
            "predicted": None if self.prediction is None else asdict(self.prediction),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class Alternative:
    """A way out that was checked to fit: arguments for `plan_run`, None where unchanged."""

    summary: str
    memory: int | None
    context_len: int | None
    kv: str | None


class DoesNotFit(CapacityError):
    """Nothing that was allowed fits; `alternatives` do, the nearest to the wish first."""

    def __init__(
        self, message: str, alternatives: tuple[Alternative, ...], needed: Footprint
    ) -> None:
        super().__init__(message)
        self.alternatives = alternatives
        self.needed = needed


def plan_run(
    model: ModelFile,
    budget: Budget,
    *,
    context_len: int | None = None,
    kv: str | None = None,
    threads: int | None = None,
    prefill_chunk: int = PREFILL_CHUNK,
    n_sequences: int = 1,
    logit_rows: int = LOGIT_ROWS,
    machine: Machine | None = None,
    probe: Probe | None = None,
    name: str | None = None,
) -> Plan:
    """Plan a run of `model` within `budget`, reading nothing but the headers already read.

    `context_len`: tokens per sequence, None: the model's own, shrunk if it must be.
    `kv`: a KV method (`capax.kv.parse_kv`), None: f16 (f32 for encoders), or int8 where only
    that fits.
    `probe`: the machine's figures; without one there is no prediction.
    `name`: what the user calls the model, for messages; None: the name of its file.
    Raises DoesNotFit (a CapacityError) with what would fit; ConfigError for a value outside
    its range.
    """
    machine = machine or read_machine()
    choice = usable_threads(machine)
    n_threads = choice.n if threads is None else threads
    encoder = model.config.encoder
    own = encoder.max_tokens if encoder else model.config.context_len
    full = own if context_len is None else context_len
    _check("context length", full, 1, model.config.context_len, "the model was trained for")
    _check("threads", n_threads, 1, MAX_THREADS, "capax runs at most")
    _check("prefill chunk", prefill_chunk, 1, 1 << 16, "capax takes at most")
    _check("number of sequences", n_sequences, 1, 1 << 16, "capax runs at most")
    wish = _Wish(
        model=model,
        name=name or model.path.name,
        limit=budget.resolve(machine),
        shape=Shape(
            context_len=full,
            kv=_default_kv(model) if kv is None else _checked_kv(model, kv),
            threads=n_threads,
            # An encoder sees a text as a whole or not at all.
            prefill_chunk=max(prefill_chunk, full) if encoder else min(prefill_chunk, full),
            n_sequences=n_sequences,
            logit_rows=logit_rows,
        ),
        is_context_fixed=context_len is not None,
        is_kv_fixed=kv is not None or model.config.landmark is not None,
        available_at_most=Budget(MAX_NBYTES).resolve(machine).nbytes,
        probe=probe,
    )
    shape = wish.with_fewer_sequences().choose()
    if shape is None:
        raise _refusal(wish.with_fewer_sequences())
    return Plan(
        model=wish.name,
        limit=wish.limit,
        shape=shape,
        threads_reason=choice.reason if threads is None else "as asked",
        residency={
            name: "streamed" if name in shape.streamed else "packed" for name in matrix_names(model)
        },
        footprint=footprint(model, shape),
        kv_footprint=kv_method(shape.kv).footprint(model.config),
        prediction=None if probe is None or encoder else predict(model, shape, probe),
        notes=(*thread_notes(machine, threads), *_notes(wish, shape, budget)),
    )


def _default_kv(model: ModelFile) -> str:
    if model.config.landmark is not None:
        return "landmark"
    return "f32" if model.config.encoder else "f16"


def _checked_kv(model: ModelFile, kv: str) -> str:
    name = kv_name(kv)
    if model.config.landmark is not None and name.partition(":")[0] != "landmark":
        raise ConfigError(
            f"{model.path.name} was trained with landmark tokens, which {name!r} neither inserts "
            "nor reads by; use kv=landmark"
        )
    return name


def _check(name: str, value: int, low: int, high: int, why: str) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value:,}; {why} {high:,} (least: {low})")


@dataclass(frozen=True, slots=True)
class _Wish:
    """What was asked for, and the search for the best that fits."""

    model: ModelFile
    name: str
    limit: Limit
    shape: Shape
    is_context_fixed: bool
    is_kv_fixed: bool
    available_at_most: int  # bytes that no --memory can exceed on this machine
    probe: Probe | None

    def fits(self, shape: Shape) -> bool:
        return footprint(self.model, shape).total <= self.limit.nbytes

    @property
    def smallest_kv(self) -> Shape:
        return self.shape if self.is_kv_fixed else replace(self.shape, kv="int8")

    def at_least(self, context_len: int) -> int:
        """The context that must be reached: all of it, if it was fixed."""
        full = self.shape.context_len
        return full if self.is_context_fixed else min(full, context_len)

    def with_fewer_sequences(self) -> _Wish:
        """Return the wish with as many whole contexts as fit beside all else, at least one."""
        n = self.shape.n_sequences
        if n == 1 or self.fits(self.shape):
            return self
        low, high = 1, n  # one may not fit either: what else gives way then is decided for one
        while high - low > 1:
            middle = (low + high) // 2
            fits = self.fits(replace(self.shape, n_sequences=middle))
            low, high = (middle, high) if fits else (low, middle)
        return replace(self, shape=replace(self.shape, n_sequences=low))

    def choose(self) -> Shape | None:
        small = self.smallest_kv
        for shape in dict.fromkeys((self.shape, small)):
            if self.fits(shape):
                return shape
        shrunk = self.largest_context(small, self.at_least(USEFUL_CONTEXT))
        if shrunk is not None:
            return shrunk
        useful = replace(small, context_len=self.at_least(USEFUL_CONTEXT))
        streamed = self.fewest_streamed(useful)
        if streamed is not None:
            return streamed
        # Not above that context: a little more memory would then mean a shorter one again.
        everything = replace(useful, streamed=frozenset(matrix_names(self.model)))
        return self.largest_context(everything, self.at_least(LEAST_CONTEXT))

    def largest_context(self, shape: Shape, least: int) -> Shape | None:
        """Return `shape` with the longest context in [least, its own] that fits."""
        n = longest_context(self.model, shape, self.limit.nbytes, least)
        return None if n is None else replace(shape, context_len=n)

    def fewest_streamed(self, shape: Shape) -> Shape | None:
        """Return `shape` with as few bytes streamed as it takes to fit.

        Two orders are tried, the large output matrix first or last; both only ever stream
        more when less memory is left.
        """
        found = [s for order in self.streaming_orders() if (s := self.shortest(shape, order))]
        return min(found, key=lambda s: self.bytes_per_token(s.streamed), default=None)

    def bytes_per_token(self, streamed: Iterable[str]) -> int:
        lookup = set() if self.model.config.tied_embeddings else {"token_embd.weight"}
        return sum(self.model.tensors[name].nbytes for name in streamed if name not in lookup)

    def streaming_orders(self) -> Iterator[list[str]]:
        """An embedding that is only looked up comes first: one row per token costs nothing."""
        output = output_name(self.model)
        lookup = [] if self.model.config.tied_embeddings else ["token_embd.weight"]
        names = matrix_names(self.model)
        inner = [n for n in reversed(names) if n not in (output, *lookup)]
        last = [output] if output in names else []  # an encoder has no logits
        yield [*lookup, *inner, *last]
        yield [*lookup, *last, *inner]

    def shortest(self, shape: Shape, order: list[str]) -> Shape | None:
        """Return `shape` with the shortest beginning of `order` streamed that fits."""
        fixed = footprint(self.model, shape).total
        freed = buffer = 0
        for n, name in enumerate(order, 1):
            freed += packed_matrix_nbytes(self.model, name)
            buffer = max(buffer, stream_buffer_nbytes(self.model, name))
            if fixed - freed + shape.threads * buffer <= self.limit.nbytes:
                found = replace(shape, streamed=frozenset(order[:n]))
                if self.fits(found):  # the sum above ignores the rounding to large pages
                    return found
        return None


def longest_context(
    model: ModelFile, shape: Shape, nbytes: int, least: int = LEAST_CONTEXT
) -> int | None:
    """Return the longest context in [least, that of `shape`] that `nbytes` hold, None if none.

    Whole pages of 64 tokens, but the ends of the range are exact.
    """

    def fits(context_len: int) -> bool:
        return footprint(model, replace(shape, context_len=context_len)).total <= nbytes

    full = shape.context_len
    least = min(least, full)
    if not fits(least):
        return None
    if fits(full):
        return full
    low, high = least // PAGE_TOKENS, -(-full // PAGE_TOKENS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * PAGE_TOKENS) else (low, middle)
    return max(least, low * PAGE_TOKENS)


def _notes(wish: _Wish, shape: Shape, budget: Budget) -> Iterator[str]:
    if budget.memory is not None and wish.limit.nbytes < budget.memory:
        yield (
            f"the budget of {format_size(budget.memory)} is lowered to {wish.limit}: "
            "the rest cannot be had here"
        )
    if shape.n_sequences < wish.shape.n_sequences:
        yield (
            f"KV cache for {shape.n_sequences} whole contexts instead of {wish.shape.n_sequences} "
            "to stay in the budget; shorter ones fit more often"
        )
    if shape.kv != wish.shape.kv:
        yield f"KV cache in {shape.kv} instead of {wish.shape.kv} to stay in the budget"
    if shape.context_len < wish.shape.context_len:
        yield (
            f"context of {shape.context_len:,} tokens instead of the model's "
            f"{wish.shape.context_len:,} to stay in the budget"
        )
    if shape.streamed:
        nbytes = sum(wish.model.tensors[name].nbytes for name in shape.streamed)
        yield (
            f"{len(shape.streamed)} of {len(matrix_names(wish.model))} matrices "
            f"({format_size(nbytes)}) are read from the file at every step"
        )


# --- refusing ------------------------------------------------------------------------


def _refusal(wish: _Wish) -> DoesNotFit:
    ways = tuple(_ways_out(wish))[:3]
    small = replace(wish.smallest_kv, context_len=wish.at_least(LEAST_CONTEXT))
    needed = footprint(wish.model, replace(small, streamed=frozenset(matrix_names(wish.model))))
    shown = footprint(wish.model, small)
    smallest = min(needed, shown, key=lambda f: f.total)
    return DoesNotFit(
        f"{wish.name} with {small.context_len:,} tokens of {small.kv} KV needs at "
        f"least {format_size(smallest.total)} and the limit is {wish.limit}: "
        f"{ways[0].summary.partition(' (')[0]} would fit",
        ways,
        smallest,
    )


def _ways_out(wish: _Wish) -> Iterator[Alternative]:
    """Yield what would fit, the nearest to the wish first; each was checked."""
    everything = frozenset(matrix_names(wish.model))
    streamed = replace(wish.shape, streamed=everything)
    least = min(wish.shape.context_len, LEAST_CONTEXT)
    if wish.is_kv_fixed and wish.shape.kv != "int8":
        int8 = replace(streamed, kv="int8")
        if wish.fits(int8):
            yield Alternative("--kv int8", None, None, "int8")
        else:
            smaller = wish.largest_context(int8, least)
            if smaller is not None:
                n = smaller.context_len
                yield Alternative(f"--kv int8 --ctx-size {n}", None, n, "int8")
    smaller = wish.largest_context(replace(streamed, kv=wish.smallest_kv.kv), least)
    if smaller is not None and smaller.context_len < wish.shape.context_len:
        n = smaller.context_len
        yield Alternative(f"--ctx-size {n}", None, n, None)
    shortest = replace(streamed, kv=wish.smallest_kv.kv, context_len=least)
    reached = replace(shortest, context_len=wish.at_least(LEAST_CONTEXT))
    useful = replace(wish.smallest_kv, context_len=wish.at_least(USEFUL_CONTEXT))
    for shape, context_len, why in (
        (reached, None, f"weights streamed from the file{_speed(wish, reached)}"),
        (useful, None, f"every weight in memory{_speed(wish, useful)}"),
        (shortest, least, f"weights streamed from the file{_speed(wish, shortest)}"),
        (wish.shape, None, f"every weight and {wish.shape.context_len:,} tokens in memory"),
    ):
        memory = _whole_mib(footprint(wish.model, shape).total)
        is_new = context_len is None or context_len < reached.context_len
        if memory > wish.limit.nbytes and is_new:
            shorter = "" if context_len is None else f" --ctx-size {context_len}"
            yield Alternative(f"{_more(wish, memory)}{shorter} ({why})", memory, context_len, None)


def _speed(wish: _Wish, shape: Shape) -> str:
    """What the plan would decode at, where the machine is probed: somebody may decline it."""
    if wish.probe is None:
        return ""
    return f", about {1 / decode_seconds(wish.model, shape, wish.probe, 0):.3g} tok/s"


def _more(wish: _Wish, memory: int) -> str:
    if memory <= wish.available_at_most:
        return f"--memory {size_argument(memory)}"
    return f"a machine or container with {size_argument(memory)} of memory"


def _whole_mib(nbytes: int) -> int:
    return -(-nbytes // MIB) * MIB
