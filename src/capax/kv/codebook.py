"""Codebooks of product quantisation: what a file of them holds, and how they are made.

A head vector of `head_dim` numbers is cut into `n_subspaces` sub-vectors, and each sub-space has
2^bits centroids. One file serves one model:

    scope       tensors (bfloat16)
    merged      k, v                              [n_subspaces, 2^bits, sub_dim]
    per_layer   blk.0.k, blk.0.v, blk.1.k, ...    [n_subspaces, 2^bits, sub_dim]
    per_head    blk.0.k, blk.0.v, blk.1.k, ...    [n_kv_heads, n_subspaces, 2^bits, sub_dim]

Keys and values may differ in n_subspaces and in bits. The last centroid of sub-space 0 is NaN: it
stands for a vector that is not finite. Codebooks are of no use to another model, so the file says
which model it belongs to, by the digest of its weights, and what text it was fitted to.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from capax import _native
from capax.errors import ConfigError, FileFormatError, StoreError
from capax.files.config import ModelConfig
from capax.files.safetensors import SafeTensor, SafetensorsFile

Halves = npt.NDArray[np.float16]
Bits = npt.NDArray[np.uint16]  # of bfloat16 numbers, which NumPy does not have
Scope = Literal["merged", "per_layer", "per_head"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

FORMAT = "capax-pq-1"
MAX_BITS: int = _native.MAX_PQ_BITS
MAX_SUB_DIM = 32
MAX_FILE_NBYTES = 1 << 30


class Shape(NamedTuple):
    """How keys or values are cut: `n_subspaces` of `sub_dim` numbers, 2^`bits` centroids each."""

    n_subspaces: int
    sub_dim: int
    bits: int

    @property
    def book(self) -> tuple[int, int, int]:
        return self.n_subspaces, 1 << self.bits, self.sub_dim

    @property
    def bits_per_value(self) -> float:
        return self.bits / self.sub_dim


def cut(head_dim: int, n_subspaces: int, bits: int) -> Shape:
    """Return the shape of a head cut into `n_subspaces`. Raises ConfigError if it cannot be."""
    if n_subspaces < 1 or head_dim % n_subspaces or head_dim // n_subspaces > MAX_SUB_DIM:
        possible = [m for m in range(1, head_dim + 1) if not head_dim % m]
        possible = [m for m in possible if head_dim // m <= MAX_SUB_DIM]
        raise ConfigError(
            f"heads of {head_dim} numbers cannot be cut into {n_subspaces} sub-spaces; "
            f"use one of {', '.join(map(str, possible))}"
        )
    if not 1 <= bits <= MAX_BITS:
        raise ConfigError(f"bits is {bits}; a code has 1 to {MAX_BITS} bits")
    if n_subspaces * bits % 8:
        raise ConfigError(
            f"{n_subspaces} sub-spaces of {bits} bits are {n_subspaces * bits} bits of a vector, "
            "no whole number of bytes; change one of them"
        )
    return Shape(n_subspaces, head_dim // n_subspaces, bits)


@dataclass(frozen=True)
class Codebook:
    """Centroids for every layer and KV head of one model.

    `k`, `v`: bfloat16 bits [n_subspaces, 2^bits, sub_dim] each; layer l and head h use number
    `book_of(l, h)`. `model`: digest of the weights they belong to. `facts`: how they were made.
    """

    model: str
    scope: Scope
    n_layers: int
    n_kv_heads: int
    head_dim: int
    k_shape: Shape
    v_shape: Shape
    k: tuple[Bits, ...]
    v: tuple[Bits, ...]
    facts: Mapping[str, str]

    def book_of(self, layer: int, kv_head: int) -> int:
        """Return the number of the centroids that a head uses."""
        if self.scope == "merged":
            return 0
        return layer if self.scope == "per_layer" else layer * self.n_kv_heads + kv_head

    @property
    def nbytes(self) -> int:
        """Bytes of the centroids as the file has them."""
        return sum(book.nbytes for book in (*self.k, *self.v))

    @property
    def digest(self) -> str:
        """What identifies the centroids: codes of others stand for other numbers."""
        digest = hashlib.sha256()
        for book in (*self.k, *self.v):
            digest.update(book.tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        tensors: dict[str, Bits] = {}
        n_books = 1 if self.scope == "per_layer" else self.n_kv_heads
        for side, books in (("k", self.k), ("v", self.v)):
            if self.scope == "merged":
                tensors[side] = books[0]
                continue
            for layer in range(self.n_layers):
                of_layer = books[layer * n_books : (layer + 1) * n_books]
                tensors[f"blk.{layer}.{side}"] = (
                    of_layer[0] if self.scope == "per_layer" else np.stack(of_layer)
                )
        metadata = {
            **self.facts,
            "format": FORMAT,
            "model": self.model,
            "scope": self.scope,
            "n_layers": str(self.n_layers),
            "n_kv_heads": str(self.n_kv_heads),
            "head_dim": str(self.head_dim),
            "k_subspaces": str(self.k_shape.n_subspaces),
            "k_bits": str(self.k_shape.bits),
            "v_subspaces": str(self.v_shape.n_subspaces),
            "v_bits": str(self.v_shape.bits),
            "post_rope": "true",
        }
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            part.write_bytes(_safetensors(tensors, metadata))
            os.replace(part, path)
        except OSError as e:
            raise StoreError(f"cannot write {path}: {e.strerror}") from None
        finally:
            part.unlink(missing_ok=True)


def _safetensors(tensors: Mapping[str, Bits], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file of bfloat16 tensors."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for name, bits in tensors.items():
        header[name] = {
            "dtype": "BF16",
            "shape": list(bits.shape),
            "data_offsets": [at, at + bits.nbytes],
        }
        at += bits.nbytes
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    content = b"".join(bits.tobytes() for bits in tensors.values())
    return len(raw).to_bytes(8, "little") + raw + content


# ---- reading ------------------------------------------------------------------------------------


class Header(NamedTuple):
    """What a file says of itself, all of it checked against its tensors."""

    file: SafetensorsFile
    scope: Scope
    k_shape: Shape
    v_shape: Shape
    n_books: int
    names: Mapping[str, list[str]]  # "k" and "v": tensors in the order of the layers


def read_header(path: Path, config: ModelConfig) -> Header:
    """Return what the codebooks at `path` are, if they fit a model of this shape.

    Raises FileFormatError for a damaged or foreign file, ConfigError for another model's.
    """
    file = SafetensorsFile.open(path)
    if file.file_nbytes > MAX_FILE_NBYTES:
        raise FileFormatError(
            f"{path}: {file.file_nbytes:,} bytes are more than codebooks have "
            f"({MAX_FILE_NBYTES:,} at most)"
        )
    found = file.metadata.get("format")
    if found != FORMAT:
        raise FileFormatError(
            f"{path}: the format is {found!r:.40}, not {FORMAT!r}; "
            "this is no codebook file, make one by 'capax kv fit'"
        )
    if file.metadata.get("post_rope") != "true":
        raise FileFormatError(f"{path}: the keys it was fitted to are not marked as rotated")
    for name, expected in (
        ("n_layers", config.n_cache_layers),
        ("n_kv_heads", config.n_kv_heads),
        ("head_dim", config.head_dim),
    ):
        if (value := _whole(file, name, 1, 1 << 16)) != expected:
            raise ConfigError(
                f"{path}: the codebooks are for a model with {name} {value}, this one has "
                f"{expected}; fit others by 'capax kv fit'"
            )
    scope = next((s for s in SCOPES if s == file.metadata.get("scope")), None)
    if scope is None:
        raise FileFormatError(f"{path}: scope is none of {', '.join(SCOPES)}")
    shapes = {}
    for side in ("k", "v"):
        n, bits = _whole(file, f"{side}_subspaces", 1, 4096), _whole(file, f"{side}_bits", 1, 12)
        try:
            shapes[side] = cut(config.head_dim, n, bits)
        except ConfigError as e:
            raise FileFormatError(f"{path}: {e}") from None
    names = {side: _tensor_names(side, scope, config.n_cache_layers) for side in ("k", "v")}
    expected_names = {*names["k"], *names["v"]}
    if set(file.tensors) != expected_names:
        odd = sorted(set(file.tensors) ^ expected_names)[0]
        raise FileFormatError(f"{path}: tensor {odd!r:.60} is missing or too many")
    head = (config.n_kv_heads,) if scope == "per_head" else ()
    for side, shape in shapes.items():
        for name in names[side]:
            _check_tensor(path, file.tensors[name], (*head, *shape.book))
    n_books = 1 if scope == "merged" else config.n_cache_layers * (head[0] if head else 1)
    return Header(file, scope, shapes["k"], shapes["v"], n_books, names)


def load_codebook(path: Path, config: ModelConfig, model: str) -> Codebook:
    """Return the codebooks at `path`. Raises as `read_header`, and for another `model` digest."""
    header = read_header(path, config)
    file = header.file
    if file.metadata.get("model") != model:
        raise ConfigError(
            f"{path}: the codebooks belong to a model with digest "
            f"{file.metadata.get('model', 'none')!r:.20}, this one has {model:.16}; "
            "fit them again by 'capax kv fit'"
        )
    books: dict[str, tuple[Bits, ...]] = {}
    with path.open("rb") as stream:
        for side in ("k", "v"):
            read: list[Bits] = []
            for name in header.names[side]:
                tensor = file.tensors[name]
                stream.seek(tensor.offset)
                raw = stream.read(tensor.nbytes)
                if len(raw) != tensor.nbytes:
                    raise FileFormatError(f"{path}: tensor {name!r} ends early")
                array = np.frombuffer(raw, np.uint16).reshape(tensor.shape)
                read.extend(array if header.scope == "per_head" else [array])
            books[side] = tuple(read)
    known = {"format", "model", "scope", "post_rope"}
    return Codebook(
        model=model,
        scope=header.scope,
        n_layers=config.n_cache_layers,
        n_kv_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        k_shape=header.k_shape,
        v_shape=header.v_shape,
        k=books["k"],
        v=books["v"],
        facts={k: v for k, v in file.metadata.items() if k not in known},
    )


def _tensor_names(side: str, scope: Scope, n_layers: int) -> list[str]:
    return [side] if scope == "merged" else [f"blk.{layer}.{side}" for layer in range(n_layers)]


def _check_tensor(path: Path, tensor: SafeTensor, shape: tuple[int, ...]) -> None:
    if tensor.dtype != "BF16" or tensor.shape != shape:
        raise FileFormatError(
            f"{path}: tensor {tensor.name!r} is {tensor.dtype} {list(tensor.shape)}; "
            f"BF16 {list(shape)} is needed"
        )


def _whole(file: SafetensorsFile, name: str, least: int, most: int) -> int:
    text = file.metadata.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and least <= int(text) <= most):
        raise FileFormatError(
            f"{file.path}: {name} is {text!r:.20}; a whole number from {least} to {most} is needed"
        )
    return int(text)


# ---- fitting ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """How codebooks are fitted: k-means of at most `max_vectors` head vectors for each."""

    k_subspaces: int
    v_subspaces: int
    k_bits: int
    v_bits: int
    scope: Scope = "per_layer"
    iterations: int = 25
    seed: int = 42
    max_vectors: int = 1 << 16

    def __post_init__(self) -> None:
        if not 1 <= self.iterations <= 10_000:
            raise ConfigError(f"iterations is {self.iterations}; use 1 to 10000")
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed is {self.seed}; use 0 to 2^63 - 1")
        if not 1 <= self.max_vectors < 1 << 31:
            raise ConfigError(f"max_vectors is {self.max_vectors}; use 1 to 2^31 - 1")

    def run(
        self,
        k: Halves,
        v: Halves,
        *,
        model: str,
        text: str,
        n_threads: int = 1,
        progress: Callable[[], None] = lambda: None,
    ) -> Codebook:
        """Return the codebooks of `k` and `v`, [n_layers, n_tokens, n_kv_heads, head_dim] float16.

        Keys are rotated. `model`, `text`: digests of the weights and of the text. `progress` is
        called after each book of keys or of values.
        """
        n_layers, n_tokens, n_kv_heads, head_dim = k.shape
        shapes = {
            "k": cut(head_dim, self.k_subspaces, self.k_bits),
            "v": cut(head_dim, self.v_subspaces, self.v_bits),
        }
        books: dict[str, tuple[Bits, ...]] = {}
        n_vectors = 0
        for side, vectors in (("k", k), ("v", v)):
            fitted = []
            for number, pool in enumerate(self._pools(vectors)):
                n_vectors = len(pool)
                fitted.append(self._book(pool, shapes[side], number, n_threads))
                progress()
            books[side] = tuple(fitted)
        return Codebook(
            model=model,
            scope=self.scope,
            n_layers=n_layers,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            k_shape=shapes["k"],
            v_shape=shapes["v"],
            k=books["k"],
            v=books["v"],
            facts={
                "text_sha256": text,
                "n_tokens": str(n_tokens),
                "n_vectors": str(n_vectors),
                "iterations": str(self.iterations),
                "seed": str(self.seed),
            },
        )

    def _pools(self, vectors: Halves) -> Iterator[Halves]:
        """The vectors of each book, [n, head_dim], at most `max_vectors` drawn by the seed."""
        n_layers, n_tokens, n_kv_heads, head_dim = vectors.shape
        draw = np.random.default_rng(self.seed)
        if self.scope == "merged":
            total = n_layers * n_tokens * n_kv_heads
            yield vectors.reshape(total, head_dim)[_drawn(draw, total, self.max_vectors)]
            return
        for layer in range(n_layers):
            if self.scope == "per_layer":
                pool = vectors[layer].reshape(-1, head_dim)
                yield pool[_drawn(draw, len(pool), self.max_vectors)]
            else:
                rows = _drawn(draw, n_tokens, self.max_vectors)
                for head in range(n_kv_heads):
                    yield vectors[layer, rows, head]

    def _book(self, pool: Halves, shape: Shape, number: int, n_threads: int) -> Bits:
        points = pool.astype(np.float32).reshape(len(pool), shape.n_subspaces, shape.sub_dim)
        # One fewer in sub-space 0, whose last centroid stays NaN.
        n_clusters = np.full(shape.n_subspaces, 1 << shape.bits, np.int32)
        n_clusters[0] -= 1
        seed = self.seed + number * shape.n_subspaces
        fitted = _native.fit_clusters(points, n_clusters, self.iterations, seed, n_threads)
        return bfloat16_bits(fitted)


def bfloat16_bits(x: npt.NDArray[np.float32]) -> Bits:
    """Return the bits of numbers rounded to bfloat16, to the nearest, even ones of two."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


def _drawn(draw: np.random.Generator, n: int, most: int) -> npt.NDArray[np.int64]:
    """Indices of at most `most` of `n`, ascending."""
    return np.sort(draw.permutation(n)[:most])


def text_digest(text: str) -> str:
    """Return what identifies a calibration text."""
    return hashlib.sha256(text.encode()).hexdigest()
