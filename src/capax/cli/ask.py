"""`capax ask`: a question about a text of any length."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import IO, TYPE_CHECKING, Any

import click

from capax.cli.answer import printable
from capax.cli.console import console
from capax.cli.options import capacity_options, chosen_kv, json_option, model_argument
from capax.cli.sampling import sampling_options, sampling_params

if TYPE_CHECKING:
    from capax.scaling.xl3m import LongAnswer

READ_NBYTES = 1 << 20
DEFAULT_MAX_TOKENS = 256
_QUOTED_CHARS = 72


@click.command("ask")
@model_argument
@click.argument("question")
@click.option(
    "-f", "--text", "--file", "text", metavar="FILE", required=True, help="UTF-8 text; - is stdin."
)
@click.option("--segment", type=int, metavar="N", help="Tokens of a segment. Default: 256 or 512.")
@click.option("--overlap", type=int, metavar="N", help="Tokens that neighbours share.")
@click.option("--keep", type=int, metavar="K", help="Segments the answer is drawn from.")
@click.option(
    "--score", type=click.Choice(["both", "entropy", "question_nll", "mean_entropy", "kl"]),
    default="both", show_default=True, help="What ranks segments; the paper's is entropy.",
)  # fmt: skip
@click.option("--refine", is_flag=True, help="Score the kept segments again in halves.")
@click.option("--raw", is_flag=True, help="Ask without chat template: the question is continued.")
@sampling_options
@capacity_options
@json_option
def command(
    model: str,
    question: str,
    text: str,
    segment: int | None,
    overlap: int | None,
    keep: int | None,
    score: Any,
    refine: bool,
    raw: bool,
    as_json: bool,
    memory: int | None,
    ctx_size: int | None,
    threads: int | None,
    kv: str | None,
    cache_type_k: str | None,
    cache_type_v: str | None,
    **sampling: Any,
) -> None:
    """Answer QUESTION about a text that may be far longer than MODEL's context.

    The text is read in segments, each alone with the question (XL3M, arXiv 2405.17755); the
    answer is drawn from the few where the model is most certain, which are listed. What is not
    listed had no part in it, so this suits questions about a passage and not summaries.
    """
    from capax import LLM
    from capax.scaling import xl3m

    options = xl3m.Options(
        segment=segment,
        overlap=overlap,
        keep=keep,
        score=score,
        refine=refine,
        chat=False if raw else None,
    )
    with ExitStack() as stack:
        file = sys.stdin.buffer if text == "-" else stack.enter_context(_opened(text))
        llm = LLM(
            model,
            memory=memory,
            ctx_size=ctx_size,
            threads=threads,
            kv=chosen_kv(kv, cache_type_k, cache_type_v),
        )
        params = sampling_params(llm.file, sampling)
        if params.max_tokens is None:
            params = replace(params, max_tokens=min(DEFAULT_MAX_TOKENS, llm.context_len // 4))
        answer = xl3m.answer(
            llm, _parts(file, text), question, params, options, progress=_progress()
        )
    if as_json:
        click.echo(json.dumps(_document(answer, question), indent=2, ensure_ascii=False))
        return
    click.echo(printable(answer.text) if sys.stdout.isatty() else answer.text)
    for span in answer.spans:
        line = " ".join(printable(span.text).split())
        shown = line if len(line) <= _QUOTED_CHARS else line[:_QUOTED_CHARS] + "…"
        console().note(f"[ {span.begin:,}–{span.end:,}: {shown} ]")
    console().note(
        f"[ {answer.n_text:,} tokens of text · {len(answer.segments)} segments, "
        f"{answer.n_scored:,} tokens to score them · {answer.output.usage.prompt_tokens:,} + "
        f"{answer.output.usage.completion_tokens:,} to answer ]"
    )


def _opened(name: str) -> IO[bytes]:
    from capax.errors import ConfigError

    try:
        return open(name, "rb")
    except OSError as e:
        raise ConfigError(f"cannot read {name}: {e.strerror}") from None


def _parts(file: IO[bytes], name: str) -> Iterator[str]:
    """Yield the text in parts, so that it is never in memory as a whole."""
    from capax.errors import ConfigError

    decoder = codecs.getincrementaldecoder("utf-8")()
    n_read = 0
    try:
        while data := file.read(READ_NBYTES):
            yield decoder.decode(data)
            n_read += len(data)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise ConfigError(f"{name} is not UTF-8 behind byte {n_read:,}; convert it first") from None


def _progress() -> Any:
    shows = console().shows_progress()

    def progress(done: int, total: int) -> None:
        if shows:
            end = "\n" if done == total else ""
            click.echo(f"\rread {done:,} of {total:,} tokens{end}", nl=False, err=True)

    return progress


def _document(answer: LongAnswer, question: str) -> dict[str, Any]:
    usage = answer.output.usage
    return {
        "question": question,
        "answer": answer.text,
        "spans": [span._asdict() for span in answer.spans],
        "segments": [
            {**asdict(segment), "kept": i in answer.kept}
            for i, segment in enumerate(answer.segments)
        ],
        "margin": answer.margin,
        "usage": {
            "text_tokens": answer.n_text,
            "scoring_tokens": answer.n_scored,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
        },
        "peak_kv_bytes": answer.peak_kv_nbytes,
    }
