"""Train a small model on synthetic people, each seen a given number of times.

"Physics of Language Models: Part 3.3" (2024, arXiv 2404.05405): how much a model stores depends on
its parameters and on exposures, the occurrences of every fact. Each pass shows every person once,
in a new order of people and attributes, one person per sequence, so that counts are exact and
nothing stands in a context that measuring would not put there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from capax.errors import ConfigError
from capax.measuring.knowledge.biographies import TAG, VOCAB_SIZE, Biographies, vocabulary

if TYPE_CHECKING:
    from capax.training.llama import Llama

Junk = Literal["none", "fresh", "repeated"]
STEPS = 6000  # as many as there are people for; small batches learn more from few exposures
JUNK_PER_USEFUL = 7
N_REPEATED = 50  # people of repeated junk: a few per cent of what a small model holds
_FRESH_SEED = 1 << 20  # people of fresh junk come from seeds behind it


@dataclass(frozen=True)
class KnowledgeRecipe:
    """What is trained on what. `tag`: useful documents begin with a token of their own."""

    people: int
    exposures: int
    layers: int = 2
    width: int = 64
    learning_rate: float = 5e-3
    seed: int = 0
    junk: Junk = "none"
    tag: bool = False

    def __post_init__(self) -> None:
        for name in ("people", "exposures", "layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)} but must be at least 1")
        if self.width < 32 or self.width % 32:
            raise ConfigError(f"width is {self.width} but must be a multiple of 32")

    @property
    def batch(self) -> int:
        """Useful people in a step."""
        return min(max(self.people * self.exposures // STEPS, 8), 96, self.people)

    @property
    def steps(self) -> int:
        return -(-self.people * self.exposures // self.batch)


class Shown:
    """The documents of each step, a function of (recipe, step) alone."""

    def __init__(self, recipe: KnowledgeRecipe) -> None:
        self._recipe = recipe
        self.people = Biographies(recipe.people, recipe.seed)
        self._repeated = Biographies(N_REPEATED, recipe.seed + _FRESH_SEED)
        self._order = lru_cache(maxsize=2)(self._order_of)

    def useful(self, step: int) -> np.ndarray:
        """Return who is shown in a step: every pass over the people is another permutation."""
        recipe = self._recipe
        total = recipe.people * recipe.exposures
        places = np.arange(step * recipe.batch, min((step + 1) * recipe.batch, total))
        passes, at = np.divmod(places, recipe.people)
        return np.array([self._order(int(p))[i] for p, i in zip(passes, at, strict=True)])

    def documents(self, step: int) -> list[np.ndarray]:
        """Return blocks of documents of one length each: useful ones, then junk."""
        recipe = self._recipe
        rng = np.random.default_rng([recipe.seed, 3, step])
        useful = self.people.documents(self.useful(step), rng)
        if recipe.tag:
            useful = np.concatenate([np.full((len(useful), 1), TAG, np.int32), useful], 1)
        blocks = [useful]
        n_junk = JUNK_PER_USEFUL * len(useful)
        if recipe.junk == "fresh":
            fresh = Biographies(n_junk, recipe.seed + _FRESH_SEED + 1 + step)
            blocks.append(fresh.documents(np.arange(n_junk), rng))
        elif recipe.junk == "repeated":
            blocks.append(self._repeated.documents(rng.integers(N_REPEATED, size=n_junk), rng))
        return blocks

    def _order_of(self, number: int) -> np.ndarray:
        return np.random.default_rng([self._recipe.seed, 5, number]).permutation(
            self._recipe.people
        )


def train_knowledge(
    recipe: KnowledgeRecipe,
    folder: Path,
    *,
    threads: int = 1,
    report_every: int = 500,
    on_report: Callable[[Mapping[str, float]], None] | None = None,
    stop_after: int | None = None,
) -> Llama:
    """Train in `folder`, going on from what is there; returns the model. Needs PyTorch.

    Heads of 32, a feed-forward part of twice the width.
    """
    from capax.training.documents import train_on_documents
    from capax.training.llama import LlamaShape
    from capax.training.loop import Schedule

    heads = max(2, recipe.width // 32)
    return train_on_documents(
        LlamaShape(
            vocab_size=VOCAB_SIZE,
            d_model=recipe.width,
            n_layers=recipe.layers,
            n_heads=heads,
            n_kv_heads=heads,
            d_ffn=2 * recipe.width,
            context_len=64,
        ),
        Schedule(
            recipe.steps, recipe.learning_rate, warm_up=0.05, floor=0.02, weight_decay=0.01,
            beta2=0.98,
        ),
        Shown(recipe).documents,
        folder,
        recipe={"recipe": asdict(recipe)},
        seed=recipe.seed,
        threads=threads,
        report_every=report_every,
        on_report=on_report,
        stop_after=stop_after,
    )  # fmt: skip


def write_model(model: Llama, path: Path, encoding: str, recipe: KnowledgeRecipe) -> None:
    """Write the model as GGUF, every matrix in `encoding`."""
    from capax.training.gguf_export import write_llama_gguf

    tokens, n_control = vocabulary()
    name = f"{recipe.people} people, {recipe.exposures} exposures, seed {recipe.seed}"
    write_llama_gguf(model, path, encoding, name=name, tokens=tokens, n_control=n_control)


def n_documents(recipe: KnowledgeRecipe) -> int:
    """Return how many documents are shown in all."""
    useful = recipe.people * recipe.exposures
    return useful * (1 if recipe.junk == "none" else 1 + JUNK_PER_USEFUL)
