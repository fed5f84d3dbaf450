"""What `systems/think-deep-think-fast.md` demands of votes, markers and budgets.

The parts that need a trained model are in `test_trained_arithmetic` and `benchmarks.deep_fast`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from inspect import signature
from itertools import combinations, pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks.markers import MODELS, traces_of
from capax import LLM, SamplingParams
from capax.endpoints import (
    Choice,
    Completion,
    GenerateRequest,
    Ledger,
    Price,
    TokenScores,
)
from capax.endpoints.local import LocalEndpoint
from capax.engine.outputs import Usage
from capax.errors import ConfigError, EndpointError
from capax.scaling.calibration import area_within, fit, hash_of, split
from capax.scaling.markers import Traces, marker_report
from capax.scaling.selection import Answers, accuracy_of, majority
from capax.scaling.strategies.strategy import answer, parse_strategy
from capax.scaling.strategies.voting import weights
from capax.scaling.voting_curve import vote_accuracy
from tests.models import gguf_model


def counted(right: int, wrong: list[int], missing: int, k: int) -> float:
    """Average over all k-subsets, ties shared."""
    names = ["right"] * right + [f"w{i}" for i, size in enumerate(wrong) for _ in range(size)]
    answers: list[str | None] = [*names, *([None] * missing)]
    problem = Answers(answers, np.array([a == "right" for a in answers]))
    shares = [
        majority(problem.codes[list(at)], None) @ problem.correct[list(at)]
        for at in combinations(range(len(answers)), k)
    ]
    return float(np.mean(shares))


@pytest.mark.parametrize(
    ("right", "wrong", "missing"),
    [(3, [4, 2], 0), (4, [3, 3], 0), (1, [1, 1, 1, 1], 2), (2, [5], 3), (0, [3, 2], 1), (5, [], 4)],
)
def test_the_curve_is_the_average_over_all_subsets(
    right: int, wrong: list[int], missing: int
) -> None:
    n = right + sum(wrong) + missing
    for k in range(1, n + 1):
        exact = vote_accuracy(right, wrong, k, without_answer=missing)
        assert exact == pytest.approx(counted(right, wrong, missing, k), abs=1e-9)


def test_reference_values_rise_before_they_fall() -> None:
    wrong = [25, 10, 5, 2, 1, 1]
    got = [vote_accuracy(20, wrong, k) for k in (1, 2, 3, 8, 32, 64)]
    assert got == pytest.approx([0.3125, 0.3125, 0.322421, 0.351425, 0.231324, 0.0], abs=5e-7)


def test_two_classes_with_the_wrong_one_larger_only_fall() -> None:
    curve = [vote_accuracy(4, [6], k) for k in range(1, 11)]
    assert curve[0] == pytest.approx(0.4)
    assert curve[1] == pytest.approx(0.4)
    assert curve[2] == pytest.approx(1 / 3)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(curve))
    assert vote_accuracy(400, [600], 3) == pytest.approx(0.35186, abs=5e-6)


def test_limits_are_one_sample_and_the_whole_vote() -> None:
    assert vote_accuracy(7, [2, 1], 1) == pytest.approx(0.7)
    assert vote_accuracy(7, [2, 1], 10) == pytest.approx(1.0)
    assert vote_accuracy(3, [3, 3], 9) == pytest.approx(1 / 3)


def test_random_subsets_agree_with_the_curve() -> None:
    answers = ["r"] * 20 + ["a"] * 25 + ["b"] * 10 + ["c"] * 9
    problem = Answers(answers, np.array([a == "r" for a in answers]))
    [found] = accuracy_of(majority, [problem], [9], subsets=2000, seed=3)
    exact = vote_accuracy(20, [25, 10, 9], 9)
    assert abs(found.accuracy - exact) <= 4 * found.std / np.sqrt(2000)


@pytest.mark.parametrize("k", [0, 11])
def test_k_is_of_the_samples(k: int) -> None:
    with pytest.raises(ConfigError):
        vote_accuracy(4, [6], k)


def pool(seed: int, n: int = 12) -> list[Choice]:
    """Samples as an endpoint gives them: 42 more often, and more shortly, than others."""
    rng = np.random.default_rng(seed)
    choices = []
    for index in range(n):
        right = rng.random() < 0.5
        words = ["wait," for _ in range(int(rng.integers(0, 6 if right else 12)))]
        text = " ".join([*words, "so it is", "42" if right else str(rng.integers(3))])
        logprobs = tuple(map(float, -rng.random(len(words) + 4)))
        choices.append(Choice(index, text, "stop", logprobs, None, len(logprobs)))
    return choices


class Replayed:
    """An endpoint whose answers are a pool's; it makes none."""

    name = "replayed"
    max_choices = 128

    def __init__(self, choices: list[Choice]) -> None:
        self.ledger = Ledger()
        self.choices = choices
        self.n_calls = 0

    async def count_prompt(self, prompt: object) -> int:
        return 5

    async def generate(self, request: GenerateRequest) -> Completion:
        self.n_calls += 1
        n_new = sum(c.n_tokens or 0 for c in self.choices)
        with self.ledger.call(
            self.name, request.purpose, Price(), prompt_tokens=5, new_tokens=n_new,
            also=request.ledger,
        ) as call:  # fmt: skip
            call.settle(Usage(5, n_new))
        return Completion(tuple(self.choices), Usage(5, n_new), 0.0, self.name)

    async def score(self, text: str) -> TokenScores:
        raise EndpointError("no probabilities")

    async def aclose(self) -> None:
        pass


