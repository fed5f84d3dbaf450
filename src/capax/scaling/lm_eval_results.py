"""A run of samples as lm-evaluation-harness writes its own: results, and a line for each problem.

    <out>/<model>/results_<time>.json
    <out>/<model>/samples_<task>_<time>.jsonl

`<time>` is when the run got its last sample, so exporting twice writes the same files. A run keeps
texts and verdicts but not the questions: `doc` holds the problem's id alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capax.files.lm_eval_names import iso, sanitized
from capax.files.registry import write_atomically
from capax.files.run_folder import read_manifest
from capax.scaling.run_directory import Sample, Verdict, read_rows


def export_run(path: Path, results: Mapping[str, Any], out: Path) -> list[Path]:
    """Write what `write_report` returned, and the samples; returns the files."""
    manifest = read_manifest(path)
    model = str(manifest["config"].get("model", "model"))
    stamp = iso((path / "samples.jsonl").stat().st_mtime)
    folder = out / sanitized(model)
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        **results,
        "config": {"model": "capax", "model_args": {"pretrained": model}, "limit": None},
        "model_source": "capax",
        "model_name": model,
        "model_name_sanitized": sanitized(model),
    }
    written = [folder / f"results_{stamp}.json"]
    write_atomically(written[0], (json.dumps(document, indent=2) + "\n").encode(), 0o644)
    for task in results["results"]:
        lines = "".join(
            json.dumps(row) + "\n" for row in sample_rows(path, manifest["problems"], task)
        )
        written.append(folder / f"samples_{sanitized(task)}_{stamp}.jsonl")
        write_atomically(written[-1], lines.encode(), 0o644)
    return written


def sample_rows(path: Path, problems: Mapping[str, str], task: str) -> list[dict[str, Any]]:
    """Return a line for each problem of a checker, its checked samples in order."""
    texts: dict[str, dict[int, str]] = {}
    for sample in read_rows(path, Sample):
        texts.setdefault(sample.problem_id, {})[sample.sample_idx] = sample.text
    verdicts: dict[str, dict[int, Verdict]] = {}
    for verdict in read_rows(path, Verdict):
        if verdict.checker == task:
            verdicts.setdefault(verdict.problem_id, {})[verdict.sample_idx] = verdict
    rows = []
    for number, name in enumerate(n for n, checker in problems.items() if checker == task):
        found, judged = texts.get(name, {}), verdicts.get(name, {})
        order = sorted(set(found) & set(judged))
        right = [judged[i].correct for i in order]
        rows.append({
            "doc_id": number,
            "doc": {"id": name},
            "target": "",
            "arguments": {},
            "resps": [[found[i] for i in order]],
            "filtered_resps": [judged[i].answer for i in order],
            "filter": "none",
            "metrics": ["acc"],
            "doc_hash": hashlib.sha256(name.encode()).hexdigest(),
            "acc": sum(right) / len(right) if right else 0.0,
        })  # fmt: skip
    return rows
