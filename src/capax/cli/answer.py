"""Printing an answer as it grows, and the line of figures after it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from capax.errors import CapaxError

if TYPE_CHECKING:
    from capax import LLM
    from capax.engine.outputs import RequestOutput, StreamPiece

# Control characters of an answer could move the cursor, recolour or retitle the terminal.
_SHOWN = {"\n", "\t"}


def print_pieces(
    pieces: Iterator[StreamPiece], on_text: Callable[[str], None]
) -> RequestOutput | None:
    """Hand each piece of text to `on_text`; return the whole output when it is complete.

    Ctrl-C ends the answer: the pieces are closed, which cancels the request, and
    KeyboardInterrupt goes on to the caller. Raises CapaxError if the model's numbers were none.
    """
    output = None
    try:
        for piece in pieces:
            if piece.text:
                on_text(piece.text)
            output = piece.output or output
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()
    if output is not None and any(c.finish_reason == "error" for c in output.outputs):
        n = output.usage.completion_tokens
        raise CapaxError(
            f"the model's logits are not finite after {n} tokens of the answer: the file may be "
            "damaged, get it again"
        )
    return output


def write_answer(text: str) -> None:
    """Write a piece of an answer to stdout at once; a terminal sees no control characters."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def printable(text: str) -> str:
    """Return `text` with control characters spelled out, except line ends and tabs."""
    if text.isprintable():
        return text
    return "".join(
        c if c in _SHOWN or c.isprintable() or not _is_control(c) else repr(c)[1:-1] for c in text
    )


def _is_control(char: str) -> bool:
    code = ord(char)
    return code < 32 or 127 <= code < 160


def figures(llm: LLM, output: RequestOutput, memory: int | None) -> str:
    """Return the closing line: speeds, memory held, the budget and what was planned."""
    from capax.planning.machine import process_memory
    from capax.planning.sizes import format_size

    t = output.timings
    held = format_size(process_memory().peak)
    of = "" if memory is None else f" of {format_size(llm.plan.limit.nbytes)}"
    cached = f", {t.cache_n} cached" if t.cache_n else ""
    return (
        f"[ Prompt: {output.usage.prompt_tokens} tok{cached}, {t.prompt_per_second:.1f} t/s | "
        f"Generation: {output.usage.completion_tokens} tok, {t.predicted_per_second:.1f} t/s | "
        f"{held}{of} (plan {format_size(llm.plan.total_nbytes)}) ]"
    )


def details(llm: LLM, output: RequestOutput) -> Iterable[str]:
    """Yield the block that -v adds: what was planned beside what was measured."""
    from capax.planning.machine import process_memory
    from capax.planning.sizes import format_size

    t = output.timings
    yield f"isa {llm.isa}, threads {llm.plan.threads} ({llm.plan.threads_reason})"
    yield f"load {llm.load_seconds:.3f} s, context {llm.plan.context_len}, KV {llm.plan.kv}"
    measured = llm.measured_memory()
    for name, planned in llm.plan.footprint.to_json().items():
        now = f"{format_size(measured[name]):>12}" if name in measured else f"{'':>12}"
        yield f"{name:<10} planned {format_size(planned):>12}  measured {now}"
    memory = process_memory()
    yield (
        f"resident {format_size(memory.anonymous)} anonymous, {format_size(memory.file_mapped)} "
        f"of files, {format_size(memory.peak)} at most"
    )
    predicted = predicted_speed(llm, output)
    if predicted:
        yield predicted
    yield f"prompt {t.prompt_n} tokens in {t.prompt_ms:.1f} ms, {t.cache_n} reused"
    yield f"generation {t.predicted_n} tokens in {t.predicted_ms:.1f} ms"
    yield from (f"note: {note}" for note in llm.plan.notes)


def predicted_speed(llm: LLM, output: RequestOutput) -> str | None:
    """Return predicted beside measured decode speed, if this machine has been probed."""
    from capax.planning.machine import read_machine
    from capax.planning.prediction import decode_seconds
    from capax.planning.probe import cached_probe

    probe = cached_probe(read_machine(), llm.isa, llm.plan.threads)
    if probe is None:
        return None
    depth = output.usage.prompt_tokens + output.usage.completion_tokens // 2
    seconds = decode_seconds(llm.file, llm.plan.shape, probe, depth)
    return (
        f"decode predicted {1 / seconds:.1f} t/s, "
        f"measured {output.timings.predicted_per_second:.1f} t/s"
    )


def output_json(llm: LLM, output: RequestOutput, seed: int | None) -> dict[str, Any]:
    """Return one answer as --json prints it."""
    from dataclasses import asdict

    from capax.planning.machine import process_memory

    t = output.timings
    choice = output.outputs[0]
    logprobs = choice.logprobs
    return {
        "model": llm.plan.model,
        "prompt_token_ids": output.prompt_token_ids,
        "text": choice.text,
        "token_ids": choice.token_ids,
        "finish_reason": choice.finish_reason,
        "seed": seed,
        "logprobs": None
        if logprobs is None
        else [
            {
                "token": next(iter(position.values())).decoded_token,
                "token_id": next(iter(position)),
                "logprob": next(iter(position.values())).logprob,
                "top_logprobs": [
                    {"token": p.decoded_token, "token_id": i, "logprob": p.logprob}
                    for i, p in position.items()
                    if p.rank is not None
                ],
            }
            for position in logprobs
        ],
        "usage": {
            "prompt_tokens": output.usage.prompt_tokens,
            "completion_tokens": output.usage.completion_tokens,
            "total_tokens": output.usage.total_tokens,
            "prompt_tokens_details": {"cached_tokens": output.usage.cached_tokens},
        },
        "timings": {
            "cache_n": t.cache_n,
            "prompt_n": t.prompt_n,
            "prompt_ms": t.prompt_ms,
            "prompt_per_second": t.prompt_per_second,
            "predicted_n": t.predicted_n,
            "predicted_ms": t.predicted_ms,
            "predicted_per_second": t.predicted_per_second,
        },
        "memory": {"measured": llm.measured_memory(), "process": asdict(process_memory())},
        "plan": llm.plan.to_json(),
        "isa": llm.isa,
    }


def note_logprobs(output: RequestOutput, say: Callable[[str], None]) -> None:
    """Show each token with its log-probability and the best ones."""
    for position in output.outputs[0].logprobs or ():
        entries = list(position.items())
        _, chosen = entries[0]
        best = ", ".join(
            f"{printable(p.decoded_token)!r} {p.logprob:.3f}" for _, p in entries if p.rank
        )
        say(f"{printable(chosen.decoded_token)!r:<16} {chosen.logprob:8.4f}  {best}")


def end_line() -> None:
    """End the answer's last line on a terminal or in a pipe."""
    click.echo()
