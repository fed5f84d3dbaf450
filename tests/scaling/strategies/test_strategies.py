"""Strategies: what they choose, what they ask, and that nothing is spent beyond the budget."""

from __future__ import annotations

import asyncio
import hashlib
import random
from dataclasses import replace
from typing import Any

import pytest

from capax import SamplingParams
from capax.endpoints import BudgetExceeded, Choice, GenerateRequest
from capax.errors import ConfigError, EndpointError
from capax.methods import registered
from capax.scaling.strategies.majority import is_decided
from capax.scaling.strategies.strategy import StrategyAnswer, answer, parse_strategy
from capax.scaling.strategies.voting import answer_of, vote_of, voters, winner
from tests.scaling.strategies.talker import PROMPT_TOKENS, Reply, Talker

QUESTION = [{"role": "user", "content": "What is 6 times 7?"}]
PARAMS = SamplingParams(max_tokens=8, temperature=0.8, seed=1)
EVERY = (
    "single", "majority:n=5", "majority:n=5,keep=3", "majority:n=5,votes=short",
    "majority:n=5,votes=confidence", "majority:n=5,stop=early", "majority:n=5,stop=first",
    "best:n=4", "best:n=4,judge=list", "revise:n=3", "revise:n=2,k=3,final=vote", "mixture:k=3",
    "truncate:tokens=3", "truncate", "majority:n=5,votes=marked,marks=1/-1/0/0/0",
    "majority:n=5,votes=marked_odds,marks=-1/-1/0/0/0",
    "swarm:n=3,judges=2",
)  # fmt: skip


def noisy(request: GenerateRequest, number: int) -> str:
    """42 in half of the answers, of one to nine words."""
    draw = hashlib.sha256(f"{request.params.seed} {number}".encode()).digest()
    if request.purpose == "judge":
        return str(draw[0] % 10)
    return "well " * (draw[1] % 9) + ("42" if draw[0] < 128 else str(draw[2]))


def ask(
    spec: str, endpoint: Talker, params: SamplingParams = PARAMS, budget: int | None = None
) -> StrategyAnswer:
    strategy = parse_strategy(spec).options
    return asyncio.run(answer(strategy, endpoint, QUESTION, params, max_total_tokens=budget))


def replies(*texts: str) -> Reply:
    return lambda request, number: texts[number % len(texts)]


def test_the_majority_answers_and_everything_is_counted() -> None:
    endpoint = Talker(replies("It is 41.", "It is 42.", "Surely 42"))
    got = ask("majority:n=3", endpoint)
    assert got.text == "It is 42."
    assert (got.n_calls, got.usage.prompt_tokens, got.usage.completion_tokens) == (1, 10, 8)
    assert got.is_complete
    assert got.candidates == ("It is 41.", "It is 42.", "Surely 42")


def test_the_number_of_answers_is_part_of_every_spelling() -> None:
    spelled = ["majority:n=8", "best:n=8", "revise:n=3", "swarm:n=4", "single", "mixture"]
    assert [str(parse_strategy(name.partition(":")[0])) for name in spelled] == spelled
    assert str(parse_strategy("majority:keep=3,n=8")) == "majority:n=8,keep=3"


def test_every_strategy_is_listed_with_its_options() -> None:
    assert {m.name for m in registered("strategy")} == {
        "single", "majority", "best", "revise", "mixture", "swarm", "truncate",
    }  # fmt: skip


@pytest.mark.parametrize("spec", EVERY)
def test_usage_is_the_sum_of_all_calls(spec: str) -> None:
    endpoint = Talker(noisy)
    got = ask(spec, endpoint)
    totals = endpoint.ledger.totals
    assert got.usage.completion_tokens == totals.completion_tokens == endpoint.n_sampled
    assert got.usage.prompt_tokens == totals.prompt_tokens
    assert got.n_calls == totals.n_calls == len(endpoint.asked)
    assert got.is_complete
    assert got.text in got.candidates


