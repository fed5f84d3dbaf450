"""The reference ladder: its schedule, branches that share a run, and variants of a model."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from capax.cli import main
from capax.cli.train_ladder import SIZES
from capax.errors import ConfigError
from capax.files.encodings import encoding_named
from capax.measuring.densing_law import reference_params

pytest.importorskip("torch")

import torch

from capax.training import ladder
from capax.training.bench_s import END, ID, TOKENS, BenchS, Mix
from capax.training.documents import begun
from capax.training.ladder import LADDER, RATIOS, Exam, Rung, climb, n_params_of, train_once
from capax.training.ladder_targets import (
    bits_in_file,
    distillation,
    encoded,
    looped,
    n_zeros,
    pruned,
)
from capax.training.loop import StableSchedule

TINY = Rung(
    d_model=32, n_layers=1, n_heads=2, n_kv_heads=1, d_ffn=32, tokens_per_step=1024,
    learning_rate=2e-3,
)  # fmt: skip


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "LEAST_STEPS", 1)


def test_runs_of_several_lengths_share_all_but_their_decay() -> None:
    short, long = StableSchedule(1000, 2e-3, floor=0.02), StableSchedule(6000, 2e-3, floor=0.02)
    assert short.decay_from == 900
    assert [short.rate(s) for s in range(900)] == [long.rate(s) for s in range(900)]
    assert short.rate(30) == pytest.approx(2e-3 * 31 / 60)
    assert short.rate(500) == 2e-3
    falling = [short.rate(s) for s in range(900, 1000)]
    assert all(b < a for a, b in itertools.pairwise(falling))
    assert falling[-1] == pytest.approx(2e-3 * (0.02 + 0.98 / 100))


def test_parameters_are_counted_without_the_embedding_and_points_have_steps_enough() -> None:
    for rung in LADDER.values():
        shape = rung.shape()
        assert shape.head_dim == 16
        counted = reference_params(
            rung.n_layers, rung.d_model, rung.d_ffn, rung.n_heads, rung.n_kv_heads, 16
        )
        assert rung.n_params == counted
        for ratio in RATIOS:
            assert rung.schedule(ratio * rung.n_params).steps >= 300
        for width in (rung.d_model, rung.d_ffn):
            assert width % 32 == 0  # rows of whole blocks for Q8_0 and Q4_1
    with pytest.raises(ConfigError, match="fewer tokens per step"):
        LADDER["19k"].schedule(1e4)


def test_a_branch_equals_a_run_of_its_own(tmp_path: Path, few_steps: None) -> None:
    exam = Exam(60)
    points = climb(TINY, tmp_path / "a", ratios=(2, 3), early=(1,), exam=exam)
    assert [(p["phase"], p["ratio"]) for p in points] == [
        ("stable", 1), ("stable", 2), ("decayed", 2), ("stable", 3), ("decayed", 3),
    ]  # fmt: skip
    once = train_once(TINY, 3 * TINY.n_params, tmp_path / "once")
    assert exam.figures(once)["exam_loss"] == points[-1]["loss"]
    # What is there is not trained again, and what is not is.
    kept = (tmp_path / "a" / "points.jsonl").read_text()
    assert climb(TINY, tmp_path / "a", ratios=(2, 3), early=(1,), exam=exam) == points
    assert (tmp_path / "a" / "points.jsonl").read_text() == kept
    assert len(climb(TINY, tmp_path / "a", ratios=(2, 3, 4), exam=exam)) == 7
    assert [json.loads(line) for line in kept.splitlines()] == points


def test_the_command_writes_the_tables_of_a_ruler(
    tmp_path: Path, few_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LADDER, "19k", TINY)
    monkeypatch.setattr(ladder, "Exam", lambda: Exam(50))
    arguments = ["train", "ladder", "-o", str(tmp_path), "--size", "19k", "--ratio", "2"]
    assert main.run([*arguments, "--ratio", "3"]) == 0
    rows = (tmp_path / "ladder.csv").read_text().splitlines()
    assert rows[0] == "params,tokens,loss"
    assert [float(row.split(",")[0]) for row in rows[1:]] == [TINY.n_params] * 2
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 5


def test_the_score_is_greedy_exact_match() -> None:
    model, exam = begun(TINY.shape(), 3), Exam(40)
    with torch.no_grad():  # a model that likes some answers
        model.model.embed_tokens.weight.mul_(8)
    losses, right = exam.measure(model)
    assert losses.shape == right.shape == (40,)
    for problem, is_right in zip(exam.problems, right, strict=True):
        ids, said = [ID[c] for c in problem.opening], []
        for asked in (*problem.asked, ""):  # turn by turn, on its own answers; then the end
            ids += [ID[asked]] if asked else []
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
            said.append(ids[-1])
        assert (said == [*(ID[c] for c in problem.answer), END]) == bool(is_right)


def test_variants(tmp_path: Path, few_steps: None) -> None:
    model = begun(TINY.shape(), 1)
    half = pruned(model, 0.5)
    n_matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2) - len(TOKENS) * 32
    assert n_zeros(half) == n_matrices // 2
    assert n_zeros(model) == 0
    assert torch.equal(half.model.embed_tokens.weight, model.model.embed_tokens.weight)
    largest = model.model.layers[0].mlp.up_proj.weight.abs().argmax()
    assert half.model.layers[0].mlp.up_proj.weight.view(-1)[largest] != 0

    exam = Exam(50)
    loss = {e: exam.measure(encoded(model, e))[0].mean() for e in ("F32", "Q8_0", "Q4_1")}
    assert loss["F32"] == exam.measure(model)[0].mean()
    assert 0 < abs(loss["Q8_0"] - loss["F32"]) < abs(loss["Q4_1"] - loss["F32"])

    n_vectors = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    for name, per_weight in (("F16", 16), ("Q8_0", 8.5), ("Q4_1", 5)):
        bits = bits_in_file(model, name, tmp_path / f"{name}.gguf")
        assert bits["without_embedding"] == n_matrices * per_weight + n_vectors * 32
        assert bits["all"] - bits["without_embedding"] == len(TOKENS) * 32 * per_weight
        assert per_weight == encoding_named(name).bits_per_weight

    twice = looped(TINY, 1)
    assert n_params_of(twice) == n_params_of(model)
    assert not np.allclose(exam.measure(twice)[0], exam.measure(model)[0])
    taught = train_once(
        replace(TINY, tokens_per_step=2048), 2 * TINY.n_params, tmp_path / "taught",
        loss_of=distillation(model, BenchS(Mix()), 0, 2048), note="taught",
    )  # fmt: skip
    assert exam.figures(taught)["exam_loss"] < 5


def test_the_command_offers_the_sizes_there_are() -> None:
    assert tuple(LADDER) == SIZES
