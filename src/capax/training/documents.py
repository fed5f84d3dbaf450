"""Train a small Llama from scratch on documents that a function of the step gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from capax.errors import ConfigError
from capax.training.llama import Llama, LlamaShape
from capax.training.loop import Schedule, train

Documents = Sequence[npt.NDArray[np.int32]]
"""Blocks of token ids [n, t], each of one length; ~id is a token that is read, not predicted."""


def begun(shape: LlamaShape, seed: int) -> Llama:
    """Return a model before its training."""
    model = Llama(shape)
    generator = torch.Generator().manual_seed(seed)
    model.initialise(generator)
    # Rows of 0.02 are far too small at such widths: a thousand steps go by before it learns.
    embedding = model.model.embed_tokens.weight
    nn.init.normal_(embedding, 0.0, shape.d_model**-0.5, generator=generator)
    return model


def readable(given: Tensor) -> Tensor:
    """Return the ids that a model reads of a block, also of what is not predicted."""
    return torch.where(given < 0, ~given, given)


def train_on_documents(
    shape: LlamaShape,
    schedule: Schedule,
    documents: Callable[[int], Documents],
    folder: Path,
    *,
    recipe: Mapping[str, object],
    seed: int = 0,
    threads: int = 1,
    report_every: int = 500,
    on_report: Callable[[Mapping[str, float]], None] | None = None,
    stop_after: int | None = None,
    stop_at: int | None = None,
    begin: Llama | None = None,
) -> Llama:
    """Train to predict the next tokens of `documents(step)`; goes on from what is in `folder`.

    `begin`: a model of this shape to begin with, instead of chance.

    One document per sequence: nothing else stands in its context.
    """
    torch.set_num_threads(threads)
    model = begun(shape, seed)
    if begin is not None:
        if begin.shape != shape:
            raise ConfigError(f"the model to begin with is {begin.shape}, not {shape}")
        model.load_state_dict(begin.state_dict())

    def loss_of(step: int) -> Tensor:
        losses, n = [], 0
        for block in documents(step):
            given = torch.from_numpy(block.astype(np.int64))
            logits = model(readable(given)[:, :-1])
            targets = given[:, 1:].reshape(-1)
            counts = targets >= 0
            losses.append(
                functional.cross_entropy(
                    logits.flatten(0, 1)[counts], targets[counts], reduction="sum"
                )
            )
            n += int(counts.sum())
        return torch.stack(losses).sum() / n

    train(
        model,
        loss_of,
        schedule,
        folder,
        recipe=recipe,
        report_every=report_every,
        on_report=on_report,
        stop_after=stop_after,
        stop_at=stop_at,
    )
    return model.eval()
