"""The trainable Llama is the engine's, and a run that was stopped goes on as if it had not been."""

import json

import numpy as np
import pytest
import torch

from capax import LLM
from capax.errors import StoreError
from capax.training.landmark_data import END, train_tokenizer
from capax.training.llama import Llama, LlamaShape, export
from capax.training.loop import Schedule, train

SHAPE = LlamaShape(
    vocab_size=300, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ffn=48, context_len=64
)


def new_model(shape=SHAPE):
    model = Llama(shape)
    model.initialise(torch.Generator().manual_seed(5))
    return model


@pytest.mark.parametrize("tied_embeddings", [True, False])
def test_the_engine_computes_the_same_logits(tmp_path, tied_embeddings):
    model = new_model(LlamaShape(**{**vars(SHAPE), "tied_embeddings": tied_embeddings}))
    tokenizer = train_tokenizer(["one two three one two"], 300)
    export(model, tmp_path, tokenizer, tokenizer_config={"eos_token": END}, dtype=torch.float32)
    ids = [3 + i * 11 % 250 for i in range(40)]
    with LLM(tmp_path, kv="f32", threads=1, ctx_size=64) as llm:
        logits = llm.logits(ids)
    with torch.inference_mode():
        expected = model(torch.tensor([ids]))[0].numpy()
    np.testing.assert_allclose(logits, expected, atol=2e-4)


def test_a_stopped_run_equals_one_that_was_not(tmp_path):
    def loss_of(model):
        def loss(step):
            tokens = torch.randint(300, (2, 12), generator=torch.Generator().manual_seed(step))
            return torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())

        return loss

    schedule = Schedule(steps=6, learning_rate=1e-3)
    whole, stopped, resumed = new_model(), new_model(), new_model()
    train(whole, loss_of(whole), schedule, tmp_path / "a", recipe={}, report_every=2)
    train(stopped, loss_of(stopped), schedule, tmp_path / "b", recipe={}, stop_after=3)
    train(resumed, loss_of(resumed), schedule, tmp_path / "b", recipe={})
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    lines = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    with pytest.raises(StoreError, match="another recipe"):
        train(new_model(), loss_of(whole), schedule, tmp_path / "b", recipe={"seed": 2})


def test_the_rate_rises_and_falls_to_its_floor():
    schedule = Schedule(steps=100, learning_rate=1.0, warm_up=0.1, floor=0.2)
    assert schedule.rate(0) == pytest.approx(0.1)
    assert schedule.rate(9) == schedule.rate(10) == pytest.approx(1.0)
    assert schedule.rate(100) == pytest.approx(0.2)
