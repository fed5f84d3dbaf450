"""`POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's protocol."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request, Response

from capax.decoding.params import INT32_MAX, Limits, show
from capax.serving.body import body_schema, read_body
from capax.serving.chat import ChatRequest, conversation_ids, shape_for
from capax.serving.errors import ApiError, invalid
from capax.serving.fields import STOP, number
from capax.serving.generation import Chunks, new_id
from capax.serving.shape import Delta
from capax.serving.sse import EventStream, anthropic_error, event_lines
from capax.serving.state import Server, server_of
from capax.serving.strategies import named_strategy
from capax.serving.turns import Answer, Ending, TurnFields, answer_of, chat_request, read

router = APIRouter()

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_MEDIA = frozenset({"image", "document"})


class MessagesRequest(TurnFields):
    """The body of `/v1/messages`; sampling fields beyond Anthropic's are taken too."""

    messages: list[dict[str, Any]] | None = None
    system: str | list[dict[str, Any]] | None = None
    max_tokens: Annotated[
        int | None, number("max_tokens", Limits(1, INT32_MAX, is_integer=True))
    ] = None
    stop_sequences: Annotated[tuple[str, ...] | None, STOP] = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


@router.post("/v1/messages", openapi_extra=body_schema(MessagesRequest))
async def messages(request: Request) -> Response:
    """Answer a conversation in blocks."""
    body = await read_body(request, MessagesRequest)
    server = server_of(request)
    if body.max_tokens is None:
        raise invalid("max_tokens is missing; say how long the answer may be", param="max_tokens")
    _, n_prompt, answer = await answer_of(request, body, lambda: _chat(body))
    writer = MessageWriter(server, body, n_prompt)
    if body.stream:
        return EventStream(Chunks(answer, writer.stream(answer)), on_error=anthropic_error)
    writer.finish(await read(answer, writer.add))
    return Response(msgspec.json.encode(writer.message), media_type="application/json")


@router.post("/v1/messages/count_tokens", openapi_extra=body_schema(MessagesRequest))
async def count_tokens(request: Request) -> Response:
    """Count the tokens that the prompt of a message would have."""
    body = await read_body(request, MessagesRequest)
    server = server_of(request)
    named_strategy(server, body.model)
    chat = _chat(body)
    ids = await conversation_ids(server, chat, await shape_for(server, chat), only_counts=True)
    return Response(msgspec.json.encode({"input_tokens": len(ids)}), media_type="application/json")


# --- from blocks to messages ----------------------------------------------------------------


def _chat(body: MessagesRequest) -> ChatRequest:
    """Return the chat that a body stands for. Raises ApiError 400."""
    choice, is_parallel = _choice(body)
    options = dict(body.chat_template_kwargs or {})
    if body.thinking is not None:
        options.setdefault("enable_thinking", body.thinking.get("type") != "disabled")
    return chat_request(
        body,
        {
            "messages": _messages(body),
            "max_tokens": body.max_tokens,
            "stop": list((body.stop or ()) + (body.stop_sequences or ())) or None,
            "tools": [_tool(tool, i) for i, tool in enumerate(body.tools or [])] or None,
            "tool_choice": choice,
            "parallel_tool_calls": is_parallel,
            "chat_template_kwargs": options or None,
        },
    )


def _choice(body: MessagesRequest) -> tuple[Any, bool | None]:
    given = body.tool_choice
    if given is None:
        return None, None
    kind = given.get("type")
    is_parallel = not given.get("disable_parallel_tool_use", False)
    if kind == "tool":
        return {"type": "function", "function": {"name": given.get("name")}}, is_parallel
    if not isinstance(kind, str) or kind not in _CHOICES:
        raise invalid(
            f"tool_choice.type is {show(kind)} but must be auto, any, tool or none",
            param="tool_choice",
        )
    return _CHOICES[kind], is_parallel


