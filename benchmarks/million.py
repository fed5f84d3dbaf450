"""What product codes cost and give on a real model: loss, speed at depth, time of prefill.

    python -m benchmarks.million --model smollm2-135m --fit WIKI.txt --text wiki=WIKI.txt \
        --text code=CODE.txt --out benchmarks/results

Codebooks are fitted to the first part of --fit, of which no test text contains a token: texts of
the same file begin behind it. Losses read every token from codes (`exact_window=false`), so the
window flatters nobody. Writes million.json and million.png.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from capax import LLM
from capax.engine.calibration import keys_and_values
from capax.files.digest import weights_digest
from capax.files.model_file import ModelFile, open_model
from capax.files.registry import resolve
from capax.files.tokenizer import load_tokenizer
from capax.kv import kv_method
from capax.kv.codebook import Fit, text_digest
from capax.measuring.kv_quality import evaluate
from capax.measuring.perplexity import windows_of
from capax.models import Model, ModelTensors, SequenceSlice, Step

FIT_CHARACTERS = 400_000
FITS = (
    ("per_layer", 32, 8), ("merged", 32, 8), ("per_layer", 16, 8), ("per_layer", 32, 6),
    ("per_layer", 32, 7),
)  # fmt: skip
RIVALS = (
    "kivi:bits=4,exact_window=false",
    "kivi:bits=2,exact_window=false",
    "kivi:bits=2,keys=pre,exact_window=false",
    "kivi:bits=4,keys_axis=token,block=64,exact_window=false",
)
DEPTH = 8192 - 320
N_DECODED = 256  # four blocks are encoded meanwhile


def fit_books(file: ModelFile, text: str, folder: Path, threads: int) -> dict[str, Path]:
    """Return a codebook file for each of FITS; those that are there already are taken."""
    paths = {f"{s}-{m}-{b}": folder / f"{s}-{m}-{b}.safetensors" for s, m, b in FITS}
    if all(path.is_file() for path in paths.values()):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    windows = windows_of(text, load_tokenizer(file), 2048, 11)
    k, v = keys_and_values(file, windows, threads)
    model = weights_digest(file).hex()
    for scope, m, bits in FITS:
        fit = Fit(m, m, bits, bits, scope)  # type: ignore[arg-type]
        book = fit.run(k, v, model=model, text=text_digest(text), n_threads=threads)
        book.save(paths[f"{scope}-{m}-{bits}"])
    return paths


def losses(model: str, text: str, books: dict[str, Path], chunks: int) -> list[dict[str, Any]]:
    """Return KL, perplexity and bytes of each method on the first chunks of a text."""
    llm = LLM(model, ctx_size=1024, kv="f32")
    cut = windows_of(text, llm.tokenizer, 1024, chunks)
    coded = {f"million:codebook={p},exact_window=false": name for name, p in books.items()}
    rows = evaluate(llm, cut, [*coded, *RIVALS])
    return [
        {
            "method": coded.get(row.method, row.method),
            "kl": row.kl,
            "kl_interval": list(row.kl_interval),
            "perplexity": row.perplexity,
            "tokens": row.n_tokens,
        }
        for row in rows
    ]


class Run:
    """One sequence under one method, fed by hand."""

    def __init__(self, model: Model, file: ModelFile, spec: str) -> None:
        self._model = model
        self._store = kv_method(spec).open(file, 160, 1)
        self.cache = self._store.new()

    def step(self, tokens: np.ndarray) -> float:
        """Run tokens; returns the seconds that took."""
        self.cache.reserve(len(tokens))
        last = np.array([len(tokens) - 1], np.int32)
        started = time.perf_counter()
        self._model.forward(Step(tokens, [SequenceSlice(self.cache, 0, len(tokens))], last))
        return time.perf_counter() - started

    @property
    def nbytes(self) -> int:
        return self._store.nbytes


def speeds(file: ModelFile, books: dict[str, Path], threads: int) -> list[dict[str, Any]]:
    """Return prefill and decode times at depth 8,192, the methods step by step in turn."""
    model = Model(
        file.config,
        ModelTensors(file, n_threads=threads),
        context_len=8192,
        max_tokens=256,
        max_logit_rows=1,
        n_threads=threads,
    )
    specs = {
        "f16": "f16",
        "f32": "f32",
        "int8": "int8",
        "4 bits": f"million:codebook={books['per_layer-32-8']}",
        "4 bits, lag 1": f"million:codebook={books['per_layer-32-8']},lag=1",
        "2 bits": f"million:codebook={books['per_layer-16-8']}",
    }
    runs = {name: Run(model, file, spec) for name, spec in specs.items()}
    ids = np.random.default_rng(0).integers(0, file.config.vocab_size, DEPTH).astype(np.int32)
    prefill = dict.fromkeys(runs, 0.0)
    for part in np.split(ids, range(256, DEPTH, 256)):
        for name, run in runs.items():
            prefill[name] += run.step(part)
    decode: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(N_DECODED):
        for name, run in runs.items():
            decode[name].append(run.step(ids[i : i + 1]))
    return [
        {
            "method": name,
            "prefill_s": prefill[name],
            "decode_ms_mean": 1e3 * sum(times) / len(times),
            "decode_ms_median": 1e3 * median(times),
            "decode_ms_max": 1e3 * max(times),
            "nbytes": runs[name].nbytes,
        }
        for name, times in decode.items()
    ]


def picture(results: dict[str, Any], path: Path) -> None:
    """Draw loss beside bits, and decode time beside bytes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    for i, (name, rows) in enumerate(results["losses"].items()):
        rows = [row for row in rows if row["method"] != "f32"]
        labels = [row["method"].replace(",exact_window=false", "") for row in rows]
        at = np.arange(len(rows)) + 0.4 * i
        left.barh(at, [row["kl"] for row in rows], height=0.38, label=name)
        left.set_yticks(np.arange(len(rows)) + 0.2, labels, fontsize=7)
    left.set_xscale("log")
    left.set_xlabel("KL to the full cache, nats per token (every token from codes)")
    left.set_xlim(left=0.01)
    left.legend(fontsize=8)
    for row in results["speeds"]:
        right.plot(row["nbytes"] / 2**20, row["decode_ms_median"], "o")
        right.annotate(row["method"], (row["nbytes"] / 2**20, row["decode_ms_median"]), fontsize=8)
    right.set_xlabel("cache at depth 8,192, MiB")
    right.set_ylabel("ms per decoded token, median")
    right.set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--fit", type=Path, required=True)
    parser.add_argument("--text", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--books", type=Path, default=Path("build/codebooks"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--no-speed", action="store_true")
    options = parser.parse_args()
    file = open_model(resolve(options.model))
    fitted = options.fit.read_text(encoding="utf-8")[:FIT_CHARACTERS]
    books = fit_books(file, fitted, options.books, options.threads)
    results: dict[str, Any] = {"model": options.model, "fit_characters": len(fitted), "losses": {}}
    for name, _, path in (text.partition("=") for text in options.text):
        content = Path(path).read_text(encoding="utf-8")
        begin = FIT_CHARACTERS if Path(path).resolve() == options.fit.resolve() else 0
        results["losses"][name] = losses(options.model, content[begin:], books, options.chunks)
        for row in results["losses"][name]:
            print(f"{name:<8} {row['kl']:.4f} {row['perplexity']:8.3f}  {row['method']}")
    results["speeds"] = [] if options.no_speed else speeds(file, books, options.threads)
    for row in results["speeds"]:
        print(row)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "million.json").write_text(json.dumps(results, indent=1) + "\n")
    picture(results, options.out / "million.png")


if __name__ == "__main__":
    main()
