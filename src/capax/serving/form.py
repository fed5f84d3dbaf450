"""The form an answer must have, as requests spell it, and its compiling off the event loop.

OpenAI's `response_format`, vLLM's `structured_outputs` and `guided_*`, llama-server's `grammar`
and `json_schema` say the same; a request may use one of them. What does not compile is a 400,
never an answer without its form.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from capax.decoding.constraint import ConstraintFactory
from capax.decoding.params import show
from capax.decoding.structured import Form, StructuredOutputs
from capax.errors import ConfigError
from capax.serving.body import RequestModel
from capax.serving.errors import ApiError, invalid
from capax.serving.fields import SamplingFields
from capax.serving.state import Server

INVALID_SCHEMA = "invalid_json_schema"
# Field of the request -> field of StructuredOutputs.
_SHORT = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json",
    "grammar": "grammar",
}
_VLLM = ("json", "json_object", "regex", "choice", "grammar")
# Further fields of vLLM's that change nothing about what is let through.
_VLLM_IGNORED = frozenset({"disable_fallback", "disable_additional_properties", "backend"})


class FormFields(RequestModel):
    """What a generating request may say about the form of its answer."""

    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    grammar: str | None = None


class GeneratingFields(SamplingFields, FormFields):
    """How tokens are chosen and what form they make together."""


def form_of(body: FormFields) -> tuple[Form, str] | None:
    """Return the form and the field that asks for it; None for free text. Raises ApiError 400."""
    found: list[tuple[str, Form]] = []
    if body.response_format is not None:
        form = response_form(body.response_format)
        if form is not None:
            found.append(("response_format", form))
    if body.structured_outputs is not None:
        found.append(("structured_outputs", _vllm_form(body.structured_outputs)))
    for name, kind in _SHORT.items():
        value = getattr(body, name)
        if value is not None:
            found.append((name, _form(name, **{kind: value})))
    if len(found) > 1:
        raise invalid(
            f"{' and '.join(name for name, _ in found)} are given but an answer has one form; "
            "leave all but one out",
            param=found[1][0],
        )
    return (found[0][1], found[0][0]) if found else None


def response_form(given: Mapping[str, Any], param: str = "response_format") -> Form | None:
    """Return the form of OpenAI's `response_format`, or of `text.format` in a response."""
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        schema = given.get("schema")  # llama-server's
        return _form(param, json_object=True) if schema is None else _form(param, json=schema)
    if kind == "json_schema":
        # Nested in chat completions, flat in responses.
        inner = given.get("json_schema", given)
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if not isinstance(schema, Mapping):
            raise invalid(
                f'{param} has no schema; give {{"type": "json_schema", "json_schema": '
                '{"name": ..., "schema": {...}}}',
                param=param,
                code=INVALID_SCHEMA,
            )
        return _form(param, json=schema)
    raise invalid(
        f"{param}.type is {show(kind)} but must be text, json_object or json_schema", param=param
    )


def _vllm_form(given: Mapping[str, Any]) -> Form:
    values = {name: value for name, value in given.items() if value is not None}
    for name in values:
        if name not in _VLLM and name not in _VLLM_IGNORED:
            raise invalid(
                f"structured_outputs has {show(name)} but must have one of {', '.join(_VLLM)}",
                param="structured_outputs",
            )
    return _form("structured_outputs", **{k: v for k, v in values.items() if k in _VLLM})


def _form(param: str, **form: Any) -> Form:
    try:
        return StructuredOutputs(**form).form()
    except ConfigError as error:
        code = INVALID_SCHEMA if "json" in form else None
        raise invalid(str(error), param=param, code=code) from None


async def compiled(server: Server, form: Form, param: str) -> ConstraintFactory:
    """Compile a form where it may take its time. Raises ApiError 400 if it does not compile."""
    try:
        return await asyncio.get_running_loop().run_in_executor(
            server.form_compiler, server.llm.constraint, form
        )
    except ApiError:
        raise
    except ConfigError as error:
        code = INVALID_SCHEMA if form.kind in ("json", "lark") else None
        raise invalid(str(error), param=param, code=code) from None
