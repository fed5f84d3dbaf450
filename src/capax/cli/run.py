"""`capax run`: answer one prompt."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from capax.cli.answer import (
    details,
    end_line,
    figures,
    note_logprobs,
    output_json,
    print_pieces,
    write_answer,
)
from capax.cli.console import console
from capax.cli.form import form_of, form_options
from capax.cli.options import capacity_options, chosen_kv, json_option, model_argument
from capax.cli.sampling import describe, sampling_options, sampling_params

if TYPE_CHECKING:
    from capax import LLM

MAX_PROMPT_NBYTES = 64 << 20
PROMISE_SECONDS = 2.0
LONG_PROMPT_TOKENS = 2048


@click.command("run")
@model_argument
@click.argument("prompt", required=False)
@click.option("-p", "--prompt", "prompt_flag", metavar="TEXT", help="The prompt; - is stdin.")
@click.option("-s", "-sys", "--system", metavar="TEXT", help="System message (chat models).")
@click.option("--raw", is_flag=True, help="Continue the text as it is, without chat template.")
@click.option("--chat", is_flag=True, help="Insist on the chat template.")
@sampling_options
@form_options
@capacity_options
@click.option(
    "--logprobs", type=click.IntRange(0, 20), metavar="K",
    help="Show log-probabilities, with the K best tokens.",
)  # fmt: skip
@json_option
def command(
    model: str,
    prompt: str | None,
    prompt_flag: str | None,
    system: str | None,
    raw: bool,
    chat: bool,
    logprobs: int | None,
    as_json: bool,
    memory: int | None,
    ctx_size: int | None,
    threads: int | None,
    kv: str | None,
    cache_type_k: str | None,
    cache_type_v: str | None,
    grammar: str | None,
    grammar_file: str | None,
    json_schema: str | None,
    json_schema_file: str | None,
    **sampling: Any,
) -> None:
    """Answer PROMPT with MODEL and print the answer as it grows.

    The prompt comes from the command line, from -p, or from a pipe ('-'). A model with a chat
    template is asked as in a chat; --raw continues the text instead. Without any prompt on a
    terminal a chat begins. The last line on stderr has the speeds, the memory held and the
    plan.
    """
    kv = chosen_kv(kv, cache_type_k, cache_type_v)
    if raw and (chat or system is not None):
        raise click.UsageError("--raw uses no chat template; leave out --chat and --system")
    if prompt is not None and prompt_flag is not None:
        raise click.UsageError("the prompt is given twice, as an argument and with -p")
    form = form_of(grammar, grammar_file, json_schema, json_schema_file)
    text = prompt_text(prompt if prompt_flag is None else prompt_flag)
    from capax import LLM

    if text is None:
        from capax.cli.chat import converse

        llm = LLM(model, memory=memory, ctx_size=ctx_size, threads=threads, kv=kv)
        converse(llm, sampling_params(llm.file, sampling, form=form), system, memory)
        return
    llm = LLM(model, memory=memory, ctx_size=ctx_size, threads=threads, kv=kv)
    params = sampling_params(llm.file, sampling, logprobs=logprobs, form=form)
    console().detail(describe(params))
    for note in llm.plan.notes:
        console().note(f"note: {note}")
    is_chat = not raw and (chat or system is not None or llm.file.chat_template is not None)
    if is_chat:
        messages = [{"role": "system", "content": system}] if system is not None else []
        ids = llm.chat_ids([*messages, {"role": "user", "content": text}])
    else:
        ids = llm.tokenizer.encode(text)
    _promise(llm, len(ids))
    shown: list[str] = []
    try:
        output = print_pieces(llm.stream(ids, params), shown.append if as_json else write_answer)
    except KeyboardInterrupt:
        end_line()
        console().note("[ stopped ]")
        raise
    if output is None:
        return
    if as_json:
        document = {"prompt": text, **output_json(llm, output, params.seed)}
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    end_line()
    if logprobs is not None:
        note_logprobs(output, console().note)
    for line in details(llm, output):
        console().detail(line)
    console().note(figures(llm, output, memory))


def prompt_text(given: str | None) -> str | None:
    """Return the prompt: as given, from stdin for '-' or a pipe, None on a bare terminal.

    Raises ConfigError for a piped prompt that is empty, too long or no UTF-8.
    """
    from capax.errors import ConfigError

    if given is not None and given != "-":
        return given
    if given is None and sys.stdin.isatty():
        return None
    raw = sys.stdin.buffer.read(MAX_PROMPT_NBYTES + 1)
    if len(raw) > MAX_PROMPT_NBYTES:
        raise ConfigError(f"the prompt on stdin has more than {MAX_PROMPT_NBYTES >> 20} MiB")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise ConfigError(f"the prompt on stdin is not UTF-8 at byte {e.start:,}") from None
    if not text.strip():
        raise ConfigError("the prompt on stdin is empty; give one with -p TEXT")
    return text.removesuffix("\n")


def _promise(llm: LLM, n_tokens: int) -> None:
    """Before a long prompt, give a sign of life: how long it will take, if that is known."""
    from capax.planning.machine import read_machine
    from capax.planning.prediction import prefill_seconds
    from capax.planning.probe import cached_probe
    from capax.planning.sizes import format_duration

    probe = cached_probe(read_machine(), llm.isa, llm.plan.threads)
    if probe is None:
        if n_tokens >= LONG_PROMPT_TOKENS:
            console().note(f"reading {n_tokens:,} prompt tokens ...")
        return
    seconds = prefill_seconds(llm.file, llm.plan.shape, probe, n_tokens)
    if seconds > PROMISE_SECONDS:
        console().note(f"reading {n_tokens:,} prompt tokens, about {format_duration(seconds)} ...")
