"""Stronger and weaker tests for a program: more inputs with a known solution as oracle, or fewer.

"Inference Scaling fLaws" (2024, arXiv 2411.17501) needs two verdicts on every program: one by tests
that let wrong programs through, one by tests that let fewer. The weak ones are the first assertions
of a problem's own tests; the strong ones add inputs made from those in the tests, on which a known
solution says what is right (the idea of EvalPlus). A new input keeps whatever all given ones have
in common - types, signs, emptiness, order, the span of lengths and characters - since outside of
what a problem promises its solution is no oracle, and right programs would be called wrong.
"""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from capax.errors import ConfigError

Arguments = tuple[Any, ...]
WANTED = 60
ROUNDS = 60  # of mutation for each input wanted

_HARNESS = """
import copy as _copy
import random as _random

def _oracle_of():
    space = {{}}
    exec({source!r}, space)
    return space[{entry_point!r}]

def _same(a, b):
    if isinstance(a, float) or isinstance(b, float):
        try:
            return a == b or abs(a - b) <= 1e-6 * max(1.0, abs(a), abs(b)) or (a != a and b != b)
        except TypeError:
            return False
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b

def check(candidate):
    oracle = _oracle_of()
    for arguments in {inputs!r}:
        try:
            expected = oracle(*_copy.deepcopy(arguments))
            again = oracle(*_copy.deepcopy(arguments))
        except Exception:
            continue
        assert _same(expected, again), "the oracle is not sure"
        assert _same(candidate(*_copy.deepcopy(arguments)), expected), repr(arguments)
"""


# --- what tests ask -----------------------------------------------------------------------


def assertions(tests: str) -> list[ast.Assert]:
    """Return the assertions that call `candidate`. Raises ConfigError without a check."""
    check = _check_of(tests)
    found = [node for node in ast.walk(check) if isinstance(node, ast.Assert)]
    found.sort(key=lambda node: node.lineno)
    return [node for node in found if any(_calls(node))]


def first_assertions(tests: str, n: int) -> str:
    """Return tests with the first `n` assertions that say something.

    Assertions of constants are skipped. Raises ConfigError if there is none that calls the program
    outside of a loop.
    """
    check = _check_of(tests)
    kept = [s for s in check.body if isinstance(s, ast.Assert) and any(_calls(s))][:n]
    if not kept:
        raise ConfigError("the tests have no assertion that calls the program outside of a loop")
    check.body = list(kept)
    return ast.unparse(check)


def given_inputs(tests: str) -> list[Arguments]:
    """Return the arguments of all calls with literals, each once, in order."""
    found: dict[str, Arguments] = {}
    for node in assertions(tests):
        for call in _calls(node):
            try:
                arguments = tuple(ast.literal_eval(argument) for argument in call.args)
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                continue
            if not call.keywords:
                found[repr(arguments)] = arguments
    return list(found.values())


def _check_of(tests: str) -> ast.FunctionDef:
    try:
        tree = ast.parse(tests)
    except (SyntaxError, ValueError, RecursionError) as e:
        raise ConfigError(f"the tests are no Python: {e}") from None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "check":
            return node
    raise ConfigError("the tests define no function check(candidate)")


def _calls(node: ast.AST) -> Iterator[ast.Call]:
    for part in ast.walk(node):
        if not isinstance(part, ast.Call) or not isinstance(part.func, ast.Name):
            continue
        if part.func.id == "candidate":
            yield part


# --- more of the same ---------------------------------------------------------------------


def extended_tests(
    tests: str, solution: str, entry_point: str, *, n: int = WANTED, seed: int = 0,
    keeps_promises: bool = True,
) -> tuple[str, int]:  # fmt: skip
    """Return tests with the given inputs and up to `n` new ones, and how many inputs they have.

    `solution`: a whole program that is right. Inputs on which it raises are skipped when the tests
    run; one on which it answers in two ways fails them. `keeps_promises`: leave out new inputs that
    differ from all given ones in what these have in common.
    """
    inputs = given_inputs(tests)
    if inputs:
        inputs += new_inputs(inputs, n, seed, keeps_promises=keeps_promises)
    return _HARNESS.format(source=solution, entry_point=entry_point, inputs=inputs), len(inputs)


def new_inputs(
    given: Sequence[Arguments], n: int, seed: int = 0, *, keeps_promises: bool = True
) -> list[Arguments]:
    """Return up to `n` inputs that are not given, made from those that are."""
    rng = random.Random(seed)  # inputs of tests
    promises = [promise(values) for values in zip(*given, strict=False)]
    pairs = equally_long(given)
    known = {repr(arguments) for arguments in given}
    found: list[Arguments] = []
    for _ in range(ROUNDS * n):
        if len(found) == n:
            break
        arguments = list(copy.deepcopy(rng.choice([*given, *found[-8:]])))
        if not arguments:
            break
        at = rng.randrange(len(arguments))
        arguments[at] = mutated(arguments[at], rng)
        made = tuple(arguments)
        if repr(made) in known or len(repr(made)) > 4000:
            continue
        if keeps_promises:
            if not all(kept(value) for kept, value in zip(promises, made, strict=False)):
                continue
            if any(len(made[a]) != len(made[b]) for a, b in pairs):
                continue
        known.add(repr(made))
        found.append(made)
    return found


