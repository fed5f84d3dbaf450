"""safetensors files, read by our own reader that copies nothing.

    | header length u64 | JSON header | tensor bytes, back to back to the end of the file |

The header maps a name to `{"dtype", "shape", "data_offsets": [start, end]}`. A file is
refused unless the tensors cover the data exactly: no hole, no overlap, no rest. What is
accepted is what the `safetensors` package accepts, except that a name appearing twice is
refused here (the package keeps the last one).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from capax.errors import FileFormatError
from capax.files.encodings import ENCODINGS
from capax.files.json_file import parse_json_object, read_json_object
from capax.files.opening import open_regular
from capax.files.tensors import TensorInfo

MAX_HEADER_NBYTES = 100_000_000
MAX_SHARDS = 1_000
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

# Bits of one number; dtypes of less than a byte must fill whole bytes.
DTYPE_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
_UINT64_MAX = 2**64 - 1


@dataclass(frozen=True, slots=True)
class SafeTensor:
    """One entry of a safetensors header; `offset` is absolute in the file at `path`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int

    def to_tensor_info(self, name: str) -> TensorInfo:
        """Describe the tensor for capax under its canonical `name`.

        Raises `FileFormatError` if the dtype is none capax computes with.
        """
        if self.dtype not in ("F32", "F16", "BF16"):
            raise FileFormatError(
                f"{self.path}: tensor {self.name!r} has dtype {self.dtype}; "
                "capax reads F32, F16 and BF16 weights from safetensors"
            )
        encoding = ENCODINGS[self.dtype]
        return TensorInfo(name, self.shape, encoding, self.path, self.offset, self.nbytes)


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """The checked header of one file: `tensors` by name in order of their bytes."""

    path: Path
    metadata: Mapping[str, str]
    tensors: Mapping[str, SafeTensor]
    file_nbytes: int

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> SafetensorsFile:
        """Read and check the header at `path`; `FileFormatError` says what is wrong."""
        path = Path(path)
        with open_regular(path) as f:
            file_nbytes = os.fstat(f.fileno()).st_size
            prefix = f.read(8)
            if len(prefix) < 8:
                raise FileFormatError(
                    f"{path}: the file has {file_nbytes} bytes; the header length takes 8"
                )
            header_nbytes = int.from_bytes(prefix, "little")
            if header_nbytes > min(MAX_HEADER_NBYTES, file_nbytes - 8):
                raise FileFormatError(
                    f"{path}: the header length is {header_nbytes:,} but at most "
                    f"{min(MAX_HEADER_NBYTES, file_nbytes - 8):,} bytes are possible"
                )
            raw = f.read(header_nbytes)
        header = parse_json_object(raw, f"{path}: header")
        metadata = _metadata(path, header.pop("__metadata__", None))
        tensors = _checked(path, header, 8 + header_nbytes, file_nbytes)
        return cls(path, metadata, tensors, file_nbytes)


