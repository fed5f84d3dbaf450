"""Measure capax against its peers and write `engine.json` and `engine.png`.

    python -m benchmarks.run --model smollm2-135m --out benchmarks/results

All engines are loaded at once, each in its own process, and take turns. Every ratio is of medians
measured in the same alternation. `--only NAME` runs some experiments, keeping the others' results
from the file that is there.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import reference
from benchmarks.contest import Contestant, alternate, rates
from benchmarks.linear import layer_gmacs
from benchmarks.peers.process import alternate_processes
from benchmarks.report import QUIET

PREFILL_TOKENS = 512
DECODE_TOKENS = 64
DEEP, DEEP_DECODE_TOKENS = 4096, 32
CONTEXT = 4608  # holds DEEP and what is decoded after it, in whole chunks of 512
RSS_CONTEXT = 2048
PACKAGES = ("capax", "llama-cpp-python", "ctranslate2", "transformers", "torch", "numpy", "gguf")


class Files(NamedTuple):
    """The same weights, in each engine's fastest form."""

    name: str  # what capax is asked to load
    gguf: Path
    q4_0: Path
    huggingface: Path
    ctranslate2: Path


class Settings(NamedTuple):
    """What is measured, how often and with how many threads."""

    threads: int
    rounds: int
    windows: int
    text: Path | None


Experiment = Callable[[Files, Settings], dict[str, Any]]


def prepare(name: str, gguf: Path, directory: Path) -> Files:
    """Make the peers' forms of the weights that are not there yet."""
    from benchmarks.peers.ctranslate2_int8 import convert
    from benchmarks.peers.llama_cpp import requantize

    directory.mkdir(parents=True, exist_ok=True)
    files = Files(
        name, gguf, directory / "q4_0.gguf", directory / "float32", directory / "ctranslate2-int8"
    )
    if not files.q4_0.exists():
        partial = files.q4_0.with_suffix(".partial")
        requantize(gguf, partial)
        partial.rename(files.q4_0)
    if not (files.huggingface / "tokenizer_config.json").exists():
        reference.make_directory(gguf, files.huggingface)
    if not (files.ctranslate2 / "model.bin").exists():
        convert(files.huggingface, files.ctranslate2)
    return files


def rate_contest(
    files: Files, settings: Settings, engines: tuple[str, ...], n_tokens: int, **request: Any
) -> dict[str, Any]:
    """Let engines take turns at one request; return rates and the ratios of capax to each."""
    entrants = {
        "capax": ("capax", str(files.gguf)),
        "llama_cpp_q4_1": ("llama_cpp", str(files.gguf)),
        "llama_cpp_q4_0": ("llama_cpp", str(files.q4_0)),
        "ctranslate2_int8": ("ctranslate2_int8", str(files.ctranslate2)),
    }
    with ExitStack() as stack:
        contestants = {
            name: stack.enter_context(Contestant(*entrants[name], settings.threads, CONTEXT))
            for name in engines
        }
        seconds = alternate(contestants, settings.rounds, n_tokens=n_tokens, **request)
        states = {name: contestant.ask(do="state") for name, contestant in contestants.items()}
    result: dict[str, Any] = {
        name: {
            "version": states[name]["version"],
            "seconds": taken,
            "tokens_per_second": rates(n_tokens, taken)._asdict(),
        }
        for name, taken in seconds.items()
    }
    return {"n_tokens": n_tokens, "depth": request.get("depth", 0), "engines": result}


def prefill(files: Files, settings: Settings) -> dict[str, Any]:
    """Prefill from an empty cache."""
    engines = ("capax", "llama_cpp_q4_1", "llama_cpp_q4_0", "ctranslate2_int8")
    return rate_contest(files, settings, engines, PREFILL_TOKENS, do="prefill")


def decode(files: Files, settings: Settings) -> dict[str, Any]:
    """Decode from an empty context, one token at a time."""
    engines = ("capax", "llama_cpp_q4_1", "llama_cpp_q4_0", "ctranslate2_int8")
    return rate_contest(files, settings, engines, DECODE_TOKENS, do="decode", depth=0)


def decode_deep(files: Files, settings: Settings) -> dict[str, Any]:
    """Decode after a long context with float16 keys and values on all sides."""
    engines = ("capax", "llama_cpp_q4_1", "llama_cpp_q4_0")
    return rate_contest(files, settings, engines, DEEP_DECODE_TOKENS, do="decode", depth=DEEP)


