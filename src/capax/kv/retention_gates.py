"""Files of retention gates: what `capax train retention` writes and the `trim` cache runs with.

A safetensors file with, for each layer, `blk.<l>.retention.{w1,b1,w2,bias}` and metadata that says
which model they were trained for (`model`: a digest of its weights) and whether their input is
divided by its root mean square (`input`: rms or raw). Published gates come with other names and
no digest; `import_gates` writes them as a file for one model.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from capax import _native
from capax.errors import FileFormatError
from capax.files.config import ModelConfig
from capax.files.digest import weights_digest
from capax.files.model_file import ModelFile
from capax.files.safetensors import SafetensorsFile
from capax.files.tensors import TensorReader, read_float32

Floats = npt.NDArray[np.float32]

FORMAT = "capax-retention-gates"
_PARTS = ("w1", "b1", "w2", "bias")
_PUBLISHED = {
    "linear1.weight": "w1",
    "linear1.bias": "b1",
    "linear2.weight": "w2",
    "bias": "bias",
}
_PUBLISHED_NAME = re.compile(r"(?:.*\.)?(\d+)\.self_attn\.retention_gate\.(.+)")


@dataclass(frozen=True, slots=True)
class GatesHeader:
    """What the header of a gates file says: enough to plan with."""

    path: Path
    model: str  # digest of the weights they were trained for, hexadecimal
    input: str  # rms or raw
    n_layers: int
    n_kv_heads: int
    width: int
    d_model: int

    @property
    def nbytes(self) -> int:
        """Bytes of all gates in memory: W1 in bfloat16, the rest in float32."""
        w1 = _native.Weight.packed_nbytes("BF16", self.width, self.d_model)
        rest = 4 * (self.width + self.n_kv_heads * (self.width + 1))
        return self.n_layers * (w1 + rest)


class RetentionGates:
    """The gates of all layers, ready to run."""

    def __init__(self, header: GatesHeader, layers: list[dict[str, Floats]]) -> None:
        self.header = header
        self._gates = [
            _native.RetentionGate(
                to_bf16(p["w1"]), p["b1"], p["w2"], p["bias"], header.input == "rms"
            )
            for p in layers
        ]

    @property
    def nbytes(self) -> int:
        return sum(gate.nbytes for gate in self._gates)

    def log_beta(self, layer: int, x: Floats) -> Floats:
        """Return the logarithm of the retention scores: [n_kv_heads, t] of x [t, d_model]."""
        return self._gates[layer].log_beta(x)


def read_gates(path: str | Path, model: ModelFile) -> RetentionGates:
    """Read gates for a model. Raises FileFormatError if they are damaged, or of another model."""
    header = read_header(path)
    digest = weights_digest(model).hex()
    if header.model != digest:
        raise FileFormatError(
            f"{path}: these gates were trained for a model with digest {header.model[:12]}..., "
            f"{model.path} has {digest[:12]}...; train gates for it with 'capax train retention'"
        )
    check_fits(header, model.config)
    return RetentionGates(header, _layers(SafetensorsFile.open(path), header.n_layers))


def read_header(path: str | Path) -> GatesHeader:
    """Read and check the header of a gates file. Raises FileFormatError."""
    path = Path(path)
    stat = path.stat() if path.exists() else None
    return _read_header(path, stat.st_mtime_ns if stat else 0)


@lru_cache(maxsize=16)
def _read_header(path: Path, _changed_ns: int) -> GatesHeader:
    file = SafetensorsFile.open(path)
    about = file.metadata
    if about.get("format") != FORMAT:
        published = any(_PUBLISHED_NAME.fullmatch(name) for name in file.tensors)
        hint = (
            "it holds published gates, make them a model's with 'capax kv import-gates'"
            if published
            else "gates are made by 'capax train retention'"
        )
        raise FileFormatError(f"{path} is not a file of retention gates: {hint}")
    if about.get("input") not in ("rms", "raw") or about.get("act") != "silu":
        raise FileFormatError(
            f"{path}: input={about.get('input')!r:.20}, act={about.get('act')!r:.20} are not "
            "rms or raw, and silu"
        )
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    width, d_model, n_kv_heads, n_layers = _checked_shapes(path, shapes)
    return GatesHeader(
        path, about.get("model", ""), about["input"], n_layers, n_kv_heads, width, d_model
    )


def _checked_shapes(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int, int]:
    """Return width, d_model, n_kv_heads, n_layers, the same in every layer."""
    n_layers = len(shapes) // len(_PARTS)
    first = shapes.get("blk.0.retention.w1", ()), shapes.get("blk.0.retention.bias", ())
    if len(first[0]) != 2 or len(first[1]) != 1 or 0 in first[0] + first[1]:
        raise FileFormatError(f"{path}: blk.0.retention.w1 [width, d_model] or bias is missing")
    (width, d_model), (n_heads,) = first
    expected = {"w1": (width, d_model), "b1": (width,), "w2": (n_heads, width), "bias": (n_heads,)}
    wanted = {
        f"blk.{layer}.retention.{part}": shape
        for layer in range(n_layers)
        for part, shape in expected.items()
    }
    if wanted != dict(shapes):
        odd = next(n for n in sorted({*wanted, *shapes}) if wanted.get(n) != shapes.get(n))
        raise FileFormatError(
            f"{path}: tensor {odd!r:.80} has shape {shapes.get(odd)}, expected {wanted.get(odd)}"
        )
    return width, d_model, n_heads, n_layers


def check_fits(header: GatesHeader, config: ModelConfig) -> None:
    """Raise FileFormatError if the gates have other sizes than the model."""
    for name in ("n_layers", "n_kv_heads", "d_model"):
        have, want = getattr(header, name), getattr(config, name)
        if have != want:
            raise FileFormatError(f"{header.path}: gates of {name}={have}, the model has {want}")


def _layers(file: SafetensorsFile, n_layers: int) -> list[dict[str, Floats]]:
    with TensorReader() as reader:
        layers = []
        for layer in range(n_layers):
            parts = {}
            for part in _PARTS:
                name = f"blk.{layer}.retention.{part}"
                values = read_float32(reader, file.tensors[name].to_tensor_info(name))
                if not np.isfinite(values).all():
                    raise FileFormatError(f"{file.path}: tensor {name!r} is not finite")
                parts[part] = values
            layers.append(parts)
        return layers


def import_gates(source: str | Path, model: ModelFile, destination: Path) -> None:
    """Write published gates (`self_attn.retention_gate.*`, safetensors) as gates of a model.

    Raises FileFormatError if a tensor is missing or of the wrong size.
    """
    file = SafetensorsFile.open(source)
    tensors: dict[str, Floats] = {}
    with TensorReader() as reader:
        for name, tensor in file.tensors.items():
            match = _PUBLISHED_NAME.fullmatch(name)
            part = _PUBLISHED.get(match[2]) if match else None
            if match is None or part is None:
                raise FileFormatError(f"{source}: tensor {name!r:.80} is no part of a gate")
            own = f"blk.{int(match[1])}.retention.{part}"
            tensors[own] = read_float32(reader, tensor.to_tensor_info(own))
    width, d_model, n_heads, n_layers = _checked_shapes(
        Path(source), {name: values.shape for name, values in tensors.items()}
    )
    digest = weights_digest(model).hex()
    check_fits(
        GatesHeader(Path(source), digest, "raw", n_layers, n_heads, width, d_model), model.config
    )
    write_gates(destination, tensors, {"model": digest, "input": "raw"})


def write_gates(path: Path, tensors: Mapping[str, Floats], about: Mapping[str, str]) -> None:
    """Write gates in bfloat16; the file appears whole or not at all."""
    metadata = {"format": FORMAT, "act": "silu", **about}
    header: dict[str, object] = {"__metadata__": metadata}
    data = b""
    for name in sorted(tensors):
        raw = to_bf16(tensors[name]).tobytes()
        header[name] = {
            "dtype": "BF16",
            "shape": list(tensors[name].shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    fresh = path.with_name(path.name + ".part")
    fresh.write_bytes(len(text).to_bytes(8, "little") + text + data)
    os.replace(fresh, path)


def to_bf16(x: Floats) -> npt.NDArray[np.uint16]:
    """Return finite values rounded to nearest even bfloat16, as their bits."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
