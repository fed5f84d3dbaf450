"""KV methods side by side on one model: quality, bytes, speed and what they still find.

A run is made of cells, each kept when it is done: quality of a method on a chunk, decode speed of
all methods at a depth, answers of a method to a prompt. Speeds are taken in short bursts, one
method after another and round again, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from capax.engine.llm import LLM
from capax.engine.method_contexts import MethodContexts
from capax.errors import CapacityError, CapaxError, ConfigError
from capax.files.config import ModelConfig
from capax.files.digest import weights_digest
from capax.kv import kv_method, kv_name, parse_kv
from capax.measuring import needles
from capax.measuring.cells import Cells, Key, Value
from capax.measuring.kv_quality import (
    OFF_BY,
    REFERENCE,
    ChunkQuality,
    Row,
    check_methods,
    measure_chunk_in,
    summarize,
    takes_whole_blocks,
)
from capax.measuring.perplexity import windows_of

__all__ = [
    "OFF_BY",
    "Chosen",
    "Found",
    "MethodReport",
    "Settings",
    "Speed",
    "check",
    "check_depths",
    "choose",
    "control_of",
    "run",
    "settings_of",
]

BURST_TOKENS = 16
WARM_UP_TOKENS = 4
MAX_BURST_SECONDS = 20.0  # of a method at a depth; then two bursts are enough
Progress = Callable[[str, int, int], None]

_EVICTING = ("stream", "h2o", "snapkv", "trim")
_QUANTISING = ("kivi", "xquant", "million")
_UNIFORM_BITS = (2, 3, 4, 8)


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides the figures besides model, text and methods.

    `context`: tokens of a chunk and of a haystack; `depths`: tokens in the cache while decoding is
    timed, `bursts` of 16 tokens; `n_prompts`: of each kind of needle; 0 leaves a part out.
    """

    context: int = 4096
    n_chunks: int = 4
    depths: tuple[int, ...] = (256, 1024, 4096)
    bursts: int = 8
    n_prompts: int = 8
    seed: int = 0

    @property
    def context_needed(self) -> int:
        """The longest that any part reaches."""
        needle = self.context + needles.QUESTION_ROOM if self.n_prompts else 0
        decoded = self.bursts * BURST_TOKENS + WARM_UP_TOKENS
        return max(self.context, needle, max(self.depths, default=0) + decoded)


@dataclass(frozen=True, slots=True)
class Speed:
    """Decoded tokens per second at a depth: median of the bursts, and the slowest of them."""

    median: float
    slowest: float
    n_bursts: int


@dataclass(frozen=True, slots=True)
class Found:
    """Questions answered right."""

    n_right: int
    n_questions: int


@dataclass(frozen=True, slots=True)
class MethodReport:
    """One line of the comparison. `control_of`: the methods it is the control of."""

    name: str
    control_of: tuple[str, ...]
    quality: Row
    speeds: Mapping[int, Speed]
    passkey: Found | None
    multi_needle: Found | None

    def to_json(self) -> dict[str, Any]:
        quality = asdict(self.quality)
        quality["kl_interval"] = list(self.quality.kl_interval)
        return {
            "name": self.name,
            "control_of": list(self.control_of),
            **quality,
            "total_bytes_per_token": self.quality.total_bytes_per_token,
            "prediction_error": self.quality.prediction_error,
            "tokens_per_second": {str(d): asdict(s) for d, s in self.speeds.items()},
            "passkey": None if self.passkey is None else asdict(self.passkey),
            "multi_needle": None if self.multi_needle is None else asdict(self.multi_needle),
        }


@dataclass(frozen=True, slots=True)
class Chosen:
    """Methods of a run by canonical spelling: the name to show, and whose control it is."""

    names: Mapping[str, str]
    controls: Mapping[str, tuple[str, ...]]

    @property
    def methods(self) -> list[str]:
        """The reference first."""
        return list(self.names)


def choose(config: ModelConfig, methods: Sequence[str], *, with_controls: bool = True) -> Chosen:
    """Return the reference, the methods, and a control for each that loses something.

    Raises ConfigError for a method that is unknown or does not work with the model, naming it.
    """
    names = {kv_name(REFERENCE): REFERENCE}
    for method in methods:
        names.setdefault(kv_name(method), method.strip())
    controls: dict[str, tuple[str, ...]] = {}
    for method, name in list(names.items()):
        try:
            kv_method(method).footprint(config)
            control = control_of(config, method) if with_controls else None
        except CapaxError as e:
            raise type(e)(f"KV method {name!r}: {e}") from None
        if control is not None and control != method:
            names.setdefault(control, control)
            controls[control] = (*controls.get(control, ()), name)
    return Chosen(names, controls)


