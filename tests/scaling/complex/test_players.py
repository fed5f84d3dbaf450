"""What players learn is right, never held out, and what the commands will ask them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from capax import LLM
from capax.endpoints import Message
from capax.errors import CapaxError
from capax.files.chat_template import encode_chat
from capax.files.tokenizer import Tokenizer
from capax.scaling.complex import Instance, family_named, generate, three_sat, tsp
from capax.scaling.complex.players import PLAYERS, formulas, tours
from capax.scaling.complex.players.held_out import held_out, is_held_out, key_of
from capax.training.records import END, Record

TSP_ROAD = re.compile(r"([A-K])([A-K]) (\d+)")
LOOK = re.compile(r" ([A-K])(?: (\d+)|!)")


def records(name: str, n: int, seed: int = 3) -> Iterator[Record]:
    player, rng = PLAYERS[name], np.random.default_rng(seed)
    for _ in range(n):
        record = player.record(rng)
        assert record.answer[-1] == END
        assert {*record.prompt, *record.answer[:-1]} <= set(player.tokens)
        assert len(record.prompt) + len(record.answer) <= player.context_len
        yield record


def weights_of(prompt: str) -> np.ndarray:
    roads = TSP_ROAD.findall(prompt.partition("!")[0])
    n = max(ord(b) for _, b, _ in roads) - 64
    weights = np.zeros((n, n), int)
    for a, b, w in roads:
        weights[ord(a) - 65, ord(b) - 65] = weights[ord(b) - 65, ord(a) - 65] = int(w)
    return weights


def literals_of(text: str) -> list[int]:
    return [(ord(c.lower()) - 96) * (1 if c.islower() else -1) for c in text]


def clauses_of(prompt: str) -> np.ndarray:
    return np.array([literals_of(c) for c in prompt[2:].partition("!")[0].split(",")[:-1]])


@pytest.mark.parametrize("name", ["tsp-direct", "tsp-search"])
def test_tours_to_learn_are_shortest_and_hints_are_true(name: str) -> None:
    n_best = n_hinted = 0
    for record in records(name, 150):
        prompt, answer = "".join(record.prompt), "".join(record.answer[:-1])
        weights = weights_of(prompt)
        assert not is_held_out(key_of("tsp", weights.tolist()))
        length, best = tsp.optimal_tours(weights)
        ruled_out = {(ord(a) - 65, ord(b) - 65) for a, b in re.findall(r"!(.)(.)", prompt)}
        n_hinted += bool(ruled_out)
        taken = {tuple(sorted(road)) for tour in best for road in pairwise([*tour, 0])}
        assert not ruled_out & taken
        family = family_named("tsp")
        read = family.extract(answer)
        assert read is not None
        n_best += family.is_right({"weights": weights.tolist(), "length": length}, read)
        tour = [int(city) for city in read.split("-")]
        assert not ruled_out & {tuple(sorted(road)) for road in pairwise([*tour, 0])}
        if name == "tsp-search":
            *tried, said = answer.partition("<")[0].split(";")
            lengths = [walked(text, weights, ruled_out) for text in tried]
            assert len(set(tried)) == len(tried) >= 1
            assert tsp.length_of(weights.tolist(), tour) == min(lengths) == int(said)
    assert 30 < n_hinted < 90
    assert n_best == 150 if name == "tsp-direct" else 120 < n_best <= 150


def walked(text: str, weights: np.ndarray, ruled_out: set[tuple[int, int]]) -> int:
    """Check every road and sum of a tour, and return its length."""
    here, total, free = 0, 0, set(range(1, len(weights)))
    steps = re.split(r"(->\d+ +\d+)", text)
    for looks, gone in zip(steps[::2], steps[1::2], strict=False):
        assert {ord(c) - 65 for c, _ in LOOK.findall(looks)} == (free or {0})
        for city, weight in LOOK.findall(looks):
            road = (min(here, ord(city) - 65), max(here, ord(city) - 65))
            assert (road in ruled_out) == (not weight)
            assert not weight or weights[road] == int(weight)
        there, so_far = map(int, re.findall(r"\d+", gone))
        assert there in (free or {0})
        assert (min(here, there), max(here, there)) not in ruled_out
        total += weights[here, there]
        assert so_far == total
        free.discard(there)
        here = there
    assert (here, free) == (0, set())
    return int(total)


@pytest.mark.parametrize("name", ["3sat-direct", "3sat-search"])
def test_assignments_to_learn_are_right_and_hints_are_clauses(name: str) -> None:
    n_hinted = n_none = 0
    for record in records(name, 150):
        prompt, answer = "".join(record.prompt), "".join(record.answer[:-1])
        clauses, n = clauses_of(prompt), ord(prompt[0]) - 96
        assert not is_held_out(key_of("3sat", three_sat.canonical_clauses(clauses)))
        found = [three_sat.spelled(int(a), n) for a in three_sat.solutions(clauses, n)]
        family = family_named("3sat")
        read = family.extract(answer)
        assert read is not None
        n_none += read == three_sat.NONE
        truth = {"n": n, "clauses": clauses.tolist(), "solutions": found}
        assert family.is_right(truth, read)
        for hint in re.findall(r"!([a-zA-Z]*),", prompt):
            n_hinted += 1
            assert not hint or literals_of(hint) in clauses.tolist()
    assert n_hinted > 20
    assert 20 < n_none < 80


def test_a_search_ends_with_a_solution_exactly_if_there_is_one() -> None:
    rng = np.random.default_rng(1)
    n_turns = 0
    for _ in range(200):
        n = int(rng.integers(4, 9))
        clauses = three_sat.draw_clauses(rng, n, three_sat.n_clauses(n, 4.26))
        tokens, values = formulas.search(n, clauses, rng)
        n_turns += tokens.count("/")
        solutions = three_sat.solutions(clauses, n)
        assert (values is None) == (solutions.size == 0)
        if values is not None:
            assert sum(1 << i for i, value in enumerate(values) if value) in solutions
            last = "".join(tokens).split("/")[-1].replace("?", "")
            assert sorted(literals_of(last), key=abs) == [
                i if value else -i for i, value in enumerate(values, 1)
            ]
    assert n_turns > 100


def test_all_tours_are_there_once_and_their_lengths_are_those_of_the_checker() -> None:
    weights = tsp.draw_weights(np.random.default_rng(0), 7)
    every = tours.all_tours(7)
    assert len({tuple(t) for t in every.tolist()}) == 360
    assert all(tsp.canonical(t) == t for t in every.tolist())
    lengths = tours.lengths_of(weights, every)
    assert [tsp.length_of(weights.tolist(), t) for t in every.tolist()] == lengths.tolist()
    assert lengths.min() == tsp.optimal_tours(weights)[0]


def test_held_out_tasks_differ_and_are_an_eighth() -> None:
    kept = held_out(family_named("3sat"), 5, 12)
    assert len({i.key for i in kept}) == 12
    assert all(is_held_out(i.key) for i in kept)
    assert Counter(i.cell for i in kept) == dict.fromkeys(("hard", "under", "over", "unique"), 3)
    drawn = list(generate(family_named("3sat"), [8], 400, 0))
    assert 0.07 < np.mean([is_held_out(i.key) for i in drawn]) < 0.19


def dialogue(instance: Instance, hints: list[str]) -> list[Message]:
    said: list[Message] = [{"role": "user", "content": instance.prompt}]
    for number, hint in enumerate(hints, 1):
        said.append({"role": "assistant", "content": family_named(instance.family).solve(instance)})
        said.append({"role": "user", "content": f"That is incorrect, {number} made. Hint: {hint}"})
    return said


@pytest.fixture(scope="module", params=["tsp-direct", "3sat-search"])
def reader(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Tokenizer]:
    """Return the name of a player and the tokenizer of a file that was hardly trained."""
    pytest.importorskip("torch")
    from capax.training.record_run import RecordRecipe, train_on_records, write_model

    player, folder = PLAYERS[request.param], tmp_path_factory.mktemp("player")
    recipe = RecordRecipe(task=player.name, steps=1, tokens=64, layers=1, width=32)
    model = train_on_records(player, recipe, folder)
    path = write_model(model, player, recipe, folder, "F32", chat_template=player.chat_template)
    with LLM(path, threads=1) as llm:
        return player.name, llm.tokenizer


def test_the_models_read_generated_tasks_and_hints_in_the_form_they_learnt(
    reader: tuple[str, Tokenizer],
) -> None:
    name, tokenizer = reader
    vocabulary = [*PLAYERS[name].tokens, END]
    family = family_named(name.partition("-")[0])
    for instance in generate(family, [4, 6, 10], 4, 1):
        if family.name == "tsp":
            hints = ["No shortest tour goes between 1 and 3.", "City 2 is not visited.",
                     "No closed tour in the asked form was found.",
                     "No shortest tour goes between 0 and 2."]  # fmt: skip
            weights = np.array(instance.truth["weights"])
            expected = tours.prompt_of(weights, [(1, 3), (0, 2)])
        else:
            hints = ["Clause 7 is not satisfied.", "The formula can be satisfied.",
                     "No answer in the asked form was found."]  # fmt: skip
            clauses = np.array(instance.truth["clauses"])
            expected = formulas.prompt_of(instance.level, clauses, [clauses[6], []])
        ids = encode_chat(tokenizer, dialogue(instance, hints))
        assert [vocabulary[i] for i in ids] == expected


def test_the_models_refuse_other_questions(reader: tuple[str, Tokenizer]) -> None:
    name, tokenizer = reader
    with pytest.raises(CapaxError, match=f"generate {name.partition('-')[0]} only"):
        encode_chat(tokenizer, [{"role": "user", "content": "What is 2 + 2?"}])
