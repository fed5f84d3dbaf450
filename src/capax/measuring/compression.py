"""Lossless compression by a language model: the working proof of its log-probabilities.

Every token is coded with the probability the model gave it, by a range coder over integer
frequencies (native/coding), so a file's size is its information under the model: sum of
-log2 p, plus at most 7e-5 bit per token. Delétang et al., 2023, "Language modeling is
compression", arXiv 2309.10668.

The text is cut into windows of `window` tokens that know nothing of each other; up to `LANES` of
them are coded in step, one token of each at a time, so that decompression, which must run the
model token by token, decodes them as one batch. A window's first token is coded as one of
`vocab_size` equally likely ones, unless the model begins every text with BOS.

The logits must be the same bits on both sides. They are, whatever the instruction set, the
number of threads and the batch (docs/guarantees.md); a fingerprint of them in the header makes
sure. Bytes that the tokenizer cannot represent are stored with LZMA instead.
"""

from __future__ import annotations

import hashlib
import lzma
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import msgspec
import numpy as np

from capax import _native
from capax.errors import CapaxError, ConfigError, StoreError
from capax.files.digest import weights_digest
from capax.measuring.range_coder import TOTAL_BITS, RangeDecoder, RangeEncoder

if TYPE_CHECKING:
    from capax.engine.llm import LLM
    from capax.files.tokenizer import Tokenizer

MAGIC = b"capaxlm\x01"
LANES = 16
DEFAULT_WINDOW = 1024
MAX_NBYTES = 256 << 20  # of a file, both ways
_MAX_HEADER_NBYTES = 1 << 12
_FINGERPRINT_TOKENS = 64
# Undecodable bytes arrive as single surrogates, 0xDC00 + byte.
_PIECES = re.compile("([\udc80-\udcff])|[^\udc80-\udcff]{1,1048576}", re.DOTALL)

T = TypeVar("T")
Progress = Callable[[int, int], None]  # tokens done, tokens in all


class Header(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """What decompression must know. `window` 0: the payload is LZMA, no model needed."""

    n_bytes: int
    checksum: bytes  # of the file, the first 8 bytes of its SHA-256
    window: int
    n_tokens: int = 0
    lanes: int = 0
    model: bytes = b""  # digest of the weights, 8 bytes
    fingerprint: bytes = b""  # digest of logits, 8 bytes
    kv_type: str = ""


@dataclass(frozen=True, slots=True)
class Compressed:
    """A compressed file and what it should have cost.

    `predicted_bits`: sum of -log2 p over all coded tokens; `payload_nbytes`: what the coder
    wrote for them, the header not counted. Both are 0 tokens' worth if the tokenizer cannot
    represent the file.
    """

    content: bytes
    n_tokens: int
    predicted_bits: float
    payload_nbytes: int


def compress(
    data: bytes, llm: LLM, *, window: int = DEFAULT_WINDOW, progress: Progress | None = None
) -> Compressed:
    """Compress `data` with the model.

    Raises ConfigError if the window does not fit the context or the file is too large,
    CapaxError if the model gives logits that are not finite.
    """
    if len(data) > MAX_NBYTES:
        raise ConfigError(
            f"the file has {len(data):,} bytes, at most {MAX_NBYTES:,} are compressed"
        )
    head = _head(llm)
    if not 2 <= window <= llm.context_len - len(head):
        raise ConfigError(
            f"window is {window} but must be 2 to {llm.context_len - len(head)}, the context "
            "the model has room for"
        )
    checksum = hashlib.sha256(data).digest()[:8]
    ids = tokens_of(data, llm.tokenizer)
    if ids is None:
        payload = lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)
        return Compressed(_pack(Header(len(data), checksum, 0), payload), 0, 0.0, len(payload))
    encoder = RangeEncoder()
    bits = 0.0
    done = 0
    lanes = max(1, min(LANES, llm.max_contexts(len(head) + window)))
    for group in _groups(_cut(ids, window), lanes):
        coded = [_code(llm, head, tokens) for tokens in group]
        bits += sum(cost for _, cost in coded)
        for step in range(len(group[0])):
            for intervals, _ in coded:
                if step < len(intervals):
                    encoder.encode(int(intervals[step, 0]), int(intervals[step, 1]))
        done += sum(map(len, group))
        if progress:
            progress(done, len(ids))
    payload = encoder.finish()
    header = Header(
        len(data),
        checksum,
        window,
        len(ids),
        lanes,
        weights_digest(llm.file)[:8],
        _fingerprint(llm, window),
        llm.plan.kv,
    )
    return Compressed(_pack(header, payload), len(ids), bits, len(payload))


