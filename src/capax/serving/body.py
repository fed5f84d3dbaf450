"""Read a request's JSON strictly, and check it against a pydantic model.

Refused with a 400: nesting deeper than the limit, a key given twice, NaN and infinities,
numbers too large for a float, text that is not UTF-8 or holds half a surrogate pair.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from capax.decoding.params import show
from capax.serving.errors import ApiError, invalid
from capax.serving.state import server_of

PARSE_ELSEWHERE_NBYTES = 256 * 1024  # larger documents are parsed off the event loop
MAX_NAMED_PARAMS = 20
OUT_OF_RANGE = "out_of_range"  # pydantic's type of the errors that `fields` raises
_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_FIELD_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class RequestModel(BaseModel):
    """Base of request bodies: strict types (no '1' for 1, no true for 1)."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())


M = TypeVar("M", bound=BaseModel)


async def read_body(request: Request, model: type[M]) -> M:
    """Return the request's JSON body as `model`.

    Fields the model does not know are named in the response's X-Capax-Ignored-Params, or
    refused with --strict-params. Raises ApiError 400, 413 and 415.
    """
    config = server_of(request).config
    document = await read_json(request, config.max_json_depth)
    if not isinstance(document, dict):
        raise invalid("the body must be a JSON object")
    unknown = sorted(set(document) - _field_names(model))
    if unknown and config.strict_params:
        raise invalid(
            f"the field {show(unknown[0])} is unknown and --strict-params is set; leave it out",
            param=unknown[0] if _FIELD_NAME.fullmatch(unknown[0]) else None,
        )
    if unknown:
        named = [name for name in unknown if _FIELD_NAME.fullmatch(name)]
        request.scope["capax.ignored_params"] = ",".join(named[:MAX_NAMED_PARAMS])
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise refusal(error) from None


async def read_json(request: Request, max_depth: int) -> Any:
    """Return the body parsed strictly. Raises ApiError 400."""
    data = await request.body()
    if len(data) <= PARSE_ELSEWHERE_NBYTES:
        return parse_json(data, max_depth)
    return await asyncio.to_thread(parse_json, data, max_depth)


def parse_json(data: bytes, max_depth: int) -> Any:
    """Parse JSON strictly. Raises ApiError 400 for whatever the module's docstring lists."""
    if not data.strip():
        raise invalid("the body is empty; send a JSON object")
    _check_depth(data, max_depth)
    try:
        document = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
        if _SURROGATE.search(data):
            json.dumps(document, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid(f"the body is not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise invalid("the body holds half a surrogate pair, which is no character") from None
    except json.JSONDecodeError as error:
        raise invalid(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise _too_deep(max_depth) from None
    except ValueError:
        raise invalid("the body holds an integer of too many digits") from None
    return document


def body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return `openapi_extra` for a route that reads `model` with `read_body`."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _check_depth(data: bytes, max_depth: int) -> None:
    if data.count(b"{") + data.count(b"[") <= max_depth:
        return
    depth = 0
    for match in _STRUCTURE.finditer(data):
        first = data[match.start()]
        if first in b"[{":
            depth += 1
            if depth > max_depth:
                raise _too_deep(max_depth)
        elif first in b"]}":
            depth -= 1


def _too_deep(max_depth: int) -> ApiError:
    return invalid(f"the body nests deeper than {max_depth} levels; flatten it")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise invalid(f"the key {show(name)} is given twice; leave one out")
            seen.add(name)
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise invalid(f"{name} is not a JSON number; use a finite one or null")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise invalid(f"the number {text:.40} is too large; use a finite one")
    return value


def _field_names(model: type[BaseModel]) -> set[str]:
    names = set()
    for name, info in model.model_fields.items():
        names.add(info.alias or name)
    return names


def refusal(error: ValidationError) -> ApiError:
    """Say the first thing that is wrong, with the path of the field as `param`."""
    first = error.errors(include_url=False, include_context=False)[0]
    path = ".".join(str(part) for part in first["loc"] if _FIELD_NAME.fullmatch(str(part)))
    if first["type"] == OUT_OF_RANGE:  # the message names the field and its value
        return invalid(first["msg"], param=path or None)
    what = f"{path}: " if path else ""
    given = "" if first["type"] == "missing" else f" (it is {show(first['input'])})"
    return invalid(f"{what}{first['msg']}{given}", param=path or None)
