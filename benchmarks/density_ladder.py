"""The densing law with a ladder trained here: a ruler, its gates, and densities of variants.

    python -m benchmarks.density_ladder --out benchmarks/results [--work build/ladder] [--fit-only]

Trains the sizes of `capax.training.ladder` on bench-S and the targets on D0 tokens, keeps all in
--work, where the same command goes on, and writes density_ladder.json and .png. The largest size
is held out: no setting was chosen by it. A ruler that fails a gate is not written, and no density
is read from it. --fit-only: fit again what is there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.density_ladder_fit import HELD_OUT_SIZE, Answers, kind_of, study
from benchmarks.density_ladder_picture import picture

if TYPE_CHECKING:
    from capax.training.ladder import Exam, Rung
    from capax.training.llama import Llama

RATIOS_OF_LARGEST = (10, 15, 20, 30)
EARLY_OF_LARGEST = (1, 2, 3, 5, 7)  # so that the held-out scores span what the sigmoid does
SEEDS = (0, 1, 2)
MIDDLE, TEACHER = "28k", "37k/0/60N"
N_SELF, N_OTHER = 5, 3  # seeds of targets; "NAME #2" is NAME with seed 2
KINDS = ("self", "half the tokens", "better data", "noisy data", "layers twice", "distilled")
TARGETS = tuple(
    kind if seed == 1 else f"{kind} #{seed}"
    for kind in KINDS
    for seed in range(1, (N_SELF if kind == "self" else N_OTHER) + 1)
)
PRUNED = (0.3, 0.5)
ENCODINGS = ("F16", "Q8_0", "Q4_1")


def train_ladder(work: Path, sizes: Sequence[str]) -> None:
    """Train what is missing of these sizes."""
    from capax.training.ladder import LADDER, RATIOS, Exam, climb

    exam = Exam()
    for size, seed in product(sizes, SEEDS):
        is_largest = size == HELD_OUT_SIZE
        began = time.perf_counter()
        climb(
            LADDER[size],
            work / size / str(seed),
            exam=exam,
            seed=seed,
            ratios=RATIOS_OF_LARGEST if is_largest else RATIOS,
            early=EARLY_OF_LARGEST if is_largest else (),
            on_point=_say,
        )
        print(f"{size}, seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)


def _say(point: Any) -> None:
    print(
        f"  {point['phase']} {point['ratio']:g}N: {point['loss']:.4f} {point['score']:.3f}",
        flush=True,
    )


def target_rung() -> Rung:
    """Return the size of the targets, which is not of the ladder."""
    from capax.training.ladder import rung_of

    return rung_of(2, 96, 2.8e-3)


def tokens_of_reference() -> int:
    """Return D0: 20 tokens per parameter of the middle size."""
    from capax.training.ladder import LADDER

    return 20 * LADDER[MIDDLE].n_params


def train_target(name: str, work: Path, exam: Exam) -> None:
    """Train a target on D0 tokens, and keep what it and its variants make of the exam.

    Another seed has other first weights and other texts.
    """
    from capax.training.bench_s import Mix
    from capax.training.ladder import train_once
    from capax.training.ladder_targets import looped

    d0, mix = tokens_of_reference(), Mix()
    target = target_rung()
    run = work / "targets" / name
    kind, seed = kind_of(name), int(name.partition(" #")[2] or 1)
    tokens = d0 / 2 if kind == "half the tokens" else d0
    mixes = {"better data": replace(mix, junk=0.0), "noisy data": replace(mix, noise=0.3)}
    model = train_once(
        target,
        tokens,
        run,
        mix=mixes.get(kind, mix),
        seed=seed,
        model=looped(target, seed) if kind == "layers twice" else None,
        loss_of=_distilled(work, target, seed) if kind == "distilled" else None,
        note=kind if kind in ("layers twice", "distilled") else "",
    )
    keep(name, model, tokens, exam, work)
    if name == "self":
        keep_variants(model, tokens, exam, work)


def _distilled(work: Path, target: Rung, seed: int) -> Callable[[Llama, int], Any]:
    import torch

    from capax.training.bench_s import BenchS, Mix
    from capax.training.documents import begun
    from capax.training.ladder import LADDER
    from capax.training.ladder_targets import distillation

    teacher = begun(LADDER[TEACHER.split("/")[0]].shape(), 0)
    state = torch.load(work / TEACHER / "checkpoint.pt", weights_only=True)
    teacher.load_state_dict(state["model"])
    return distillation(teacher, BenchS(Mix()), seed, target.tokens_per_step)


def keep_variants(model: Llama, tokens: float, exam: Exam, work: Path) -> None:
    """Keep what pruning and encodings, without training afterwards, make of a model."""
    from capax.training.ladder_targets import bits_in_file, encoded, n_zeros, pruned

    for share in PRUNED:
        smaller = pruned(model, share)
        keep(f"pruned {share:.0%}", smaller, tokens, exam, work, parent="self",
             zeros=n_zeros(smaller))  # fmt: skip
    for encoding in ENCODINGS:
        bits = bits_in_file(model, encoding, work / "targets" / f"{encoding}.gguf")
        keep(encoding, encoded(model, encoding), tokens, exam, work, parent="self", bits=bits)


def keep(name: str, model: Llama, tokens: float, exam: Exam, work: Path, **facts: object) -> None:
    """Write loss and score, and what the model made of every problem."""
    from capax.training.ladder import n_params_of

    losses, right = exam.measure(model)
    np.savez(work / "targets" / f"{name}.npz", losses=losses, right=right)
    n = n_params_of(model)
    row = {
        "name": name, "params": n, "embedding": model.n_parameters - n, "tokens": tokens,
        "loss": float(losses.mean()), "score": float(right.mean()), **facts,
    }  # fmt: skip
    (work / "targets" / f"{name}.json").write_text(json.dumps(row) + "\n")
    print(f"{name}: {row['loss']:.4f} {row['score']:.3f}", flush=True)


def read_targets(work: Path) -> tuple[list[dict[str, Any]], dict[str, Answers]]:
    """Return the targets that are there, and their answers."""
    variants = [f"pruned {share:.0%}" for share in PRUNED]
    names = [*TARGETS[:1], *variants, *ENCODINGS, *TARGETS[1:]]
    rows, answers = [], {}
    for name in names:
        path = work / "targets" / f"{name}.json"
        if path.exists():
            rows.append(json.loads(path.read_text()))
            with np.load(path.with_suffix(".npz")) as kept:
                answers[name] = Answers(kept["losses"], kept["right"])
    return rows, answers


def read_points(work: Path, sizes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the points that are there."""
    return [
        {"size": size, **json.loads(line)}
        for size, seed in product(sizes, SEEDS)
        if (path := work / size / str(seed) / "points.jsonl").exists()
        for line in path.read_text().splitlines()
    ]


