"""Landmark attention against its controls: pass keys far outside the training window.

    python -m benchmarks.landmark --prompts 50 --out benchmarks/results

The model of `capax train landmark` answers pass-key prompts of 1 to 16 training windows. Beside it:
the same model that chooses blocks blindly, that has block means instead of landmarks, and that
reads only its last chunk; and the twin, trained on the same tokens with plain attention, over the
whole prompt and with its middle cut out. Beyond one window the fact always lies outside the last
window. Then: whether heads find the block, perplexity over four windows, decode time by depth.
Text comes from Python's own documentation, from documents nobody was trained on.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from capax import LLM, SamplingParams
from capax.training.landmark_data import END, N_DIGITS, Documents, PassKeyPrompt
from capax.training.python_texts import python_texts

MODELS = Path(__file__).resolve().parent.parent / "models"
WINDOWS = (1, 2, 4, 8, 16)
LANDMARK, TWIN = "landmark-tiny", "landmark-tiny-twin"
# name: model, cache, and whether prompts are cut to the twin's window
METHODS: dict[str, tuple[str, str, bool]] = {
    "landmark k=4": (LANDMARK, "landmark:k=4", False),
    "blind choice": (LANDMARK, "landmark:k=4,index=random", False),
    "block means": (LANDMARK, "landmark:k=4,index=mean", False),
    "last chunk only": (LANDMARK, "landmark:k=0,chunk=176", False),
    "twin, extrapolating": (TWIN, "f32", False),
    "twin, middle cut out": (TWIN, "f32", True),
}
N_SCORED = 960  # regular tokens of a document of four windows


def wilson(n_right: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share."""
    z, p = 1.96, n_right / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def load(model: str, kv: str, context_len: int, models: Path) -> LLM:
    """Return one of the models with a cache."""
    return LLM(models / model, kv=kv, threads=1, ctx_size=context_len, prefill_chunk=512)


def documents_of(llm: LLM) -> Documents:
    """Return what draws from the held-out texts."""

    def encode(text: str) -> list[int]:
        return llm.tokenizer.encode(text)

    end = encode(END)
    held_out = [token for text in python_texts().held_out for token in (*encode(text), *end)]
    return Documents(encode, held_out)


def window_tokens(llm: LLM) -> int:
    """Return the regular tokens of a training window."""
    trained = llm.config.landmark
    assert trained is not None
    return trained.window // trained.block * (trained.block - 1)


def draw_prompts(documents: Documents, n_window: int, windows: int, n: int) -> list[PassKeyPrompt]:
    """Return prompts for three seeds in turn; beyond one window the fact lies outside the last."""
    outside = n_window if windows > 1 else 0
    length = n_window * windows - N_DIGITS
    return [
        documents.prompt(random.Random(f"{i % 3} {i} {windows}"), length, outside=outside)
        for i in range(n)
    ]


def answer(llm: LLM, tokens: Sequence[int]) -> list[int]:
    """Return the likeliest digits after a prompt."""
    params = SamplingParams(max_tokens=N_DIGITS, temperature=0.0, ignore_eos=True)
    return list(llm.generate([list(tokens)], params)[0].outputs[0].token_ids)


def measure_pass_keys(models: Path, n: int, names: Sequence[str], out: dict[str, Any]) -> None:
    """Let every method answer the same prompts of every length."""
    rows = [row for row in out.get("pass_key", []) if row["method"] not in names]
    out["pass_key"] = rows
    with load(LANDMARK, "landmark:k=4", 512, models) as llm:
        documents, n_window = documents_of(llm), window_tokens(llm)
    for name in names:
        model, kv, is_cut = METHODS[name]
        if not (models / model).exists():
            print(f"{name}: {models / model} is missing; 'capax train landmark --twin' makes it")
            continue
        with load(model, kv, n_window * WINDOWS[-1] + 64, models) as llm:
            for windows in WINDOWS:
                right = 0
                for prompt in draw_prompts(documents, n_window, windows, n):
                    tokens = prompt.tokens
                    if is_cut and windows > 1:
                        half = (n_window - N_DIGITS) // 2
                        tokens = tokens[:half] + tokens[-half:]
                    right += answer(llm, tokens) == prompt.key
                low, high = wilson(right, n)
                row = {
                    "method": name,
                    "windows": windows,
                    "tokens": n_window * windows,
                    "right": right,
                    "prompts": n,
                    "accuracy": right / n,
                    "interval": [round(low, 4), round(high, 4)],
                }
                rows.append(row)
                print(f"{name:22s} {windows:2d} windows: {right}/{n}", flush=True)


