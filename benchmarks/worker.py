"""One engine in a process of its own, driven by lines of JSON.

    python -m benchmarks.worker llama_cpp MODEL --threads 2 --context 4608 --option kv=f16

Each line of standard input is a request, `{"do": "prefill", "n_tokens": 512}` or
`{"do": "decode", "n_tokens": 32, "depth": 4096}`; the answer is `{"seconds": ...}`. capax also
answers `{"do": "probe", "nbytes": ...}` with what the machine's memory and arithmetic reach.
`capax_runner` answers {"do": "clients"} with what simulated clients of its engine got.
`{"do": "state"}` is answered with `{"version", "peak_rss_bytes"}`; the end of input ends it all.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from benchmarks.peers.base import (
    Batching,
    Peer,
    Probing,
    Sampling,
    Scoring,
    Serving,
    peak_rss_bytes,
)

ENGINES = ("capax", "capax_runner", "llama_cpp", "ctranslate2_int8")


def load(engine: str, model: str, threads: int, context: int, options: dict[str, str]) -> Peer:
    """Load `model` in the named engine; each engine is imported only in its own process."""
    if engine == "capax":
        from benchmarks.peers.capax_engine import Capax

        kv, sequences = options.get("kv", "f16"), int(options.get("sequences", 1))
        return Capax(model, threads, context, kv=kv, sequences=sequences)
    if engine == "capax_runner":
        from benchmarks.peers.capax_runner import CapaxRunner

        return CapaxRunner(model, threads, context, sequences=int(options["parallel"]))
    if engine == "llama_cpp":
        from benchmarks.peers.llama_cpp import LlamaCpp

        flash = options.get("flash_attention", "on") == "on"
        kv, sequences = options.get("kv", "f16"), int(options.get("sequences", 1))
        return LlamaCpp(
            Path(model), threads, context, kv=kv, flash_attention=flash, sequences=sequences,
            unified=options.get("unified") == "true",
        )  # fmt: skip
    from benchmarks.peers.ctranslate2_int8 import CTranslate2Int8

    return CTranslate2Int8(Path(model), threads, context)


def batch(peer: Peer, request: dict[str, int]) -> float:
    """Decode several sequences in one step."""
    if not isinstance(peer, Batching):
        raise ValueError(f"{peer.version()} has no call for a step of several sequences")
    return peer.batch(request["n_sequences"], request["n_tokens"], request["depth"])


def generate(peer: Peer, request: dict[str, int]) -> float:
    """Answer whole requests; only capax is asked to."""
    from benchmarks.peers.capax_engine import Capax

    if not isinstance(peer, Capax):
        raise ValueError("only capax answers whole requests here")
    return peer.generate(
        request["n_prompts"], request["n_choices"], request["prompt"], request["n_tokens"]
    )


def main() -> int:
    """Serve requests until the end of input."""
    parser = argparse.ArgumentParser(description="one engine, driven by lines of JSON")
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=4608)
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    options = dict(option.split("=", 1) for option in arguments.option)
    # Whatever a library prints goes to standard error: the answers keep standard output to
    # themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    peer = load(arguments.engine, arguments.model, arguments.threads, arguments.context, options)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "prefill":
            answer: dict[str, float | str] = {"seconds": peer.prefill(request["n_tokens"])}
        elif request["do"] == "decode":
            answer = {"seconds": peer.decode(request["n_tokens"], request["depth"])}
        elif request["do"] == "batch":
            answer = {"seconds": batch(peer, request)}
        elif request["do"] == "generate":
            answer = {"seconds": generate(peer, request)}
        elif request["do"] == "clients" and isinstance(peer, Serving):
            answer = {**peer.clients(request["requests"], request["concurrency"])}
        elif request["do"] == "score" and isinstance(peer, Scoring):
            seconds, mean = peer.score(request["n_tokens"])
            answer = {"seconds": seconds, "mean_logprob": mean}
        elif request["do"] == "sample" and isinstance(peer, Sampling):
            taken = peer.sample(request["n_samples"], request["prompt"], request["n_tokens"])
            answer = {"seconds": taken}
        elif request["do"] == "probe":
            answer = {**peer.probe(request["nbytes"])} if isinstance(peer, Probing) else {}
        else:
            peak = peak_rss_bytes()  # first: finding out a version takes memory as well
            answer = {"version": peer.version(), "peak_rss_bytes": peak}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
