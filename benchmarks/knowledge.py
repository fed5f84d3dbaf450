"""Bits of knowledge per parameter, trained and measured here; one result file and one picture.

    python -m benchmarks.knowledge --out benchmarks/results [--threads 1] [--profile overnight]

Every run trains a model on synthetic people (`capax train knowledge`), writes it as GGUF in several
encodings and asks the engine what it knows. Runs and rows are kept in build/knowledge as they are
finished; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ENCODINGS = ("F32", "Q8_0", "Q5_0", "Q4_1", "Q4_0")


def recipes(profile: str) -> Iterator[tuple[str, Any]]:
    """Yield (study, recipe), the ones that others are compared with first."""
    from capax.measuring.knowledge.exposures import KnowledgeRecipe as Recipe

    for exposures in (100, 300):
        for people in (800, 1600, 3200):
            yield "exposures", Recipe(people, exposures)
    for width, people in ((32, 400), (32, 800), (96, 3200)):
        yield "size", Recipe(people, 300, width=width)
    for seed in (1, 2):
        for people in (800, 1600):
            yield "seeds", Recipe(people, 300, seed=seed)
    yield "junk", Recipe(800, 100, junk="fresh")
    yield "junk", Recipe(800, 100, junk="fresh", tag=True)
    yield "junk", Recipe(800, 100, junk="repeated")
    if profile == "overnight":
        for people in (1600, 3200):
            yield "exposures", Recipe(people, 1000)


def key(recipe: Any) -> str:
    """Return the name of a run's folder."""
    r = recipe
    tag = "-tag" if r.tag else ""
    return f"{r.people}x{r.exposures}-{r.layers}x{r.width}-{r.junk}{tag}-seed{r.seed}"


def measure_run(study: str, recipe: Any, folder: Path) -> dict[str, Any]:
    """Train if it has not been, and measure every encoding."""
    from capax import LLM
    from capax.measuring.knowledge.biographies import N_TOKENS, VOCAB_SIZE, Biographies
    from capax.measuring.knowledge.exposures import n_documents, train_knowledge, write_model
    from capax.measuring.knowledge.measure import measure

    began = time.process_time()
    model = train_knowledge(recipe, folder, report_every=1000)
    trained_s = time.process_time() - began
    people = Biographies(recipe.people, recipe.seed)
    rows = {}
    for encoding in ENCODINGS:
        path = folder / f"{encoding}.gguf"
        write_model(model, path, encoding, recipe)
        with LLM(path, threads=1) as llm:
            rows[encoding] = measure(llm, people, tagged=recipe.tag).to_json()
    return {
        "study": study,
        "key": key(recipe),
        "recipe": asdict(recipe),
        "n_parameters": model.n_parameters,
        "n_parameters_without_embedding": model.n_parameters - VOCAB_SIZE * recipe.width,
        "training_tokens": n_documents(recipe) * N_TOKENS,
        "steps": recipe.steps,
        "training_cpu_s": trained_s,
        "encodings": rows,
    }


