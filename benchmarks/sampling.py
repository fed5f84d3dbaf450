"""Measure repeated sampling: samples per second, and what keeping them costs. `sampling.json`.

    python -m benchmarks.sampling --model smollm2-135m --out benchmarks/results

Both engines draw 64 answers of equal length to one prompt at temperature 0.6, the prompt computed
once: capax through the endpoint that `capax scale sample` uses, llama.cpp in one batch of 64
sequences with a sampler of its own for each. Bookkeeping is measured with an endpoint that answers
at once: whatever time 1,000 problems of 64 samples take then is spent beside the model.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.contest import PAUSE_S, Contestant, rates
from benchmarks.run import Experiment, Files, Settings, run
from capax import SamplingParams
from capax.endpoints import Choice, Completion, GenerateRequest, Ledger, Price, TokenScores
from capax.engine.outputs import Usage
from capax.errors import EndpointError
from capax.scaling.checkers import checker_named
from capax.scaling.run_directory import RunDirectory
from capax.scaling.sampling import SamplePlan, sample
from capax.scaling.strategies.strategy import Prompt
from capax.scaling.tasks import Task

SAMPLES, PROMPT, ANSWER = 64, 128, 64  # a word problem with an example, and a short answer
CONTEXT = 256  # the text of 128 tokens may be read as a few more
PROBLEMS = (200, 1000)


def sampling(files: Files, settings: Settings) -> dict[str, Any]:
    """Sixty-four answers to one prompt, in turn."""
    arguments = (str(files.gguf), settings.threads, CONTEXT, {"sequences": str(SAMPLES)})
    request = {
        "do": "sample", "n_samples": SAMPLES, "prompt": PROMPT, "n_tokens": ANSWER,
    }  # fmt: skip
    seconds: dict[str, list[float]] = {"capax": [], "llama_cpp_q4_1": []}
    with (
        Contestant("capax", *arguments) as ours,
        Contestant("llama_cpp", *arguments) as theirs,
    ):
        contestants = {"capax": ours, "llama_cpp_q4_1": theirs}
        for number in range(settings.rounds + 1):
            for name, contestant in contestants.items():
                time.sleep(PAUSE_S)
                taken = contestant.ask(**request)["seconds"]
                seconds[name] += [taken] if number else []
        versions = {name: c.ask(do="state")["version"] for name, c in contestants.items()}
    return {
        "n_samples": SAMPLES,
        "prompt_tokens": PROMPT,
        "answer_tokens": ANSWER,
        "engines": {
            name: {
                "version": versions[name],
                "seconds": taken,
                "samples_per_second": rates(SAMPLES, taken)._asdict(),
                "tokens_per_second": rates(SAMPLES * ANSWER, taken)._asdict(),
            }
            for name, taken in seconds.items()
        },
    }


class Instant:
    """An endpoint that answers at once, as long as the model would have."""

    name = "instant"
    max_choices = 128

    def __init__(self) -> None:
        self.ledger = Ledger()

    async def count_prompt(self, prompt: Prompt) -> int:
        return PROMPT

    async def generate(self, request: GenerateRequest) -> Completion:
        n = request.params.n
        usage = Usage(PROMPT, n * ANSWER)
        with self.ledger.call(
            self.name, request.purpose, Price(), prompt_tokens=PROMPT, new_tokens=n * ANSWER,
            also=request.ledger,
        ) as call:  # fmt: skip
            await asyncio.sleep(0)
            call.settle(usage)
        texts = [
            f"{request.params.seed} {i} " + "step by step " * 18 + f"#### {i}" for i in range(n)
        ]
        choices = tuple(Choice(i, text, "stop", n_tokens=ANSWER) for i, text in enumerate(texts))
        return Completion(choices, usage, 0.0, self.name)

    async def score(self, text: str) -> TokenScores:
        raise EndpointError("nothing is scored here")

    async def aclose(self) -> None:
        return None


def keep_samples(n_problems: int) -> tuple[float, int]:
    """Return the seconds that a run of `n_problems` takes beside the model, and its peak RSS."""
    numeric = checker_named("numeric")
    tasks = [Task(f"t{i}", f"What is {i} + 1?", str(i + 1), numeric) for i in range(n_problems)]
    plan = SamplePlan(SAMPLES, SamplingParams(max_tokens=ANSWER), choices=SAMPLES)

    async def draw(run: RunDirectory) -> None:
        await sample(Instant(), tasks, run, plan)

    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        with RunDirectory(Path(folder) / "run", plan.settings(tasks, "instant")) as directory:
            asyncio.run(draw(directory))
        seconds = time.perf_counter() - started
    return seconds, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def bookkeeping(files: Files, settings: Settings) -> dict[str, Any]:
    """What run directory, ledger and checks take per sample, each size in a process of its own."""
    found: dict[str, Any] = {"n_samples": SAMPLES, "problems": {}}
    for n in PROBLEMS:
        taken = []
        for _ in range(min(3, settings.rounds)):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                taken.append(pool.apply(keep_samples, (n,)))
        found["problems"][str(n)] = {
            "seconds": [seconds for seconds, _ in taken],
            "peak_rss_bytes": max(nbytes for _, nbytes in taken),
        }
    return found


EXPERIMENTS: dict[str, Experiment] = {"sampling": sampling, "bookkeeping": bookkeeping}


if __name__ == "__main__":
    sys.exit(run(EXPERIMENTS, "sampling.json", "measure repeated sampling"))