def control_of(config: ModelConfig, method: str) -> str | None:
    """Return what a method must beat to be worth it: the plainest one with as much memory.

    Random eviction for caches that evict; uniform codes per token, at the bits nearest to its own,
    for caches that quantise; blocks chosen blindly for landmarks; None for others.
    """
    name = method.partition(":")[0]
    options: Any = kv_method(method)
    if name == "landmark" and options.index != "random":
        return str(replace(parse_kv(method), options=replace(options, index="random")))
    if name in _EVICTING:
        buffer = getattr(options, "buffer", None)
        return kv_name(
            f"random:memory={options.memory}" + (f",buffer={buffer}" if buffer is not None else "")
        )
    if name not in _QUANTISING or getattr(options, "keys_axis", "") == "token":
        return None
    footprint = options.footprint(config)
    stored = 8 * footprint.page / footprint.page_tokens / (2 * config.n_cache_layers * config.d_kv)
    bits = stored if name == "million" else options.bits
    nearest = min(_UNIFORM_BITS, key=lambda b: abs(b - bits))
    window = ",exact_window=false" if takes_whole_blocks(method) else ""
    control = kv_name(f"kivi:bits={nearest},keys_axis=token{window}")
    kv_method(control).footprint(config)
    return control


def settings_of(llm: LLM, text: str, settings: Settings) -> dict[str, Any]:
    """Return what a run's cells must agree in."""
    return {
        "model": weights_digest(llm.file).hex(),
        "text": hashlib.sha256(text.encode()).hexdigest(),
        "isa": llm.isa,
        "threads": llm.threads,
        **asdict(settings),
    }


