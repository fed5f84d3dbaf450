"""Measure scoring: log-probabilities of a given text. Writes `scoring.json`.

    python -m benchmarks.scoring --model smollm2-135m --out benchmarks/results

Both engines get the same tokens and return the log-probability of each but the first; llama.cpp
computes the logits of all positions and NumPy their log-softmax. They take turns, and the mean
log-probabilities must agree: speed of something else would be no result.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from benchmarks.contest import PAUSE_S, Contestant, rates
from benchmarks.run import Experiment, Files, Settings, run

N_TOKENS = 1024
LARGEST_DIFFERENCE = 0.02  # of the mean log-probability, relative: int8 activations differ


def scoring(files: Files, settings: Settings) -> dict[str, Any]:
    """One text of 1,024 tokens, over and over."""
    arguments = (str(files.gguf), settings.threads, N_TOKENS)
    seconds: dict[str, list[float]] = {"capax": [], "llama_cpp_q4_1": []}
    means: dict[str, float] = {}
    with (
        Contestant("capax", *arguments) as ours,
        Contestant("llama_cpp", *arguments) as theirs,
    ):
        contestants = {"capax": ours, "llama_cpp_q4_1": theirs}
        for number in range(settings.rounds + 1):
            for name, contestant in contestants.items():
                time.sleep(PAUSE_S)
                answer = contestant.ask(do="score", n_tokens=N_TOKENS)
                means[name] = answer["mean_logprob"]
                seconds[name] += [answer["seconds"]] if number else []
        versions = {name: c.ask(do="state")["version"] for name, c in contestants.items()}
    difference = means["capax"] / means["llama_cpp_q4_1"] - 1
    if abs(difference) > LARGEST_DIFFERENCE:
        raise RuntimeError(f"the engines score different things: {means}")
    return {
        "n_tokens": N_TOKENS,
        "mean_logprob": means,
        "relative_difference": difference,
        "engines": {
            name: {
                "version": versions[name],
                "seconds": taken,
                "tokens_per_second": rates(N_TOKENS, taken)._asdict(),
            }
            for name, taken in seconds.items()
        },
    }


EXPERIMENTS: dict[str, Experiment] = {"scoring": scoring}


if __name__ == "__main__":
    sys.exit(run(EXPERIMENTS, "scoring.json", "measure log-probabilities of given text"))
