"""XQuant beside plain quantised caches of the same bits: divergence, perplexity, bytes, speed.

    python -m benchmarks.xquant --model smollm2-135m --text wikitext-2.txt --chunks 4

Weights are dequantised to float32, so that nothing but the cache differs from the reference, the
full float32 cache. Every token is read from codes, those of its own block too, which is not causal
within a block of 128, as its scales see later tokens (`exact_window=false`). Rows marked causal
have the exact window of real use. KIVI-like and KVQuant-like (keys before their rotation, uniform
steps) caches have the same groups, and the same base layers where XQuant has them. Divergence is
KL(full || method) in nats.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from capax import _native
from capax.files.model_file import ModelFile, open_model
from capax.files.registry import resolve
from capax.files.tokenizer import load_tokenizer
from capax.kv import KVCache, PagePool, kv_method
from capax.kv.xquant import XQuantCaching
from capax.kv.xquant_cost import xquant_cost
from capax.models import Model, ModelTensors, SequenceSlice, Step
from capax.weights import NativeWeight

Floats = npt.NDArray[np.float32]
N_TOKENS = 1024
LATENT, DELTAS = "xquant:group=64", "xquant:group=64,cross_layer=on"
FULL_WIDTH = "xquant:group=64,cross_layer=on,mode=x,cl_space=residual"
KIVI, KVQUANT = "kivi:group=64", "kivi:group=64,keys=pre"
METHODS = {
    **{f"latent {bits}": f"{LATENT},bits={bits}" for bits in (8, 4, 3, 2)},
    **{f"latent {bits}, base 3": f"{LATENT},bits={bits},base_layers=3" for bits in (3, 2)},
    "CL latent 8, base at 8": f"{DELTAS},bits=8,base_bits=8",
    **{f"CL latent {bits}": f"{DELTAS},bits={bits}" for bits in (4, 3, 2)},
    "CL latent 2, latent base": f"{DELTAS},bits=2,cl_base=latent",
    "CL latent 2, residual": f"{DELTAS},bits=2,cl_space=residual",
    "CL full width 3, residual": f"{FULL_WIDTH},bits=3",
    "CL full width 3, no feedback": f"{FULL_WIDTH},bits=3,feedback=false",
    "CL full width 2, residual": f"{FULL_WIDTH},bits=2",
    **{f"X {bits}": f"xquant:group=64,mode=x,bits={bits}" for bits in (8, 4, 3, 2)},
    "KIVI-like 4": f"{KIVI},bits=4",
    "KVQuant-like 4": f"{KVQUANT},bits=4",
    "KIVI-like 2, base 3": f"{KIVI},bits=2,base_layers=3",
    "KVQuant-like 2, base 3": f"{KVQUANT},bits=2,base_layers=3",
}
CAUSAL = ("latent 4", "CL latent 3", "CL latent 2", "X 4", "KIVI-like 4", "KVQuant-like 4")


@dataclass(frozen=True)
class Row:
    """One method on all chunks; bytes per token stored, and with the live accumulator."""

    name: str
    method: str
    is_causal: bool
    kl: float
    perplexity: float
    stored_bytes: float
    live_bytes: float


class DequantisedTensors(ModelTensors):
    """The model's matrices as float32."""

    def __init__(self, model: ModelFile) -> None:
        super().__init__(model)
        for name, weight in self._matrices.items():
            rows = weight.dequantize()
            flat = rows.view(np.uint8).reshape(-1)
            self._matrices[name] = NativeWeight.from_bytes(flat, "F32", *rows.shape)


