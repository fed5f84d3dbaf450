"""Train families of small models of text and measure their information capacity.

    python -m benchmarks.text_family --out benchmarks/results --models models/text-family

Four sizes with a 4k BPE, one size that reads bytes, and a mixture of eight experts, all on the same
20 MB (`package_texts`), are scored on the first bytes of documents they never saw, with their
float32 weights: what "Information Capacity" (2025, arXiv 2511.08066) says of families. About an
hour and a half on one core; `--only NAME` trains one member. Training goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from capax import LLM
from capax.measuring.flops import exact_flops
from capax.measuring.information_capacity import (
    CapacityReport,
    TextScore,
    capacity,
    decompose,
    fit_bias,
    information_capacity,
    predict_nll,
    score_texts,
)
from capax.measuring.information_capacity import Member as Size
from capax.training.package_texts import PACKAGES, package_texts
from capax.training.python_texts import Split
from capax.training.text_family import (
    Member,
    MemberRecipe,
    encoded,
    text_bits,
    train_member,
    train_tokenizer,
    write_member,
)

N_BYTES = 20_000_000
TEXT_BYTES = 500  # of a held-out document: all that the byte models' windows hold
ENCODINGS = ("F32", "F16", "Q8_0", "Q4_1")
FAMILY = "bpe4k"
BYTES = {"n_vocab": 256, "window": 512}
SIZES = ((32, 2), (64, 3), (96, 4), (128, 6))  # width, layers


def rate(width: int) -> float:
    """Return the learning rate of a width: one rule for all members, tuned on none of them."""
    return round(0.01 * (32 / width) ** 0.6, 5)


def recipe(width: int, layers: int, **other: Any) -> MemberRecipe:
    """Return the recipe of a member; all but its sizes and `other` is the same for all."""
    return MemberRecipe(
        width=width, layers=layers, learning_rate=rate(width), n_bytes=N_BYTES, **other
    )


MEMBERS = {f"bpe4k-{width}": recipe(width, layers) for width, layers in SIZES} | {
    "bytes-32": recipe(32, 2, **BYTES),
    "experts-64": recipe(64, 3, n_experts=8),
}


class Corpus:
    """The text, and its tokens for each vocabulary, kept in `folder` once made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        path = folder / "texts.json"
        if not path.exists():
            split = package_texts(folder / "wheels")
            path.write_text(json.dumps(split._asdict()))
        self.texts = Split(**json.loads(path.read_text()))

    def unseen(self) -> list[str]:
        """Return the beginnings of documents that are not learnt."""
        return [t.encode()[:TEXT_BYTES].decode(errors="ignore") for t in self.texts.held_out]

    def tokenizer(self, n_vocab: int) -> Tokenizer:
        path = self._folder / f"tokenizer-{n_vocab}.json"
        if not path.exists():
            train_tokenizer(self.texts.train, n_vocab).save(str(path))
        return Tokenizer.from_file(str(path))

    def tokens(self, n_vocab: int) -> np.ndarray:
        path = self._folder / f"tokens-{n_vocab}.npy"
        if not path.exists():
            np.save(path, encoded(self.texts.train, self.tokenizer(n_vocab), N_BYTES))
        return np.load(path)


def trained(names: Sequence[str], corpus: Corpus, work: Path) -> dict[str, Member]:
    """Train what is not trained yet."""
    found = {}
    for name in names:
        recipe = MEMBERS[name]
        began = time.process_time()
        found[name] = train_member(recipe, corpus.tokens(recipe.n_vocab), work / name)
        print(f"{name}: {time.process_time() - began:.0f} s", flush=True)
    return found