def _tool(tool: Mapping[str, Any], index: int) -> dict[str, Any]:
    if tool.get("type", "custom") != "custom":
        raise invalid(
            f"tools[{index}] is of type {show(tool['type'])} but only tools of the client run here",
            param="tools",
        )
    function = {key: tool[key] for key in ("name", "description") if key in tool}
    return {"type": "function", "function": function | {"parameters": tool.get("input_schema")}}


def _messages(body: MessagesRequest) -> list[dict[str, Any]]:
    if not body.messages:
        raise invalid("messages is empty; at least one message is needed", param="messages")
    found: list[dict[str, Any]] = []
    if body.system:
        found.append({"role": "system", "content": _text(body.system, "system")})
    for i, message in enumerate(body.messages):
        role, content, name = message.get("role"), message.get("content"), f"messages[{i}]"
        if role not in ("user", "assistant"):
            raise invalid(
                f"{name}.role is {show(role)} but must be user or assistant", param="messages"
            )
        if isinstance(content, str):
            found.append({"role": role, "content": content})
        elif not isinstance(content, list) or not all(isinstance(b, Mapping) for b in content):
            raise invalid(f"{name}.content must be text or a list of blocks", param="messages")
        else:
            found += (
                _from_user(content, name) if role == "user" else [_from_assistant(content, name)]
            )
    if body.messages[-1].get("role") == "assistant":
        raise invalid(
            "the last message is the assistant's, but an answer cannot be begun for the model "
            "here; end with the user's message",
            param="messages",
        )
    return found


def _from_user(blocks: list[Any], name: str) -> list[dict[str, Any]]:
    """Results of tools are messages of their own, before what the user says."""
    results, rest = [], []
    for block in blocks:
        if block.get("type") != "tool_result":
            rest.append(block)
            continue
        text = _text(block.get("content") or "", f"{name}.content")
        if block.get("is_error"):
            text = f"Error: {text}"
        results.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text})
    if rest or not results:
        results.append({"role": "user", "content": _text(rest, f"{name}.content")})
    return results


def _from_assistant(blocks: list[Any], name: str) -> dict[str, Any]:
    texts = [block for block in blocks if block.get("type") == "text"]
    message: dict[str, Any] = {"role": "assistant", "content": _text(texts, f"{name}.content")}
    thoughts = [b["thinking"] for b in blocks if isinstance(b.get("thinking"), str)]
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    calls = [
        {
            "id": block.get("id"),
            "type": "function",
            "function": {"name": block.get("name"), "arguments": block.get("input") or {}},
        }
        for block in blocks
        if block.get("type") == "tool_use"
    ]
    return message | {"tool_calls": calls} if calls else message


