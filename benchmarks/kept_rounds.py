"""Rounds of rethinking with the keys and values kept, beside the same rounds read again whole.

    python -m benchmarks.kept_rounds --model smollm2-135m

TTSPM (2025, arXiv 2505.20522), acceptance 9: a history of 1,024 tokens, then rounds of
16 appended and 16 new tokens. Two engines take turns; one forgets what it kept before each round,
so that it reads the whole history again. Both must give the same tokens. Writes
results/kept_rounds.json and its picture.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.run import machine
from capax import LLM, SamplingParams
from capax.measuring.records import now

N_HISTORY, N_APPENDED, N_NEW, N_ROUNDS = 1024, 16, 16, 8
HISTORY = "The rain fell on the hills and the river rose. " * 140
AGAIN = " Check your previous answer and answer again, please, step by step, with care:"
PARAMS = SamplingParams(max_tokens=N_NEW, temperature=0.0, ignore_eos=True)


def run_round(llm: LLM, ids: list[int]) -> tuple[list[int], dict[str, float]]:
    """Answer once; returns the tokens, and what reading and writing took."""
    started = time.perf_counter()
    (made,) = llm.generate([ids], PARAMS)
    seconds = time.perf_counter() - started
    read = made.usage.prompt_tokens - made.usage.cached_tokens
    times = {
        "seconds": seconds, "prefilled": read,
        "seconds_per_new": made.timings.predicted_ms / 1e3 / made.timings.predicted_n,
    }  # fmt: skip
    return list(made.outputs[0].token_ids), times


def chain(kept: LLM, again: LLM) -> list[dict[str, Any]]:
    """Run one chain by both engines in turn, who goes first changing from round to round."""
    encode = kept.tokenizer.encode
    ids, appended = encode(HISTORY)[:N_HISTORY], encode(AGAIN)[:N_APPENDED]
    assert len(ids) == N_HISTORY
    assert len(appended) == N_APPENDED
    kept.engine.forget()
    rows = []
    for number in range(1, N_ROUNDS + 1):
        found: dict[str, Any] = {"round": number, "history": len(ids)}
        tokens = {}
        for name in ("kept", "again") if number % 2 else ("again", "kept"):
            if name == "again":
                again.engine.forget()
            tokens[name], found[name] = run_round(kept if name == "kept" else again, ids)
        if tokens["kept"] != tokens["again"]:
            raise SystemExit(f"round {number} differs between kept and read again: no result")
        rows.append(found)
        ids = [*ids, *tokens["kept"], *appended]
    return rows


def summarize(chains: list[list[dict[str, Any]]], weights: int, kv_per_token: float) -> Any:
    """Return medians by round, and the three figures of the acceptance."""
    rounds = []
    for i in range(N_ROUNDS):
        rows = [rows[i] for rows in chains]
        found: dict[str, Any] = {"round": i + 1, "history": rows[0]["history"]}
        for name in ("kept", "again"):
            found[name] = {
                key: float(np.median([row[name][key] for row in rows])) for key in rows[0][name]
            }
            times = [row[name]["seconds"] for row in rows]
            found[name]["spread"] = [min(times), max(times)]
        rounds.append(found)
    second, last = rounds[1], rounds[-1]

    def nbytes(row: dict[str, Any]) -> float:
        return weights + kv_per_token * (row["history"] + N_NEW / 2)

    growth = last["kept"]["seconds_per_new"] / second["kept"]["seconds_per_new"]
    return {
        "rounds": rounds,
        "wall_growth": last["kept"]["seconds"] / second["kept"]["seconds"],
        "again_over_kept": [row["again"]["seconds"] / row["kept"]["seconds"] for row in rounds[1:]],
        "per_token_growth": growth,
        "bytes_growth": nbytes(last) / nbytes(second),
        "per_token_over_bytes": growth / (nbytes(last) / nbytes(second)),
    }


def draw(summary: dict[str, Any], path: Path) -> None:
    """Draw the time of a round by either engine."""
    figure = Figure(figsize=(6.5, 3.8), layout="constrained")
    axes = figure.subplots()
    labels = {"kept": "keys and values kept", "again": "everything read again"}
    for name, label in labels.items():
        y = [1e3 * row[name]["seconds"] for row in summary["rounds"]]
        low, high = np.array([row[name]["spread"] for row in summary["rounds"]]).T * 1e3
        x = [row["round"] for row in summary["rounds"]]
        axes.errorbar(x, y, [y - low, high - y], fmt="o-", capsize=2, label=label)
    axes.set_ylim(0)
    axes.set_xlabel("round")
    axes.set_ylabel("ms, median and range")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    about = machine()
    limits: dict[str, Any] = {"threads": options.threads, "ctx_size": 2048, "n_sequences": 2}
    with LLM(options.model, **limits) as kept, LLM(options.model, **limits) as again:
        chain(kept, again)  # warm up
        chains = [chain(kept, again) for _ in range(options.repeats)]
        weights = kept.measured_memory()["weights"]
        kv_per_token = kept.plan.kv_footprint.page / kept.plan.kv_footprint.page_tokens
        kv, isa = kept.plan.kv, kept.isa
    summary = summarize(chains, weights, kv_per_token)
    result = {
        "model": Path(options.model).stem, "time": now(), "machine": about, "isa": isa, "kv": kv,
        "threads": options.threads, "repeats": options.repeats, "history": N_HISTORY,
        "appended": N_APPENDED, "new": N_NEW, "weights_nbytes": weights,
        "kv_bytes_per_token": kv_per_token, **summary,
    }  # fmt: skip
    (options.out / "kept_rounds.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(summary, options.out / "kept_rounds.png")
    print(
        f"round 8 / round 2, kept: {summary['wall_growth']:.2f} x; read again / kept: "
        f"{min(summary['again_over_kept']):.2f} x at least; time per new token over bytes: "
        f"{summary['per_token_over_bytes']:.2f}"
    )


if __name__ == "__main__":
    main()
