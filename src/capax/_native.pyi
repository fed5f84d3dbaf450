"""Types of the native extension, written by hand: one section per binding file."""

from collections.abc import Sequence
from mmap import mmap
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Bytes: TypeAlias = npt.NDArray[np.uint8]
Floats: TypeAlias = npt.NDArray[np.float32]
Ints: TypeAlias = npt.NDArray[np.int32]
Buffer: TypeAlias = bytes | bytearray | memoryview | np.ndarray

# module.cpp
def isa() -> str: ...
def supported_isas() -> list[tuple[str, str]]: ...
def select_isa(name: str) -> bool: ...
def trim_heap() -> None: ...

# weights.cpp
class WeightReadError(OSError): ...

class WeightArena:
    def __init__(self, nbytes: int) -> None: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def used(self) -> int: ...

class Weight:
    @staticmethod
    def from_file(
        path: str,
        offset: int,
        nbytes: int,
        encoding: str,
        n_out: int,
        n_in: int,
        residency: Literal["packed", "streamed"] = "packed",
        arena: WeightArena | None = None,
        pack: bool = True,
    ) -> Weight: ...
    @staticmethod
    def from_bytes(
        data: Buffer, encoding: str, n_out: int, n_in: int, arena: WeightArena | None = None
    ) -> Weight: ...
    @staticmethod
    def packed_nbytes(encoding: str, n_out: int, n_in: int) -> int: ...
    def matmul(self, x: np.ndarray) -> np.ndarray: ...
    def matmul_groups(
        self, x: np.ndarray, y: np.ndarray, g_begin: int, g_end: int, accumulate: bool = False
    ) -> None: ...
    def rows(self, indices: np.ndarray) -> np.ndarray: ...
    def dequantize(self) -> np.ndarray: ...
    @property
    def encoding(self) -> str: ...
    @property
    def residency(self) -> str: ...
    @property
    def n_out(self) -> int: ...
    @property
    def n_in(self) -> int: ...
    @property
    def n_groups(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def file_nbytes(self) -> int: ...
    @property
    def scratch_nbytes(self) -> int: ...

def pack_weights(weights: list[Weight], n_threads: int) -> None: ...
def dequantize(encoding: str, data: Buffer, n_elements: int) -> np.ndarray: ...
def quantize(encoding: str, weights: np.ndarray) -> bytes: ...

# probe.cpp: (best, median)
def probe_read_gbps(nbytes: int, threads: int, seconds: float = 0.5) -> tuple[float, float]: ...
def probe_int8_gmacs(threads: int, seconds: float = 0.2) -> tuple[float, float]: ...
def probe_f32_gflops(threads: int, seconds: float = 0.2) -> tuple[float, float]: ...

# norms.cpp
def exp(x: Floats) -> Floats: ...
def softmax(x: Floats) -> Floats: ...
def logsumexp(x: Floats) -> Floats: ...
def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats: ...
def layer_norm(x: Floats, weight: Floats, bias: Floats, eps: float) -> Floats: ...
def landmark_scores(
    q: Floats,
    landmarks: Floats,
    positions: Ints,
    scale: float,
    cos: Floats,
    sin: Floats,
    style: str,
) -> Floats: ...
def landmark_attend(
    q: Floats,
    rows: Ints,
    chunk_k: Floats,
    chunk_v: Floats,
    records: Floats,
    slots: Ints,
    bases: Ints,
    scale: float,
    cos: Floats,
    sin: Floats,
    style: str,
    block: int,
    first: int = 0,
) -> tuple[Floats, Ints]: ...
def rope(x: Floats, cos: Floats, sin: Floats, style: str) -> Floats: ...
def swiglu(gate: Floats, up: Floats) -> Floats: ...
def gelu(x: Floats) -> Floats: ...
def add(x: Floats, y: Floats) -> Floats: ...

# attention.cpp
PAGE_TOKENS: int
SPAN_TOKENS: int

class KVLayout:
    def __init__(self, type: str, n_kv_heads: int, k_dim: int, v_dim: int) -> None: ...
    @property
    def n_kv_heads(self) -> int: ...
    @property
    def k_dim(self) -> int: ...
    @property
    def v_dim(self) -> int: ...
    @property
    def layer_page_nbytes(self) -> int: ...

def kv_append(
    layout: KVLayout,
    pool: Bytes,
    offset: int,
    page_table: Ints,
    k: Floats,
    v: Floats,
    position0: int,
) -> None: ...
def kv_attend(
    layout: KVLayout,
    pool: Bytes,
    offset: int,
    page_table: Ints,
    q: Floats,
    position0: int,
    scale: float,
    window: int = 0,
    n_keys: int = 0,
    tile_tokens: int = ...,
    by_span: bool = False,
    codec: Codec | None = None,
    codes: Bytes | None = None,
) -> Floats: ...
def kv_attend_span(
    layout: KVLayout,
    pool: Bytes,
    pages: Ints,
    q: Floats,
    position0: int,
    scale: float,
    window: int,
    span: int,
    state: Floats,
) -> None: ...

# uniform.cpp
def uniform_nbytes(
    n_tokens: int, n_channels: int, bits: int, by_token: bool, group: int
) -> tuple[int, int]: ...
def uniform_encode(x: Floats, bits: int, by_token: bool, group: int, out: Bytes) -> None: ...
def uniform_decode(
    codes: Bytes, n_tokens: int, n_channels: int, bits: int, by_token: bool, group: int
) -> Floats: ...

# codec.cpp
class Codec:
    @property
    def n_layers(self) -> int: ...
    @property
    def n_kv_heads(self) -> int: ...
    @property
    def k_dim(self) -> int: ...
    @property
    def v_dim(self) -> int: ...
    @property
    def block_tokens(self) -> int: ...
    @property
    def page_nbytes(self) -> int: ...
    def encode(
        self,
        layer: int,
        kv_head: int,
        position0: int,
        k: Floats,
        v: Floats,
        cos: Floats,
        sin: Floats,
        interleaved: bool,
    ) -> bytes: ...
    def decode(
        self,
        layer: int,
        kv_head: int,
        position0: int,
        codes: bytes,
        cos: Floats,
        sin: Floats,
        interleaved: bool,
    ) -> tuple[Floats, Floats]: ...
    def score(
        self,
        layer: int,
        kv_head: int,
        position0: int,
        codes: bytes,
        cos: Floats,
        sin: Floats,
        interleaved: bool,
        q: Floats,
        use_tables: bool = True,
    ) -> Floats: ...

class UniformCodec(Codec):
    def __init__(
        self,
        k_bits: list[int],
        v_bits: list[int],
        n_kv_heads: int,
        k_dim: int,
        v_dim: int,
        block_tokens: int,
        k_by_token: bool,
        v_by_token: bool,
        group: int,
        before_rotation: bool = False,
        hadamard: bool = False,
    ) -> None: ...

# pq.cpp
MAX_PQ_BITS: int

def fit_clusters(
    points: Floats, n_clusters: Ints, n_iterations: int, seed: int, n_threads: int
) -> Floats: ...
def nearest_centroids(points: Floats, centroids: Floats) -> Ints: ...

class PQCodec(Codec):
    def __init__(
        self,
        k_books: Sequence[npt.NDArray[np.uint16]],
        v_books: Sequence[npt.NDArray[np.uint16]],
        k_book: list[int],
        v_book: list[int],
        n_kv_heads: int,
        k_dim: int,
        v_dim: int,
        block_tokens: int = 64,
        by_subspace: bool = False,
        uses_tables: bool = False,
    ) -> None: ...
    @property
    def books_nbytes(self) -> int: ...

# program.cpp
def kv_keep(
    layout: KVLayout,
    pool: Bytes,
    offset: int,
    page_table: Ints,
    keep: Ints,
    n_entries: int,
) -> None: ...
def kv_add_attention(
    layout: KVLayout,
    pool: Bytes,
    offset: int,
    page_table: Ints,
    q: Floats,
    entry0: int,
    scale: float,
    weights: Floats,
) -> None: ...

class RetentionGate:
    def __init__(
        self,
        w1: npt.NDArray[np.uint16],
        b1: Floats,
        w2: Floats,
        bias: Floats,
        normalise: bool,
    ) -> None: ...
    def log_beta(self, x: Floats) -> Floats: ...
    @property
    def nbytes(self) -> int: ...

class PagePool:
    def __init__(self, page_nbytes: int, capacity: int) -> None: ...
    def allocate(self) -> int: ...
    def retain(self, page: int) -> None: ...
    def release(self, page: int) -> None: ...
    def copy(self, page: int) -> int: ...
    def references(self, page: int) -> int: ...
    def trim(self) -> None: ...
    def check_integrity(self) -> bool: ...
    def read(self, page: int) -> bytes: ...
    def write(self, page: int, content: bytes) -> None: ...
    @property
    def memory(self) -> Bytes: ...
    @property
    def capacity(self) -> int: ...
    @property
    def n_in_use(self) -> int: ...
    @property
    def page_nbytes(self) -> int: ...
    @property
    def resident_nbytes(self) -> int: ...

class DefaultFloatEnvironment:
    def __init__(self) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...

class Pace:
    def __init__(self, n_threads: int) -> None: ...
    def next(self, now_ns: int) -> int: ...
    def record(self, now_ns: int, step_ns: int, waited_ns: int) -> None: ...

class Program:
    def __init__(self, n_threads: int) -> None: ...
    def buffer(self, width: int, gathered: bool) -> int: ...
    def embed(self, table: Weight, out: int) -> int: ...
    def linear(self, x: int, norm: Floats | None, eps: float, up: int, accumulate: bool) -> int: ...
    def positions(self, x: int, table: Floats) -> int: ...
    def layer_norm(self, x: int, weight: Floats, bias: Floats, eps: float) -> int: ...
    def gelu(self, x: int) -> int: ...
    def gather(self, from_: int, to: int) -> int: ...
    def linear_output(
        self, operation: int, weight: Weight, bias: Floats | None, buffer: int
    ) -> None: ...
    def attention(
        self,
        layer: int,
        q: int,
        k: int,
        v: int,
        out: int,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        cos: Floats,
        sin: Floats,
        interleaved: bool,
        q_norm: Floats | None,
        k_norm: Floats | None,
        norm_eps: float,
        scale: float,
        window: int,
        causal: bool,
    ) -> int: ...
    def sample(self, logits: int) -> int: ...
    def reserve(self, n_tokens: int, n_logit_rows: int) -> None: ...
    def run(
        self,
        begin: int,
        end: int,
        tokens: Ints,
        bounds: Ints,
        page_tables: list[Ints],
        pool: PagePool | None,
        layout: KVLayout | None,
        logit_rows: Ints,
        samplers: list[Sampler],
        codec: Codec | None = None,
        code_pool: PagePool | None = None,
        code_tables: list[Ints] = ...,
        lag: int = 0,
    ) -> list[SampleResult]: ...
    def run_head(self, begin: int, logit_rows: Ints, end: int | None = None) -> None: ...
    def rows(self, buffer: int) -> Floats: ...
    @property
    def n_operations(self) -> int: ...
    @property
    def n_active_threads(self) -> int: ...
    def fix_threads(self, n_threads: int) -> None: ...
    @property
    def n_threads(self) -> int: ...
    @property
    def scratch_nbytes(self) -> int: ...

# sampling.cpp
SampleResult: TypeAlias = tuple[str, int, float, list[tuple[int, float]]]

def sample(
    logits: Floats,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    seed: int = 0,
    position: int = 0,
    choice: int = 0,
    n_top: int = -1,
    mask: npt.NDArray[np.uint32] | None = None,
    bias_tokens: Ints | None = None,
    bias_values: Floats | None = None,
    count_tokens: Ints | None = None,
    count_outputs: Ints | None = None,
) -> SampleResult: ...

class Sampler:
    def __init__(
        self,
        prompt_ids: Ints,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        seed: int = 0,
        choice: int = 0,
        n_top: int = -1,
        bias_tokens: Ints | None = None,
        bias_values: Floats | None = None,
    ) -> None: ...
    def sample(
        self, logits: Floats, mask: npt.NDArray[np.uint32] | None = None
    ) -> SampleResult: ...
    def set_mask(self, mask: npt.NDArray[np.uint32] | None) -> None: ...
    @property
    def position(self) -> int: ...

def score_rows(
    logits: Floats, targets: Ints, n_top: int = 0
) -> tuple[npt.NDArray[np.bool_], Floats, Ints, Ints, Floats]: ...
def philox(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]: ...
def philox_uniform(seed: int, choice: int, position: int, stream: int = 0) -> float: ...

# strings.cpp
def skip_strings(buffer: Buffer | mmap, position: int, count: int, max_nbytes: int) -> int: ...
def decode_strings(buffer: Buffer, count: int) -> list[str]: ...
def string_ends(buffer: Buffer, count: int) -> npt.NDArray[np.uint32]: ...
def decode_pairs(buffer: Buffer, count: int) -> list[tuple[str, str]]: ...

# coding.cpp
FREQUENCY_BITS: int

def intervals_of(logits: Floats, symbols: Ints) -> npt.NDArray[np.uint32]: ...
def find_symbol(logits: Floats, target: int) -> tuple[int, int, int]: ...