def run(work: Path, profile: str) -> list[dict[str, Any]]:
    """Return all rows, making those that are missing."""
    log = work / "rows.jsonl"
    done = {}
    if log.exists():
        done = {row["key"]: row for row in map(json.loads, log.read_text().splitlines())}
    rows = []
    for study, recipe in recipes(profile):
        name = key(recipe)
        if name not in done:
            done[name] = measure_run(study, recipe, work / name)
            with log.open("a") as file:
                file.write(json.dumps(done[name]) + "\n")
        row = done[name]
        best = row["encodings"]["F32"]
        print(f"{name}: {best['bits_per_parameter']:.3f} bits/parameter", flush=True)
        rows.append(row)
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return peaks by exposures, the slope over sizes, losses by encoding, and junk."""
    clean = [r for r in rows if r["recipe"]["junk"] == "none"]
    by_key = {r["key"]: r for r in rows}

    def bits(row: dict[str, Any], encoding: str = "F32") -> float:
        return float(row["encodings"][encoding]["bits"])

    peaks = {}
    for row in clean:
        if row["recipe"]["width"] == 64 and row["recipe"]["seed"] == 0:
            e = str(row["recipe"]["exposures"])
            peaks[e] = max(peaks.get(e, 0.0), row["encodings"]["F32"]["bits_per_parameter"])
    sizes: dict[int, float] = {}
    for row in clean:
        if row["recipe"]["exposures"] == 300:
            sizes[row["n_parameters"]] = max(sizes.get(row["n_parameters"], 0.0), bits(row))
    loss = {
        people: {
            encoding: [
                1 - bits(row, encoding) / bits(row)
                for row in clean
                if row["recipe"]["people"] == people
                and row["recipe"]["exposures"] == 300
                and row["recipe"]["width"] == 64
            ]
            for encoding in ENCODINGS[1:]
        }
        for people in (800, 1600)
    }
    base = by_key.get("800x100-2x64-none-seed0")
    junk = {
        name: bits(by_key[k]) / bits(base)
        for name, k in (
            ("fresh", "800x100-2x64-fresh-seed0"),
            ("fresh, useful ones tagged", "800x100-2x64-fresh-tag-seed0"),
            ("repeated", "800x100-2x64-repeated-seed0"),
        )
        if base and k in by_key
    }
    return {
        "peak_bits_per_parameter": peaks,
        "peak_bits_by_parameters": sizes,
        "slope_of_bits_over_parameters": slope(sizes),
        "loss_of_bits": loss,
        "useful_bits_over_clean": junk,
    }


def slope(points: dict[int, float]) -> float | None:
    """Return the least-squares slope of log2 bits over log2 parameters."""
    if len(points) < 2:
        return None
    xs, ys = [math.log2(p) for p in points], [math.log2(b) for b in points.values()]
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / sum(
        (x - mx) ** 2 for x in xs
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw bits per parameter over what there was to know, and what encodings lose."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = [r for r in result["rows"] if r["recipe"]["junk"] == "none" and not r["recipe"]["seed"]]
    groups: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["recipe"]["exposures"], row["n_parameters"]), []).append(row)
    top = 0.0
    for (exposures, n_parameters), group in sorted(groups.items()):
        points = sorted(
            (r["encodings"]["F32"]["r_max"], r["encodings"]["F32"]["bits_per_parameter"])
            for r in group
        )
        top = max(top, *(x for x, _ in points))
        label = f"{exposures} exposures, {n_parameters / 1e3:.0f} K parameters"
        left.plot(*zip(*points, strict=True), "o-", markersize=4, label=label)
    left.plot([0, top], [0, top], ":", color="grey", linewidth=1, label="everything known")
    left.set_xlabel("bits there are to know per parameter")
    left.set_ylabel("bits known per parameter")
    left.legend(fontsize=7, frameon=False)
    names = [e for e in ENCODINGS if e != "F32"]
    for i, (people, losses) in enumerate(result["summary"]["loss_of_bits"].items()):
        for j, name in enumerate(names):
            values = [100 * x for x in losses[name]]
            if values:
                x = j + (i - 0.5) * 0.36
                right.bar(x, sum(values) / len(values), 0.34, color=f"C{i}",
                          label=f"{people} people" if not j else None)  # fmt: skip
                right.plot([x] * len(values), values, "k.", markersize=4)
    right.set_xticks(range(len(names)), names)
    right.set_ylabel("bits lost, %")
    right.legend(fontsize=8, frameon=False)
    right.set_title("after quantising every matrix (dots: seeds)", fontsize=9)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train and measure what is missing, then write JSON and picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("build/knowledge"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", choices=["default", "overnight"], default="default")
    parser.add_argument("--partial", action="store_true", help="write what is there, train nothing")
    o = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(o.threads)
    o.work.mkdir(parents=True, exist_ok=True)
    if o.partial:
        rows = list(map(json.loads, (o.work / "rows.jsonl").read_text().splitlines()))
    else:
        rows = run(o.work, o.profile)
    machine = platform.processor() or platform.machine()
    result = {"machine": machine, "summary": summary(rows), "rows": rows}
    (o.out / "knowledge.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(json.loads((o.out / "knowledge.json").read_text()), o.out / "knowledge.png")


if __name__ == "__main__":
    main()
