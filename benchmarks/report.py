"""Turn `engine.json`, `scoring.json`, `sampling.json` and `serving.json` into tables and pictures.

    python -m benchmarks.report --page README.md benchmarks/results/engine.png

Picture and table go between the markers `<!-- benchmarks:begin -->` and `<!-- benchmarks:end -->`
of every page named, those of the server, with the picture `serving.png` beside the other, between
`<!-- serving:begin -->` and `<!-- serving:end -->`. Nothing else of a page is touched.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
MIB = 2**20
QUIET = 0.1  # share of busy cores before a run above which the table says so
NAMES = {
    "capax": "capax",
    "llama_cpp_q4_1": "llama.cpp, same file",
    "llama_cpp_q4_0": "llama.cpp, Q4_0 repacked",
    "ctranslate2_int8": "CTranslate2 int8",
}


class Row(NamedTuple):
    """One line of the table."""

    what: str
    capax: str
    peer: str
    result: str
    target: str
    met: bool


def speed_row(what: str, experiment: dict[str, Any], peer: str, target: float) -> Row:
    """Compare median rates: how many times as fast as the peer."""
    ours = experiment["engines"]["capax"]["tokens_per_second"]["median"]
    theirs = experiment["engines"][peer]["tokens_per_second"]["median"]
    ratio = ours / theirs
    return Row(
        what,
        f"{ours:,.0f} tok/s",
        f"{NAMES[peer]}: {theirs:,.0f} tok/s",
        f"{ratio:.2f} ×",
        f"≥ {target:.1f} ×",
        ratio >= target,
    )


def prefill_rows(experiment: dict[str, Any]) -> Iterator[Row]:
    """Prefill against each peer."""
    what = f"prefill of {experiment['n_tokens']} tokens"
    yield speed_row(what, experiment, "llama_cpp_q4_1", 8.0)
    yield speed_row(what, experiment, "llama_cpp_q4_0", 4.0)
    yield speed_row(what, experiment, "ctranslate2_int8", 1.7)


def sampling_rows(experiment: dict[str, Any]) -> Iterator[Row]:
    """Samples of one prompt per second, beside the peer's faster cache."""
    rates = {
        name: engine["samples_per_second"]["median"]
        for name, engine in experiment["engines"].items()
    }
    ours = rates.pop("capax")
    theirs = max(rates.values())
    ratio = ours / theirs
    yield Row(
        f"{experiment['n_samples']} samples of {experiment['answer_tokens']} tokens, a prompt of "
        f"{experiment['prompt_tokens']:,}",
        f"{ours:.1f} per second",
        f"{NAMES['llama_cpp_q4_1']}: {theirs:.1f} per second",
        f"{ratio:.2f} ×",
        "≥ 3.0 ×",
        ratio >= 3,
    )


def scoring_rows(experiment: dict[str, Any]) -> Iterator[Row]:
    """Log-probabilities of given text; the peer computes the logits of all positions."""
    what = f"log-probabilities of a text of {experiment['n_tokens']:,} tokens"
    yield speed_row(what, experiment, "llama_cpp_q4_1", 8.0)


def decode_rows(experiment: dict[str, Any]) -> Iterator[Row]:
    """Decode from an empty context."""
    what = "decode at depth 0"
    yield speed_row(what, experiment, "llama_cpp_q4_1", 3.0)
    yield speed_row(what, experiment, "llama_cpp_q4_0", 2.0)


def decode_deep_rows(experiment: dict[str, Any]) -> Iterator[Row]:
    """Decode after a long context."""
    what = f"decode at depth {experiment['depth']:,}, f16 KV"
    yield speed_row(what, experiment, "llama_cpp_q4_1", 4.0)


def process_rows(experiment: dict[str, Any]) -> Iterator[Row]:
    """Whole process to the first token."""
    ours = experiment["engines"]["capax"]["seconds"]["median"]
    theirs = experiment["engines"]["llama_cpp"]["seconds"]["median"]
    yield Row(
        "whole process, start to first token",
        f"{ours * 1000:,.0f} ms",
        f"llama-cpp-python: {theirs * 1000:,.0f} ms",
        f"{ours / theirs:.2f} × its time",
        "≤ 0.80 ×",
        ours <= 0.8 * theirs,
    )


