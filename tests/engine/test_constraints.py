"""Constraints in the engine: every answer has its form, and a dead end is its own request's."""

from __future__ import annotations

import json
import re

import jsonschema
import numpy as np
import pytest

from capax import LLM, SamplingParams, StructuredOutputs
from capax.errors import CapaxError, ConfigError
from tests.models import VOCAB_SIZE, gguf_model

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
PROMPT = [5, 60, 7, 80]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(gguf_model("llama"), threads=1, ctx_size=256, n_sequences=8)


def test_every_choice_of_a_random_model_has_the_schema(llm: LLM) -> None:
    form = StructuredOutputs(json=SCHEMA)
    output = llm.generate(
        PROMPT, SamplingParams(n=4, max_tokens=200, seed=1, structured_outputs=form)
    )
    finished = [choice for choice in output.outputs if choice.finish_reason == "stop"]
    assert finished
    for choice in finished:
        jsonschema.validate(json.loads(choice.text), SCHEMA)


def test_an_answer_ends_with_the_last_token_its_form_has_room_for(llm: LLM) -> None:
    form = StructuredOutputs(regex="[a-c]{3}")
    params = SamplingParams(max_tokens=50, structured_outputs=form, ignore_eos=True, min_tokens=9)
    output = llm.generate(PROMPT, params)
    assert re.fullmatch("[a-c]{3}", output.text)
    assert output.outputs[0].finish_reason == "stop"


def test_neighbours_without_a_form_answer_as_if_alone(llm: LLM) -> None:
    free = SamplingParams(max_tokens=20, seed=3)
    alone = llm.generate(PROMPT, free).token_ids
    bound = SamplingParams(
        max_tokens=20, seed=3, structured_outputs=StructuredOutputs(json_object=True)
    )
    pieces = llm.stream(PROMPT, bound)
    next(pieces)  # runs on while the other is answered
    assert llm.generate(PROMPT, free).token_ids == alone
    assert "".join(piece.text for piece in pieces) != ""


def test_the_same_seed_gives_the_same_answer(llm: LLM) -> None:
    params = SamplingParams(
        max_tokens=60, seed=9, structured_outputs=StructuredOutputs(json=SCHEMA)
    )
    assert llm.generate(PROMPT, params).token_ids == llm.generate(PROMPT, params).token_ids


def test_logprobs_are_the_models_own_not_those_after_the_mask(llm: LLM) -> None:
    form = StructuredOutputs(choice=["b"])
    params = SamplingParams(max_tokens=4, temperature=0, logprobs=1, structured_outputs=form)
    output = llm.generate(PROMPT, params)
    scored = llm.score([*PROMPT, output.token_ids[0]])
    assert output.logprobs is not None
    found = output.logprobs[0][output.token_ids[0]].logprob
    assert found == pytest.approx(scored.logprobs[-1], abs=1e-5)
    assert found < -0.1  # after the mask it would be 0


def test_what_does_not_compile_is_refused_before_anything_runs(llm: LLM) -> None:
    params = SamplingParams(structured_outputs=StructuredOutputs(regex="("))
    with pytest.raises(ConfigError, match="the regex cannot be used"):
        llm.generate(PROMPT, params)
    with pytest.raises(ConfigError, match="must be a StructuredOutputs"):
        SamplingParams(structured_outputs={"regex": "a"})  # type: ignore[arg-type]


class _DeadEnd:
    """Allows one token, then none."""

    def __init__(self) -> None:
        self._words = np.zeros((VOCAB_SIZE + 31) // 32, np.uint32)
        self._words[1] = 1

    def mask(self) -> np.ndarray:
        return self._words

    def accept(self, token: int) -> bool:
        self._words = np.zeros_like(self._words)
        return False


class _Overrun(_DeadEnd):
    """Costs too much after its first token."""

    def accept(self, token: int) -> bool:
        raise CapaxError("the answer cannot go on in its grammar: too complex")


@pytest.mark.parametrize(
    ("kind", "message"), [(_DeadEnd, "no token is allowed"), (_Overrun, "too complex")]
)
@pytest.mark.parametrize("n", [1, 3])
def test_a_dead_end_is_an_error_of_its_request_alone(
    llm: LLM, kind: type[_DeadEnd], message: str, n: int
) -> None:
    free = SamplingParams(max_tokens=12, seed=3)
    alone = llm.generate(PROMPT, free).token_ids
    stuck = llm.request(PROMPT, SamplingParams(max_tokens=9, n=n))
    stuck.constraint = kind
    other = llm.request(PROMPT, free)
    llm.engine.submit(stuck)
    llm.engine.submit(other)
    while llm.engine.n_unfinished:
        llm.engine.step()
    with pytest.raises(CapaxError, match=message):
        stuck.raise_error()
    assert other.sequences[0].output_ids == alone
    llm.engine.check_integrity()
