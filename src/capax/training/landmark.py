"""Train a small model with landmark attention, and its twin without (`capax train landmark`).

Landmark Attention (Mohtashami and Jaggi, 2023, arXiv 2305.16300). A landmark token closes every
block of regular tokens. Training changes only the softmax: a token of an earlier block is reached
through the landmark of its block, so a landmark's key learns to score high when its block is worth
reading. The simplest exact form is one ordinary softmax over regular tokens whose logits are

    s_ij                                                  for j in the query's own block,
    s_ij + s_i,landmark(c) - logsumexp over c of s_im     for j in an earlier block c;

landmarks themselves are no keys of it. The twin sees the same number of regular tokens, plainly.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional

from capax.training.landmark_data import N_DIGITS, Document, Documents
from capax.training.llama import Attention, Llama, LlamaShape, causal_attention


@dataclass(frozen=True, kw_only=True)
class LandmarkRecipe:
    """What a run does; equal recipes on equal texts give equal models.

    `block`: tokens of a block, its landmark included. `window`: tokens of a training window,
    landmarks included. The first `copy_steps` steps take windows of `copy_window` in which strings
    come twice, or pass keys; then `short_steps` ones take windows of `short_window`. Shorter
    windows are as many more. `pass_key`, `echo`: shares of the documents, the rest is prose.
    `weight`: what a digit of an answer, or a repeated token of an echo, counts in the loss.
    The learning rate falls along a cosine of `horizon` steps; training stops after `steps`.
    """

    vocab_size: int = 1024
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    d_ffn: int = 384
    block: int = 16
    window: int = 256
    batch: int = 12
    copy_steps: int = 400
    copy_window: int = 64
    short_steps: int = 200
    short_window: int = 128
    pass_key: float = 0.5
    echo: float = 0.25
    weight: float = 4.0
    learning_rate: float = 2e-3
    horizon: int = 2400
    steps: int = 900
    seed: int = 1

    def shape(self, context_len: int) -> LlamaShape:
        return LlamaShape(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            n_kv_heads=self.n_heads,
            d_ffn=self.d_ffn,
            context_len=context_len,
        )

    def window_at(self, step: int) -> int:
        """Return the tokens of a window of a step, landmarks included."""
        if step < self.copy_steps:
            return self.copy_window
        return self.short_window if step < self.copy_steps + self.short_steps else self.window


def landmark_attention(block: int, n_padding: int = 0) -> Attention:
    """Return the attention of windows of whole blocks whose last token is the landmark.

    `n_padding`: tokens at the beginning that are no keys, because the first block is short.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        t, head_dim = q.shape[2:]
        n_groups = q.shape[1] // k.shape[1]
        if n_groups > 1:
            k, v = k.repeat_interleave(n_groups, 1), v.repeat_interleave(n_groups, 1)
        n_blocks = t // block
        scores = (q @ k.transpose(-1, -2)) * head_dim**-0.5
        scores = scores.view(*scores.shape[:-1], n_blocks, block)
        own, is_visible = _masks(t, block, n_padding)
        regular = scores[..., :-1].masked_fill(~is_visible, float("-inf"))
        landmark = scores[..., -1]
        # A block of which nothing is visible has logsumexp -inf; its keys stay at -inf.
        inner = regular.logsumexp(-1)
        through = torch.where(own | inner.isinf(), 0.0, landmark - inner)
        weights = (regular + through[..., None]).flatten(-2).softmax(-1)
        values = v.view(*v.shape[:2], n_blocks, block, v.shape[-1])[..., :-1, :].flatten(2, 3)
        out: Tensor = weights @ values
        return out

    return attend


_MASKS: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}