def memory_rows(experiment: dict[str, Any]) -> Iterator[Row]:
    """Peak memory over what must be in memory."""
    over = experiment["capax_over_file_and_kv_bytes"] / MIB
    peaks = experiment["peak_rss_bytes"]
    yield Row(
        f"peak RSS, context {experiment['context']:,}",
        f"{peaks['capax'] / MIB:,.0f} MiB",
        f"{NAMES['llama_cpp_q4_1']}: {peaks['llama_cpp_q4_1'] / MIB:,.0f} MiB",
        f"file + KV + {over:,.0f} MiB",
        "≤ file + KV + 60 MiB",
        over <= 60,
    )


def perplexity_rows(experiment: dict[str, Any]) -> Iterator[Row]:
    """Quality: the same text through float32 transformers."""
    difference = experiment["relative_difference"]
    n_windows, window = experiment["n_windows"], experiment["window"]
    yield Row(
        f"perplexity, WikiText-2 validation, {n_windows} windows of {window}",
        f"{experiment['capax']['perplexity']:.4f}",
        f"transformers float32: {experiment['transformers_float32']['perplexity']:.4f}",
        f"{difference:+.3%}",
        "within 0.3 %",
        abs(difference) <= 0.003,
    )


def roofline_rows(experiment: dict[str, Any]) -> Iterator[Row]:
    """Shares of what the machine's probe reached."""
    for what, unit, target in (
        ("decode", "GB/s", 0.70),
        ("linear", "Gmac/s", 0.55),
        ("prefill", "Gmac/s", None),
    ):
        part = experiment[what]
        yield Row(
            part["what"],
            f"{part['achieved']:,.1f} {unit}",
            f"probed peak: {part['probed']:,.1f} {unit}",
            f"{part['share']:.2f}",
            "" if target is None else f"≥ {target:.2f}",
            target is None or part["share"] >= target,
        )


Makers = dict[str, Callable[[dict[str, Any]], Iterator[Row]]]

ROWS: Makers = {
    "decode": decode_rows,
    "prefill": prefill_rows,
    "decode_deep": decode_deep_rows,
    "scoring": scoring_rows,
    "sampling": sampling_rows,
    "roofline": roofline_rows,
    "process": process_rows,
    "memory": memory_rows,
    "perplexity": perplexity_rows,
}


