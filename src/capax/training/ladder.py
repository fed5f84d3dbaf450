"""The reference ladder of the densing law: small decoders of several sizes, each on several D.

"Densing Law of LLMs" (2024, arXiv 2412.04315) trains a family in one fixed way (grouped-query
attention, gated feed-forward parts, warm-up, stable and decay phase) on D of 10 to 60 tokens per
parameter, and measures the loss of benchmark answers. Here the benchmark is bench-S, and a size is
one stable run whose decay is branched off for every D, so that six points cost little more than
the longest.

A point is (N, D, loss, score): N without the embedding, D with prompts and junk, loss in nats per
answer token averaged over problems, score the share of problems of which every token is the most
likely one: the greedy exact match. Ours: sizes, benchmark and learning rates; loss counts answers
only, what is asked is read and not learnt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from capax.errors import ConfigError
from capax.training.bench_s import TOKENS, BenchS, Mix, Problem, encode
from capax.training.documents import begun, readable
from capax.training.llama import Llama, LlamaShape
from capax.training.loop import StableSchedule, train

RATIOS = (10, 15, 20, 30, 40, 60)  # tokens per parameter
LEAST_STEPS = 300  # of a point: fewer are little more than the warm-up
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A size of the family and how it is trained; heads are 16 wide."""

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_ffn: int
    tokens_per_step: int
    learning_rate: float

    def shape(self) -> LlamaShape:
        """Return the sizes of the model."""
        return LlamaShape(
            vocab_size=len(TOKENS), d_model=self.d_model, n_layers=self.n_layers,
            n_heads=self.n_heads, n_kv_heads=self.n_kv_heads, d_ffn=self.d_ffn, context_len=32,
        )  # fmt: skip

    def schedule(self, n_tokens: float) -> StableSchedule:
        """Return the schedule of a run of `n_tokens`. Raises ConfigError for too few steps."""
        steps = round(n_tokens / self.tokens_per_step)
        if steps < LEAST_STEPS:
            raise ConfigError(
                f"{n_tokens:,.0f} tokens are {steps} steps of {self.tokens_per_step} tokens; a "
                f"point of the ladder needs {LEAST_STEPS}, so take fewer tokens per step"
            )
        return StableSchedule(steps, self.learning_rate, floor=0.02, weight_decay=0.05, beta2=0.98)

    @property
    def n_params(self) -> int:
        """Parameters without the embedding."""
        return n_params_of(Llama(self.shape()))


def rung_of(n_layers: int, d_ffn: int, learning_rate: float) -> Rung:
    """Return a size of the family: 32 wide, two heads that share keys and values."""
    return Rung(d_model=32, n_layers=n_layers, n_heads=2, n_kv_heads=1, d_ffn=d_ffn,
                tokens_per_step=256, learning_rate=learning_rate)  # fmt: skip


# Learning rates are 70 / parameters, which lay next to the best on the sizes up to 37k.
LADDER = {
    "12k": rung_of(1, 96, 5.6e-3),
    "19k": rung_of(2, 64, 3.8e-3),
    "28k": rung_of(3, 64, 2.5e-3),
    "37k": rung_of(3, 96, 1.9e-3),
    "62k": rung_of(4, 128, 1.1e-3),
    "93k": rung_of(5, 160, 7.6e-4),
}


Point = dict[str, Any]
"""One measured checkpoint, as it stands in `points.jsonl`."""


class Exam:
    """Held-out problems that every model answers: the same ones, so that models are paired."""

    def __init__(self, n: int = 2000, seed: int = 99, mix: Mix | None = None) -> None:
        self.problems: Sequence[Problem] = BenchS(mix).held_out(n, seed)
        self._block = torch.from_numpy(encode(self.problems).astype(np.int64))

    def measure(self, model: nn.Module) -> tuple[Floats, Floats]:
        """Return of each problem its loss in nats per answer token, and 1 if it is right."""
        losses, right = [], []
        with torch.no_grad():
            for given in torch.split(self._block, 256):
                targets = given[:, 1:]
                logits = model(readable(given)[:, :-1])
                counts = targets >= 0
                each = functional.cross_entropy(
                    logits.transpose(1, 2), targets.clamp(min=0), reduction="none"
                )
                losses.append((each * counts).sum(1) / counts.sum(1))
                right.append(((logits.argmax(-1) == targets) | ~counts).all(1))
        return (
            torch.cat(losses).double().numpy(),
            torch.cat(right).double().numpy(),
        )

    def figures(self, model: nn.Module) -> dict[str, float]:
        """Return the mean loss and score."""
        losses, right = self.measure(model)
        return {"exam_loss": float(losses.mean()), "exam_score": float(right.mean())}


