"""Measure `capax serve` from outside and write `serving.json`.

    python -m benchmarks.serving --model smollm2-135m --out benchmarks/results

The server is a process of its own; the clients are those of `capax bench serve`, in this process.
On two cores they take a little of the server's time, as real ones on the same machine would.
`--only NAME` runs some experiments, keeping the others' results from the file that is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.contest import PAUSE_S, Contestant
from benchmarks.run import about, find_model, keep, parser_of
from capax.errors import EndpointError
from capax.measuring.load.http import Client
from capax.measuring.load.request import Outcome, Target, send
from capax.measuring.load.run import run_load, wait_ready
from capax.measuring.load.summary import result_of
from capax.measuring.load.workload import (
    Planned,
    plan_load,
    prompt_of,
    random_lengths,
    sharegpt_like_lengths,
)

READY_S = 120.0
N_WARM_UPS = 2  # requests of a new client
# Clients at a time and how many requests they make: a few seconds each on two cores.
CLIENTS = {1: 12, 4: 40, 16: 96, 64: 192}
MOST_PROMPT, MOST_ANSWER = 512, 128
GOALS_MS = {"ttft": 1000.0, "tpot": 100.0}
HTTP_CLIENTS, HTTP_REQUESTS = 16, 64
PREFIX_WORDS = 2000
LONG_WORDS, N_STREAMS, STREAM_TOKENS, LEAST_BEFORE = 4000, 8, 2000, 40
SHORT_CONTEXT, CONTEXT = 1024, 4608  # of conversations; for the long prompt


class Settings(NamedTuple):
    """What is served, with how many threads, and how often everything is measured."""

    model: Path
    threads: int
    rounds: int


Experiment = Callable[[Settings], Awaitable[dict[str, Any]]]


@contextlib.contextmanager
def serving(
    settings: Settings, parallel: int, context: int, extra: Sequence[str] = ()
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run a server; yields its base URL and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "capax", "serve", str(settings.model), "--port", str(port)]
    command += ["--threads", str(settings.threads), "--parallel", str(parallel), "--quiet"]
    command += ["--ctx-size", str(context), "--alias", "served", *extra]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.terminate()
        process.wait(timeout=60)


@contextlib.asynccontextmanager
async def client_of(
    settings: Settings, parallel: int, context: int, extra: Sequence[str] = ()
) -> AsyncIterator[Client]:
    """A client of a server that is ready and warm."""
    with serving(settings, parallel, context, extra) as (url, process):
        async with Client(url) as client:
            await ready(client, process)
            warm_up = plan_load(random_lengths(N_WARM_UPS, 99, 64, 16), np.zeros(N_WARM_UPS), 99)
            await answered(client, warm_up)
            yield client


async def ready(client: Client, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server takes requests. Raises RuntimeError if it ends or takes too long."""
    deadline = time.monotonic() + READY_S
    while True:
        try:
            await wait_ready(client, 1.0)
            return
        except EndpointError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server does not start: {error}") from error


def target(**extra: Any) -> Target:
    """How requests are put: greedy, as long as planned."""
    return Target("openai", "/v1/completions", "served", 0.0, True, 300.0, tuple(extra.items()))


async def answered(client: Client, requests: list[Planned], concurrency: int = 1) -> list[Outcome]:
    """Send requests and return their outcomes. Raises RuntimeError if one failed."""
    load = await run_load(client, target(), requests, max_concurrency=concurrency)
    for outcome in load.outcomes:
        if not outcome.is_ok:
            raise RuntimeError(f"a request failed: {outcome.error}")
    return load.outcomes


# --- experiments -------------------------------------------------------------------------------


async def clients(settings: Settings) -> dict[str, Any]:
    """Bounded closed-loop clients with the lengths of conversations."""
    found = {}
    async with client_of(settings, max(CLIENTS), SHORT_CONTEXT) as client:
        for concurrency, n in CLIENTS.items():
            lengths = sharegpt_like_lengths(
                n, concurrency, max_prompt=MOST_PROMPT, max_answer=MOST_ANSWER
            )
            requests = plan_load(lengths, np.zeros(n), concurrency)
            load = await run_load(client, target(), requests, max_concurrency=concurrency)
            found[str(concurrency)] = {
                "n_requests": n,
                **result_of(load, percentiles=(50.0, 90.0, 99.0), goals_ms=GOALS_MS),
            }
    return {"goals_ms": GOALS_MS, "clients": found}


async def http(settings: Settings) -> dict[str, Any]:
    """Streams over HTTP against the same engine with the same clients in its own process."""
    seconds: dict[str, list[float]] = {"http": [], "in_process": []}
    shares: list[float] = []
    with Contestant(
        "capax_runner",
        str(settings.model),
        settings.threads,
        SHORT_CONTEXT,
        {"parallel": str(HTTP_CLIENTS)},
    ) as contestant:
        async with client_of(settings, HTTP_CLIENTS, SHORT_CONTEXT) as client:
            for round_number in range(settings.rounds + 1):
                lengths = sharegpt_like_lengths(
                    HTTP_REQUESTS, round_number, max_prompt=MOST_PROMPT // 2, max_answer=MOST_ANSWER
                )
                requests = plan_load(lengths, np.zeros(HTTP_REQUESTS), round_number)
                n_tokens = sum(length.n_answer for length in lengths)
                time.sleep(PAUSE_S)
                load = await run_load(client, target(), requests, max_concurrency=HTTP_CLIENTS)
                time.sleep(PAUSE_S)
                inside = contestant.ask(
                    do="clients",
                    requests=[(r.prompt, r.max_tokens) for r in requests],
                    concurrency=HTTP_CLIENTS,
                )
                if sum(o.n_tokens for o in load.outcomes) != n_tokens != inside["n_tokens"]:
                    raise RuntimeError("the two sides made different numbers of tokens")
                if round_number > 0:
                    seconds["http"].append(load.duration_s / n_tokens)
                    seconds["in_process"].append(inside["seconds"] / n_tokens)
                    shares.append(load.cpu_share)
    rates = {name: [1 / s for s in values] for name, values in seconds.items()}
    return {
        "clients": HTTP_CLIENTS,
        "tokens_per_second": rates,
        "generator_cpu_share": statistics.median(shares),
        "ratio": statistics.median(a / b for a, b in zip(*rates.values(), strict=True)),
    }


