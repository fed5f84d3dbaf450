"""Bits of random strings that a small model stores; one result file and one picture.

    python -m benchmarks.random_strings --out benchmarks/results

Strings of 32 symbols, each drawn uniformly from 128, have 224 bits and nothing to be guessed, so
224 - (-log2 p) of a string is what the model has stored of it (Morris et al. 2025, arXiv
2505.24832). No string is clipped at 0. Training goes on from its checkpoint when stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from capax.training.llama import Llama, LlamaShape
from capax.training.loop import Schedule, train

N_SYMBOLS, LENGTH = 128, 32
START = N_SYMBOLS
STEPS, EVERY = 5000, 1000
SHAPE = LlamaShape(
    vocab_size=N_SYMBOLS + 1,
    d_model=32,
    n_layers=2,
    n_heads=2,
    n_kv_heads=2,
    d_ffn=96,
    context_len=LENGTH + 1,
)


def draw_strings(n_strings: int, seed: int) -> Tensor:
    """Return [n_strings, LENGTH + 1] token ids, the document start first."""
    generator = torch.Generator().manual_seed(seed)
    symbols = torch.randint(N_SYMBOLS, (n_strings, LENGTH), generator=generator)
    return torch.cat([torch.full((n_strings, 1), START), symbols], 1)


def batch(strings: Tensor, size: int, step: int, seed: int) -> Tensor:
    """Return the strings of a step: every one is shown once per epoch, in a new order."""
    per_epoch = len(strings) // size
    epoch, part = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(strings), generator=generator)
    return strings[order[part * size : (part + 1) * size]]


def nats(model: Llama, strings: Tensor) -> Tensor:
    """Return the mean loss of a symbol, the first included."""
    logits = model(strings[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), strings[:, 1:].flatten())


def stored_bits(model: Llama, strings: Tensor) -> float:
    """Return the sum over strings of 224 - (-log2 p), which may be negative."""
    with torch.no_grad():
        loss = float(nats(model, strings))
    return len(strings) * LENGTH * (math.log2(N_SYMBOLS) - loss / math.log(2))


def measure(n_strings: int, folder: Path, seed: int) -> dict[str, Any]:
    """Train on `n_strings` strings and return what was stored."""
    strings = draw_strings(n_strings, seed)
    size = n_strings // 12
    strings_used = strings[: size * 12]
    model = Llama(SHAPE)
    model.initialise(torch.Generator().manual_seed(seed))
    n_parameters = sum(p.numel() for p in model.parameters())
    began = time.process_time()
    train(
        model,
        lambda step: nats(model, batch(strings_used, size, step, seed)),
        Schedule(STEPS, 5e-3, weight_decay=0.0),
        folder,
        recipe={"strings": len(strings_used), "seed": seed, "length": LENGTH},
        report=lambda step: {"bits": stored_bits(model, strings_used)},
        report_every=EVERY,
    )
    curve = [json.loads(line)["bits"] for line in (folder / "log.jsonl").read_text().splitlines()]
    bits = stored_bits(model, strings_used)
    return {
        "strings": len(strings_used),
        "strings_per_step": size,
        "steps": STEPS,
        "exposures": STEPS / 12,
        "seed": seed,
        "n_parameters": n_parameters,
        "n_parameters_without_embedding": n_parameters - SHAPE.vocab_size * SHAPE.d_model,
        "bits": bits,
        "bits_there_are": len(strings_used) * LENGTH * math.log2(N_SYMBOLS),
        "bits_per_parameter": bits / n_parameters,
        "bits_after_each_1000_steps": curve,
        "gain_of_last_1000_steps": curve[-1] / curve[-2] - 1,
        "training_cpu_s": time.process_time() - began,
    }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw bits stored per parameter over the bits there are."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    there = [r["bits_there_are"] / r["n_parameters"] for r in rows]
    axes.plot(there, [r["bits_per_parameter"] for r in rows], "o-", label="stored")
    axes.plot([0, max(there)], [0, max(there)], ":", color="grey", label="everything stored")
    axes.set_xlabel("bits of strings per parameter")
    axes.set_ylabel("bits stored per parameter")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train what is missing, smallest first; JSON and picture hold what is finished."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("build/random-strings"))
    parser.add_argument("--strings", type=int, nargs="+", default=[192, 384])
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for n_strings in o.strings:
        rows.append(measure(n_strings, o.work / f"{n_strings}-seed{o.seed}", o.seed))
        print(json.dumps(rows[-1]), flush=True)
        (o.out / "random_strings.json").write_text(json.dumps({"rows": rows}, indent=1) + "\n")
        draw(rows, o.out / "random_strings.png")


if __name__ == "__main__":
    main()
