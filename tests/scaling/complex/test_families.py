"""Reading answers out of any text, sequential runs with critics, and tasks as files."""

from pathlib import Path

import numpy as np
import pytest

from capax.decoding.params import SamplingParams
from capax.endpoints import Choice, Completion, GenerateRequest, Ledger, Price
from capax.engine.outputs import Usage
from capax.errors import ConfigError
from capax.scaling.complex import FAMILIES, Instance, family_named, generate
from capax.scaling.complex.critic import OracleCritic, SelfCritic, sequential, solved_within
from capax.scaling.complex.families import instance_of, task_line
from capax.scaling.complex.stored import played_of_run
from capax.scaling.complex.study import report
from capax.scaling.run_directory import RunDirectory
from capax.scaling.sampling import SamplePlan, sample
from capax.scaling.tasks import read_tasks


@pytest.mark.parametrize(
    ("family", "text", "answer"),
    [
        ("3sat", "<final_answer>{'Solution': 'True, false'}</final_answer>", "TF"),
        ("3sat", "<final_answer>{'Solution': 'True'}</final_answer> x <final_answer>"
         "{'Solution': 'Unsatisfiable'}</final_answer>", "unsatisfiable"),
        ("3sat", "True, False", None),
        ("3sat", "<final_answer></final_answer>", None),
        ("tsp", "<final_answer>{'Path': '0->3->1->2->0', 'TotalDistance': '9'}</final_answer>",
         "0-2-1-3"),
        ("tsp", "<final_answer>{'Path': '2 -> 0 -> 1 -> 2'}</final_answer>", "0-1-2"),
        ("tsp", "<final_answer>{'Path': '0->1->2'}</final_answer>", None),
        ("tsp", "<final_answer>0->1->0</final_answer>", None),
        ("calendar", "**Final Answer: monday 9:00 - 9:30**", "Monday 09:00-09:30"),
        ("calendar", "Final Answer: Monday 09:00-10:00\nFinal Answer: Friday 11:05-12:00.",
         "Friday 11:05-12:00"),
        ("calendar", "Final Answer: No common time slot available.",
         "No common time slot available"),
        ("calendar", "Final Answer: Someday 09:00-10:00", None),
        ("maze", "Final Answer: (B) 12", "B"),
        ("maze", "Final Answer: Because", None),
        ("maze", "B", None),
        ("spatial", "final answer: **D**", "D"),
        ("arithmetic", "Final Answer: -1,234", "-1234"),
        ("arithmetic", "12", None),
    ],
)  # fmt: skip
def test_answers_in_texts(family: str, text: str, answer: str | None) -> None:
    assert FAMILIES[family].extract(text) == answer


@pytest.mark.parametrize("name", FAMILIES)
def test_hostile_texts(name: str) -> None:
    family = FAMILIES[name]
    instance = next(iter(generate(family, [max(5, min(family.default_counts))], 1)))
    for text in (
        "<final_answer>" * 10**5, "Final Answer: " * 10**5, "Final Answer: " + "9" * 10**6,
        "<final_answer>{'Path': '" + "0->" * 10**5 + "'}</final_answer>",
        "<final_answer>{'Path': '0->999999999->0'}</final_answer>", "\0" * 10**6,
        "<final_answer>{'Solution': '" + "True, " * 600 + "'}</final_answer>",
        "Final Answer: Monday 99:99-99:99", "Final Answer: Monday \u0661\u0661:00-12:00",
    ):  # fmt: skip
        answer = family.extract(text)
        if answer is not None:
            assert family.is_right(instance.truth, answer) is False
            assert family.hint(instance, answer)
    assert family.hint(instance, None)


def test_levels_and_names_are_checked() -> None:
    for name, level in (("3sat", 2), ("tsp", 30), ("maze", 1), ("spatial", 99), ("calendar", 11)):
        with pytest.raises(ConfigError, match=f"{name} has levels"):
            next(generate(FAMILIES[name], [level], 1))
    with pytest.raises(ConfigError, match="known are 3sat, tsp"):
        family_named("sudoku")
    with pytest.raises(ConfigError, match="no reference of a generated task"):
        instance_of("{}")


