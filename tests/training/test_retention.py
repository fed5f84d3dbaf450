"""The differentiable side of TRIM-KV: fading, counting, losses, gradients; runs that resume."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from capax.errors import ConfigError
from capax.files.model_file import open_model
from capax.kv.retention_gates import read_gates
from capax.training.frozen_llama import FrozenLlama
from capax.training.recall_documents import HELD_OUT, TRAINING, recall_document
from capax.training.retention import (
    capacity_loss,
    fading,
    gated_logits,
    new_gates,
    quality_losses,
    retained,
)
from capax.training.retention_run import Recipe, RetentionRun
from tests.kv.bounded_runs import Runner, some_ids, trim_cache
from tests.models import gguf_model, hf_model, hf_oracle
from tests.reference_model import reference_logits

# float32 against transformers, as a share of the largest |logit|. Measured when written: 1e-6.
FLOAT_TOLERANCE = 1e-5


def model(path: Path | None = None, dtype: torch.dtype = torch.float32) -> FrozenLlama:
    return FrozenLlama(open_model(path or hf_model("llama")), 512, dtype)


def relative(ours: object, reference: object) -> float:
    a, b = np.asarray(ours), np.asarray(reference)
    return float(np.abs(a - b).max() / np.abs(b).max())


def test_without_gates_it_is_the_model() -> None:
    ids = some_ids(100)
    with torch.no_grad():
        reference = hf_oracle(hf_model("llama"))(torch.tensor([ids])).logits[0]
        assert relative(model().logits(torch.tensor(ids)), reference) < FLOAT_TOLERANCE
    gguf = gguf_model("llama", encoding="Q4_1")  # interleaved pairs, decoded by capax's loader
    ours = model(gguf).logits(torch.tensor(ids))
    assert relative(ours, reference_logits(open_model(gguf), ids)) < FLOAT_TOLERANCE


def test_gates_that_never_forget_change_nothing() -> None:
    frozen, ids = model(), torch.tensor(some_ids(100))
    gates = new_gates(frozen, 16, 100, seed=0, bias=60.0)
    with torch.no_grad():
        logits, log_betas = gated_logits(frozen, gates, ids)
        assert max(float(b.abs().max()) for b in log_betas) < 1e-20
        assert relative(logits, frozen.logits(ids)) < FLOAT_TOLERANCE


def test_models_with_more_than_plain_attention_are_refused() -> None:
    with pytest.raises(ConfigError, match="without biases and QK norms"):
        model(hf_model("qwen2"))


def test_fading_takes_from_a_score_in_proportion_to_age() -> None:
    bias = fading(torch.tensor([-0.5, -0.1, 0.0]))
    inf = float("inf")
    expected = [[0, -inf, -inf], [-0.5, 0, -inf], [-1.0, -0.1, 0]]
    assert torch.allclose(bias, torch.tensor(expected))


def test_counting_in_blocks_is_counting_at_once() -> None:
    log_beta = -torch.rand(2, 3, 300, dtype=torch.float64) * 0.1
    dense = torch.exp(fading(log_beta)).sum(-1)
    assert torch.allclose(retained(log_beta), dense, rtol=1e-5, atol=0)
    single = log_beta.float()
    assert torch.allclose(retained(single), torch.exp(fading(single)).sum(-1), rtol=1e-5, atol=0)


def test_the_gradient_of_counting_is_right() -> None:
    log_beta = (-torch.rand(2, 150, dtype=torch.float64) * 0.1).requires_grad_()
    assert torch.autograd.gradcheck(retained, (log_beta,), fast_mode=True)


def test_capacity_is_the_mean_over_positions_above_the_budget() -> None:
    steady = torch.zeros(1, 10)  # S_t = t: exceeds 4 by t - 4 from t = 5 on, so 1 everywhere
    assert float(capacity_loss([steady], 4)) == pytest.approx(1.0)
    gone = torch.full((1, 10), -50.0)  # S_t = 1: never exceeds
    assert float(capacity_loss([gone], 4)) == 0.0
    both = torch.cat([steady, gone])
    assert float(capacity_loss([both], 4)) == pytest.approx(0.5)


def test_quality_is_zero_for_the_teacher_itself() -> None:
    logits, tokens = torch.randn(20, 50), torch.randint(0, 50, (20,))
    kl, next_token = quality_losses(logits, logits, tokens)
    assert abs(float(kl)) < 1e-6
    expected = torch.nn.functional.cross_entropy(logits[:-1], tokens[1:])
    assert float(next_token) == pytest.approx(float(expected), rel=1e-5)
    worse, _ = quality_losses(torch.zeros(20, 50), logits, tokens)
    assert worse > 0.1


def test_gradients_of_the_whole_loss_are_finite_differences() -> None:
    frozen = model(dtype=torch.float64)
    tokens = torch.tensor(some_ids(48))
    memory = 12
    gates = new_gates(frozen, 8, 48, seed=1, bias=4.0).double()
    with torch.no_grad():
        teacher = frozen.logits(tokens)

    def loss() -> torch.Tensor:
        logits, log_betas = gated_logits(frozen, gates, tokens)
        held = retained(torch.stack(log_betas))
        assert (
            float((held - memory).detach().abs().min()) > 1e-5
        )  # nobody on the edge of the budget
        kl, next_token = quality_losses(logits, teacher, tokens)
        return (kl + next_token) / 2 + capacity_loss(log_betas, memory)

    loss().backward()
    rng = np.random.default_rng(0)
    parameters = list(gates.parameters())
    for _ in range(20):
        p = parameters[rng.integers(len(parameters))]
        at = int(rng.integers(p.numel()))
        gradient = float(p.grad.view(-1)[at])  # type: ignore[union-attr]
        step = 1e-6
        with torch.no_grad():
            flat = p.view(-1)
            flat[at] += step
            above = float(loss())
            flat[at] -= 2 * step
            below = float(loss())
            flat[at] += step
        assert (above - below) / (2 * step) == pytest.approx(gradient, rel=1e-3, abs=1e-9)


def test_training_attends_as_the_engine_does_over_a_bounded_cache() -> None:
    """The same gates, tokens dropped in both: a mask in PyTorch, the trim cache in the engine."""
    path = hf_model("llama")
    runner = Runner(path)
    ids, memory, buffer = some_ids(150), 40, 8
    frozen = model(path)
    gates = new_gates(frozen, 16, 30, seed=3, bias=2.0)

    class TorchGates:
        def log_beta(self, layer: int, x: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                said: np.ndarray = gates[layer](torch.from_numpy(x.copy())).numpy()
            return said

    def dropped(layer: int, x: torch.Tensor) -> torch.Tensor:
        visible = survivors(gates[layer](x).numpy(), memory, buffer)
        return torch.where(torch.from_numpy(visible), 0.0, -torch.inf)

    with torch.no_grad():
        masked = frozen.logits(torch.tensor(ids), dropped)
        plain = frozen.logits(torch.tensor(ids))
    engine = runner.feed(trim_cache(runner, TorchGates(), memory, buffer), ids)
    # The cache holds f16, and a close call may go the other way in float32 of another order.
    assert relative(engine, masked) < 0.2 * relative(plain, masked)


def survivors(log_beta: np.ndarray, memory: int, buffer: int) -> np.ndarray:
    """Which tokens a trim cache holds for each query: bool [n_kv_heads, T, T]."""
    n_heads, n = log_beta.shape
    visible = np.zeros((n_heads, n, n), np.bool_)
    for head in range(n_heads):
        alive: list[int] = []
        for t in range(n):
            alive.append(t)
            visible[head, t, alive] = True
            if len(alive) == memory + buffer:
                alive.sort(key=lambda p: (float(log_beta[head, p]) * (t - p + 1), p))
                alive = sorted(alive[buffer:])
    return visible


# --- documents --------------------------------------------------------------------------


def encode(text: str) -> list[int]:
    return list(text.encode())


@pytest.mark.parametrize("templates", [TRAINING, HELD_OUT])
def test_a_recall_document_says_a_fact_early_and_asks_late(templates: object) -> None:
    import random

    filler = encode("x" * 2000)
    document = recall_document(encode, filler, 1000, random.Random(1), templates, n_facts=2)  # type: ignore[arg-type]
    assert len(document.tokens) == 1000
    text = bytes(document.tokens).decode()
    answer = bytes(document.tokens[document.answer_begin :]).decode()
    assert answer == f" {document.answer}."
    assert 0 <= text.index(document.answer) < 250
    assert text.count(document.answer) == 2


def test_held_out_documents_share_no_sentence_with_training() -> None:
    assert not {t.fact for t in TRAINING} & {t.fact for t in HELD_OUT}
    keys = {k for t in TRAINING for k in t.keys}
    assert not keys & {k for t in HELD_OUT for k in t.keys}


# --- runs -------------------------------------------------------------------------------

RECIPE = Recipe(
    n_tokens=64,
    memory=8,
    steps=6,
    width=8,
    recall=0.0,
    precision="f32",
    tight_after=4,
    tight_memory=2,
)
TEXT = "the quick brown fox jumps over the lazy dog. " * 60


def trained(folder: Path, recipe: Recipe = RECIPE, stop_at: int | None = None) -> RetentionRun:
    run = RetentionRun(open_model(hf_model("llama")), TEXT, recipe, folder)
    if stop_at is not None:

        def stop(line: dict[str, float]) -> None:
            if line["step"] == stop_at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run.train(folder / "g.safetensors", stop, every=2)
    else:
        run.train(folder / "g.safetensors", lambda line: None, every=2)
    return run


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    trained(tmp_path / "cut", stop_at=3)
    again = trained(tmp_path / "cut")
    for a, b in zip(whole.gates.parameters(), again.gates.parameters(), strict=True):
        assert torch.equal(a, b)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    steps = [[json.loads(line)["kl"] for line in log] for log in logs]
    assert steps[0] == steps[1]
    assert len(steps[0]) == RECIPE.steps


def test_training_brings_capacity_down(tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=12, learning_rate=0.1)
    trained(tmp_path, recipe)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["capacity"] < 0.5 * lines[0]["capacity"]
    assert lines[-1]["held_mean"] < lines[0]["held_mean"]


def test_another_recipe_does_not_go_on(tmp_path: Path) -> None:
    trained(tmp_path)
    with pytest.raises(ConfigError, match="another recipe, text or model"):
        trained(tmp_path, replace(RECIPE, seed=1))


def test_what_is_saved_runs_as_it_was_trained(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    runner = Runner(hf_model("llama"))
    gates = read_gates(tmp_path / "run" / "g.safetensors", runner.file)
    x = np.random.default_rng(0).standard_normal((5, runner.config.d_model)).astype(np.float32)
    with torch.no_grad():
        expected = run.gates[1](torch.from_numpy(x)).numpy()
    assert np.allclose(gates.log_beta(1, x), expected, rtol=0.05)  # bfloat16


def test_recipes_out_of_range_are_refused(tmp_path: Path) -> None:
    for wrong in ({"memory": 600}, {"n_tokens": 10}, {"hold_out": 1.0}, {"precision": "f8"}):
        with pytest.raises(ConfigError):
            replace(Recipe(), **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="are the least for 64 at a time"):
        RetentionRun(open_model(hf_model("llama")), "short", RECIPE, tmp_path)