def decompress(content: bytes, llm: LLM, *, progress: Progress | None = None) -> bytes:
    """Return the file that `compress` made `content` of.

    Raises StoreError if the content is damaged or was made with another model, cache precision
    or version, ConfigError if its windows do not fit the context.
    """
    header, payload = read_header(content)
    if header.window == 0:
        return _checked(_lzma_decompressed(payload, header.n_bytes), header)
    head = _head(llm)
    if header.window > llm.context_len - len(head):
        raise ConfigError(
            f"the file was made with windows of {header.window} tokens but the context holds "
            f"{llm.context_len}; raise --ctx-size"
        )
    _check_origin(header, llm)
    lengths = _lengths(header)
    decoder = RangeDecoder(payload)
    pieces: list[bytes] = []
    n_bytes = done = 0
    for group in _groups(lengths, header.lanes):
        windows = _decode(llm, head, decoder, group)
        texts = [llm.tokenizer.token_bytes(token) for tokens in windows for token in tokens]
        pieces += texts
        n_bytes += sum(map(len, texts))
        if n_bytes > header.n_bytes:
            raise StoreError("the compressed file is damaged: it holds more text than it says")
        done += sum(group)
        if progress:
            progress(done, header.n_tokens)
    return _checked(b"".join(pieces), header)


def read_header(content: bytes) -> tuple[Header, bytes]:
    """Return a compressed file's header and payload. Raises StoreError if there is none."""
    if not content.startswith(MAGIC):
        raise StoreError("this is not a file that 'capax measure compress' wrote")
    size = int.from_bytes(content[len(MAGIC) : len(MAGIC) + 2], "little")
    start = len(MAGIC) + 2
    try:
        header = msgspec.msgpack.decode(content[start : start + size], type=Header)
    except msgspec.MsgspecError as e:
        raise StoreError(f"the compressed file has a damaged header: {e}") from None
    sound = (
        size <= _MAX_HEADER_NBYTES
        and 0 <= header.n_bytes <= MAX_NBYTES
        and len(header.checksum) == 8
        and 0 <= header.n_tokens <= header.n_bytes
        and (header.window == 0 or (header.window >= 2 and 1 <= header.lanes <= LANES))
    )
    if not sound:
        raise StoreError(
            "the compressed file has a damaged header: its sizes contradict each other"
        )
    return header, content[start + size :]


def tokens_of(data: bytes, tokenizer: Tokenizer) -> list[int] | None:
    """Return tokens whose bytes, put together, are exactly `data`; None if there are none.

    Stretches of UTF-8 are tokenised as text; a byte that is not UTF-8 becomes the token of that
    byte, if the vocabulary has one.
    """
    ids: list[int] = []
    byte_tokens: dict[int, int] | None = None
    for piece in _utf8_pieces(data):
        if isinstance(piece, str):
            ids += tokenizer.encode(piece, add_special=False)
        else:
            byte_tokens = byte_tokens or _byte_tokens(tokenizer)
            if piece not in byte_tokens:
                return None
            ids.append(byte_tokens[piece])
    return ids if b"".join(map(tokenizer.token_bytes, ids)) == data else None


# --- coding one group of windows ----------------------------------------------------------


def _code(
    llm: LLM, head: list[int], tokens: list[int]
) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.uint32]], float]:
    """Return the intervals of a window's tokens, uint32 [n, 2], and their cost in bits."""
    vocab_size = llm.config.vocab_size
    parts = []
    bits = 0.0
    if not head:
        parts.append(np.array([_uniform(tokens[0], vocab_size)], np.uint32))
        bits = math.log2(vocab_size)
    known = head + tokens
    targets = np.array(known[1:], np.int32)
    with llm.contexts(1, len(known)) as contexts:
        for first, logits in contexts.each_logits(0, known[:-1]):
            part = targets[first : first + len(logits)]
            try:
                parts.append(_native.intervals_of(logits, part))
            except ValueError as e:
                raise CapaxError(f"the model cannot compress this text: {e}") from None
            _, logprobs, *_ = _native.score_rows(logits, part, 0)
            bits -= float(logprobs.sum(dtype=np.float64)) / math.log(2)
    return np.concatenate(parts), bits


