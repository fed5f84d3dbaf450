"""`capax train landmark`: data, the run, and the model it leaves."""

import json
import random

import pytest
import torch

from capax import LLM, SamplingParams
from capax.errors import ConfigError
from capax.training.landmark import LandmarkRecipe, landmark_stream
from capax.training.landmark_data import Document, Documents
from capax.training.landmark_run import train_landmark
from capax.training.python_texts import Split

TEXTS = [f"Line {i} says that {i * i} is the square of {i}, which is known.\n" for i in range(90)]
RECIPE = LandmarkRecipe(
    vocab_size=320, d_model=32, n_layers=2, n_heads=2, d_ffn=48, batch=2,
    copy_steps=1, short_steps=1, steps=3, horizon=5,
)  # fmt: skip


@pytest.fixture(scope="module")
def documents():
    return Documents(lambda text: [ord(c) % 256 for c in text], list(range(300)) * 9)


def test_the_key_is_where_the_prompt_says(documents):
    for seed in range(20):
        prompt = documents.prompt(random.Random(seed), 400, outside=200)
        assert len(prompt.tokens) == 400
        assert [prompt.tokens[i] for i in prompt.digits] == prompt.key
        assert prompt.fact + len(documents.statement(prompt.key)) <= 200


@pytest.mark.parametrize("kind", ["pass_key", "echo", "double", "prose"])
def test_documents_have_the_length_that_was_asked_for(documents, kind):
    draw = random.Random(kind)
    more = {"pass_key": {"n_questions": 3, "weight": 4.0}, "echo": {"weight": 4.0}}.get(kind, {})
    for n in (180, 181, 240):
        document = getattr(documents, kind)(draw, n, **more)
        assert len(document.tokens) == len(document.weights) == n


def test_answers_and_second_mentions_weigh_more(documents):
    document = documents.pass_key(random.Random(1), 240, n_questions=1, weight=4.0)
    heavy = [i for i, weight in enumerate(document.weights) if weight == 4.0]
    tokens = [document.tokens[i] for i in heavy]
    assert len(heavy) == 10
    assert tokens[:5] == tokens[5:]
    assert heavy[-1] == 239


def test_landmarks_close_blocks_and_count_nothing():
    document = Document(list(range(1, 12)), [1.0] * 11)
    tokens, targets, weights = landmark_stream([document], 4, 99, 2)
    # Two places of padding, then blocks of three regular tokens and a landmark.
    assert tokens.tolist() == [[99, 99, 1, 99, 2, 3, 4, 99, 5, 6, 7, 99, 8, 9, 10, 99]]
    at = weights[0] > 0
    assert targets[0, at].tolist() == list(range(2, 12))
    assert tokens[0, at].tolist() == list(range(1, 11))


def test_the_model_of_a_run_is_loaded_by_the_engine(tmp_path):
    lines = []
    split = Split(TEXTS, TEXTS[:30])
    folder = train_landmark(tmp_path, RECIPE, split=split, on_report=lines.append)
    assert [line["step"] for line in lines] == [3]
    record = json.loads((folder / "recipe.json").read_text())
    assert record["recipe"]["steps"] == 3
    with LLM(folder, kv="landmark:k=2", threads=1, ctx_size=600) as llm:
        params = SamplingParams(max_tokens=4, ignore_eos=True)
        assert len(llm.generate("Line " * 200, params).outputs[0].token_ids) == 4
    twin = train_landmark(tmp_path, RECIPE, is_twin=True, split=split)
    with pytest.raises(ConfigError, match="trained with landmarks"):
        LLM(twin, kv="landmark")


def test_both_models_see_the_same_regular_tokens(monkeypatch, documents):
    from capax.training import landmark
    from capax.training.llama import Llama

    seen = []
    original = landmark.draw_documents

    def draw(*arguments):
        seen.append(original(*arguments))
        return seen[-1]

    monkeypatch.setattr(landmark, "draw_documents", draw)
    model = Llama(RECIPE.shape(64))
    model.initialise(torch.Generator().manual_seed(0))
    for landmark_id in (1, None):
        landmark.loss_function(model, documents, RECIPE, landmark_id)(2)
    assert seen[0] == seen[1]