def open_directory(folder: Path) -> tuple[dict[str, SafeTensor], int]:
    """Read `model.safetensors`, else the shards that `model.safetensors.index.json` names.

    Returns the tensors of all files by name, and the files' total bytes. Shards must lie
    in `folder` itself, and index and shards must agree on where every tensor is.
    """
    index_path, single = folder / INDEX_NAME, folder / SINGLE_NAME
    if single.is_file():
        file = SafetensorsFile.open(single)
        return dict(file.tensors), file.file_nbytes
    if not index_path.is_file():
        raise FileFormatError(
            f"{folder}: holds neither {SINGLE_NAME} nor {INDEX_NAME}; "
            "weights in other formats (.bin, .pt) are not loaded, convert them first"
        )
    weight_map = read_json_object(index_path, MAX_HEADER_NBYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FileFormatError(f"{index_path}: weight_map is missing, empty or not an object")
    shard_names = _shard_names(index_path, weight_map)
    tensors: dict[str, SafeTensor] = {}
    file_nbytes = 0
    for shard_name in shard_names:
        shard = SafetensorsFile.open(folder / shard_name)
        file_nbytes += shard.file_nbytes
        for name, tensor in shard.tensors.items():
            if weight_map.get(name) != shard_name:
                raise FileFormatError(
                    f"{shard.path}: holds tensor {name!r}, which {INDEX_NAME} places in "
                    f"{weight_map.get(name, 'no file')!r}"
                )
            tensors[name] = tensor
    for name, shard_name in weight_map.items():
        if name not in tensors:
            raise FileFormatError(
                f"{index_path}: places tensor {name!r} in {shard_name!r}, which does not hold it"
            )
    return tensors, file_nbytes


def _shard_names(index_path: Path, weight_map: Mapping[str, object]) -> list[str]:
    names: dict[str, None] = {}
    for tensor_name, shard_name in weight_map.items():
        if (
            not isinstance(shard_name, str)
            or not shard_name.endswith(".safetensors")
            or "/" in shard_name
            or "\\" in shard_name
            or "\0" in shard_name
        ):
            raise FileFormatError(
                f"{index_path}: places tensor {tensor_name!r} in {shard_name!r}; shards are "
                ".safetensors files in the index's own folder"
            )
        names[shard_name] = None
    if len(names) > MAX_SHARDS:
        raise FileFormatError(
            f"{index_path}: names {len(names):,} shards; at most {MAX_SHARDS:,} are allowed"
        )
    return list(names)


def _metadata(path: Path, value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise FileFormatError(f"{path}: __metadata__ must map strings to strings")
    return value


def _checked(
    path: Path, header: Mapping[str, object], data_start: int, file_nbytes: int
) -> dict[str, SafeTensor]:
    spans = [
        (*_entry(path, name, fields), name) for name, fields in header.items()
    ]  # (start, end, dtype, shape, name)
    spans.sort(key=lambda span: span[:2])
    tensors: dict[str, SafeTensor] = {}
    at = 0
    for start, end, dtype, shape, name in spans:
        if start != at or end < start:
            raise FileFormatError(
                f"{path}: tensor {name!r} has data_offsets [{start}, {end}] but byte {at} comes "
                "next: tensors must follow each other without hole or overlap"
            )
        n_numbers = 1
        for axis in shape:
            n_numbers *= axis
            if n_numbers > _UINT64_MAX:
                raise FileFormatError(f"{path}: tensor {name!r} has the absurd shape {shape}")
        n_bits = n_numbers * DTYPE_BITS[dtype]
        if n_bits != 8 * (end - start):
            raise FileFormatError(
                f"{path}: tensor {name!r} of dtype {dtype} and shape {shape} takes "
                f"{n_bits / 8:,.10g} bytes but its data_offsets span {end - start:,}"
            )
        tensors[name] = SafeTensor(name, dtype, tuple(shape), path, data_start + start, end - start)
        at = end
    if data_start + at != file_nbytes:
        raise FileFormatError(
            f"{path}: the tensors end at byte {data_start + at:,} but the file has "
            f"{file_nbytes:,}: the download is incomplete or the file is damaged"
        )
    return tensors


def _entry(path: Path, name: str, fields: object) -> tuple[int, int, str, list[int]]:
    if not isinstance(fields, dict):
        raise FileFormatError(f"{path}: tensor {name!r} is described by {fields!r:.60}")
    dtype, shape, span = (fields.get(k) for k in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise FileFormatError(f"{path}: tensor {name!r} has unknown dtype {dtype!r:.60}")
    if not _is_sizes(shape):
        raise FileFormatError(f"{path}: tensor {name!r} has shape {shape!r:.60}")
    if not _is_sizes(span) or len(span) != 2:
        raise FileFormatError(f"{path}: tensor {name!r} has data_offsets {span!r:.60}")
    return span[0], span[1], dtype, shape


def _is_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(x) is int and 0 <= x <= _UINT64_MAX for x in value)
