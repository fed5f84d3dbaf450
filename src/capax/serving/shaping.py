"""From a request to the shape of its answer: tools, form and reasoning together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from capax.decoding.constraint import ConstraintFactory
from capax.serving.calls import CallParser
from capax.serving.errors import invalid
from capax.serving.form import compiled, form_of
from capax.serving.reasoning import Splitter, Start, after_thinking, start_of
from capax.serving.shape import AnswerParser, Delta, Shape
from capax.serving.state import Server
from capax.serving.tools import Tools, checked_form, shows_control, style_of, tools_of, with_tools


class MessageParser:
    """Splits an answer into reasoning, content and calls."""

    def __init__(self, start: Start, calls: CallParser | None) -> None:
        self._splitter = Splitter(start)
        self._calls = calls
        self._reasoning = ""
        self._content = ""
        self.reasoning_tokens = 0

    def push(self, text: str, n_tokens: int) -> list[Delta]:
        """Take text that `n_tokens` tokens brought; return what is certain now, in order."""
        was_thinking = self._splitter.is_thinking
        deltas = [delta for part in self._splitter.push(text) for delta in self._add(*part)]
        if was_thinking or self._splitter.is_thinking:
            self.reasoning_tokens += n_tokens
        return deltas

    def finish(self, reason: str) -> tuple[list[Delta], str]:
        """Take the end of the text; return what was held back and the reason to report."""
        deltas = [delta for part in self._splitter.finish() for delta in self._add(*part)]
        if self._calls is not None:
            deltas += self._calls.finish()
            if self._calls.calls and reason == "stop":
                reason = "tool_calls"
        return deltas, reason

    def message(self) -> dict[str, Any]:
        """Return the fields of the whole message but its role, after `finish`."""
        content: str | None = self._content
        fields: dict[str, Any] = {}
        if self._calls is not None:
            content = self._calls.content
            if self._calls.calls:
                fields["tool_calls"] = self._calls.calls
                content = content or None
        if self._reasoning:
            fields |= {"reasoning_content": self._reasoning, "reasoning": self._reasoning}
        return {"content": content, **fields}

    def _add(self, is_reasoning: bool, text: str) -> list[Delta]:
        if is_reasoning:
            self._reasoning += text
            return [{"reasoning_content": text, "reasoning": text}]
        if self._calls is not None:
            return self._calls.push(text)
        self._content += text
        return [{"content": text}]


async def shape_of(server: Server, body: Any, template_for: Callable[[bool], str]) -> Shape:
    """Return what a chat's body demands of its answer. Raises ApiError 400.

    template_for(has tools): the template that the prompt is rendered with.
    """
    tools = tools_of(body.tools, body.tool_choice, body.parallel_tool_calls)
    shown = tools if tools is not None and tools.choice != "none" else None
    template = template_for(shown is not None)
    tokenizer = server.llm.tokenizer
    make_calls = constraint = None
    skip_special: bool | None = None
    form, param = form_of(body) or (None, "response_format")
    if shown is not None:
        style = style_of(template)
        make_calls = partial(CallParser, style, shown.names)
        skip_special = False if shows_control(style, tokenizer) else None
        if form is not None and form.kind != "json" and shown.choice == "auto":
            raise invalid(
                f"{param} and tools are given, which go together for JSON only; leave one out",
                param=param,
            )
        if shown.choice == "required":
            form, param = checked_form(shown, style, tokenizer), "tools"
        elif form is not None:
            form, param = checked_form(shown, style, tokenizer, form), param
    if form is not None:
        constraint = await compiled(server, form, param)
    return Shape(
        constraint=constraint,
        tools=shown.as_json() if shown is not None and "tools" in template else None,
        messages=partial(_shown, template, shown),
        template_options=_options(body.reasoning_effort),
        begin=partial(_begin, server, template, make_calls),
        skip_special_tokens=skip_special,
    )


def _shown(template: str, tools: Tools | None, messages: list[dict[str, Any]]) -> Any:
    has_calls = any("tool_calls" in m or m["role"] == "tool" for m in messages)
    return with_tools(messages, template, tools) if tools is not None or has_calls else messages


def _options(effort: str | None) -> dict[str, Any]:
    if effort is None:
        return {}
    return {"enable_thinking": False} if effort == "none" else {"reasoning_effort": effort}


def _begin(
    server: Server,
    template: str,
    make_calls: Callable[[], CallParser] | None,
    shape: Shape,
    prompt_ids: Sequence[int],
) -> Shape:
    """Return the shape of the answer to a prompt that has been rendered."""
    llm = server.llm
    start = start_of(llm.tokenizer, template, prompt_ids)
    parser: Callable[[], AnswerParser] | None = None
    if make_calls is not None or start is not Start.CONTENT:
        parser = partial(_parser, start, make_calls)
    constraint: ConstraintFactory | None = shape.constraint
    if constraint is not None:
        constraint = after_thinking(constraint, llm.tokenizer, llm.config.vocab_size, start)
    skip = shape.skip_special_tokens
    if start is not Start.CONTENT and llm.tokenizer.control_texts.get("</think>") in (
        llm.tokenizer.special_ids
    ):
        skip = False
    return dataclasses.replace(
        shape, parser=parser, constraint=constraint, skip_special_tokens=skip
    )


def _parser(start: Start, make_calls: Callable[[], CallParser] | None) -> MessageParser:
    return MessageParser(start, make_calls() if make_calls is not None else None)
