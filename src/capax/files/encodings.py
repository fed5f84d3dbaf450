"""How the numbers of a tensor are stored: the one table of weight encodings.

Every encoding cuts a row into blocks of `block_len` numbers that take `block_nbytes`
bytes each; plain floats are blocks of one. The type ids are those of GGML, as GGUF
files carry them. `nbytes_of` is the only place where a tensor's extent is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from capax.errors import FileFormatError

MAX_DIMS = 4
MAX_DIM = 2**48  # numbers along one axis; far above any model, far below 64-bit overflow


@dataclass(frozen=True, slots=True)
class Encoding:
    """One way to store numbers: `block_len` of them in `block_nbytes` bytes."""

    name: str
    ggml_type: int
    block_len: int
    block_nbytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_nbytes / self.block_len

    @property
    def is_float(self) -> bool:
        return self.block_len == 1

    def __str__(self) -> str:
        return self.name


F32 = Encoding("F32", 0, 1, 4)
F16 = Encoding("F16", 1, 1, 2)
BF16 = Encoding("BF16", 30, 1, 2)
Q8_0 = Encoding("Q8_0", 8, 32, 34)
Q4_0 = Encoding("Q4_0", 2, 32, 18)
Q4_1 = Encoding("Q4_1", 3, 32, 20)
Q5_0 = Encoding("Q5_0", 6, 32, 22)
Q5_1 = Encoding("Q5_1", 7, 32, 24)
Q2_K = Encoding("Q2_K", 10, 256, 84)
Q3_K = Encoding("Q3_K", 11, 256, 110)
Q4_K = Encoding("Q4_K", 12, 256, 144)
Q5_K = Encoding("Q5_K", 13, 256, 176)
Q6_K = Encoding("Q6_K", 14, 256, 210)

ENCODINGS: dict[str, Encoding] = {
    e.name: e
    for e in (
        F32,
        F16,
        BF16,
        Q8_0,
        Q4_0,
        Q4_1,
        Q5_0,
        Q5_1,
        Q2_K,
        Q3_K,
        Q4_K,
        Q5_K,
        Q6_K,
    )
}
_BY_GGML_TYPE = {e.ggml_type: e for e in ENCODINGS.values()}

# Known by name only, so that a refusal can say what the file holds.
_UNSUPPORTED_GGML_TYPES = {
    4: "Q4_2",
    5: "Q4_3",
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    34: "TQ1_0",
    35: "TQ2_0",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
    39: "MXFP4",
    40: "NVFP4",
    41: "Q1_0",
}


def encoding_named(name: str, what: str = "tensor") -> Encoding:
    """Look an encoding up by its name, in any case.

    `what` names the tensor (and file) in the `FileFormatError` of an unknown name.
    """
    found = ENCODINGS.get(name.upper())
    if found is None:
        raise FileFormatError(f"encoding {name!r} of {what} is not supported; {_supported()}")
    return found


def encoding_of_ggml_type(ggml_type: int, what: str = "tensor") -> Encoding:
    """Look an encoding up by its GGML type id; `FileFormatError` if capax cannot run it."""
    found = _BY_GGML_TYPE.get(ggml_type)
    if found is None:
        name = _UNSUPPORTED_GGML_TYPES.get(ggml_type)
        shown = name if name is not None else f"with unknown GGML type id {ggml_type}"
        raise FileFormatError(f"encoding {shown} of {what} is not supported; {_supported()}")
    return found


def nbytes_of(shape: Sequence[int], encoding: Encoding, what: str = "tensor") -> int:
    """Return the bytes a row-major tensor of `shape` takes, or raise `FileFormatError`.

    All arithmetic is on unbounded Python integers. Each axis must be in [0, 2^48], there
    are at most four of them, and a row (the last axis) must be whole blocks.
    """
    if len(shape) > MAX_DIMS:
        raise FileFormatError(f"{what} has {len(shape)} dimensions; at most {MAX_DIMS} are allowed")
    n = 1
    for axis in shape:
        if not 0 <= axis <= MAX_DIM:
            raise FileFormatError(
                f"{what} has shape {list(shape)}; every axis must be between 0 and 2^48"
            )
        n *= axis
    row_len = shape[-1] if shape else 1
    if row_len % encoding.block_len:
        raise FileFormatError(
            f"{what} has rows of {row_len} numbers, which {encoding.name} cannot cut into "
            f"blocks of {encoding.block_len}"
        )
    return n // encoding.block_len * encoding.block_nbytes


def _supported() -> str:
    return "capax reads " + ", ".join(ENCODINGS)
