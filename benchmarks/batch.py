"""Measure several sequences at once, and several choices of one prompt; writes `serving.json`.

    python -m benchmarks.batch --model smollm2-135m --out benchmarks/results

llama.cpp decodes the same number of sequences in one batch (`llama_batch`, one token each). capax
is driven the same way: given tokens, logits of every sequence, nothing sampled.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from benchmarks.contest import PAUSE_S, Contestant, rates
from benchmarks.run import Experiment, Files, Settings, run

DEPTH, STEPS = 32, 48
PROMPT, ANSWER, CHOICES = 512, 64, 32


def batch(files: Files, settings: Settings, n_sequences: int) -> dict[str, Any]:
    """Decode `n_sequences` together: capax, llama.cpp, and capax with one sequence, in turn."""
    context = DEPTH + STEPS
    options = {"sequences": str(n_sequences)}
    arguments = (str(files.gguf), settings.threads, context, options)
    request = {"do": "batch", "n_tokens": STEPS, "depth": DEPTH}
    with (
        Contestant("capax", *arguments) as capax,
        Contestant("llama_cpp", *arguments) as peer,
        Contestant("capax", str(files.gguf), settings.threads, context) as alone,
    ):
        contestants = {"capax": capax, "llama_cpp_q4_1": peer}
        seconds: dict[str, list[float]] = {"capax": [], "llama_cpp_q4_1": [], "capax_alone": []}
        for number in range(settings.rounds + 1):  # the first warms up
            for name, contestant in contestants.items():
                time.sleep(PAUSE_S)
                taken = contestant.ask(n_sequences=n_sequences, **request)["seconds"]
                seconds[name] += [taken] if number else []
            time.sleep(PAUSE_S)
            taken = alone.ask(n_sequences=1, **request)["seconds"]
            seconds["capax_alone"] += [taken] if number else []
        versions = {name: c.ask(do="state")["version"] for name, c in contestants.items()}
    n_tokens = dict.fromkeys(contestants, STEPS * n_sequences) | {"capax_alone": STEPS}
    return {
        "n_sequences": n_sequences,
        "n_tokens": STEPS,
        "depth": DEPTH,
        "engines": {
            name: {
                "version": versions.get(name, versions["capax"]),
                "seconds": taken,
                "tokens_per_second": rates(n_tokens[name], taken)._asdict(),
            }
            for name, taken in seconds.items()
        },
    }


def batch_16(files: Files, settings: Settings) -> dict[str, Any]:
    """Sixteen sequences."""
    return batch(files, settings, 16)


def batch_64(files: Files, settings: Settings) -> dict[str, Any]:
    """Sixty-four sequences."""
    return batch(files, settings, 64)


def shared_prompt(files: Files, settings: Settings) -> dict[str, Any]:
    """The whole engine: many choices of one prompt, against as many requests without sharing."""
    options = {"sequences": str(CHOICES)}
    arguments = (str(files.gguf), settings.threads, PROMPT + ANSWER, options)
    shape = {"do": "generate", "prompt": PROMPT, "n_tokens": ANSWER}
    with Contestant("capax", *arguments) as shared, Contestant("capax", *arguments) as separate:
        together, apart = [], []
        for number in range(settings.rounds + 1):
            time.sleep(PAUSE_S)
            a = shared.ask(n_prompts=1, n_choices=CHOICES, **shape)["seconds"]
            time.sleep(PAUSE_S)
            b = separate.ask(n_prompts=CHOICES, n_choices=1, **shape)["seconds"]
            together += [a] if number else []
            apart += [b] if number else []
    return {
        "n_choices": CHOICES,
        "prompt_tokens": PROMPT,
        "answer_tokens": ANSWER,
        "shared_seconds": together,
        "separate_seconds": apart,
    }


EXPERIMENTS: dict[str, Experiment] = {
    "batch_16": batch_16,
    "batch_64": batch_64,
    "shared_prompt": shared_prompt,
}


if __name__ == "__main__":
    sys.exit(run(EXPERIMENTS, "serving.json", "measure several sequences at once"))
