"""Price a server's queries while others load the machine, and see whether the load is removed.

    python -m benchmarks.contention --model smollm2-135m --out benchmarks/results

The same grid of queries goes to `capax serve` three times: with nothing else running, beside bursts
of busy processes with pauses longer than the longest query, and beside processes that never pause;
one busy process for each core. Bursts fill half of the time: the minimum of each cell must come
near the quiet fit where the mean does not. Without pauses only the time per token can be had, from
the gaps between the engine's tokens; it is also asked of one thread, whose token fits between two
turns of its competitor. The server's own seconds of CPU say how much of the time was
its work. Writes `contention.json` and `contention.png`.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.run import about, find_model, keep, parser_of
from benchmarks.serving import Settings, answered, ready, serving
from capax import LLM, SamplingParams
from capax.measuring.idealized_runtime import Cell, Fit, Sample, cells, denoise, token_gap_beta
from capax.measuring.load.http import Client
from capax.measuring.load.workload import Length, plan_load

PROMPTS, OUTPUTS = (16, 64, 128, 256), (1, 4, 8, 16)
CONTEXT = 512
BURST_S, PAUSE_S = (0.6, 1.2), (0.6, 1.2)  # ranges that each burst and each pause is drawn from
GAP_DEPTH, N_GAPS = 16, 200  # the prompt, and the tokens after it whose gaps are taken
STEADY_REPEATS = 5  # nothing is found there by repeating
CONDITIONS = ("quiet", "bursts", "steady")


def busy(seed: int, steady: bool) -> None:
    """Keep a core busy until terminated, in bursts or without a pause."""
    rng = np.random.default_rng(seed)
    while True:
        until = time.monotonic() + rng.uniform(*BURST_S)
        while time.monotonic() < until:
            pass
        if not steady:
            time.sleep(rng.uniform(*PAUSE_S))


@contextlib.contextmanager
def load_of(condition: str) -> Iterator[None]:
    """Run the busy processes of a condition. Bursts begin and end together: same seed."""
    n = 0 if condition == "quiet" else os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=busy, args=(1, condition == "steady")) for _ in range(n)]
    try:
        for process in processes:
            process.start()
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


async def timed(client: Client, repeats: int, seed: int) -> list[Sample]:
    """Time the grid in a random order, one query at a time."""
    rng = np.random.default_rng(seed)
    samples: list[Sample] = []
    for repeat in range(repeats):
        grid = list(product(PROMPTS, OUTPUTS))
        for i in rng.permutation(len(grid)):
            p, o = grid[i]
            number = seed * 100_000 + repeat * len(grid) + int(i)  # no prompt comes twice
            (outcome,) = await answered(client, plan_load([Length(p, o)], np.zeros(1), number))
            if outcome.n_tokens != o:
                raise RuntimeError(f"{outcome.n_tokens} tokens came where {o} were asked for")
            samples.append(Sample(p, o, outcome.latency_s))
    return samples


def token_gap(settings: Settings, condition: str) -> float:
    """Return the 5 % quantile of the engine's seconds per token, stamped where it steps.

    A client's stamps will not do: tokens that wait for it arrive together, with no gap at all.
    """
    with LLM(settings.model, threads=settings.threads, ctx_size=CONTEXT, kv="f16") as llm:
        prompt = list(range(100, 100 + GAP_DEPTH))
        params = SamplingParams(max_tokens=N_GAPS + 2, temperature=0.0, ignore_eos=True)
        with load_of(condition):
            stamps = []
            for piece in llm.stream(prompt, params):
                stamps += [time.perf_counter()] if piece.token_ids else []
    gaps = np.diff(stamps)[1:]
    return token_gap_beta(gaps.tolist(), [0] * len(gaps))


async def contention(settings: Settings) -> dict[str, Any]:
    """Return the times under each kind of load, and without pauses those of one thread."""
    found = await loaded(settings, CONDITIONS)
    single = await loaded(settings._replace(threads=1), ("quiet", "steady"))
    gaps = [single[condition]["token_gap_s"] for condition in ("quiet", "steady")]
    cpu = [single[condition]["cpu_s"] for condition in ("quiet", "steady")]
    return found | {"one_thread": {"token_gap_s": gaps, "token_gap_ratio": gaps[1] / gaps[0],
                                   "cpu_s": cpu, "cpu_ratio": cpu[1] / cpu[0]}}  # fmt: skip


async def loaded(settings: Settings, conditions: Sequence[str]) -> dict[str, Any]:
    """Return the times of one server under each condition.

    `cpu_s`: the server's own seconds of CPU for each repeat of the grid.
    """
    found: dict[str, Any] = {}
    with serving(settings, 1, CONTEXT) as (url, process):
        async with Client(url) as client:
            await ready(client, process)
            await timed(client, 1, 99)  # warms up
            for seed, condition in enumerate(conditions, 1):
                repeats = STEADY_REPEATS if condition == "steady" else settings.rounds
                with load_of(condition):
                    began_s = cpu_seconds(process.pid)
                    samples = await timed(client, repeats, seed)
                    spent_s = cpu_seconds(process.pid) - began_s
                found[condition] = {
                    "samples": [[s.p, s.o, s.seconds] for s in samples],
                    "cpu_s": spent_s / repeats,
                }
    for condition in conditions:  # the server is gone
        found[condition]["token_gap_s"] = token_gap(settings, condition)
    return found


def cpu_seconds(pid: int) -> float:
    """Return the seconds of CPU a process has used so far, all threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def judge(found: dict[str, Any]) -> None:
    """Add the quiet profile, of minima as the denoised ones, and what is left of each load."""
    quiet = denoise(_samples(found["quiet"]), remove_overhead=False)
    for condition in CONDITIONS:
        found[condition] |= judged(_samples(found[condition]), quiet)
    found["quiet"]["beta"] = quiet.model.beta
    for part, of in (("token_gap", "token_gap_s"), ("cpu", "cpu_s")):
        found[f"{part}_ratio"] = found["steady"][of] / found["quiet"][of]
    found["raw_ratio"] = found["bursts"]["mean_ratio"] / found["quiet"]["mean_ratio"]


