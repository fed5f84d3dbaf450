"""KV methods side by side: quality at equal bits, bounded caches at equal memory, and all in use.

    python -m benchmarks.kv MODEL --text wikitext-2.txt --work kv-run

Three comparisons, each a run directory under --work that goes on where it was stopped:

codes    1,024-token chunks with every token read from codes: what the codes alone lose
bounded  1,024-token chunks with 128 tokens kept
use      4,096-token chunks as one would run it, with decode speed and needles

Writes kv.json and a picture of each to benchmarks/results. Methods that need a trained file are in
with --gates and --codebook (more than once for several). --quick takes a tenth of everything.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from capax import LLM
from capax.cli.bench import machine_json
from capax.cli.measure_kv import table
from capax.measuring.cells import opened
from capax.measuring.kv_picture import draw
from capax.measuring.kv_report import MethodReport, Settings, choose, run, settings_of
from capax.methods import registered

RESULTS = Path(__file__).parent / "results"
BASE = ",base_layers=3"
PARTS = {
    "codes": Settings(context=1024, n_chunks=8, depths=(), n_prompts=0),
    "bounded": Settings(context=1024, n_chunks=8, depths=(), n_prompts=8),
    "use": Settings(context=4096, n_chunks=4, depths=(256, 1024, 4096), n_prompts=8),
}
QUICK = Settings(n_chunks=1, n_prompts=1, bursts=2)


def methods_of(part: str, gates: Path | None, codebooks: list[Path]) -> list[str]:
    """Return the methods of a comparison, of those there are."""
    there = {method.name for method in registered("kv")}
    bounded = ["stream", "h2o", "snapkv", *([f"trim:gates={gates}"] if gates else [])]
    million = [f"million:codebook={codebook}" for codebook in codebooks]
    if part == "codes":
        found = []
        for b in (4, 3, 2):
            found += [f"kivi:bits={b}", f"kivi:bits={b},keys=pre"]
            found += [f"xquant:bits={b}", f"xquant:bits={b},cross_layer=true"]
        found += [f"kivi:bits=2,keys=pre{BASE}", *million]
        found = [
            m + ("," if ":" in m else ":") + "exact_window=false"
            for m in found
            if m.partition(":")[0] in there
        ]
        return ["f16", *found]
    if part == "bounded":
        return [m + ("," if ":" in m else ":") + "memory=112" for m in bounded]
    rest = ["xquant:bits=4", "xquant:bits=2,cross_layer=true", *million]
    return [
        "f16", "int8", "int4", "kivi:bits=2",
        *(m for m in rest if m.partition(":")[0] in there),
        *(m + ("," if ":" in m else ":") + "memory=496" for m in bounded),
    ]  # fmt: skip


def main() -> None:
    """Run the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--gates", type=Path)
    parser.add_argument("--codebook", type=Path, action="append", default=[])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    document: dict[str, Any] = {}
    for part in options.parts:
        settings = quick(PARTS[part]) if options.quick else PARTS[part]
        with LLM(
            options.model, ctx_size=settings.context_needed, kv="f32", threads=options.threads
        ) as llm:
            methods = methods_of(part, options.gates, options.codebook)
            chosen = choose(llm.config, methods)
            text = options.text.read_text()
            path = options.work / part / "cells.jsonl"
            with opened(path, settings_of(llm, text, settings)) as cells:
                reports = run(llm, text, chosen, settings, cells, _tell)
            print("\n".join(table(reports, settings)), flush=True)
            draw(reports, options.out / f"kv-{part}.png", f"{part}: {Path(options.model).stem}")
            document[part] = {
                "machine": machine_json(llm),
                "settings": dataclasses.asdict(settings),
                "methods": [report.to_json() for report in reports],
            }
            if part == "codes":
                document["relations"] = relations(reports)
                print(json.dumps(document["relations"], indent=1), flush=True)
    (options.out / "kv.json").write_text(json.dumps(document, indent=1) + "\n")


def quick(settings: Settings) -> Settings:
    """Return the same with less of everything."""
    names = ("n_chunks", "n_prompts", "bursts")
    less = {name: min(getattr(settings, name), getattr(QUICK, name)) for name in names}
    return dataclasses.replace(settings, **less)


def relations(reports: list[MethodReport]) -> dict[str, float]:
    """Return the KL of methods in proportion to others at equal bits, where both are there."""
    kl = {r.name.replace(",exact_window=false", ""): r.quality.kl for r in reports}
    pairs = {
        "xquant 4 bits / kivi": ("xquant:bits=4", "kivi:bits=4"),
        "xquant 4 bits / keys before rotation": ("xquant:bits=4", "kivi:bits=4,keys=pre"),
        "xquant deltas 3 bits / xquant": ("xquant:bits=3,cross_layer=true", "xquant:bits=3"),
        "xquant deltas 2 bits / xquant": ("xquant:bits=2,cross_layer=true", "xquant:bits=2"),
        "xquant deltas 2 bits / keys before rotation, 3 layers at 4 bits": (
            "xquant:bits=2,cross_layer=true", f"kivi:bits=2,keys=pre{BASE}",
        ),
    }  # fmt: skip
    return {name: kl[a] / kl[b] for name, (a, b) in pairs.items() if a in kl and b in kl}


def _tell(what: str, done: int, n: int) -> None:
    print(f"{what}: {done} of {n}", flush=True)


if __name__ == "__main__":
    main()
