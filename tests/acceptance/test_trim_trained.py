"""The gates in models/: on text of another kind than they were trained on, against the others.

benchmarks/trim_kv.py measures more; this sees that what is committed works.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from capax import LLM

ROOT = Path(__file__).parents[2]
GATES = ROOT / "models" / "smollm2-135m.retention.safetensors"
MEMORY, BUFFER, N_TOKENS = 64, 16, 512


def logprobs(path: Path, kv: str, ids: Sequence[int]) -> np.ndarray:
    with LLM(path, kv=kv, threads=1, ctx_size=N_TOKENS, n_sequences=1) as llm:
        x = llm.logits(ids)[MEMORY:].astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))


def test_the_record_names_the_file() -> None:
    record = json.loads(GATES.with_suffix(".json").read_text(encoding="utf-8"))
    assert record["sha256"] == hashlib.sha256(GATES.read_bytes()).hexdigest()
    log = GATES.with_suffix(".log.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(log) == record["steps_done"]


@pytest.mark.slow
def test_trained_gates_beat_a_window_on_other_text(smollm2: Path) -> None:
    """A page of Markdown and code; the gates have only seen encyclopedia articles."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    with LLM(smollm2, threads=1, ctx_size=64) as llm:
        ids = llm.tokenizer.encode(page, add_special=False)[:N_TOKENS]
    budget = f"memory={MEMORY},buffer={BUFFER}"
    full = logprobs(smollm2, "f16", ids)

    def kl(kv: str) -> float:
        said = logprobs(smollm2, kv, ids)
        return float((np.exp(full) * (full - said)).sum(axis=-1).mean())

    trim = kl(f"trim:gates={GATES},sinks=4,{budget}")
    others = {rule: kl(f"{rule}:{budget}") for rule in ("stream", "random")}
    assert trim < others["stream"], (trim, others)
    assert trim < 0.5 * others["random"], (trim, others)
