"""Draw the trained ladder: the law of the loss, the sigmoid, and where the targets stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

UNBOUNDED = 100.0  # where an interval without an upper end is cut off


def picture(found: dict[str, Any], path: Path) -> None:
    """Write three panels; the last one shows losses where there is no ruler."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    law, sigmoid, targets = figure.subplots(1, 3)
    _law(law, found)
    _sigmoid(sigmoid, found)
    _targets(targets, found)
    for axes in (law, sigmoid, targets):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def _law(axes: Any, found: dict[str, Any]) -> None:
    fitted = found["loss_law"]["law"]
    sizes = list(dict.fromkeys(p["size"] for p in found["points"]))
    for i, size in enumerate(sizes):
        rows = [p for p in found["points"] if p["size"] == size and p["phase"] == "decayed"]
        is_held_out = size == found["recipe"]["held_out_size"]
        n, tokens = rows[0]["params"], np.unique([p["tokens"] for p in rows])
        line = fitted["a"] * n ** -fitted["alpha"] + fitted["b"] * tokens ** -fitted["beta"]
        axes.plot(tokens, line, "--" if is_held_out else "-", color=f"C{i}", lw=1)
        measured = [(p["tokens"], p["loss"]) for p in rows]
        axes.plot(*zip(*measured, strict=True), "s" if is_held_out else "o", color=f"C{i}", ms=5,
                  label=f"{size}{', held out' if is_held_out else ''}")  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="tokens D", ylabel="nats per answer token",
             title="loss of answers, and the law")  # fmt: skip
    axes.xaxis.set_minor_formatter("")
    axes.legend(fontsize=7, frameon=False)


def _sigmoid(axes: Any, found: dict[str, Any]) -> None:
    held_out = found["recipe"]["held_out_size"]
    for is_held_out, mark, name in ((False, "o", "fitted on"), (True, "s", "held out")):
        rows = [p for p in found["points"] if (p["size"] == held_out) == is_held_out]
        axes.plot([p["loss"] for p in rows], [p["score"] for p in rows], mark, ms=4, label=name)
    s = found["sigmoid"]["sigmoid"]
    x = np.linspace(0.05, max(p["loss"] for p in found["points"]), 200)
    axes.plot(x, s["c"] / (1 + np.exp(-s["gamma"] * (x - s["l"]))) + s["d"], color="#666", lw=1)
    axes.set(xlabel="nats per answer token", ylabel="score", title="from loss to score")
    axes.legend(fontsize=7, frameon=False)


def _targets(axes: Any, found: dict[str, Any]) -> None:
    rows = found["targets"] or found["paired"]
    places = range(len(rows), 0, -1)
    axes.set_yticks(list(places), [r["name"] for r in rows], fontsize=8)
    if found["targets"] is None:
        axes.errorbar([r["loss"] for r in rows], list(places),
                      xerr=[2 * r["loss_se"] for r in rows], fmt="o", ms=4)  # fmt: skip
        axes.set(title="no ruler: loss minus that of 'self'", xlabel="nats per answer token")
        axes.axvline(0, color="#999", lw=0.8)
        return
    for place, row in zip(places, rows, strict=True):
        if row["rho"]:
            low, high = row["interval_80"] or (row["rho"], row["rho"])
            axes.plot([low, UNBOUNDED if high is None else high], [place] * 2, color="C0", lw=2)
            axes.plot(row["rho"], place, "o", color="C0", ms=5)
            axes.plot(row["predicted_rho"], place, "|", color="#666", ms=9)
    axes.axvline(1, color="#999", lw=0.8)
    axes.set(xscale="log", title="density by loss (80 %)", xlabel="density; |: by the closed form")
