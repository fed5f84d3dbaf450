"""Measure repeated sampling: samples per second, and what keeping them costs. `sampling.json`.

    python -m benchmarks.sampling --model smollm2-135m --text gsm8k/test.jsonl \
        --out benchmarks/results

Both engines draw 64 answers of equal length to a problem of GSM8K at temperature 0.6, the prompt
computed once: capax through the endpoint that `capax scale sample` uses, llama.cpp in one batch of
64 sequences with a sampler of its own for each, its cache in a part for each sequence or in one for
all. The prompt is the first problem after the next five with their solutions, as in *Large
Language Monkeys*; `sampling_alone` has the problem alone. Bookkeeping is measured with an endpoint
that answers at once: whatever time 1,000 problems of 64 samples take then is spent beside the
model.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from contextlib import ExitStack
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

SAMPLES, SHOTS = 64, 5
PROMPT, ANSWER = 128, 64  # tokens of the bookkeeping's prompts, and of every answer
SPARE = 64  # tokens of context beyond prompt and answer
PROBLEMS = (200, 1000)


def gsm8k_prompt(path: Path | None, shots: int) -> str:
    """Return the first problem of the file, after `shots` further ones with their solutions."""
    if path is None:
        raise ValueError("sampling needs --text FILE, the test.jsonl of GSM8K")
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(next(file)) for _ in range(shots + 1)]
    solved = [f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in rows[1:]]
    return "".join(solved) + f"Question: {rows[0]['question']}\nAnswer:"


def sampling(files: Files, settings: Settings, shots: int = SHOTS) -> dict[str, Any]:
    """Sixty-four answers to one prompt, in turn."""
    from benchmarks.peers.llama_cpp import tokenize

    ids = tokenize(files.gguf, gsm8k_prompt(settings.text, shots))
    context = len(ids) + ANSWER + SPARE
    sequences = {"sequences": str(SAMPLES)}
    request = {
        "do": "sample", "n_samples": SAMPLES, "prompt": ids, "n_tokens": ANSWER,
    }  # fmt: skip
    entrants = {
        "capax": ("capax", sequences),
        "llama_cpp_q4_1": ("llama_cpp", sequences),
        "llama_cpp_one_cache": ("llama_cpp", {**sequences, "unified": "true"}),
    }
    seconds: dict[str, list[float]] = {name: [] for name in entrants}
    with ExitStack() as stack:
        contestants = {
            name: stack.enter_context(
                Contestant(engine, str(files.gguf), settings.threads, context, options)
            )
            for name, (engine, options) in entrants.items()
        }
        for number in range(settings.rounds + 1):
            for name, contestant in contestants.items():
                time.sleep(PAUSE_S)
                taken = contestant.ask(**request)["seconds"]
                seconds[name] += [taken] if number else []
        versions = {name: c.ask(do="state")["version"] for name, c in contestants.items()}
    return {
        "n_samples": SAMPLES,
        "shots": shots,
        "prompt_tokens": len(ids),
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


def sampling_alone(files: Files, settings: Settings) -> dict[str, Any]:
    """The same problem without examples."""
    return sampling(files, settings, 0)


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


EXPERIMENTS: dict[str, Experiment] = {
    "sampling": sampling, "sampling_alone": sampling_alone, "bookkeeping": bookkeeping,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(run(EXPERIMENTS, "sampling.json", "measure repeated sampling"))
