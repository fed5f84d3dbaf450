"""Generated problems: unique truth, invariants of each task, raw distributions, golden digests."""

import hashlib
import math
import re
from collections import Counter, deque
from itertools import chain, pairwise
from typing import Any

import pytest

from capax.errors import ConfigError
from capax.measuring.procbench import TASKS, Problem, generate, solve
from capax.measuring.procbench.draws import Draws
from capax.measuring.procbench.evaluate import problems_digest
from capax.measuring.procbench.generators import GENERATORS
from capax.measuring.procbench.instructions import INSTRUCTIONS
from capax.measuring.procbench.public import is_of_kind
from capax.measuring.procbench.words import VOCABULARY

# SHA-256 of prompts and truths, 2 problems for each step count of 2 to 25, at seed 12. A change of
# a generator or of an instruction changes it: results before and after are not comparable.
GOLDEN = {
    "Sort": "f26a5d004e440f0b76560dcb645311fe411bcc0150d1bc6911f583c2afb71c77",
    "Gather": "b5ae9eff44c15bb0e56d683ef8a2e1f23f3625d2a04c0dd84a491a4bda8b9a3c",
    "Count": "abc78e6be8c7d439af95e2011325b0b75467a6398e9e36dfb454d9e255703cc5",
    "Search": "39893d0c6fba1e1993bbd20ab87305cdae060dcb5819fafcb9995c6c8d703810",
    "Copy": "b32b4f9e64a7ff6266c46737960cadbb5279901b0fe259c16c192e06ab51eeb9",
    "Substitute": "5cc8b9ced47beb485d51d0071e12d6fd902684e50f93a5e79baa251c049c9d23",
    "Encode": "8480a45c9d5497d756f342497583bf6d5a2839b7607317736f18c6fe6220ba12",
    "Split1": "6644fd2334710707c7ac2dd156d9cc1ab2cd56679eed75f2709c500ecdcbc627",
    "Split2": "e90d109a437ce46121956c5091557d9404c26b8b233c4acd35eb1fa840100fae",
    "Compose": "d70d113c2c882da4d882a12a1f629993d5621a6bd60195da003e5f2078670eb9",
    "Decompose": "71871d817e46c6cd9203b3f191adbe7d9429733e8808e157d57e678689753383",
    "Rhythm": "42f77b22d6bb350e619392a5bb5676d695b218dcfb7081ff32c7ed28f23ffc8a",
    "Compare": "edc8e1b4a96bcce645c0c6d34db12a1acc01a7dcb185079c8520ef215e6c4b74",
    "Count2": "cbba64d4cc3c8843aa8336bb8e1d55cbc71d8b86e47f707b4ce155b66354491c",
    "Decode": "471b3ba8f474c4ded8a01ef068a86f8c7099273e62fb1d9fd84eb37b7c46ba42",
    "PushPop": "548e55eca98465d41c9568392f005660bb1e7918b77c6cc8ddf2ba68cc1eb88a",
    "Rotate": "1d341c8ab7c520dab19856982c5612f077e38489eb63b26f403185cb0e5e08db",
    "FillWord": "1507832cf0942bc1ea3a7013db3f71559d67a6a5207b8869dc0aca8e7de1b2e4",
    "DeleteChar": "62f890a4ad10095a9dfdeff63fccfe9e59ba844d84717c82cb3fc1d61becd7f4",
    "DeleteWord": "89e5f23ba88565fb4ad3f2856ee9acd98525f021bffa19a7541368fa14f6fa6d",
    "Cumulate": "9c532fdeefce29504b35eb848d9c068cc9712f17de705a3cee4a4255104a7b34",
    "MoveCyclic": "b8ebdff76bb3bfbab27bb3e8b2dee4e38f915fa9ae1bd298e558c57b2c81c515",
    "FindCyclic": "1309ae1831e03726127633e6a34bb4aafa313eb64a257971d38259e0de74296d",
}


@pytest.fixture(scope="module")
def problems() -> dict[str, list[Problem]]:
    return {name: list(generate([name], seed=5, per_cell=4)) for name in TASKS}


def test_there_are_23_tasks_with_instructions_each() -> None:
    assert list(GENERATORS) == list(TASKS) == list(INSTRUCTIONS)
    assert [task.number for task in TASKS.values()] == list(range(1, 24))


@pytest.mark.parametrize("name", TASKS)
def test_the_solver_gets_the_truth_from_the_question_alone(
    name: str, problems: dict[str, list[Problem]]
) -> None:
    for problem in problems[name]:
        assert solve(name, problem.question) == list(problem.states), problem.question


