"""The fused kernel of landmark attention against its literal form, on every instruction set."""

import numpy as np
import pytest

from capax import _native
from tests.kv.landmark_oracle import grouped_weights, stream_groups

BLOCK, DIM = 16, 24
NO_RECORDS = np.zeros((0, 2, BLOCK, DIM), np.float32)


def tables(n: int) -> tuple[np.ndarray, np.ndarray]:
    angles = np.outer(np.arange(n), 100.0 ** (-np.arange(DIM // 2) / (DIM // 2)))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def fused(q, k, v, n_padding=0):
    """All of q, k, v [t, heads, DIM] as one chunk, behind rows that do not exist."""
    t, n_heads, _ = q.shape
    pad = np.full((n_padding, k.shape[1], DIM), np.nan, np.float32)
    cos, sin = tables(1)
    none = np.zeros((t, n_heads, 0), np.int32)
    return _native.landmark_attend(
        q,
        np.arange(n_padding, n_padding + t, dtype=np.int32),
        np.ascontiguousarray(np.concatenate([pad, k]).swapaxes(0, 1)),
        np.ascontiguousarray(np.concatenate([pad, v]).swapaxes(0, 1)),
        NO_RECORDS,
        none,
        none,
        DIM**-0.5,
        cos,
        sin,
        "half",
        BLOCK,
        n_padding,
    )


@pytest.mark.parametrize("n_padding", [0, 1, 14, 15])
@pytest.mark.parametrize("t", [1, 15, 16, 17, 255, 256])
def test_fused_equals_literal(t, n_padding):
    random = np.random.default_rng(t)
    q = random.standard_normal((t, 4, DIM), np.float32) * 2
    k, v = (random.standard_normal((t, 2, DIM), np.float32) for _ in range(2))
    out, _ = fused(q, k, v, n_padding)
    is_landmark, groups = stream_groups(t, BLOCK, n_padding)
    for head in range(4):
        scores = (q[:, head] @ k[:, head // 2].T).astype(float) * DIM**-0.5
        weights = grouped_weights(scores, is_landmark, groups)
        np.testing.assert_allclose(out[:, head], weights @ v[:, head // 2], atol=1e-5)


@pytest.mark.slow
def test_fused_equals_literal_over_a_thousand_tokens():
    test_fused_equals_literal(1000, 3)


def test_a_missing_landmark_check_would_show():
    """The negative control: with landmarks among the regular keys the numbers differ."""
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((40, 1, DIM), np.float32) for _ in range(3))
    out, _ = fused(q, k, v)
    is_landmark, groups = stream_groups(40, BLOCK)
    scores = (q[:, 0] @ k[:, 0].T).astype(float) * DIM**-0.5
    wrong = grouped_weights(scores, np.roll(is_landmark, 1), groups)
    assert np.abs(out[:, 0] - wrong @ v[:, 0]).max() > 0.01


@pytest.mark.parametrize("isa", [name for name, _ in _native.supported_isas()])
def test_every_instruction_set_gives_the_same_bits(isa):
    random = np.random.default_rng(7)
    q, k, v = (random.standard_normal((50, 2, DIM), np.float32) for _ in range(3))
    chosen = _native.isa()
    expected, _ = fused(q, k, v)
    try:
        _native.select_isa(isa)
        out, _ = fused(q, k, v)
    finally:
        _native.select_isa(chosen)
    assert out.tobytes() == expected.tobytes()


@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_a_landmark_is_scored_as_if_it_stood_at_its_place(style):
    random = np.random.default_rng(1)
    cos, sin = tables(30)
    plain = random.standard_normal((3, 2, DIM), np.float32)
    landmarks = random.standard_normal((2, 5, DIM), np.float32)
    at, places = np.array([20, 21, 29]), np.array([3, 3, 3, 17, 18], np.int32)
    q = _native.rope(plain, cos[at], sin[at], style)
    scores = _native.landmark_scores(q, landmarks, places, 0.5, cos, sin, style)
    by_block = np.ascontiguousarray(landmarks.swapaxes(0, 1))
    keys = _native.rope(by_block, cos[places], sin[places], style)
    np.testing.assert_allclose(scores, 0.5 * np.einsum("thd,nhd->thn", q, keys), atol=1e-5)


def test_a_chosen_record_is_read_at_its_base_like_a_block_of_the_chunk():
    random = np.random.default_rng(2)
    cos, sin = tables(3 * BLOCK)
    k, v = (random.standard_normal((2 * BLOCK, 1, DIM), np.float32) for _ in range(2))
    places = np.arange(BLOCK, 3 * BLOCK)
    turned = _native.rope(k, cos[places], sin[places], "half").swapaxes(0, 1)
    q = random.standard_normal((1, 1, DIM), np.float32)
    none = np.zeros((1, 1, 0), np.int32)
    values = v.swapaxes(0, 1)
    rest = (DIM**-0.5, cos, sin, "half", BLOCK)
    row = np.array([2 * BLOCK - 2], np.int32)
    in_chunk, n_chunk = _native.landmark_attend(
        q,
        row,
        np.ascontiguousarray(turned),
        np.ascontiguousarray(values),
        NO_RECORDS,
        none,
        none,
        *rest,
    )
    record = np.stack([k[:BLOCK, 0], v[:BLOCK, 0]])[None]
    fetched, n_fetched = _native.landmark_attend(
        q,
        row - BLOCK,
        np.ascontiguousarray(turned[:, BLOCK:]),
        np.ascontiguousarray(values[:, BLOCK:]),
        record,
        np.zeros((1, 1, 1), np.int32),
        np.full((1, 1, 1), BLOCK, np.int32),
        *rest,
    )
    np.testing.assert_allclose(fetched, in_chunk, atol=1e-6)
    assert n_chunk == n_fetched == BLOCK + BLOCK - 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"slots": 1}, "slots has 1"),
        ({"bases": 40}, "bases has 40"),
        ({"rows": 99}, "rows has 99"),
        ({"block": 8}, "records must be"),
        ({"first": -1}, "first is negative"),
    ],
)
def test_what_does_not_fit_is_refused(changes, says):
    cos, sin = tables(3 * BLOCK)
    arguments = {"rows": 3, "slots": 0, "bases": 0, "block": BLOCK, "first": 0} | changes
    chunk = np.zeros((1, BLOCK, DIM), np.float32)
    with pytest.raises(ValueError, match=says):
        _native.landmark_attend(
            np.zeros((1, 1, DIM), np.float32),
            np.array([arguments["rows"]], np.int32),
            chunk,
            chunk,
            np.zeros((1, 2, BLOCK, DIM), np.float32),
            np.full((1, 1, 1), arguments["slots"], np.int32),
            np.full((1, 1, 1), arguments["bases"], np.int32),
            1.0,
            cos,
            sin,
            "half",
            arguments["block"],
            arguments["first"],
        )
