"""A tiny model that adds, and adds again when it is shown its last answer.

    12+345=357;            a first answer
    12+345=367?357;        an answer after one that is shown

Numbers have 1 to `max_digits` digits, so the chance of a right answer spreads over problems. A
trace with a second answer shows a right first one in `share_right` of the cases and repeats it, or
breaks it with chance `break_rate`; a wrong one is corrected with chance `fix_rate`, else repeated.
Positions never pass one round, so the model is made for rounds with history="last".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from capax.errors import ConfigError
from capax.training.gguf_export import write_llama_gguf
from capax.training.llama import Llama, LlamaShape
from capax.training.loop import Schedule, train

TOKENS = (*"0123456789+=?;", "<pad>", "<end>")  # the last two are control tokens
ID = {token: i for i, token in enumerate(TOKENS)}
PAD = ID["<pad>"]
END, AGAIN = ";", "?"


@dataclass(frozen=True, kw_only=True)
class RethinkRecipe:
    """How the model is made; widths in numbers, rates in shares."""

    steps: int = 2500
    seed: int = 1
    batch: int = 128
    max_digits: int = 6
    fix_rate: float = 0.5
    break_rate: float = 0.1
    share_right: float = 0.3
    learning_rate: float = 3e-3
    d_model: int = 128
    n_layers: int = 3
    d_ffn: int = 320

    def __post_init__(self) -> None:
        if not 1 <= self.max_digits <= 12:
            raise ConfigError(f"max_digits is {self.max_digits} but must be 1 to 12")
        for name in ("fix_rate", "break_rate", "share_right"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)} but must be 0 to 1")

    @property
    def longest(self) -> int:
        """Tokens of the longest trace."""
        return 4 * self.max_digits + 6

    def shape(self) -> LlamaShape:
        """Return the sizes of the model."""
        return LlamaShape(
            vocab_size=len(TOKENS), d_model=self.d_model, n_layers=self.n_layers, n_heads=4,
            n_kv_heads=4, d_ffn=self.d_ffn, context_len=64,
        )  # fmt: skip


def question(rng: np.random.Generator, n_digits: int) -> tuple[str, int]:
    """Return a sum of two numbers of so many digits, as text, and its value."""
    low = 0 if n_digits == 1 else 10 ** (n_digits - 1)
    a, b = (int(x) for x in rng.integers(low, 10**n_digits, 2))
    return f"{a}+{b}=", a + b


def spoiled(rng: np.random.Generator, answer: int) -> str:
    """Return a wrong answer: one or two digits of the right one changed."""
    digits = list(str(answer))
    for at in rng.choice(len(digits), min(len(digits), int(rng.integers(1, 3))), replace=False):
        digits[at] = str((int(digits[at]) + int(rng.integers(1, 10))) % 10)
    return "".join(digits)


def trace(rng: np.random.Generator, recipe: RethinkRecipe) -> tuple[str, int]:
    """Return a text to learn and where the part that counts begins."""
    asked, value = question(rng, int(rng.integers(1, recipe.max_digits + 1)))
    right = str(value)
    if rng.random() < 0.5:
        return f"{asked}{right}{END}", len(asked)
    is_right = rng.random() < recipe.share_right
    shown = right if is_right else spoiled(rng, value)
    if is_right:
        last = spoiled(rng, value) if rng.random() < recipe.break_rate else right
    else:
        last = right if rng.random() < recipe.fix_rate else shown
    begin = f"{asked}{shown}{AGAIN}"
    return f"{begin}{last}{END}", len(begin)


def batch_of(recipe: RethinkRecipe, step: int) -> tuple[Tensor, Tensor]:
    """Return the tokens of a step [batch, longest], and 1 where a token is learned."""
    rng = np.random.default_rng((recipe.seed, step))
    tokens = np.full((recipe.batch, recipe.longest), PAD)
    counts = np.zeros((recipe.batch, recipe.longest), np.float32)
    for row in range(recipe.batch):
        text, begin = trace(rng, recipe)
        tokens[row, : len(text)] = [ID[c] for c in text]
        counts[row, begin : len(text)] = 1
    return torch.from_numpy(tokens), torch.from_numpy(counts)


def train_rethink(
    folder: Path,
    recipe: RethinkRecipe,
    *,
    threads: int = 1,
    on_report: Callable[[Mapping[str, float]], None] | None = None,
) -> Path:
    """Train into `folder`, going on where it was stopped; returns the GGUF of the model."""
    torch.set_num_threads(threads)
    model = Llama(recipe.shape())
    model.initialise(torch.Generator().manual_seed(recipe.seed))

    def loss_of(step: int) -> Tensor:
        tokens, counts = batch_of(recipe, step)
        logits = model(tokens[:, :-1])
        losses = functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
        return (losses * counts[:, 1:]).sum() / counts[:, 1:].sum()

    train(
        model,
        loss_of,
        Schedule(steps=recipe.steps, learning_rate=recipe.learning_rate, weight_decay=0.01),
        folder,
        recipe=asdict(recipe),
        on_report=on_report,
    )
    path = folder / "rethink.gguf"
    write_llama_gguf(model, path, "Q8_0", name="rethink", tokens=TOKENS, n_control=2)
    return path