PARALLEL = (
    "majority:n=12", "majority:n=12,keep=6", "majority:n=12,votes=short,power=2",
    "majority:n=12,votes=confidence", "majority:n=12,votes=marked,marks=0/-1/0/-1/0.5",
    "majority:n=12,votes=marked_odds,marks=0/-1/0/-1/0.5",
)  # fmt: skip


@pytest.mark.parametrize("spec", PARALLEL)
def test_votes_are_functions_of_the_pool_on_disk(tmp_path: Path, spec: str) -> None:
    """A pool that was written and read again is voted on alike, without one call to a model."""
    strategy = parse_strategy(spec).options
    for seed in range(8):
        endpoint = Replayed(pool(seed))
        params = SamplingParams(max_tokens=32, temperature=1.0, seed=1)
        got = asyncio.run(answer(strategy, endpoint, "q", params))
        assert endpoint.n_calls == 1
        file = tmp_path / f"{seed}.json"
        file.write_bytes(msgspec.json.encode(endpoint.choices))
        again = msgspec.json.decode(file.read_bytes(), type=list[Choice])
        assert strategy.elect(again).text == got.text
        assert endpoint.n_calls == 1


def solutions() -> Traces:
    """The published solutions of GSM8K's test problems, as counts."""
    file = Path(__file__).parent / "data" / "gsm8k_solutions.csv"
    return traces_of(np.loadtxt(file, np.int64, delimiter=",").reshape(-1, 4, 5))


def test_the_report_on_published_solutions_shows_simpsons_paradox() -> None:
    """Pooled, right ones are shorter; within problems longer; less their models' means alike."""
    found = marker_report(solutions())
    assert found.n_samples == 5276
    assert found.n_markers == {"hedging": 2, "thinking": 8, "discourse": 8076}
    pooled, within, by_source = (f["length"] for f in (found.pooled, found.within, found.by_source))
    assert (round(pooled.right, 1), round(pooled.wrong, 1)) == (43.9, 53.9)
    assert within.n_problems == by_source.n_problems == 731
    assert within.mean == pytest.approx(2.75, abs=0.005)
    assert within.median == 3.5
    assert within.p == pytest.approx(3.4e-6, rel=0.01)
    assert within.verdict == "more"
    assert by_source.mean == pytest.approx(0.23, abs=0.005)
    assert by_source.p == pytest.approx(0.247, abs=0.001)
    assert by_source.verdict == "no effect"
    # Too rare to say anything, however small the means that are taken off.
    assert found.by_source["hedging"].p == found.by_source["thinking"].p == 1.0


def test_the_models_of_the_published_solutions_differ() -> None:
    data = solutions()
    for name, rate, length in zip(
        MODELS, (0.217, 0.390, 0.347, 0.563), (48.5, 48.7, 48.5, 54.8), strict=True
    ):
        own = data.sources == name
        assert data.correct[own].mean() == pytest.approx(rate, abs=5e-4)
        assert data.features[own, 0].mean() == pytest.approx(length, abs=0.05)


def test_marks_are_fitted_on_problems_that_are_not_judged() -> None:
    dev, test = split(solutions())
    calibration = fit(dev)
    assert not calibration.problem_hashes & {hash_of(name) for name in np.unique(test.problems)}
    area = area_within(calibration, test)
    assert area.n_problems >= 100
    assert area.shuffled == pytest.approx(0.5, abs=0.03)
    with pytest.raises(ConfigError, match="were fitted on"):
        area_within(calibration, dev)


def test_a_marked_vote_cannot_see_the_reference() -> None:
    """Other verdicts on the problems that are judged change no weight and no winner."""
    data = solutions()
    dev, test = split(data)
    flipped = replace(
        data, correct=np.where(np.isin(data.problems, test.problems), False, data.correct)
    )
    marks, again = fit(dev).marks, fit(split(flipped)[0]).marks
    assert marks == again
    for seed in range(20):
        strategy = parse_strategy(f"majority:n=12,votes=marked,marks={marks}").options
        chosen = strategy.elect(pool(seed))
        endpoint = Replayed(pool(seed))
        params = SamplingParams(max_tokens=32, temperature=1.0, seed=1)
        got = asyncio.run(answer(strategy, endpoint, "q", params))
        assert got.text == chosen.text
    assert not {"reference", "correct"} & set(signature(weights).parameters)


EVERY = (
    *PARALLEL, "single", "majority:n=6,stop=early", "majority:n=6,stop=first", "best:n=3",
    "best:n=3,judge=list", "revise:n=3", "revise:n=2,k=2", "mixture:k=2", "truncate:tokens=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny() -> Iterator[LLM]:
    with LLM(gguf_model("llama"), threads=1, n_sequences=16, parallel=16) as llm:
        yield llm


@pytest.mark.parametrize("spec", EVERY)
def test_the_ledger_is_the_engines_counter_and_no_cap_is_passed(tiny: LLM, spec: str) -> None:
    """On 20 problems the ledger's output tokens are those the engine sampled."""

    async def drive() -> int:
        async with LocalEndpoint(tiny) as endpoint:
            for i in range(20):
                cap = 90 + 9 * i
                params = SamplingParams(max_tokens=8, temperature=1.0, seed=i)
                got = await answer(
                    parse_strategy(spec).options, endpoint, f"{i} and {i} is", params,
                    max_total_tokens=cap,
                )  # fmt: skip
                assert got.usage.total_tokens <= cap
            return endpoint.ledger.totals.completion_tokens

    before = tiny.engine.stats.generation_tokens
    assert asyncio.run(drive()) == tiny.engine.stats.generation_tokens - before