def _masks(t: int, block: int, n_padding: int) -> tuple[Tensor, Tensor]:
    """Return which block is the query's own, [t, n_blocks], and which regular keys it may see.

    The latter is [t, n_blocks, block - 1]. Rows that may see none (padding, or a landmark without
    a block) see the first one, whatever it is, so that no row is empty; nothing reads such a row.
    """
    if (t, block, n_padding) not in _MASKS:
        i = torch.arange(t)
        j = i.view(-1, block)
        own = (i[:, None] // block) == torch.arange(t // block)
        is_visible = ((j <= i[:, None, None]) & (j >= n_padding))[..., :-1]
        is_visible[~is_visible.flatten(1).any(1), 0, 0] = True
        _MASKS[t, block, n_padding] = own, is_visible
    return _MASKS[t, block, n_padding]


def landmark_stream(
    documents: list[Document], block: int, landmark_id: int, n_padding: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return stream tokens [b, t], each one's next regular token [b, t], and its weight.

    A landmark closes each block; its own prediction weighs nothing. Documents have one token more
    than there are regular places, the last one's target.
    """
    regular = torch.tensor([d.tokens for d in documents])
    weights = torch.tensor([d.weights for d in documents])
    n = regular.shape[1] - 1
    t = (n_padding + n) // (block - 1) * block
    places = torch.arange(t)
    places = places[(places >= n_padding) & (places % block != block - 1)]
    tokens = torch.full((len(documents), t), landmark_id)
    targets = torch.zeros_like(tokens)
    counts = torch.zeros(tokens.shape)
    tokens[:, places], targets[:, places] = regular[:, :-1], regular[:, 1:]
    counts[:, places] = weights[:, 1:]
    return tokens, targets, counts


def draw_documents(
    documents: Documents, recipe: LandmarkRecipe, step: int, n_tokens: int, n: int
) -> list[Document]:
    """Return the `n` documents of a step, each of `n_tokens` tokens: a function of (seed, step)."""
    draw = random.Random(f"{recipe.seed} {step}")
    out = []
    for _ in range(n):
        kind = draw.random()
        if step < recipe.copy_steps and kind >= recipe.pass_key:
            out.append(documents.double(draw, n_tokens))
        elif kind < recipe.pass_key:
            out.append(documents.pass_key(draw, n_tokens, n_questions=3, weight=recipe.weight))
        elif kind < recipe.pass_key + recipe.echo:
            out.append(documents.echo(draw, n_tokens, weight=recipe.weight))
        else:
            out.append(documents.prose(draw, n_tokens))
    return out


def weighted_loss(model: Llama, rows: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the mean cross-entropy of the rows that count; only their logits are computed."""
    counts = weights > 0
    logits = model.head(rows[counts])
    losses = functional.cross_entropy(logits, targets[counts], reduction="none")
    return (losses * weights[counts]).sum() / weights[counts].sum()


def loss_function(
    model: Llama, documents: Documents, recipe: LandmarkRecipe, landmark_id: int | None
) -> Callable[[int], Tensor]:
    """Return the loss of a step; without a `landmark_id`, that of the twin on the same tokens."""

    def loss_of(step: int) -> Tensor:
        window = recipe.window_at(step)
        n = recipe.batch * recipe.window // window
        # Windows begin anywhere in a block: the first one is short, the places before it padding.
        n_padding = random.Random(f"{recipe.seed} {step} padding").randrange(recipe.block - 1)
        n_regular = window // recipe.block * (recipe.block - 1) - n_padding
        batch = draw_documents(documents, recipe, step, n_regular + 1, n)
        tokens, targets, weights, attention = _batch_of(batch, recipe, landmark_id, n_padding)
        return weighted_loss(model, model.hidden(tokens, attention=attention), targets, weights)

    return loss_of


def _batch_of(
    batch: list[Document], recipe: LandmarkRecipe, landmark_id: int | None, n_padding: int
) -> tuple[Tensor, Tensor, Tensor, Attention]:
    """Return tokens, targets, weights [b, t] and the attention for them."""
    if landmark_id is not None:
        stream = landmark_stream(batch, recipe.block, landmark_id, n_padding)
        return *stream, landmark_attention(recipe.block, n_padding)
    tokens = torch.tensor([d.tokens for d in batch])
    weights = torch.tensor([d.weights for d in batch])
    return tokens[:, :-1], tokens[:, 1:], weights[:, 1:], causal_attention


@torch.inference_mode()
def pass_key_accuracy(
    model: Llama,
    documents: Documents,
    recipe: LandmarkRecipe,
    landmark_id: int | None,
    *,
    window: int,
    n: int = 64,
    seed: int = 0,
) -> tuple[float, float]:
    """Return which shares of answers, and of digits, are the likeliest inside one window."""
    draw = random.Random(f"held out {seed}")
    n_regular = window // recipe.block * (recipe.block - 1)
    batch = [documents.pass_key(draw, n_regular + 1, n_questions=1, weight=1.0) for _ in range(n)]
    tokens, targets, _, attention = _batch_of(batch, recipe, landmark_id, 0)
    places = torch.arange(tokens.shape[1])
    if landmark_id is not None:
        places = places[places % recipe.block != recipe.block - 1]
    places = places[-N_DIGITS:]
    rows = model.hidden(tokens, attention=attention)[:, places]
    right = model.head(rows).argmax(-1) == targets[:, places]
    return float(right.all(-1).float().mean()), float(right.float().mean())


def recipe_record(recipe: LandmarkRecipe, *, is_twin: bool) -> dict[str, object]:
    """Return what identifies a run."""
    return {"recipe": asdict(recipe), "is_twin": is_twin}
