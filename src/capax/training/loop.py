"""A training run on one machine: AdamW, cosine, a log, checkpoints, and stopping at any step.

A folder holds the run: `log.jsonl` with one line per report and `checkpoint.pt`, replaced whole.
What a step trains on is a function of (seed, step) alone, so a run that was stopped goes on as if
it had not been.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from capax.errors import StoreError


@dataclass(frozen=True)
class Schedule:
    """`warm_up`, `floor`: shares of the steps and of `learning_rate`; `clip`: gradient norm."""

    steps: int
    learning_rate: float
    warm_up: float = 0.02
    floor: float = 0.1
    weight_decay: float = 0.1
    beta2: float = 0.95
    clip: float = 1.0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: linear up, then a half cosine down."""
        n_up = max(1, round(self.warm_up * self.steps))
        if step < n_up:
            return self.learning_rate * (step + 1) / n_up
        share = (step - n_up) / max(1, self.steps - n_up)
        cosine = 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
        return self.learning_rate * (self.floor + (1 - self.floor) * cosine)


@dataclass(frozen=True)
class StableSchedule(Schedule):
    """Up over `warm_up_steps`, level, and straight down to the floor over the last `decay` steps.

    What stands before the decay does not depend on `steps`, so runs of several lengths may share it
    (warm-up, stable, decay). `warm_up` is not used.
    """

    warm_up_steps: int = 60
    decay: float = 0.1  # share of the steps

    @property
    def decay_from(self) -> int:
        """The first step of the decay."""
        return self.steps - max(1, round(self.decay * self.steps))

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        up = min(1.0, (step + 1) / self.warm_up_steps)
        left = min(1.0, (self.steps - step) / (self.steps - self.decay_from))
        return self.learning_rate * up * (self.floor + (1 - self.floor) * left)


def train(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    schedule: Schedule,
    folder: Path,
    *,
    recipe: Mapping[str, object],
    report: Callable[[int], Mapping[str, float]] | None = None,
    report_every: int = 100,
    on_report: Callable[[Mapping[str, float]], None] | None = None,
    stop_after: int | None = None,
    stop_at: int | None = None,
    begin: Path | None = None,
    fused: bool = False,
) -> None:
    """Train `model`, going on from the checkpoint in `folder` if there is one.

    `loss_of(step)` returns the loss of the step's own data; `report(step)` adds measurements to
    a line of the log. `recipe`: what the run is; a checkpoint of another one is refused
    (StoreError). `stop_after`: leave after so many steps of this call; `stop_at`: when
    so many are done in all, before the schedule ends. `begin`: the folder of another run, whose
    weights, optimiser and step this one begins with. `fused`: AdamW in one kernel, faster for tiny
    models and with other last bits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups,
        lr=schedule.learning_rate,
        betas=(0.9, schedule.beta2),
        weight_decay=schedule.weight_decay,
        fused=fused,
    )
    recipe = {**recipe, "schedule": asdict(schedule)}
    first = _resume(model, optimizer, folder, recipe)
    if first == 0 and begin is not None:
        first = _load(model, optimizer, _checkpoint(begin))
    last = min(
        schedule.steps,
        schedule.steps if stop_at is None else stop_at,
        schedule.steps if stop_after is None else first + stop_after,
    )
    losses: list[float] = []
    began = time.perf_counter()
    for step in range(first, last):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(step)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
        optimizer.step()
        losses.append(loss.item())
        is_due = (step + 1) % report_every == 0 or step + 1 == last
        if not is_due:
            continue
        line = {
            "step": step + 1,
            "loss": round(sum(losses) / len(losses), 4),
            "seconds_per_step": round((time.perf_counter() - began) / len(losses), 3),
            **(report(step + 1) if report else {}),
        }
        with (folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        _save(model, optimizer, folder, recipe, step + 1)
        if on_report:
            on_report(line)
        losses, began = [], time.perf_counter()


def _checkpoint(folder: Path) -> Path:
    return folder / "checkpoint.pt"


def _save(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    folder: Path,
    recipe: Mapping[str, object],
    step: int,
) -> None:
    unfinished = folder / "checkpoint.tmp"
    torch.save(
        {
            "recipe": json.dumps(recipe, sort_keys=True),
            "step": step,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
        },
        unfinished,
    )
    os.replace(unfinished, _checkpoint(folder))


def _resume(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    folder: Path,
    recipe: Mapping[str, object],
) -> int:
    """Return the step to go on with, after loading what is there."""
    path = _checkpoint(folder)
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    if state["recipe"] != json.dumps(recipe, sort_keys=True):
        raise StoreError(
            f"{folder} holds the checkpoint of another recipe; take another folder or remove it"
        )
    return _load(model, optimizer, path)


def _load(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> int:
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