def table(experiments: dict[str, Any], makers: Makers | None = None) -> str:
    """Return the Markdown table of all experiments that were run, with where and when.

    `makers`: how the rows of an experiment are made; those of the engine if not given.
    """
    chosen = ROWS if makers is None else makers
    rows = [
        row
        for name, make in chosen.items()
        if name in experiments
        for row in make(experiments[name])
    ]
    lines = [
        "| what | capax | compared with | result | aim | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        verdict = "" if not row.target else "reached" if row.met else "not reached"
        cells = (row.what, row.capax, row.peer, f"**{row.result}**", row.target, verdict)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n" + provenance(experiments)


def provenance(experiments: dict[str, Any]) -> str:
    """Say with which model, machine, versions and when the experiments were measured."""
    latest = max(experiments.values(), key=lambda e: str(e["measured"]))
    machine, packages = latest["machine"], latest["packages"]
    commits = sorted({e["commit"] for e in experiments.values()})
    busy = max(float(e["machine"]["busy_share_before"]) for e in experiments.values())
    noise = "" if busy <= QUIET else f" **Others kept up to {busy:.0%} of the cores busy.**"
    return (
        f"{latest['model']['name']} ({latest['model']['bytes'] / 1e6:.0f} MB), "
        f"{latest['threads']} threads on {machine['cpu']} "
        f"(family/model {machine['cpu_family_model']}, {', '.join(machine['isa'])}), "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB; medians of {latest['rounds']} alternations; "
        f"llama-cpp-python {packages['llama-cpp-python']} compiled for this machine, "
        f"CTranslate2 {packages['ctranslate2']}, transformers {packages['transformers']}; "
        f"{latest['measured'][:10]}, commit {', '.join(commits)}. "
        f"Repeat with `make bench`.{noise}\n"
    )


def insert(page: str, text: str, markers: tuple[str, str] = (BEGIN, END)) -> str:
    """Put `text` between a page's markers; raise ValueError when it does not have both."""
    before, begin, rest = page.partition(markers[0])
    _, end, after = rest.partition(markers[1])
    if not begin or not end:
        raise ValueError(f"the page needs the lines '{markers[0]}' and '{markers[1]}'")
    return f"{before}{begin}\n{text.strip()}\n{end}{after}"


def draw(experiments: dict[str, Any], path: Path) -> None:
    """Draw the rates of all engines, one panel per experiment: medians, with lines min to max."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = [
        (title, experiments[name]["engines"])
        for name, title in (
            ("prefill", f"prefill, {experiments.get('prefill', {}).get('n_tokens')} tokens"),
            ("decode", "decode, depth 0"),
            ("decode_deep", f"decode, depth {experiments.get('decode_deep', {}).get('depth')}"),
        )
        if name in experiments
    ]
    if not panels:
        return
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 2.6), squeeze=False)
    for axis, (title, engines) in zip(axes[0], panels, strict=True):
        names = list(engines)[::-1]
        speeds = [engines[name]["tokens_per_second"] for name in names]
        medians = [speed["median"] for speed in speeds]
        below = [speed["median"] - speed["min"] for speed in speeds]
        above = [speed["max"] - speed["median"] for speed in speeds]
        colors = ["#2f6f8f" if name == "capax" else "#b9bec4" for name in names]
        axis.barh([NAMES[name] for name in names], medians, color=colors)
        axis.errorbar(medians, range(len(names)), xerr=[below, above], fmt="none", ecolor="#444")
        for index, median in enumerate(medians):
            axis.text(median, index + 0.28, f" {median:,.0f}", va="center", fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("tokens per second")
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.15)
        axis.tick_params(labelsize=8)
    latest = max(experiments.values(), key=lambda e: str(e["measured"]))
    title = f"{latest['model']['name']}, {latest['threads']} threads"
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def renew_serving(results: Path, pages: list[tuple[Path, Path]]) -> None:
    """Renew the server's picture and tables, if it was measured, on the pages that have a place."""
    from benchmarks import serving_report

    if not (results / "serving.json").exists():
        return
    experiments = json.loads((results / "serving.json").read_text())["experiments"]
    serving_report.draw(experiments, results / "serving.png")
    for page, engine_picture in pages:
        before = page.read_text(encoding="utf-8")
        if serving_report.MARKERS[0] not in before:
            continue
        picture = engine_picture.with_name("serving.png")
        picture.parent.mkdir(parents=True, exist_ok=True)
        serving_report.draw(experiments, picture)
        shown = table(experiments, serving_report.ROWS)
        if picture.exists():
            link = os.path.relpath(picture, page.parent)
            shown = f"![What clients of the server see]({link})\n\n{shown}"
        page.write_text(insert(before, shown, serving_report.MARKERS), encoding="utf-8")


def engine_experiments(results: Path) -> dict[str, Any]:
    """Return the engine's experiments, with those of scoring if they were measured."""
    experiments: dict[str, Any] = {}
    for name in ("engine.json", "scoring.json", "sampling.json"):
        if name == "engine.json" or (results / name).exists():
            experiments |= json.loads((results / name).read_text())["experiments"]
    return experiments


def main() -> int:
    """Draw the pictures and renew the tables of the pages named."""
    parser = argparse.ArgumentParser(description="table and picture of the measured results")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument(
        "--page",
        type=Path,
        nargs=2,
        action="append",
        default=[],
        metavar=("PAGE", "PICTURE"),
        help="a page to renew, and where its picture goes",
    )
    options = parser.parse_args()
    renew_serving(options.results, options.page)
    experiments = engine_experiments(options.results)
    text = table(experiments)
    draw(experiments, options.results / "engine.png")
    for page, picture in options.page:
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw(experiments, picture)
        link = os.path.relpath(picture, page.parent)
        shown = f"![Tokens per second of capax and its peers]({link})\n\n{text}"
        page.write_text(insert(page.read_text(encoding="utf-8"), shown), encoding="utf-8")
    if not options.page:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
