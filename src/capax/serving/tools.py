"""Functions that a model may call: how each family of templates writes a call.

Three styles, recognised by what the model's template says. A template that knows nothing of
tools gets them as text in the system message, in the style most models have seen (Hermes).
When a call is demanded, the whole answer is bound to calls whose arguments have their schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from capax.decoding.constraint_grammar import JSON_OPTIONS
from capax.decoding.params import show
from capax.decoding.structured import Form, checked_text
from capax.errors import ConfigError
from capax.files.tokenizer import Tokenizer
from capax.serving.errors import invalid

MAX_TOOLS = 128
MAX_CALLS = 16  # in one answer, where they are demanded
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Style:
    """How calls are written: `begin`, an object with a name and arguments, `end`."""

    name: str
    begin: str  # before each call, or before the list of all; empty: the answer is an object
    end: str
    arguments_key: str
    is_list: bool = False


HERMES = Style("hermes", "<tool_call>", "</tool_call>", "arguments")
MISTRAL = Style("mistral", "[TOOL_CALLS]", "", "arguments", is_list=True)
LLAMA3 = Style("llama3", "", "", "parameters")
PYTHON_TAG = "<|python_tag|>"  # Llama 3 may write it before a call


def style_of(template: str) -> Style:
    """Return the style that a chat template writes calls in."""
    if MISTRAL.begin in template:
        return MISTRAL
    if HERMES.begin not in template and (PYTHON_TAG in template or "ipython" in template):
        return LLAMA3
    return HERMES


@dataclass(frozen=True, slots=True)
class Tools:
    """The functions of one request and what is to be done with them."""

    functions: Sequence[Mapping[str, Any]]  # of OpenAI's {"type": "function", "function": ...}
    choice: str  # 'auto', 'none' or 'required'
    is_parallel: bool = True

    @property
    def names(self) -> frozenset[str]:
        return frozenset(f["name"] for f in self.functions)

    def as_json(self) -> list[dict[str, Any]]:
        """Return them as templates expect them."""
        return [{"type": "function", "function": dict(f)} for f in self.functions]


def tools_of(tools: Any, choice: Any, is_parallel: bool | None) -> Tools | None:
    """Read `tools`, `tool_choice` and `parallel_tool_calls`; None without tools.

    A named choice is 'required' of that function alone. Raises ApiError 400.
    """
    if not tools:
        if choice not in (None, "none", "auto"):
            raise invalid("tool_choice is given without tools; list them", param="tool_choice")
        return None
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        raise invalid(f"tools must be a list of at most {MAX_TOOLS} functions", param="tools")
    functions = [_function(tool, f"tools[{i}]") for i, tool in enumerate(tools)]
    names = [function["name"] for function in functions]
    if len(set(names)) < len(names):
        raise invalid("two tools have the same name; rename one", param="tools")
    if isinstance(choice, Mapping):
        inner = choice.get("function", choice)
        name = inner.get("name") if isinstance(inner, Mapping) else None
        functions = [function for function in functions if function["name"] == name]
        if choice.get("type") != "function" or not functions:
            raise invalid(
                f"tool_choice names {show(name)} but the tools are {', '.join(names)}",
                param="tool_choice",
            )
        return Tools(functions, "required", False)
    if choice not in (None, "auto", "none", "required"):
        raise invalid(
            f"tool_choice is {show(choice)} but must be none, auto, required or name a function",
            param="tool_choice",
        )
    return Tools(functions, choice or "auto", is_parallel is not False)


def _function(tool: Any, name: str) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or tool.get("type") != "function":
        raise invalid(
            f'{name} must be like {{"type": "function", "function": {{"name": ...}}}}',
            param="tools",
        )
    if not isinstance(function.get("name"), str) or not _NAME.fullmatch(function["name"]):
        raise invalid(
            f"{name}.function.name is {show(function.get('name'))} but must be 1 to 64 letters, "
            "digits and _.-",
            param="tools",
        )
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise invalid(f"{name}.function.parameters must be a JSON schema", param="tools")
    kept = {key: value for key, value in function.items() if value is not None}
    return {"description": "", "parameters": {"type": "object", "properties": {}}, **kept}


# --- demanding a call ---------------------------------------------------------------------------


def call_form(
    tools: Tools, style: Style, tokenizer: Tokenizer, content: Form | None = None
) -> Form:
    """Return the form of an answer that calls: the arguments have their schemas.

    `content`: a JSON form that the answer may have instead. Raises ConfigError for schemas that
    are too large together.
    """
    call = {"anyOf": [_call_schema(f, i, style) for i, f in enumerate(tools.functions)]}
    schema = call | {"$defs": _definitions(tools)} | {"x-guidance": JSON_OPTIONS}
    more = f" ({_literal(tokenizer, _between(style))} call){{0,{MAX_CALLS - 1}}}"
    calls = "calls: call" + (more if tools.is_parallel else "")
    if style.is_list:
        begin, end = _literal(tokenizer, style.begin) + ' "["', '"]"'
        calls, call_rule = f"calls: {begin} list {end}\nlist: call", "call: %json"
        if tools.is_parallel:
            calls += f' (", " call){{0,{MAX_CALLS - 1}}}'
        rules = f"{calls}\n{call_rule} {json.dumps(schema, ensure_ascii=False)}"
    elif style.begin:
        begin, end = _literal(tokenizer, style.begin), _literal(tokenizer, style.end)
        rules = f'{calls}\ncall: {begin} "\\n" object "\\n" {end}\nobject: %json ' + json.dumps(
            schema, ensure_ascii=False
        )
    else:
        rules = f"{calls}\ncall: %json {json.dumps(schema, ensure_ascii=False)}"
    start = "start: calls"
    if content is not None:
        inner = json.loads(content.text) | {"x-guidance": JSON_OPTIONS}
        start += f" | content\ncontent: %json {json.dumps(inner, ensure_ascii=False)}"
    return Form("lark", checked_text("tools", f"{start}\n{rules}\n"))


def _between(style: Style) -> str:
    return "\n" if style.begin else "; "


def _call_schema(function: Mapping[str, Any], index: int, style: Style) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "name": {"const": function["name"]},
            style.arguments_key: {"$ref": f"#/$defs/tool{index}"},
        },
        "required": ["name", style.arguments_key],
        "additionalProperties": False,
    }


def _definitions(tools: Tools) -> dict[str, Any]:
    found = {}
    for i, function in enumerate(tools.functions):
        dropped = ("$schema", "$id", "x-guidance")
        schema = {k: v for k, v in function["parameters"].items() if k not in dropped}
        # Arguments are an object, also where the schema forgets to say so.
        found[f"tool{i}"] = {"type": "object", **_moved(schema, f"#/$defs/tool{i}")}
    return found


def _moved(schema: Any, root: str) -> Any:
    """Return a schema whose references to its own parts begin at `root`."""
    if isinstance(schema, Mapping):
        moved = {}
        for key, value in schema.items():
            if key == "$ref" and isinstance(value, str) and value.startswith("#"):
                moved[key] = root + value[1:]
            elif key in ("const", "enum", "default", "examples"):
                moved[key] = value
            else:
                moved[key] = _moved(value, root)
        return moved
    return [_moved(item, root) for item in schema] if isinstance(schema, list) else schema


def _literal(tokenizer: Tokenizer, text: str) -> str:
    """Return how a Lark grammar says `text`: a control token by its id."""
    token = tokenizer.control_texts.get(text)
    if token is not None and token in tokenizer.special_ids:
        return f"<[{token}]>"
    return json.dumps(text, ensure_ascii=False)


def shows_control(style: Style, tokenizer: Tokenizer) -> bool:
    """Whether a mark of the style is a control token, which the answer's text must then show."""
    special = tokenizer.special_ids
    marks = (style.begin, style.end, PYTHON_TAG if style is LLAMA3 else "")
    return any(tokenizer.control_texts.get(mark) in special for mark in marks if mark)


