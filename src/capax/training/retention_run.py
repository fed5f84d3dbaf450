"""`capax train retention`: the run that trains retention gates, stoppable at any step.

A folder holds the run: `config.json`, `log.jsonl` with one line per step, and a checkpoint that
is replaced whole. What a step trains on is a function of (seed, step) alone, so a run that was
stopped goes on as if it had not been.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from capax.errors import ConfigError, StoreError
from capax.files.digest import weights_digest
from capax.files.model_file import ModelFile
from capax.files.tokenizer import load_tokenizer
from capax.training.frozen_llama import FrozenLlama
from capax.training.recall_documents import recall_document, split_tokens
from capax.training.retention import (
    capacity_loss,
    gated_logits,
    new_gates,
    quality_losses,
    retained,
)

_NAMES = ("w1", "b1", "w2", "bias")


@dataclass(frozen=True)
class Recipe:
    """What a run does; equal recipes on equal models and texts give equal gates.

    `n_tokens`, `memory`: T and M of the paper; `capacity`: the factor of that loss (lambda);
    `kl`, `next_token`: of the two quality losses, which are averaged; `recall`: the share of steps
    on recall documents; `hold_out`: the share of the text, at its end, that is not trained on;
    `tight_after`: from this step on M is `tight_memory` and the factor `tight_capacity`. A token
    that attention always looks at, such as the first, is hardly missed when it fades to a third, as
    those at the edge of a budget do, and badly when a cache drops it. So for a cache of M entries
    the last part learns with M / 2, and so strictly that no single head stays above it.
    """

    n_tokens: int = 512
    memory: int = 64
    steps: int = 400
    width: int = 128
    learning_rate: float = 1.5e-3
    warm_up: float = 0.1
    weight_decay: float = 1e-5
    capacity: float = 1.0
    kl: float = 1.0
    next_token: float = 1.0
    recall: float = 0.25
    hold_out: float = 0.2
    seed: int = 0
    tight_after: int = 1 << 30
    tight_memory: int = 32
    tight_capacity: float = 20.0
    precision: str = "bf16"

    def __post_init__(self) -> None:
        if self.n_tokens < 64 or not 1 <= self.memory < self.n_tokens:
            raise ConfigError(
                f"tokens={self.n_tokens} and memory={self.memory} do not go together; "
                "64 tokens at least, and fewer remembered than seen"
            )
        if not 0 <= self.hold_out < 1 or not 0 <= self.recall <= 1:
            raise ConfigError(
                f"hold_out={self.hold_out} and recall={self.recall} are shares, 0 to 1"
            )
        if self.precision not in ("bf16", "f32"):
            raise ConfigError(f"precision is {self.precision!r:.20}; use bf16 or f32")

    def learning_rate_at(self, step: int) -> float:
        """Linear over the warm-up, then a cosine down to 1e-6."""
        warm = max(round(self.warm_up * self.steps), 1)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        done = (step - warm) / max(self.steps - warm, 1)
        return 1e-6 + (self.learning_rate - 1e-6) * (1 + math.cos(math.pi * done)) / 2

    def budget_at(self, step: int) -> tuple[int, float]:
        """Return M of a step and the factor of its capacity loss."""
        if step < self.tight_after:
            return self.memory, self.capacity
        return self.tight_memory, self.tight_capacity


def use_threads(n_threads: int) -> None:
    """Let PyTorch use so many threads."""
    torch.set_num_threads(n_threads)


class RetentionRun:
    """One training; `train` goes on from the checkpoint in `folder` if there is one."""

    def __init__(self, model: ModelFile, text: str, recipe: Recipe, folder: Path) -> None:
        tokenizer = load_tokenizer(model)

        def encode(t: str) -> list[int]:
            return tokenizer.encode(t, add_special=False, parse_special=False)

        self.recipe, self.folder = recipe, folder
        self.digest = weights_digest(model).hex()
        self._encode = encode
        ids, _ = split_tokens(encode(text), recipe.hold_out)
        if len(ids) < 2 * recipe.n_tokens:
            raise ConfigError(
                f"the text has {len(ids):,} tokens to train on; "
                f"{2 * recipe.n_tokens:,} are the least for {recipe.n_tokens} at a time"
            )
        self._ids = ids
        dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
        self._model = FrozenLlama(model, recipe.n_tokens, dtype)
        self.gates = new_gates(self._model, recipe.width, recipe.n_tokens, recipe.seed)
        self._optimizer = torch.optim.AdamW(
            self.gates.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.step = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._resume()

    def train(
        self, output: Path, on_step: Callable[[dict[str, float]], None], every: int = 10
    ) -> None:
        """Run the steps that are left; checkpoint and gates every `every` steps and at the end."""
        while self.step < self.recipe.steps:
            line = self._train_step()
            with open(self.folder / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            on_step(line)
            if self.step % every == 0 or self.step == self.recipe.steps:
                self._checkpoint()
                self.save(output)

    def tokens_of(self, step: int) -> list[int]:
        """Return the tokens [n_tokens] of a step."""
        draw = random.Random(f"{self.recipe.seed}/{step}")
        n = self.recipe.n_tokens
        if draw.random() < self.recipe.recall:
            n_facts = draw.randint(1, 3)
            return recall_document(self._encode, self._ids, n, draw, n_facts=n_facts).tokens
        start = draw.randrange(len(self._ids) - n + 1)
        return self._ids[start : start + n]

    def _train_step(self) -> dict[str, float]:
        recipe, started = self.recipe, time.perf_counter()
        tokens = torch.tensor(self.tokens_of(self.step))
        memory, strictness = recipe.budget_at(self.step)
        with torch.no_grad():
            teacher = self._model.logits(tokens)
        logits, log_betas = gated_logits(self._model, self.gates, tokens)
        kl, next_token = quality_losses(logits, teacher, tokens)
        over = capacity_loss(log_betas, memory)
        loss = (recipe.kl * kl + recipe.next_token * next_token) / 2 + strictness * over
        rate = recipe.learning_rate_at(self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        norm = nn.utils.clip_grad_norm_(self.gates.parameters(), 1.0)
        if not bool(torch.isfinite(norm)):
            raise StoreError(f"step {self.step}: the gradient is not finite; lower --lr")
        self._optimizer.step()
        self.step += 1
        held = _held_at_end(log_betas)
        return {
            "step": self.step,
            "kl": kl.item(),
            "next_token": next_token.item(),
            "capacity": over.item(),
            "held_min": held.min().item(),
            "held_mean": held.mean().item(),
            "held_max": held.max().item(),
            "layers_below_half": int((held.mean(-1) < memory / 2).sum()),
            "gradient": norm.item(),
            "lr": rate,
            "seconds": time.perf_counter() - started,
        }

    def save(self, path: Path) -> None:
        """Write the gates in bfloat16, with all that tells where they come from."""
        tensors = {
            f"blk.{layer}.retention.{name}": getattr(gate, name).detach().to(torch.bfloat16)
            for layer, gate in enumerate(self.gates)
            for name in _NAMES
        }
        about = {
            "format": "capax-retention-gates",
            "model": self.digest,
            "input": "rms",
            "act": "silu",
            "steps_done": str(self.step),
            "recipe": json.dumps(asdict(self.recipe)),
        }
        _replace(path, tensors, about)

    def _checkpoint(self) -> None:
        tensors = {f"gate.{k}": v.detach() for k, v in self.gates.state_dict().items()}
        for i, state in enumerate(self._optimizer.state_dict()["state"].values()):
            tensors |= {f"adam.{i}.{k}": v for k, v in state.items()}
        _replace(self._checkpoint_path, tensors, self._identity() | {"step": str(self.step)})

    def _resume(self) -> None:
        identity = self._identity()
        config = self.folder / "config.json"
        if not self._checkpoint_path.exists():
            config.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
            (self.folder / "log.jsonl").unlink(missing_ok=True)
            return
        with safe_open(self._checkpoint_path, "pt") as file:
            about = dict(file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.step = int(about.pop("step"))
        if about != identity:
            raise ConfigError(
                f"{self.folder} holds a run with another recipe, text or model; "
                "give another output, or remove that folder to begin again"
            )
        self.gates.load_state_dict(
            {k[len("gate.") :]: v for k, v in tensors.items() if k.startswith("gate.")}
        )
        state = self._optimizer.state_dict()
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, i, key = name.split(".", 2)
                state["state"].setdefault(int(i), {})[key] = value
        self._optimizer.load_state_dict(state)
        _cut_log(self.folder / "log.jsonl", self.step)

    @property
    def _checkpoint_path(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def _identity(self) -> dict[str, str]:
        return {
            "model": self.digest,
            "tokens": str(len(self._ids)),
            "text": hashlib.sha256(np.asarray(self._ids, np.int32).tobytes()).hexdigest(),
            "recipe": json.dumps(asdict(self.recipe)),
        }


def _held_at_end(log_betas: Sequence[Tensor]) -> Tensor:
    """S_T of every layer and head: [n_layers, n_kv_heads]."""
    with torch.no_grad():
        return retained(torch.stack(list(log_betas)))[..., -1]


def _replace(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    fresh = path.with_name(path.name + ".part")
    save_file({k: v.contiguous() for k, v in tensors.items()}, fresh, about)
    os.replace(fresh, path)


def _cut_log(path: Path, n_lines: int) -> None:
    """Drop the lines of steps that will be run again."""
    if path.exists():
        kept = path.read_text(encoding="utf-8").splitlines(keepends=True)[:n_lines]
        path.write_text("".join(kept), encoding="utf-8")
