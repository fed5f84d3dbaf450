"""Measure the knowledge of a model with the engine: its losses on people it was trained on.

Every person is a sequence of its own, with nothing before it: other documents in the context
would break the bound. Values are scored in a chain over all tokens in the order they stand, and
once more each attribute alone behind the name, where recall is counted too: with K attributes a
wrong one costs at least ln 2, so K (1 - recall) <= p2_first / ln 2 holds for every model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from capax.errors import ConfigError
from capax.measuring.knowledge.biographies import (
    ATTRIBUTES,
    MARKERS,
    N_NAME,
    TAG,
    VOCAB_SIZE,
    Biographies,
    attribute_tokens,
)
from capax.measuring.knowledge.bits import Bits

if TYPE_CHECKING:
    from capax.engine.llm import LLM

Progress = Callable[[int, int], None]  # people measured, and all of them


def measure(
    llm: LLM,
    people: Biographies,
    *,
    n_parameters: int | None = None,
    tagged: bool = False,
    order_seed: int = 0,
    progress: Progress | None = None,
) -> Bits:
    """Return what `llm` knows of `people`. `tagged`: they stood behind a tag in training.

    `n_parameters`: None counts the weights in the file. Raises ConfigError for a model with another
    vocabulary.
    """
    if llm.config.vocab_size != VOCAB_SIZE:
        raise ConfigError(
            f"{llm.name} has {llm.config.vocab_size} tokens and biographies are spelled with "
            f"{VOCAB_SIZE}; measure a model trained on them ('capax train knowledge')"
        )
    rng = np.random.default_rng([7, order_seed])
    documents = people.documents(np.arange(people.n), rng)
    prefix = [TAG] if tagged else []
    p1 = p2 = p2_first = 0.0
    n_right = 0
    for i, document in enumerate(documents):
        nats, _ = _nats(llm, prefix, document.tolist())
        p1 += math.fsum(nats[1 : 1 + N_NAME])
        values = [x for x, t in zip(nats, document, strict=True) if t not in MARKERS][1 + N_NAME :]
        p2 += math.fsum(values)
        name = people.tokens[i, : 1 + N_NAME].tolist()
        for attribute in range(len(ATTRIBUTES)):
            value = people.tokens[i, attribute_tokens(attribute)].tolist()
            nats, greedy = _nats(llm, prefix, name + value)
            p2_first += math.fsum(nats[2 + N_NAME :])
            n_right += all(greedy[2 + N_NAME :])
        if progress:
            progress(i + 1, people.n)
    tensors = llm.file.tensors.values()
    return Bits(
        n_people=people.n,
        p1=p1 / people.n,
        p2=p2 / people.n,
        p2_first=p2_first / people.n,
        recall=n_right / (people.n * len(ATTRIBUTES)),
        n_parameters=n_parameters or sum(math.prod(t.shape) for t in tensors),
        nbytes=sum(t.nbytes for t in tensors),
    )


def _nats(llm: LLM, prefix: list[int], tokens: list[int]) -> tuple[list[float], list[bool]]:
    """Return the loss of each token, the first of all counting nothing, and who was greedy."""
    score = llm.score([*prefix, *tokens])
    nats = [0.0 if x is None else -x for x in score.logprobs[len(prefix) :]]
    nats[0] = 0.0  # the start is given
    return nats, [bool(g) for g in score.is_greedy[len(prefix) :]]
