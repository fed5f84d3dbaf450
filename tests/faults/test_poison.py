"""Weights that are no numbers: the request ends with an error, nothing else notices."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from capax import LLM, SamplingParams, _native
from capax.errors import CapaxError
from capax.files.model_file import open_model
from tests.models import gguf_model

POISONED = 300  # the token whose embedding is poisoned
PARAMS = SamplingParams(max_tokens=12, seed=2, ignore_eos=True)


def poisoned(source: Path, target: Path, name: str, value: float, row: int = 0) -> Path:
    """Copy a GGUF with the first scale (or number) of one row of a tensor replaced."""
    tensor = open_model(source).tensors[name]
    content = bytearray(source.read_bytes())
    kind = "<f" if tensor.encoding.name == "F32" else "<e"
    at = tensor.offset + row * (tensor.nbytes // tensor.shape[0])
    struct.pack_into(kind, content, at, value)
    target.write_bytes(content)
    return target


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_poisoned_token_ends_its_own_request_only(tmp_path: Path, value: float) -> None:
    clean = gguf_model("llama", encoding="Q8_0")
    bad = poisoned(clean, tmp_path / "bad.gguf", "token_embd.weight", value, POISONED)
    llm = LLM(bad, threads=2, n_sequences=4)
    prompts = [[5, 6, 7], [5, POISONED, 7], [8] * 90, [9] * 80 + [POISONED]]
    answers = llm.generate(prompts, PARAMS)
    expected = LLM(clean, threads=2).generate([5, 6, 7], PARAMS)
    assert answers[0].outputs == expected.outputs
    assert answers[2].outputs[0].finish_reason == "length"
    for answer in (answers[1], answers[3]):
        assert answer.outputs[0].finish_reason == "error"
        assert answer.token_ids == []
        assert answer.text == ""
    llm.engine.check_integrity()


def test_the_pages_of_a_poisoned_request_are_not_kept(tmp_path: Path) -> None:
    clean = gguf_model("llama", encoding="Q8_0")
    bad = poisoned(clean, tmp_path / "bad.gguf", "token_embd.weight", float("nan"), POISONED)
    llm = LLM(bad)
    assert llm.generate([8] * 90 + [POISONED], PARAMS).outputs[0].finish_reason == "error"
    assert llm._store.native.n_in_use == 0
    answer = llm.generate([8] * 90, PARAMS)
    assert answer.usage.cached_tokens == 0
    assert answer.outputs == LLM(clean).generate([8] * 90, PARAMS).outputs


def test_every_choice_and_the_stream_of_a_poisoned_request_say_error(tmp_path: Path) -> None:
    clean = gguf_model("llama", encoding="Q8_0")
    bad = poisoned(clean, tmp_path / "bad.gguf", "output.weight", float("nan"), 17)
    llm = LLM(bad, n_sequences=2)
    params = SamplingParams(max_tokens=5, n=3)
    assert [c.finish_reason for c in llm.generate([5, 6], params).outputs] == ["error"] * 3
    pieces = list(llm.stream([5, 6], params))
    assert [(p.text, p.token_ids, p.finish_reason) for p in pieces] == [("", [], "error")] * 3
    assert pieces[-1].output is not None
    llm.engine.check_integrity()
    assert llm._store.native.n_in_use == 0


def test_scoring_a_poisoned_text_is_an_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    clean = gguf_model("llama", encoding="Q8_0")
    bad = poisoned(clean, tmp_path / "bad.gguf", "token_embd.weight", float("nan"), POISONED)
    llm = LLM(bad)
    with pytest.raises(CapaxError, match="not finite"):
        llm.score([5, POISONED, 7])
    with pytest.raises(CapaxError, match="not finite"):
        llm.generate([5, POISONED, 7], SamplingParams(max_tokens=1, prompt_logprobs=1))
    llm.engine.check_integrity()
    assert llm._store.native.n_in_use == 0
    assert llm.score([5, 6, 7]) == LLM(clean).score([5, 6, 7])


@pytest.mark.parametrize("encoding", ["Q8_0", "Q4_1", "F16"])
def test_no_matrix_launders_a_number_that_is_none(tmp_path: Path, encoding: str) -> None:
    """Whatever matrix, cache precision and instruction set: never a token, always an error."""
    clean = gguf_model("llama", encoding=encoding, num_hidden_layers=2)
    before = _native.isa()
    try:
        for name in open_model(clean).tensors:
            bad = poisoned(clean, tmp_path / "bad.gguf", name, float("nan"))
            for isa, _ in _native.supported_isas():
                _native.select_isa(isa)
                for kv in ("f16", "int8"):
                    llm = LLM(bad, kv=kv, threads=1, ctx_size=64)
                    answer = llm.generate([0, 5], SamplingParams(max_tokens=2, temperature=0))
                    assert answer.outputs[0].finish_reason == "error", (name, isa, kv)
                    assert answer.token_ids == []
    finally:
        _native.select_isa(before)