def _decode(
    llm: LLM, head: list[int], decoder: RangeDecoder, lengths: Sequence[int]
) -> list[list[int]]:
    """Decode windows of these lengths, the longest first, in step."""
    vocab_size = llm.config.vocab_size
    windows: list[list[int]] = [[] for _ in lengths]
    with llm.contexts(len(lengths), len(head) + lengths[0]) as contexts:
        for step in range(lengths[0]):
            running = [i for i, n in enumerate(lengths) if step < n]
            if step == 0 and not head:
                for i in running:
                    windows[i].append(_accept_uniform(decoder, vocab_size))
                continue
            new = [(i, [windows[i][-1]] if step else head) for i in running]
            for i, logits in zip(running, contexts.extend(new), strict=True):
                try:
                    token, low, width = _native.find_symbol(logits, decoder.target())
                except ValueError as e:
                    raise CapaxError(f"the model cannot decompress this file: {e}") from None
                decoder.accept(low, width)
                windows[i].append(token)
    return windows


def _uniform(token: int, vocab_size: int) -> tuple[int, int]:
    width = (1 << TOTAL_BITS) // vocab_size
    return token * width, width


def _accept_uniform(decoder: RangeDecoder, vocab_size: int) -> int:
    width = (1 << TOTAL_BITS) // vocab_size
    token = min(decoder.target() // width, vocab_size - 1)
    decoder.accept(token * width, width)
    return token


def _cut(ids: list[int], window: int) -> list[list[int]]:
    return [ids[i : i + window] for i in range(0, len(ids), window)]


def _lengths(header: Header) -> list[int]:
    whole, rest = divmod(header.n_tokens, header.window)
    return [header.window] * whole + ([rest] if rest else [])


def _groups(items: Sequence[T], n: int) -> Iterator[Sequence[T]]:
    """Cut into groups of n; the shorter last window, if any, is the last of its group."""
    for begin in range(0, len(items), n):
        yield items[begin : begin + n]


def _head(llm: LLM) -> list[int]:
    tokenizer = llm.tokenizer
    return [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []


# --- the file -----------------------------------------------------------------------------


def _pack(header: Header, payload: bytes) -> bytes:
    encoded = msgspec.msgpack.encode(header)
    return MAGIC + len(encoded).to_bytes(2, "little") + encoded + payload


def _fingerprint(llm: LLM, window: int) -> bytes:
    """Return a digest of logits: equal here and there, or the tokens would come out wrong."""
    n = min(_FINGERPRINT_TOKENS, window)
    ids = [(1 + 7919 * i) % llm.config.vocab_size for i in range(n)]
    return hashlib.sha256(llm.logits(ids)[-1].tobytes()).digest()[:8]


def _check_origin(header: Header, llm: LLM) -> None:
    if header.model != weights_digest(llm.file)[:8]:
        raise StoreError(
            f"the file was compressed with another model than {llm.name}; give the same one"
        )
    if header.kv_type != llm.plan.kv:
        raise StoreError(
            f"the file was compressed with a {header.kv_type} KV cache and this run has "
            f"{llm.plan.kv}; give --kv {header.kv_type}"
        )
    if header.fingerprint != _fingerprint(llm, header.window):
        raise StoreError(
            "this version of capax computes other logits than the one that compressed the file; "
            "decompress it with that version"
        )


def _checked(data: bytes, header: Header) -> bytes:
    if len(data) != header.n_bytes or hashlib.sha256(data).digest()[:8] != header.checksum:
        raise StoreError("the compressed file is damaged: the text it gives has another checksum")
    return data


def _lzma_decompressed(payload: bytes, n_bytes: int) -> bytes:
    decompressor = lzma.LZMADecompressor(memlimit=256 << 20)
    try:
        return decompressor.decompress(payload, max_length=n_bytes + 1)
    except lzma.LZMAError as e:
        raise StoreError(f"the compressed file is damaged: {e}") from None


def _utf8_pieces(data: bytes) -> Iterator[str | int]:
    """Yield stretches of text, at most a MiB each, and the bytes between that are not UTF-8."""
    for match in _PIECES.finditer(data.decode("utf-8", "surrogateescape")):
        piece = match.group()
        yield ord(piece) - 0xDC00 if match.lastindex else piece


def _byte_tokens(tokenizer: Tokenizer) -> dict[int, int]:
    """Return byte -> the first token that is just that byte."""
    table: dict[int, int] = {}
    for token in range(tokenizer.vocab_size):
        content = tokenizer.token_bytes(token)
        if len(content) == 1 and token not in tokenizer.special_ids:
            table.setdefault(content[0], token)
    return table