def measure(
    name: str, member: Member, corpus: Corpus, texts: Sequence[str], models: Path
) -> dict[str, Any]:
    """Score one member: through the engine in every encoding, or in torch if it has experts."""
    recipe = MEMBERS[name]
    tokenizer = corpus.tokenizer(recipe.n_vocab)
    shape = recipe.shape
    embedding = shape.vocab_size * shape.d_model
    row: dict[str, Any] = {
        "recipe": asdict(recipe),
        "n_parameters": member.model.n_parameters,
        "n_parameters_without_embedding": member.model.n_parameters - embedding,
        "training_tokens": len(corpus.tokens(recipe.n_vocab)),
        "training_digest": hashlib.sha256(corpus.tokens(recipe.n_vocab).tobytes()).hexdigest(),
        "in_torch": torch_report(name, member, tokenizer, texts),
    }
    if member.mixtures:
        return row
    row["encodings"] = {}
    for encoding in ENCODINGS:
        path = models / f"{name}.{encoding}.gguf"
        write_member(member.model, tokenizer, path, encoding, name=f"{name}, {N_BYTES:,} bytes")
        with LLM(path, ctx_size=recipe.window, kv="f32", threads=1) as llm:
            flops = exact_flops(llm.config, recipe.window) / recipe.window
            scores = list(score_texts(llm, llm.tokenizer, texts, recipe.window))
            report = capacity(scores, flops)
        n_moved = path.stat().st_size
        row["encodings"][encoding] = {
            **asdict(report),
            "file_bytes": n_moved,
            "ic_of_bytes": information_capacity(report.text_size, report.nll, float(n_moved)),
        }
    return row


def torch_report(
    name: str, member: Member, tokenizer: Tokenizer, texts: Sequence[str]
) -> dict[str, Any]:
    """Score a member in float32 as it was trained; FLOPs with its router and one expert."""
    recipe = MEMBERS[name]
    for mixture in member.mixtures:
        mixture.counts.zero_()
    scores = []
    for text in texts:
        ids = tokenizer.encode(text).ids[: recipe.window]
        # A byte-level token spells each of its bytes as one character.
        n_bytes = sum(len(tokenizer.id_to_token(token)) for token in ids[1:])
        scores.append(TextScore(len(ids) - 1, n_bytes, text_bits(member.model, ids)))
    s = recipe.shape
    router = 2 * s.d_model * recipe.n_experts if recipe.n_experts > 1 else 0
    linear = s.n_layers * (8 * s.d_model**2 + 6 * s.d_model * s.d_ffn + router)
    flops = linear + 2 * s.d_model * s.vocab_size + 2 * s.n_layers * s.d_model * (recipe.window + 1)
    shares = [(m.counts / m.counts.sum()).tolist() for m in member.mixtures]
    return {**asdict(capacity(scores, flops)), "expert_shares": shares}


def family_figures(rows: dict[str, Any]) -> dict[str, Any]:
    """How flat IC is over the sizes, and how well it predicts a size it has not seen."""
    sizes = [rows[f"{FAMILY}-{width}"]["encodings"]["F32"] for width, _ in SIZES]
    members = [Size(s["text_size"] - s["nll"], s["flops_per_token"]) for s in sizes]
    bias = fit_bias([members])

    def spread(b: float) -> float:
        values = [(m.gain + b) / math.log2(m.flops_per_token) for m in members]
        return (max(values) - min(values)) / float(np.mean(values))

    logs = np.log2([m.flops_per_token for m in members])
    left_out = []
    for i, (size, member) in enumerate(zip(sizes, members, strict=True)):
        others = [j for j in range(len(members)) if j != i]
        near = min(others, key=lambda j: abs(logs[j] - logs[i]))
        refitted = fit_bias([[members[j] for j in others]])
        law = predict_nll(members[near], size["text_size"], member.flops_per_token, refitted)
        line = np.polyval(np.polyfit(logs[others], [sizes[j]["nll"] for j in others], 1), logs[i])
        left_out.append({
            "nll": size["nll"],
            "bias": refitted,
            "law_error": law / size["nll"] - 1,
            "line_error": float(line) / size["nll"] - 1,
            "neighbour_error": sizes[near]["nll"] / size["nll"] - 1,
        })  # fmt: skip
    return {
        "bias": bias,
        "ic": [(m.gain + bias) / math.log2(m.flops_per_token) for m in members],
        "spread": spread(bias),
        "spread_without_bias": spread(0.0),
        "left_out": left_out,
    }


def tokenizer_figures(rows: dict[str, Any]) -> dict[str, Any]:
    """Where the difference in IC of two tokenizers at one size comes from, at b = 0."""
    a, b = (rows[f"{kind}-32"]["encodings"]["F32"] for kind in ("bytes", FAMILY))
    return {
        "text_size_ratio": b["text_size"] / a["text_size"],
        "ic": [a["ic"], b["ic"]],
        "bits_per_byte": [a["bits_per_byte"], b["bits_per_byte"]],
        "flops_per_byte": [8 * r["flops_per_token"] / r["text_size"] for r in (a, b)],
        "parts": decompose(as_report(a), as_report(b)),
    }