async def prefix(settings: Settings) -> dict[str, Any]:
    """Time to the first token of a second request that shares a long prefix with the first."""
    first_s, second_s, n_prompt = [], [], []
    async with client_of(settings, 4, CONTEXT) as client:
        for round_number in range(settings.rounds):
            common = prompt_of(PREFIX_WORDS, 1000 + round_number, 0)
            for times, question in ((first_s, " What is it?"), (second_s, " Who wrote this?")):
                [outcome] = await answered(client, [Planned(0, 0.0, common + question, 0, 4)])
                times.append(outcome.ttft_s)
                n_prompt.append(outcome.n_prompt)
    return {
        "prompt_tokens": round(statistics.median(n_prompt)),
        "first_s": first_s,
        "second_s": second_s,
        "ratio": statistics.median(b / a for a, b in zip(first_s, second_s, strict=True)),
    }


async def interference(settings: Settings) -> dict[str, Any]:
    """Times between tokens of running streams from a long prompt's arrival to its first token."""
    quiet: list[float] = []
    during: list[float] = []
    took, n_prompt = [], []
    async with client_of(settings, N_STREAMS + 1, CONTEXT) as client:
        for round_number in range(settings.rounds):
            streams, long = await _disturbed(client, round_number)
            arrived, answered_at = long.start_s, long.start_s + long.ttft_s
            took.append(long.ttft_s)
            n_prompt.append(long.n_prompt)
            for stream in streams:
                ends = stream.start_s + stream.ttft_s + np.cumsum(stream.gaps_s)
                gaps = np.asarray(stream.gaps_s)
                quiet += gaps[ends < arrived].tolist()
                during += gaps[(ends > arrived) & (ends - gaps < answered_at)].tolist()
    return {
        "streams": N_STREAMS,
        "prompt_tokens": round(statistics.median(n_prompt)),
        "prompt_ttft_s": took,
        "n_gaps": len(during),
        "quiet_ms": _gap_figures(quiet),
        "during_ms": _gap_figures(during),
        # Pieces that one read brings are 0 apart; a median of that says nothing.
        "ratio": float(np.percentile(during, 99) / max(float(np.median(during)), 1e-4)),
    }


async def _disturbed(client: Client, round_number: int) -> tuple[list[Outcome], Outcome]:
    """Run some streams, and a long prompt once each of them has some tokens."""
    seed = 2000 + round_number
    lengths = random_lengths(N_STREAMS, seed, 32, STREAM_TOKENS)
    zero_s = time.perf_counter()
    outcomes = [Outcome(0, 0.0) for _ in lengths]
    tasks = [
        asyncio.create_task(
            send(client, target(), planned, start_s=0.0, zero_s=zero_s, outcome=outcome)
        )
        for planned, outcome in zip(
            plan_load(lengths, np.zeros(N_STREAMS), seed), outcomes, strict=True
        )
    ]
    while min(outcome.n_tokens for outcome in outcomes) < LEAST_BEFORE:
        if any(task.done() for task in tasks):
            raise RuntimeError(f"a stream ended early: {[o.error for o in outcomes]}")
        await asyncio.sleep(0.01)
    prompt = Planned(0, 0.0, prompt_of(LONG_WORDS, seed, 1), LONG_WORDS, 1)
    arrived = time.perf_counter() - zero_s
    long = await send(client, target(), prompt, start_s=arrived, zero_s=zero_s)
    if any(task.done() for task in tasks):
        raise RuntimeError(f"a stream ended early: {[o.error for o in outcomes]}")
    if not long.is_ok:
        raise RuntimeError(f"the long prompt failed: {long.error}")
    for task in tasks:  # what follows is not measured
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return outcomes, long


def _gap_figures(seconds: list[float]) -> dict[str, float]:
    values = 1e3 * np.asarray(seconds)
    names = {"median": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}
    return {name: float(np.percentile(values, p)) for name, p in names.items()}


EXPERIMENTS: dict[str, Experiment] = {
    "clients": clients,
    "http": http,
    "prefix": prefix,
    "interference": interference,
}


def main() -> int:
    """Run the experiments and write their results."""
    parser = parser_of("measure capax serve from outside", 5, "at least 5")
    parser.add_argument("--only", action="append", choices=list(EXPERIMENTS))
    options = parser.parse_args()
    if options.rounds < 5:
        parser.error("fewer than 5 rounds are no measurement")
    settings = Settings(find_model(options.model), options.threads, options.rounds)
    for name in options.only or EXPERIMENTS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        facts = about(options.model, settings.model, settings.threads, settings.rounds)
        result = asyncio.run(EXPERIMENTS[name](settings))
        keep(options.out / "serving.json", name, facts | result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