@pytest.mark.parametrize("name", TASKS)
def test_cells_are_full_distinct_and_typed(name: str, problems: dict[str, list[Problem]]) -> None:
    found = problems[name]
    assert Counter(p.steps for p in found) == dict.fromkeys(range(2, 26), 4)
    assert len({p.digest for p in found}) == len(found)
    for problem in found:
        assert all(is_of_kind(s, problem.task.kind) for s in problem.intermediate)
        assert is_of_kind(problem.final, problem.task.final_kind)
        assert problem.question.isascii()


@pytest.mark.parametrize("name", TASKS)
def test_golden_digest(name: str) -> None:
    assert problems_digest(list(generate([name], per_cell=2))) == GOLDEN[name]


def test_a_problem_does_not_depend_on_what_else_is_asked_for() -> None:
    alone = list(generate(["Rotate"], [7], per_cell=2))
    among = list(generate(["Sort", "Rotate"], [3, 7], per_cell=5))
    assert alone == [p for p in among if p.task.name == "Rotate" and p.steps == 7][:2]
    assert alone != list(generate(["Rotate"], [7], per_cell=2, seed=13))


@pytest.mark.parametrize(
    ("tasks", "steps", "amount", "words"),
    [
        (["Juggle"], [2], 1, "there is no task 'Juggle'"),
        (["Sort"], [1], 1, "steps is 1"),
        (["Sort"], [26], 1, "steps is 26"),
        (["FindCyclic"], [2], 10**9, "different problems"),
    ],
)
def test_refusals(tasks: list[str], steps: list[int], amount: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        deque(generate(tasks, steps, per_cell=amount), maxlen=0)


# --- what must hold of a task's states, whatever made them ----------------------------------


def _sort(p: Problem) -> bool:
    return p.final == "".join(sorted(str(p.init))) and len(set(p.states)) == p.steps


def _split(p: Problem) -> bool:
    text = p.init[0]
    return all("".join(s) == text and len(s) == i for i, s in enumerate(p.states, 2)) and all(
        all(piece for piece in s) for s in p.states
    )


def _encode(p: Problem) -> bool:
    bits = "".join(code[0] * int(code[2:]) for code in p.final)
    return p.question.endswith(bits) and all(a[0] != b[0] for a, b in pairwise(p.final))


def _decode(p: Problem) -> bool:
    runs = [f"{m[0][0]}x{len(m[0])}" for m in re.finditer(r"0+|1+", p.final)]
    return " ".join(runs) == p.question.removeprefix("Sentence: ")


def _rotate(p: Problem) -> bool:
    return all(sorted(s) == sorted(p.init) for s in p.states)


def _search(p: Problem) -> bool:
    strings, pairs = re.findall(r"\[(.*?)\]", p.question)
    return p.final == [
        sum(len(re.findall(pair, text)) for pair in pairs.split(", "))
        for text in strings.split(", ")
    ]


def _compose(p: Problem) -> bool:
    pairs = re.findall(r"(\w), (\w) -> ", p.question)
    lengths = [len(s) for s in (p.init, *p.states)]
    return not set(pairwise(p.final)) & set(pairs) and all(a == b + 1 for a, b in pairwise(lengths))


def _decompose(p: Problem) -> bool:
    keys = re.findall(r"(\w) -> ", p.question)
    return not set(p.final) & set(keys) and len(p.final) == len(p.init) + p.steps


def _prefixes(p: Problem) -> bool:
    return all(b.startswith(a) and a != b for a, b in pairwise(("", *p.states)))


def _count(p: Problem) -> bool:
    return p.final == sum(int(row[3]) for row in p.intermediate)


def _count2(p: Problem) -> bool:
    words = p.question.split("\n")[1].split()
    letters = Counter(chain.from_iterable(words))
    return len(set(words)) == p.steps and sum(p.final) == letters.total()


def _compare(p: Problem) -> bool:
    target = p.question.split("\n")[0].removeprefix("Target: ")
    return p.final == [*p.intermediate, target] and all(
        target.startswith(s) and s not in ("", target) for s in p.intermediate
    )


def _shrinks(p: Problem) -> bool:
    sizes = [len(str(s).split() if " " in str(p.init) else s) for s in (p.init, *p.states)]
    return all(a == b + 1 for a, b in pairwise(sizes))


def _fill(p: Problem) -> bool:
    left = [len(re.findall(r"\[\d+\]", s)) for s in (p.init, *p.states)]
    return left == list(range(p.steps, -1, -1))


def _ring(p: Problem) -> bool:
    return all(sorted(s) == sorted(p.init) and s.count("x") == 1 for s in p.states)


def _find(p: Problem) -> bool:
    ring = re.search(r"String: (\w+)", p.question)[1]
    start = ring.index(p.init[0])
    return len(set(ring)) == len(ring) and p.final == ring[(start + p.steps) % len(ring)]


def _push_pop(p: Problem) -> bool:
    change = p.question.count("push") - p.question.count("pop")
    return len(p.final) == p.steps + change


def _cumulate(p: Problem) -> bool:
    return all(a <= b for a, b in pairwise((p.init, *p.states)))


def _substitute(p: Problem) -> bool:
    differ = [sum(a != b for a, b in zip(p.init, s, strict=True)) for s in p.states]
    return differ == list(range(1, p.steps + 1))


INVARIANTS: dict[str, Any] = {
    "Sort": _sort, "Gather": _prefixes, "Count": _count, "Search": _search, "Copy": _prefixes,
    "Substitute": _substitute, "Encode": _encode, "Split1": _split, "Split2": _split,
    "Compose": _compose, "Decompose": _decompose, "Rhythm": _prefixes, "Compare": _compare,
    "Count2": _count2, "Decode": _decode, "PushPop": _push_pop, "Rotate": _rotate,
    "FillWord": _fill, "DeleteChar": _shrinks, "DeleteWord": _shrinks, "Cumulate": _cumulate,
    "MoveCyclic": _ring, "FindCyclic": _find,
}  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_invariant(name: str, problems: dict[str, list[Problem]]) -> None:
    for problem in problems[name]:
        assert INVARIANTS[name](problem), problem


# --- raw draws, before the number of steps is looked at ---------------------------------------


def _within(share: float, expected: float, n: int) -> bool:
    """Within four standard errors."""
    return abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / n)


