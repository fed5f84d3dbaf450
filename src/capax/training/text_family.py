"""Families of small models of text: one recipe, several sizes, the same bytes in the same order.

What "Information Capacity" (2025, arXiv 2511.08066) compares: sizes of one family, tokenizers at
one size, and a mixture of experts beside the dense model of its active size. Every member reads
the first `n_bytes` of the text once, cut into as many steps; windows go through in an order of
chance that the seed decides.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional

from capax.errors import ConfigError
from capax.training.gguf_export import write_llama_gguf
from capax.training.llama import Llama, LlamaShape
from capax.training.loop import Schedule, train
from capax.training.mixture import Mixture, with_experts

HEAD_DIM = 32
N_BYTES_TOKENS = 256  # a vocabulary of bytes alone
BALANCE = 0.01  # weight of the loss that keeps experts in use
SEPARATOR = "\n\n"


@dataclass(frozen=True, kw_only=True)
class MemberRecipe:
    """One member. `window`: tokens of a sequence; `n_experts`: 1 is the dense model."""

    width: int
    layers: int
    n_vocab: int = 4096
    window: int = 256
    n_experts: int = 1
    n_bytes: int = 20_000_000
    steps: int = 3000
    learning_rate: float = 5e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("layers", "n_experts", "n_bytes", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)} but must be at least 1")
        if self.width < HEAD_DIM or self.width % HEAD_DIM:
            raise ConfigError(f"width is {self.width} but must be a multiple of {HEAD_DIM}")
        if self.n_vocab < N_BYTES_TOKENS:
            raise ConfigError(f"n_vocab is {self.n_vocab} but there are {N_BYTES_TOKENS} bytes")

    @property
    def shape(self) -> LlamaShape:
        """The sizes of the model: heads of 32, a feed-forward part of three times the width."""
        n_heads = self.width // HEAD_DIM
        return LlamaShape(
            vocab_size=self.n_vocab, d_model=self.width, n_layers=self.layers, n_heads=n_heads,
            n_kv_heads=n_heads, d_ffn=3 * self.width, context_len=self.window,
        )  # fmt: skip


def train_tokenizer(texts: Sequence[str], n_vocab: int) -> Tokenizer:
    """Train a byte-level BPE of `n_vocab` tokens; with 256 every byte is a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != n_vocab:
        raise ConfigError(
            f"the text gives {tokenizer.get_vocab_size():,} tokens, not {n_vocab:,}; use more text"
        )
    return tokenizer


def encoded(texts: Sequence[str], tokenizer: Tokenizer, n_bytes: int) -> np.ndarray:
    """Return the tokens of the first `n_bytes` of `texts`, documents parted by an empty line.

    uint16: no vocabulary is larger. Raises ConfigError if there is less text.
    """
    parts, n_left = [], n_bytes
    for text in texts:
        if n_left <= 0:
            break
        cut = (text + SEPARATOR).encode()[:n_left].decode(errors="ignore")
        n_left -= len(cut.encode())
        parts.append(cut)
    if n_left > 4:  # bytes of a character that was cut
        raise ConfigError(f"the text ends {n_left:,} bytes before the {n_bytes:,} asked for")
    found = tokenizer.encode_batch_fast(parts, add_special_tokens=False)
    return np.concatenate([np.asarray(e.ids, np.uint16) for e in found])


def windows(tokens: np.ndarray, recipe: MemberRecipe, step: int) -> Tensor:
    """Return the windows [n, window] of a step; every one is read once in `recipe.steps`."""
    n = len(tokens) // recipe.window
    order = np.random.default_rng((recipe.seed, n)).permutation(n)
    picked = order[step * n // recipe.steps : (step + 1) * n // recipe.steps]
    rows = tokens[: n * recipe.window].reshape(n, recipe.window)[picked]
    return torch.from_numpy(rows.astype(np.int64))


@dataclass(frozen=True)
class Member:
    """A trained model, and its mixtures if it has experts."""

    model: Llama
    mixtures: Sequence[Mixture]


def train_member(
    recipe: MemberRecipe,
    tokens: np.ndarray,
    folder: Path,
    *,
    threads: int = 1,
    on_report: Callable[[Mapping[str, float]], None] | None = None,
) -> Member:
    """Train on `tokens` in `folder`, going on from what is there."""
    if len(tokens) // recipe.window < recipe.steps:
        raise ConfigError(
            f"{len(tokens):,} tokens are fewer than one window of {recipe.window} for each of "
            f"{recipe.steps:,} steps; use more text or fewer steps"
        )
    torch.set_num_threads(threads)
    model = Llama(recipe.shape)
    mixtures = with_experts(model, recipe.n_experts) if recipe.n_experts > 1 else []
    model.initialise(torch.Generator().manual_seed(recipe.seed))

    def loss_of(step: int) -> Tensor:
        rows = windows(tokens, recipe, step)
        logits = model(rows[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        if mixtures:
            loss = loss + BALANCE * torch.stack([m.balance for m in mixtures]).mean()
        return loss

    digest = hashlib.sha256(tokens.tobytes()).hexdigest()
    train(
        model,
        loss_of,
        Schedule(recipe.steps, recipe.learning_rate, warm_up=0.03, floor=0.05),
        folder,
        recipe={"recipe": asdict(recipe), "tokens": digest},
        on_report=on_report,
    )
    return Member(model.eval(), mixtures)


def train_text(
    texts: Sequence[str],
    recipe: MemberRecipe,
    folder: Path,
    *,
    encoding: str = "Q8_0",
    threads: int = 1,
    on_report: Callable[[Mapping[str, float]], None] | None = None,
) -> Path:
    """Train a tokenizer and a dense model on all of `texts` in `folder`; returns the GGUF.

    `n_bytes` of the recipe is not used.
    """
    n_bytes = sum(len((text + SEPARATOR).encode()) for text in texts)
    recipe = replace(recipe, n_bytes=n_bytes)
    tokenizer = train_tokenizer(texts, recipe.n_vocab)
    tokens = encoded(texts, tokenizer, recipe.n_bytes)
    member = train_member(recipe, tokens, folder, threads=threads, on_report=on_report)
    path = folder / "text.gguf"
    write_member(member.model, tokenizer, path, encoding, name=f"text, {recipe.n_bytes:,} bytes")
    return path


def text_bits(model: Llama, ids: Sequence[int]) -> float:
    """Return the sum of -log2 p over the tokens of a text but the first, in float32."""
    given = torch.tensor([list(ids)])
    with torch.no_grad():
        losses = functional.cross_entropy(model(given[:, :-1])[0], given[0, 1:], reduction="none")
    return math.fsum(losses.tolist()) / math.log(2)


def write_member(
    model: Llama, tokenizer: Tokenizer, path: Path, encoding: str, *, name: str
) -> None:
    """Write a dense member as GGUF, its tokenizer included."""
    vocabulary = tokenizer.get_vocab()
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    write_llama_gguf(
        model, path, encoding, name=name, n_control=0,
        tokens=sorted(vocabulary, key=vocabulary.__getitem__),
        merges=[" ".join(pair) for pair in merges],
    )  # fmt: skip
