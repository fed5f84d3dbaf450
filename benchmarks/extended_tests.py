"""Weak and strong tests of HumanEval on wrong programs and on right ones: what each lets through.

    python -m benchmarks.extended_tests --humaneval HumanEval.jsonl.gz

Of 20 tasks, one solution written here without a look at the canonical one, and up to five mutants
of both, made by fixed rules. Weak tests are the first two assertions, strong ones the task's
own with 60 more inputs (`capax.scaling.extended_tests`), which are run with and without the rule
that inputs keep what the given ones promise. Everything runs in the sandbox. Writes
extended_tests.json.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar

from capax.scaling.extended_tests import extended_tests, first_assertions, given_inputs, new_inputs
from capax.scaling.sandbox import run_tests

N_WEAK, N_MUTANTS, N_INPUTS = 2, 5, 60

SOLUTIONS = {
    0: "return any(abs(a - b) < threshold for i, a in enumerate(numbers) for b in numbers[:i])",
    2: "return number - int(number)",
    3: "return any(sum(operations[:i]) < 0 for i in range(1, len(operations) + 1))",
    4: "m = sum(numbers) / len(numbers)\n    d = [abs(x - m) for x in numbers]\n"
    "    return sum(d) / len(d)",
    5: "return [y for x in numbers for y in (x, delimeter)][:-1]",
    7: "return list(filter(lambda s: s.find(substring) != -1, strings))",
    8: "import math\n    return sum(numbers), math.prod(numbers)",
    9: "return [max(numbers[: i + 1]) for i in range(len(numbers))]",
    11: "return ''.join(str(int(a[i] != b[i])) for i in range(len(a)))",
    12: "return max(strings, key=len) if strings else None",
    13: "import math\n    return math.gcd(a, b)",
    14: "return [string[:i] for i in range(1, len(string) + 1)]",
    15: "return ' '.join(map(str, range(n + 1)))",
    16: "return len({c.upper() for c in string})",
    18: "return sum(string.startswith(substring, i) for i in range(len(string)))",
    22: "return [v for v in values if type(v) is int]",
    27: "return ''.join(c.lower() if c.isupper() else c.upper() for c in string)",
    30: "return [x for x in l if not x <= 0]",
    34: "return sorted(dict.fromkeys(l))",
    43: "return any(-x in l[i + 1 :] for i, x in enumerate(l))",
}


class _Change(ast.NodeTransformer):
    """Change the `at`-th place of a program that can be changed."""

    SWAPS: ClassVar[dict[type, type]] = {
        ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
        ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub,
        ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.Mod: ast.Mult,
        ast.And: ast.Or, ast.Or: ast.And, ast.USub: ast.UAdd, ast.Not: ast.UAdd,
        ast.FloorDiv: ast.Mult,
    }  # fmt: skip

    def __init__(self, at: int) -> None:
        self.at, self.seen = at, 0

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if type(node) in self.SWAPS:
            self.seen += 1
            if self.seen - 1 == self.at:
                return self.SWAPS[type(node)]()  # type: ignore[no-any-return]
        if isinstance(node, ast.Constant) and type(node.value) in (int, bool, float):
            self.seen += 1
            if self.seen - 1 == self.at:
                is_bool = isinstance(node.value, bool)
                return ast.Constant(not node.value if is_bool else node.value + 1)
        if isinstance(node, ast.Name) and node.id in ("max", "min", "any", "all"):
            self.seen += 1
            if self.seen - 1 == self.at:
                other = {"max": "min", "min": "max", "any": "all", "all": "any"}[node.id]
                return ast.Name(other, node.ctx)
        return node


def mutants(program: str, entry_point: str) -> Iterator[str]:
    """Yield programs that differ from this one in one operator, constant or function."""
    at = 0
    while True:
        tree = ast.parse(program)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name == entry_point:
                change = _Change(at)
                node.body = [change.visit(part) for part in node.body]
                if change.seen <= at:
                    return
        at += 1
        yield ast.unparse(ast.fix_missing_locations(tree))


def measure(path: Path) -> dict[str, Any]:
    """Run everything."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        problems = [json.loads(line) for line in file]
    rows = [row_of(problems[number], body) for number, body in SOLUTIONS.items()]
    total = {
        name: sum(row[name] for row in rows)
        for name in ("mutants", "killed_weak", "killed_strong", "solution_passes_strong",
                     "canonical_passes_strong", "right_refused_without_promises")
    }  # fmt: skip
    inputs = [given_inputs(problem["test"]) for problem in problems]
    made = [len(new_inputs(given, N_INPUTS)) for given in inputs if given]
    return {
        "n_tasks": len(rows), "total": total, "tasks": rows,
        "all_tasks": {
            "n": len(problems), "without_literal_call": sum(not given for given in inputs),
            "with_50_new_inputs": sum(n >= 50 for n in made), "fewest_new_inputs": min(made),
        },
    }  # fmt: skip


def row_of(problem: dict[str, str], body: str) -> dict[str, Any]:
    """Judge the mutants, the canonical solution twice and the one written here."""
    name, tests, prompt = problem["entry_point"], problem["test"], problem["prompt"]
    canonical = prompt + problem["canonical_solution"]
    weak = first_assertions(tests, N_WEAK)
    more, n_inputs = extended_tests(tests, canonical, name, n=N_INPUTS)
    wild, _ = extended_tests(tests, canonical, name, n=N_INPUTS, keeps_promises=False)

    def passes(program: str, *suites: str) -> bool:
        return all(run_tests(program, suite, name, preamble=prompt).passed for suite in suites)

    own = f"{prompt}    {body}\n"
    wrong = list(islice(chain(mutants(canonical, name), mutants(own, name)), N_MUTANTS))
    print(problem["task_id"], len(wrong), n_inputs, flush=True)
    return {
        "task": problem["task_id"],
        "inputs": n_inputs,
        "mutants": len(wrong),
        "killed_weak": sum(not passes(program, weak) for program in wrong),
        "killed_strong": sum(not passes(program, tests, more) for program in wrong),
        "canonical_passes_strong": passes(canonical, tests, more) and passes(canonical, more),
        "solution_passes_strong": passes(own, tests, more),
        "right_refused_without_promises": not passes(own, wild),
    }


def main() -> int:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description="weak and strong tests on wrong programs")
    parser.add_argument("--humaneval", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    found = measure(options.humaneval)
    (options.out / "extended_tests.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({"total": found["total"], "all_tasks": found["all_tasks"]}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