class Bench:
    """A model in float32 and chunks of a text."""

    def __init__(self, model: Path, text: Path, n_chunks: int, threads: int) -> None:
        self.file = open_model(model)
        tokens = DequantisedTensors(self.file)
        self.model = Model(
            self.file.config,
            tokens,
            context_len=2 * N_TOKENS,
            max_tokens=N_TOKENS,
            max_logit_rows=N_TOKENS,
            n_threads=threads,
        )
        letters = text.read_text(encoding="utf-8")[: 16 * N_TOKENS * n_chunks]
        ids = np.array(load_tokenizer(self.file).encode(letters, add_special=False), np.int32)
        if len(ids) < n_chunks * N_TOKENS:
            raise SystemExit(f"{text} has fewer than {n_chunks} chunks of {N_TOKENS} tokens")
        self.chunks = list(ids[: n_chunks * N_TOKENS].reshape(n_chunks, N_TOKENS))
        self.references = [self.log_probs(self.full(), ids) for ids in self.chunks]

    def full(self) -> KVCache:
        return PagePool(self.file.config, "f32", 64).new()

    def log_probs(self, cache: KVCache, ids: npt.NDArray[np.int32]) -> Floats:
        logits = self.forward(cache, ids, np.arange(len(ids), dtype=np.int32))
        return logits - _native.logsumexp(logits)[:, None]

    def forward(self, cache: KVCache, ids: npt.NDArray[np.int32], rows: Any) -> Floats:
        cache.reserve(len(ids))
        step = Step(ids, [SequenceSlice(cache, 0, len(ids))], np.asarray(rows, np.int32))
        return self.model.forward(step).copy()

    def quality(self, name: str, method: str, *, is_causal: bool) -> Row:
        method += "" if is_causal else ",exact_window=false"
        store = kv_method(method).open(self.file, 64, 2)
        kl, loss = [], []
        for ids, reference in zip(self.chunks, self.references, strict=True):
            cache = store.new()
            found = self.log_probs(cache, ids)
            cache.close()
            p = reference.astype(np.float64)
            kl.append(float((np.exp(p) * (p - found)).sum(axis=1).mean()))
            loss.append(float(-found[np.arange(len(ids) - 1), ids[1:]].mean()))
        perplexity = float(np.exp(np.mean(loss)))
        return Row(name, method, is_causal, float(np.mean(kl)), perplexity, *self._bytes(method))

    def _bytes(self, method: str) -> tuple[float, float]:
        options, config = kv_method(method), self.file.config
        if isinstance(options, XQuantCaching):
            cost = xquant_cost(options, config)
            return cost.stored, cost.stored + cost.accumulator
        footprint = options.footprint(config)
        return (footprint.page / footprint.page_tokens,) * 2

    def reference_perplexity(self) -> float:
        pairs = zip(self.chunks, self.references, strict=True)
        return float(np.exp(np.mean([-r[np.arange(len(i) - 1), i[1:]].mean() for i, r in pairs])))

    def speed(self, methods: dict[str, str], n_decoded: int) -> dict[str, float]:
        """Tokens per second after 1,024 in the cache: medians of tokens taken in turns."""
        caches: dict[str, KVCache] = {"full f32": self.full()}
        stores = {n: kv_method(m).open(self.file, 64, 2) for n, m in methods.items()}
        caches |= {name: store.new() for name, store in stores.items()}
        for cache in caches.values():
            self.forward(cache, self.chunks[0], [N_TOKENS - 1])
        seconds: dict[str, list[float]] = {name: [] for name in caches}
        for token in self.chunks[0][:n_decoded]:
            for name, cache in caches.items():
                begin = time.perf_counter()
                self.forward(cache, np.array([token], np.int32), [0])
                seconds[name].append(time.perf_counter() - begin)
        return {name: 1 / statistics.median(s) for name, s in seconds.items()}


