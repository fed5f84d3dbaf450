"""The messages of a chat request, as chat templates know them."""

from __future__ import annotations

from typing import Any

from capax.decoding.params import show
from capax.errors import ConfigError
from capax.files.chat_template import MAX_MESSAGES
from capax.serving.errors import ApiError
from capax.serving.fields import Checked

# What a template may read of a message; clients send back more, for example 'refusal'.
KNOWN_KEYS = (
    "role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning",
)  # fmt: skip
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
MEDIA_PARTS = frozenset(
    {"image_url", "input_image", "input_audio", "audio_url", "video_url", "file", "input_file"}
)


def template_messages(value: Any) -> list[dict[str, Any]]:
    """Return messages with plain text contents. Raises ConfigError naming the message.

    Parts of a content are joined by newlines; the role 'developer' is the template's 'system'.
    Raises ApiError 501 for an image, sound or file.
    """
    if not isinstance(value, list) or not 0 < len(value) <= MAX_MESSAGES:
        raise ConfigError(f"messages must be a list of 1 to {MAX_MESSAGES:,} messages")
    return [_message(item, f"messages[{i}]") for i, item in enumerate(value)]


def _message(item: Any, name: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ConfigError(f"{name} is {show(item)} but must be an object with role and content")
    message = {key: item[key] for key in KNOWN_KEYS if item.get(key) is not None}
    role = message.get("role")
    if not isinstance(role, str):
        raise ConfigError(f"{name}.role is {show(role)} but must be a word such as 'user'")
    if role == "developer":
        message["role"] = "system"
    if "content" not in message and role != "assistant":
        raise ConfigError(f"{name}.content is missing; a message of the {role!r:.40} needs one")
    message["content"] = _text(message.get("content", ""), f"{name}.content")
    return message


def _text(content: Any, name: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ConfigError(f"{name} is {show(content)} but must be text or a list of parts")
    return "\n".join(_part(part, f"{name}[{i}]") for i, part in enumerate(content))


def _part(part: Any, name: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in MEDIA_PARTS:
        raise ApiError(
            501, f"{name} is of type {kind!r} but this model reads text only", param="messages"
        )
    key = TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    text = part.get(key) if key is not None else None
    if not isinstance(text, str):
        raise ConfigError(f'{name} must be like {{"type": "text", "text": "..."}}')
    return text


MESSAGES = Checked(
    template_messages,
    {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "required": ["role"],
            "properties": {
                "role": {"type": "string", "pattern": "^[A-Za-z][A-Za-z0-9_-]{0,63}$"},
                "content": {
                    "anyOf": [
                        {"type": "string"},
                        {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["type", "text"],
                                "properties": {
                                    "type": {"const": "text"},
                                    "text": {"type": "string"},
                                },
                            },
                        },
                        {"type": "null"},
                    ]
                },
            },
        },
    },
)
