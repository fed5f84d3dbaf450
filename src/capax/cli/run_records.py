"""A run directory seen as a record, so that runs are compared as measurements are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capax.cli.recording import plain

if TYPE_CHECKING:
    from capax.measuring.records import Record

SUBJECT = ("model",)  # settings of a run that comparisons are about


def is_run(path: Path) -> bool:
    """Say whether a path is a run directory."""
    return path.is_dir() and (path / "manifest.json").is_file()


def record_of_run(path: Path) -> Record:
    """Return a run of 'capax scale sample' or 'capax measure' as a record.

    Raises FileFormatError if it is no run, ConfigError if nothing of it is checked yet, or it is a
    measurement that is not finished.
    """
    from capax.files.run_folder import read_manifest
    from capax.measuring.measured_run import measured_record
    from capax.measuring.records import Data, Figure, Model, Record
    from capax.scaling.coverage import curve
    from capax.scaling.sampling import load
    from capax.scaling.selection import accuracy_of, majority

    manifest = read_manifest(path)
    if "kind" in manifest:
        return measured_record(path)
    settings = dict(manifest["settings"])
    outcome = load(path)
    ks = tuple(sorted({1, outcome.counts.n_min}))
    figures = []
    for point in curve(outcome.counts, ks):
        name = "accuracy" if point.k == 1 else f"coverage@{point.k}"
        figures.append(_share(Figure, name, point.coverage, (point.low, point.high), outcome))
    votes = accuracy_of(majority, outcome.answers, ks)
    figures.append(_share(Figure, f"majority@{votes[-1].k}", votes[-1].accuracy, None, outcome))
    model = str(settings.pop("model", ""))
    tasks = str(settings.pop("tasks", ""))
    seed = settings.pop("seed", None)
    sampling = settings.pop("sampling", {})
    sampling = sampling if isinstance(sampling, dict) else {"sampling": sampling}
    digest = model.removeprefix("sha256:") if model.startswith("sha256:") else ""
    command = manifest.get("command")
    return Record(
        kind="run",
        time=str(manifest.get("time", "")),
        model=Model(name=_model_name(command) or model, digest=digest),
        data=Data(name="tasks", digest=tasks, n_items=outcome.counts.n_problems),
        settings=plain({**settings, **sampling}),
        seed=seed if isinstance(seed, int) else None,
        versions={k: str(v) for k, v in _dict(manifest.get("versions")).items()},
        machine=plain(_dict(manifest.get("machine"))),
        figures=tuple(figures),
    )


def _share(figure: Any, name: str, value: float, interval: Any, outcome: Any) -> Any:
    if interval is not None and not all(map(math.isfinite, interval)):
        interval = None
    return figure(
        name=name, value=float(value), interval=interval, unit="share", higher_is_better=True,
        n=outcome.counts.n_problems,
    )  # fmt: skip


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _model_name(command: object) -> str:
    """Return the model of a recorded command `... scale sample MODEL ...`."""
    words = [str(word) for word in command] if isinstance(command, list) else []
    if "sample" in words[:-1]:
        return Path(words[words.index("sample") + 1]).name
    return ""


def samples_of_run(path: Path) -> list[dict[str, Any]]:
    """Return a run's samples as lm-evaluation-harness logs them, one dict per problem.

    Keys: doc_id, doc, target, arguments, resps, filtered_resps, filter, metrics, acc.
    """
    from capax.files.run_folder import read_manifest
    from capax.measuring.procbench.record import lm_eval_rows, load_answers
    from capax.scaling.lm_eval_results import sample_rows

    manifest = read_manifest(path)
    if manifest.get("kind") == "procbench":
        return lm_eval_rows(load_answers(path / "samples.jsonl"))
    problems = manifest.get("problems", {})
    tasks = dict.fromkeys(problems.values())
    return [row for task in tasks for row in sample_rows(path, problems, task)]
