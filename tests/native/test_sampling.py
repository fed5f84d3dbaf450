"""The native sampler: exact filters, the right distribution, one token whatever the machine."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capax import _native

# |logprob - float64|, measured when written (2026-11-22) up to 151,936 tokens: 8.2e-7 for logits of
# spread 3; for spread 30 half an ulp of the result, 3.8e-6.
LOGPROB_TOLERANCE = 1e-5
VOCAB_SIZES = [1, 2, 15, 17, 50, 127, 128, 129, 1000, 49_152]


def make_logits(vocab_size: int, seed: int = 0, spread: float = 3.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(vocab_size) * spread).astype(np.float32)


def token_of(logits: np.ndarray, **options: Any) -> int:
    status, token, *_ = _native.sample(logits, **options)
    assert status == "ok"
    return int(token)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    top = wide.max(axis=-1, keepdims=True)
    return wide - top - np.log(np.exp(wide - top).sum(axis=-1, keepdims=True))


def ranked(logits: np.ndarray) -> np.ndarray:
    """Token ids in the order of the sampler: logit descending, then token ascending."""
    return np.lexsort((np.arange(len(logits)), -logits.astype(np.float64)))


def reference_probs(
    logits: np.ndarray,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> np.ndarray:
    """The distribution after every filter, in float64 and by sorting everything."""
    order = ranked(logits)
    probs = np.exp(log_softmax(logits.astype(np.float64) / temperature))[order]
    if top_k:
        probs[top_k:] = 0
    if top_p < 1:
        before = np.concatenate([[0.0], np.cumsum(probs)[:-1]])
        probs[(before >= top_p * probs.sum()) & (np.arange(len(probs)) > 0)] = 0
    probs[probs < min_p * probs[0]] = 0
    result = np.empty_like(probs)
    result[order] = probs / probs.sum()
    return result


def chi_square_p(counts: np.ndarray, probs: np.ndarray) -> float:
    """Upper tail of chi-square (Wilson and Hilferty); categories with < 5 expected are pooled."""
    expected = probs * counts.sum()
    assert counts[probs == 0].sum() == 0
    small = expected < 5
    observed = np.append(counts[~small], counts[small].sum())
    wanted = np.append(expected[~small], expected[small].sum())
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    n = len(wanted) - 1
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    z = ((statistic / n) ** (1 / 3) - (1 - 2 / (9 * n))) / math.sqrt(2 / (9 * n))
    return 0.5 * math.erfc(z / math.sqrt(2))


# ---- the generator -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known answers published with Random123
        ([0] * 4, [0] * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, words) -> None:
    assert _native.philox(counter, key) == words


def test_uniforms_depend_on_every_part_of_the_key() -> None:
    base = {"seed": 5, "choice": 1, "position": 9, "stream": 0}
    variants = [base] + [{**base, name: base[name] + 1} for name in base]
    variants += [{**base, "seed": 5 + 2**32}, {**base, "position": 9 + 2**32}]
    assert len({_native.philox_uniform(**v) for v in variants}) == len(variants)


def test_uniforms_fill_the_unit_interval_evenly() -> None:
    draws = np.array([_native.philox_uniform(3, 0, i) for i in range(20_000)])
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.histogram(draws, 100, (0, 1))[0]
    assert chi_square_p(counts, np.full(100, 0.01)) > 1e-4


# ---- greedy --------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_temperature_zero_takes_the_largest_logit(isa: str, vocab_size: int) -> None:
    for seed in range(5):
        logits = make_logits(vocab_size, seed)
        assert token_of(logits, temperature=0) == int(np.argmax(logits))
        assert token_of(logits, top_k=1, seed=seed) == int(np.argmax(logits))
        assert token_of(logits, top_p=0, seed=seed) == int(np.argmax(logits))
        assert token_of(logits, min_p=1, seed=seed) == int(np.argmax(logits))


def test_ties_go_to_the_lowest_token(isa: str) -> None:
    logits = np.full(300, -1, np.float32)
    logits[[17, 130, 299]] = 4
    for options in ({"temperature": 0}, {"top_k": 1}, {"top_p": 1e-9}):
        assert token_of(logits, **options) == 17
    assert token_of(np.zeros(300, np.float32), temperature=0) == 0


@pytest.mark.parametrize("temperature", [1e-30, 1e-40, 1e-6])
def test_a_tiny_temperature_is_greedy(isa: str, temperature: float) -> None:
    logits = make_logits(777)
    assert token_of(logits, temperature=temperature) == int(np.argmax(logits))


# ---- the distribution ----------------------------------------------------------------------

FILTERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 1e30},
    {"top_k": 7},
    {"top_p": 0.8},
    {"min_p": 0.05},
    {"temperature": 1.7, "top_k": 20, "top_p": 0.9, "min_p": 0.1},
]


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_draws_follow_the_exact_distribution(options: dict[str, Any]) -> None:
    logits = make_logits(50, seed=1, spread=1.5)
    counts = np.zeros(50)
    for position in range(100_000):
        counts[_native.sample(logits, seed=11, position=position, **options)[1]] += 1
    assert chi_square_p(counts, reference_probs(logits, **options)) > 1e-4


def test_the_distribution_test_notices_a_small_bias() -> None:
    """The negative control: 5 % more weight on one token of the reference is seen."""
    logits = make_logits(50, seed=1, spread=1.5)
    counts = np.zeros(50)
    for position in range(100_000):
        counts[_native.sample(logits, seed=11, position=position)[1]] += 1
    probs = reference_probs(logits)
    probs[np.argmax(probs)] *= 1.05
    assert chi_square_p(counts, probs / probs.sum()) < 1e-4


def test_choices_are_independent() -> None:
    """Pairs of draws of two choices fill the square of the distribution."""
    logits = make_logits(6, seed=2, spread=1.0)
    probs = reference_probs(logits)
    counts = np.zeros((6, 6))
    for position in range(30_000):
        pair = [token_of(logits, seed=4, position=position, choice=c) for c in (0, 1)]
        counts[pair[0], pair[1]] += 1
    assert chi_square_p(counts.ravel(), np.outer(probs, probs).ravel()) > 1e-4


def test_positions_are_independent() -> None:
    logits = make_logits(6, seed=2, spread=1.0)
    probs = reference_probs(logits)
    tokens = [token_of(logits, seed=8, position=position) for position in range(60_000)]
    counts = np.zeros((6, 6))
    np.add.at(counts, (tokens[0::2], tokens[1::2]), 1)
    assert chi_square_p(counts.ravel(), np.outer(probs, probs).ravel()) > 1e-4


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_draw_is_where_the_running_sum_passes_the_uniform(data: st.DataObject) -> None:
    """Every filter against a reference that sorts everything; draws at a border are not judged."""
    vocab_size = data.draw(st.sampled_from([2, 17, 50, 129, 700]))
    seed, position = data.draw(st.integers(0, 2**64 - 1)), data.draw(st.integers(0, 2**40))
    logits = make_logits(vocab_size, seed=seed % 1000)
    if data.draw(st.booleans()):
        logits = np.round(logits)  # many ties
    options = {
        "temperature": data.draw(st.sampled_from([0.3, 1.0, 2.5])),
        "top_k": data.draw(st.sampled_from([0, 1, 3, 40, 5000])),
        "top_p": data.draw(st.sampled_from([0.1, 0.613, 0.97, 1.0])),
        "min_p": data.draw(st.sampled_from([0.0, 0.031])),
    }
    probs = reference_probs(logits, **options)
    running = np.cumsum(probs)
    uniform = _native.philox_uniform(seed, 0, position)
    want = int(np.searchsorted(running, uniform, side="right"))
    got = token_of(logits, seed=seed, position=position, **options)
    assert probs[got] > 0 or np.abs(running - uniform).min() < 1e-5
    if np.abs(running - uniform).min() > 1e-5:
        assert got == want


# ---- mask, bias, penalties -----------------------------------------------------------------


def test_masked_tokens_are_never_drawn(isa: str) -> None:
    logits = make_logits(100)
    allowed = [3, 40, 63, 64, 99]
    mask = np.zeros(4, np.uint32)
    for token in allowed:
        mask[token // 32] |= np.uint32(1 << (token % 32))
    drawn = {token_of(logits, temperature=1e30, position=i, mask=mask) for i in range(300)}
    assert drawn == set(allowed)


def test_a_sampler_keeps_its_mask_until_it_gets_another(isa: str) -> None:
    logits = make_logits(100)
    mask = np.zeros(4, np.uint32)
    mask[2] = 1  # token 64
    sampler = _native.Sampler(np.array([1], np.int32), temperature=1e30)
    sampler.set_mask(mask)
    mask[2] = 0  # the words were copied
    assert {sampler.sample(logits)[1] for _ in range(20)} == {64}
    sampler.set_mask(None)
    assert len({sampler.sample(logits)[1] for _ in range(50)}) > 10


def test_a_mask_leaves_logprobs_those_of_the_model(isa: str) -> None:
    logits = make_logits(100)
    mask = np.zeros(4, np.uint32)
    mask[0] = 1 << 7
    sampler = _native.Sampler(np.array([1], np.int32), temperature=0, n_top=3)
    sampler.set_mask(mask)
    status, token, logprob, top = sampler.sample(logits)
    assert (status, token) == ("ok", 7)
    assert logprob == pytest.approx(log_softmax(logits)[7], abs=LOGPROB_TOLERANCE)
    assert [t for t, _ in top] == ranked(logits)[:3].tolist()


def test_a_mask_gives_the_same_token_on_every_isa(on_every_isa) -> None:
    logits = make_logits(1000)
    mask = np.random.default_rng(5).integers(0, 2**32, 32, np.uint32)

    def tokens() -> list[int]:
        sampler = _native.Sampler(np.array([1], np.int32), top_p=0.9, top_k=40)
        sampler.set_mask(mask)
        return [sampler.sample(logits)[1] for _ in range(50)]

    results = on_every_isa(tokens)
    first = next(iter(results.values()))
    assert all(mask[t // 32] >> (t % 32) & 1 for t in first)
    assert all(found == first for found in results.values())


def test_a_mask_of_the_wrong_size_is_refused() -> None:
    sampler = _native.Sampler(np.array([1], np.int32))
    with pytest.raises(ValueError, match="no words"):
        sampler.set_mask(np.zeros(0, np.uint32))
    sampler.set_mask(np.zeros(3, np.uint32))
    with pytest.raises(ValueError, match="mask has 3 words but 100 tokens need 4"):
        sampler.sample(make_logits(100))


def test_no_allowed_token_is_a_status_of_its_own(isa: str) -> None:
    nothing = np.zeros(4, np.uint32)
    for temperature in (0, 1):
        status, token, *_ = _native.sample(make_logits(100), mask=nothing, temperature=temperature)
        assert (status, token) == ("all_masked", -1)
    everything = {"bias_tokens": np.arange(100, dtype=np.int32)}
    forbidden = np.full(100, -np.inf, np.float32)
    assert _native.sample(make_logits(100), bias_values=forbidden, **everything)[0] == "all_masked"


@pytest.mark.parametrize("bias", [1e9, 3e38])
def test_a_huge_bias_decides(isa: str, bias: float) -> None:
    logits = make_logits(100)
    tokens = np.array([42], np.int32)

    def drawn(value: float) -> set[int]:
        values = np.array([value], np.float32)
        return {
            token_of(logits, position=i, bias_tokens=tokens, bias_values=values) for i in range(200)
        }

    assert drawn(bias) == {42}
    assert 42 not in drawn(-bias)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    repetition=st.sampled_from([0.5, 1.0, 1.3, 10.0]),
    presence=st.sampled_from([-2.0, 0.0, 0.7]),
    frequency=st.sampled_from([-1.0, 0.0, 0.4]),
)
def test_penalties_match_their_formulas(
    seed: int, repetition: float, presence: float, frequency: float
) -> None:
    rng = np.random.default_rng(seed)
    logits = make_logits(60, seed)
    seen = rng.permutation(60)[:20].astype(np.int32)
    outputs = rng.integers(0, 4, 20).astype(np.int32)
    want = logits.copy()
    want[5] += np.float32(1.5)  # the bias comes first
    x = want[seen]
    x = np.where(x > 0, x / np.float32(repetition), x * np.float32(repetition))
    subtract = np.float32(presence) + np.float32(frequency) * outputs.astype(np.float32)
    want[seen] = np.where(outputs > 0, x - subtract, x)
    options = {
        "repetition_penalty": repetition,
        "presence_penalty": presence,
        "frequency_penalty": frequency,
        "count_tokens": seen,
        "count_outputs": outputs,
        "bias_tokens": np.array([5], np.int32),
        "bias_values": np.array([1.5], np.float32),
    }
    for position in range(20):
        plain = token_of(want, position=position, top_k=9)
        assert token_of(logits, position=position, top_k=9, **options) == plain


# ---- log-probabilities ---------------------------------------------------------------------


@pytest.mark.parametrize("vocab_size", [*VOCAB_SIZES, 151_936])
def test_logprobs_match_float64(isa: str, vocab_size: int) -> None:
    for spread in (0.1, 3.0, 30.0):
        logits = make_logits(vocab_size, spread=spread)
        exact = log_softmax(logits)
        n_top = min(20, vocab_size)
        _, token, logprob, best = _native.sample(logits, n_top=n_top, temperature=0.7)
        scale = LOGPROB_TOLERANCE * max(1.0, spread)
        assert abs(logprob - exact[token]) <= scale
        assert [t for t, _ in best] == ranked(logits)[:n_top].tolist()
        assert max(abs(value - exact[t]) for t, value in best) <= scale


def test_logprobs_are_of_the_raw_logits(isa: str) -> None:
    logits = make_logits(64)
    mask = np.array([0, 2**32 - 1], np.uint32)
    options = {"temperature": 0.1, "top_k": 2, "min_p": 0.5, "mask": mask}
    _, token, logprob, best = _native.sample(logits, n_top=3, **options)
    assert token >= 32
    assert logprob == pytest.approx(log_softmax(logits)[token], abs=1e-5)
    assert [t for t, _ in best] == ranked(logits)[:3].tolist()


def test_score_rows_match_float64(isa: str) -> None:
    logits = np.stack([make_logits(1001, seed) for seed in range(6)])
    targets = np.array([0, 1000, 7, 16, int(np.argmax(logits[4])), 999], np.int32)
    finite, logprobs, greedy, top, top_logprobs = _native.score_rows(logits, targets, 5)
    exact = log_softmax(logits)
    assert finite.all()
    assert np.abs(logprobs - exact[np.arange(6), targets]).max() <= LOGPROB_TOLERANCE
    assert greedy.tolist() == logits.argmax(axis=1).tolist()
    for row in range(6):
        assert top[row].tolist() == ranked(logits[row])[:5].tolist()
        assert np.abs(top_logprobs[row] - exact[row, top[row]]).max() <= LOGPROB_TOLERANCE


# ---- what must never become a token --------------------------------------------------------


@pytest.mark.parametrize("vocab_size", [1, 17, 128, 1000, 4099])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_logit_never_becomes_a_token(isa: str, vocab_size: int, bad: float) -> None:
    for where in {0, vocab_size // 2, vocab_size - 1}:
        logits = make_logits(vocab_size)
        logits[where] = bad
        for options in ({"temperature": 0}, {}, {"top_k": 5}, {"top_p": 0.5}, {"n_top": 1}):
            status, token, logprob, best = _native.sample(logits, **options)
            assert (status, token, logprob, len(best)) == ("nonfinite", -1, 0.0, 0)
        good = make_logits(vocab_size)
        targets = np.zeros(2, np.int32)
        finite, logprobs, greedy, _, _ = _native.score_rows(np.stack([logits, good]), targets)
        assert finite.tolist() == [False, True]
        assert np.isnan(logprobs).tolist() == [True, False]
        assert greedy.tolist() == [-1, int(np.argmax(good))]


def test_padding_behind_the_vocabulary_is_not_read(isa: str) -> None:
    padded = np.full(64, np.nan, np.float32)
    padded[:50] = make_logits(50)
    assert token_of(padded[:50], temperature=0) == int(np.argmax(padded[:50]))


@pytest.mark.parametrize("scale", [1e38, -1e38])
def test_the_largest_finite_logits_are_fine(isa: str, scale: float) -> None:
    logits = np.full(70, -scale, np.float32)
    logits[33] = scale
    want = {33} if scale > 0 else set(range(70)) - {33}
    for options in ({}, {"temperature": 0.01}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}):
        assert token_of(logits, **options) in want


# ---- one answer on every machine -----------------------------------------------------------


@pytest.mark.parametrize("vocab_size", [50, 129, 5003, 49_152])
def test_every_isa_gives_the_same_bits(
    vocab_size: int, on_every_isa: Callable[[Callable[[], Any]], dict[str, Any]]
) -> None:
    logits = np.stack([make_logits(vocab_size, seed) for seed in range(3)])
    targets = np.array([0, 1, 49], np.int32)

    def everything() -> bytes:
        bits = b""
        for options in FILTERS:
            for position in range(10):
                out = _native.sample(logits[0], position=position, n_top=4, **options)
                bits += repr(out).encode()
        return bits + b"".join(x.tobytes() for x in _native.score_rows(logits, targets, 3))

    results = on_every_isa(everything)
    assert {name for name, bits in results.items() if bits != results["scalar"]} == set()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 2**31}, "top_k"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": math.nan}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"presence_penalty": math.inf}, "presence_penalty"),
        ({"frequency_penalty": math.nan}, "frequency_penalty"),
        ({"n_top": 9}, "n_top"),
        ({"n_top": -2}, "n_top"),
        ({"mask": np.zeros(0, np.uint32)}, "mask has 0 words"),
        ({"bias_tokens": np.zeros(1, np.int32)}, "same length"),
        (
            {"bias_tokens": np.array([8], np.int32), "bias_values": np.zeros(1, np.float32)},
            "token 8 is not in",
        ),
        (
            {"bias_tokens": np.array([0], np.int32), "bias_values": np.full(1, np.inf, np.float32)},
            "finite or -inf",
        ),
        (
            {"count_tokens": np.array([-1], np.int32), "count_outputs": np.zeros(1, np.int32)},
            "token -1",
        ),
        (
            {"count_tokens": np.array([1], np.int32), "count_outputs": np.full(1, -1, np.int32)},
            "negative",
        ),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _native.sample(np.zeros(8, np.float32), **options)


def test_targets_out_of_range_are_refused() -> None:
    logits = np.zeros((2, 8), np.float32)
    for targets in ([0, 8], [-1, 0], [0]):
        with pytest.raises(ValueError):
            _native.score_rows(logits, np.array(targets, np.int32))
