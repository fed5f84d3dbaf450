"""The plain quantised cache: its options, its bytes, and what each choice costs in accuracy."""

from __future__ import annotations

import pytest

from capax.errors import ConfigError
from capax.files.model_file import open_model
from capax.kv import kv_method, parse_kv
from capax.kv.quantized import KiviCache
from tests.models import hf_model

CONFIG = open_model(hf_model("llama")).config


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("kivi:bits=5", "kivi:bits is 5; use 2, 3, 4 or 8"),
        ("kivi:base_bits=1", "kivi:base_bits is 1"),
        ("kivi:block=32", "kivi:block is 32; use 64 or 128 tokens"),
        ("kivi:group=0", "kivi:group is 0"),
        ("kivi:base_layers=-1", "kivi:base_layers is -1"),
        ("kivi:keys=raw", "use one of post, pre"),
    ],
)
def test_options_out_of_range_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_kv(spec)


def test_a_group_that_does_not_divide_a_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="kivi does not fit this model: values have groups of 7"):
        KiviCache(group=7).footprint(CONFIG)


def test_int4_is_its_short_name() -> None:
    assert parse_kv("int4").options == KiviCache(bits=4)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("block", [64, 128])
def test_bytes_of_a_token_follow_the_formula(bits: int, block: int) -> None:
    """Codes of K and V, and 4 bytes per channel and block for K, per token and head for V."""
    dim = CONFIG.head_dim
    per_block = 2 * block * dim * bits / 8 + 4 * dim + 4 * block
    page = CONFIG.n_layers * CONFIG.n_kv_heads * per_block
    made = KiviCache(bits=bits, block=block).codec(CONFIG)
    assert made.page_nbytes == page
    footprint = kv_method(f"kivi:bits={bits},block={block}").footprint(CONFIG)
    assert page <= footprint.page < page + 4096
    assert footprint.page_tokens == block


def test_base_layers_have_at_least_their_bits() -> None:
    def page(**options: int) -> int:
        return KiviCache(block=64, **options).codec(CONFIG).page_nbytes

    assert page(bits=2, base_layers=CONFIG.n_layers) == page(bits=4)
    assert page(bits=8, base_layers=1) == page(bits=8)
    assert page(bits=2) < page(bits=2, base_layers=1) < page(bits=4)
