"""TRIM-KV beside other caches of the same size: what is lost when most of a text is forgotten.

    python -m benchmarks.trim_kv --model smollm2-135m --text wikitext-2.txt \
        --gates models/smollm2-135m.retention.safetensors --out benchmarks/results

The text is the one that the gates were trained on; only its end, which was held out, is read. Every
method reads the same tokens in pieces of `buffer` and drops entries on the way, and what it says
after each of them is compared with the full cache: KL(full || method) in nats over the positions
after M, and perplexity. Controls: gates with random weights, and the trained gates with their
scores shuffled among the tokens. Then recall of a fact, and the time of a decoded token.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from capax import _native
from capax.files.config import ModelConfig
from capax.files.model_file import open_model
from capax.files.registry import resolve
from capax.files.safetensors import SafetensorsFile
from capax.files.tokenizer import load_tokenizer
from capax.kv import AttentionInput, KVCache, parse_kv
from capax.kv.bounded import BoundedStore
from capax.kv.retention_gates import RetentionGates, read_gates
from capax.kv.trim import Gates, Trim, TrimPolicy
from capax.models import Model, ModelTensors, SequenceSlice, Step
from capax.training.recall_documents import HELD_OUT, TRAINING, recall_document, split_tokens

Floats = npt.NDArray[np.float32]
BUFFER = 16
RULES = ("stream", "h2o", "snapkv", "random", "trim")
CONTROLS = ("trim, random gates", "trim, shuffled scores")
MEMORIES = (64, 128, 256)
N_TOKENS = 1024


class RandomGates:
    """Gates of the same form that nobody trained: scores as the trained ones start."""

    def __init__(self, config: ModelConfig, width: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._gates = []
        for _ in range(config.n_layers):
            w1 = (rng.standard_normal((width, config.d_model)) * 0.02).astype(np.float32)
            w2 = (rng.standard_normal((config.n_kv_heads, width)) * 0.02).astype(np.float32)
            bias = np.full(config.n_kv_heads, np.log(10 * N_TOKENS), np.float32)
            bits = (w1.view(np.uint32) >> 16).astype(np.uint16)
            self._gates.append(
                _native.RetentionGate(bits, np.zeros(width, np.float32), w2, bias, True)
            )

    def log_beta(self, layer: int, x: Floats) -> Floats:
        return self._gates[layer].log_beta(x)


class ShuffledGates:
    """The trained scores, each given to another token of the same piece of text."""

    def __init__(self, gates: Gates, seed: int) -> None:
        self._gates, self._rng = gates, np.random.default_rng(seed)

    def log_beta(self, layer: int, x: Floats) -> Floats:
        said = self._gates.log_beta(layer, x)
        return np.ascontiguousarray(self._rng.permuted(said, axis=1))


@dataclass
class Bench:
    """One model, its text, and caches of every kind."""

    model_path: Path
    text: Path
    gates_path: Path
    model: Model = field(init=False)

    def __post_init__(self) -> None:
        self.file = open_model(self.model_path)
        self.config = self.file.config
        self.model = Model(
            self.config,
            ModelTensors(self.file),
            context_len=self.config.context_len,
            max_tokens=256,
            max_logit_rows=256,
            n_threads=1,
        )
        tokenizer = load_tokenizer(self.file)
        self.encode = lambda t: tokenizer.encode(t, add_special=False, parse_special=False)
        self.gates: RetentionGates = read_gates(self.gates_path, self.file)
        about = SafetensorsFile.open(self.gates_path).metadata
        self.recipe = json.loads(about["recipe"])
        self.steps_done = int(about["steps_done"])
        ids = self.encode(self.text.read_text(encoding="utf-8"))
        _, self.held_out = split_tokens(ids, self.recipe["hold_out"])

    def cache(self, name: str, memory: int) -> KVCache:
        """Return an empty cache: 'full', a rule, or a control."""
        if name == "full":
            return parse_kv("f16").options.open(self.file, 200, 1).new()
        options = f"memory={memory},buffer={BUFFER}"
        if name in CONTROLS or name == "trim":
            gates: Gates = self.gates
            if name == CONTROLS[0]:
                gates = RandomGates(self.config, self.recipe["width"], seed=0)
            elif name == CONTROLS[1]:
                gates = ShuffledGates(self.gates, seed=0)
            method = Trim(gates=str(self.gates_path), memory=memory, buffer=BUFFER)
            return BoundedStore(method, self.config, TrimPolicy(gates, 0), 1).new()
        return parse_kv(f"{name}:{options}").options.open(self.file, 1, 1).new()

    def logits(self, cache: KVCache, tokens: Sequence[int], wanted: range) -> Floats:
        """Read tokens; return the log-probabilities after those of `wanted`: [n, vocab_size]."""
        out = np.empty((len(wanted), self.config.vocab_size), np.float32)
        for begin in range(0, len(tokens), 256):
            part = np.array(tokens[begin : begin + 256], np.int32)
            rows = [i for i in range(len(part)) if begin + i in wanted]
            cache.reserve(len(part))
            step = Step(part, [SequenceSlice(cache, 0, len(part))], np.array(rows, np.int32))
            logits = self.model.forward(step)
            if rows:
                at = begin + rows[0] - wanted.start
                out[at : at + len(rows)] = logits
        return log_softmax(out)


def log_softmax(x: Floats) -> Floats:
    """Return log-probabilities, in place."""
    for row in x:  # one by one: [n, vocab_size] is large
        row -= row.max()
        row -= np.log(np.exp(row).sum(dtype=np.float64))
    return x


# --- what is lost on text ---------------------------------------------------------------


def quality(bench: Bench, n_texts: int) -> list[dict[str, Any]]:
    """Return KL and perplexity of each method and budget, a row each."""
    names = [(name, m) for m in MEMORIES for name in (*RULES, *CONTROLS)]
    kls: dict[tuple[str, int], list[float]] = {key: [] for key in names}
    nlls: dict[tuple[str, int], list[float]] = {key: [] for key in names}
    exact: dict[int, list[float]] = {m: [] for m in MEMORIES}
    gap = (len(bench.held_out) - N_TOKENS) // n_texts
    for number in range(n_texts):
        tokens = bench.held_out[number * gap :][:N_TOKENS]
        first = min(MEMORIES)
        full = bench.logits(bench.cache("full", 0), tokens, range(first, N_TOKENS - 1))
        for memory in MEMORIES:
            reference = full[memory - first :]
            exact[memory].append(nll(reference, tokens[memory + 1 :]))
            for name in (*RULES, *CONTROLS):
                said = bench.logits(bench.cache(name, memory), tokens, range(memory, N_TOKENS - 1))
                kl = np.einsum("tv,tv->t", np.exp(reference), reference - said)
                kls[name, memory].append(float(kl.mean()))
                nlls[name, memory].append(nll(said, tokens[memory + 1 :]))
        print(f"text {number + 1} of {n_texts}", flush=True)
    rows = []
    for name, memory in names:
        values = kls[name, memory]
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
        rows.append(
            {
                "method": name,
                "memory": memory,
                "kl": statistics.mean(values),
                "kl_standard_error": error,
                "perplexity": float(np.exp(statistics.mean(nlls[name, memory]))),
                "perplexity_full": float(np.exp(statistics.mean(exact[memory]))),
            }
        )
    return rows


def nll(logprobs: Floats, tokens: Sequence[int]) -> float:
    """Return the mean negative log-probability of tokens."""
    return float(-logprobs[np.arange(len(tokens)), tokens].mean())


# --- recall -----------------------------------------------------------------------------


def recall(bench: Bench, n_documents: int, n_tokens: int = 512) -> list[dict[str, Any]]:
    """Return how often a fact from the first tenth is said again at the end, M = 12 % of T."""
    memory = round(0.12 * n_tokens)
    rows = []
    for kind, templates in (("held out", HELD_OUT), ("trained", TRAINING)):
        right = dict.fromkeys(("full", *RULES), 0)
        for number in range(n_documents):
            draw = random.Random(f"recall/{kind}/{number}")
            document = recall_document(bench.encode, bench.held_out, n_tokens, draw, templates)
            answer = range(document.answer_begin - 1, n_tokens - 2)  # without the full stop
            for name in right:
                said = bench.logits(bench.cache(name, memory), document.tokens, answer)
                expected = document.tokens[document.answer_begin : n_tokens - 1]
                right[name] += said.argmax(axis=1).tolist() == expected
        for name, n in right.items():
            row = {"templates": kind, "method": name, "accuracy": n / n_documents}
            rows.append(row | {"documents": n_documents, "memory": memory, "tokens": n_tokens})
    return rows


# --- time and memory --------------------------------------------------------------------


def decode_ms(
    bench: Bench, one: KVCache, other: KVCache, depth: int, repeats: int
) -> tuple[float, float]:
    """Return the median times of a decoded token after `depth` tokens, taken in turns."""
    tokens = (bench.held_out * 2)[: depth + repeats]
    times: tuple[list[float], list[float]] = ([], [])
    for cache in (one, other):
        bench.logits(cache, tokens[:depth], range(0))
    for token in tokens[depth:]:
        for cache, taken in zip((one, other), times, strict=True):
            started = time.perf_counter()
            bench.logits(cache, [token], range(1))
            taken.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times[0]), statistics.median(times[1])


class TimedPolicy(TrimPolicy):
    """Takes the times of the gates and of their input, where they run, with cold caches."""

    input_seconds = gate_seconds = 0.0

    def written(self, layer: int, inputs: AttentionInput) -> Floats:
        started = time.perf_counter()
        x = inputs.x()
        between = time.perf_counter()
        said = self._gates.log_beta(layer, x)
        self.input_seconds += between - started
        self.gate_seconds += time.perf_counter() - between
        return said


def gates_shares(bench: Bench, memory: int, n_tokens: int) -> tuple[float, float]:
    """Return the shares of decode that the gates take, and the norm that makes their input."""
    method = Trim(gates=str(bench.gates_path), memory=memory, buffer=BUFFER)
    policy = TimedPolicy(bench.gates, 0)
    cache = BoundedStore(method, bench.config, policy, 1).new()
    bench.logits(cache, bench.held_out[:512], range(0))
    policy.gate_seconds = policy.input_seconds = 0.0
    started = time.perf_counter()
    for token in bench.held_out[512 : 512 + n_tokens]:
        bench.logits(cache, [token], range(1))
    whole = time.perf_counter() - started
    return policy.gate_seconds / whole, policy.input_seconds / whole


def overhead(bench: Bench, depth: int, repeats: int = 40) -> dict[str, Any]:
    """Return times of a decoded token at a depth, and whether memory stays as it is."""
    early, late, full = bench.cache("trim", 256), bench.cache("trim", 256), bench.cache("full", 0)
    bench.logits(early, bench.held_out[:1024], range(0))
    trim_ms, full_ms = decode_ms(bench, late, full, depth, repeats)
    gates, inputs = gates_shares(bench, 256, repeats)
    return {
        "depth": depth,
        "memory": 256,
        "trim_ms": trim_ms,
        "full_ms": full_ms,
        "gates_share": gates,
        "gates_input_share": inputs,
        "nbytes_at_1024": early.nbytes,
        "nbytes_at_depth": late.nbytes,
        "nbytes_full": full.nbytes,
    }


# --- the picture ------------------------------------------------------------------------


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw KL against the budget, and recall."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(3, 2))
    styles = {"trim": ("C3", "-", 2.5), **dict.fromkeys(CONTROLS, ("0.6", ":", 1.2))}
    for name in (*RULES, *CONTROLS):
        rows = [r for r in result["quality"] if r["method"] == name]
        color, line, width = styles.get(name, (None, "-", 1.5))
        x, y = [r["memory"] for r in rows], [r["kl"] for r in rows]
        left.plot(x, y, marker="o", ls=line, lw=width, color=color, label=name)
    left.set(
        xscale="log", yscale="log", xlabel="tokens kept per head (of 1,024)",
        ylabel="KL to the full cache, nats per token", xticks=MEMORIES,
        xticklabels=[str(m) for m in MEMORIES],
    )  # fmt: skip
    left.minorticks_off()
    left.legend(fontsize=8)
    left.set_title("What is lost on held-out text")
    names = ["full", *RULES]
    for offset, kind in ((-0.2, "trained"), (0.2, "held out")):
        rows = {r["method"]: r for r in result["recall"] if r["templates"] == kind}
        if rows:
            y = [100 * rows[name]["accuracy"] for name in names]
            right.bar(np.arange(len(names)) + offset, y, 0.38, label=f"{kind} sentences")
    right.set_xticks(range(len(names)), names, rotation=30)
    right.set(ylabel="facts said again, %", ylim=(0, 100))
    right.set_title("A fact from the first tenth, 12 % kept")
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure, write JSON and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--gates", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--recall", type=int, default=100, help="documents of each kind")
    parser.add_argument("--depth", type=int, default=7900)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    bench = Bench(resolve(options.model), options.text, options.gates)
    parts: dict[str, Callable[[], Any]] = {
        "quality": lambda: quality(bench, options.texts),
        "recall": lambda: recall(bench, options.recall) if options.recall else [],
        "overhead": lambda: overhead(bench, options.depth) if options.depth else {},
    }
    result: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.processor() or platform.machine(),
        "isa": _native.isa(),
        "threads": 1,
        "model": bench.model_path.name,
        "recipe": bench.recipe,
        "steps_done": bench.steps_done,
        "buffer": BUFFER,
        "texts": options.texts,
        "tokens_of_a_text": N_TOKENS,
    }
    for name, part in parts.items():
        result[name] = part()
    for row in result["quality"]:
        print(f"{row['method']:<22} M={row['memory']:<4} KL {row['kl']:.3f}  "
              f"PPL {row['perplexity']:.2f} (full {row['perplexity_full']:.2f})")  # fmt: skip
    for row in result["recall"]:
        print(f"{row['method']:<22} {row['templates']:<9} {100 * row['accuracy']:.0f} %")
    print(result["overhead"])
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "trim_kv.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    draw(result, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
