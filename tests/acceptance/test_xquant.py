"""The statements of XQuant: exact when off, honest bytes, closed loops, positions alone decide."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from capax.errors import CapacityError, ConfigError, StoreError
from capax.files.config import ModelConfig, RopeConfig
from capax.files.model_file import ModelFile, open_model
from capax.files.tokenizer import load_tokenizer
from capax.kv import AttentionInput, PagePool, kv_method
from capax.kv.xquant import XQuantCaching, XQuantLayout, XQuantStore
from capax.kv.xquant_cache import XQuantCache
from capax.kv.xquant_cost import H100, closed_form_size, remat_flops, xquant_cost
from capax.models import Model, ModelTensors, SequenceSlice, Step
from capax.weights import NativeWeight
from tests.models import VOCAB_SIZE, hf_model

N_TOKENS = 700
IDS = np.random.default_rng(5).integers(0, VOCAB_SIZE, 1024).astype(np.int32)
FAMILIES = ("llama", "qwen2", "qwen3", "mistral")  # plain, biases, QK norm, sliding window
OFF = {  # nothing is rounded: float32 rows, accumulators and rms
    "x": "bits=32,mode=x",
    "x-unabsorbed": "bits=32,mode=x,absorb_v=false",
    "latent": "bits=32,mode=latent",
    "latent-unabsorbed": "bits=32,mode=latent,absorb_v=false",
    "cl-x-postnorm": "bits=32,mode=x,cross_layer=on,base_layers=1",
    "cl-x-residual": "bits=32,mode=x,cross_layer=on,base_layers=1,cl_space=residual",
    "cl-latent-postnorm": "bits=32,mode=latent,cross_layer=on,base_layers=1",
    "cl-latent-residual": "bits=32,mode=latent,cross_layer=on,base_layers=1,cl_space=residual",
    "cl-latent-base": "bits=32,mode=latent,cross_layer=on,cl_base=latent,cl_space=residual",
}
CODED = {
    "x": "bits=4,mode=x",
    "latent": "bits=4,mode=latent",
    "cl-latent": "bits=3,mode=latent,cross_layer=on,base_layers=1",
    "cl-residual": "bits=2,mode=latent,cross_layer=on,base_layers=1,cl_space=residual",
    "cl-x": "bits=3,mode=x,cross_layer=on,base_layers=1,accumulator=f32",
    "cl-latent-base": "bits=8,mode=latent,cross_layer=on,base_layers=2,cl_base=latent",
}


def options_of(spec: str) -> XQuantCaching:
    method = kv_method(f"xquant:{spec}")
    assert isinstance(method, XQuantCaching)
    return method


@cache
def family_file(family: str) -> ModelFile:
    return open_model(hf_model(family))


@cache
def build(family: str = "llama") -> Model:
    file = family_file(family)
    return Model(
        file.config,
        ModelTensors(file),
        context_len=1024,
        max_tokens=1024,
        max_logit_rows=1024,
        n_threads=1,
    )


@cache
def store_of(spec: str, family: str = "llama") -> XQuantStore:
    return options_of(spec).open(family_file(family), 256, 8)


def feed(model: Model, cache, ids: np.ndarray, chunk: int = 1000) -> np.ndarray:
    """Run tokens through the model; returns the logits of all of them."""
    logits = []
    for part in np.split(ids, range(chunk, len(ids), chunk)):
        cache.reserve(len(part))
        rows = np.arange(len(part), dtype=np.int32)
        logits.append(model.forward(Step(part, [SequenceSlice(cache, 0, len(part))], rows)).copy())
    return np.concatenate(logits)


def plain(family: str, n: int) -> np.ndarray:
    model = build(family)
    return feed(model, PagePool(model.config, "f32", 64).new(), IDS[:n])


def codes_of(cache: XQuantCache) -> list[bytes]:
    return [cache.codes_of(b).tobytes() for b in range(cache.n_tokens // 128)]


def divergence(reference: np.ndarray, logits: np.ndarray) -> float:
    """Mean KL(reference || other) in nats."""

    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64) - x.max(axis=1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=1, keepdims=True))

    p, q = log_softmax(reference), log_softmax(logits)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


# --- 1: exact when off ----------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", OFF)
def test_without_quantisation_the_plain_cache_comes_back(name: str, family: str) -> None:
    cache = store_of(OFF[name], family).new()
    assert np.abs(feed(build(family), cache, IDS[:N_TOKENS]) - plain(family, N_TOKENS)).max() < 2e-4


@pytest.mark.parametrize("name", [n for n in OFF if n.startswith("cl-latent")])
def test_latent_deltas_reconstruct_what_every_layer_sees(name: str) -> None:
    """A_l [W_k | W_v] = X_l [W_k | W_v], layer by layer, though A_l is not X_l."""
    file = open_model(hf_model("llama", num_key_value_heads=1))  # latents narrower than X
    model = Model(
        file.config,
        ModelTensors(file),
        context_len=256,
        max_tokens=256,
        max_logit_rows=1,
        n_threads=1,
    )
    store = options_of(OFF[name] + ",base_layers=1" * ("base_layers" not in OFF[name])).open(
        file, 4, 1
    )
    x_cache, cache = options_of(OFF["x"]).open(file, 4, 1).new(), store.new()
    step = np.arange(256, dtype=np.int32)[:1]
    for c in (x_cache, cache):
        c.reserve(256)
        model.forward(Step(IDS[:256], [SequenceSlice(c, 0, 256)], step))
    differs = 0.0
    for layer, matrices in enumerate(store.matrices):
        x = x_cache._read(layer, 1)
        rows = cache._normalised(layer, cache._pages[1], cache.reconstruct(layer, 1))
        for seen, true in (
            (matrices.keys(rows), matrices.keys(x)),
            (matrices.values(rows), matrices.values(x)),
        ):
            assert np.abs(seen - true).max() < 1e-4 * np.abs(true).max()
        differs = max(differs, float(np.abs(rows - x).max()))
    assert differs > 0.1


# --- 2: bytes ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", CODED)
def test_bytes_are_those_of_the_footprint_and_its_parts(name: str) -> None:
    options, config = options_of(CODED[name]), build().config
    store = options.open(family_file("llama"), 64, 1)
    before = store.nbytes
    assert before == options.footprint(config).shared
    cache = store.new()
    feed(build(), cache, IDS[:640])
    allocated = store.nbytes - before
    assert allocated == cache.nbytes == sum(p.nbytes for p in cache._pages) + cache._window.nbytes
    assert store.nbytes == options.footprint(config).nbytes(640)
    cost = xquant_cost(options, config)
    assert allocated == 640 * (cost.stored + cost.accumulator) + cost.window
    cache.close()
    assert (store.nbytes, store.n_free) == (before, 64)


def llama_config(n_layers: int, d_model: int, n_heads: int, n_kv_heads: int) -> ModelConfig:
    head_dim = d_model // n_heads
    rope = RopeConfig(base=10_000.0, dim=head_dim, style="half")
    small = family_file("llama").config
    return dataclasses.replace(
        small,
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        rope=rope,
    )


LLAMA_2_7B, LLAMA_2_7B_NBYTES = llama_config(32, 4096, 32, 32), 2 * 6_738_415_616
LLAMA_31_8B, LLAMA_31_8B_NBYTES = llama_config(32, 4096, 32, 8), 2 * 8_030_261_248


@pytest.mark.parametrize(
    ("spec", "size", "live"),
    [
        ("bits=4", 0.1328, 0.1328),
        ("bits=3", 0.1016, 0.1016),
        ("bits=2", 0.0703, 0.0703),
        ("bits=3,cross_layer=on", 0.1045, 0.1201),
        ("bits=2,cross_layer=on", 0.0762, 0.0918),
        ("bits=16", 0.5, 0.5),
    ],
)
def test_sizes_of_a_multi_head_model_are_the_published_ones(
    spec: str, size: float, live: float
) -> None:
    options = options_of(spec)
    cost = xquant_cost(options, LLAMA_2_7B)
    assert cost.of_f16 == pytest.approx(size, abs=6e-5)
    assert cost.live_of_f16 == pytest.approx(live, abs=6e-5)
    if options.bits < 16:
        closed = closed_form_size(32, options.bits, base_layers=options.n_base)
        assert cost.of_f16 == pytest.approx(closed, rel=1e-12)


@pytest.mark.parametrize(
    ("spec", "nbytes"),
    [
        ("bits=3,base_layers=3", 166.8),
        ("bits=3,cross_layer=on", 183.6),
        ("bits=3,cross_layer=on,cl_base=latent", 172.8),
        ("bits=2,base_layers=3", 123.6),
        ("bits=2,cross_layer=on", 140.4),
        ("bits=2,cross_layer=on,cl_base=latent", 129.6),
    ],
)
def test_bytes_per_token_and_layer_on_the_shape_of_smollm2(spec: str, nbytes: float) -> None:
    smollm2 = llama_config(30, 576, 9, 3)
    cost = xquant_cost(options_of(spec + ",group=64"), smollm2)
    assert cost.stored / 30 == pytest.approx(nbytes, abs=0.05)
    assert cost.accumulator == (1152 if "cross" in spec else 0)


def test_rows_are_chosen_by_what_is_narrower() -> None:
    auto = XQuantCaching()
    assert "X itself" in auto.choice(LLAMA_2_7B)
    assert "latents" in auto.choice(LLAMA_31_8B)
    assert not auto.is_latent(LLAMA_2_7B)
    assert auto.is_latent(LLAMA_31_8B)


# --- 6: error feedback, 7: monotone -----------------------------------------------------


def distorted(spec: str) -> float:
    """KL to the plain cache with every token read from codes, own block included."""
    options = dataclasses.replace(options_of(spec), exact_window=False)
    cache = options.open(family_file("llama"), 8, 1).new()
    n = 640
    return divergence(plain("llama", n), feed(build(), cache, IDS[:n], 640))


@pytest.mark.parametrize("spec", ["mode=x", "mode=latent", "mode=x,cross_layer=on,base_layers=1"])
def test_more_bits_are_closer(spec: str) -> None:
    kl = [distorted(f"{spec},bits={bits},base_bits={max(bits, 4)}") if "cross" in spec else
          distorted(f"{spec},bits={bits}") for bits in (8, 4, 3, 2)]  # fmt: skip
    assert kl == sorted(kl)
    assert kl[0] < 0.1 * kl[1]


def test_without_feedback_errors_add_up_over_layers() -> None:
    """The reconstruction's error stays that of one delta; with true deltas it grows by layer."""
    spec = "mode=x,cross_layer=on,base_layers=1,bits=3,base_bits=3,cl_space=residual"
    x = store_of("mode=x,cross_layer=on,base_layers=1,bits=32,cl_space=residual").new()
    feed(build(), x, IDS[:128])
    errors = {}
    for feedback in (True, False):
        options = dataclasses.replace(options_of(spec), feedback=feedback)
        store = options.open(family_file("llama"), 4, 1)
        cache = store.new()
        rng = np.random.default_rng(0)
        rows = rng.standard_normal((128, store.config.d_model)).astype(np.float32)
        cache.reserve(128)
        error = []
        for layer in range(store.config.n_layers):
            rows = rows + 0.5 * rng.standard_normal(rows.shape).astype(np.float32)
            inputs = fake_inputs(rows)
            cache.append(layer, inputs, np.arange(128, dtype=np.int32))
            seen = cache.reconstruct(layer, 0).astype(np.float32)
            error.append(float(np.sqrt(np.mean((seen - rows) ** 2))))
        errors[feedback] = error
    assert errors[True][-1] < 0.75 * errors[False][-1]
    assert errors[True][-1] < errors[True][0]  # a base layer's error is not carried along
    assert errors[False][-1] > errors[False][0]


