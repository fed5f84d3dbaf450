"""Predict queries, and a server's log of them, from a runtime profile; write `runtime.json`.

    python -m benchmarks.runtime --model smollm2-135m --out benchmarks/results

`served`: a profile and 220 requests to `capax serve --request-log` by turns, one repeat of the grid
and some requests, one at a time. The profile predicts queries it has not seen, beside two constants
(prefill and decode tokens per second), and prices the log. `deep`: prompts up to 4,032 tokens, with
and without the term for reading the cache. About two minutes each on two free cores.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.run import about, find_model, keep, parser_of
from benchmarks.serving import N_WARM_UPS, READY_S, Settings, answered, client_of
from capax import LLM
from capax.errors import CapaxError
from capax.measuring.idealized_runtime import (
    Cell,
    Sample,
    break_even,
    cells,
    check_stable,
    fit,
)
from capax.measuring.load.workload import plan_load, sharegpt_like_lengths
from capax.measuring.runtime_profile import samples_document, time_query
from capax.measuring.served_log import Bill, bill, read_log

Query = tuple[int, int]  # prompt and output tokens

CONTEXT, MOST_PROMPT, MOST_ANSWER = 768, 512, 128
GRID = tuple((p, o) for p in (1, 16, 64, 128, 256, 512) for o in (1, 4, 16, 64, 128))
# Between the keys of the grid, beyond its longest output, and at the limit of the context.
HELD_OUT = ((8, 2), (30, 40), (48, 150), (96, 24), (200, 100), (300, 8), (400, 160), (608, 160))
N_REQUESTS = 220
DEEP_CONTEXT = 4096
DEEP_GRID = tuple((p, o) for p in (1, 256, 1024, 2048, 3072, 4032) for o in (1, 8, 32, 64))
DEEP_HELD_OUT = ((512, 96), (1536, 96), (2500, 96), (3600, 96), (4000, 96))


def timed(
    llm: LLM, queries: Sequence[Query], repeats: int, seed: int, round_number: int = 0
) -> list[Sample]:
    """Time queries in a random order, each as often; two untimed ones warm up."""
    rng = np.random.default_rng(seed)
    for _ in range(2):
        time_query(llm, *max(queries), rng)
    found = []
    for _ in range(repeats):
        for i in rng.permutation(len(queries)):
            p, o = queries[i]
            found.append(Sample(p, o, time_query(llm, p, o, rng), round_number))
    return found


def errors(predict: Callable[[int, int], float], measured: Sequence[Cell]) -> dict[str, Any]:
    """Return |predicted / measured - 1| of cells."""
    each = [abs(predict(c.p, c.o) / c.seconds - 1) for c in measured]
    return {
        "median": float(np.median(each)),
        "p90": float(np.quantile(each, 0.9)),
        "cells": [[c.p, c.o, c.seconds, e] for c, e in zip(measured, each, strict=True)],
    }


def two_constants(measured: Sequence[Cell]) -> Callable[[int, int], float]:
    """Return the prediction of prefill and decode tokens per second, of the longest cells."""
    seconds = {(c.p, c.o): c.seconds for c in measured}
    p, o = MOST_PROMPT, MOST_ANSWER
    prefill = seconds[p, 1] / p
    decode = (seconds[1, o] - seconds[1, 1]) / (o - 1)
    return lambda p, o: p * prefill + o * decode


async def served(settings: Settings) -> dict[str, Any]:
    """Profile and serve by turns; what the profile says of unseen queries and of the log."""
    samples: list[Sample] = []
    unseen: list[Sample] = []
    lengths = sharegpt_like_lengths(
        N_REQUESTS, 7, max_prompt=MOST_PROMPT - 32, max_answer=MOST_ANSWER
    )
    requests = plan_load(lengths, np.zeros(N_REQUESTS), 7)
    with (
        tempfile.TemporaryDirectory() as folder,
        LLM(settings.model, threads=settings.threads, ctx_size=CONTEXT, kv="f16") as llm,
    ):
        path = Path(folder) / "requests.jsonl"
        extra = ["--request-log", str(path)]
        async with client_of(settings, 1, CONTEXT, extra) as client:
            await written(path, N_WARM_UPS)
            n_turns = 2 * settings.rounds
            for turn in range(n_turns):
                round_number = turn // settings.rounds
                samples += timed(llm, GRID, 1, turn, round_number)
                unseen += timed(llm, HELD_OUT, 1, 100 + turn, round_number)
                await answered(client, requests[turn::n_turns])
            await written(path, N_WARM_UPS + N_REQUESTS)
        log = list(read_log(path))[N_WARM_UPS:]
    result = fit(cells(samples), kappa=True)
    return {
        "samples": samples_document(samples, "served", {})["samples"],
        "profile": result.model.to_helm(),
        "r2": result.r2,
        "kappa_ratio": result.kappa_ratio,
        "rounds": stability(samples),
        "held_out": errors(result.model.seconds, cells(unseen)),
        "two_constants": errors(two_constants(cells(samples)), cells(unseen)),
        "profiling_s": sum(s.seconds for s in samples),
        "break_even_queries": break_even(sum(s.seconds for s in samples), result.model, 91, 128),
        "bill": bill_figures(bill(log, result.model)),
    }


async def written(path: Path, n: int) -> None:
    """Wait until the log has n lines: a line is written when its answer has left."""
    deadline = time.monotonic() + READY_S
    while len(list(read_log(path))) < n:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the request log has fewer than {n} lines")
        await asyncio.sleep(0.01)


def stability(samples: Sequence[Sample]) -> dict[str, Any]:
    """By how much the rounds differ in the time per token, and whether that may be published."""
    differ = check_stable(samples, within=float("inf"))
    try:
        check_stable(samples)
        return {"differ": differ, "is_stable": True}
    except CapaxError:
        return {"differ": differ, "is_stable": False}


def bill_figures(found: Bill) -> dict[str, Any]:
    """Return the figures of a bill, and each request of it."""
    each = [
        [r.prompt_tokens, r.cached_tokens, r.completion_tokens, r.seconds, r.queue_seconds,
         r.prefill_seconds, r.decode_seconds, p.idealized_s]
        for p in found.priced for r in (p.request,)
    ]  # fmt: skip
    engine_s = sum(p.request.engine_seconds for p in found.priced)
    return {
        "n_requests": len(found.priced),
        "left_out": dict(found.left_out),
        "n_overlapping": found.n_overlapping,
        "n_cached": found.n_cached,
        "idealized_s": found.idealized_s,
        "measured_s": found.measured_s,
        "engine_s": engine_s,
        "ratio": found.ratio,
        "ratio_to_engine": found.idealized_s / engine_s,
        "median_error": found.median_error,
        "waited_s": found.waited_s,
        "fixed_s": found.fixed_s,
        "requests": each,
    }


async def deep(settings: Settings) -> dict[str, Any]:
    """Unseen outputs after prompts up to 4,000 tokens, with the cache term and without."""
    with LLM(settings.model, threads=settings.threads, ctx_size=DEEP_CONTEXT, kv="f16") as llm:
        samples = timed(llm, DEEP_GRID, settings.rounds, 20)
        unseen = cells(timed(llm, DEEP_HELD_OUT, settings.rounds, 21))
    chosen, flat = fit(cells(samples)), fit(cells(samples), kappa=False)
    return {
        "samples": samples_document(samples, "deep", {})["samples"],
        "profile": chosen.model.to_helm(),
        "kappa_ratio": chosen.kappa_ratio,
        "token_s": {str(d): chosen.model.token_seconds(d) for d in (0, 16, 1024, 2048, 4096)},
        "with_kappa": errors(chosen.model.seconds, unseen),
        "without": errors(flat.model.seconds, unseen),
        "decode": decode_errors(samples),
    }


def decode_errors(samples: Sequence[Sample]) -> dict[str, float]:
    """Median error of T(p, o) - g(p) of the longest outputs, by fits that have not seen them.

    The decode alone: the prompt is most of such a query, and the same in both fits.
    """
    measured = cells(samples)
    longest = max(c.o for c in measured)
    known = [c for c in measured if c.o != longest]
    models = {"with_kappa": fit(known).model, "without": fit(known, kappa=False).model}
    found = {}
    for name, model in models.items():
        decode = [
            (model.seconds(c.p, c.o) - model.g[c.p]) / (c.seconds - model.g[c.p]) - 1
            for c in measured
            if c.o == longest
        ]
        found[name] = float(np.median(np.abs(decode)))
    return found


EXPERIMENTS = {"served": served, "deep": deep}


def main() -> int:
    """Run the experiments, keep and print them."""
    parser = parser_of(
        "predict queries from a runtime profile", 5, "repeats of each cell in a round"
    )
    parser.add_argument("--only", action="append", choices=list(EXPERIMENTS))
    options = parser.parse_args()
    settings = Settings(find_model(options.model), options.threads, options.rounds)
    for name in options.only or EXPERIMENTS:
        facts = about(options.model, settings.model, settings.threads, settings.rounds)
        facts["load_average"] = os.getloadavg()[0]
        found = asyncio.run(EXPERIMENTS[name](settings))
        keep(options.out / "runtime.json", name, facts | found)
        print(f"{name}: " + (served_line(found) if name == "served" else deep_line(found)))
    return 0


def served_line(found: dict[str, Any]) -> str:
    """Return what the profile says of the log, in a line."""
    priced = found["bill"]
    return (
        f"{priced['n_requests']} requests, idealized / measured {priced['ratio']:.3f} (engine's "
        f"own time {priced['ratio_to_engine']:.3f}), each {priced['median_error']:.1%}, fixed "
        f"{1e3 * priced['fixed_s']:.2f} ms; held out {found['held_out']['median']:.1%} (p90 "
        f"{found['held_out']['p90']:.1%}), two constants {found['two_constants']['median']:.1%}; "
        f"rounds differ by {found['rounds']['differ']:.1%}"
    )


def deep_line(found: dict[str, Any]) -> str:
    """Return what the cache term is worth, in a line."""
    decode = found["decode"]
    return (
        f"likelihood ratio {found['kappa_ratio']:.1f}; held out "
        f"{found['with_kappa']['median']:.2%} with kappa, {found['without']['median']:.2%} "
        f"without; decode alone {decode['with_kappa']:.1%} and {decode['without']:.1%}"
    )


if __name__ == "__main__":
    sys.exit(main())
