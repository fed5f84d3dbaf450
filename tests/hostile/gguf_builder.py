"""GGUF bytes piece by piece, and one table with every way to lie in them.

`build` assembles a file from raw pieces without checking anything; `MUTATIONS` holds one
row per lie: its name, the file's bytes and what the error must mention.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(raw: bytes) -> bytes:
    return u64(len(raw)) + raw


def kv(key: bytes, kind: int, payload: bytes) -> bytes:
    return text(key) + u32(kind) + payload


def array(item_kind: int, count: int, items: bytes) -> bytes:
    return u32(item_kind) + u64(count) + items


@dataclass(frozen=True)
class Tensor:
    """A tensor's entry as it will stand in the file; `n_dims` may disagree with `dims`."""

    name: bytes = b"w"
    dims: Sequence[int] = (8, 4)
    kind: int = 0  # F32
    offset: int = 0
    n_dims: int | None = None

    def encode(self) -> bytes:
        n_dims = len(self.dims) if self.n_dims is None else self.n_dims
        dims = b"".join(u64(d) for d in self.dims)
        return text(self.name) + u32(n_dims) + dims + u32(self.kind) + u64(self.offset)


GOOD_KV = (
    kv(b"general.architecture", STRING, text(b"llama")),
    kv(b"llama.block_count", U32, u32(1)),
    kv(b"tokenizer.ggml.tokens", ARRAY, array(STRING, 3, text(b"a") + text(b"bc") + text(b""))),
    kv(b"tokenizer.ggml.scores", ARRAY, array(F32, 3, bytes(12))),
    kv(b"flag", BOOL, b"\1"),
)
GOOD_TENSORS = (Tensor(), Tensor(b"v", (32,), 8, 128))


def build(
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_kv: int | None = None,
    pairs: Sequence[bytes] = GOOD_KV,
    tensors: Sequence[Tensor] = GOOD_TENSORS,
    alignment: int = 32,
    data_nbytes: int = 128 + 34,
) -> bytes:
    """Assemble a file; what is not given is right."""
    head = magic + u32(version)
    head += u64(len(tensors) if n_tensors is None else n_tensors)
    head += u64(len(pairs) if n_kv is None else n_kv)
    head += b"".join(pairs) + b"".join(t.encode() for t in tensors)
    head += bytes(-len(head) % alignment)
    return head + bytes(data_nbytes)


@dataclass(frozen=True)
class Mutation:
    """A damaged file and a regular expression its error message must match."""

    name: str
    content: bytes
    message: str


def _with_kv(*pairs: bytes) -> bytes:
    return build(pairs=(*GOOD_KV, *pairs))


def _with_tensor(*tensors: Tensor, data_nbytes: int = 4096) -> bytes:
    return build(tensors=tensors, data_nbytes=data_nbytes)


def _with_alignment(kind: int, payload: bytes) -> bytes:
    return _with_kv(kv(b"general.alignment", kind, payload))