def fake_inputs(rows: np.ndarray) -> AttentionInput:
    return AttentionInput(rows, rows, lambda: rows, lambda: rows, lambda k, _: k)


# --- 8: positions alone decide ----------------------------------------------------------


@pytest.mark.parametrize("name", CODED)
def test_chunks_change_neither_codes_nor_logits(name: str) -> None:
    store, model = store_of(CODED[name]), build()
    whole = store.new()
    logits = feed(model, whole, IDS[:N_TOKENS])
    assert np.abs(logits - plain("llama", N_TOKENS))[300:].max() > 1e-3  # codes are read
    for chunk in (1, 100):
        cache = store.new()
        assert np.array_equal(logits, feed(model, cache, IDS[:N_TOKENS], chunk)), chunk
        assert codes_of(cache) == codes_of(whole)


class Watched(XQuantCache):
    """Keeps what was appended, and the accumulators as they were written."""

    def __init__(self, store: XQuantStore) -> None:
        super().__init__(store)
        self.x: dict[int, list[np.ndarray]] = {}
        self.h: dict[int, list[np.ndarray]] = {}
        self.written: dict[tuple[int, int], np.ndarray] = {}

    def append(self, layer: int, inputs: AttentionInput, positions: np.ndarray) -> None:
        self.x.setdefault(layer, []).append(inputs.x().copy())
        self.h.setdefault(layer, []).append(inputs.h().copy())
        super().append(layer, inputs, positions)

    def _encode(self, layer: int, block: int, at: slice) -> None:
        super()._encode(layer, block, at)
        if self._store.options.cross_layer:
            self.written[layer, block] = self._accumulator(self._pages[block]).copy()


