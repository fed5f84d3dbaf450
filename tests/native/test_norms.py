"""Row-wise kernels against float64, and every instruction set against the scalar one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capax import _native

# Largest relative errors against float64, with the value measured when written (2026-11-22):
# exp 1.75 ulp over 4 million points; rms_norm 2.5e-7; swiglu 1.7e-7; softmax 6.7e-7. Smaller
# probabilities lose more, because x - max is rounded: half an ulp of 60 is 2e-6.
EXP_ULP = 2.0
RMS_RELATIVE = 2e-6
SWIGLU_RELATIVE = 1e-6
SOFTMAX_RELATIVE = 2e-6  # of probabilities above 1e-6
LAYER_NORM_RELATIVE = 1e-6
GELU_RELATIVE = 1e-5  # at x = -13 the rounding of x^2 / 2 alone makes 5e-6

SIZES = [1, 2, 15, 16, 17, 31, 63, 64, 65, 127, 576, 1000]


def ulps(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """The distance of float32 values from float64 ones, in units of the last place."""
    return np.abs(got.astype(np.float64) - want) / np.spacing(np.abs(want).astype(np.float32))


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def test_exp_is_accurate_over_its_whole_range(isa: str) -> None:
    x = np.linspace(-87, 88.72, 200_001).astype(np.float32)
    assert ulps(_native.exp(x), np.exp(x.astype(np.float64))).max() <= EXP_ULP


def test_exp_of_special_values(isa: str) -> None:
    x = np.array([0.0, -0.0, -87.1, -1e30, -np.inf, 88.73, 1e30, np.inf, np.nan], np.float32)
    got = _native.exp(x)
    assert got[:-1].tolist() == [1, 1, 0, 0, 0, np.inf, np.inf, np.inf]
    assert np.isnan(got[-1])


@pytest.mark.parametrize("n", SIZES)
def test_softmax_and_logsumexp_match_float64(isa: str, n: int) -> None:
    x = (np.random.default_rng(n).standard_normal((3, n)) * 8).astype(np.float32)
    wide = x.astype(np.float64)
    exact = np.log(np.exp(wide).sum(axis=1))
    assert np.abs(_native.logsumexp(x) - exact).max() <= 2e-6 * np.abs(exact).max() + 1e-6
    probs = np.exp(wide - exact[:, None])
    kept = probs > 1e-6
    relative = np.abs(_native.softmax(x) - probs)[kept] / probs[kept]
    assert relative.max() <= SOFTMAX_RELATIVE


def test_softmax_of_huge_logits_ignores_the_lanes_behind_the_row(isa: str) -> None:
    assert _native.softmax(np.array([1e38, 1e38, -1e38], np.float32)).tolist() == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", [0, 37, 69])
def test_logsumexp_of_a_non_finite_row_is_nan(isa: str, bad: float, where: int) -> None:
    x = np.zeros(70, np.float32)
    x[where] = bad
    assert np.isnan(_native.logsumexp(x)[0])


@pytest.mark.parametrize("n", SIZES)
def test_rms_norm_matches_float64(isa: str, n: int) -> None:
    rng = np.random.default_rng(n)
    x = rng.standard_normal((5, n)).astype(np.float32) * 3
    weight = rng.standard_normal(n).astype(np.float32)
    wide = x.astype(np.float64)
    want = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-5) * weight
    assert (np.abs(_native.rms_norm(x, weight, 1e-5) - want) <= RMS_RELATIVE * np.abs(want)).all()


@pytest.mark.parametrize("n", SIZES)
def test_layer_norm_matches_float64(isa: str, n: int) -> None:
    rng = np.random.default_rng(n)
    x = (rng.standard_normal((5, n)) * 3 + 7).astype(np.float32)
    weight, bias = rng.standard_normal((2, n)).astype(np.float32)
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=1, keepdims=True)
    unit = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    got = _native.layer_norm(x, weight, bias, 1e-5)
    # The mean is rounded to float32, and what is left after subtracting it may be small.
    bound = LAYER_NORM_RELATIVE * (1 + np.abs(wide) / np.sqrt(centred.var(axis=1) + 1e-5)[:, None])
    assert (np.abs(got - (unit * weight + bias)) <= bound * (np.abs(weight) + np.abs(bias))).all()


def test_gelu_matches_float64_in_both_tails(isa: str) -> None:
    from math import erfc, sqrt

    x = np.linspace(-13, 13, 40_001).astype(np.float32)
    want = np.array([v * 0.5 * erfc(-v / sqrt(2)) for v in x.astype(np.float64)])
    assert (np.abs(_native.gelu(x) - want) <= GELU_RELATIVE * np.abs(want)).all()


def test_gelu_of_special_values(isa: str) -> None:
    got = _native.gelu(np.array([0.0, -40.0, 40.0, -1e30, 1e30, np.inf, np.nan], np.float32))
    assert got[:6].tolist() == [0, 0, 40, 0, np.float32(1e30), np.inf]
    assert np.isnan(got[6])


@pytest.mark.parametrize("n", SIZES)
def test_swiglu_matches_float64(isa: str, n: int) -> None:
    rng = np.random.default_rng(n)
    gate, up = rng.standard_normal((2, n)).astype(np.float32) * 4
    wide = gate.astype(np.float64)
    want = wide / (1 + np.exp(-wide)) * up
    assert (np.abs(_native.swiglu(gate, up) - want) <= SWIGLU_RELATIVE * np.abs(want)).all()


def test_swiglu_of_extreme_gates(isa: str) -> None:
    gate = np.array([1e30, -1e30, 100, -100, 0], np.float32)
    got = _native.swiglu(gate, np.ones(5, np.float32))
    assert got[0] == np.float32(1e30)
    assert got[2] == 100
    assert np.abs(got[[1, 3, 4]]).max() <= 1e-30
    assert np.isnan(_native.swiglu(np.array([np.nan], np.float32), np.ones(1, np.float32)))[0]


def rope_tables(positions: np.ndarray, rope_dim: int, base: float) -> tuple[np.ndarray, np.ndarray]:
    angle = positions[:, None] * base ** (-np.arange(0, rope_dim, 2) / rope_dim)
    return np.cos(angle), np.sin(angle)


@pytest.mark.parametrize("style", ["half", "interleaved"])
@pytest.mark.parametrize(("head_dim", "rope_dim"), [(64, 64), (80, 80), (64, 32), (96, 20), (2, 2)])
def test_rope_matches_float64_up_to_position_131071(
    isa: str, style: str, head_dim: int, rope_dim: int
) -> None:
    positions = np.array([0, 1, 4097, 131_071])
    cos, sin = rope_tables(positions.astype(np.float64), rope_dim, 100_000.0)
    x = np.random.default_rng(1).standard_normal((4, 3, head_dim)).astype(np.float32)
    want = x.astype(np.float64)
    half = rope_dim // 2
    first = slice(0, half) if style == "half" else slice(0, rope_dim, 2)
    second = slice(half, rope_dim) if style == "half" else slice(1, rope_dim, 2)
    a, b = want[..., first].copy(), want[..., second].copy()
    want[..., first] = a * cos[:, None] - b * sin[:, None]
    want[..., second] = b * cos[:, None] + a * sin[:, None]
    got = _native.rope(x, cos.astype(np.float32), sin.astype(np.float32), style)
    assert np.abs(got - want).max() <= 2e-6 * np.abs(x).max()
    assert same_bits(got[..., rope_dim:], x[..., rope_dim:])
    assert same_bits(got[0], x[0])


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
def test_every_isa_gives_the_same_bits(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = (rng.standard_normal((2, 3, n)) * 10).astype(np.float32)
    cos, sin = (t.astype(np.float32) for t in rope_tables(np.arange(3.0), 2 * n, 1e4))
    pairs = rng.standard_normal((3, 2, 2 * n)).astype(np.float32)
    before, results = _native.isa(), {}
    for name, _ in _native.supported_isas():
        assert _native.select_isa(name)
        results[name] = b"".join(
            out.tobytes()
            for out in (
                _native.exp(x),
                _native.softmax(x),
                _native.logsumexp(x),
                _native.rms_norm(x, y[0], 1e-6),
                _native.layer_norm(x, y[0], y[1], 1e-6),
                _native.swiglu(x, y),
                _native.gelu(x),
                _native.add(x, y),
                _native.rope(pairs, cos, sin, "half"),
                _native.rope(pairs, cos, sin, "interleaved"),
            )
        )
    _native.select_isa(before)
    assert {name for name, bits in results.items() if bits != results["scalar"]} == set()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: _native.rms_norm(f(2, 4), f(3), 1e-5), "weight has 3 values"),
        (lambda f: _native.layer_norm(f(2, 4), f(4), f(3), 1e-5), "need 4 values"),
        (lambda f: _native.swiglu(f(4), f(5)), "same shape"),
        (lambda f: _native.add(f(4), f(2, 2)), "same shape"),
        (lambda f: _native.softmax(f(0)), "at least one value"),
        (lambda f: _native.rope(f(1, 1, 4), f(1, 3), f(1, 3), "half"), "larger than head_dim"),
        (lambda f: _native.rope(f(1, 1, 4), f(2, 2), f(2, 2), "half"), "cos must be"),
        (lambda f: _native.rope(f(1, 1, 4), f(1, 2), f(1, 2), "neox"), "'neox'"),
    ],
)
def test_wrong_shapes_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(lambda *shape: np.zeros(shape, np.float32))
