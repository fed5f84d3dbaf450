"""A feed-forward part of several experts, of which each token runs one.

"Switch Transformers" (2021, arXiv 2101.03961): a router gives each token to its likeliest expert
and scales what that returns by the probability, so that the router learns too. The balancing loss
keeps experts in use: n_experts * sum of (share of tokens * mean probability), 1 where all are
alike. No expert has a capacity: a token is never dropped.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from capax.training.llama import FeedForward, Llama, LlamaShape


class Mixture(nn.Module):
    """Rows [b, t, d_model] to rows, each through one of `n_experts` feed-forward parts.

    `balance`: the balancing loss of the last rows; `counts`: tokens of each expert so far,
    [n_experts].
    """

    def __init__(self, shape: LlamaShape, n_experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(shape.d_model, n_experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(shape) for _ in range(n_experts))
        self.balance = torch.zeros(())
        self.counts = torch.zeros(n_experts, dtype=torch.int64)

    def forward(self, h: Tensor) -> Tensor:
        rows = h.flatten(0, -2)
        probabilities = self.router(rows).softmax(-1)
        weight, chosen = probabilities.max(-1)
        counts = torch.bincount(chosen, minlength=len(self.experts))
        self.counts += counts
        share = counts / len(rows)
        self.balance = len(self.experts) * (share * probabilities.mean(0)).sum()
        order = chosen.argsort(stable=True)
        parts = torch.split(rows[order], counts.tolist())
        done = torch.cat([expert(x) for expert, x in zip(self.experts, parts, strict=True)])
        out: Tensor = torch.empty_like(done).index_copy(0, order, done) * weight[:, None]
        return out.view_as(h)


def with_experts(model: Llama, n_experts: int) -> list[Mixture]:
    """Give every layer of `model` so many experts of the size of its feed-forward part."""
    mixtures = []
    for layer in model.model.layers:
        layer.mlp = Mixture(model.shape, n_experts)
        mixtures.append(layer.mlp)
    return mixtures