@pytest.mark.parametrize("name", CODED)
def test_a_long_decode_writes_the_codes_of_one_call(name: str) -> None:
    """1,000 generated tokens, seven blocks and more: the same as encoding all rows at once."""
    store, model = store_of(CODED[name]), build()
    cache = Watched(store)
    token = IDS[:1]
    for _ in range(1000):
        cache.reserve(1)
        step = Step(token, [SequenceSlice(cache, 0, 1)], np.zeros(1, np.int32))
        token = model.forward(step).argmax(axis=1).astype(np.int32)
    at_once = Watched(store)
    at_once.reserve(1000)
    for layer in range(model.config.n_layers):
        x, h = np.concatenate(cache.x[layer]), np.concatenate(cache.h[layer])
        inputs = AttentionInput(x, x, lambda x=x: x, lambda h=h: h, lambda k, _: k)
        at_once.append(layer, inputs, np.arange(1000, dtype=np.int32))
    at_once.advance(1000)
    assert len(codes_of(cache)) == 7
    assert codes_of(cache) == codes_of(at_once)
    for (layer, block), accumulator in cache.written.items():
        assert np.array_equal(accumulator, cache.reconstruct(layer, block))
        assert np.array_equal(accumulator, at_once.written[layer, block])


@pytest.mark.parametrize("name", ["latent", "cl-residual"])
def test_forks_truncation_and_records_change_no_bit(name: str) -> None:
    store, model = store_of(CODED[name]), build()
    logits = feed(model, store.new(), IDS[:400])
    cache = store.new()
    feed(model, cache, IDS[:300])
    twin, restored = cache.fork(), store.new()
    restored.load(cache.export())
    feed(model, twin, IDS[:200][::-1].copy())
    for one in (cache, restored):
        assert np.array_equal(feed(model, one, IDS[300:400], 7), logits[300:])
    for n in (390, 384, 128, 0):
        cache.truncate(n)
        assert np.array_equal(feed(model, cache, IDS[n:400], 90), logits[n:])
    with pytest.raises(ValueError, match="of the tokens from 128 on only codes are left"):
        cache.truncate(200)
    record = restored.export()
    for damaged, problem in (
        (record[:9], "no header"),
        (record[:-1], "not"),
        (record[:-1] + bytes([record[-1] ^ 1]), "damaged"),
        (b"x" + record[1:], "another model"),
    ):
        with pytest.raises(StoreError, match=problem):
            restored.load(damaged)
    assert restored.n_tokens == 400


