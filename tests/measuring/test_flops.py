"""Operation counts against hand-counted matrix sizes and the published table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capax.files.model_file import open_model
from capax.measuring.flops import (
    DecoderShape,
    attended_pairs,
    exact_flops,
    published_flops,
)
from tests.models import gguf_model


@given(st.integers(1, 60), st.none() | st.integers(1, 70))
def test_attended_pairs_are_those_a_mask_has(n: int, window: int | None) -> None:
    visible = sum(1 for i in range(n) for j in range(i + 1) if window is None or i - j < window)
    assert attended_pairs(n, window) == visible


def test_exact_count_of_a_small_model_equals_its_matrices() -> None:
    file = open_model(gguf_model("llama"))
    c, n = file.config, 10
    matrices = [t.shape for name, t in file.tensors.items() if len(t.shape) == 2]
    tied = c.tied_embeddings  # then the embedding is the head as well
    weights = sum(
        rows * columns
        for (rows, columns), name in zip(
            matrices, [k for k, t in file.tensors.items() if len(t.shape) == 2], strict=True
        )
        if tied or name != "token_embd.weight"
    )
    attention = 4 * c.n_layers * c.n_heads * c.head_dim * n * (n + 1) // 2
    assert exact_flops(c, n) == 2 * n * weights + attention


def test_smollm2_costs_what_its_specification_gives() -> None:
    shape = DecoderShape(30, 576, 9, 3, 1536, 49_152)
    assert published_flops(shape, 1024) == 304_314_624 * 1024


def test_the_real_model_agrees(smollm2: object) -> None:
    config = open_model(smollm2).config  # type: ignore[arg-type]
    assert published_flops(DecoderShape.of(config), 1024) == 304_314_624 * 1024
    assert exact_flops(config, 1024) == 304_383_744 * 1024


@pytest.mark.parametrize("n", [1, 1024])
def test_experts_and_latent_attention_count_as_published(n: int) -> None:
    shape = DecoderShape(2, 64, 4, 4, 32, 100, "latent", 3, 16)
    by_hand = 2 * (n * (4 * 64**2 + 4 * 64 * 64 + 6 * 64 * 32 * 3) + 4 * 64 * n * 16)
    assert published_flops(shape, n) == by_hand + 2 * n * 64 * 100
