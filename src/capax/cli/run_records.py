"""A run directory seen as a record, so that runs are compared as measurements are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capax.cli.recording import plain

if TYPE_CHECKING:
    from capax.measuring.records import Figure, Record


def is_run(path: Path) -> bool:
    """Say whether a path is a run directory."""
    return path.is_dir() and (path / "manifest.json").is_file()


def records_of_run(path: Path) -> list[Record]:
    """Return what a run measured: one record, or one for each strategy, method or cell.

    Raises FileFormatError if it is no run, ConfigError if nothing of it is checked yet, or it is a
    measurement that is not finished.
    """
    from capax.files.run_folder import read_manifest
    from capax.measuring.measured_run import measured_records

    manifest = read_manifest(path)
    if manifest["kind"] == "comparison":
        cells = [path / str(name) for name in manifest.get("cells", [])]
        return [_sampled(cell, read_manifest(cell)) for cell in cells]
    if manifest["kind"] in ("samples", "rounds", "strategy"):
        return [_sampled(path, manifest)]
    return measured_records(path)


def _sampled(path: Path, manifest: dict[str, Any]) -> Record:
    """Return the record of a run of samples, of rounds, or of a strategy's answers."""
    from capax.measuring.records import Data, Model, Record
    from capax.scaling.sampling import load

    config = dict(manifest["config"])
    is_rounds = manifest["kind"] == "rounds"
    outcome = load(path, of_rounds=is_rounds)
    figures = _rounds_figures(path) if is_rounds else _sample_figures(outcome)
    name, tasks = str(config.pop("model", "")), str(config.pop("tasks", ""))
    seed, cap = config.pop("seed", None), config.pop("max_total_tokens", None)
    strategy = config.pop("strategy", None)
    sampling = config.pop("sampling", {})
    sampling = sampling if isinstance(sampling, dict) else {"sampling": sampling}
    model, template = _dict(manifest.get("model")), None
    if model:
        template = model.get("template_sha256")
    method = {"strategy": strategy, "template": template}
    return Record(
        kind="run",
        time=str(manifest.get("started", "")),
        model=Model(
            name=str(model.get("name") or _model_name(manifest.get("command")) or name),
            digest=name.removeprefix("sha256:") if name.startswith("sha256:") else "",
            architecture=str(model.get("architecture") or ""),
        ),
        data=Data(name="tasks", digest=tasks, n_items=outcome.counts.n_problems),
        method={key: value for key, value in method.items() if value is not None},
        settings=plain({**config, **sampling}),
        budget={} if cap is None else {"tokens": cap},
        seed=seed if isinstance(seed, int) else None,
        versions=_versions(manifest),
        machine=plain(_dict(manifest.get("hardware"))),
        figures=tuple(figures),
    )


def _versions(manifest: dict[str, Any]) -> dict[str, str]:
    """Return versions, with the commits that code and working directory were at."""
    found = {k: str(v) for k, v in _dict(manifest.get("versions")).items()}
    for name, state in _dict(manifest.get("git")).items():
        if isinstance(state, dict):
            found[f"git.{name}"] = f"{state.get('commit')}{'+' if state.get('is_dirty') else ''}"
    return found


def _sample_figures(outcome: Any) -> list[Figure]:
    from capax.scaling.coverage import curve
    from capax.scaling.selection import accuracy_of, majority

    ks = tuple(sorted({1, outcome.counts.n_min}))
    figures = []
    for point in curve(outcome.counts, ks):
        name = "accuracy" if point.k == 1 else f"coverage@{point.k}"
        figures.append(_share(name, point.coverage, (point.low, point.high), outcome))
    votes = accuracy_of(majority, outcome.answers, ks)
    return [*figures, _share(f"majority@{votes[-1].k}", votes[-1].accuracy, None, outcome)]


def _rounds_figures(path: Path) -> list[Figure]:
    from capax.measuring.records import Figure
    from capax.scaling.rounds import load_chains

    chains = load_chains(path)
    values = {
        "first_right": chains.ever_right()[0],
        "last_right": chains.last_right()[-1],
        "ever_right": chains.ever_right()[-1],
    }
    return [
        Figure(name=name, value=float(value), unit="share", higher_is_better=True,
               n=len(chains.outcomes))
        for name, value in values.items()
    ]  # fmt: skip


def _share(name: str, value: float, interval: Any, outcome: Any) -> Figure:
    from capax.measuring.records import Figure

    if interval is not None and not all(map(math.isfinite, interval)):
        interval = None
    return Figure(
        name=name, value=float(value), interval=interval, unit="share", higher_is_better=True,
        n=outcome.counts.n_problems,
    )  # fmt: skip


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _model_name(command: object) -> str:
    """Return the model of a recorded command `... scale sample MODEL ...`."""
    words = [str(word) for word in command] if isinstance(command, list) else []
    if "sample" in words[:-1]:  # runs of before manifests named their model
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
    if manifest["kind"] == "procbench":
        return lm_eval_rows(load_answers(path / "samples.jsonl"))
    if manifest["kind"] not in ("samples", "strategy", "rounds"):
        return []
    problems = manifest.get("problems", {})
    tasks = dict.fromkeys(problems.values())
    return [row for task in tasks for row in sample_rows(path, problems, task)]