def test_a_step_that_fails_leaves_the_window_as_it_was() -> None:
    store, model = store_of(CODED["latent"]), build()
    logits = feed(model, store.new(), IDS[:300])
    cache = store.new()
    feed(model, cache, IDS[:100])
    cache.reserve(100)
    junk = np.ones((100, model.config.d_model), np.float32)
    cache.append(0, fake_inputs(junk), np.arange(100, 200, dtype=np.int32))  # and no more
    assert np.array_equal(feed(model, cache, IDS[100:300]), logits[100:])


def test_room_is_counted_and_whole_blocks_are_asked_for() -> None:
    store = XQuantCaching().open(family_file("llama"), 2, 1)
    with pytest.raises(CapacityError, match="3 more pages of 128 tokens"):
        store.new().reserve(300)
    no_window = XQuantCaching(exact_window=False).open(family_file("llama"), 2, 1)
    with pytest.raises(ValueError, match="whole blocks of 128"):
        no_window.new().reserve(100)
    for spec, problem in (
        ("bits=5", "use 2, 3, 4, 8, 16 or 32"),
        ("group=20", "multiple of 16"),
        ("cl_space=residual", "of no use without cross_layer"),
        ("cross_layer=on,base_layers=0", "need 1 to begin with"),
    ):
        with pytest.raises(ConfigError, match=problem):
            options_of(spec)


# --- 9: cost -----------------------------------------------------------------------------


def test_break_even_lengths_are_the_published_ones() -> None:
    for spec, config, nbytes, tokens in (
        ("bits=4", LLAMA_2_7B, LLAMA_2_7B_NBYTES, 1_853),
        ("bits=4", LLAMA_31_8B, LLAMA_31_8B_NBYTES, 35_325),
    ):
        cost = xquant_cost(options_of(spec), config)
        assert cost.break_even_tokens(nbytes, H100) == pytest.approx(tokens, rel=0.01)
    deltas = xquant_cost(options_of("cross_layer=on,cl_base=latent"), LLAMA_31_8B)
    assert deltas.break_even_tokens(LLAMA_31_8B_NBYTES) == pytest.approx(4_400, rel=0.01)


