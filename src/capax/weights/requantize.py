"""Write a GGUF model anew in a smaller encoding, a few rows at a time.

Which tensor gets which encoding follows llama.cpp's habit: one-dimensional tensors keep
what they have (a norm is worth its bytes); the matrix that makes the logits is kept better
than the rest, Q6_K under a 4-bit target, because every token's choice passes through it.
Rows that 256 does not divide cannot be cut into K blocks and fall back to blocks of 32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from capax.errors import ConfigError, FileFormatError
from capax.files.encodings import ENCODINGS, Encoding, nbytes_of
from capax.files.gguf import GGUFFile, TensorData, write_gguf
from capax.files.gguf_format import Typed, ValueType
from capax.files.tensors import TensorInfo, TensorReader
from capax.weights.encodings import dequantize, quantize


class Target(NamedTuple):
    """An encoding to write: its number in GGUF's `general.file_type`, and its stand-ins.

    `output` is for the matrix that makes the logits; `fallback` for rows that the encoding's
    blocks do not divide.
    """

    file_type: int
    output: str
    fallback: str


TARGETS: dict[str, Target] = {
    "Q8_0": Target(7, "Q8_0", "F16"),
    "Q4_0": Target(2, "Q6_K", "F16"),
    "Q4_1": Target(3, "Q6_K", "F16"),
    "Q4_K": Target(14, "Q6_K", "Q4_1"),
    "Q6_K": Target(18, "Q6_K", "Q8_0"),
}
_QUANTIZATION_VERSION = 2
_CHUNK_ELEMENTS = 1 << 22
_SHARD_KEYS = ("split.no", "split.count", "split.tensors.count")


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to one tensor; `reason` says why it does not simply get the target."""

    tensor: TensorInfo
    encoding: Encoding
    nbytes: int
    reason: str

    @property
    def is_copy(self) -> bool:
        return self.encoding == self.tensor.encoding


def plan_changes(file: GGUFFile, target: str) -> list[Change]:
    """Choose the encoding of every tensor. Raises ConfigError for an unknown target."""
    if target.upper() not in TARGETS:
        raise ConfigError(f"capax does not write {target!r:.60}; it writes {', '.join(TARGETS)}")
    output = "output.weight" if "output.weight" in file.tensors else "token_embd.weight"
    changes = []
    for tensor in file.tensors.values():
        encoding, reason = _encoding_for(tensor, target.upper(), tensor.name == output)
        changes.append(Change(tensor, encoding, nbytes_of(tensor.shape, encoding), reason))
    return changes


def _encoding_for(tensor: TensorInfo, target: str, is_output: bool) -> tuple[Encoding, str]:
    if len(tensor.shape) != 2:
        return tensor.encoding, "vectors are kept"
    wanted = TARGETS[target].output if is_output else target
    reason = "makes the logits" if wanted != target else ""
    row = tensor.shape[1]
    while row % ENCODINGS[wanted].block_len:
        reason = f"{ENCODINGS[wanted].block_len} does not divide rows of {row}"
        wanted = TARGETS[wanted].fallback
    return ENCODINGS[wanted], reason


def requantize(
    source: Path,
    destination: Path,
    target: str,
    *,
    on_tensor: Callable[[int, int, Change], None] = lambda done, total, change: None,
) -> list[Change]:
    """Write the GGUF model at `source` to `destination` with matrices in `target`.

    The output appears whole or not at all; memory use is some MiB whatever the model's size.
    `on_tensor(done, total, change)` is called before each tensor is written.
    Raises FileFormatError for a bad source, ConfigError for values that cannot be written.
    """
    file = GGUFFile.open(source)
    changes = plan_changes(file, target)
    metadata = {k: v for k, v in file.typed_metadata().items() if k not in _SHARD_KEYS}
    metadata["general.file_type"] = Typed(TARGETS[target.upper()].file_type, ValueType.UINT32)
    metadata["general.quantization_version"] = Typed(_QUANTIZATION_VERSION, ValueType.UINT32)
    with TensorReader() as reader:

        def data_of(n: int, change: Change) -> Callable[[], Iterator[np.ndarray | bytes]]:
            def rows() -> Iterator[np.ndarray | bytes]:
                on_tensor(n, len(changes), change)
                return reader.chunks(change.tensor) if change.is_copy else _encoded(reader, change)

            return rows

        write_gguf(
            destination,
            metadata,
            [
                TensorData(c.tensor.name, c.tensor.shape, c.encoding, data_of(n, c))
                for n, c in enumerate(changes)
            ],
        )
    return changes


def _encoded(reader: TensorReader, change: Change) -> Iterator[bytes]:
    """Yield the tensor's rows in the new encoding, some rows at a time."""
    tensor = change.tensor
    n_out, n_in = tensor.shape
    row_nbytes = tensor.nbytes // n_out
    step = max(1, _CHUNK_ELEMENTS // n_in)
    for first in range(0, n_out, step):
        n = min(step, n_out - first)
        raw = np.empty(n * row_nbytes, np.uint8)
        reader.read_into(tensor, raw, first * row_nbytes)
        values = dequantize(tensor.encoding.name, raw, n * n_in).reshape(n, n_in)
        if not np.isfinite(values).all():
            raise FileFormatError(
                f"{tensor.path}: tensor {tensor.name!r} has a value that is not finite among rows "
                f"{first} to {first + n - 1}; the file is damaged"
            )
        yield quantize(change.encoding.name, values)
