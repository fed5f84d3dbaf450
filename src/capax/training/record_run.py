"""Train a tiny Llama on records, and write it as GGUF: what `capax train arithmetic` and others do.

A folder holds the run, stoppable at any step: the log, the checkpoint, and the finished model with
a record of how it was made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from capax.errors import ConfigError
from capax.training.documents import train_on_documents
from capax.training.gguf_export import write_llama_gguf
from capax.training.llama import Llama, LlamaShape
from capax.training.loop import Schedule
from capax.training.records import END, Batches, RecordTask

HEAD_DIM = 32
_SPELLINGS = str.maketrans({" ": "Ġ", "\n": "Ċ"})  # of a byte-level vocabulary


@dataclass(frozen=True, kw_only=True)
class RecordRecipe:
    """What is trained on what. `tokens`: learnt in a step, prompts included, padding not."""

    task: str
    steps: int = 3000
    tokens: int = 2048
    layers: int = 5
    width: int = 128
    learning_rate: float = 3e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "tokens", "layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)} but must be at least 1")
        if self.width < HEAD_DIM or self.width % HEAD_DIM:
            raise ConfigError(f"width is {self.width} but must be a multiple of {HEAD_DIM}")

    def shape(self, task: RecordTask) -> LlamaShape:
        """Return the sizes of the model: heads of 32, a feed-forward part of three times the width.

        Tasks have the same sizes but for the vocabulary and the context.
        """
        heads = self.width // HEAD_DIM
        return LlamaShape(
            vocab_size=len(task.tokens) + 1,
            d_model=self.width,
            n_layers=self.layers,
            n_heads=heads,
            n_kv_heads=heads,
            d_ffn=3 * self.width,
            context_len=task.context_len,
        )


def train_on_records(
    task: RecordTask,
    recipe: RecordRecipe,
    folder: Path,
    *,
    threads: int = 1,
    report_every: int = 100,
    on_report: Callable[[Mapping[str, float]], None] | None = None,
    stop_after: int | None = None,
    stop_at: int | None = None,
    begin: Llama | None = None,
) -> Llama:
    """Train on records of `task` in `folder`, going on from what is there; returns the model.

    `begin`: a model of the same shape to begin with; `stop_at`: leave once so many steps are done,
    before the schedule ends.
    """
    batches = Batches(task, recipe.seed, recipe.tokens, n_blocks=4)
    return train_on_documents(
        recipe.shape(task),
        Schedule(
            recipe.steps, recipe.learning_rate, warm_up=0.05, floor=0.02, weight_decay=0.05,
            beta2=0.98,
        ),
        batches.documents,
        folder,
        recipe={"recipe": asdict(recipe)},
        seed=recipe.seed,
        threads=threads,
        report_every=report_every,
        on_report=on_report,
        stop_after=stop_after,
        stop_at=stop_at,
        begin=begin,
    )  # fmt: skip


def write_model(
    model: Llama, task: RecordTask, recipe: RecordRecipe, folder: Path, encoding: str,
    *, chat_template: str | None = None,
) -> Path:  # fmt: skip
    """Write `<task>.gguf` to the run's folder, and `<task>.json`: recipe and digest."""
    tokens = [_spelled(token) for token in (*task.tokens, END)]
    path = folder / f"{task.name}.gguf"
    write_llama_gguf(
        model,
        path,
        encoding,
        name=f"{task.name}, {recipe.steps} steps, seed {recipe.seed}",
        tokens=tokens,
        n_control=1,
        merges=[f"{_spelled(a)} {_spelled(b)}" for a, b in task.merges],
        end_id=len(tokens) - 1,
        chat_template=chat_template,
    )
    record = {
        "recipe": asdict(recipe),
        "encoding": encoding,
        "n_parameters": model.n_parameters,
        "n_tokens": recipe.steps * recipe.tokens,
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest()},
    }
    path.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    return path


def _spelled(token: str) -> str:
    return token if token == END else token.translate(_SPELLINGS)
