"""Records as lm-evaluation-harness writes its results, for tools that read those.

    <out>/<model>/results_<iso>.json             one for each model: results, configs, versions,
                                                 n-shot, higher_is_better, n-samples
    <out>/<model>/samples_<task>_<iso>.jsonl     where there are samples

A task is a kind on data, "perplexity_valid_txt". A metric is `<name>,none` with its
`<name>_stderr,none`: a quarter of a 95 % interval (exactly: 1 / 3.92), "N/A" where there is none.
"""

from __future__ import annotations

import calendar
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from capax.errors import ConfigError
from capax.files.lm_eval_names import iso, sanitized
from capax.files.registry import write_atomically
from capax.measuring.records import Record

BY_TASK = (
    "results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples",
)  # fmt: skip
STDERRS_OF_INTERVAL = 2 * 1.959964


def export(
    records: Sequence[Record],
    out: Path,
    samples: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> list[Path]:
    """Write the results of records, one folder for each model; return the files.

    `samples`: id of a record -> its samples. Raises ConfigError where two records of a model
    would be the same task.
    """
    by_model: dict[str, list[Record]] = {}
    for record in records:
        by_model.setdefault(model_label(record), []).append(record)
    written = []
    for model, group in by_model.items():
        folder = out / sanitized(model)
        folder.mkdir(parents=True, exist_ok=True)
        stamp = iso(_seconds(max(record.time for record in group)))
        path = folder / f"results_{stamp}.json"
        _write(path, json.dumps(results(group, model), indent=2) + "\n")
        written.append(path)
        for record in group:
            rows = (samples or {}).get(record.id)
            if rows:
                path = folder / f"samples_{task_name(record)}_{stamp}.jsonl"
                _write(path, "".join(json.dumps(row) + "\n" for row in rows))
                written.append(path)
    return written


def results(records: Sequence[Record], model: str) -> dict[str, Any]:
    """Return one results document. All records are of `model`."""
    tasks: dict[str, Record] = {}
    for record in records:
        name = task_name(record)
        if name in tasks:
            raise ConfigError(
                f"records {tasks[name].id} and {record.id} are both task {name} of {model}; "
                "export them one at a time"
            )
        tasks[name] = record
    names = sorted(tasks)
    latest = max(record.time for record in records)
    return {
        "results": {name: _metrics(name, tasks[name]) for name in names},
        "group_subtasks": {name: [] for name in names},
        "configs": {name: _config(name, tasks[name]) for name in names},
        "versions": dict.fromkeys(names, 1),
        "n-shot": dict.fromkeys(names, 0),
        "higher_is_better": {
            name: {f.name: bool(f.higher_is_better) for f in tasks[name].figures} for name in names
        },
        "n-samples": {
            name: {"original": _n_items(tasks[name]), "effective": _n_items(tasks[name])}
            for name in names
        },
        "config": {
            "model": "capax",
            "model_args": {
                "pretrained": records[0].model.name,
                "sha256": records[0].model.digest,
                **records[0].method,
            },
            "model_num_parameters": records[0].model.n_params,
            "batch_size": 1,
            "device": "cpu",
            "limit": None,
            "random_seed": records[0].seed,
        },
        "git_hash": None,
        "date": float(_seconds(latest)),
        "model_source": "capax",
        "model_name": model,
        "model_name_sanitized": sanitized(model),
        "capax_versions": records[0].versions,
        "machine": records[0].machine,
    }


def merged_results(records: Sequence[Record]) -> dict[str, Any]:
    """Return one results document of records of one run, whatever their methods.

    Where methods differ a task is called task@model,methods, else as in `results`.
    """
    by_model: dict[str, list[Record]] = {}
    for record in records:
        by_model.setdefault(model_label(record), []).append(record)
    documents = {label: results(group, label) for label, group in by_model.items()}
    first = next(iter(documents.values()))
    if len(documents) == 1:
        return first
    merged: dict[str, Any] = {
        part: {
            f"{task}@{label}": value
            for label, document in documents.items()
            for task, value in document[part].items()
        }
        for part in BY_TASK
    }
    return {**first, **merged}


def model_label(record: Record) -> str:
    """Return the model with its methods: what one folder of results is about."""
    methods = [f"{k}={record.method[k]}" for k in ("weights", "kv") if record.method.get(k)]
    return ",".join([record.model.name or "model", *methods])


def task_name(record: Record) -> str:
    """Return the name of the task that a record is."""
    data = f"_{record.data.name}" if record.data else ""
    return re.sub(r"[^A-Za-z0-9]+", "_", f"{record.kind}{data}").strip("_")[:100] or "task"


def _seconds(moment: str) -> int:
    try:
        return calendar.timegm(time.strptime(moment[:19], "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return 0


def _metrics(task: str, record: Record) -> dict[str, Any]:
    row: dict[str, Any] = {"alias": task}
    for figure in record.figures:
        if figure.value is None:
            continue
        name = figure.name.replace(",", ";")
        row[f"{name},none"] = figure.value
        interval = figure.interval if not figure.note else None
        row[f"{name}_stderr,none"] = (
            "N/A" if interval is None else (interval[1] - interval[0]) / STDERRS_OF_INTERVAL
        )
    return row


def _config(task: str, record: Record) -> dict[str, Any]:
    return {
        "task": task,
        "dataset_path": record.data.name if record.data else "",
        "output_type": "loglikelihood_rolling" if record.kind == "perplexity" else "generate_until",
        "num_fewshot": 0,
        "repeats": 1,
        "metadata": {
            "version": 1,
            "record": record.id,
            "data_sha256": record.data.digest if record.data else "",
            **record.settings,
        },
    }


def _n_items(record: Record) -> int:
    return (record.data.n_items or 0) if record.data else 0


def _write(path: Path, text: str) -> None:
    write_atomically(path, text.encode(), 0o644)