def n_params_of(model: Llama) -> int:
    """Return the parameters without the embedding."""
    return model.n_parameters - model.model.embed_tokens.weight.numel()


def answer_loss(bench: BenchS, rung: Rung, model: nn.Module, seed: int) -> Callable[[int], Tensor]:
    """Return the loss of a step: nats per answer token of the step's own texts."""

    def loss_of(step: int) -> Tensor:
        given = torch.from_numpy(bench.block(seed, step, rung.tokens_per_step).astype(np.int64))
        targets = given[:, 1:].reshape(-1)
        counts = targets >= 0
        logits = model(readable(given)[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1)[counts], targets[counts])

    return loss_of


def climb(
    rung: Rung,
    folder: Path,
    *,
    ratios: Sequence[float] = RATIOS,
    early: Sequence[float] = (),
    mix: Mix | None = None,
    exam: Exam | None = None,
    seed: int = 0,
    threads: int = 1,
    on_point: Callable[[Mapping[str, Any]], None] | None = None,
) -> list[Point]:
    """Train one size on every D of `ratios` times N, in `folder`, going on from what is there.

    Points are kept in `points.jsonl`: decayed ones, and those of the stable phase on the way.
    `early`: tokens per parameter, fewer than the least of `ratios`, at which the stable phase is
    measured too.
    """
    torch.set_num_threads(threads)
    exam, mix = exam or Exam(), mix or Mix()
    kept = folder / "points.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    lines = kept.read_text().splitlines() if kept.exists() else []
    points: list[Point] = [json.loads(line) for line in lines]
    done = {(p["phase"], p["tokens"]) for p in points}
    for point in _points(rung, folder, sorted(ratios), sorted(early), mix, exam, seed, done):
        points.append(point)
        with kept.open("a") as file:
            file.write(json.dumps(point) + "\n")
        if on_point:
            on_point(point)
    return points


def _points(
    rung: Rung, folder: Path, ratios: Sequence[float], early: Sequence[float], mix: Mix,
    exam: Exam, seed: int, done: set[tuple[str, int]],
) -> Iterator[Point]:  # fmt: skip
    model, n, stable = begun(rung.shape(), seed), rung.n_params, folder / "stable"
    loss_of = answer_loss(BenchS(mix), rung, model, seed)
    recipe = {"rung": asdict(rung), "mix": asdict(mix), "seed": seed}
    longest = rung.schedule(max(ratios[-1], RATIOS[-1]) * n)  # so that a run may go on to more

    def go_on(steps: int) -> None:
        train(model, loss_of, longest, stable, recipe=recipe, report_every=500, stop_at=steps,
              fused=True)  # fmt: skip

    def is_done(phase: str, steps: int) -> bool:
        return (phase, steps * rung.tokens_per_step) in done

    def point(phase: Literal["stable", "decayed"], steps: int, ratio: float) -> Point:
        figures = exam.figures(model)
        return Point(
            phase=phase, params=n, embedding=model.n_parameters - n, ratio=ratio,
            tokens=steps * rung.tokens_per_step, steps=steps, seed=seed,
            loss=figures["exam_loss"], score=figures["exam_score"],
        )  # fmt: skip

    for ratio in early:
        steps = round(ratio * n / rung.tokens_per_step)
        if not is_done("stable", steps):
            go_on(steps)
            yield point("stable", steps, ratio)
    for ratio in ratios:
        schedule = rung.schedule(ratio * n)
        if is_done("decayed", schedule.steps):
            continue
        go_on(schedule.decay_from)
        if not is_done("stable", schedule.decay_from):
            yield point("stable", schedule.decay_from, ratio)
        train(model, loss_of, schedule, folder / f"{ratio:g}N", recipe=recipe, report_every=500,
              begin=stable, fused=True)  # fmt: skip
        yield point("decayed", schedule.steps, ratio)


def train_once(
    rung: Rung,
    n_tokens: float,
    folder: Path,
    *,
    mix: Mix | None = None,
    seed: int = 0,
    model: Llama | None = None,
    loss_of: Callable[[Llama, int], Tensor] | None = None,
    note: str = "",
) -> Llama:
    """Train one model on exactly `n_tokens`, decay included; a target, not a point of the ladder.

    `model`: an untrained one of other layers; `loss_of`: another loss of a step. `note` tells such
    runs apart.
    """
    mix = mix or Mix()
    model = model or begun(rung.shape(), seed)
    usual = answer_loss(BenchS(mix), rung, model, seed)
    trained = model
    train(
        model,
        usual if loss_of is None else lambda step: loss_of(trained, step),
        rung.schedule(n_tokens),
        folder,
        recipe={"rung": asdict(rung), "mix": asdict(mix), "seed": seed, "note": note},
        report_every=500,
        fused=True,
    )
    return model
