"""Whole processes: from the start of `python` to the first token of a short prompt.

Each program prints the monotonic clock when it has the first token; the clock is the same in every
process of a machine. Packages may keep their bytecode, as installed ones have it: a source tree run
with PYTHONDONTWRITEBYTECODE would compile itself at every start.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

PROMPT = "The capital of France is"

PROGRAMS = {
    "capax": """
import sys, time
from capax import LLM, SamplingParams
llm = LLM(sys.argv[1], threads=int(sys.argv[2]), ctx_size=2048)
params = SamplingParams(max_tokens=1, temperature=0)
text = llm.generate(sys.argv[3], params).outputs[0].text
print(time.monotonic(), repr(text))
""",
    "llama_cpp": """
import sys, time
from llama_cpp import Llama
threads = int(sys.argv[2])
llm = Llama(sys.argv[1], n_ctx=2048, n_threads=threads, n_threads_batch=threads, flash_attn=True,
            verbose=False)
text = llm(sys.argv[3], max_tokens=1, temperature=0.0)["choices"][0]["text"]
print(time.monotonic(), repr(text))
""",
}


def first_token_seconds(engine: str, model: str, threads: int) -> tuple[float, str]:
    """Run one whole process; return the seconds to its first token, and the token's text."""
    command = [sys.executable, "-c", PROGRAMS[engine], model, str(threads), PROMPT]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    started = time.monotonic()
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    if finished.returncode != 0:
        raise RuntimeError(f"the {engine} process failed:\n{finished.stderr}")
    moment, text = finished.stdout.strip().splitlines()[-1].split(" ", 1)
    return float(moment) - started, text


def alternate_processes(
    models: dict[str, str], threads: int, rounds: int
) -> dict[str, dict[str, object]]:
    """Alternate whole processes of the engines named in `models`, one warm-up round before."""
    seconds: dict[str, list[float]] = {engine: [] for engine in models}
    texts: dict[str, str] = {}
    for round_number in range(rounds + 1):
        for engine, model in models.items():
            taken, texts[engine] = first_token_seconds(engine, model, threads)
            if round_number > 0:
                seconds[engine].append(taken)
    return {
        engine: {
            "seconds": {
                "min": min(taken),
                "median": statistics.median(taken),
                "max": max(taken),
            },
            "first_token": texts[engine],
        }
        for engine, taken in seconds.items()
    }
