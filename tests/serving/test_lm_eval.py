"""lm-evaluation-harness over HTTP: the same log-likelihoods as the engine's own `LLM.score`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from capax import LLM
from tests.serving.conftest import LiveServer, live

pytest.importorskip("lm_eval")
pytestmark = [
    pytest.mark.slow,  # imports datasets and transformers
    pytest.mark.filterwarnings("ignore"),  # of the packages that the harness brings
]

DOCUMENTS = [
    {
        "question": "The capital of France is",
        "choices": [" Paris", " Rome", " a cheese"],
        "gold": 0,
    },
    {"question": "Two and two are", "choices": [" five", " four", " naïve → 火"], "gold": 1},
    {"question": "Rain is made of", "choices": [" stone", " fire", " water"], "gold": 2},
]


@pytest.fixture
def task(tmp_path: Path) -> dict[str, Any]:
    """A multiple-choice task whose data is a local file."""
    data = tmp_path / "documents.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    return {
        "task": "three_questions",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }


def check(llm: LLM, server: LiveServer, task: dict[str, Any], monkeypatch: Any) -> None:
    """Evaluate over HTTP and compare each log-likelihood with the engine's."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    import lm_eval

    results = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": "tiny",
            "base_url": f"{server.base_url}/v1/completions",
            "tokenizer_backend": "remote",
            "batch_size": 4,
            "max_length": llm.context_len,
        },
        tasks=[task],
        log_samples=True,
        bootstrap_iters=0,
    )
    samples = sorted(results["samples"]["three_questions"], key=lambda s: s["doc_id"])
    assert len(samples) == len(DOCUMENTS)
    for sample, document in zip(samples, DOCUMENTS, strict=True):
        for answer, choice in zip(sample["filtered_resps"], document["choices"], strict=True):
            n_context = len(llm.tokenizer.encode(document["question"], add_special=False))
            whole = document["question"] + choice
            score = llm.score(llm.tokenizer.encode(whole, add_special=False))
            logprob, is_greedy = answer
            assert logprob == sum(x for x in score.logprobs[n_context:] if x is not None)
            assert is_greedy == all(score.is_greedy[n_context:])


def test_the_harness_scores_what_the_engine_scores(
    tiny_llm: LLM, live_server: LiveServer, task: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    check(tiny_llm, live_server, task, monkeypatch)


def test_the_harness_scores_the_real_model(
    smollm2: Path, task: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM(smollm2, ctx_size=512, threads=1, n_sequences=4)
    with live(llm) as server:
        check(llm, server, task, monkeypatch)
