"""Sequential runs over a file: kept, resumed, and beside what parallel calls would solve."""

from __future__ import annotations

import asyncio
import json
from itertools import permutations
from math import comb
from pathlib import Path

import numpy as np
import pytest

from capax import SamplingParams
from capax.errors import ConfigError, FileFormatError
from capax.scaling.complex import FAMILIES, generate
from capax.scaling.complex.critic import OracleCritic, Rounds
from capax.scaling.complex.families import task_line
from capax.scaling.complex.sequential_run import (
    instances_of,
    run_sequential,
    table,
    without_repeats,
)
from capax.scaling.complex.study import Played, best_of
from capax.scaling.tasks import read_tasks
from tests.scaling.strategies.talker import Talker

FAMILY = FAMILIES["tsp"]
INSTANCES = list(generate(FAMILY, (6,), 6, 3))
PARAMS = SamplingParams(max_tokens=400)


def solver_after(n: int) -> Talker:
    """Answers rightly once it was told n times that it is wrong."""

    def reply(request, number):  # type: ignore[no-untyped-def]
        instance = next(i for i in INSTANCES if i.prompt == request.prompt[0]["content"])
        told = sum(m["role"] == "user" for m in request.prompt) - 1
        return FAMILY.solve(instance) if told >= n else "no idea"

    return Talker(reply)


def run(endpoint: Talker, path: Path, **settings: object) -> list[Rounds]:
    return asyncio.run(
        run_sequential(
            endpoint, INSTANCES, OracleCritic(), PARAMS, path, {"model": "m", **settings}, rounds=4
        )
    )


def test_runs_are_kept_and_a_stopped_one_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "out" / "runs.jsonl"
    whole = run(solver_after(2), path)
    assert all(r.solved_at == 3 for r in whole)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # stopped while it was writing
    again = solver_after(2)
    assert run(again, path) == whole
    assert len(again.asked) == 3 * (len(INSTANCES) - 2)
    untouched = solver_after(2)
    assert run(untouched, path) == whole
    assert not untouched.asked
    with pytest.raises(ConfigError, match="another model"):
        run(solver_after(2), path, model="other")
    path.write_text('{"model": "m"}\n[]\n')
    with pytest.raises(FileFormatError, match="no file of sequential runs"):
        run(solver_after(2), path)


def test_the_table_has_all_tokens_and_the_controls(tmp_path: Path) -> None:
    runs = run(solver_after(1), tmp_path / "runs.jsonl")
    rows = table(runs, None, 3)
    assert [row["sequential"] for row in rows] == [0, 1, 1]
    assert rows[0]["answer_tokens"] == 2
    assert rows[1]["answer_tokens"] == rows[2]["answer_tokens"] > 2
    assert "parallel" not in rows[0]
    played = [
        Played(i, ["a", "a", "b", "c"], np.array([False, False, True, False]), np.ones(4))
        for i in INSTANCES
    ]
    rows = table(runs, played, 3)
    assert rows[1]["parallel"] == pytest.approx(0.5)
    # b is right: first (1/4), after a (1/2 1/2) or after c (1/4 1/3).
    assert rows[1]["parallel_without_repeats"] == pytest.approx(7 / 12)
    assert rows[2]["parallel_without_repeats"] == 1


@pytest.mark.parametrize(("m", "a"), [(4, 1), (12, 2), (16, 2)])
def test_never_repeating_is_drawing_without_replacement(m: int, a: int) -> None:
    answers = [str(i) for i in range(m)]
    played = [Played(INSTANCES[0], answers, np.arange(m) < a, np.ones(m))]
    for k in range(1, m + 1):
        assert without_repeats(played, k)[0] == pytest.approx(1 - comb(m - a, k) / comb(m, k))
    assert without_repeats(played, m + 5)[0] == 1
    nothing = [Played(INSTANCES[0], [None], np.array([False]), np.ones(1))]
    assert without_repeats(nothing, 3)[0] == 0


@pytest.mark.parametrize(
    "answers", ["aab", "abbc", "xyyzaa", "aaaaaaaaab", "bbbbbbbbba", "abcde", "aabbcc"]
)
def test_without_repeats_is_what_every_order_gives(answers: str) -> None:
    """Against all orders of the samples; a and x are right."""
    correct = np.array([a in "ax" for a in answers])
    played = [Played(INSTANCES[0], list(answers), correct, np.ones(len(answers)))]
    orders = set(permutations(answers)) if len(answers) < 8 else None
    for n in range(1, 5):
        chance = without_repeats(played, n)[0]
        assert chance >= best_of(played, min(n, len(answers)))[0] - 1e-12
        if orders is not None:
            first = [list(dict.fromkeys(order))[:n] for order in orders]
            hits = np.mean([any(a in "ax" for a in found) for found in first])
            assert chance == pytest.approx(hits)
    assert without_repeats(played, 1)[0] == pytest.approx(correct.mean())


def test_only_generated_tasks_can_be_checked(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    plain = {"id": "x", "prompt": "1 + 1", "reference": "2", "checker": "numeric"}
    file.write_text(task_line(INSTANCES[0]) + "\n" + json.dumps(plain) + "\n")
    assert [i.key for i in instances_of(read_tasks(file))] == [INSTANCES[0].key]
    file.write_text(json.dumps(plain) + "\n")
    with pytest.raises(ConfigError, match="no task of this file is generated"):
        instances_of(read_tasks(file))
