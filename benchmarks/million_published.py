"""The published results of MILLION, recomputed from the figures of its public log.

python -m benchmarks.million_published
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

FIGURES = Path(__file__).with_name("million_published.json")


class Quality(NamedTuple):
    """One row of perplexity; `baseline`: without product quantisation."""

    model: str
    subspaces: int
    bits: int
    bits_per_value: float
    perplexity: float
    baseline: float


class Speed(NamedTuple):
    """`per_token`: baseline time over product-quantised time; `first_token`: the inverse."""

    model: str
    prefill: int
    per_token: float
    first_token: float


def report(path: Path = FIGURES) -> tuple[list[Quality], list[Speed]]:
    """Return the rows of both tables."""
    figures = json.loads(path.read_text(encoding="utf-8"))
    quality = [
        Quality(model, m, bits, m * bits / dim, ppl, figures["baseline_perplexity"][model])
        for model, m, bits, dim, ppl in figures["perplexity"]
    ]
    speed = [
        Speed(
            model,
            int(prefill),
            times["baseline"][0] / times["pq"][0],
            times["pq"][1] / times["baseline"][1],
        )
        for model, lengths in figures["milliseconds"].items()
        for prefill, times in sorted(lengths.items(), key=lambda item: int(item[0]))
    ]
    return quality, speed


def main() -> None:
    """Print both tables."""
    quality, speed = report()
    print("model            M  bits  bits/value  perplexity  (full)")
    for q in quality:
        print(
            f"{q.model:<14} {q.subspaces:>3} {q.bits:>5} {q.bits_per_value:>11.2f} "
            f"{q.perplexity:>11.3f}  {q.baseline:.3f}"
        )
    print("\nmodel          prefill  per token  first token")
    for s in speed:
        print(
            f"{s.model:<14} {s.prefill:>7}  {s.per_token:.2f}x faster  {s.first_token:.2f}x slower"
        )


if __name__ == "__main__":
    main()