# --- tools in the prompt ------------------------------------------------------------------------

_SYSTEM = """\
You may call functions to help with the user's request. Their signatures, one JSON object a line:
<tools>
{tools}
</tools>
To call a function, write its name and arguments as JSON between tags:
<tool_call>
{{"name": "function_name", "arguments": {{"argument": "value"}}}}
</tool_call>"""


def with_tools(
    messages: Sequence[Mapping[str, Any]], template: str, tools: Tools | None
) -> list[dict[str, Any]]:
    """Return messages as the template can show them: calls and results as it knows them.

    Raises ApiError 400 for a call of an earlier turn whose arguments are not JSON.
    """
    shown = [_parsed(message, f"messages[{i}]") for i, message in enumerate(messages)]
    if "tool_calls" not in template:
        shown = [_as_text(message) for message in shown]
    if tools is not None and tools.choice != "none" and "tools" not in template:
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools.as_json())
        text = _SYSTEM.format(tools=listed)
        if shown[0]["role"] == "system":
            shown[0] = {**shown[0], "content": f"{shown[0]['content']}\n\n{text}"}
        else:
            shown.insert(0, {"role": "system", "content": text})
    return shown


def _parsed(message: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a message whose calls have their arguments as objects, as templates want them."""
    calls = message.get("tool_calls")
    if not calls:
        return {key: value for key, value in message.items() if key != "tool_calls"}
    if not isinstance(calls, list):
        raise invalid(f"{name}.tool_calls must be a list", param="messages")
    return {**message, "tool_calls": [_parsed_call(call, name) for call in calls]}


def _parsed_call(call: Any, name: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise invalid(f"{name}.tool_calls must hold function calls", param="messages")
    arguments = function.get("arguments") or {}
    try:
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, Mapping):
        raise invalid(
            f"{name}.tool_calls has arguments that are no JSON object; send back what the model "
            "wrote",
            param="messages",
        )
    return {
        **call,
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def _as_text(message: dict[str, Any]) -> dict[str, Any]:
    if message.get("tool_calls"):
        calls = "\n".join(
            f"{HERMES.begin}\n{json.dumps(call['function'], ensure_ascii=False)}\n{HERMES.end}"
            for call in message["tool_calls"]
        )
        text = f"{message['content']}\n{calls}" if message["content"] else calls
        return {"role": message["role"], "content": text}
    if message["role"] == "tool":
        text = f"<tool_response>\n{message['content']}\n</tool_response>"
        return {"role": "user", "content": text}
    return message


def checked_form(*arguments: Any) -> Form:
    """`call_form`, whose ConfigError becomes a 400 about the tools."""
    try:
        return call_form(*arguments)
    except ConfigError as error:
        raise invalid(str(error), param="tools") from None
