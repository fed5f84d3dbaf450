"""What the real model says must not change unnoticed.

`python -m tests.acceptance.test_golden MODEL` writes the file anew; its difference is to be
reviewed. Tokens are compared where the model is sure: a token whose runner-up is closer than
`MARGIN` may flip with another library's cosine, and what follows it is then another text.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from capax import LLM, SamplingParams

GOLDEN = Path(__file__).parents[1] / "golden" / "smollm2-135m.json"
MARGIN = 1e-3  # nats between the chosen token and the next one
LOGPROB_TOLERANCE = 1e-3
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n",
    "1, 2, 3, 4, 5,",
    "Once upon a time, in a small village by the sea,",
)


def speak(llm: LLM, prompt: str) -> list[dict[str, Any]]:
    """64 greedy tokens, each with its log-probability and its distance to the runner-up."""
    params = SamplingParams(max_tokens=64, temperature=0, ignore_eos=True, logprobs=2)
    positions = llm.generate(prompt, params).logprobs
    assert positions is not None
    rows = []
    for position in positions:
        (token, best), (_, second) = list(position.items())[:2]
        rows.append(
            {
                "token": token,
                "logprob": round(best.logprob, 5),
                "margin": round(best.logprob - second.logprob, 5),
            }
        )
    return rows


def test_the_real_model_says_what_it_said(smollm2: Path) -> None:
    if not GOLDEN.exists():
        pytest.fail(f"{GOLDEN.name} is missing: write it with python -m {__name__}")
    llm = LLM(smollm2, ctx_size=256, kv="f32")
    for prompt, expected in json.loads(GOLDEN.read_text())["continuations"].items():
        compared = 0
        for ours, theirs in zip(speak(llm, prompt), expected, strict=True):
            if theirs["margin"] < MARGIN:
                break
            assert ours["token"] == theirs["token"], f"{prompt!r}, token {compared}"
            assert abs(ours["logprob"] - theirs["logprob"]) < LOGPROB_TOLERANCE
            compared += 1
        assert compared >= 16, f"{prompt!r} is unsure too early to say anything"


def write(model: str) -> None:
    llm = LLM(model, ctx_size=256, kv="f32")
    content = {"model": "SmolLM2-135M-Instruct Q4_1", "kv": "f32"}
    GOLDEN.parent.mkdir(exist_ok=True)
    continuations = {prompt: speak(llm, prompt) for prompt in PROMPTS}
    GOLDEN.write_text(json.dumps({**content, "continuations": continuations}, indent=1) + "\n")


if __name__ == "__main__":
    write(sys.argv[1])
