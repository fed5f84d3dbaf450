"""`POST /v1/responses`: OpenAI's other way to ask for the next message. Stateless.

Nothing is stored: `store` is ignored, and a `previous_response_id` refused; the whole
conversation is in `input`. The events of a stream and the final response are written by the
same code, so they agree.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request, Response

from capax.decoding.params import INT32_MAX, Limits, show
from capax.engine.outputs import Usage
from capax.serving.body import body_schema, read_body
from capax.serving.chat import ChatRequest, conversation_ids, shape_for
from capax.serving.errors import ApiError, invalid
from capax.serving.fields import number
from capax.serving.generation import Chunks, new_id
from capax.serving.shape import Delta
from capax.serving.sse import EventStream, event_lines
from capax.serving.state import Server, server_of
from capax.serving.strategies import named_strategy
from capax.serving.turns import Answer, Ending, TurnFields, answer_of, chat_request, read

router = APIRouter()

_PARAMS = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
MAX_OUTPUT = number("max_output_tokens", Limits(1, INT32_MAX, is_integer=True))


class ResponsesRequest(TurnFields):
    """The body of `/v1/responses`; sampling fields beyond OpenAI's are taken too."""

    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    max_output_tokens: Annotated[int | None, MAX_OUTPUT] = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    include: list[str] | None = None
    truncation: str | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    background: bool | None = None


@router.post("/responses", openapi_extra=body_schema(ResponsesRequest))
@router.post("/v1/responses", openapi_extra=body_schema(ResponsesRequest))
async def responses(request: Request) -> Response:
    """Answer a conversation in items."""
    body = await read_body(request, ResponsesRequest)
    server = server_of(request)
    try:
        chat, _, answer = await answer_of(request, body, lambda: _chat(body))
    except ApiError as error:  # speaks of the chat's fields
        error.param = _PARAMS.get(error.param or "", error.param)
        raise
    writer = ResponseWriter(server, body, chat)
    if body.stream:
        return EventStream(Chunks(answer, writer.stream(answer)), on_error=writer.failed)
    writer.finish(await read(answer, writer.add))
    return Response(msgspec.json.encode(writer.response), media_type="application/json")


@router.post("/v1/responses/input_tokens", openapi_extra=body_schema(ResponsesRequest))
async def input_tokens(request: Request) -> Response:
    """Count the tokens that the input of a response would have."""
    body = await read_body(request, ResponsesRequest)
    server = server_of(request)
    named_strategy(server, body.model)
    chat = _chat(body)
    ids = await conversation_ids(server, chat, await shape_for(server, chat), only_counts=True)
    counted = {"object": "response.input_tokens", "input_tokens": len(ids)}
    return Response(msgspec.json.encode(counted), media_type="application/json")


# --- from items to messages -----------------------------------------------------------------


def _chat(body: ResponsesRequest) -> ChatRequest:
    """Return the chat that a body stands for. Raises ApiError 400 for what needs a memory."""
    for name in ("previous_response_id", "conversation", "background"):
        if getattr(body, name):
            raise invalid(
                f"{name} is given but this server keeps no responses; send the whole conversation "
                "in input and leave it out",
                param=name,
            )
    if body.truncation not in (None, "disabled"):
        raise invalid(
            f"truncation is {show(body.truncation)} but nothing is cut silently here; leave it out",
            param="truncation",
        )
    given_format = (body.text or {}).get("format")
    if given_format is not None and not isinstance(given_format, Mapping):
        raise invalid("text.format must be an object with a type", param="text")
    effort = (body.reasoning or {}).get("effort")
    if effort is not None and not isinstance(effort, str):
        raise invalid("reasoning.effort must be a word such as 'low'", param="reasoning")
    return chat_request(
        body,
        {
            "messages": _messages(body),
            "max_completion_tokens": body.max_output_tokens,
            "response_format": given_format,
            "tools": [_tool(tool, i) for i, tool in enumerate(body.tools or [])] or None,
            "tool_choice": body.tool_choice,
            "parallel_tool_calls": body.parallel_tool_calls,
            "reasoning_effort": effort,
            "chat_template_kwargs": body.chat_template_kwargs,
        },
    )