@pytest.mark.parametrize("spec", EVERY)
@pytest.mark.parametrize("budget", [11, 13, 18, 25, 40, 77, 150])
def test_no_strategy_spends_a_token_too_much(spec: str, budget: int) -> None:
    endpoint = Talker(noisy)
    got = ask(spec, endpoint, budget=budget)
    assert endpoint.ledger.totals.tokens == got.usage.total_tokens <= budget
    assert got.text or budget < 20


@pytest.mark.parametrize("spec", EVERY)
def test_a_budget_below_one_answer_is_an_error(spec: str) -> None:
    with pytest.raises(BudgetExceeded, match="raise it"):
        ask(spec, Talker(noisy), budget=PROMPT_TOKENS)


@pytest.mark.parametrize("spec", EVERY)
def test_a_call_that_fails_leaves_the_best_of_the_others(spec: str) -> None:
    endpoint = Talker(noisy, fail_at=(1, 3))
    if "single" in spec:
        assert ask(spec, endpoint).is_complete
        return
    got = ask(spec, endpoint, budget=200)
    assert got.is_complete == (len(endpoint.asked) == 1)
    assert got.usage.total_tokens == endpoint.ledger.totals.tokens <= 200


@pytest.mark.parametrize("spec", EVERY)
def test_an_endpoint_that_always_fails_is_an_error(spec: str) -> None:
    with pytest.raises(EndpointError, match="no answer today"):
        ask(spec, Talker(noisy, fail_at=range(1000)))


@pytest.mark.parametrize("spec", EVERY)
def test_the_same_seed_gives_the_same_answer(spec: str) -> None:
    assert ask(spec, Talker(noisy)) == ask(spec, Talker(noisy))


def test_what_short_answers_leave_buys_further_ones() -> None:
    endpoint = Talker(replies("42"))
    got = ask("majority:n=6", endpoint, budget=PROMPT_TOKENS * 3 + 22)
    # 42 tokens of room: 5 answers of up to 8 fit, take one each, and the sixth fits again.
    assert [r.params.n for r in endpoint.asked] == [5, 1]
    assert len(got.candidates) == 6
    assert got.is_complete


def test_greedy_requests_are_sampled_where_answers_must_differ() -> None:
    endpoint = Talker(noisy)
    ask("majority:n=2", endpoint, SamplingParams(max_tokens=8, temperature=0.0))
    assert endpoint.asked[0].params.temperature == 0.7
    ask("single", endpoint, SamplingParams(max_tokens=8, temperature=0.0))
    assert endpoint.asked[1].params.temperature == 0.0


def test_stopping_early_never_changes_the_vote() -> None:
    rng = random.Random(5)
    saved = 0
    for case in range(60):
        texts = [rng.choice("1112") for _ in range(9)]
        turns = [rng.randrange(1, 9) for _ in texts]

        def reply(request: GenerateRequest, number: int, texts: list[str] = texts) -> str:
            return texts[number]

        def turns_of(number: int, turns: list[int] = turns) -> int:
            return turns[number]

        early = ask("majority:n=9,stop=early", Talker(reply, turns=turns_of))
        counts = [texts.count("1"), texts.count("2")]
        assert early.text == ("1" if counts[0] > counts[1] else "2"), case
        saved += 9 - len(early.candidates)
    assert saved > 0


@pytest.mark.parametrize(
    ("answers", "n_running", "decided"),
    [
        (["a", "a"], 1, True),
        (["a", "a"], 2, False),
        (["a", "a", "b"], 1, False),
        ([None], 0, False),
    ],
)
def test_when_a_vote_is_decided(answers: list[str | None], n_running: int, decided: bool) -> None:
    assert is_decided(answers, n_running) == decided


