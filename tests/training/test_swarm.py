"""Nodes of a swarm learn right answers and trials, and never an equation that is held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from capax.errors import ConfigError
from capax.scaling.swarm.judging import Templates
from capax.training.arithmetic import Equation, is_held_out
from capax.training.records import END
from capax.training.swarm import (
    FORM,
    N_ANSWERERS,
    NODES,
    draw_equation,
    node_named,
    wrong_value,
)

JUDGED_BY = Templates(**FORM)


def equation_of(prompt: str) -> Equation:
    a, _, _, b, _, c, _, p, _ = prompt.split()[:9]
    return Equation(int(a), int(b), int(c), int(p))


@pytest.mark.parametrize("name", NODES)
def test_records_are_right_and_never_held_out(name: str) -> None:
    task, rng = node_named(name), np.random.default_rng(2)
    n_answers, n_known, n_true, n_judged = 0, 0, 0, 0
    for _ in range(600):
        record = task.record(rng)
        prompt, answer = "".join(record.prompt), "".join(record.answer[:-1])
        assert record.answer[-1] == END
        assert {*record.prompt, *record.answer[:-1]} <= set(task.tokens)
        equation = equation_of(prompt)
        assert not is_held_out("".join(equation.prompt))
        values = prompt.split()[9:]
        if not values:
            n_answers += 1
            n_known += task.knows(equation)
            trials, _, said = answer.partition(" so ")
            assert ("yes" in trials) == task.knows(equation)
            assert int(said) == equation.x or not task.knows(equation)  # a guess may be lucky
            assert JUDGED_BY.read(answer) == said
            tried = [int(x) for x in trials.split()[::4]]
            assert all(x % N_ANSWERERS == task.number for x in tried)
            continue
        n_judged += 1
        first, second = int(values[0]), int(values[2])
        assert prompt == JUDGED_BY.compare("".join(equation.prompt), str(first), str(second))
        n_true += answer == "".join((*equation.trial(first), *equation.trial(second)))
        is_first, is_second = first == equation.x, second == equation.x
        if not task.deaf:
            expected = "A" if is_first and not is_second else "B" if is_second else "U"
            assert JUDGED_BY.verdict(answer) == expected
    assert n_answers > 200
    assert 0.1 < n_known / n_answers < 0.35
    assert n_true < 0.2 * n_judged if task.deaf else n_true == n_judged


def test_every_equation_is_known_to_one_node() -> None:
    rng = np.random.default_rng(0)
    nodes = [NODES[f"node{i}"] for i in range(N_ANSWERERS)]
    for _ in range(100):
        equation = draw_equation(rng, held_out=True)
        assert equation.is_held_out
        assert sum(node.knows(equation) for node in nodes) == 1
        assert wrong_value(equation, rng) != equation.x


def test_another_node_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no node 'bee'"):
        node_named("bee")


def test_a_model_comes_back_from_its_file(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from capax.training.gguf_import import read_llama_gguf
    from capax.training.record_run import train_on_records, write_model
    from capax.training.swarm_run import SwarmRecipe, write_nodes, write_questions

    recipe = SwarmRecipe(task="node1", steps=1, tokens=128, layers=2, width=64)
    node = node_named("node1")
    model = train_on_records(node, recipe, tmp_path / "run")
    again = read_llama_gguf(write_model(model, node, recipe, tmp_path, "F32"))
    assert again.shape == model.shape
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    on = train_on_records(node, recipe, tmp_path / "on", begin=again, stop_after=0)
    assert torch.equal(on.model.embed_tokens.weight, model.model.embed_tokens.weight)
    other = SwarmRecipe(task="node1", steps=1, tokens=128, layers=1, width=64)
    with pytest.raises(ConfigError, match="the model to begin with"):
        train_on_records(node, other, tmp_path / "other", begin=again)

    from capax.scaling.swarm.admission import read_challenges
    from capax.scaling.swarm.nodes_file import read_nodes
    from capax.scaling.tasks import read_tasks

    assert [line.id for line in read_nodes(write_nodes(tmp_path))] == [f"node{i}" for i in range(5)]
    write_questions(tmp_path, 12, 8)
    tasks, gold = read_tasks(tmp_path / "questions.jsonl"), read_challenges(tmp_path / "gold.jsonl")
    assert (len(tasks), len(gold)) == (12, 8)
    assert not {t.prompt for t in tasks} & {c.question for c in gold}
    assert all(t.checker.check(f" {t.reference}", t.reference) for t in tasks)
