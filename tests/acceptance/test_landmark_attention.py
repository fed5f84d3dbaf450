"""Landmark Attention (arXiv 2305.16300): what the cache and the training form promise, exactly.

What training achieves is measured by benchmarks/landmark.py; here are the identities.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from capax import LLM, SamplingParams
from capax.errors import ConfigError
from capax.kv import kv_method
from capax.training.landmark import landmark_attention
from capax.training.llama import causal_attention
from tests.kv.landmark_models import (
    BLOCK,
    WINDOW,
    Reader,
    landmark_model,
    oracle_logits,
    some_ids,
)
from tests.kv.landmark_oracle import grouped_weights, stream_groups

EVERYTHING = "landmark:k=80,chunk=16"
K = 4
CHUNK = WINDOW - (K + 1) * BLOCK


# --- 1. the softmax ---------------------------------------------------------------------


@pytest.mark.parametrize("n_padding", [0, 1, 5, BLOCK - 1])
def test_the_training_form_equals_the_literal_groups(n_padding):
    random = torch.Generator().manual_seed(n_padding)
    q, k = (torch.randn(1, 2, 40, 12, generator=random, dtype=torch.float64) * 2 for _ in range(2))
    identity = torch.eye(40, dtype=torch.float64).expand(1, 2, 40, 40)
    weights = landmark_attention(BLOCK, n_padding)(q, k, identity).numpy()
    is_landmark, groups = stream_groups(40 - n_padding, BLOCK, n_padding)
    for head in range(2):
        scores = (q[0, head] @ k[0, head].T).numpy()[n_padding:, n_padding:] * 12**-0.5
        literal = grouped_weights(scores, is_landmark, groups)
        found = weights[0, head, n_padding:, n_padding:]
        sees_something = literal.sum(axis=1) > 0
        np.testing.assert_allclose(found[sees_something], literal[sees_something], atol=1e-12)
        np.testing.assert_allclose(found[sees_something].sum(axis=1), 1, atol=1e-12)
        assert (found[sees_something][:, is_landmark] == 0).all()


def test_within_one_block_it_is_the_causal_softmax():
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, BLOCK, 8, generator=random, dtype=torch.float64) for _ in range(3))
    plain = causal_attention(q, k, v)
    found = landmark_attention(BLOCK)(q, k, v)
    torch.testing.assert_close(found[:, :, :-1], plain[:, :, :-1], atol=1e-12, rtol=0)


def test_its_gradient_is_that_of_its_values():
    random = torch.Generator().manual_seed(1)
    inputs = tuple(
        torch.randn(1, 1, 16, 4, generator=random, dtype=torch.float64, requires_grad=True)
        for _ in range(3)
    )
    assert torch.autograd.gradcheck(landmark_attention(4, 1), inputs)


# --- 3. everything retrieved is everything attended -------------------------------------


@pytest.mark.parametrize("n_kv_heads", [2, 4])
def test_choosing_all_blocks_equals_one_full_forward(n_kv_heads):
    ids = some_ids(8 * WINDOW * (BLOCK - 1) // BLOCK + 3)
    found = Reader(EVERYTHING, n_kv_heads).read(ids)
    np.testing.assert_allclose(found, oracle_logits(ids, n_kv_heads), atol=2e-4)


@pytest.mark.parametrize("chunk", [8, 16, 40])
def test_whatever_the_chunk(chunk):
    ids = some_ids(150)
    found = Reader(f"landmark:k=80,chunk={chunk}").read(ids)
    np.testing.assert_allclose(found, oracle_logits(ids), atol=2e-4)


def test_choosing_fewer_makes_a_difference():
    """The negative control of the two tests above."""
    ids = some_ids(300)
    found = Reader("landmark:k=1,chunk=16").read(ids)
    assert np.abs(found - oracle_logits(ids)).max() > 0.05


@pytest.mark.parametrize("spec", ["landmark", "landmark:k=2,chunk=8", "landmark:granularity=token"])
def test_logits_do_not_depend_on_how_tokens_are_fed(spec):
    """Bit for bit, token by token and across blocks and chunks, aligned or not."""
    ids = some_ids(130)
    reader = Reader(spec)
    whole = reader.read(ids)
    for step in (1, 7, 21, 64):
        assert reader.read(ids, step).tobytes() == whole.tobytes()


# --- 4, 5. bounded work, bounded positions ----------------------------------------------


@pytest.mark.parametrize("step", [1, 7, 16, 200])
def test_work_and_positions_are_bounded_at_any_length(step):
    reader = Reader(f"landmark:k={K}")
    reader.read(some_ids(1200), step)
    work = reader.store.work
    assert work.most_keys <= K * BLOCK + CHUNK
    assert work.most_distance == WINDOW - 1


def test_a_larger_chunk_leaves_the_window_and_is_counted():
    reader = Reader(f"landmark:k={K},chunk={2 * CHUNK}")
    reader.read(some_ids(300))
    assert reader.store.work.most_distance == WINDOW - 1 + CHUNK


# --- 9. off-load ------------------------------------------------------------------------


def test_blocks_in_a_file_give_the_same_tokens(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    ids, params = some_ids(200), SamplingParams(max_tokens=40, ignore_eos=True)
    answers, kept = [], []
    for where in ("ram", "mmap"):
        with LLM(landmark_model(), kv=f"landmark:offload={where}", threads=1, ctx_size=400) as llm:
            answers.append(llm.generate(ids, params).outputs[0].token_ids)
            kept.append(llm.plan.kv_footprint.page)
    assert answers[0] == answers[1]
    assert kept[1] <= 0.15 * kept[0]
    assert list(tmp_path.iterdir()) == []


# --- 10. granularity --------------------------------------------------------------------


def test_heads_that_choose_for_all_their_tokens_fetch_less():
    fetched = {}
    for granularity in ("head_token", "head"):
        reader = Reader(f"landmark:k=2,granularity={granularity}")
        reader.read(some_ids(500), 100)
        fetched[granularity] = reader.store.work.fetched_nbytes
    assert fetched["head"] < 0.5 * fetched["head_token"]


def test_all_granularities_agree_when_all_is_chosen():
    ids = some_ids(200)
    logits = [
        Reader(f"{EVERYTHING},granularity={granularity}").read(ids)
        for granularity in ("head_token", "token", "head")
    ]
    np.testing.assert_array_equal(logits[0], logits[1])
    np.testing.assert_array_equal(logits[0], logits[2])


# --- 11. leaks --------------------------------------------------------------------------


class Spy:
    """Sees which blocks a cache chooses."""

    def __init__(self, cache, monkeypatch) -> None:
        self.chosen: set[int] = set()
        original = cache._fetched

        def fetched(layer, blocks):
            self.chosen.update(int(b) for b in blocks.ravel())
            return original(layer, blocks)

        monkeypatch.setattr(cache, "_fetched", fetched)


def last_logits(spec, monkeypatch, spoil):
    """Return the logits of one more token after `spoil(records [layers, slots, ...], chosen)`."""
    reader = Reader(spec)
    ids = some_ids(400)
    cache = reader.store.new()
    reader.feed(cache, ids)
    probe = cache.fork()
    spy = Spy(probe, monkeypatch)
    clean = reader.feed(probe, [33])
    assert 0 < len(spy.chosen) < 50
    spoil(cache._region.records, spy.chosen)
    spoiled = reader.feed(cache, [33])
    probe.close()
    cache.close()
    return clean, spoiled


def test_blocks_nobody_chose_and_landmark_values_do_not_leak(monkeypatch):
    def spoil(records, chosen):
        n_blocks = 400 * BLOCK // (BLOCK - 1) // CHUNK * CHUNK // BLOCK
        others = [b for b in range(n_blocks) if b not in chosen]
        assert others
        records[:, others] = 1e4
        records[:, :, :, 1, -1] = -1e4  # the values of all landmarks

    clean, spoiled = last_logits("landmark:k=2", monkeypatch, spoil)
    assert clean.tobytes() == spoiled.tobytes()


def test_a_chosen_block_does_matter(monkeypatch):
    def spoil(records, chosen):
        records[:, sorted(chosen), :, 1] += 1.0

    clean, spoiled = last_logits("landmark:k=2", monkeypatch, spoil)
    assert np.abs(clean - spoiled).max() > 1e-3


# --- who may use it ---------------------------------------------------------------------


def test_models_without_landmarks_are_refused():
    with pytest.raises(ConfigError, match="trained with landmarks"):
        LLM(landmark_model(has_landmarks=False), kv="landmark")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("landmark:k=-1", "k is -1"),
        ("landmark:k=8", "leaves no room"),
        ("landmark:chunk=12", "multiple of the block"),
        ("landmark:max_blocks=0", "max_blocks is 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(spec, says):
    with pytest.raises(ConfigError, match=says):
        LLM(landmark_model(), kv=spec)


@pytest.mark.parametrize("where", ["ram", "mmap"])
def test_what_is_planned_is_what_is_held(where):
    reader = Reader(f"landmark:offload={where}")
    footprint = kv_method(f"landmark:offload={where}").footprint(reader.store.config)
    cache = reader.store.new()
    reader.feed(cache, some_ids(300))
    arrays = [cache._raw, cache._k, cache._v]
    region = cache._region
    n_slots = footprint.pages_for(300) * 16
    arrays += [region.landmarks[:, :, :n_slots]]
    arrays += [region.records[:, :n_slots]] if where == "ram" else []
    assert footprint.nbytes(300) == sum(a.nbytes for a in arrays) == reader.store.nbytes
    assert cache.nbytes == reader.store.nbytes


# --- the trained model ------------------------------------------------------------------

TINY = Path(__file__).resolve().parents[2] / "models" / "landmark-tiny"


def test_the_model_is_the_one_its_recipe_names():
    record = json.loads((TINY / "recipe.json").read_text())
    for name, digest in record["sha256"].items():
        assert hashlib.sha256((TINY / name).read_bytes()).hexdigest() == digest


@pytest.mark.slow
def test_it_finds_a_pass_key_windows_back():
    """In prose it was not trained on; how often it succeeds is a benchmark."""
    prose = " ".join((TINY.parents[1] / "LICENSE").read_text().split())
    right = 0
    with LLM(TINY, kv="landmark:k=4", threads=1, ctx_size=1200) as llm:
        for i, key in enumerate(("48213", "90571", "13862", "72094", "31487", "65920")):
            fact = f" The pass key is {key}. Remember it. {key} is the pass key."
            text = prose[1000 * i :][:300] + fact + prose[1000 * i + 300 :][:2000]
            question = " What is the pass key? The pass key is "
            params = SamplingParams(max_tokens=5, ignore_eos=True, temperature=0.0)
            right += llm.generate(text + question, params).outputs[0].text == key
    assert right >= 4