def mutated(value: Any, rng: random.Random) -> Any:
    """Return a value of the same type: a neighbour, a large one, a negative, shuffled, cut, ..."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, 0, -value, 2 * value + 1, rng.randint(-10, 200)))
    if isinstance(value, float):
        return rng.choice((value + 1.0, -value, value / 2, 0.0, round(rng.uniform(-10, 100), 2)))
    if isinstance(value, str):
        return _mutated_text(value, rng)
    if isinstance(value, list):
        return _mutated_list(value, rng)
    if isinstance(value, tuple):
        return tuple(_mutated_list(list(value), rng))
    if isinstance(value, dict) and value:
        name = rng.choice(list(value))
        return {**value, name: mutated(value[name], rng)}
    return value


def _mutated_text(text: str, rng: random.Random) -> str:
    cut = rng.randint(0, len(text))
    letters = list(text)
    rng.shuffle(letters)
    return rng.choice(
        (text[:cut], text[cut:], text + text, text[::-1], text.swapcase(), "".join(letters), "",
         text[:cut] + (rng.choice(text) if text else "a") + text[cut:])
    )  # fmt: skip


def _mutated_list(values: list[Any], rng: random.Random) -> list[Any]:
    kind, out = rng.randrange(6), list(values)
    at = rng.randrange(len(out)) if out else 0
    if kind == 0 or not out:
        return []
    if kind == 1:
        rng.shuffle(out)
    elif kind == 2:
        out.insert(rng.randint(0, len(out)), copy.deepcopy(out[at]))
    elif kind == 3:
        del out[at]
    else:
        out[at] = mutated(out[at], rng)
    return out


# --- what inputs have in common -----------------------------------------------------------


def promise(values: Sequence[Any]) -> Callable[[Any], bool]:
    """Return what says whether a value has all that the given ones have in common."""
    kinds = {type(value) for value in values}
    rules: list[Callable[[Any], bool]] = [lambda value: type(value) in kinds]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if numbers:
        rules.append(_of_numbers(numbers))
    sized = [v for v in values if isinstance(v, str | list | tuple | dict)]
    if sized:
        rules.append(_of_sizes(sized))
    texts = [v for v in values if isinstance(v, str)]
    if texts:
        rules.append(_of_texts(texts))
    lists = [v for v in values if isinstance(v, list | tuple)]
    if lists:
        rules.append(_of_lists(lists))
    return lambda value: all(rule(value) for rule in rules)


def equally_long(given: Sequence[Arguments]) -> list[tuple[int, int]]:
    """Return the pairs of arguments that have one length in all given inputs."""
    n = min(map(len, given))
    sized = [all(hasattr(arguments[i], "__len__") for arguments in given) for i in range(n)]
    return [
        (a, b)
        for a in range(n)
        for b in range(a + 1, n)
        if sized[a] and sized[b] and all(len(one[a]) == len(one[b]) for one in given)
    ]


def _of_numbers(numbers: Sequence[float]) -> Callable[[Any], bool]:
    """Keep signs, and a size that is not far beyond the given ones."""
    low, most = min(numbers), 4 * max(abs(x) for x in numbers) + 10

    def rule(value: Any) -> bool:
        if not isinstance(value, int | float):
            return True
        least = 1 if low >= 1 else 0 if low >= 0 else -most
        return least <= value <= most

    return rule


def _of_sizes(sized: Sequence[Any]) -> Callable[[Any], bool]:
    low, high = min(map(len, sized)), max(map(len, sized))

    def rule(value: Any) -> bool:
        return not hasattr(value, "__len__") or low <= len(value) <= 2 * high

    return rule


def _of_texts(texts: Sequence[str]) -> Callable[[Any], bool]:
    """Keep the characters, and the cases where all given texts have one."""
    letters = {letter.lower() for text in texts for letter in text}
    cases = [case for case in (str.islower, str.isupper) if all(map(case, texts))]

    def rule(value: Any) -> bool:
        if not isinstance(value, str):
            return True
        return {x.lower() for x in value} <= letters and all(case(value) for case in cases)

    return rule


def _of_lists(lists: Sequence[Any]) -> Callable[[Any], bool]:
    """Keep order and distinctness where all given lists have them, and what their elements are."""
    inner = [value for values in lists for value in values]
    of_element = promise(inner) if inner else lambda value: True
    is_sorted, is_distinct = (all(map(f, lists)) for f in (_is_sorted, _is_distinct))

    def rule(value: Any) -> bool:
        if not isinstance(value, list | tuple):
            return True
        return (
            all(of_element(v) for v in value)
            and (not is_sorted or _is_sorted(value))
            and (not is_distinct or _is_distinct(value))
        )

    return rule


def _is_sorted(values: Sequence[Any]) -> bool:
    try:
        return list(values) == sorted(values)
    except TypeError:
        return False


def _is_distinct(values: Sequence[Any]) -> bool:
    return len({repr(value) for value in values}) == len(values)
