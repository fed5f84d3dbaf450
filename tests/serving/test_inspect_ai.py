"""inspect-ai over HTTP: its scores of a small task are those of our own reading of the answers.

It runs in a process of its own, as its users run it; it leaves streams open that a test may not.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from capax import LLM, SamplingParams
from tests.cli.test_main import environment
from tests.serving.conftest import LiveServer, live

pytestmark = [
    pytest.mark.slow,  # imports inspect-ai
    pytest.mark.skipif(find_spec("inspect_ai") is None, reason="needs inspect-ai"),
]

QUESTIONS = [
    "The capital of France is",
    "Two and two are",
    "Name a colour of the rainbow.",
    "What is rain made of?",
]
N_TOKENS = 12
EVALUATION = """
import json, sys
from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import read_eval_log
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import includes

base_url, n_tokens, logs, items = json.loads(sys.argv[1])
model = get_model(
    "openai-api/capax/tiny", base_url=base_url, api_key="none",
    config=GenerateConfig(temperature=0.0, max_tokens=n_tokens, max_connections=2),
)
dataset = MemoryDataset([Sample(input=question, target=target) for question, target in items])
task = Task(dataset=dataset, scorer=includes(ignore_case=False), name="four_questions")
(log,) = eval(task, model=model, log_dir=logs, log_format="json", display="none")
log = read_eval_log(log.location)
print(json.dumps({
    "status": log.status,
    "accuracy": log.results.scores[0].metrics["accuracy"].value,
    "answers": [
        [s.output.completion,
         s.output.usage.input_tokens + (s.output.usage.input_tokens_cache_read or 0),
         s.output.usage.output_tokens]
        for s in log.samples
    ],
}))
"""


def check(llm: LLM, server: LiveServer, tmp_path: Path) -> None:
    """Let inspect-ai ask; its completions, token counts and accuracy must be the engine's own."""
    params = SamplingParams(max_tokens=N_TOKENS, temperature=0.0)
    own = [llm.chat([{"role": "user", "content": text}], params) for text in QUESTIONS]
    texts = [output.outputs[0].text for output in own]
    # Half of the targets are what the engine answers, half are what it does not.
    targets = [text.strip() if i % 2 == 0 else "no such answer" for i, text in enumerate(texts)]
    items = list(zip(QUESTIONS, targets, strict=True))
    asked = json.dumps([f"{server.base_url}/v1", N_TOKENS, str(tmp_path / "logs"), items])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EVALUATION, asked],
        env=environment(tmp_path), capture_output=True, text=True, timeout=100, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["status"] == "success"
    assert report["answers"] == [
        [output.outputs[0].text, output.usage.prompt_tokens, output.usage.completion_tokens]
        for output in own
    ]
    right = sum(target in text for target, text in zip(targets, texts, strict=True))
    assert 0 < right < len(targets)
    assert report["accuracy"] == right / len(targets)


def test_inspect_gets_what_the_engine_answers(
    tiny_llm: LLM, live_server: LiveServer, tmp_path: Path
) -> None:
    check(tiny_llm, live_server, tmp_path)


def test_inspect_gets_what_the_real_model_answers(smollm2: Path, tmp_path: Path) -> None:
    llm = LLM(smollm2, ctx_size=512, threads=1, n_sequences=4)
    with live(llm) as server:
        check(llm, server, tmp_path)