def _mutations() -> list[Mutation]:
    rows = [
        ("empty file", b"", "the file is empty"),
        ("magic only", b"GGUF", "version at byte 4 needs 4 bytes but only 0 are left"),
        ("wrong magic", build(magic=b"GGML"), "starts with b'GGML', not with b'GGUF'"),
        ("version 0", build(version=0), "version 0 is not supported"),
        ("version 1", build(version=1), "version 1 is not supported"),
        ("version 4", build(version=4), "version 4 is not supported"),
        ("big-endian", build(version=3 << 24), "big-endian files are not supported"),
        # counts
        ("one tensor too many", build(n_tensors=3, data_nbytes=0), "tensor|truncated"),
        ("a million and one tensors", build(n_tensors=1_000_001), "tensor count .*is 1,000,001"),
        ("65,537 pairs", build(n_kv=65_537), "key-value count .* is 65,537"),
        ("6 pairs of 5", build(n_kv=6), "name of tensor 0|key 5"),
        # keys
        ("key twice", _with_kv(GOOD_KV[1]), r"key 'llama\.block_count' appears twice"),
        ("empty key", _with_kv(kv(b"", U8, b"\0")), "key 5 .* is ''"),
        ("key with NUL", _with_kv(kv(b"a\0b", U8, b"\0")), "key 5 .*without NUL"),
        ("key not UTF-8", _with_kv(kv(b"\xff", U8, b"\0")), "key 5 .* not valid UTF-8"),
        ("key of 64 KiB", _with_kv(kv(b"k" * 65_536, U8, b"\0")), "key 5 .*length 65,536"),
        # values
        ("type 13", _with_kv(kv(b"x", 13, b"\0")), "value of 'x' .* has type 13"),
        ("type 2^32-1", _with_kv(kv(b"x", 2**32 - 1, b"\0")), "'x' .* has type 4294967295"),
        ("bool 2", _with_kv(kv(b"x", BOOL, b"\2")), "'x' .* is a bool stored as 2"),
        ("bools of 7", _with_kv(kv(b"x", ARRAY, array(BOOL, 2, b"\1\7"))), "'x' .* neither 0 nor"),
        (
            "array of arrays",
            _with_kv(kv(b"x", ARRAY, array(ARRAY, 1, array(U8, 1, b"\0")))),
            "'x' .* array of arrays",
        ),
        (
            "arrays 64 deep",
            _with_kv(kv(b"x", ARRAY, array(ARRAY, 1, b"") * 63 + array(U8, 0, b""))),
            "'x' .* array of arrays",
        ),
        ("array of type 99", _with_kv(kv(b"x", ARRAY, array(99, 1, b"\0"))), "'x' .* has type 99"),
        # tensor entries
        ("tensor twice", _with_tensor(Tensor(), Tensor(offset=128)), "tensor 'w' appears twice"),
        ("empty tensor name", _with_tensor(Tensor(b"")), "name of tensor 0 .* is ''"),
        ("tensor name not UTF-8", _with_tensor(Tensor(b"\xc3")), "tensor 0 .* not valid UTF-8"),
        ("tensor name with NUL", _with_tensor(Tensor(b"w\0")), "tensor 0 .*without NUL"),
        ("five dimensions", _with_tensor(Tensor(dims=(1,) * 5)), "'w' has 5 dimensions"),
        ("2^32-1 dimensions", _with_tensor(Tensor(n_dims=2**32 - 1)), "'w' has 4294967295 dim"),
        ("encoding IQ2_XS", _with_tensor(Tensor(kind=17)), "encoding IQ2_XS of tensor 'w'"),
        ("encoding F64", _with_tensor(Tensor(kind=28)), "encoding F64 of tensor 'w'"),
        ("encoding 1000", _with_tensor(Tensor(kind=1000)), "GGML type id 1000 of tensor 'w'"),
        ("row of half a block", _with_tensor(Tensor(dims=(48,), kind=8)), "'w' has rows of 48"),
        ("K row of 32", _with_tensor(Tensor(dims=(32, 8), kind=12)), "Q4_K cannot cut"),
        ("offset not aligned", _with_tensor(Tensor(offset=16)), "'w' starts at offset 16"),
        (
            "overlap",
            _with_tensor(Tensor(), Tensor(b"v", (8,), offset=96)),
            "tensors 'w' and 'v' overlap",
        ),
        (
            "same place",
            _with_tensor(Tensor(b"v"), Tensor()),
            "tensors 'v' and 'w' overlap",
        ),
        ("one byte short", build()[:-1], "tensor 'v' ends at byte .* but the file has"),
        ("data missing", build(data_nbytes=0), "tensor 'w' ends at byte .* incomplete"),
        # alignment
        ("alignment 0", _with_alignment(U32, u32(0)), r"general\.alignment is 0;"),
        ("alignment 1", _with_alignment(U32, u32(1)), r"general\.alignment is 1;"),
        ("alignment 4", _with_alignment(U32, u32(4)), r"general\.alignment is 4;"),
        ("alignment 13", _with_alignment(U32, u32(13)), r"general\.alignment is 13;"),
        ("alignment 2^17", _with_alignment(U32, u32(1 << 17)), r"general\.alignment is 131072;"),
        ("alignment 2^31", _with_alignment(U32, u32(1 << 31)), r"general\.alignment is 2147483648"),
        ("alignment u64", _with_alignment(U64, u64(32)), r"general\.alignment has type UINT64"),
        ("alignment i32", _with_alignment(I32, u32(32)), r"general\.alignment has type INT32"),
        ("alignment text", _with_alignment(STRING, text(b"32")), "has type STRING"),
        # split
        ("split of 2", _with_kv(kv(b"split.count", U16, b"\2\0")), "one of 2 shards"),
        ("split of 65535", _with_kv(kv(b"split.count", U16, b"\xff\xff")), "one of 65535 shards"),
        ("split count text", _with_kv(kv(b"split.count", STRING, text(b"2"))), "count is '2'"),
    ]  # fmt: skip
    for power in (31, 32, 40, 63, 64):
        for delta in (-1, 0, 1):
            n = 2**power + delta
            if n >= 2**64:
                continue
            label = f"2^{power}{delta:+}" if delta else f"2^{power}"
            rows += [
                (f"{label} tensors", build(n_tensors=n), f"tensor count .* is {n:,}"),
                (f"{label} pairs", build(n_kv=n), f"key-value count .* is {n:,}"),
                (
                    f"key of {label}",
                    _with_kv(u64(n) + b"k" * 64),
                    f"key 5 .* has length {n:,}",
                ),
                (
                    f"string of {label}",
                    _with_kv(text(b"x") + u32(STRING) + u64(n) + b"s" * 64),
                    f"'x' .* has length {n:,}",
                ),
                (
                    f"array of {label} bytes",
                    _with_kv(kv(b"x", ARRAY, array(U8, n, bytes(64)))),
                    f"item count of value of 'x' .* is {n:,}",
                ),
                (
                    f"array of {label} doubles",
                    _with_kv(kv(b"x", ARRAY, array(F64, n, bytes(64)))),
                    f"item count of value of 'x' .* is {n:,}",
                ),
                (
                    f"array of {label} strings",
                    _with_kv(kv(b"x", ARRAY, array(STRING, n, bytes(64)))),
                    f"item count of value of 'x' .* is {n:,}",
                ),
                (
                    f"array item of {label}",
                    _with_kv(kv(b"x", ARRAY, array(STRING, 2, text(b"a") + u64(n)))),
                    "'x' .* item 1",
                ),
                (f"one dim of {label}", _with_tensor(Tensor(dims=(n,))), "tensor 'w'"),
                (f"dims {label} x 4", _with_tensor(Tensor(dims=(4, n))), "tensor 'w'"),
                (f"dims {label} squared", _with_tensor(Tensor(dims=(n, n))), "tensor 'w'"),
                (
                    f"Q4_K rows, {label} of them",
                    _with_tensor(Tensor(dims=(256, n), kind=12)),
                    "tensor 'w'",
                ),
                (
                    f"tensor at offset {label}",
                    _with_tensor(Tensor(offset=n)),
                    "tensor 'w' (starts at offset|ends at byte)",
                ),
            ]
            if power >= 63:  # 0 x n is a legal tensor of no bytes while n is a legal axis
                rows.append(
                    (f"0 x {label}", _with_tensor(Tensor(dims=(0, n, n, n))), "'w' has shape")
                )
    # Sizes whose product, or whose sum with padding or offset, wraps to something small.
    rows += [
        (
            "product wraps 2^64 to 16 bytes",
            _with_tensor(Tensor(dims=(2**32, 2**30, 1, 1))),
            "'w' ends at byte 18,446,744,073,709,551,",
        ),
        (
            "elements wrap 2^64",
            _with_tensor(Tensor(dims=(2**16, 2**16, 2**16, 2**16))),
            "'w' ends at byte 73,786,976,294,838,206,",
        ),
        (
            "offset plus size wraps",
            _with_tensor(Tensor(offset=2**64 - 128)),
            "'w' ends at byte 18,446,744,073,709,551,",
        ),
        (
            "padding wraps",
            _with_tensor(Tensor(b"w", (2**46,)), Tensor(b"v", (2**46,), offset=2**48)),
            "'w' ends at byte",
        ),
    ]
    return [Mutation(name, content, message) for name, content, message in rows]


MUTATIONS = _mutations()
