"""The form of answers in json mode, against a model that says anything at all."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest

from capax import SamplingParams
from capax.decoding.constraint import ConstraintCompiler
from capax.decoding.sampling import Sampler
from capax.decoding.structured import StructuredOutputs
from capax.files.describe import load_tokenizer
from capax.files.model_file import open_model
from capax.measuring.procbench.answer_form import schema
from capax.measuring.procbench.problem import TASKS, Task
from tests.models import VOCAB_SIZE, gguf_model

TOKENIZER = load_tokenizer(open_model(gguf_model("llama")))
COMPILER = ConstraintCompiler(TOKENIZER, VOCAB_SIZE)
CLOSING = [TOKENIZER.encode(text, add_special=False)[0] for text in ('"', "}", "]", ",")]
# Tasks of one form have one grammar.
FORMS = {(task.kind, task.final_kind): task for task in TASKS.values()}
N_STEPS = 10_000


def random_answer(task: Task, seed: int) -> tuple[str, int]:
    """Sample an answer from random logits under the task's form; return it and its tokens.

    After 60 tokens the logits want it to end, or no answer ever would.
    """
    rng = np.random.default_rng(seed)
    state = COMPILER.compile(StructuredOutputs(json=schema(task)))()
    sampler = Sampler(SamplingParams(seed=seed), 0, [])
    tokens: list[int] = []
    is_complete = False
    while not is_complete:
        logits = rng.normal(0.0, 4.0, VOCAB_SIZE).astype(np.float32)
        if len(tokens) > 60:
            logits[[*CLOSING, *TOKENIZER.eos_ids]] += 40.0
        mask = state.mask()
        assert mask is not None
        chosen = sampler.sample(logits, mask)
        assert chosen is not None
        assert mask[chosen.token // 32] >> (chosen.token % 32) & 1
        tokens.append(chosen.token)
        is_complete = state.accept(chosen.token)
        assert len(tokens) < 2000
    text = TOKENIZER.decode([token for token in tokens if token not in TOKENIZER.eos_ids])
    return text, len(tokens)


@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_random_logits_never_leave_the_form(form: tuple[str, str]) -> None:
    task = FORMS[form]
    n_steps, n_answers = 0, 0
    texts = set()
    while n_steps < N_STEPS / len(FORMS):
        text, n_tokens = random_answer(task, n_answers)
        jsonschema.validate(json.loads(text), schema(task))
        n_steps += n_tokens
        n_answers += 1
        texts.add(text)
    assert len(texts) > n_answers / 2


def test_negative_control_random_logits_without_the_form_are_no_answers() -> None:
    rng = np.random.default_rng(0)
    sampler = Sampler(SamplingParams(seed=0), 0, [])
    tokens = []
    for _ in range(100):
        chosen = sampler.sample(rng.normal(0.0, 4.0, VOCAB_SIZE).astype(np.float32))
        assert chosen is not None
        tokens.append(chosen.token)
    with pytest.raises(ValueError, match=r"Expecting|Extra|Invalid|Unterminated"):
        json.loads(TOKENIZER.decode(tokens))
