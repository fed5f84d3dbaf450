"""`capax bench serve`: an open-loop load on any OpenAI-compatible server, in vLLM's words."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capax.cli.console import console
from capax.cli.options import json_option
from capax.cli.recording import host_facts, keep, optional_record_option, plain, record_folder
from capax.errors import ConfigError

if TYPE_CHECKING:
    from capax.measuring.load.request import Backend, Outcome, Target
    from capax.measuring.load.run import Load
    from capax.measuring.load.workload import Planned

METRIC_NAMES = ("ttft", "tpot", "itl", "e2el")
GOAL_NAMES = ("ttft", "tpot", "e2el")
SHOWN_ERRORS = 3


class RateType(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """Requests per second; inf sends all at once."""

    name = "rate"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            rate = float(value)
        except ValueError:
            rate = math.nan
        if not rate > 0:
            self.fail(f"{value!r:.40} is no rate; give a number above 0, or inf", param, ctx)
        return rate


class NamesType(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """Some of the metrics, with commas between."""

    name = "names"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(part.strip() for part in str(value).split(",") if part.strip())
        for name in names:
            if name not in METRIC_NAMES:
                known = ", ".join(METRIC_NAMES)
                self.fail(f"{name!r:.40} is no metric; use some of {known}", param, ctx)
        return names


class PercentilesType(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """Percentiles with commas between: 50,90,99.9."""

    name = "list"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            found = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            found = (math.nan,)
        if not all(0 <= p <= 100 for p in found):
            self.fail(f"{value!r:.40} are no percentiles from 0 to 100", param, ctx)
        return found


@click.command("bench serve")
@click.option(
    "--base-url", default="http://127.0.0.1:8080", show_default=True, metavar="URL",
    help="The server, without /v1.",
)  # fmt: skip
@click.option(
    "--backend", type=click.Choice(["openai", "openai-chat"]), default="openai",
    show_default=True, help="Completions or chats.",
)  # fmt: skip
@click.option("--endpoint", metavar="PATH", help="Default: /v1/completions or its chat sister.")
@click.option("--model", metavar="NAME", help="Default: the first that the server lists.")
@click.option(
    "--num-prompts", type=click.IntRange(1, 1_000_000), default=100, show_default=True,
    metavar="N", help="Requests.",
)  # fmt: skip
@click.option(
    "--request-rate", type=RateType(), default="inf", show_default=True,
    help="Requests per second; inf: all at once, or as --max-concurrency lets them.",
)  # fmt: skip
@click.option(
    "--burstiness", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True,
    metavar="X", help="1: Poisson arrivals; below: bursts; above: more even.",
)  # fmt: skip
@click.option(
    "--max-concurrency", type=click.IntRange(1, 100_000), metavar="N",
    help="Most requests at a time.",
)  # fmt: skip
@click.option(
    "--dataset-name", type=click.Choice(["sharegpt-like", "random"]), default="sharegpt-like",
    show_default=True, help="How long prompts and answers are.",
)  # fmt: skip
@click.option(
    "--random-input-len", type=click.IntRange(1, 1_000_000), default=1024, show_default=True,
    metavar="N", help="Prompt tokens of 'random', about.",
)  # fmt: skip
@click.option(
    "--random-output-len", type=click.IntRange(1, 1_000_000), default=128, show_default=True,
    metavar="N", help="Answer tokens of 'random'.",
)  # fmt: skip
@click.option(
    "--random-range-ratio", type=click.FloatRange(0, 1, max_open=True), default=0.0,
    show_default=True, metavar="X", help="Lengths of 'random' vary by this share.",
)  # fmt: skip
@click.option(
    "--max-prompt-len", type=click.IntRange(4, 1_000_000), default=1024, show_default=True,
    metavar="N", help="Longest prompt of 'sharegpt-like'.",
)  # fmt: skip
@click.option(
    "--max-output-len", type=click.IntRange(4, 1_000_000), default=1024, show_default=True,
    metavar="N", help="Longest answer of 'sharegpt-like'.",
)  # fmt: skip
@click.option(
    "--prefix-len", type=click.IntRange(0, 1_000_000), default=0, show_default=True,
    metavar="N", help="Tokens, about, that all prompts share at their beginning.",
)  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N",
    help="Decides prompts, lengths and moments.",
)  # fmt: skip
@click.option(
    "--temperature", type=click.FloatRange(0, 100), default=0.0, show_default=True,
    metavar="X", help="Sent with every request.",
)  # fmt: skip
@click.option("--ignore-eos", is_flag=True, help="Answers are as long as planned.")
@click.option(
    "--percentile-metrics", type=NamesType(), default="ttft,tpot,itl,e2el", show_default=True,
    help="Which times to print.",
)  # fmt: skip
@click.option(
    "--metric-percentiles", type=PercentilesType(), default="99", show_default=True,
    help="Which percentiles of them.",
)  # fmt: skip
@click.option(
    "--goodput", multiple=True, metavar="NAME:MS",
    help="A goal of ttft, tpot or e2el; requests within all goals are the goodput.",
)  # fmt: skip
@click.option(
    "--ready-check-timeout-sec", type=click.FloatRange(0), default=600.0, show_default=True,
    metavar="S", help="How long to wait for the server.",
)  # fmt: skip
@click.option(
    "--request-timeout-sec", type=click.FloatRange(0, min_open=True), default=600.0,
    show_default=True, metavar="S", help="A request that takes longer has failed.",
)  # fmt: skip
@click.option(
    "--api-key", envvar=("CAPAX_API_KEY", "OPENAI_API_KEY"), metavar="KEY",
    help="Sent as bearer token; of several with blanks between, the first.  "
    "[variables: CAPAX_API_KEY, OPENAI_API_KEY]",
)  # fmt: skip
@click.option("--save-result", is_flag=True, help="Write the numbers to a JSON file.")
@click.option("--save-detailed", is_flag=True, help="With every request's own numbers.")
@click.option(
    "--result-dir", type=click.Path(file_okay=False, path_type=Path), default=Path(),
    metavar="DIR", help="Where to write it.",
)  # fmt: skip
@click.option("--result-filename", metavar="NAME", help="What to call it.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="Further fields of it.")
@optional_record_option
@json_option
def command(
    base_url: str,
    backend: str,
    endpoint: str | None,
    model: str | None,
    request_rate: float,
    max_concurrency: int | None,
    percentile_metrics: tuple[str, ...],
    metric_percentiles: tuple[float, ...],
    goodput: tuple[str, ...],
    ready_check_timeout_sec: float,
    api_key: str | None,
    save_result: bool,
    save_detailed: bool,
    result_dir: Path,
    result_filename: str | None,
    metadata: tuple[str, ...],
    record: str | None,
    as_json: bool,
    **settings: Any,
) -> int:
    """Put load on a running server and print what its clients saw.

    Works with every server that speaks OpenAI's protocol. Requests arrive at random moments of
    a given rate whether or not those before have ended; prompts, lengths and moments follow
    from the seed. Exits with 1 if no request succeeded.
    """
    import asyncio

    from capax.measuring.load.summary import details_of, result_of, summary_lines

    folder = record_folder(record)
    goals = dict(_goal(text) for text in goodput)
    extra = dict(_pair(text) for text in metadata)
    load, target = asyncio.run(
        _measure(
            base_url, _first_key(api_key), backend, endpoint, model, request_rate, max_concurrency,
            ready_check_timeout_sec, settings,
        )
    )  # fmt: skip
    result = result_of(
        load, metrics=percentile_metrics, percentiles=metric_percentiles, goals_ms=goals
    )
    document = {
        "date": time.strftime("%Y%m%d-%H%M%S", time.gmtime()),
        "backend": target.backend,
        "endpoint": target.endpoint,
        "model_id": target.model,
        "num_prompts": settings["num_prompts"],
        **extra,
        "request_rate": "inf" if math.isinf(request_rate) else request_rate,
        "burstiness": settings["burstiness"],
        "max_concurrency": max_concurrency,
        "seed": settings["seed"],
        "dataset_name": settings["dataset_name"],
        **result,
    }
    if folder is not None:
        _keep(folder, target, request_rate, max_concurrency, settings, result)
    if save_detailed:
        document |= details_of(load.outcomes)
    if as_json:
        click.echo(json.dumps(document, indent=2))
    else:
        for line in summary_lines(
            result, request_rate=request_rate, max_concurrency=max_concurrency
        ):
            click.echo(line)
    _tell_errors(load)
    console().note(
        f"the load generator itself took {load.cpu_share:.0%} of a core"
        + ("; it may have been the limit" if load.cpu_share > 0.8 else "")
    )
    if save_result or save_detailed:
        path = result_dir / (result_filename or _file_name(document))
        _write(path, document)
        console().note(f"written to {path}")
    return 0 if result["completed"] else 1


def _keep(
    folder: Path, target: Target, request_rate: float, max_concurrency: int | None,
    settings: dict[str, Any], result: dict[str, Any],
) -> None:  # fmt: skip
    from capax.measuring.figures import load_figures
    from capax.measuring.records import Model, Record, now, versions

    rate = "inf" if math.isinf(request_rate) else request_rate
    chosen = {k: v for k, v in settings.items() if k != "seed"}
    chosen |= {"backend": target.backend, "request_rate": rate, "max_concurrency": max_concurrency}
    keep(
        folder,
        Record(
            kind="bench serve",
            time=now(),
            model=Model(name=target.model),
            settings=plain(chosen),
            seed=settings["seed"],
            machine=host_facts(),
            versions=versions(),
            figures=load_figures(result),
        ),
    )


async def _measure(
    base_url: str,
    api_key: str | None,
    backend: str,
    endpoint: str | None,
    model: str | None,
    request_rate: float,
    max_concurrency: int | None,
    ready_s: float,
    settings: dict[str, Any],
) -> tuple[Load, Target]:
    from capax.measuring.load.http import Client
    from capax.measuring.load.request import ENDPOINTS, Target
    from capax.measuring.load.run import run_load, wait_ready

    kind: Backend = "openai-chat" if backend == "openai-chat" else "openai"
    path = endpoint or ENDPOINTS[kind]
    if not path.startswith("/") or not path.isascii() or not path.isprintable() or " " in path:
        raise ConfigError(f"the endpoint {path!r:.60} is no path such as /v1/completions")
    requests = planned_requests(request_rate, settings)
    async with Client(base_url, api_key) as client:
        listed = await wait_ready(client, ready_s)
        target = Target(
            kind, path, model or listed, settings["temperature"], settings["ignore_eos"],
            settings["request_timeout_sec"],
        )  # fmt: skip
        n_done = 0

        def count(outcome: Outcome) -> None:
            nonlocal n_done
            n_done += 1
            console().detail(f"{n_done} of {len(requests)}: {outcome.error or 'ok'}")

        load = await run_load(
            client, target, requests, max_concurrency=max_concurrency, on_end=count
        )
    return load, target


def planned_requests(request_rate: float, settings: dict[str, Any]) -> list[Planned]:
    """Return the load that the flags describe."""
    from capax.measuring.load import workload as w

    n, seed = settings["num_prompts"], settings["seed"]
    if settings["dataset_name"] == "random":
        lengths = w.random_lengths(
            n, seed, settings["random_input_len"], settings["random_output_len"],
            settings["random_range_ratio"],
        )  # fmt: skip
    else:
        lengths = w.sharegpt_like_lengths(
            n, seed, max_prompt=settings["max_prompt_len"], max_answer=settings["max_output_len"]
        )
    moments = w.arrivals(n, request_rate, settings["burstiness"], seed)
    return w.plan_load(lengths, moments, seed, n_prefix=settings["prefix_len"])


def _first_key(keys: str | None) -> str | None:
    """Return the key to send: CAPAX_API_KEY may hold all that `capax serve` takes."""
    return next(iter((keys or "").split()), None)


def _goal(text: str) -> tuple[str, float]:
    name, _, value = text.partition(":")
    try:
        goal = float(value)
    except ValueError:
        goal = math.nan
    if name not in GOAL_NAMES or not goal >= 0:
        raise ConfigError(
            f"--goodput {text!r:.40} is not of the form ttft:500 (milliseconds), with one of "
            f"{', '.join(GOAL_NAMES)}"
        )
    return name, goal


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ConfigError(f"--metadata {text!r:.40} is not of the form KEY=VALUE")
    return key, value


def _tell_errors(load: Load) -> None:
    from collections import Counter

    errors = Counter(outcome.error for outcome in load.outcomes if outcome.error)
    for error, n in errors.most_common(SHOWN_ERRORS):
        console().note(f"{n} failed: {error}")
    if len(errors) > SHOWN_ERRORS:
        console().note(f"and {len(errors) - SHOWN_ERRORS} other errors, in --save-detailed")


def _file_name(document: dict[str, Any]) -> str:
    model = "".join(c if c.isalnum() or c in "._-" else "-" for c in document["model_id"])[-80:]
    concurrency = document["max_concurrency"]
    clients = "" if concurrency is None else f"-concurrency{concurrency}"
    rate = document["request_rate"]
    return f"{document['backend']}-{rate}qps{clients}-{model}-{document['date']}.json"


def _write(path: Path, document: dict[str, Any]) -> None:
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(json.dumps(document, indent=1), encoding="utf-8")
    os.replace(part, path)