def measure_retrieval(models: Path, n: int, out: dict[str, Any]) -> None:
    """Which (layer, head) has all blocks of the key among its four, when the answer begins."""
    windows = 16
    with load(LANDMARK, "landmark:k=4", 4096, models) as llm:
        store, config = llm._store, llm.config
        documents, n_window = documents_of(llm), window_tokens(llm)
        block = config.landmark.block  # type: ignore[union-attr]  # it is a landmark model
        found = np.zeros((2, config.n_layers, config.n_heads))
        solved = np.zeros((config.n_layers, config.n_heads))
        n_solved = 0
        prompts = draw_prompts(documents, n_window, windows, 2 * n)
        for i, prompt in enumerate(prompts):
            last: dict[int, np.ndarray] = {}

            def see(layer: int, blocks: np.ndarray, last: dict[int, np.ndarray] = last) -> None:
                last[layer] = blocks[-1]

            store.on_choice = see  # type: ignore[attr-defined]  # of a LandmarkStore
            params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
            llm.generate([prompt.tokens], params)
            store.on_choice = None  # type: ignore[attr-defined]
            wanted = {place // (block - 1) for place in prompt.digits}
            hit = np.array(
                [
                    [
                        wanted <= {int(b) for b in last[layer][head]}
                        for head in range(config.n_heads)
                    ]
                    for layer in range(config.n_layers)
                ]
            )
            found[i % 2] += hit
            if i % 2 and answer(llm, prompt.tokens) == prompt.key:
                solved += hit
                n_solved += 1
        best = np.unravel_index(found[0].argmax(), found[0].shape)
    out["retrieval"] = {
        "blocks": n_window * windows // (block - 1),
        "prompts": n,
        "best_pair": [int(x) for x in best],
        "best_pair_all": float(found[1][best] / n),
        "best_pair_solved": float(solved[best] / n_solved) if n_solved else None,
        "solved": n_solved,
        "mean_over_pairs": float(found[1].mean() / n),
    }
    print(out["retrieval"], flush=True)


def measure_perplexity(models: Path, n_documents: int, out: dict[str, Any]) -> None:
    """Over held-out documents of four windows; differences by a paired bootstrap over documents."""
    caches = {
        "k=4": (LANDMARK, "landmark:k=4"),
        "k=2": (LANDMARK, "landmark:k=2,chunk=176"),
        "last chunk only": (LANDMARK, "landmark:k=0,chunk=176"),
        "k=8, smaller chunk": (LANDMARK, "landmark:k=8"),
        "k=4, chosen by head": (LANDMARK, "landmark:k=4,granularity=head"),
    }
    nll: dict[str, list[float]] = {}
    with load(LANDMARK, "landmark", 512, models) as llm:
        text, n_window = documents_of(llm).text, window_tokens(llm)
    pieces = [text[i : i + N_SCORED] for i in range(0, len(text) - N_SCORED, N_SCORED)]
    for name, (model, kv) in caches.items():
        with load(model, kv, N_SCORED + 64, models) as llm:
            nll[name] = [-llm.score([p])[0].total for p in pieces[:n_documents]]
        print(
            f"{name}: {math.exp(sum(nll[name]) / len(nll[name]) / (N_SCORED - 1)):.3f}", flush=True
        )
    shorts = [piece[:n_window] for piece in pieces[:n_documents]]
    one_window = {}
    for name, model, kv in (("landmark", LANDMARK, "landmark:k=4"), ("twin", TWIN, "f32")):
        if not (models / model).exists():
            print(f"{models / model} is missing: train it with 'capax train landmark --twin'")
            continue
        with load(model, kv, n_window + 64, models) as llm:
            total = sum(-llm.score([p])[0].total for p in shorts)
        one_window[name] = math.exp(total / len(shorts) / (n_window - 1))
    draw = np.random.default_rng(0)
    samples = draw.integers(0, len(pieces[:n_documents]), (2000, len(nll["k=4"])))
    gains = {}
    for name in caches:
        per_token = (np.array(nll[name]) - np.array(nll["k=4"])) / (N_SCORED - 1)
        low, high = np.quantile(per_token[samples].mean(axis=1), [0.025, 0.975])
        gains[name] = [float(per_token.mean()), float(low), float(high)]
    out["perplexity"] = {
        "tokens": len(nll["k=4"]) * N_SCORED,
        "four_windows": {
            name: math.exp(sum(x) / len(x) / (N_SCORED - 1)) for name, x in nll.items()
        },
        "nats_per_token_worse_than_k4": gains,
        "one_window": one_window,
    }
    print(out["perplexity"], flush=True)


def measure_decode(models: Path, out: dict[str, Any]) -> None:
    """Median seconds of one decoded token at two depths, and the keys a query read."""
    rows: dict[str, Any] = {}
    for name, model, kv in (("landmark", LANDMARK, "landmark:k=4"), ("full", LANDMARK, "f32")):
        with load(model, kv, 16_384 + 256, models) as llm:
            for depth in (1_024, 16_384):
                with llm.contexts(1, depth + 128) as contexts:
                    ids = [3 + i * 7919 % 1000 for i in range(depth + 128)]
                    for begin in range(0, depth, 512):
                        contexts.advance([(0, ids[begin : min(begin + 512, depth)])])
                    seconds = []
                    for i in range(depth, depth + 101):
                        began = time.perf_counter()
                        contexts.advance([(0, ids[i : i + 1])])
                        seconds.append(time.perf_counter() - began)
                rows.setdefault(name, {})[str(depth)] = statistics.median(seconds)
            if name == "landmark":
                work = llm._store.work  # type: ignore[attr-defined]  # of a LandmarkStore
                rows["most_keys"] = work.most_keys
                rows["most_distance"] = work.most_distance
        rows[name]["growth"] = rows[name]["16384"] / rows[name]["1024"]
    out["decode_seconds"] = rows
    print(rows, flush=True)


def draw_picture(out: dict[str, Any], path: Path) -> None:
    """Plot accuracy by length, with its intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.2))
    for i, name in enumerate(METHODS):
        rows = [row for row in out["pass_key"] if row["method"] == name]
        if not rows:
            continue
        x = [row["windows"] for row in rows]
        y = [100 * row["accuracy"] for row in rows]
        bounds = [[100 * row["interval"][side] for row in rows] for side in (0, 1)]
        bold = {"linewidth": 2.5, "marker": "o"} if i == 0 else {"linewidth": 1.2, "marker": "."}
        (line,) = axes.plot(x, y, label=name, **bold)
        axes.fill_between(x, *bounds, color=line.get_color(), alpha=0.08)
    axes.axhline(80, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_xticks(WINDOWS, [f"{w}×" for w in WINDOWS])
    axes.set_xlabel("length of the prompt, in training windows of 256 tokens")
    axes.set_ylabel("pass keys answered exactly, %")
    axes.set_ylim(-3, 103)
    axes.legend(fontsize=8, loc="center right")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


PARTS = ("pass_key", "retrieval", "perplexity", "decode")


def main() -> None:
    """Run the parts that are asked for, keeping the figures of the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    # Figures of parts and methods that are not asked for stay as they are in the file.
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    path = arguments.out / "landmark.json"
    out: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    out["machine"] = {"cpu": platform.processor() or platform.machine(), "threads": 1}
    if "pass_key" in arguments.parts:
        measure_pass_keys(arguments.models, arguments.prompts, arguments.methods, out)
    if "retrieval" in arguments.parts:
        measure_retrieval(arguments.models, arguments.prompts, out)
    if "perplexity" in arguments.parts:
        measure_perplexity(arguments.models, arguments.documents, out)
    if "decode" in arguments.parts:
        measure_decode(arguments.models, out)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(out, indent=2) + "\n")
    if "pass_key" in out:
        draw_picture(out, arguments.out / "landmark.png")


if __name__ == "__main__":
    main()
