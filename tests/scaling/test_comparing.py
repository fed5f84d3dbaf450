"""Strategies compared on the same tasks: counted exactly, continued where stopped."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from capax import SamplingParams
from capax.endpoints import GenerateRequest
from capax.errors import EndpointError
from capax.scaling.comparing import Cell, Row, compare, table
from capax.scaling.strategies.strategy import parse_strategy
from tests.scaling.scripted import sums
from tests.scaling.strategies.talker import Talker

PARAMS = SamplingParams(max_tokens=8, temperature=0.8)
CELLS = [
    Cell(parse_strategy(spec), cap)
    for spec in ("single", "majority:n=5", "revise:n=2", "truncate:tokens=3")
    for cap in (30, 90)
]


def reply(request: GenerateRequest, number: int) -> str:
    """The right sum in half of the draws, by the request alone."""
    draw = hashlib.sha256(f"{request.params.seed}".encode()).digest()
    i = int(str(request.prompt).split()[0])
    return "well " * (draw[1] % 9) + str(2 * i if draw[0] < 128 else 77)


def run(endpoint: Talker, folder: Path, cells: list[Cell] = CELLS) -> list[Row]:
    return asyncio.run(compare(endpoint, sums(12), cells, PARAMS, folder, model="talker"))


def test_rows_are_what_the_endpoint_counted(tmp_path: Path) -> None:
    endpoint = Talker(reply)
    rows = run(endpoint, tmp_path)
    totals = endpoint.ledger.totals
    assert sum(row.tokens for row in rows) * 12 == pytest.approx(totals.tokens)
    assert sum(row.new_tokens for row in rows) * 12 == pytest.approx(endpoint.n_sampled)
    assert sum(row.calls for row in rows) * 12 == pytest.approx(len(endpoint.asked))
    assert all(row.tokens <= (row.cap or 0) for row in rows)
    assert any(row.is_best for row in rows)
    assert not all(row.is_best for row in rows)


def test_a_run_that_failed_goes_on_to_the_same_table(tmp_path: Path) -> None:
    first = Talker(reply)
    whole = run(first, tmp_path / "whole")
    failing = Talker(reply, fail_at=[15])  # a first answer, without which there is none
    with pytest.raises(EndpointError):
        run(failing, tmp_path / "parts")
    again = Talker(reply)
    assert run(again, tmp_path / "parts") == whole
    assert len(failing.asked) + len(again.asked) == len(first.asked) + 1  # the one that failed
    untouched = Talker(reply)
    assert run(untouched, tmp_path / "parts") == whole
    assert untouched.asked == []


def test_a_budget_that_holds_no_answer_is_wrong_and_free(tmp_path: Path) -> None:
    endpoint = Talker(reply)
    [row] = run(endpoint, tmp_path, [Cell(parse_strategy("single"), 5)])
    assert (row.accuracy, row.tokens, row.calls) == (0.0, 0.0, 0.0)
    assert endpoint.asked == []


def test_folders_have_plain_names_of_their_own() -> None:
    specs = ("majority:n=2,votes=marked,marks=1/-2/0/0/.5", "truncate:cue=so ../..", "single")
    names = [Cell(parse_strategy(spec), 60).name for spec in specs]
    assert len(set(names)) == 3
    assert not any("/" in name or " " in name for name in names)


def test_a_row_is_best_that_none_beats(tmp_path: Path) -> None:
    cells = [Cell(parse_strategy("single")), Cell(parse_strategy("majority:n=3"))]
    always = Talker(lambda request, number: str(2 * int(str(request.prompt).split()[0])))
    run(always, tmp_path, cells)
    assert [row.is_best for row in table(tmp_path, cells)] == [True, False]