def test_the_first_to_finish_vote_and_the_others_are_cancelled() -> None:
    endpoint = Talker(lambda r, number: str(number), turns=lambda number: 20 - 4 * number)
    got = ask("majority:n=4,stop=first,keep=2", endpoint)
    assert sorted(got.candidates) == ["2", "3"]
    assert got.usage.completion_tokens == endpoint.n_sampled == 2


def test_the_shortest_answers_vote() -> None:
    endpoint = Talker(replies("so it must be 7", "it may be 7", "42"))
    assert ask("majority:n=3", endpoint).text == "so it must be 7"
    assert ask("majority:n=3,keep=1", endpoint).text == "42"
    assert ask("majority:n=3,votes=short,power=3", endpoint).text == "42"


def test_the_judge_sees_no_more_than_question_and_answer() -> None:
    def reply(request: GenerateRequest, number: int) -> str:
        if request.purpose != "judge":
            return f"It is {number}."
        shown: Any = request.prompt
        return "9" if "It is 2." in shown[1]["content"] else "10 no, 3"

    endpoint = Talker(reply)
    assert ask("best:n=3", endpoint).text == "It is 0."  # the first of those with 10
    judged = [r for r in endpoint.asked if r.purpose == "judge"]
    assert len(judged) == 3
    assert all(r.params.temperature == 0 for r in judged)
    assert [m["role"] for m in judged[0].prompt] == ["user", "assistant", "user"]  # type: ignore[index]


def test_the_judge_of_a_list_names_a_number() -> None:
    def reply(request: GenerateRequest, number: int) -> str:
        return "number 2" if request.purpose == "judge" else f"It is {number}."

    assert ask("best:n=3,judge=list", Talker(reply)).text == "It is 1."


def test_a_revision_sees_the_answer_before_it() -> None:
    endpoint = Talker(lambda request, number: str(number))
    got = ask("revise:n=3", endpoint)
    assert got.text == "2"
    third: Any = endpoint.asked[2].prompt
    assert [m["content"] for m in third[:2]] == ["What is 6 times 7?", "1"]


def test_a_layer_sees_the_drafts_of_the_one_before() -> None:
    endpoint = Talker(lambda request, number: f"draft {number}")
    got = ask("mixture:k=2,layers=2", endpoint)
    final: Any = endpoint.asked[-1].prompt
    assert "draft 0" in final[-1]["content"]
    assert "draft 1" in final[-1]["content"]
    assert len(got.candidates) == 3


@pytest.mark.parametrize(
    "spec",
    ["majority:n=0", "majority:keep=9", "majority:n=2000", "revise:n=0", "best:judge=me", "oracle",
     "majority:stop=early,votes=short", "majority:votes=marked", "majority:marks=0/0/0/0/0",
     "majority:votes=marked,marks=0/0/0", "truncate:tokens=0", "truncate:answer_tokens=0",
     "truncate:cue=", "majority:votes=marked,marks=0/0/0/0/inf"],
)  # fmt: skip
def test_a_strategy_that_is_none_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError):
        parse_strategy(spec)


def test_n_is_the_strategys_own() -> None:
    with pytest.raises(ConfigError, match="leave n out"):
        ask("single", Talker(noisy), SamplingParams(max_tokens=4, n=2))


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (r"Thus \boxed{1,234}.", "1234"),
        ("5 + 5\n#### 10", "10"),
        ("The answer is (b).", "B"),
        ("The answer is Paris, of course.", "paris, of course"),
        ("first 3, then 4.", "4"),
        ("  Blue \n Whale. ", "blue whale"),
        ("", None),
    ],
)
def test_what_a_vote_is_for(text: str, read: str | None) -> None:
    assert answer_of(text) == read


def test_an_answer_that_was_cut_off_votes_only_for_what_it_marks() -> None:
    trial = Choice(0, "3 + 4 and 5", "length")
    assert vote_of(trial) is None
    assert vote_of(trial, "number") is None
    assert vote_of(replace(trial, finish_reason="stop")) == "5"
    assert vote_of(replace(trial, text="The answer is 7.\nTo see this, 3")) == "7"
    ended = Choice(1, "8", "stop")
    assert winner([trial, trial, ended]) == ended
    assert voters([trial, ended]) == [ended]
    assert winner([trial, replace(trial, text="9 5")]) == trial


