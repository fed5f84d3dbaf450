"""The comparison: what is chosen beside what was asked, and that nothing is measured twice."""

import dataclasses
from pathlib import Path

import pytest

from capax import LLM
from capax.errors import CapaxError, ConfigError
from capax.measuring import kv_report, needles
from capax.measuring.cells import Cells, opened
from capax.measuring.kv_picture import draw
from capax.measuring.kv_report import Settings, choose, control_of, run, settings_of
from tests.models import gguf_model

TEXT = " ".join(
    f"The {w} river ran past the mill, and {w} boats went by." for w in "abcdefghij" * 9
)
SETTINGS = Settings(context=128, n_chunks=2, depths=(16, 70), bursts=2, n_prompts=2)
METHODS = ["f16", "kivi:bits=2,block=64", "stream:memory=32"]


@pytest.fixture(scope="module")
def llm() -> LLM:
    path = gguf_model("llama", encoding="Q8_0")
    return LLM(path, kv="f32", threads=1, ctx_size=SETTINGS.context_needed)


def test_every_lossy_family_gets_a_control_of_as_much_memory(llm: LLM) -> None:
    assert control_of(llm.config, "stream:memory=48,buffer=8") == "random:memory=48,buffer=8"
    assert control_of(llm.config, "h2o") == "random"
    assert control_of(llm.config, "kivi:bits=2") == "kivi:bits=2,keys_axis=token"
    distorting = control_of(llm.config, "kivi:bits=8,exact_window=false")
    assert distorting == "kivi:bits=8,keys_axis=token,exact_window=false"
    assert control_of(llm.config, "landmark:k=2") == "landmark:k=2,index=random"
    for method in ("f16", "random", "kivi:keys_axis=token", "landmark:index=random"):
        assert control_of(llm.config, method) is None


def test_methods_come_once_with_the_reference_first(llm: LLM) -> None:
    chosen = choose(llm.config, ["int4", "kivi:bits=4", "snapkv", "stream", "full:type=f32"])
    assert list(chosen.names.values()) == [
        "f32", "int4", "snapkv", "stream", "kivi:keys_axis=token", "random",
    ]  # fmt: skip
    assert chosen.controls == {"kivi:keys_axis=token": ("int4",), "random": ("snapkv", "stream")}
    assert choose(llm.config, ["int4"], with_controls=False).methods == ["f32", "kivi"]


def test_what_does_not_work_with_the_model_is_refused_by_name(llm: LLM) -> None:
    with pytest.raises(ConfigError, match="KV method 'kivi:group=7': kivi does not fit"):
        choose(llm.config, ["f16", "kivi:group=7"])
    with pytest.raises(CapaxError, match="KV method 'trim:gates=/none': cannot open /none"):
        choose(llm.config, ["trim:gates=/none"])
    with pytest.raises(ConfigError, match=r"take 176 tokens .* and the model's context is 100"):
        kv_report.check_depths(SETTINGS, 100)


def test_a_whole_run_and_its_going_on(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cells.jsonl"
    chosen = choose(llm.config, METHODS)
    with opened(path, settings_of(llm, TEXT, SETTINGS)) as cells:
        reports = run(llm, TEXT, chosen, SETTINGS, cells)
    assert [r.name for r in reports] == [
        "f32",
        *METHODS,
        "kivi:bits=2,keys_axis=token",
        "random:memory=32",
    ]
    for report in reports:
        assert report.quality.prediction_error < kv_report.OFF_BY
        assert list(report.speeds) == [16, 70]
        assert report.speeds[70].slowest <= report.speeds[70].median
        assert report.passkey
        assert report.multi_needle
        assert (report.passkey.n_questions, report.multi_needle.n_questions) == (2, 8)
    assert reports[0].quality.kl < 1e-12 < reports[1].quality.kl < reports[2].quality.kl

    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:9])  # killed while the last cell was written
    measured: list[str] = []
    whole_chunk, one_prompt = kv_report.measure_chunk_in, needles.answers_in

    def chunk(*args: object, **kwargs: object) -> object:
        measured.append("chunk")
        return whole_chunk(*args, **kwargs)  # type: ignore[arg-type]

    def prompt(*args: object) -> object:
        measured.append("prompt")
        return one_prompt(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(kv_report, "measure_chunk_in", chunk)
    monkeypatch.setattr(needles, "answers_in", prompt)
    with opened(path, settings_of(llm, TEXT, SETTINGS)) as cells:
        assert run(llm, TEXT, chosen, SETTINGS, cells) == reports
    assert measured == ["prompt"]

    draw(reports, tmp_path / "picture.png", "a test")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_methods_that_read_all_from_codes_are_not_decoded_with(llm: LLM) -> None:
    settings = dataclasses.replace(SETTINGS, depths=(16,), n_prompts=1, n_chunks=1)
    chosen = choose(llm.config, ["kivi:exact_window=false"], with_controls=False)
    reference, report = run(llm, TEXT, chosen, settings, Cells())
    assert reference.speeds
    assert (report.speeds, report.passkey, report.multi_needle) == ({}, None, None)
    assert report.quality.kl > 0


def test_methods_that_do_not_fit_together_are_measured_in_turn(llm: LLM) -> None:
    path = gguf_model("llama", encoding="Q8_0")
    settings = dataclasses.replace(SETTINGS, depths=(16,), n_prompts=1, n_chunks=1)
    chosen = choose(llm.config, ["f16", "int8"], with_controls=False)
    everything = run(llm, TEXT, chosen, settings, Cells())
    room = llm.plan.total_nbytes + llm.plan.kv_footprint.nbytes(SETTINGS.context_needed) * 3
    with LLM(path, kv="f32", threads=1, ctx_size=SETTINGS.context_needed, memory=room) as narrow:
        told: list[tuple[str, int, int]] = []
        reports = run(narrow, TEXT, chosen, settings, Cells(), lambda *news: told.append(news))
    assert [r.quality for r in reports] == [r.quality for r in everything]
    assert told[-1] == ("prompts", 6, 6)


def test_a_method_is_opened_once_per_part(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    opened_methods: list[str] = []
    by = LLM.contexts_by

    def counting(self: LLM, methods: list[str], n_tokens: int) -> object:
        opened_methods.extend(methods)
        return by(self, methods, n_tokens)

    monkeypatch.setattr(LLM, "contexts_by", counting)
    chosen = choose(llm.config, ["f16"])
    run(llm, TEXT, chosen, SETTINGS, Cells())
    assert opened_methods.count("f16") == 1 + len(SETTINGS.depths) + 1  # chunks, depths, needles
