"""The Python face of the sampler: what a choice remembers, and what it never depends on."""

import numpy as np
import pytest

from capax import _native
from capax.decoding import Sampled, Sampler, SamplingParams, score_rows
from capax.errors import CapaxError

VOCAB_SIZE = 300


def make_rows(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, VOCAB_SIZE)).astype(np.float32) * 2


def tokens_of(sampler: Sampler, rows: np.ndarray) -> list[int]:
    return [sampled.token for row in rows if (sampled := sampler.sample(row)) is not None]


def test_the_same_seed_gives_the_same_tokens() -> None:
    rows = make_rows(50)
    params = SamplingParams(seed=7, top_p=0.9)
    first = tokens_of(Sampler(params, 0, [1, 2, 3]), rows)
    assert tokens_of(Sampler(params, 0, [1, 2, 3]), rows) == first
    assert tokens_of(Sampler(params.with_seed(8), 0, [1, 2, 3]), rows) != first


def test_choices_of_a_request_differ() -> None:
    rows = make_rows(20)
    params = SamplingParams(seed=7, n=16)
    assert len({tuple(tokens_of(Sampler(params, i, [1]), rows)) for i in range(16)}) == 16


def test_a_resumed_choice_goes_on_as_if_never_stopped() -> None:
    rows = make_rows(10)
    params = SamplingParams(seed=3, presence_penalty=1.0)
    whole = tokens_of(Sampler(params, 0, [1, 2]), rows)
    tail = Sampler(SamplingParams(seed=3), 0, [1, 2, *whole[:6]])
    assert tail.position == 8
    plain = Sampler(SamplingParams(seed=3), 0, [0] * 8)
    assert tokens_of(tail, rows[6:]) == tokens_of(plain, rows[6:])


@pytest.mark.parametrize(("seed", "same_as"), [(-1, 2**64 - 1), (-(2**63), 2**63), (0, 0)])
def test_negative_seeds_are_taken_modulo_two_to_the_64(seed: int, same_as: int) -> None:
    rows = make_rows(20)
    twins = [Sampler(SamplingParams(seed=s), 0, [1]) for s in (seed, same_as)]
    assert tokens_of(twins[0], rows) == tokens_of(twins[1], rows)


def test_without_a_seed_every_choice_draws_its_own() -> None:
    rows = make_rows(20)
    drawn = {tuple(tokens_of(Sampler(SamplingParams(), 0, [1]), rows)) for _ in range(4)}
    assert len(drawn) == 4


def test_frequency_penalty_counts_what_was_chosen() -> None:
    """Greedy on constant logits: each repeat costs 1, so tokens take turns by the formula."""
    row = np.zeros(VOCAB_SIZE, np.float32)
    row[:3] = [2.5, 1.9, 0.5]
    params = SamplingParams(temperature=0, frequency_penalty=1.0)
    logits, want = row.copy(), []
    for _ in range(200):
        want.append(int(np.argmax(logits)))
        logits[want[-1]] -= 1
    assert tokens_of(Sampler(params, 0, [5, 5]), np.tile(row, (200, 1))) == want


def test_presence_penalty_ignores_the_prompt_and_repetition_penalty_does_not() -> None:
    row = np.zeros(VOCAB_SIZE, np.float32)
    row[[4, 9]] = [2.0, 1.8]
    prompt = [4, 4]
    presence = Sampler(SamplingParams(temperature=0, presence_penalty=1.0), 0, prompt)
    assert tokens_of(presence, np.tile(row, (3, 1))) == [4, 9, 4]
    repetition = Sampler(SamplingParams(temperature=0, repetition_penalty=1.5), 0, prompt)
    assert tokens_of(repetition, np.tile(row, (2, 1))) == [9, 4]


def test_logit_bias_moves_the_choice() -> None:
    row = make_rows(1)[0]
    params = SamplingParams(temperature=0, logit_bias={17: 100.0})
    assert tokens_of(Sampler(params, 0, [1]), row[None]) == [17]


def test_logprobs_come_with_the_best_tokens() -> None:
    row = make_rows(1)[0]
    wide = row.astype(np.float64)
    exact = wide - np.log(np.exp(wide).sum())
    sampled = Sampler(SamplingParams(seed=1, logprobs=3), 0, [1]).sample(row)
    assert isinstance(sampled, Sampled)
    assert sampled.logprob == pytest.approx(exact[sampled.token], abs=1e-5)
    assert [token for token, _ in sampled.top] == np.argsort(-row)[:3].tolist()
    assert Sampler(SamplingParams(seed=1), 0, [1]).sample(row) == sampled._replace(top=[])


def test_a_row_that_is_not_finite_gives_no_token_and_moves_nothing() -> None:
    rows = make_rows(3)
    bad = rows[1].copy()
    bad[40] = np.nan
    samplers = [Sampler(SamplingParams(seed=2), i, [1]) for i in range(2)]
    got = [s.sample(row) for s, row in zip(samplers, (bad, rows[0]), strict=True)]
    assert got[0] is None
    assert got[1] == Sampler(SamplingParams(seed=2), 1, [1]).sample(rows[0])
    assert [s.position for s in samplers] == [1, 2]


def test_a_mask_that_allows_nothing_is_an_error() -> None:
    nothing = np.zeros(-(-VOCAB_SIZE // 32), np.uint32)
    with pytest.raises(CapaxError, match="no token is allowed"):
        Sampler(SamplingParams(), 0, [1]).sample(make_rows(1)[0], mask=nothing)


def test_score_rows_say_what_was_greedy() -> None:
    rows = make_rows(4)
    targets = rows.argmax(axis=1).astype(np.int32)
    targets[2] = 0
    scored = score_rows(rows, targets, n_top=2)
    assert scored.is_greedy == [True, True, False, True]
    assert [len(top) for top in scored.top] == [2] * 4
    assert scored.logprobs[0] == scored.top[0][0][1]
    assert score_rows(rows[:0], targets[:0]) == ([], [], [])


def test_score_rows_refuse_a_row_that_is_not_finite() -> None:
    rows = make_rows(3)
    rows[1, 7] = np.inf
    with pytest.raises(CapaxError, match="row 1 of 3 are not finite"):
        score_rows(rows, np.zeros(3, np.int32))


def test_stream_zero_is_the_draw() -> None:
    """A decoder that needs the uniform of a draw gets the same number."""
    row = make_rows(1)[0]
    probs = np.exp(row.astype(np.float64))
    for position in range(30):
        uniform = _native.philox_uniform(5, 2, position)
        want = int(np.searchsorted(np.cumsum(probs / probs.sum()), uniform, side="right"))
        assert tokens_of(Sampler(SamplingParams(seed=5), 2, [0] * position), row[None]) == [want]