def run(
    llm: LLM,
    text: str,
    chosen: Chosen,
    settings: Settings,
    cells: Cells,
    on_progress: Progress | None = None,
) -> list[MethodReport]:
    """Measure what `cells` does not hold yet, and return a line for each method.

    `on_progress`: told (what, parts done, all parts). Raises ConfigError for a text too short,
    CapacityError if a method does not fit the budget beside the reference.
    """
    tell = on_progress or (lambda what, done, n: None)
    chunks = windows_of(text, llm.tokenizer, settings.context, settings.n_chunks)
    stacks = _haystacks(llm, text, settings)
    methods = chosen.methods
    stepwise = [m for m in methods if not takes_whole_blocks(m)]
    _measure_quality(llm, chunks, methods, cells, tell)
    tell("chunks", len(chunks), len(chunks))
    for i, depth in enumerate(settings.depths):
        tell("depths", i, len(settings.depths))
        missing = [m for m in stepwise if ("speed", m, depth) not in cells]
        for group in _groups(llm, missing, depth + settings.bursts * BURST_TOKENS + WARM_UP_TOKENS):
            cells.add(_measure_speed(llm, text, group, depth, settings.bursts))
    tell("depths", len(settings.depths), len(settings.depths))
    n_prompts = sum(map(len, stacks.values())) * len(stepwise)
    for n_done, method in enumerate(stepwise):
        tell("prompts", n_done * (n_prompts // len(stepwise)), n_prompts)
        _measure_needles(llm, stacks, method, settings, cells)
    tell("prompts", n_prompts, n_prompts)
    return [_report(llm, m, chosen, settings, len(chunks), stacks, cells) for m in methods]


def _measure_needles(
    llm: LLM,
    stacks: Mapping[str, Sequence[needles.Haystack]],
    method: str,
    settings: Settings,
    cells: Cells,
) -> None:
    """Let a method answer what it has not answered yet."""
    missing = [
        (kind, i)
        for kind, several in stacks.items()
        for i in range(len(several))
        if (kind, method, i) not in cells
    ]
    if not missing:
        return
    with llm.contexts_by([method], settings.context + needles.QUESTION_ROOM) as contexts:
        for kind, i in missing:
            stack = stacks[kind][i]
            said = needles.answers_in(llm, contexts, 0, stack)
            right = needles.n_right(stack, said)
            cells.add({(kind, method, i): {"n_right": right, "n": len(said), "answers": said}})
            contexts.reset()


def _haystacks(llm: LLM, text: str, settings: Settings) -> dict[str, list[needles.Haystack]]:
    if not settings.n_prompts:
        return {}
    common: dict[str, Any] = {"text": text, "seed": settings.seed}
    size, n = settings.context, settings.n_prompts
    return {
        "passkey": needles.passkeys(llm.tokenizer, size, n, **common),
        "multi_needle": needles.multi_needles(llm.tokenizer, size, n, **common),
    }


def _groups(llm: LLM, methods: list[str], n_tokens: int, *before: str) -> Iterable[list[str]]:
    """Cut methods into groups that fit the budget together, each beside those of `before`."""
    if not methods:
        return []
    try:
        llm.check_contexts_by([*before, *methods], n_tokens)
        return [methods]
    except CapacityError as e:
        if len(methods) == 1:
            raise CapacityError(f"KV method {methods[0]}: {e}") from None
    half = len(methods) // 2
    return [
        *_groups(llm, methods[:half], n_tokens, *before),
        *_groups(llm, methods[half:], n_tokens, *before),
    ]


def _measure_quality(
    llm: LLM,
    chunks: Sequence[Sequence[int]],
    methods: Sequence[str],
    cells: Cells,
    tell: Progress,
) -> None:
    """Compare on every chunk the methods that miss it, as many at once as fit the budget."""
    reference, every = methods[0], range(len(chunks))
    missing = [m for m in methods[1:] if any(("quality", m, i) not in cells for i in every)]
    if not missing and any(("quality", reference, i) not in cells for i in every):
        missing = [reference]
    for group in _groups(llm, missing, len(chunks[0]), reference):
        together = list(dict.fromkeys([reference, *group]))
        with llm.contexts_by(together, len(chunks[0])) as contexts:
            for i, chunk in enumerate(chunks):
                tell("chunks", i, len(chunks))
                if all(("quality", m, i) in cells for m in together):
                    continue
                found = measure_chunk_in(llm, contexts, chunk, together)
                cells.add({("quality", m, i): q.to_json() for m, q in found.items()})
                contexts.reset()


def _measure_speed(
    llm: LLM, text: str, methods: Sequence[str], depth: int, n_bursts: int
) -> dict[Key, Value]:
    """Time bursts of decoding at one depth, the methods taking turns."""
    n = depth + n_bursts * BURST_TOKENS + WARM_UP_TOKENS
    ids = llm.tokenizer.encode(text[: 16 * n], add_special=False)
    ids = (ids * (n // len(ids) + 1))[:n]
    times: list[list[float]] = [[] for _ in methods]
    with llm.contexts_by(methods, n) as contexts:
        for index in range(len(methods)):
            for begin in range(0, depth, llm.plan.prefill_chunk):
                end = min(begin + llm.plan.prefill_chunk, depth)
                contexts.advance([(index, ids[begin:end])])
            _decode(contexts, index, ids[depth : depth + WARM_UP_TOKENS])
        for burst in range(n_bursts):
            begin = depth + WARM_UP_TOKENS + burst * BURST_TOKENS
            for index, taken in enumerate(times):
                if burst < 2 or sum(taken) < MAX_BURST_SECONDS:
                    taken.append(_decode(contexts, index, ids[begin : begin + BURST_TOKENS]))
    return {("speed", m, depth): {"seconds": t} for m, t in zip(methods, times, strict=True)}


def _decode(contexts: MethodContexts, index: int, tokens: Sequence[int]) -> float:
    """Return the seconds that tokens take one by one."""
    started = time.perf_counter()
    for token in tokens:
        contexts.advance([(index, [token])])
    return time.perf_counter() - started


def _report(
    llm: LLM,
    method: str,
    chosen: Chosen,
    settings: Settings,
    n_chunks: int,
    stacks: Mapping[str, Sequence[needles.Haystack]],
    cells: Cells,
) -> MethodReport:
    def chunks(of: str) -> list[ChunkQuality]:
        return [ChunkQuality.from_json(cells["quality", of, i]) for i in range(n_chunks)]

    def found(kind: str) -> Found | None:
        keys = [(kind, method, i) for i in range(len(stacks.get(kind, ())))]
        answered = [cells[key] for key in keys if key in cells]
        if not answered:
            return None
        return Found(sum(a["n_right"] for a in answered), sum(a["n"] for a in answered))

    speeds = {}
    for depth in settings.depths:
        if ("speed", method, depth) in cells:
            seconds = cells["speed", method, depth]["seconds"]
            rates = [BURST_TOKENS / s for s in seconds]
            speeds[depth] = Speed(statistics.median(rates), min(rates), len(rates))
    reference = chosen.methods[0]
    return MethodReport(
        name=chosen.names[method],
        control_of=chosen.controls.get(method, ()),
        quality=summarize(
            llm.config, method, settings.context, chunks(method), chunks(reference),
            seed=settings.seed,
        ),
        speeds=speeds,
        passkey=found("passkey"),
        multi_needle=found("multi_needle"),
    )  # fmt: skip


def check(llm: LLM, chosen: Chosen, settings: Settings) -> None:
    """See, before anything is computed, that every method opens on this model and has room.

    Raises as its store does (a codebook or gates of another model), naming the method.
    """
    check_methods(llm, chosen.methods, settings.context)


def check_depths(settings: Settings, context_len: int) -> None:
    """Raise ConfigError where the model's context is too short for a part."""
    if settings.context_needed > context_len:
        raise ConfigError(
            f"context {settings.context:,} and depths {', '.join(map(str, settings.depths))} take "
            f"{settings.context_needed:,} tokens with questions and decoding, and the model's "
            f"context is {context_len:,}; use a smaller --context or smaller --depths"
        )