def publish(result: dict[str, Any], folder: Path) -> None:
    """Write the ruler and the tables it was fitted on, unless a gate or a self-density fails."""
    of_self = [g for g in result.get("target_gates", ()) if g["gate"].startswith("self")]
    if result["ruler"] is None or not all(g["holds"] for g in of_self):
        print("no ruler is published")
        return
    folder.mkdir(parents=True, exist_ok=True)
    ruler = {**result["ruler"], "recipe": result["recipe"], "exponents_90": result["exponents"]}
    (folder / "ruler.json").write_text(json.dumps(ruler, indent=1) + "\n")
    lines = (json.dumps(point) for point in result["points"])
    (folder / "points.jsonl").write_text("\n".join(lines) + "\n")


def main() -> int:
    """Train what is missing, fit, judge, and write JSON and picture."""
    parser = argparse.ArgumentParser(description="the densing law with a ladder trained here")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("build/ladder"))
    parser.add_argument("--models", type=Path, default=Path("models/density-ladder"))
    parser.add_argument("--fit-only", action="store_true")
    options = parser.parse_args()
    import torch

    from capax.training.bench_s import Mix
    from capax.training.ladder import LADDER, Exam

    torch.set_num_threads(1)
    if not options.fit_only:
        train_ladder(options.work, list(LADDER))
        exam = Exam()
        for name in TARGETS:
            if not (options.work / "targets" / f"{name}.json").exists():
                train_target(name, options.work, exam)
    points = read_points(options.work, list(LADDER))
    targets, answers = read_targets(options.work)
    found = study(points, targets, answers, tokens_of_reference())
    recipe = {
        "mix": asdict(Mix()),
        "sizes": {size: asdict(rung) for size, rung in LADDER.items()},
        "held_out_size": HELD_OUT_SIZE,
        "exam": {"problems": 2000, "seed": 99},
        "seeds": SEEDS,
    }
    result = {"recipe": recipe, **found, "points": points}
    (options.out / "density_ladder.json").write_text(json.dumps(result, indent=1) + "\n")
    picture(result, options.out / "density_ladder.png")
    publish(result, options.models)
    of_targets = [g["gate"] for g in found.get("target_gates", ()) if not g["holds"]]
    print("gates that fail:", ", ".join(found["failed_gates"] + of_targets) or "none")
    return 0


if __name__ == "__main__":
    sys.exit(main())
