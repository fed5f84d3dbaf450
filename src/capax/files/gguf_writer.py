"""Write GGUF files: streaming, with exact value types, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from capax.errors import FileFormatError, StoreError
from capax.files.encodings import Encoding, nbytes_of
from capax.files.gguf_format import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    STRUCTS,
    U32,
    U64,
    GGUFArray,
    Scalar,
    Typed,
    ValueType,
    check_alignment,
)
from capax.files.tensors import TensorInfo, TensorReader

Buffer: TypeAlias = "bytes | bytearray | memoryview | npt.NDArray[Any]"


@dataclass(frozen=True, slots=True)
class TensorData:
    """A tensor to write: `data` is its encoded bytes, or a function that yields them.

    A function is called once, when the tensor's turn comes, so that a model larger than
    memory can be written; it returns one buffer or an iterable of buffers.
    """

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    data: Buffer | Callable[[], Buffer | Iterable[Buffer]]

    @classmethod
    def copy_of(cls, tensor: TensorInfo, reader: TensorReader, name: str = "") -> TensorData:
        """Describe a copy of `tensor` (under `name`, if given), read when it is written."""
        return cls(
            name or tensor.name,
            tensor.shape,
            tensor.encoding,
            lambda: reader.chunks(tensor),
        )


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Scalar | Sequence[Scalar] | Typed | GGUFArray],
    tensors: Iterable[TensorData],
    *,
    alignment: int | None = None,
) -> None:
    """Write a GGUF v3 file: whole and flushed under `path`, or not at all.

    Plain values take the smallest customary type: bool BOOL, int UINT32 (INT32, UINT64 or
    INT64 where it does not fit), float FLOAT32, str STRING; `Typed` says it exactly.
    `alignment` defaults to the metadata's `general.alignment`, else 32.
    Raises `FileFormatError` for a duplicate name or data that does not fill its shape, and
    `StoreError` if the file system refuses.
    """
    path = Path(path)
    metadata = dict(metadata)
    if alignment is None:
        stated = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        alignment = stated.value if isinstance(stated, Typed) else stated  # type: ignore[assignment]  # checked next
    if not isinstance(alignment, int):
        raise FileFormatError(f"{path}: general.alignment is {alignment!r}; an integer is needed")
    check_alignment(alignment, str(path))
    if alignment != DEFAULT_ALIGNMENT or "general.alignment" in metadata:
        metadata["general.alignment"] = Typed(alignment, ValueType.UINT32)
    tensors = list(tensors)
    if len({t.name for t in tensors}) != len(tensors):
        raise FileFormatError(f"{path}: two tensors to write have the same name")

    header = bytearray(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        header += _encode_string(key) + _encode_value(key, value)
    extents = []
    offset = 0
    for t in tensors:
        nbytes = nbytes_of(t.shape, t.encoding, f"{path}: tensor {t.name!r}")
        header += _encode_string(t.name) + struct.pack("<I", len(t.shape))
        header += struct.pack(f"<{len(t.shape)}Q", *reversed(t.shape))
        header += struct.pack("<IQ", t.encoding.ggml_type, offset)
        extents.append(nbytes)
        offset += nbytes + -nbytes % alignment
    header += bytes(-len(header) % alignment)

    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "xb") as f:
            f.write(header)
            for t, nbytes in zip(tensors, extents, strict=True):
                written = 0
                for buffer in _buffers(t.data):
                    written += f.write(buffer)
                if written != nbytes:
                    raise FileFormatError(
                        f"{path}: tensor {t.name!r} of shape {list(t.shape)} in {t.encoding} "
                        f"takes {nbytes:,} bytes but {written:,} were given"
                    )
                f.write(bytes(-nbytes % alignment))
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except BaseException as e:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
        if isinstance(e, OSError):
            raise StoreError(f"cannot write {path}: {e.strerror or e}") from e
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _buffers(
    data: Buffer | Callable[[], Buffer | Iterable[Buffer]],
) -> Iterator[memoryview]:
    """Yield the data as flat byte views."""
    given = data() if callable(data) else data
    if isinstance(given, np.ndarray):
        yield np.ascontiguousarray(given).reshape(-1).view(np.uint8).data
    elif isinstance(given, bytes | bytearray | memoryview):
        yield memoryview(given).cast("B")
    else:
        for buffer in given:
            yield from _buffers(buffer)


def _encode_string(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return U64.pack(len(raw)) + raw


def _encode_value(key: str, value: Scalar | Sequence[Scalar] | Typed | GGUFArray) -> bytes:
    try:
        if isinstance(value, GGUFArray):
            return _encode_array_head(value.item_type, len(value)) + value.raw()
        plain = value.value if isinstance(value, Typed) else value
        stated = value.type if isinstance(value, Typed) else None
        if isinstance(plain, str | bool | int | float):
            kind = _customary_type([plain]) if stated is None else stated
            return U32.pack(kind) + _encode_scalar(plain, kind)
        items = list(plain)
        kind = _customary_type(items) if stated is None else stated
        return _encode_array_head(kind, len(items)) + b"".join(
            _encode_scalar(item, kind) for item in items
        )
    except (struct.error, TypeError, AttributeError, OverflowError) as e:
        raise FileFormatError(f"metadata value of {key!r} cannot be stored: {e}") from e


def _encode_array_head(item_type: ValueType, count: int) -> bytes:
    return struct.pack("<IIQ", ValueType.ARRAY, item_type, count)


def _encode_scalar(value: Scalar, kind: ValueType) -> bytes:
    if kind is ValueType.STRING:
        if not isinstance(value, str):
            raise TypeError(f"{value!r} is not a string")
        return _encode_string(value)
    return STRUCTS[kind].pack(value)


_INTEGER_RANGES = (
    (ValueType.UINT32, 0, 2**32 - 1),
    (ValueType.INT32, -(2**31), 2**31 - 1),
    (ValueType.UINT64, 0, 2**64 - 1),
)


def _customary_type(items: Sequence[Scalar]) -> ValueType:
    """Return the type that holds all of `items`; an empty list counts as INT32."""
    if items and all(isinstance(x, str) for x in items):
        return ValueType.STRING
    if items and all(isinstance(x, bool) for x in items):
        return ValueType.BOOL
    integers = [x for x in items if isinstance(x, int) and not isinstance(x, bool)]
    if len(integers) == len(items):
        low, high = min(integers, default=-1), max(integers, default=0)
        customary = _INTEGER_RANGES if len(items) == 1 else _INTEGER_RANGES[1:]
        return next(
            (kind for kind, least, most in customary if least <= low and high <= most),
            ValueType.INT64,
        )
    if all(isinstance(x, int | float) and not isinstance(x, bool) for x in items):
        return ValueType.FLOAT32
    raise TypeError(f"{items!r:.60} is neither all strings, all bools nor all numbers")
