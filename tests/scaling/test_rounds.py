"""Rounds of rethinking: what each prompt shows, going on after a stop, and what is read back."""

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest

from capax import LLM
from capax.decoding.params import SamplingParams
from capax.endpoints.local import LocalEndpoint
from capax.errors import ConfigError, EndpointError
from capax.scaling.checkers import checker_named
from capax.scaling.rounds import History, RoundsPlan, load_chains, prompt_of, run_rounds
from capax.scaling.run_directory import RunDirectory, Sample, Timing, read_rows
from capax.scaling.tasks import Task
from tests.models import gguf_model
from tests.scaling.scripted import Scripted, sums


def plan(history: History = "last", chains: int = 3) -> RoundsPlan:
    return RoundsPlan(chains, 4, SamplingParams(max_tokens=8), history, again=" Again:")


def run(path: Path, endpoint: Scripted, made: RoundsPlan) -> str:
    tasks = sums(5)
    with RunDirectory(path, made.settings(tasks, "none")) as directory:
        return asyncio.run(run_rounds(endpoint, tasks, directory, made))


def test_a_prompt_shows_the_last_answer_or_all() -> None:
    (task,) = sums(1)
    assert prompt_of(task, [], plan()) == "0 + 0 ="
    assert prompt_of(task, ["a", "b"], plan()) == "0 + 0 =b Again:"
    assert prompt_of(task, ["a", "b"], plan("all")) == "0 + 0 =a Again:b Again:"
    chat = Task("c", [{"role": "user", "content": "q"}], "1", checker_named("numeric"))
    shown = prompt_of(chat, ["a", "b"], plan())
    assert [m["content"] for m in shown if not isinstance(m, str)] == ["q", "b", " Again:"]


def test_a_stopped_run_ends_as_one_that_was_not(tmp_path: Path) -> None:
    assert run(tmp_path / "whole", Scripted(), plan()) == "success"
    with pytest.raises(EndpointError):
        run(tmp_path / "cut", Scripted(fail_at=17), plan())
    rest = Scripted()
    assert run(tmp_path / "cut", rest, plan()) == "success"
    assert 0 < rest.n_calls < 60
    whole, cut = (
        sorted((s.key, s.text, s.seed) for s in read_rows(tmp_path / name, Sample))
        for name in ("whole", "cut")
    )
    assert whole == cut
    chains = load_chains(tmp_path / "whole")
    assert chains.outcomes.shape == (15, 4)
    assert 0.1 < chains.outcomes.mean() < 0.6


def test_another_history_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "run", Scripted(), plan())
    with pytest.raises(ConfigError, match="history"):
        run(tmp_path / "run", Scripted(), plan("all"))


def test_kept_history_is_not_read_again(tmp_path: Path) -> None:
    """Through the engine: what a round reads is the text after the pages it has kept."""
    tasks = [Task("t", "the rain " * 60, "7", checker_named("numeric"))]
    made = RoundsPlan(
        1, 4, SamplingParams(max_tokens=40, ignore_eos=True), "all", " and again ", concurrency=1
    )  # fmt: skip

    async def go() -> None:
        with RunDirectory(tmp_path / "run", made.settings(tasks, "tiny")) as directory:
            async with LocalEndpoint(llm) as endpoint:
                await run_rounds(endpoint, tasks, directory, made)

    with LLM(gguf_model("llama", max_position_embeddings=2048), threads=1) as llm:
        asyncio.run(go())
    rows = sorted(read_rows(tmp_path / "run", Timing), key=lambda row: row.first_idx)
    assert rows[0].cached_tokens == 0
    for before, row in pairwise(rows):
        assert row.prompt_tokens > before.prompt_tokens
        fresh = row.prompt_tokens - row.cached_tokens
        assert fresh < row.prompt_tokens - before.prompt_tokens + 64  # a page of 64 at most
