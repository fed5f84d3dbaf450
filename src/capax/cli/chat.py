"""`capax chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capax.cli.answer import details, end_line, figures, print_pieces, write_answer
from capax.cli.console import console
from capax.cli.options import capacity_options, chosen_kv, model_argument
from capax.cli.sampling import describe, sampling_options, sampling_params
from capax.errors import CapaxError, ConfigError

if TYPE_CHECKING:
    from capax import LLM, SamplingParams

HELP = """/exit         leave
/clear        forget the conversation
/regen        answer the last message again
/read FILE    put the text of a file before the next message
/help         show this
A message of several lines stands between lines of three quotes: \"\"\""""
MAX_READ_NBYTES = 16 << 20


@click.command("chat")
@model_argument
@click.option("-s", "-sys", "--system", metavar="TEXT", help="System message.")
@sampling_options
@capacity_options
def command(
    model: str,
    system: str | None,
    memory: int | None,
    ctx_size: int | None,
    threads: int | None,
    kv: str | None,
    cache_type_k: str | None,
    cache_type_v: str | None,
    **sampling: Any,
) -> None:
    """Talk to MODEL. /help lists the commands inside.

    Ctrl-C stops an answer and keeps the conversation; at the prompt it leaves. What both
    sides said so far stays in the KV cache, so a turn costs only its new tokens.
    """
    from capax import LLM

    chosen = chosen_kv(kv, cache_type_k, cache_type_v)
    llm = LLM(model, memory=memory, ctx_size=ctx_size, threads=threads, kv=chosen)
    converse(llm, sampling_params(llm.file, sampling), system, memory)


class Conversation:
    """The messages so far, and the text that /read put before the next one."""

    def __init__(
        self, llm: LLM, params: SamplingParams, system: str | None, memory: int | None
    ) -> None:
        self.llm = llm
        self.params = params
        self.memory = memory
        self.opening = [] if system is None else [{"role": "system", "content": system}]
        self.messages = list(self.opening)
        self.pending = ""
        self.n_regenerated = 0

    def say(self, text: str) -> str | None:
        """Add a user message and answer it; returns the line of figures, None if stopped."""
        self.messages.append({"role": "user", "content": self.pending + text})
        self.n_regenerated = 0
        try:
            line = self.answer()
        except CapaxError:
            self.messages.pop()  # the message that could not be answered is not part of the talk
            raise
        self.pending = ""
        return line

    def answer(self) -> str | None:
        """Answer the last message, adding what was written to the conversation."""
        written: list[str] = []

        def show(text: str) -> None:
            written.append(text)
            write_answer(text)

        output = None
        try:
            output = print_pieces(self.llm.stream_chat(self.messages, self._params()), show)
        except KeyboardInterrupt:
            console().note(" [ stopped ]")
        end_line()
        self.messages.append({"role": "assistant", "content": "".join(written)})
        if output is None:
            return None
        for line in details(self.llm, output):
            console().detail(line)
        return figures(self.llm, output, self.memory)

    def _params(self) -> SamplingParams:
        """Regenerating draws with another seed: the same one would give the same answer."""
        seed = self.params.seed or 0
        return (
            self.params.with_seed(seed + self.n_regenerated) if self.n_regenerated else self.params
        )

    def clear(self) -> None:
        self.messages = list(self.opening)
        self.pending = ""

    def regenerate(self) -> str | None:
        """Answer the last user message again."""
        while self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        if not self.messages or self.messages[-1]["role"] != "user":
            raise ConfigError("there is no message to answer again")
        self.n_regenerated += 1
        return self.answer()

    def read(self, name: str) -> int:
        """Put the text of a file before the next message; returns its characters."""
        try:
            with Path(name).expanduser().open("rb") as file:
                raw = file.read(MAX_READ_NBYTES + 1)
        except OSError as e:
            raise ConfigError(f"cannot read {name!r}: {e.strerror}") from None
        if len(raw) > MAX_READ_NBYTES:
            raise ConfigError(f"{name!r} has more than {MAX_READ_NBYTES >> 20} MiB")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as e:
            raise ConfigError(f"{name!r} is not UTF-8 at byte {e.start:,}") from None
        self.pending += text + "\n"
        return len(text)


def converse(llm: LLM, params: SamplingParams, system: str | None, memory: int | None) -> None:
    """Read messages from stdin and answer them until /exit, end of input or Ctrl-C."""
    if llm.file.chat_template is None:
        raise ConfigError(
            f"{llm.plan.model} has no chat template; 'capax run --raw' continues a text"
        )
    talk = Conversation(llm, params, system, memory)
    console().detail(describe(params))
    for note in llm.plan.notes:
        console().note(f"note: {note}")
    if sys.stdin.isatty():
        console().note(f"{llm.plan.model}, context {llm.plan.context_len}; /help lists commands")
    with line_editing():
        for line in messages_from_stdin():
            try:
                figures_line = _handle(talk, line)
            except CapaxError as e:
                # The conversation goes on: a message too long or a file not found ends nothing.
                click.echo(f"capax: {e}", err=True)
                continue
            if figures_line:
                console().note(figures_line)


def _handle(talk: Conversation, line: str) -> str | None:
    """Do what one line says."""
    name, _, rest = line.partition(" ")
    if not line.startswith("/"):
        return talk.say(line)
    if name == "/clear":
        talk.clear()
    elif name == "/regen":
        return talk.regenerate()
    elif name == "/read":
        n = talk.read(rest.strip())
        console().note(f"{n:,} characters will stand before your next message")
    elif name == "/help":
        console().note(HELP)
    else:
        raise ConfigError(f"there is no command {name!r:.40}; /help lists them")
    return None


def messages_from_stdin() -> Iterator[str]:
    """Yield messages and commands until /exit, end of input, or Ctrl-C at the prompt."""
    is_terminal = sys.stdin.isatty()
    while True:
        try:
            line = _read_line("> " if is_terminal else "")
            if line.strip() == '"""':
                lines = []
                while (line := _read_line(". " if is_terminal else "")).strip() != '"""':
                    lines.append(line)
                line = "\n".join(lines)
        except (EOFError, KeyboardInterrupt):
            if is_terminal:
                end_line()
            return
        if line.strip() in ("/exit", "/bye"):
            return
        if line.strip():
            yield line.strip()


def _read_line(prompt: str) -> str:
    # input() edits lines on a terminal, but would print its prompt into a redirected stdout.
    if prompt:
        return input(prompt)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")


@contextlib.contextmanager
def line_editing() -> Iterator[None]:
    """Offer editing and the history of earlier sessions on a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    from capax.files.xdg import private_dir, xdg_dir

    try:
        import readline
    except ImportError:  # a Python built without it: plain input still works
        yield
        return
    path = private_dir(xdg_dir("STATE")) / "chat_history"
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.touch(mode=0o600)
            readline.write_history_file(path)
