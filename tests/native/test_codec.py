"""The uniform codec against numpy, and what its bindings and coded steps refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from capax import _native
from capax.files.model_file import open_model
from capax.kv import CodedStore
from capax.kv.quantized import KiviCache
from capax.models import Model, ModelTensors
from tests.models import hf_model

K_DIM = 16


def codec(**changed: Any) -> _native.UniformCodec:
    options: dict[str, Any] = {
        "k_bits": [4, 3],
        "v_bits": [4, 2],
        "n_kv_heads": 2,
        "k_dim": K_DIM,
        "v_dim": 24,
        "block_tokens": 128,
        "k_by_token": False,
        "v_by_token": True,
        "group": 24,
    }
    options.update(changed)
    return _native.UniformCodec(**options)


def tables(n: int, dim: int = K_DIM, factor: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    angles = np.random.default_rng(3).uniform(0, 6, (n, dim // 2))
    return (np.cos(angles) * factor).astype(np.float32), (np.sin(angles) * factor).astype(
        np.float32
    )


def there_and_back(made: _native.Codec, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
    rotary = tables(2 * made.block_tokens, made.k_dim, factor=1.5)
    at = made.n_layers - 1, 1, made.block_tokens
    return made.decode(*at, made.encode(*at, k, v, *rotary, False), *rotary, False)


def quantised(x: np.ndarray, bits: int, axis: int, group: int) -> np.ndarray:
    """Quantise groups of `group` values along `axis` in numpy, scale and zero in f16."""
    x = np.moveaxis(x, axis, -1)
    groups = x.reshape(*x.shape[:-1], -1, group)
    low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
    top = np.float32(2**bits - 1)
    s = ((high - low) / top).astype(np.float16).astype(np.float32)
    z = low.astype(np.float16).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        q = np.where(s > 0, np.clip(np.round((groups - z) / s), 0, top), 0)
    back = q.astype(np.float64) * s + z
    return np.moveaxis(back.astype(np.float32).reshape(x.shape), -1, axis)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("k_by_token", "v_by_token", "group"), [(False, True, 32), (True, True, 16), (True, False, 32)]
)
@pytest.mark.parametrize("block", [64, 128])
def test_codes_stand_for_what_numpy_quantises(
    bits: int, k_by_token: bool, v_by_token: bool, group: int, block: int
) -> None:
    made = codec(
        k_bits=[bits],
        v_bits=[bits],
        k_dim=32,
        v_dim=32,
        block_tokens=block,
        k_by_token=k_by_token,
        v_by_token=v_by_token,
        group=group,
    )
    rng = np.random.default_rng(bits)
    k, v = (rng.standard_normal((2, block, 32)) * rng.uniform(0, 9, 32)).astype(np.float32)
    k[:, 4], v[9] = 0.25, 0.0  # groups without extent
    back_k, back_v = there_and_back(made, k, v)
    for x, back, by_token in ((k, back_k, k_by_token), (v, back_v, v_by_token)):
        expected = quantised(x, bits, *((1, group) if by_token else (0, block)))
        assert np.array_equal(back, expected)


def test_bits_are_packed() -> None:
    """Codes of 128 tokens, and 4 bytes for each channel (keys) or token and group (values)."""
    for group in (8, 16):
        made = codec(group=group, k_dim=16, v_dim=16) if group == 16 else codec(group=24, v_dim=24)
        channels = 16 if group == 16 else 32  # 24 are padded to vectors of 16
        keys = [128 * 16 * bits // 8 + 4 * 16 for bits in (4, 3)]
        values = [128 * channels * bits // 8 + 4 * 128 for bits in (4, 2)]
        assert made.page_nbytes == 2 * sum(keys + values)


def test_keys_turned_back_come_out_rotated() -> None:
    rng = np.random.default_rng(0)
    k = rng.standard_normal((128, K_DIM)).astype(np.float32)
    v = rng.standard_normal((128, 24)).astype(np.float32)
    for interleaved in (False, True):
        made = codec(k_bits=[8], v_bits=[8], group=24, before_rotation=True)
        rotary = tables(128, factor=1.5)
        codes = made.encode(0, 0, 0, k, v, *rotary, interleaved)
        back, _ = made.decode(0, 0, 0, codes, *rotary, interleaved)
        assert np.abs(back - k).max() < 0.05
        other, _ = made.decode(0, 0, 0, codes, *rotary, not interleaved)
        assert np.abs(other - k).max() > 0.5


def test_a_hadamard_rotation_spreads_an_outlier() -> None:
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((2, 64, 16)).astype(np.float32)
    k[:, 3] += 100
    plain, rotated = (
        codec(
            k_bits=[4], v_bits=[4], v_dim=16, block_tokens=64, k_by_token=True, group=16, hadamard=h
        )
        for h in (False, True)
    )
    errors = [np.abs(there_and_back(made, k, v)[0] - k).mean() for made in (plain, rotated)]
    assert errors[1] < 0.75 * errors[0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k_bits": [5, 4]}, "keys have 5 bits; use 2, 3, 4 or 8"),
        ({"v_bits": [4]}, "as many layers"),
        ({"k_bits": [], "v_bits": []}, "as many layers"),
        ({"group": 7}, "values have groups of 7 channels; a head has 24"),
        ({"group": 0}, "values have groups of 0 channels"),
        ({"block_tokens": 96}, "a block of 96 tokens; use 64 or 128"),
        ({"block_tokens": 2**62}, "a block of 4611686018427387904 tokens"),
        ({"k_dim": 15}, "heads of 15 and 24 channels"),
        ({"v_dim": 1025, "v_by_token": False}, "heads of 16 and 1025 channels"),
        ({"n_kv_heads": 0, "group": 24}, "n_kv_heads 0 is not in 1..4096"),
        ({"hadamard": True, "group": 24}, "a power of two channels, not 16 and 24"),
    ],
)
def test_options_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codec(**changed)


def test_arrays_that_do_not_fit_a_codec_are_refused() -> None:
    made = codec(group=24)
    k, v = np.zeros((128, K_DIM), np.float32), np.zeros((128, 24), np.float32)
    rotary = tables(256)
    for arguments, message in (
        ((2, 0, 0, k, v, *rotary), "layer 2 is not in 0..1"),
        ((-1, 0, 0, k, v, *rotary), "layer -1"),
        ((0, 2, 0, k, v, *rotary), "KV head 2 is not in 0..1"),
        ((0, 0, 64, k, v, *rotary), "position 64 does not begin a block of 128"),
        ((0, 0, 256, k, v, *rotary), "reach position 383"),
        ((0, 0, 0, k[:64], v, *rotary), r"k must be \[128, 16\]"),
        ((0, 0, 0, k, v[:, :8].copy(), *rotary), r"v must be \[128, 24\]"),
        ((0, 0, 0, k, v, rotary[0][:, :4].copy(), rotary[1]), "rotary tables must be"),
    ):
        with pytest.raises(ValueError, match=message):
            made.encode(*arguments, False)
    with pytest.raises(ValueError, match="codes have 3 bytes"):
        made.decode(0, 0, 0, b"abc", *rotary, False)
    codes = made.encode(0, 0, 0, k, v, *rotary, False)
    with pytest.raises(ValueError, match="does not score codes"):
        made.score(0, 0, 0, codes, *rotary, False, np.zeros((1, K_DIM), np.float32))


class Coded:
    """A model, a store of four blocks, and the arguments of a step that runs."""

    def __init__(self, n_tokens: int = 70) -> None:
        file = open_model(hf_model("llama"))
        self.model = Model(
            file.config,
            ModelTensors(file),
            context_len=256,
            max_tokens=256,
            max_logit_rows=1,
            n_threads=1,
        )
        self.store = KiviCache(block=64).store(file.config, 4)
        self.cache = self.store.new()
        self.cache.reserve(n_tokens)
        exact, codes = self.cache.tables(n_tokens)
        self.arguments: dict[str, Any] = {
            "begin": 0,
            "end": self.model.native.n_operations,
            "tokens": np.arange(n_tokens, dtype=np.int32),
            "bounds": np.array([[0, n_tokens, 0]], np.int32),
            "page_tables": [exact.copy()],
            "pool": self.store.exact.native,
            "layout": self.store.exact.layout,
            "logit_rows": np.zeros(1, np.int32),
            "samplers": [],
            "codec": self.store.codec,
            "code_pool": self.store.codes,
            "code_tables": [codes.copy()],
            "lag": 0,
        }

    def run(self, **changed: Any) -> None:
        self.model.native.run(**{**self.arguments, **changed})


def test_page_tables_of_a_coded_step_are_checked() -> None:
    coded = Coded()
    coded.run()
    free = next(p for p in range(4) if p not in coded.arguments["code_tables"][0])
    for page in (-1, 4, 2**31 - 1, -(2**31), free):
        with pytest.raises(ValueError, match=r"code page -?\d+ of sequence 0 (is outside|is free)"):
            coded.run(code_tables=[np.array([page, 0], np.int32)])
    # Page 0 only passes through; the window begins at page 1.
    assert coded.arguments["page_tables"][0][0] == -1
    for page in (-1, -2, 4, 2**31 - 1, -(2**31)):
        with pytest.raises(ValueError, match=r"page -?\d+ of sequence 0 (is outside|is free)"):
            coded.run(page_tables=[np.array([-1, page], np.int32)])
    with pytest.raises(ValueError, match="code page table of sequence 0 has 0 pages; its 70"):
        coded.run(code_tables=[np.zeros(0, np.int32)])
    with pytest.raises(ValueError, match="the page table of sequence 0 has 1 pages"):
        coded.run(page_tables=[np.zeros(1, np.int32)])
    with pytest.raises(ValueError, match="a table of them for each sequence"):
        coded.run(code_tables=[])
    with pytest.raises(ValueError, match="code pages of another pool"):
        coded.run(code_pool=coded.store.exact.native)
    with pytest.raises(ValueError, match="a coded cache needs exact pages"):
        coded.run(code_pool=None)


def test_a_page_twice_in_a_table_of_codes_is_refused() -> None:
    coded = Coded(n_tokens=140)
    page = coded.arguments["code_tables"][0][0]
    with pytest.raises(ValueError, match="is in its table twice"):
        coded.run(code_tables=[np.array([page, page, page], np.int32)])


def test_a_codec_of_another_model_is_refused() -> None:
    coded = Coded()
    config = coded.store.config
    dim = config.head_dim
    other = KiviCache(block=64).codec(config)
    few = _native.UniformCodec([4], [4], config.n_kv_heads, dim, dim, 64, False, True, dim)
    with pytest.raises(ValueError, match="the codec is for 1 layers"):
        coded.run(codec=few)
    wide = _native.UniformCodec(
        [8] * config.n_layers,
        [8] * config.n_layers,
        config.n_kv_heads,
        dim,
        dim,
        128,
        False,
        True,
        dim,
    )
    with pytest.raises(ValueError, match="have no room for codes"):
        coded.run(codec=wide)
    with pytest.raises(ValueError, match="lag -2 is not -1 or more"):
        coded.run(codec=other, lag=-2)
    layout = _native.KVLayout("int8", config.n_kv_heads, dim, dim)
    with pytest.raises(ValueError, match="exact pages of a coded cache are f32, f16 or bf16"):
        coded.run(layout=layout)


def test_a_store_refuses_windows_it_cannot_keep() -> None:
    config = Coded().store.config
    made = KiviCache(block=64).codec(config)
    with pytest.raises(ValueError, match="lag -2 must be -1 or more"):
        CodedStore(config, made, 4, "test", lag=-2)
    with pytest.raises(ValueError, match="'int8' a float type"):
        CodedStore(config, made, 4, "test", exact="int8")