def test_a_budget_that_cuts_the_last_answer_gives_it_no_short_vote() -> None:
    def reply(request: GenerateRequest, number: int) -> str:
        return "it is surely 9" if request.params.max_tokens == 8 else "1 is not what it is"

    spec, budget = "majority:n=3,votes=short,power=4", PROMPT_TOKENS * 2 + 11
    got = ask(spec, Talker(reply), budget=budget)
    assert got.candidates[-1] == "1 is not"  # three tokens were left
    assert got.text == "it is surely 9"


def test_marks_outvote_a_majority_of_what_marks_wrong_answers() -> None:
    endpoint = Talker(replies("wait, hmm 7", "wait no 7", "so it is 42", "it is 41"))
    assert ask("majority:n=4", endpoint).text == "wait, hmm 7"
    endpoint = Talker(replies("wait, hmm 7", "wait no 7", "so it is 42", "it is 41"))
    marked = "majority:n=4,votes=marked,marks=0/0/0/-4/4"
    assert ask(marked, endpoint).text == "so it is 42"
    endpoint = Talker(replies("wait, hmm 7", "wait no 7", "so it is 42", "it is 41"))
    assert ask("majority:n=4,votes=marked,marks=0/0/0/0/0", endpoint).text == "wait, hmm 7"


def test_a_long_answer_is_cut_and_forced() -> None:
    def reply(request: GenerateRequest, number: int) -> str:
        return "42" if request.purpose == "force" else "let me think about this some more"

    endpoint = Talker(reply)
    got = ask("truncate:tokens=3,answer_tokens=2", endpoint)
    assert got.text == "let me think\n\n42"
    assert [r.purpose for r in endpoint.asked] == ["answer", "force"]
    assert [r.params.max_tokens for r in endpoint.asked] == [3, 2]
    shown: Any = endpoint.asked[1].prompt
    assert [m["content"] for m in shown[:2]] == ["What is 6 times 7?", "let me think"]
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (20, 4)
    assert answer_of(got.text) == "42"


def test_an_answer_that_ends_by_itself_is_not_forced() -> None:
    endpoint = Talker(replies("it is 42"))
    assert ask("truncate:tokens=3", endpoint).text == "it is 42"
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize(
    ("prompt", "thought", "shown"),
    [
        ("Q: 6 * 7? A:", "5 6 7 8", "Q: 6 * 7? A:5 6 7 so"),
        ("Q <think>", "5 6 7 8", "Q <think>5 6 7</think> so"),
        ("Q", "<think> 6 </think> 8 9", "Q<think> 6 </think> so"),
    ],
)
def test_a_text_goes_on_with_the_cue(prompt: str, thought: str, shown: str) -> None:
    endpoint = Talker(lambda r, number: " 42" if r.purpose == "force" else thought)
    strategy = parse_strategy("truncate:tokens=3,answer_tokens=2,cue=so").options
    got = asyncio.run(answer(strategy, endpoint, prompt, PARAMS))
    assert endpoint.asked[1].prompt == shown
    assert prompt + got.text == f"{shown} 42"


@pytest.mark.parametrize(("budget", "limits"), [(50, [8, 8]), (36, [4, 8]), (26, [8]), (12, [2])])
def test_the_cut_leaves_room_for_the_answer(budget: int, limits: list[int]) -> None:
    endpoint = Talker(lambda r, number: "a b c d e f g h i j k l")
    got = ask("truncate:answer_tokens=8", endpoint, budget=budget)
    assert [r.params.max_tokens for r in endpoint.asked] == limits
    assert got.usage.total_tokens <= budget