def judged(samples: list[Sample], quiet: Fit) -> dict[str, float]:
    """Return raw means, and the denoised fit, as medians over cells of multiples of the quiet fit.

    `denoised_error`: median over cells of |denoised / quiet - 1|.
    """

    def ratios(measured: list[Cell]) -> np.ndarray:
        return np.array([c.seconds / quiet.model.seconds(c.p, c.o) for c in measured])

    raw = cells(samples, "mean")
    clean = denoise(samples, remove_overhead=False).model
    cleaned = ratios([Cell(c.p, c.o, clean.seconds(c.p, c.o)) for c in raw])
    return {
        "mean_ratio": float(np.median(ratios(raw))),
        "denoised_ratio": float(np.median(cleaned)),
        "denoised_error": float(np.median(abs(cleaned - 1))),
    }


def _samples(part: dict[str, Any]) -> list[Sample]:
    return [Sample(*row) for row in part["samples"]]


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw every cell: the quiet fit across, mean and minimum under each load upwards."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    quiet = denoise(_samples(found["quiet"]), remove_overhead=False).model
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 4), sharex=True, sharey=True)
    for axis, condition in zip(axes, CONDITIONS[1:], strict=True):
        samples = _samples(found[condition])
        for by, mark, color in (("mean", "o", "#c2703d"), ("min", "s", "#2f6f8f")):
            measured = cells(samples, "mean" if by == "mean" else "min")
            across = [1e3 * quiet.seconds(c.p, c.o) for c in measured]
            axis.plot(across, [1e3 * c.seconds for c in measured], mark, color=color, ms=4,
                      label="mean of repeats" if by == "mean" else "least of repeats")  # fmt: skip
        ends = [min(across), max(across)]
        axis.plot(ends, ends, color="#888", lw=1, label="as if nothing else ran")
        axis.set(xscale="log", yscale="log", xlabel="quiet fit (ms)", title=f"load: {condition}")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("measured (ms)")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> int:
    """Measure, keep and draw."""
    parser = parser_of("remove contention from a server's times", 12, "repeats of each cell")
    options = parser.parse_args()
    settings = Settings(find_model(options.model), options.threads, options.rounds)
    facts = about(options.model, settings.model, settings.threads, settings.rounds)
    found = asyncio.run(contention(settings))
    keep(options.out / "contention.json", "contention", facts | found)  # whatever comes of the fit
    judge(found)
    keep(options.out / "contention.json", "contention", facts | found)
    draw(found, options.out / "contention.png")
    for condition in CONDITIONS:
        part = found[condition]
        print(
            f"{condition:<7} mean {part['mean_ratio']:.2f} x quiet, "
            f"denoised {part['denoised_ratio']:.2f} x (median error {part['denoised_error']:.1%})"
        )
    print(f"bursts  mean {found['raw_ratio']:.2f} x the quiet mean")
    for threads, part in ((options.threads, found), (1, found["one_thread"])):
        print(
            f"steady  {threads} threads: time between tokens {part['token_gap_ratio']:.2f} x quiet "
            f"(5 % quantile), the server's CPU {part['cpu_ratio']:.2f} x"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
