"""safetensors bytes, and one table with every kind of damage its format knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

GOOD = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]},
}
GOOD_NBYTES = 22


@dataclass(frozen=True)
class Mutation:
    """A damaged file and a regular expression its error message must match."""

    name: str
    content: bytes
    message: str


def build(
    header: Mapping[str, object] | bytes = GOOD,
    *,
    data_nbytes: int = GOOD_NBYTES,
    header_nbytes: int | None = None,
) -> bytes:
    """Assemble a file; `header_nbytes` is the length to claim, if not the true one."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    claimed = len(raw) if header_nbytes is None else header_nbytes
    return claimed.to_bytes(8, "little") + raw + bytes(data_nbytes)


def one(**changes: object) -> dict[str, object]:
    """Return a header with the single tensor `w`, some of its fields changed or None: absent."""
    fields = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes
    return {"w": {k: v for k, v in fields.items() if v is not None}}


def _row(name: str, header: Mapping[str, object] | bytes, message: str, n: int = 16) -> Mutation:
    return Mutation(name, build(header, data_nbytes=n), message)


MUTATIONS = [
    Mutation("empty file", b"", "0 bytes; the header length takes 8"),
    Mutation("7 bytes", bytes(7), "7 bytes; the header length takes 8"),
    Mutation("no header", bytes(8), "not valid JSON"),
    Mutation("header over 100 MB", build(header_nbytes=100_000_001), "length is 100,000,001"),
    Mutation("header of 2^63", build(header_nbytes=2**63), "header length is 9,223,372"),
    Mutation("header of 2^64-1", build(header_nbytes=2**64 - 1), "header length is 18,446,744"),
    Mutation("header beyond file", build(header_nbytes=400), "header length is 400 but at most"),
    Mutation("cut in the header", build()[:60], "header length is"),
    Mutation("one byte short", build()[:-1], "the file has .*: the download is incomplete"),
    Mutation("one byte too many", build() + b"\0", "tensors end at byte .* but the file has"),
    Mutation("zip behind the data", build() + b"PK\3\4", "tensors end at byte"),
    _row("not UTF-8", b'{"\xff": 1}', "not valid UTF-8 at byte 2"),
    _row("not JSON", b"{not json}", "not valid JSON"),
    _row("JSON cut short", b'{"w": {', "not valid JSON"),
    _row("two objects", b"{}{}", "not valid JSON", 0),
    _row("NaN", b'{"w": NaN}', "not valid JSON"),
    _row("nested 100,000 deep", b'{"w":' * 100_000, "not valid JSON"),
    _row("integer of 5,000 digits", b'{"w": ' + b"9" * 5_000 + b"}", "header"),
    _row("an array", b"[]", "a JSON list; an object is needed", 0),
    _row("a string", b'"w"', "an object is needed", 0),
    _row("entry is a number", {"w": 5}, "'w' is described by 5"),
    _row("entry is null", {"w": None}, "'w' is described by None"),
    _row("metadata not strings", {**one(), "__metadata__": {"a": 1}}, "__metadata__ must map"),
    _row("metadata is a list", {**one(), "__metadata__": []}, "__metadata__ must map"),
    _row("no dtype", one(dtype=None), "'w' has unknown dtype None"),
    _row("dtype F31", one(dtype="F31"), "'w' has unknown dtype 'F31'"),
    _row("dtype f32", one(dtype="f32"), "'w' has unknown dtype 'f32'"),
    _row("dtype a list", one(dtype=["F32"]), "'w' has unknown dtype"),
    _row("no shape", one(shape=None), "'w' has shape None"),
    _row("negative axis", one(shape=[-2, -2]), r"'w' has shape \[-2, -2\]"),
    _row("axis 2.0", one(shape=[2.0, 2]), r"'w' has shape \[2\.0, 2\]"),
    _row("axis true", one(shape=[True, 4]), r"'w' has shape \[True, 4\]"),
    _row("axis 2^64", one(shape=[2**64]), "'w' has shape"),
    _row("no offsets", one(data_offsets=None), "'w' has data_offsets None"),
    _row("one offset", one(data_offsets=[0]), r"'w' has data_offsets \[0\]"),
    _row("three offsets", one(data_offsets=[0, 16, 16]), "'w' has data_offsets"),
    _row("offset -1", one(data_offsets=[-1, 15]), "'w' has data_offsets"),
    _row("backwards", one(data_offsets=[16, 0]), "'w' has data_offsets"),
    _row("hole at the start", one(data_offsets=[4, 20]), r"'w' has data_offsets \[4, 20\]", 20),
    _row("offsets beyond the file", one(shape=[4, 2], data_offsets=[0, 32]), "the file has"),
    _row("too few bytes", one(data_offsets=[0, 15]), "takes 16 bytes but .* span 15", 15),
    _row("too many bytes", one(data_offsets=[0, 17]), "takes 16 bytes but .* span 17", 17),
    _row("product wraps 2^64", one(shape=[2**62, 4]), "'w' .* absurd shape|takes"),
    _row("product far beyond", one(shape=[2**63] * 8), "'w' has the absurd shape"),
    _row("half a byte", one(dtype="F4", shape=[31]), "'w' of dtype F4"),
    _row(
        "hole between",
        {**one(), "v": {"dtype": "F32", "shape": [1], "data_offsets": [20, 24]}},
        r"'v' has data_offsets \[20, 24\] but byte 16 comes next",
        24,
    ),
    _row(
        "overlap",
        {**one(), "v": {"dtype": "F32", "shape": [2], "data_offsets": [12, 20]}},
        r"'v' has data_offsets \[12, 20\] but byte 16 comes next",
        20,
    ),
    _row(
        "same bytes twice",
        {**one(), "v": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
        "has data_offsets",
    ),
]

# The `safetensors` package keeps the last of equal names; here that is an error.
DUPLICATES = [
    _row(
        "tensor twice",
        b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
        b'"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}',
        "key 'w' appears twice",
    ),
    _row(
        "metadata key twice",
        b'{"__metadata__":{"k":"1","k":"2"},'
        b'"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}',
        "key 'k' appears twice",
    ),
]