def roofline(files: Files, settings: Settings) -> dict[str, Any]:
    """Shares of what the machine's probe reaches, probed in turn with the runs.

    Decode: bytes of all matrices per token over the probed read bandwidth at that footprint.
    Prefill: multiply-adds of the matrices over the probed int8 dot-product peak. Both over the
    whole time, attention and everything else included. Linear: the matrices of one layer alone.
    """
    work = reference.linear_work(files.gguf)
    rounds: dict[str, list[float]] = {
        "decode": [],
        "prefill": [],
        "linear": [],
        "read": [],
        "int8": [],
    }
    with Contestant("capax", str(files.gguf), settings.threads, CONTEXT) as contestant:
        for _ in range(settings.rounds):
            taken = contestant.ask(do="decode", n_tokens=DECODE_TOKENS, depth=0)["seconds"]
            rounds["decode"].append(work.nbytes * DECODE_TOKENS / taken / 1e9)
            taken = contestant.ask(do="prefill", n_tokens=PREFILL_TOKENS)["seconds"]
            macs = work.layer_macs * PREFILL_TOKENS + work.head_macs
            rounds["prefill"].append(macs / taken / 1e9)
            rounds["linear"].append(layer_gmacs(files.gguf, settings.threads, PREFILL_TOKENS))
            probed = contestant.ask(do="probe", nbytes=work.nbytes)
            rounds["read"].append(probed["read_gbps"])
            rounds["int8"].append(probed["int8_gmacs"])
    medians = {name: statistics.median(values) for name, values in rounds.items()}
    return {
        "matrices": work._asdict(),
        "per_round": rounds,
        "decode": {
            "what": "decode bytes read per second over probed read bandwidth",
            "achieved": medians["decode"],
            "probed": medians["read"],
            "share": medians["decode"] / medians["read"],
        },
        "linear": {
            "what": "linear layers' multiply-adds over probed int8 dot-product peak",
            "achieved": medians["linear"],
            "probed": medians["int8"],
            "share": medians["linear"] / medians["int8"],
        },
        "prefill": {
            "what": "whole prefill: multiply-adds over probed int8 dot-product peak",
            "achieved": medians["prefill"],
            "probed": medians["int8"],
            "share": medians["prefill"] / medians["int8"],
        },
    }


def process(files: Files, settings: Settings) -> dict[str, Any]:
    """Start of the process to the first token of a short prompt."""
    models = {"capax": files.name, "llama_cpp": str(files.gguf)}
    return {"engines": alternate_processes(models, settings.threads, settings.rounds)}


def memory(files: Files, settings: Settings) -> dict[str, Any]:
    """Peak resident memory after a prefill and a decode with a context of 2,048."""
    peaks = {}
    for name, engine in (("capax", "capax"), ("llama_cpp_q4_1", "llama_cpp")):
        with Contestant(engine, str(files.gguf), settings.threads, RSS_CONTEXT) as contestant:
            contestant.ask(do="prefill", n_tokens=PREFILL_TOKENS)
            contestant.ask(do="decode", n_tokens=8, depth=RSS_CONTEXT - 64)
            peaks[name] = contestant.ask(do="state")["peak_rss_bytes"]
    config = json.loads((files.huggingface / "config.json").read_text())
    kv_width = config["num_key_value_heads"] * config["head_dim"]
    kv_bytes = 2 * 2 * config["num_hidden_layers"] * kv_width * RSS_CONTEXT
    file_bytes = files.gguf.stat().st_size
    return {
        "context": RSS_CONTEXT,
        "file_bytes": file_bytes,
        "kv_bytes": kv_bytes,
        "peak_rss_bytes": peaks,
        "capax_over_file_and_kv_bytes": peaks["capax"] - file_bytes - kv_bytes,
    }