def as_report(row: dict[str, Any]) -> CapacityReport:
    """Read a report that was kept."""
    return CapacityReport(**{name: row[name] for name in CapacityReport.__slots__})


def mixture_figures(rows: dict[str, Any]) -> dict[str, Any]:
    """The mixture beside the dense model of its active size, both in float32 in torch."""
    dense, sparse = rows[f"{FAMILY}-64"], rows["experts-64"]
    a, b = dense["in_torch"], sparse["in_torch"]
    return {
        "nll": [a["nll"], b["nll"]],
        "nll_interval": [a["nll_interval"], b["nll_interval"]],
        "ic": [a["ic"], b["ic"]],
        "flops_ratio": b["flops_per_token"] / a["flops_per_token"],
        "is_same_text": dense["training_digest"] == sparse["training_digest"],
        "least_expert_share": min(min(shares) for shares in b["expert_shares"]),
    }


def encoding_figures(rows: dict[str, Any]) -> dict[str, Any]:
    """What encodings do to NLL, and to IC per byte of weights read."""
    found: dict[str, Any] = {}
    for name, row in rows.items():
        if "encodings" in row:
            exact = row["encodings"]["F32"]
            found[name] = {
                encoding: {
                    "nll_change": r["nll"] / exact["nll"] - 1,
                    "ic_of_bytes": r["ic_of_bytes"],
                }
                for encoding, r in row["encodings"].items()
            }
    return found


def keep_models(rows: dict[str, Any], work: Path, models: Path) -> None:
    """Copy what users and tests need: each dense member in float16, its log and its record."""
    models.mkdir(parents=True, exist_ok=True)
    for name, row in rows.items():
        if "encodings" not in row:
            continue
        data = (work / f"{name}.F16.gguf").read_bytes()
        (models / f"{name}.gguf").write_bytes(data)
        (models / f"{name}.log.jsonl").write_text((work / name / "log.jsonl").read_text())
        record = {
            "recipe": row["recipe"],
            "packages": [package._asdict() for package in PACKAGES],
            "n_parameters": row["n_parameters"],
            "training_digest": row["training_digest"],
            "sha256": {f"{name}.gguf": hashlib.sha256(data).hexdigest()},
        }
        (models / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw NLL and IC over compute."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    rows, family = result["rows"], result["family"]
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = [rows[f"{FAMILY}-{width}"]["encodings"]["F32"] for width, _ in SIZES]
    x = [s["flops_per_token"] / 1e6 for s in sizes]
    left.plot(x, [s["bits_per_byte"] for s in sizes], "o-", label="4k BPE")
    others = {"bytes": ("s", rows["bytes-32"]["encodings"]["F32"]),
              "4k BPE, 8 experts": ("D", rows["experts-64"]["in_torch"])}  # fmt: skip
    for label, (marker, r) in others.items():
        left.plot([r["flops_per_token"] / 1e6], [r["bits_per_byte"]], marker, label=label)
    left.set_ylabel("bits per byte, held-out documents")
    right.plot(x, [s["ic"] for s in sizes], "o-", label="b = 0")
    right.plot(x, family["ic"], "o-", label=f"b = {family['bias']:.1f}, fitted")
    right.set_ylabel("information capacity")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks([0.1, 0.3, 1, 3], labels=["0.1", "0.3", "1", "3"])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("MFLOP per token")
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train, measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--models", type=Path, default=Path("models/text-family"))
    parser.add_argument("--work", type=Path, default=Path("build/text-family"))
    parser.add_argument("--only", action="append", choices=list(MEMBERS), help="train, and stop")
    o = parser.parse_args()
    corpus = Corpus(o.work)
    members = trained(o.only or list(MEMBERS), corpus, o.work)
    if o.only:
        return
    texts = corpus.unseen()
    rows = {name: measure(name, m, corpus, texts, o.work) for name, m in members.items()}
    result = {
        "packages": [p.requirement for p in PACKAGES],
        "n_texts": len(texts),
        "text_bytes": sum(len(t.encode()) for t in texts),
        "rows": rows,
        "family": family_figures(rows),
        "tokenizers": tokenizer_figures(rows),
        "mixture": mixture_figures(rows),
        "encodings": encoding_figures(rows),
    }
    (o.out / "text_family.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, o.out / "text_family.png")
    keep_models(rows, o.work, o.models)


if __name__ == "__main__":
    main()