def test_a_level_that_is_used_up_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capax.scaling.complex.instance.MAX_ATTEMPTS", 300)
    with pytest.raises(ConfigError, match="no further instance of level 2"):
        list(generate(FAMILIES["maze"], [2], 1000))


class Player:
    """Writes what a function of the messages says; a token per word."""

    name = "player"

    def __init__(self, text: str) -> None:
        self.ledger = Ledger()
        self.texts = text.split("|")
        self.asked: list[GenerateRequest] = []

    async def generate(self, request: GenerateRequest) -> Completion:
        params = request.params
        with self.ledger.call(
            self.name, request.purpose, Price(), prompt_tokens=1, new_tokens=100 * params.n
        ) as call:
            text = self.texts[min(len(self.asked), len(self.texts) - 1)]
            self.asked.append(request)
            n = len(text.split())
            call.settle(Usage(1, n * params.n))
        choices = tuple(Choice(i, text, "stop", n_tokens=n) for i in range(params.n))
        return Completion(choices, Usage(1, n * params.n), 0.0, "player")


def one(name: str = "tsp") -> Instance:
    return next(generate(FAMILIES[name], [5], 1))


@pytest.mark.anyio
async def test_sequential_runs_end_at_the_first_right_answer() -> None:
    instance = one()
    family = FAMILIES["tsp"]
    right = family.solve(instance)
    player = Player(f"no idea|<final_answer>{{'Path': '0->0'}}</final_answer>|{right}")
    params = SamplingParams(max_tokens=50)
    done = await sequential(player, instance, OracleCritic(), params, rounds=5)
    assert (done.solved_at, len(done.answers), done.critic_tokens) == (3, 3, (0, 0))
    assert done.answer_tokens[0] == 2
    last = player.asked[-1].prompt
    assert [m["role"] for m in last] == ["user", "assistant", "user", "assistant", "user"]  # type: ignore[index]
    assert "2 attempts made" in last[-1]["content"]  # type: ignore[index]
    assert "City 1 is not visited." in last[-1]["content"]  # type: ignore[index]
    assert len({request.params.seed for request in player.asked}) == 3
    assert solved_within([done], 2) == 0
    assert solved_within([done], 3) == 1


@pytest.mark.anyio
async def test_critic_tokens_are_paid() -> None:
    player = Player("wrong answer here")
    params = SamplingParams(max_tokens=50)
    done = await sequential(player, one("maze"), SelfCritic(player, params), params, rounds=3)
    assert (done.solved_at, done.answer_tokens, done.critic_tokens) == (None, (3, 3, 3), (3, 3))
    assert player.ledger.totals.completion_tokens == 15
    with pytest.raises(ConfigError, match="rounds is 0"):
        await sequential(player, one(), OracleCritic(), params, rounds=0)


@pytest.mark.anyio
async def test_a_run_of_generated_tasks(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    instances = list(generate(FAMILIES["spatial"], [5, 6], 6))
    file.write_text("".join(task_line(i) + "\n" for i in instances))
    tasks = read_tasks(file)
    plan = SamplePlan(3, SamplingParams(max_tokens=5))
    with RunDirectory(tmp_path / "run", plan.settings(tasks, "m")) as run:
        assert await sample(Player("Final Answer: A"), tasks, run, plan) == "success"  # type: ignore[arg-type]
    (played,) = played_of_run(tmp_path / "run", tasks).values()
    figures = report(played)
    rate = np.mean([i.truth["letter"] == "A" for i in instances])
    assert figures["average"] == figures["best"] == figures["worst"] == pytest.approx(rate)
    assert (figures["n_instances"], figures["tokens_mean"]) == (12, 3)
    assert set(figures["by_level"]) == {"5", "6"}
    assert figures["blind_best_of"]["1"] == pytest.approx(0.25)