def _text(content: Any, name: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(f"{name} must be text or a list of blocks", param=name.partition("[")[0])
    return "\n".join(_text_of(block, name) for block in content)


def _text_of(block: Any, name: str) -> str:
    kind = block.get("type") if isinstance(block, Mapping) else None
    if isinstance(kind, str) and kind in _MEDIA:
        raise ApiError(501, f"{name} has {kind!r} blocks but this model reads text only")
    if kind != "text" or not isinstance(block.get("text"), str):
        raise invalid(
            f"{name} has a block of type {show(kind)} but must have text", param="messages"
        )
    text: str = block["text"]
    return text


# --- from deltas to blocks ------------------------------------------------------------------


class MessageWriter:
    """The message of one answer, and the events that tell of its making."""

    def __init__(self, server: Server, body: MessagesRequest, n_prompt: int) -> None:
        self._tokenizer = server.llm.tokenizer
        self._stops = (body.stop or ()) + (body.stop_sequences or ())
        self._block: dict[str, Any] | None = None  # the one being written
        self._json = ""  # the input of a call being written
        self.message: dict[str, Any] = {
            "id": new_id("msg"),
            "type": "message",
            "role": "assistant",
            "model": server.model_name,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(n_prompt, 0, 0),
        }

    async def stream(self, answer: Answer) -> AsyncGenerator[bytes, None]:
        """Yield the events, all that are ready together at once."""
        yield _event("message_start", message=self.message) + _event("ping")
        async with aclosing(answer.deltas()) as news:
            async for deltas in news:
                yield self.add(deltas)
        yield self.finish(answer.ending)

    def add(self, deltas: list[Delta]) -> bytes:
        """Take deltas of a chat; return their events."""
        return b"".join(map(self._add, deltas))

    def finish(self, ending: Ending) -> bytes:
        """Take the end; return the last events."""
        events = self._close()
        stop = self._stop_sequence(ending.token_ids) if ending.reason == "stop" else None
        reason = _REASONS[ending.reason] if stop is None else "stop_sequence"
        used = ending.usage
        usage = _usage(used.prompt_tokens, used.cached_tokens, used.completion_tokens)
        self.message |= {"stop_reason": reason, "stop_sequence": stop, "usage": usage}
        delta = {"stop_reason": reason, "stop_sequence": stop}
        return events + _event("message_delta", delta=delta, usage=usage) + _event("message_stop")

    def _stop_sequence(self, ids: list[int]) -> str | None:
        """Return the stop sequence that ended the answer, None if the model did, or who knows."""
        if not self._stops or not ids or ids[-1] in self._tokenizer.eos_ids:
            return None
        # It is in the last tokens, after the text that was shown.
        longest = max(len(stop.encode()) for stop in self._stops)
        tail = self._tokenizer.decode(ids[-longest - 1 :], at_start=False)
        return next((stop for stop in self._stops if stop in tail), None)

    # --- one delta ------------------------------------------------------------------------

    def _add(self, delta: Delta) -> bytes:
        if "tool_calls" in delta:
            return self._add_call(delta["tool_calls"][0])
        if "reasoning_content" in delta:
            return self._add_text("thinking", delta["reasoning_content"])
        return self._add_text("text", delta["content"]) if delta.get("content") else b""

    def _add_text(self, kind: str, text: str) -> bytes:
        events = b""
        if self._block is None or self._block["type"] != kind:
            signed = {"signature": ""} if kind == "thinking" else {}
            events = self._close() + self._open({"type": kind, kind: "", **signed})
        assert self._block is not None
        self._block[kind] += text
        return events + self._delta({"type": f"{kind}_delta", kind: text})

    def _add_call(self, call: Mapping[str, Any]) -> bytes:
        function, events = call["function"], b""
        if "id" in call:
            block = {"type": "tool_use", "id": call["id"].replace("call", "toolu", 1)}
            events = self._close() + self._open({**block, "name": function["name"], "input": {}})
            self._json = ""
        if not function["arguments"]:
            return events
        self._json += function["arguments"]
        return events + self._delta(
            {"type": "input_json_delta", "partial_json": function["arguments"]}
        )

    # --- blocks ---------------------------------------------------------------------------

    def _open(self, block: dict[str, Any]) -> bytes:
        self._block = block
        self.message["content"].append(block)
        return _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _close(self) -> bytes:
        block, self._block = self._block, None
        if block is None:
            return b""
        if block["type"] == "tool_use":
            block["input"] = _parsed(self._json)
        return _event("content_block_stop", index=self._index)

    @property
    def _index(self) -> int:
        return len(self.message["content"]) - 1


def _parsed(text: str) -> dict[str, Any]:
    """Return the input of a call; an answer that was cut short may have no whole one."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _usage(n_prompt: int, n_cached: int, n_new: int) -> dict[str, Any]:
    """Anthropic counts cached tokens beside the input, not in it."""
    return {
        "input_tokens": n_prompt - n_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": n_cached,
        "output_tokens": n_new,
    }


def _event(name: str, /, **fields: Any) -> bytes:
    return event_lines(name, {"type": name, **fields})
