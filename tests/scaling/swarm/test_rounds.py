"""Stored rounds: the same strengths again, and no altered verdict passes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from capax.errors import FileFormatError
from capax.scaling.swarm.consensus import SwarmResult
from capax.scaling.swarm.rounds import is_replayable, replay, stored
from tests.scaling.swarm.test_consensus import QUESTION, run, swarm

WEIGHTS = {"n0": 0.3, "n1": 1.7, "n2": 1.0, "n3": 0.1}


def played() -> tuple[SwarmResult, dict[str, Any]]:
    got = run(swarm("It is 41", "spam spam", "It is 42", "It is 39"), weights=WEIGHTS)
    return got, json.loads(json.dumps(stored(QUESTION, got, WEIGHTS)))


def test_a_round_read_from_json_gives_the_same_bits() -> None:
    got, kept = played()
    theta = replay(kept)
    assert theta[1] is None
    assert [x for x in theta if x is not None] == [x for x in got.theta if x == x]
    assert is_replayable({"verdicts": kept})
    assert not is_replayable({"verdicts": [["a", 0, 1, "A"]]})
    assert not is_replayable({})


@pytest.mark.parametrize(
    ("name", "value"),
    [("comparisons", []), ("weights", {"n0": 1.0}), ("bad", []), ("theta", [0, None, 0, 0]),
     ("answers", 3), ("comparisons", [["n0", 9, 1, "A", None]]), ("comparisons", [[1]])],
)  # fmt: skip
def test_what_was_changed_gives_itself_away(name: str, value: object) -> None:
    _, kept = played()
    if name == "comparisons" and value and value[0][0] == "n0":  # type: ignore[index]
        kept["theta"][0] = 1.0
    with pytest.raises(FileFormatError, match="stored round"):
        replay(kept | {name: value})
    with pytest.raises(FileFormatError, match="cannot be read"):
        replay({k: v for k, v in kept.items() if k != name})


def test_one_verdict_turned_round_is_noticed() -> None:
    _, kept = played()
    row = next(r for r in kept["comparisons"] if r[3] in "AB")
    row[3] = "B" if row[3] == "A" else "A"
    with pytest.raises(FileFormatError, match="other strengths"):
        replay(kept)
