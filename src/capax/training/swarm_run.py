"""`capax train swarm`: tiny nodes that answer equations and judge answers, as GGUF."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from capax.training.arithmetic import Equation
from capax.training.record_run import RecordRecipe
from capax.training.swarm import (
    FORM,
    N_ANSWERERS,
    draw_equation,
    wrong_value,
)


@dataclass(frozen=True, kw_only=True)
class SwarmRecipe(RecordRecipe):
    """What is trained on what.

    `task`: node0 to node4, or deaf; `base`: SHA-256 of the file it begins with.
    """

    task: str = "node0"
    base: str = ""
    steps: int = 300
    learning_rate: float = 1e-3


def write_nodes(folder: Path) -> Path:
    """Write `nodes.json` beside the models: five that answer and judge, for `scale swarm`."""
    lines = [
        {
            "id": f"node{i}", "model": f"node{i}.gguf", "temperature": 0.7,
            "max_tokens": 20, "form": dict(FORM),
        }
        for i in range(N_ANSWERERS)
    ]  # fmt: skip
    path = folder / "nodes.json"
    path.write_text(json.dumps(lines, indent=1) + "\n")
    return path


def write_questions(folder: Path, n_questions: int, n_gold: int, seed: int = 0) -> None:
    """Write held-out equations as `questions.jsonl`, and others as pairs in `gold.jsonl`."""
    import numpy as np

    rng = np.random.default_rng([4, seed])
    found: dict[str, Equation] = {}
    while len(found) < n_questions + n_gold:
        equation = draw_equation(rng, held_out=True)
        found["".join(equation.prompt)] = equation
    questions = [
        {"id": "-".join(map(str, e)), "prompt": q, "reference": str(e.x), "checker": "exact"}
        for q, e in list(found.items())[:n_questions]
    ]
    gold = [
        {
            "question": q, "better": str(e.x), "worse": str(wrong_value(e, rng)),
            "checker": "exact",
        }
        for q, e in list(found.items())[n_questions:]
    ]  # fmt: skip
    for name, rows in (("questions", questions), ("gold", gold)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