def test_operations_per_token_on_the_shape_of_smollm2() -> None:
    smollm2 = llama_config(30, 576, 9, 3)
    latent = XQuantLayout(XQuantCaching(), smollm2)
    assert 1024 * remat_flops(latent, absorbed=False) == pytest.approx(4.5e9, rel=0.02)
    assert 1024 * remat_flops(latent, absorbed=True) == pytest.approx(2.3e9, rel=0.05)
    deltas = XQuantLayout(options_of("cross_layer=on,cl_base=latent"), smollm2)
    assert 1024 * remat_flops(deltas, absorbed=False) == pytest.approx(27e9, rel=0.02)


# --- the real model ------------------------------------------------------------------------


class Dequantised(ModelTensors):
    """Matrices as float32: the program then computes keys and values from floats, as we do."""

    def __init__(self, model: ModelFile) -> None:
        super().__init__(model)
        for name, weight in self._matrices.items():
            rows = weight.dequantize()
            data = rows.view(np.uint8).reshape(-1)
            self._matrices[name] = NativeWeight.from_bytes(data, "F32", *rows.shape)


@pytest.mark.slow
def test_on_the_real_model_nothing_changes_when_off_and_relations_hold_when_on(
    smollm2: Path,
) -> None:
    file = open_model(smollm2)
    model = Model(
        file.config,
        Dequantised(file),
        context_len=512,
        max_tokens=256,
        max_logit_rows=256,
        n_threads=2,
    )
    text = (Path(__file__).parents[2] / "docs" / "guarantees.md").read_text(encoding="utf-8")
    ids = np.array(load_tokenizer(file).encode(text)[:256], np.int32)

    def greedy(cache) -> tuple[np.ndarray, list[int]]:
        logits = feed(model, cache, ids)
        tokens = [int(logits[-1].argmax())]
        for _ in range(63):
            tokens.append(int(feed(model, cache, np.array(tokens[-1:], np.int32))[0].argmax()))
        return logits, tokens

    expected, tokens = greedy(PagePool(file.config, "f32", 16).new())
    for spec in (OFF["x"], OFF["latent"], "bits=32,mode=x,cross_layer=on,cl_space=residual"):
        logits, own_tokens = greedy(options_of(spec).open(file, 8, 1).new())
        assert np.abs(logits - expected).max() < 2e-3, spec
        assert own_tokens == tokens, spec

    def kl(spec: str) -> float:
        store = kv_method(f"{spec},exact_window=false").open(file, 8, 1)
        return divergence(expected, feed(model, store.new(), ids))

    latent = {b: kl(f"xquant:group=64,mode=latent,bits={b}") for b in (8, 4, 2)}
    assert latent[8] <= 0.001 < latent[4] < latent[2]
    assert latent[4] < 0.8 * kl("kivi:group=64,bits=4")
    assert latent[4] < 0.9 * kl("kivi:group=64,bits=4,keys=pre")
    deltas = kl("xquant:group=64,cross_layer=on,bits=2")
    assert deltas < 0.8 * kl("xquant:group=64,bits=2,base_layers=3")
    assert deltas < 0.5 * kl("kivi:group=64,bits=2,keys=pre,base_layers=3")


RSS = """
import sys
import numpy as np
from capax.files.model_file import open_model
from capax.kv import kv_method
from capax.models import Model, ModelTensors, SequenceSlice, Step
file = open_model(sys.argv[1])
model = Model(file.config, ModelTensors(file), context_len=8192, max_tokens=256, max_logit_rows=1,
              n_threads=1)
cache = kv_method(sys.argv[2]).open(file, 128, 1).new()
ids, row = np.zeros(256, np.int32), np.zeros(1, np.int32)
for _ in range(32):
    cache.reserve(256)
    model.forward(Step(ids, [SequenceSlice(cache, 0, 256)], row))
assert cache.n_tokens == 8192
print(next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) * 1024)
"""


@pytest.mark.slow
def test_peak_memory_at_8192_tokens_shows_that_no_keys_or_values_are_kept() -> None:
    shape = {
        "hidden_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_hidden_layers": 4,
        "max_position_embeddings": 8192,
    }
    path = hf_model("llama", **shape)
    options = options_of("bits=4,absorb_v=false")
    config = open_model(path).config
    full = kv_method("f16").footprint(config).nbytes(8192)
    ours = options.footprint(config).nbytes(8192)
    peak = {}
    for spec in ("f16", "xquant:bits=4,absorb_v=false"):
        command = [sys.executable, "-c", RSS, str(path), spec]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peak[spec] = int(done.stdout)
    assert peak["f16"] - peak["xquant:bits=4,absorb_v=false"] > 0.6 * (full - ours) > 10 << 20