def statements(rows: list[Row], reference: float) -> list[dict[str, Any]]:
    """What is to hold, beside what was measured."""
    kl = {r.name: r.kl for r in rows if not r.is_causal}
    ppl = {r.name: r.perplexity for r in rows if not r.is_causal}
    ratios = [
        ("latent 4 / KIVI-like 4", kl["latent 4"] / kl["KIVI-like 4"], 0.8),
        ("latent 4 / KVQuant-like 4", kl["latent 4"] / kl["KVQuant-like 4"], 0.9),
        ("perplexity of latent 4 / full", ppl["latent 4"] / reference, 1.04),
        ("CL latent 3 / latent 3, base 3", kl["CL latent 3"] / kl["latent 3, base 3"], 0.8),
        ("CL latent 2 / latent 2, base 3", kl["CL latent 2"] / kl["latent 2, base 3"], 0.8),
        ("CL latent 2 / KVQuant-like 2", kl["CL latent 2"] / kl["KVQuant-like 2, base 3"], 0.5),
        (
            "with feedback / without, full width 3",
            kl["CL full width 3, residual"] / kl["CL full width 3, no feedback"],
            1 / 3,
        ),
        ("latent 8", kl["latent 8"], 0.001),
    ]
    for kind in ("latent", "X"):
        steps = [kl[f"{kind} {a}"] / kl[f"{kind} {b}"] for a, b in ((8, 4), (4, 3), (3, 2))]
        ratios.append((f"{kind}: most that a step to more bits leaves", max(steps), 1.0))
    deltas = [kl["CL latent 8, base at 8"], *(kl[f"CL latent {bits}"] for bits in (4, 3, 2))]
    worst = max(a / b for a, b in pairwise(deltas))
    ratios.append(("CL latent: most that a step to more bits leaves", worst, 1.0))
    return [
        {"statement": name, "measured": value, "at_most": bound, "holds": value <= bound}
        for name, value, bound in ratios
    ]


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw KL against bytes per token."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    families = {
        "X": ("C7", "s", ("X 8", "X 4", "X 3", "X 2")),
        "latents": ("C0", "o", ("latent 8", "latent 4", "latent 3", "latent 2")),
        "CL, latent deltas": ("C3", "o", ("CL latent 4", "CL latent 3", "CL latent 2")),
        "CL, full width, residual": (
            "C1", "o", ("CL full width 3, residual", "CL full width 2, residual"),
        ),
        "CL without feedback": ("C1", "x", ("CL full width 3, no feedback",)),
        "KIVI-like": ("C2", "^", ("KIVI-like 4", "KIVI-like 2, base 3")),
        "KVQuant-like": ("C4", "v", ("KVQuant-like 4", "KVQuant-like 2, base 3")),
    }  # fmt: skip
    rows = {r["name"]: r for r in result["quality"] if not r["is_causal"]}
    for label, (color, marker, names) in families.items():
        x, y = [rows[n]["stored_bytes"] for n in names], [rows[n]["kl"] for n in names]
        axes.plot(x, y, color=color, marker=marker, label=label)
        live = [rows[n]["live_bytes"] for n in names]
        if live != x:
            axes.plot(live, y, color=color, marker=marker, mfc="none", ls=":", lw=0.8)
    axes.set(
        xscale="log", yscale="log", xlabel="bytes per token (hollow: with the live accumulator)",
        ylabel="KL to the full float32 cache, nats per token",
    )  # fmt: skip
    ticks = [4000, 6000, 10_000, 20_000]
    axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
    axes.minorticks_off()
    axes.legend(fontsize=8)
    axes.set_title(f"{result['model']}, every token read from codes")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, write JSON and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--decoded", type=int, default=16, help="tokens to time; 0: none")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    path = resolve(options.model)
    bench = Bench(path, options.text, options.chunks, options.threads)
    reference = bench.reference_perplexity()
    print(f"full float32 cache: perplexity {reference:.2f}")
    rows = []
    jobs = [(name, False) for name in METHODS] + [(name, True) for name in CAUSAL]
    for name, is_causal in jobs:
        rows.append(row := bench.quality(name, METHODS[name], is_causal=is_causal))
        print(
            f"{name:<32} {'causal' if is_causal else '':<6} KL {row.kl:<8.5f} PPL "
            f"{row.perplexity:<8.3f} {row.stored_bytes:>9,.1f} bytes per token, "
            f"{row.live_bytes:,.1f} live",
            flush=True,
        )
    timed = {name: METHODS[name] for name in ("latent 4", "CL latent 3", "X 4")}
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.processor() or platform.machine(),
        "isa": _native.isa(),
        "threads": options.threads,
        "model": path.name,
        "weights": "dequantised to float32",
        "text": options.text.name,
        "chunks": options.chunks,
        "tokens_of_a_chunk": N_TOKENS,
        "full_perplexity": reference,
        "quality": [asdict(row) for row in rows],
        "statements": statements(rows, reference),
        "tokens_per_second_after_1024": bench.speed(timed, options.decoded)
        if options.decoded
        else {},
    }
    for s in result["statements"]:
        verdict = "holds" if s["holds"] else "DOES NOT HOLD"
        print(f"{s['statement']:<50} {s['measured']:.4f} <= {s['at_most']:.4f} {verdict}")
    for name, speed in result["tokens_per_second_after_1024"].items():
        print(f"{name:<12} {speed:.1f} tokens per second")
    options.out.mkdir(parents=True, exist_ok=True)
    out = options.out / "xquant.json"
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    draw(result, out.with_suffix(".png"))


if __name__ == "__main__":
    main()
