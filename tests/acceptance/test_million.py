"""MILLION: what its specification demands of the product-quantised cache.

Trained-model quality and speed are measured by benchmarks/million.py; here stand exactness, bytes,
the rule of positions, and relations that hold on a small random model.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from benchmarks.million_published import report
from capax import _native
from capax.engine.calibration import keys_and_values
from capax.errors import ConfigError, FileFormatError
from capax.files.config import ModelConfig
from capax.files.digest import weights_digest
from capax.files.model_file import ModelFile, open_model
from capax.kv import KVCache, PagePool, kv_method
from capax.kv.codebook import Codebook, Fit, bfloat16_bits, load_codebook
from capax.kv.million import Million
from capax.models import Model, ModelTensors, SequenceSlice, Step
from tests.kv.exact_and_coded import ExactAndCoded
from tests.models import VOCAB_SIZE, hf_model

HEAD_DIM = 64
# The largest |output - float64| of attention over codes of values up to 4, with |q . k| / sqrt(d)
# up to 50. Measured when written: 2e-5.
OUTPUT_TOLERANCE = 1e-4
# KL in nats per token between two ways of computing the same attention, through three layers.
# Measured when written: 2e-9; the codes themselves cost 0.2.
CLOSE_KL = 1e-6


# ---- 1. kernels ---------------------------------------------------------------------------------


def book(n_subspaces: int, bits: int, seed: int) -> np.ndarray:
    shape = (n_subspaces, 1 << bits, HEAD_DIM // n_subspaces)
    centroids = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    centroids[0, -1] = np.nan
    return bfloat16_bits(centroids)


def attend(
    n: int, n_group: int, n_coded: int, shapes: tuple[tuple[int, int], tuple[int, int]], score: str
) -> tuple[np.ndarray, np.ndarray]:
    """Attention of one token at n - 1, whole and by span, and the same in float64."""
    (mk, bk), (mv, bv) = shapes
    codec = _native.PQCodec(
        [book(mk, bk, 1)], [book(mv, bv, 2)], [0, 0], [0, 0], 2, HEAD_DIM, HEAD_DIM,
        by_subspace=score != "vector", uses_tables=False,
    )  # fmt: skip
    rng = np.random.default_rng(n)
    k, v = rng.standard_normal((2, n, 2, HEAD_DIM)).astype(np.float32)
    k *= 3
    tables = np.zeros((n_coded * 64 + 64, HEAD_DIM // 2), np.float32), False
    codes = np.zeros((n_coded, codec.page_nbytes), np.uint8)
    read_k, read_v = (x.astype(np.float16).astype(np.float32) for x in (k, v))
    for block in range(n_coded):
        part = slice(block * 64, block * 64 + 64)
        for head in range(2):
            at = (0, head, block * 64)
            raw = codec.encode(
                *at, read_k[part, head].copy(), read_v[part, head].copy(), tables[0], *tables
            )
            size = codec.page_nbytes // 2
            codes[block, head * size : (head + 1) * size] = np.frombuffer(raw, np.uint8)
            read_k[part, head], read_v[part, head] = codec.decode(*at, raw, tables[0], *tables)
    q = rng.standard_normal((1, 2 * n_group, HEAD_DIM)).astype(np.float32)
    q *= 400 / np.abs(np.einsum("hd,nkd->hnk", q[0], read_k)).max()
    layout = _native.KVLayout("f16", 2, HEAD_DIM, HEAD_DIM)
    n_pages = -(-n // 64)
    pool = np.zeros((n_pages, layout.layer_page_nbytes), np.uint8)
    pages = np.arange(n_pages, dtype=np.int32)
    _native.kv_append(layout, pool, 0, pages, k, v, 0)
    pool[:n_coded] = 0xFF  # what is read from codes may lie nowhere else
    outs = [
        _native.kv_attend(
            layout, pool, 0, pages, q, n - 1, HEAD_DIM**-0.5, by_span=by_span,
            codec=codec, codes=codes,
        )
        for by_span in (False, True)
    ]  # fmt: skip
    assert np.array_equal(outs[0], outs[1])
    exact = np.empty((2 * n_group, HEAD_DIM))
    for head in range(2 * n_group):
        s = read_k[:, head // n_group].astype(np.float64) @ q[0, head] / 8
        p = np.exp(s - s.max())
        exact[head] = p / p.sum() @ read_v[:, head // n_group]
    return outs[0][0], exact


@pytest.mark.parametrize("n_group", [1, 3, 8])
@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000, 8192])
def test_attention_over_codes_equals_decoding_first(n: int, n_group: int) -> None:
    """r = 1 .. 64 exact keys follow the codes; no code yet (n <= 64) is no special case."""
    out, exact = attend(n, n_group, (n - 1) // 64, ((32, 8), (32, 8)), "vector")
    assert np.abs(out - exact).max() <= OUTPUT_TOLERANCE


@pytest.mark.parametrize("n", [64, 1024])
def test_attention_over_codes_alone(n: int) -> None:
    out, exact = attend(n, 3, n // 64, ((32, 8), (32, 8)), "vector")
    assert np.abs(out - exact).max() <= OUTPUT_TOLERANCE


@pytest.mark.parametrize("score", ["vector", "subspace"])
@pytest.mark.parametrize(
    "shapes",
    [((32, 4), (32, 4)), ((32, 6), (32, 6)), ((16, 12), (16, 12)), ((32, 8), (16, 8)),
     ((16, 8), (64, 7)), ((8, 9), (32, 5))],
)  # fmt: skip
def test_any_bits_and_unlike_keys_and_values(
    shapes: tuple[tuple[int, int], tuple[int, int]], score: str
) -> None:
    out, exact = attend(600, 3, 9, shapes, score)
    assert np.abs(out - exact).max() <= OUTPUT_TOLERANCE


# ---- a small model with codebooks ---------------------------------------------------------------

N_TOKENS = 320  # five blocks
IDS = np.random.default_rng(5).integers(0, VOCAB_SIZE, N_TOKENS).astype(np.int32)
FIT_IDS = np.random.default_rng(6).integers(0, VOCAB_SIZE, (3, 448)).tolist()


@cache
def file() -> ModelFile:
    return open_model(hf_model("llama"))


def build(threads: int = 1) -> Model:
    f = file()
    return Model(
        f.config,
        ModelTensors(f),
        context_len=512,
        max_tokens=512,
        max_logit_rows=512,
        n_threads=threads,
    )


@cache
def captured() -> tuple[np.ndarray, np.ndarray]:
    return keys_and_values(file(), FIT_IDS, 1)


@cache
def codebook(
    subspaces: int = 8, bits: int = 6, scope: str = "per_layer", seed: int = 0, iterations: int = 8
) -> Codebook:
    fit = Fit(subspaces, subspaces, bits, bits, scope, iterations, seed)  # type: ignore[arg-type]
    return fit.run(*captured(), model=weights_digest(file()).hex(), text="0" * 64)


def feed(model: Model, cache_: KVCache, ids: np.ndarray = IDS, chunk: int = 512) -> np.ndarray:
    """Run tokens through the model; returns the logits of all of them."""
    logits = []
    for part in np.split(ids, range(chunk, len(ids), chunk)):
        cache_.reserve(len(part))
        rows = np.arange(len(part), dtype=np.int32)
        step = Step(part, [SequenceSlice(cache_, 0, len(part))], rows)
        logits.append(model.forward(step).copy())
    return np.concatenate(logits)


def logits_by(book: Codebook, chunk: int = 512, threads: int = 1, **options: object) -> np.ndarray:
    store = Million("at hand", **options).store(book, file(), 16)  # type: ignore[arg-type]
    return feed(build(threads), store.new(), chunk=chunk)


@cache
def full_logits(kind: str = "f16") -> np.ndarray:
    return feed(build(), PagePool(file().config, kind, 16).new())  # type: ignore[arg-type]


def kl(expected: np.ndarray, logits: np.ndarray) -> float:
    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64) - x.max(1, keepdims=True)
        return x - np.log(np.exp(x).sum(1, keepdims=True))

    p, q = log_softmax(expected), log_softmax(logits)
    return float((np.exp(p) * (p - q)).sum(1).mean())


# ---- 2. with a centroid for every vector nothing is lost ----------------------------------------


@pytest.mark.parametrize("exact_window", [True, False])
def test_a_centroid_for_every_vector_gives_the_plain_cache(exact_window: bool) -> None:
    """128 tokens of 2 heads are 256 points; 4,096 centroids hold all of them, in bfloat16."""
    ids = IDS[:128]
    pool = PagePool(file().config, "bf16", 8)
    plain = feed(build(), pool.new(), ids)
    probe = pool.new()
    feed(build(), probe, ids)
    c = file().config
    pages = [
        np.frombuffer(pool.native.read(int(page)), np.uint16).reshape(c.n_layers, 2, 2, -1)
        for page in probe.page_table
    ]
    sides = []
    for side in (0, 1):
        books = []
        for layer in range(c.n_layers):
            heads = [page[layer, :, side] for page in pages]  # [2 heads, 1024] each
            turned = [
                h.reshape(2, 16, 64).transpose(0, 2, 1) if side == 0 else h.reshape(2, 64, 16)
                for h in heads
            ]
            points = np.concatenate(turned).reshape(-1, 8, 2)
            wide = (points.astype(np.uint32) << 16).view(np.float32)
            n = np.full(8, 512, np.int32)
            n[0] = 511
            books.append(bfloat16_bits(_native.fit_clusters(wide, n, 25, 0, 1)))
        sides.append(tuple(books))
    exact = codebook()
    full_size = Codebook(
        exact.model, "per_layer", c.n_layers, 2, 16, exact.k_shape._replace(bits=9),
        exact.v_shape._replace(bits=9), *sides, {},
    )  # fmt: skip
    options = Million("at hand", window="bf16", exact_window=exact_window)
    coded = feed(build(), options.store(full_size, file(), 8).new(), ids)
    # Values are added in another order: a key of a later layer may then round to the bfloat16
    # beside it. Measured when written: see CLOSE_KL.
    assert kl(plain, coded) < CLOSE_KL
    first = options.store(full_size, file(), 8).codec
    tables = np.zeros((128, 8), np.float32)
    for layer in range(c.n_layers):
        for number, page in enumerate(pages):
            for head in range(2):
                k = page[layer, head, 0].reshape(16, 64).T.astype(np.uint32) << 16
                v = page[layer, head, 1].reshape(64, 16).astype(np.uint32) << 16
                exactly = [x.view(np.float32).copy() for x in (np.ascontiguousarray(k), v)]
                at = layer, head, 64 * number
                back = first.decode(
                    *at, first.encode(*at, *exactly, tables, tables, False), tables, tables, False
                )
                assert np.array_equal(back[0], exactly[0])
                assert np.array_equal(back[1], exactly[1])


# ---- 3. bytes -----------------------------------------------------------------------------------


def smollm2_config() -> ModelConfig:
    from tests.planning.imaginary import smollm2_config as config

    return config()


@pytest.mark.parametrize(
    ("subspaces", "bits", "per_head"), [(32, 8, 64), (32, 6, 48), (16, 8, 32), (16, 12, 48)]
)
def test_codes_take_exactly_their_bits(subspaces: int, bits: int, per_head: int) -> None:
    """Bytes of K and V together, per token and KV head of 64; float16 takes 256."""
    b = [book(subspaces, bits, s) for s in (1, 2)]
    codec = _native.PQCodec([b[0]], [b[1]], [0] * 90, [0] * 90, 3, 64, 64)
    assert codec.page_nbytes == 64 * 30 * 3 * per_head
    assert per_head == 2 * subspaces * bits // 8


def test_predicted_bytes_are_those_taken(tmp_path: Path) -> None:
    path = tmp_path / "book.safetensors"
    codebook().save(path)
    options = kv_method(f"million:codebook={path}")
    predicted = options.footprint(file().config)
    store = options.open(file(), 16, 1)
    cache_ = store.new()
    feed(build(), cache_, IDS[:319])
    taken = predicted.nbytes(319)
    assert abs(store.nbytes - taken) <= 0.01 * taken
    shape = codebook().k_shape
    assert codebook().nbytes == 2 * 3 * shape.n_subspaces * (1 << shape.bits) * shape.sub_dim * 2


# ---- 5. more bits, less loss --------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_more_centroids_or_subspaces_lose_less(seed: int) -> None:
    losses = [
        kl(full_logits(), logits_by(codebook(m, bits, seed=seed), exact_window=False))
        for m, bits in ((4, 8), (8, 4), (8, 6), (8, 8))
    ]
    assert losses[1] > losses[2] > losses[3]
    assert losses[0] > losses[3]


# ---- the rule of positions (corrections 2, 3 and 7) ---------------------------------------------


@pytest.mark.parametrize("lag", [0, 1])
def test_chunks_and_threads_change_no_bit(lag: int) -> None:
    whole = logits_by(codebook(), lag=lag)
    for chunk, threads in ((1, 1), (100, 2), (1000, 2), (33, 1)):
        assert np.array_equal(whole, logits_by(codebook(), chunk, threads, lag=lag)), chunk


@pytest.mark.parametrize("score", ["subspace", "table"])
def test_tables_give_the_bits_of_sums_by_subspace(score: str) -> None:
    """Decode steps look scores up, prefill computes them: no bit differs."""
    whole = logits_by(codebook(), score=score)
    assert np.array_equal(whole, logits_by(codebook(), 1, score=score))
    assert np.array_equal(whole, logits_by(codebook(), score="subspace"))
    assert np.abs(whole - logits_by(codebook())).max() <= 1e-4 * np.abs(whole).max()


@pytest.mark.parametrize("lag", [0, 1])
def test_the_program_equals_a_plain_reading_of_the_rule(lag: int) -> None:
    options = Million("at hand", lag=lag)
    codec = options.store(codebook(), file(), 16).codec
    oracle = ExactAndCoded(file().config, codec, window=64, lag=lag)
    logits = logits_by(codebook(), lag=lag)
    expected = feed(build(), oracle)
    assert kl(expected, logits) < CLOSE_KL
    other = feed(build(), ExactAndCoded(file().config, codec, window=64, lag=1 - lag))
    assert kl(other, logits) > 100 * CLOSE_KL


def test_less_exact_window_loses_more() -> None:
    """KL over a continuation grows when the window goes from 64 to 16 to 0 positions."""
    codec = Million("at hand").store(codebook(8, 4), file(), 16).codec
    losses = [
        kl(full_logits()[256:], feed(build(), ExactAndCoded(file().config, codec, window=r))[256:])
        for r in (64, 16, 1)
    ]
    distorted = kl(full_logits()[256:], logits_by(codebook(8, 4), exact_window=False)[256:])
    assert 0 < losses[0] < losses[1] < losses[2]
    assert losses[0] < distorted


def test_skipped_layers_are_exact() -> None:
    assert np.array_equal(logits_by(codebook(), skip_layers="0+1+2"), full_logits())
    one = logits_by(codebook(8, 4), skip_layers="0")
    assert kl(full_logits(), one) < kl(full_logits(), logits_by(codebook(8, 4)))


# ---- 7. flush -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lag", [0, 1])
def test_codes_of_decoding_equal_those_of_all_vectors_at_once(lag: int) -> None:
    store = Million("at hand", lag=lag).store(codebook(), file(), 16)
    cache_ = store.new()
    feed(build(), cache_, chunk=1)
    exact = PagePool(file().config, "f16", 16)
    reference = Million("at hand", lag=lag).store(codebook(), file(), 16).new()
    feed(build(), reference)
    n_full = N_TOKENS // 64 - lag
    read = [
        [c.store.codes.read(int(page)) for page in c.page_table[:n_full]]
        for c in (cache_, reference)
    ]
    assert n_full >= 4
    assert read[0] == read[1]
    # The first block's codes are those of the very numbers that the exact cache holds.
    plain = exact.new()
    feed(build(), plain, IDS[:64])
    page = np.frombuffer(exact.native.read(int(plain.page_table[0])), np.float16)
    k = page.reshape(3, 2, 2, -1)[0, 0, 0].reshape(16, 64).T.astype(np.float32)
    v = page.reshape(3, 2, 2, -1)[0, 0, 1].reshape(64, 16).astype(np.float32)
    tables = np.zeros((64, 8), np.float32)
    codes = store.codec.encode(0, 0, 0, k.copy(), v.copy(), tables, tables, False)
    assert read[0][0][: len(codes)] == codes


# ---- 8. the published tables --------------------------------------------------------------------


def test_the_published_tables_are_recomputed() -> None:
    quality, speed = report()
    assert len(quality) == 20
    for row in quality:
        assert row.bits_per_value == row.subspaces * row.bits / 128
    found = {(q.model, q.subspaces, q.bits): q.perplexity for q in quality}
    assert found["llama-2-7b", 64, 8] == pytest.approx(5.333, abs=5e-4)
    assert found["llama-3.1-8b", 32, 8] == pytest.approx(27.913, abs=5e-4)
    for model, per_token, first in (
        ("llama-2-7b", [1.04, 1.095, 1.21, 1.42, 1.83, 2.55],
         [2.11, 2.05, 2.07, 2.07, 1.94, 1.74]),
        ("llama-3.1-8b", [1.08, None, 1.20, 1.38, 1.87, 2.54],
         [1.43, 1.34, 1.31, 1.30, 1.26, 1.22]),
    ):  # fmt: skip
        rows = [s for s in speed if s.model == model]
        assert [s.prefill for s in rows] == [1024 << i for i in range(6)]
        for row, a, b in zip(rows, per_token, first, strict=True):
            assert a is None or row.per_token == pytest.approx(a, abs=0.01)
            assert row.first_token == pytest.approx(b, abs=0.01)


# ---- codebook files -----------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["merged", "per_layer", "per_head"])
def test_a_codebook_comes_back_from_its_file(tmp_path: Path, scope: str) -> None:
    path = tmp_path / "book.safetensors"
    made = codebook(8, 6, scope)
    made.save(path)
    read = load_codebook(path, file().config, made.model)
    assert read.digest == made.digest
    assert read.facts["iterations"] == "8"
    options = Million("at hand")
    again = feed(build(), options.store(read, file(), 16).new())
    assert np.array_equal(again, logits_by(made))


def test_fitting_is_deterministic() -> None:
    digests = {
        Fit(8, 8, 6, 6, iterations=8, seed=0)
        .run(*captured(), model="", text="", n_threads=n)
        .digest
        for n in (1, 2)
    }
    assert digests == {codebook().digest}


def test_codebooks_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "book.safetensors"
    codebook().save(path)
    other = open_model(hf_model("llama", rms_norm_eps=1e-6, intermediate_size=128))
    with pytest.raises(ConfigError, match="belong to a model with digest"):
        Million(str(path)).open(other, 4, 1)
    wider = open_model(hf_model("llama", num_hidden_layers=2))
    with pytest.raises(ConfigError, match="for a model with n_layers 3, this one has 2"):
        Million(str(path)).footprint(wider.config)
    with pytest.raises(ConfigError, match=r"subspaces is 4 and the codebook .* has 8"):
        Million(str(path), subspaces=4).footprint(file().config)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"capax-pq-1", b"capax-pq-9", "the format is"),
        (b'"post_rope": "true"', b'"post_rope": "nope"', "not marked as rotated"),
        (b'"scope": "per_layer"', b'"scope": "per_layes"', "scope is none of"),
        (b'"k_bits": "6"', b'"k_bits": "7"', "is BF16"),
        (b'"k_bits": "6"', b'"k_bits": "x"', "k_bits is 'x'"),
        (b'"k_subspaces": "8"', b'"k_subspaces": "0"', "k_subspaces is '0'"),
        (b'"k_subspaces": "8"', b'"k_subspaces": "7"', "cannot be cut into 7"),
        (b"blk.0.k", b"blk.9.k", "is missing or too many"),
        (b"BF16", b"U16 ", "unknown dtype"),
        (b"BF16", b"I16", "header|offsets|bytes|parse|JSON|dtype|is I16"),
    ],
)
def test_damaged_codebooks_are_refused(
    tmp_path: Path, old: bytes, new: bytes, message: str
) -> None:
    path = tmp_path / "book.safetensors"
    codebook().save(path)
    raw = path.read_bytes()
    assert old in raw
    path.write_bytes(raw.replace(old, new, 1).replace(b"", b""))
    with pytest.raises((FileFormatError, ConfigError), match=message):
        Million(str(path)).footprint(file().config)


def test_centroids_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "book.safetensors"
    codebook().save(path)
    raw = bytearray(path.read_bytes())
    raw[-2:] = b"\x80\x7f"  # infinity
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match="is not finite"):
        Million(str(path)).open(file(), 4, 1)
    path.write_bytes(raw[:-2])
    with pytest.raises(FileFormatError, match="incomplete or the file is damaged"):
        Million(str(path)).footprint(file().config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lag": 2}, "lag is 2"),
        ({"lag": 1, "exact_window": False}, "keeps a window"),
        ({"skip_layers": "1,2"}, "write layers as in"),
        ({"codebook": ""}, "codebook is empty"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Million(**{"codebook": "x", **options})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="layer 7"):
        Million("at hand", skip_layers="7").store(codebook(), file(), 4)
