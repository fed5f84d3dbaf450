"""Measure decode after a long context under each KV method; writes `kv_speed.json`.

    python -m benchmarks.kv_speed --model smollm2-135m --out benchmarks/results
    python -m benchmarks.kv_speed --method f16 --method int8 --method million --peer f16

Contestants take turns on the same tokens: given tokens, logits of each, nothing sampled. A context
of 8,192 tokens is filled but for the tokens that are timed.
"""

from __future__ import annotations

import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.contest import Contestant, alternate, rates
from benchmarks.run import about, find_model, keep, parser_of

METHODS = ("f16", "int8", "kivi:bits=8", "kivi:bits=4")
PEERS = ("f16", "q8_0")
CONTEXTS = (8192,)
N_TOKENS = 32


def decode_at(
    gguf: Path, methods: list[str], peers: list[str], context: int, threads: int, rounds: int
) -> dict[str, Any]:
    """Let capax under each method and llama.cpp under each KV type decode at the end of a context.

    Returns rates, and the median over rounds of capax's speed as a multiple of each peer's in the
    same round.
    """
    entrants = {f"capax {m}": ("capax", m) for m in methods}
    entrants |= {f"llama.cpp {p}": ("llama_cpp", p) for p in peers}
    depth = context - N_TOKENS
    with ExitStack() as stack:
        contestants = {
            name: stack.enter_context(Contestant(engine, str(gguf), threads, context, {"kv": kv}))
            for name, (engine, kv) in entrants.items()
        }
        seconds = alternate(contestants, rounds, do="decode", n_tokens=N_TOKENS, depth=depth)
        states = {name: contestant.ask(do="state") for name, contestant in contestants.items()}
    return {
        "n_tokens": N_TOKENS,
        "depth": depth,
        "engines": {
            name: {
                "version": states[name]["version"],
                "seconds": taken,
                "tokens_per_second": rates(N_TOKENS, taken)._asdict(),
            }
            for name, taken in seconds.items()
        },
        "ratios": {
            name: {other: ratio(seconds[other], taken) for other in entrants if other != name}
            for name, taken in seconds.items()
            if name.startswith("capax")
        },
    }


def ratio(other: list[float], own: list[float]) -> float:
    """Return how many times as fast, by the median over rounds."""
    return statistics.median(b / a for a, b in zip(own, other, strict=True))


def main() -> int:
    """Measure every context length and write the results."""
    parser = parser_of("measure decode over KV methods", 7, "alternations, at least 5")
    parser.add_argument("--method", action="append", help=f"default: {', '.join(METHODS)}")
    parser.add_argument("--peer", action="append", help=f"default: {', '.join(PEERS)}")
    parser.add_argument("--context", action="append", type=int, help="default: 8192")
    options = parser.parse_args()
    if options.rounds < 5:
        parser.error("fewer than 5 alternations are no measurement")
    gguf = find_model(options.model)
    for context in options.context or CONTEXTS:
        facts = about(options.model, gguf, options.threads, options.rounds)
        methods, peers = options.method or list(METHODS), options.peer or list(PEERS)
        measured = decode_at(gguf, methods, peers, context, options.threads, options.rounds)
        keep(options.out / "kv_speed.json", f"decode_{context}", facts | measured)
        print(table(measured))
    return 0


def table(measured: dict[str, Any]) -> str:
    """Return the rates and ratios as lines of text."""
    lines = []
    for name, engine in measured["engines"].items():
        low, median, high = engine["tokens_per_second"].values()
        times = measured["ratios"].get(name, {})
        shown = "  ".join(f"{t:.2f} x {other}" for other, t in times.items())
        lines.append(f"{name:<24} {median:7.1f} tokens/s ({low:.1f} to {high:.1f})  {shown}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
