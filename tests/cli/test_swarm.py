"""`capax scale swarm` on the trained nodes: admission, gold rounds, reputations, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_main import capax as run

MODELS = Path(__file__).parents[2] / "models" / "swarm"
NODES, GOLD = str(MODELS / "nodes.json"), str(MODELS / "gold.jsonl")
QUESTION = " 7 x + 4 = 12 mod 13 :"


def capax(home: Path, *arguments: str) -> Any:
    """Run `capax scale swarm ... --json` and return what it says."""
    result = run(home, "scale", "swarm", *arguments, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("swarm") / "swarm.sqlite"
    found = capax(path.parent, "admit", NODES, GOLD, "--registry", str(path), "--threads", "1")
    assert all(row["admitted"] for row in found)
    return path


def test_gold_rounds_earn_weight_and_standing(registry: Path) -> None:
    options = ("--registry", str(registry), "--rounds", "3", "--threads", "1")
    rows = capax(registry.parent, "calibrate", NODES, GOLD, *options)
    assert [row["node"] for row in rows] == [f"node{i}" for i in range(5)]
    shown = capax(registry.parent, "show", str(registry))
    assert shown["replayed"] == 3
    for row in shown["nodes"]:
        assert row["rounds"] == 3
        assert row["reputation"] > 0.7  # judges of these pairs are nearly always right
        assert row["standing"] < 0.6  # and each knows a fifth of the answers


@pytest.mark.slow  # four processes
def test_gold_is_mixed_in_and_fewer_nodes_may_answer(registry: Path) -> None:
    def replayed() -> int:
        found: int = capax(registry.parent, "show", str(registry))["replayed"]
        return found

    before = replayed()
    asking = ("ask", NODES, QUESTION, "--registry", str(registry), "--gold", GOLD, "--threads", "1")
    options = ("--gold-rate", "1", "--judge-mode", "letters", "--max-answerers", "3")
    got = capax(registry.parent, *asking, *options)
    assert sum(len(names) for names in got["authors"]) == 3
    assert all(row["share"] is not None for row in got["comparisons"])
    assert replayed() == before + 2
    capax(registry.parent, *asking, "--gold-rate", "0")
    assert replayed() == before + 3


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    none = str(tmp_path / "none.sqlite")
    for arguments, says in (
        (("ask", NODES, QUESTION, "--gold", GOLD), "--registry FILE"),
        (("calibrate", NODES, GOLD, "--registry", none), "scale swarm admit"),
    ):
        result = run(tmp_path, "scale", "swarm", *arguments)
        assert result.returncode != 0
        assert says in result.stderr