def _tool(tool: Mapping[str, Any], index: int) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise invalid(
            f"tools[{index}] is of type {show(tool.get('type'))} but only functions run here, on "
            "the client's side",
            param="tools",
        )
    function = {key: value for key, value in tool.items() if key != "type"}
    return {"type": "function", "function": function}


def _messages(body: ResponsesRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    if not body.input:
        raise invalid("input is missing; give text or a list of items", param="input")
    for i, item in enumerate(body.input):
        _add_item(messages, item, f"input[{i}]")
    return messages


def _add_item(messages: list[dict[str, Any]], item: Mapping[str, Any], name: str) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        message = {"role": item.get("role"), "content": item.get("content")}
        if message["role"] == "assistant" and _is_open(messages):
            messages[-1] |= message
        else:
            messages.append(message)
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant"})
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        result = {
            "role": "tool",
            "tool_call_id": item.get("call_id"),
            "content": item.get("output"),
        }
        messages.append(result)
    elif kind == "reasoning":
        parts = item.get("content") or []
        if not isinstance(parts, list):
            raise invalid(f"{name}.content must be a list of parts", param="input")
        text = "\n".join(
            part["text"]
            for part in parts
            if isinstance(part, Mapping) and isinstance(part.get("text"), str)
        )
        messages.append({"role": "assistant", "reasoning_content": text})
    else:
        raise invalid(
            f"{name} is of type {show(kind)} but must be a message, a function_call, a "
            "function_call_output or reasoning",
            param="input",
        )


def _is_open(messages: list[dict[str, Any]]) -> bool:
    """Whether the last message is only the reasoning of the one to come."""
    return bool(messages) and set(messages[-1]) == {"role", "reasoning_content"}


# --- from deltas to items -------------------------------------------------------------------


class ResponseWriter:
    """The response of one request, and the events that tell of its making."""

    def __init__(self, server: Server, body: ResponsesRequest, chat: ChatRequest) -> None:
        self._n_events = 0
        self._item: dict[str, Any] | None = None  # the one being written
        self.response: dict[str, Any] = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": server.model_name,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": chat.reasoning_effort, "summary": None},
            "store": False,
            "temperature": body.temperature,
            "text": {"format": (body.text or {}).get("format") or {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": [{"strict": None, "parameters": None, **tool} for tool in body.tools or []],
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
            "metadata": body.metadata or {},
        }

    async def stream(self, answer: Answer) -> AsyncGenerator[bytes, None]:
        """Yield the events, all that are ready together at once."""
        yield self._event("created", response=self.response) + self._event(
            "in_progress", response=self.response
        )
        async with aclosing(answer.deltas()) as news:
            async for deltas in news:
                yield self.add(deltas)
        yield self.finish(answer.ending)

    def add(self, deltas: list[Delta]) -> bytes:
        """Take deltas of a chat; return their events."""
        return b"".join(map(self._add, deltas))

    def finish(self, ending: Ending) -> bytes:
        """Take the end; return the last events."""
        cut = ending.reason == "length"
        status = "incomplete" if cut else "completed"
        events = self._close(status)
        if not self.response["output"]:
            events += self._open_message() + self._close(status)
        self.response["status"] = status
        if cut:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            self.response["completed_at"] = int(time.time())
        self.response["usage"] = _usage(ending.usage, ending.reasoning_tokens)
        self.response["capax"] = ending.capacity
        return events + self._event(status, response=self.response)

    def failed(self, error: ApiError) -> bytes:
        """Return the last event of a stream that failed."""
        self.response["status"] = "failed"
        self.response["error"] = {"code": error.code or "server_error", "message": error.message}
        return self._event("failed", response=self.response)

    # --- one delta ------------------------------------------------------------------------

    def _add(self, delta: Delta) -> bytes:
        if "tool_calls" in delta:
            return self._add_call(delta["tool_calls"][0])
        if "reasoning_content" in delta:
            return self._add_text("reasoning", "reasoning_text", delta["reasoning_content"])
        if not delta.get("content"):
            return b""
        return self._add_text("message", "output_text", delta["content"])

    def _add_text(self, kind: str, part_kind: str, text: str) -> bytes:
        events = b""
        if self._item is None or self._item["type"] != kind:
            events = self._close("completed")
            events += self._open_message() if kind == "message" else self._open_reasoning()
        assert self._item is not None
        self._item["content"][0]["text"] += text
        more: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
        return events + self._event(f"{part_kind}.delta", **self._place(), delta=text, **more)

    def _add_call(self, call: Mapping[str, Any]) -> bytes:
        function, events = call["function"], b""
        if "id" in call:
            events = self._close("completed") + self._open(
                {
                    "id": new_id("fc"),
                    "type": "function_call",
                    "status": "in_progress",
                    "call_id": call["id"],
                    "name": function["name"],
                    "arguments": "",
                }
            )
        if not function["arguments"]:
            return events
        assert self._item is not None
        self._item["arguments"] += function["arguments"]
        place = self._place(has_parts=False)
        return events + self._event(
            "function_call_arguments.delta", **place, delta=function["arguments"]
        )

    # --- items ----------------------------------------------------------------------------

    def _open(self, item: dict[str, Any]) -> bytes:
        self._item = item
        self.response["output"].append(item)
        return self._event("output_item.added", output_index=self._index, item=item)

    def _open_message(self) -> bytes:
        events = self._open(
            {
                "id": new_id("msg"),
                "type": "message",
                "status": "in_progress",
                "role": "assistant",
                "content": [],
            }
        )
        return events + self._open_part(
            {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        )

    def _open_reasoning(self) -> bytes:
        item = {"id": new_id("rs"), "type": "reasoning", "status": "in_progress"}
        events = self._open({**item, "summary": [], "content": []})
        return events + self._open_part({"type": "reasoning_text", "text": ""})

    def _open_part(self, part: dict[str, Any]) -> bytes:
        assert self._item is not None
        self._item["content"].append(part)
        return self._event("content_part.added", **self._place(), part=part)

    def _close(self, status: str) -> bytes:
        """End the item being written, if there is one."""
        item = self._item
        if item is None:
            return b""
        item["status"] = status
        if item["type"] == "function_call":
            events = self._event(
                "function_call_arguments.done",
                **self._place(has_parts=False),
                name=item["name"],
                arguments=item["arguments"],
            )
        else:
            part = item["content"][0]
            more: dict[str, Any] = {"logprobs": []} if item["type"] == "message" else {}
            place = self._place()
            events = self._event(f"{part['type']}.done", **place, text=part["text"], **more)
            events += self._event("content_part.done", **place, part=part)
        events += self._event("output_item.done", output_index=self._index, item=item)
        self._item = None
        return events

    @property
    def _index(self) -> int:
        return len(self.response["output"]) - 1

    def _place(self, *, has_parts: bool = True) -> dict[str, Any]:
        assert self._item is not None
        place: dict[str, Any] = {"item_id": self._item["id"], "output_index": self._index}
        return place | {"content_index": 0} if has_parts else place

    def _event(self, name: str, /, **fields: Any) -> bytes:
        kind = f"response.{name}"
        event = {"type": kind, "sequence_number": self._n_events, **fields}
        self._n_events += 1
        return event_lines(kind, event)


def _usage(used: Usage, reasoning_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": used.prompt_tokens,
        "input_tokens_details": {"cached_tokens": used.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": used.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": used.total_tokens,
    }
