"""Timing the grid of an idealized runtime on a local model, and its files.

A samples file has what was measured, query by query; a profile has what was fitted, as a table in
HELM's form {name: entry}, so that HELM reads ours and we read HELM's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from capax.errors import CapaxError, ConfigError
from capax.measuring.idealized_runtime import RuntimeModel, Sample

if TYPE_CHECKING:
    from capax import LLM

PROMPTS = (1, 16, 64, 128, 256, 384, 512, 768, 1024)
OUTPUTS = (1, 2, 8, 16, 32, 64)
N_WARM_UPS = 2
N_REPEATS = 7
SCHEMA = "capax.runtime_samples/1"


def profile(
    llm: LLM,
    prompts: Sequence[int] = PROMPTS,
    outputs: Sequence[int] = OUTPUTS,
    *,
    n_repeats: int = N_REPEATS,
    n_warm_ups: int = N_WARM_UPS,
    n_rounds: int = 2,
    pause_s: float = 0.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Sample]:
    """Time every (p, o) of the grid, `n_repeats` times in each round, in a random order.

    Prompts are random tokens, never the same twice, so that no prefix cache helps; the end token
    does not end an answer. Raises ConfigError for a grid that does not fit the context,
    CapaxError if a query did not have the tokens it was to have.
    """
    if min(prompts, default=0) < 1 or min(outputs, default=0) < 1:
        raise ConfigError("the grid needs prompt and output lengths of 1 or more")
    if max(prompts) + max(outputs) > llm.context_len:
        raise ConfigError(
            f"{max(prompts)} prompt and {max(outputs)} output tokens do not fit the context of "
            f"{llm.context_len}; shorten the grid"
        )
    rng = np.random.default_rng(seed)
    grid = list(product(sorted(set(prompts)), sorted(set(outputs))))
    for _ in range(n_warm_ups):
        time_query(llm, max(prompts), max(outputs), rng, clock)
    samples: list[Sample] = []
    for round_number in range(n_rounds):
        if round_number and pause_s:
            sleep(pause_s)
        for _ in range(n_repeats):
            for i in rng.permutation(len(grid)):
                p, o = grid[i]
                samples.append(Sample(p, o, time_query(llm, p, o, rng, clock), round_number))
                if progress:
                    progress(len(samples), len(grid) * n_repeats * n_rounds)
    return samples


def time_query(
    llm: LLM,
    p: int,
    o: int,
    rng: np.random.Generator,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the seconds of one query of p random prompt tokens and exactly o output tokens.

    Raises CapaxError if it had others, or if the prefix cache knew a part of the prompt.
    """
    from capax import SamplingParams

    ids = rng.integers(0, llm.config.vocab_size, p).tolist()
    params = SamplingParams(max_tokens=o, temperature=0.0, ignore_eos=True)
    started = clock()
    usage = llm.generate(ids, params).usage
    seconds = clock() - started
    if (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) != (p, o, 0):
        raise CapaxError(
            f"a query of {p} prompt and {o} output tokens had {usage.prompt_tokens} "
            f"({usage.cached_tokens} of them cached) and {usage.completion_tokens}"
        )
    return seconds


def samples_document(
    samples: Sequence[Sample], name: str, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a samples file holds. `about`: machine, threads, precision, whatever matters."""
    return {
        "schema": SCHEMA,
        "model": name,
        "about": dict(about),
        "samples": [[s.p, s.o, s.seconds, s.round] for s in samples],
    }


def read_samples(document: Any) -> list[Sample]:
    """Return the samples of a document. Raises ConfigError for what is none."""
    try:
        if document["schema"] != SCHEMA:
            raise ConfigError(
                f"the schema is {document['schema']!r:.60} where {SCHEMA!r} is expected"
            )
        samples = [Sample(*row) for row in document["samples"]]
        if not all(
            type(s.p) is type(s.o) is type(s.round) is int and type(s.seconds) is float
            for s in samples
        ):
            raise TypeError("a row is [prompt tokens, output tokens, seconds, round]")
    except (KeyError, TypeError, ValueError) as e:
        raise ConfigError(f"this is no samples file ({type(e).__name__}: {e})") from None
    if not samples:
        raise ConfigError("this samples file is empty; profile again")
    return samples


def read_profile(document: Any, name: str | None = None) -> tuple[str, RuntimeModel]:
    """Return one profile of a table {name: entry}, ours or HELM's.

    Raises ConfigError if there is none of that name, or several and no name is given.
    """
    if not isinstance(document, dict) or not document:
        raise ConfigError("this is no table of runtime profiles {name: entry}")
    if name is None and len(document) > 1:
        raise ConfigError(
            f"the table has {len(document)} profiles; choose one with --name, such as "
            f"{next(iter(document))!r}"
        )
    chosen = next(iter(document)) if name is None else name
    if chosen not in document:
        raise ConfigError(f"the table has no profile {chosen!r}; it has {', '.join(document)}")
    return chosen, RuntimeModel.from_helm(document[chosen])