def test_letter_shares_are_the_published_ones() -> None:
    draws = Draws("shares")
    for text, expected in (
        (draws.mixed(40_000), 26 / 36),
        (draws.mixed(40_000, letter_weight=0.75), 19.5 / 22),
    ):
        assert _within(sum(c.isalpha() for c in text) / len(text), expected, len(text))
        for kind in ("a", "z", "0", "9"):
            n_kind = 26 if kind.isalpha() else 10
            share = expected / n_kind if kind.isalpha() else (1 - expected) / n_kind
            assert _within(text.count(kind) / len(text), share, len(text))
    assert not _within(26 / 36, 0.5, 40_000)  # the check can fail: one half is not the share


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("Cumulate", r"Add|Multiply", {"Add": 1 / 2, "Multiply": 1 / 2}),
        ("MoveCyclic", r"left|right", {"left": 1 / 2, "right": 1 / 2}),
        (
            "PushPop",
            r"push_left|push_right|pop_left|pop_right",
            dict.fromkeys(("push_left", "push_right", "pop_left", "pop_right"), 1 / 4),
        ),
    ],
)
def test_operator_shares(name: str, pattern: str, expected: dict[str, float]) -> None:
    draws = Draws(f"shares of {name}")
    questions = [GENERATORS[name](draws, 10).question for _ in range(400)]
    found = Counter(chain.from_iterable(re.findall(pattern, q) for q in questions))
    assert found.total() == 4000
    for operator, share in expected.items():
        assert _within(found[operator] / 4000, share, 4000), found


def test_ranges_of_raw_draws() -> None:
    draws = Draws("ranges")
    lengths = {len(GENERATORS["Sort"](draws, 2).init) for _ in range(2000)}
    assert (min(lengths), max(lengths)) == (5, 50)
    widths = {len(GENERATORS["MoveCyclic"](draws, 2).init) for _ in range(400)}
    assert widths == set(range(5, 51, 5))
    sentences = [GENERATORS["Decode"](draws, 3).question for _ in range(400)]
    runs = {int(n) for sentence in sentences for n in re.findall(r"x(\d+)", sentence)}
    assert runs == set(range(1, 10))
    starts = {GENERATORS["Cumulate"](draws, 2).init for _ in range(400)}
    assert starts == set(range(1, 10))


def test_draws_are_pinned_not_those_of_a_python_version() -> None:
    """Only random.random() is used, whose sequence Python promises; here the first values."""
    draws = Draws("pinned")
    found = (draws.integer(0, 999), draws.letters(5), draws.sample("abcdef", 3), draws.mixed(5))
    assert hashlib.sha256(repr(found).encode()).hexdigest()[:16] == "dace11fd43dd2ff5"


def test_the_vocabulary_has_room_for_the_longest_problems() -> None:
    assert len(VOCABULARY) > 150
    assert all(word.isalpha() and word.islower() for word in VOCABULARY)
