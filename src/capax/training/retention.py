"""Training retention gates: the differentiable side of TRIM-KV (arXiv 2512.03324).

A gate looks at the input of a layer's attention when a token is written and says, for each KV
head, how long the token will be worth keeping: beta in (0, 1). In training nothing is dropped;
token i fades instead, its score at time t lowered by (t - i) * -log beta_i. The model's weights
are frozen. The gates learn to imitate the model without fading (`quality`) while the tokens not
yet faded stay within a budget (`capacity`).

What the paper leaves open, decided here: the gate's input is divided by its root mean square,
because that of small models is tiny in the first layers; its last bias starts at ln(10 T), so that
beta^T is 0.9 at first; losses are means over positions; capacity is the mean over the positions
above the budget of each head, then over heads and layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capax.training.frozen_llama import FrozenLlama

_BLOCK = 128


class RetentionGate(nn.Module):
    """log beta of one layer: x [T, d_model] -> [n_kv_heads, T], at most 0."""

    def __init__(self, d_model: int, n_kv_heads: int, width: int, bias: float) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(width, d_model) * 0.02)
        self.b1 = nn.Parameter(torch.zeros(width))
        self.w2 = nn.Parameter(torch.randn(n_kv_heads, width) * 0.02)
        self.bias = nn.Parameter(torch.full((n_kv_heads,), float(bias)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logarithm of the retention scores, in the gate's own precision."""
        x = x.to(self.w1.dtype)
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-12)
        hidden = F.silu(F.linear(x, self.w1, self.b1))
        return F.logsigmoid(F.linear(hidden, self.w2, self.bias)).T


def new_gates(
    model: FrozenLlama, width: int, n_tokens: int, seed: int, bias: float | None = None
) -> nn.ModuleList:
    """Return one gate per layer, its last bias `bias` or ln(10 * n_tokens)."""
    c = model.config
    torch.manual_seed(seed)
    start = math.log(10 * n_tokens) if bias is None else bias
    return nn.ModuleList(
        RetentionGate(c.d_model, c.n_kv_heads, width, start) for _ in range(c.n_layers)
    )


def fading(log_beta: Tensor) -> Tensor:
    """Return what is added to the scores: [..., T] -> [..., T, T], (t - i) log beta_i.

    It is -inf where i > t. Exact attention where log beta is 0.
    """
    n = log_beta.shape[-1]
    age = _ages(n, 0, n, log_beta)
    return (age * log_beta.unsqueeze(-2)).masked_fill(age < 0, -torch.inf)


def _ages(n: int, begin: int, end: int, like: Tensor) -> Tensor:
    """Return t - i of rows t = begin .. end - 1 and columns i < n."""
    times = torch.arange(begin, end, dtype=like.dtype)
    return times[:, None] - torch.arange(n, dtype=like.dtype)[None, :]


class _RetainedCount(torch.autograd.Function):
    """S_t = sum over i <= t of beta_i^(t - i), in blocks of rows: no [T, T] is kept."""

    @staticmethod
    def forward(ctx: Any, log_beta: Tensor) -> Tensor:
        ctx.save_for_backward(log_beta)
        return torch.cat(
            [_faded(log_beta, begin)[0].sum(-1) for begin in _block_starts(log_beta)], -1
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (log_beta,) = ctx.saved_tensors
        total = torch.zeros_like(log_beta)
        for begin in _block_starts(log_beta):
            kept, age = _faded(log_beta, begin)
            rows = gradients[0][..., begin : begin + _BLOCK].unsqueeze(-1)
            total += (rows * kept * age).sum(-2)  # d beta^age / d log beta = age beta^age
        return total


def _block_starts(log_beta: Tensor) -> range:
    return range(0, log_beta.shape[-1], _BLOCK)


def _faded(log_beta: Tensor, begin: int) -> tuple[Tensor, Tensor]:
    """beta_i^(t - i), 0 where i > t, and t - i, for one block of rows t: [..., rows, T]."""
    n = log_beta.shape[-1]
    age = _ages(n, begin, min(begin + _BLOCK, n), log_beta)
    kept = torch.exp(age.clamp(min=0) * log_beta.unsqueeze(-2)).masked_fill(age < 0, 0.0)
    return kept, age


def retained(log_beta: Tensor) -> Tensor:
    """Return S_t, how many tokens have not faded at each time: [..., T] -> [..., T]."""
    count: Tensor = _RetainedCount.apply(log_beta)  # type: ignore[no-untyped-call]  # torch's
    return count


def capacity_loss(log_betas: Sequence[Tensor], memory: int) -> Tensor:
    """Return how far heads exceed `memory` tokens: mean of (S_t - M) / max(t - M, 1) over t > M.

    The mean of each head is over the positions where it is positive, 0 if there are none;
    then over heads and layers. `log_betas`: [n_kv_heads, T] of each layer; t counts from 1.
    """
    held = retained(torch.stack(list(log_betas)))
    seen = torch.arange(1, held.shape[-1] + 1, dtype=held.dtype)
    excess = torch.relu((held - memory) / (seen - memory).clamp(min=1))
    return (excess.sum(-1) / (excess > 0).sum(-1).clamp(min=1)).mean()


def quality_losses(logits: Tensor, teacher: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean KL(teacher || student) and mean cross-entropy of the next token, in nats.

    `logits`: of the student; `teacher`: of the model itself; both [T, vocab_size].
    """
    student = F.log_softmax(logits, -1)
    exact = F.log_softmax(teacher, -1)
    kl = (exact.exp() * (exact - student)).sum(-1).mean()
    return kl, F.nll_loss(student[:-1], tokens[1:])


def gated_logits(
    model: FrozenLlama, gates: nn.ModuleList, tokens: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Run the model with fading; returns logits [T, vocab_size] and log beta of each layer."""
    log_betas: list[Tensor] = []

    def bias(layer: int, x: Tensor) -> Tensor:
        log_beta = gates[layer](x)
        log_betas.append(log_beta)
        return fading(log_beta)

    return model.logits(tokens, bias), log_betas