def perplexity(files: Files, settings: Settings) -> dict[str, Any]:
    """Perplexity of capax against float32 transformers on the dequantised weights."""
    from benchmarks.peers.llama_cpp import tokenize

    if settings.text is None:
        raise ValueError("the perplexity experiment needs --text FILE")
    window = 512
    ids = tokenize(files.gguf, settings.text.read_text(encoding="utf-8"))
    n_windows = min(settings.windows, len(ids) // window)
    expected = reference.perplexity(files.huggingface, ids, window, n_windows, settings.threads)
    program = "import sys; from capax.cli.main import run; sys.exit(run())"
    command = [sys.executable, "-c", program, "perplexity", str(files.gguf), "--json"]
    command += ["--text", str(settings.text), "--context", str(window)]
    command += ["--windows", str(n_windows)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    measured = json.loads(finished.stdout)
    return {
        "text": settings.text.name,
        "window": window,
        "n_windows": n_windows,
        "capax": measured,
        "transformers_float32": expected,
        "relative_difference": measured["perplexity"] / float(expected["perplexity"]) - 1,
        "same_number_of_tokens": measured["n_tokens"] == expected["n_tokens"],
    }


EXPERIMENTS: dict[str, Experiment] = {
    "prefill": prefill,
    "decode": decode,
    "decode_deep": decode_deep,
    "roofline": roofline,
    "process": process,
    "memory": memory,
    "perplexity": perplexity,
}


def machine() -> dict[str, Any]:
    """Describe the machine: without this a number is not a number."""
    facts = dict(
        line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line
    )
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    kibibytes = Path("/proc/meminfo").read_text().split(maxsplit=2)[1]
    flags = set(facts.get("flags", "").split())
    return {
        "cpu": facts.get("model name", platform.processor()),
        "cpu_family_model": f"{facts.get('cpu family', '?')}/{facts.get('model', '?')}",
        "isa": sorted(flags & {"avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8"}),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": int(kibibytes) * 1024,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "busy_share_before": round(busy_share(), 3),
    }


def busy_share(seconds: float = 1.0) -> float:
    """Return the share of the machine's cores that others keep busy: this process only waits."""

    def ticks() -> list[int]:
        return [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]

    before = ticks()
    time.sleep(seconds)
    passed = [after - earlier for after, earlier in zip(ticks(), before, strict=True)]
    idle = passed[3] + passed[4]  # idle and waiting for I/O
    return 1 - idle / max(sum(passed), 1)


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that take part."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def commit() -> str:
    """Return the commit that was measured, marked when the tree had changes."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    finished = subprocess.run(command, capture_output=True, text=True)
    return finished.stdout.strip() or "unknown"


def find_model(model: str) -> Path:
    """Return the GGUF file of a model given by path or by its registered name."""
    if Path(model).is_file():
        return Path(model)
    from capax.files.registry import resolve

    return Path(resolve(model))


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a document whole: a run that is stopped leaves the old one."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(document, file, indent=2)
        file.write("\n")
    Path(file.name).replace(path)


def about(model: str, file: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Describe a measurement that begins now; warn when others keep the machine busy."""
    found: dict[str, Any] = {
        "measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "threads": threads,
        "rounds": rounds,
        "model": {"name": Path(model).name, "bytes": file.stat().st_size},
        "machine": machine(),
        "packages": package_versions(),
    }
    busy = found["machine"]["busy_share_before"]
    if busy > QUIET:
        print(f"others keep {busy:.0%} of the cores busy: not a measurement", file=sys.stderr)
    return found


def keep(path: Path, name: str, experiment: dict[str, Any]) -> None:
    """Put one experiment into a results file, leaving the others as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(path.read_text())["experiments"] if path.exists() else {}
    write_json(path, {"experiments": results | {name: experiment}})


def main() -> int:
    """Run the experiments of the engine and write their results."""
    return run(EXPERIMENTS, "engine.json", "measure capax against its peers")


def parser_of(what: str, rounds: int, of_rounds: str) -> argparse.ArgumentParser:
    """Return a parser of what every measurement of speed takes; `of_rounds`: what they repeat."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--model", default="smollm2-135m", help="a pulled name or a GGUF file")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=rounds, help=of_rounds)
    return parser


def run(experiments: dict[str, Experiment], file: str, what: str) -> int:
    """Run experiments as the command line says, and write their results to `file`."""
    parser = parser_of(what, 7, "alternations, at least 5")
    parser.add_argument("--files", type=Path, default=Path("build/bench"), help="peers' weights")
    parser.add_argument("--text", type=Path, help="text for perplexity, e.g. WikiText-2 validation")
    parser.add_argument("--windows", type=int, default=40, help="512-token windows of the text")
    parser.add_argument("--only", action="append", choices=list(experiments))
    options = parser.parse_args()
    if options.rounds < 5:
        parser.error("fewer than 5 alternations are no measurement")
    files = prepare(options.model, find_model(options.model), options.files)
    settings = Settings(options.threads, options.rounds, options.windows, options.text)
    names = options.only or [n for n in experiments if n != "perplexity" or options.text]
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        facts = about(files.name, files.gguf, settings.threads, settings.rounds)
        keep(options.out / file, name, facts | experiments[name](files, settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
