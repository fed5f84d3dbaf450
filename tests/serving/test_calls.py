"""Calls in an answer: found whatever pieces the text comes in, and nothing else taken for one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capax.serving.calls import CallParser
from capax.serving.shape import Delta
from capax.serving.tools import HERMES, LLAMA3, MISTRAL, Style, style_of

NAMES = frozenset({"add", "look_up"})
ADD = '{"name": "add", "arguments": {"a": 1, "b": [2, {"c": "}"}]}}'
LOOK = '{"name": "look_up", "arguments": {"key": "a \\"b\\" \\\\"}}'

ANSWERS: list[tuple[Style, str, str, list[tuple[str, Any]]]] = [
    (HERMES, "Hello {world}.", "Hello {world}.", []),
    (HERMES, f"<tool_call>\n{ADD}\n</tool_call>", "", [("add", 1)]),
    (HERMES, f"Sure. \n<tool_call>{LOOK}</tool_call>", "Sure.", [("look_up", 'a "b" \\')]),
    (
        HERMES,
        f"<tool_call>\n{ADD}\n</tool_call>\n<tool_call>\n{LOOK}\n</tool_call>\n",
        "",
        [("add", 1), ("look_up", 'a "b" \\')],
    ),
    (HERMES, "a <tool_ca", "a <tool_ca", []),
    (HERMES, "<tool_call>\nnothing", "<tool_call>\nnothing", []),
    (HERMES, '<tool_call>\n{"x": 1}\n', '<tool_call>\n{"x": 1}\n', []),
    (
        HERMES,
        '<tool_call>{"name": "other", "arguments": {}}',
        '<tool_call>{"name": "other", "arguments": {}}',
        [],
    ),
    (HERMES, '<tool_call>{"arguments": {"a": 5}, "name": "add"}</tool_call>', "", [("add", 5)]),
    (HERMES, '<tool_call>{"name": "add"}</tool_call>', "", [("add", None)]),
    (HERMES, '<tool_call>{"name": "add", "arguments": "{\\"a\\": 3}"}', "", [("add", 3)]),
    (MISTRAL, f"[TOOL_CALLS][{ADD}, {LOOK}]", "", [("add", 1), ("look_up", 'a "b" \\')]),
    (MISTRAL, f"[TOOL_CALLS] [{ADD}]", "", [("add", 1)]),
    (MISTRAL, "[TOOL] calls", "[TOOL] calls", []),
    (LLAMA3, ADD.replace("arguments", "parameters"), "", [("add", 1)]),
    (LLAMA3, "<|python_tag|>" + ADD.replace("arguments", "parameters"), "", [("add", 1)]),
    (LLAMA3, f"{ADD}; {LOOK}", "", [("add", 1), ("look_up", 'a "b" \\')]),
    (LLAMA3, f"No: {ADD}", f"No: {ADD}", []),
    (LLAMA3, '{"answer": 42}', '{"answer": 42}', []),
]


def joined(deltas: list[Delta]) -> tuple[str, list[dict[str, Any]]]:
    """What a client makes of the deltas."""
    content, calls = "", []
    for delta in deltas:
        content += delta.get("content", "")
        for call in delta.get("tool_calls", []):
            if "id" in call:
                assert call["index"] == len(calls)
                assert call["type"] == "function"
                calls.append({**call["function"], "id": call["id"]})
            else:
                assert set(call) == {"index", "function"}
                calls[call["index"]]["arguments"] += call["function"]["arguments"]
    return content, calls


def parsed(style: Style, pieces: list[str]) -> tuple[str, list[dict[str, Any]], CallParser]:
    parser = CallParser(style, NAMES)
    deltas = [delta for piece in pieces for delta in parser.push(piece)] + parser.finish()
    return *joined(deltas), parser


@pytest.mark.parametrize(("style", "text", "content", "calls"), ANSWERS)
def test_an_answer_in_any_pieces_has_the_same_content_and_calls(
    style: Style, text: str, content: str, calls: list[tuple[str, Any]]
) -> None:
    for size in (1, 2, 3, 7, len(text)):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        found_content, found_calls, parser = parsed(style, pieces)
        assert found_content == content
        found = []
        for call in found_calls:
            arguments = json.loads(call["arguments"])
            found.append((call["name"], arguments.get("a", arguments.get("key"))))
        assert found == calls
        assert parser.content == content
        whole = [call["function"]["arguments"] for call in parser.calls]
        assert whole == [call["arguments"] for call in found_calls]


def test_arguments_are_told_while_they_are_written() -> None:
    parser = CallParser(HERMES, NAMES)
    first = parser.push('<tool_call>\n{"name": "add", "argu')
    assert [set(call) for delta in first for call in delta["tool_calls"]] == [
        {"index", "id", "type", "function"}
    ]
    more = parser.push('ments": {"a": 1')
    assert more == [{"tool_calls": [{"index": 0, "function": {"arguments": '{"a": 1'}}]}]
    later = parser.push('2, "b')
    assert later == [{"tool_calls": [{"index": 0, "function": {"arguments": '2, "b'}}]}]


@given(st.lists(st.sampled_from(
    ["<tool_call>", "</tool_call>", "{", "}", '"name"', ":", '"add"', ",", '"arguments"', " ", "x",
     "[TOOL_CALLS]", "[", "]", "\\", '"', "\n", ";", "<|python_tag|>", ADD]
), max_size=14), st.sampled_from([HERMES, MISTRAL, LLAMA3]))  # fmt: skip
def test_no_text_breaks_the_parser_and_pieces_never_matter(parts: list[str], style: Style) -> None:
    text = "".join(parts)
    content, calls, _ = parsed(style, [text])
    again_content, again_calls, _ = parsed(style, list(text))
    assert again_content == content
    assert [(c["name"], c["arguments"]) for c in again_calls] == [
        (c["name"], c["arguments"]) for c in calls
    ]
    if not calls:
        assert content.split() == text.replace("<|python_tag|>", "").split() or style is not LLAMA3
    if "<tool_call>" not in text and style is HERMES:
        assert content.strip() == text.strip()


@pytest.mark.parametrize(
    ("template", "style"),
    [
        ("{{ '<tool_call>' }}", HERMES),
        ("{{ '[TOOL_CALLS]' }}", MISTRAL),
        ("{{ '<|python_tag|>' }}", LLAMA3),
        ("{{ message['content'] }}", HERMES),
    ],
)
def test_the_template_says_how_calls_are_written(template: str, style: Style) -> None:
    assert style_of(template) is style
