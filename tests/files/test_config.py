"""A configuration is valid and bounded, or it is a ConfigError; there is no third way."""

import dataclasses
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from capax.errors import ConfigError
from capax.files.config import (
    FAMILIES,
    MAX_CONTEXT_LEN,
    MAX_D_FFN,
    MAX_D_MODEL,
    MAX_HEAD_DIM,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_VOCAB_SIZE,
    ModelConfig,
    RopeConfig,
)
from capax.files.config_gguf import config_from_gguf
from capax.files.config_hf import config_from_hf
from capax.files.layouts import LAYOUTS, expected_tensors

HF = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "vocab_size": 320,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500_000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GGUF = {
    "general.architecture": "llama",
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 128,
    "llama.block_count": 2,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.context_length": 256,
    "llama.attention.layer_norm_rms_epsilon": 1e-6,
    "llama.rope.freq_base": 500_000.0,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}
SHAPES = {"token_embd.weight": (320, 64), "output.weight": (320, 64)}
CONFIG = config_from_hf(HF)


def test_both_spellings_give_the_same_config() -> None:
    gguf = config_from_gguf(GGUF, SHAPES)
    assert gguf.rope.style == "interleaved"
    assert dataclasses.replace(gguf, rope=CONFIG.rope) == CONFIG
    assert CONFIG.rope == RopeConfig(base=500_000.0, dim=16, style="half")
    assert (CONFIG.d_q, CONFIG.d_kv) == (64, 32)


def test_every_family_has_a_layout() -> None:
    assert LAYOUTS.keys() == FAMILIES.keys()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_heads", 0),
        ("n_kv_heads", 0),
        ("n_kv_heads", 3),
        ("head_dim", 0),
        ("n_layers", 2**31),
        ("context_len", 2**40),
        ("d_model", -64),
        ("d_ffn", 2**62),
        ("vocab_size", 0),
        ("vocab_size", 320.0),
        ("vocab_size", True),
        ("n_layers", "2"),
        ("n_layers", None),
        ("norm_eps", math.nan),
        ("norm_eps", -1e-6),
        ("norm_eps", math.inf),
        ("head_dim", 32),  # then rope.dim does not fit
        ("rope", None),
        ("sliding_window", 0),
        ("sliding_layers", (True, False)),  # without a window
        ("qkv_bias", 1),
        ("bos_id", 320),
        ("eos_ids", (1, -1)),
        ("eos_ids", tuple(range(65))),
        ("architecture", "mamba"),
        ("architecture", ["llama"]),
    ],
)
def test_fields_out_of_range_are_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        dataclasses.replace(CONFIG, **{field: value})  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base", math.nan),
        ("base", math.inf),
        ("base", 0.0),
        ("base", -10_000.0),
        ("base", "10000"),
        ("dim", 0),
        ("dim", 15),
        ("style", "neox"),
        ("scaling", "dynamic"),
        ("scaling", "yarn"),  # without the original context
        ("factor", 0.0),
        ("factor", math.nan),
        ("attention_factor", math.inf),
        ("freq_factors", (1.0,)),
        ("freq_factors", (0.0,) * 8),
        ("freq_factors", (math.nan,) * 8),
        ("original_context_len", 2**40),
    ],
)
def test_rope_fields_out_of_range_are_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"rope\.{field}"):
        dataclasses.replace(CONFIG.rope, **{field: value})  # type: ignore[arg-type]  # wrong on purpose


def test_llama3_needs_its_bands_in_order() -> None:
    with pytest.raises(ConfigError, match="high_freq_factor is 1"):
        RopeConfig(
            base=1e4, dim=8, style="half", scaling="llama3", factor=8.0,
            original_context_len=64, low_freq_factor=1.0, high_freq_factor=1.0,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "window", "layers"),
    [
        ({}, None, ()),
        ({"sliding_window": 32}, None, ()),  # llama has none
        ({"model_type": "mistral", "sliding_window": 32}, 32, ()),
        ({"model_type": "mistral", "sliding_window": None}, None, ()),
        ({"model_type": "qwen2", "sliding_window": 32}, None, ()),
        (
            {"model_type": "qwen2", "sliding_window": 32, "use_sliding_window": True,
             "max_window_layers": 1},
            32, (False, True),
        ),
        (
            {"model_type": "qwen3", "sliding_window": 32, "use_sliding_window": True,
             "layer_types": ["sliding_attention", "full_attention"]},
            32, (True, False),
        ),
    ],
)  # fmt: skip
def test_sliding_windows(
    changes: dict[str, object], window: int | None, layers: tuple[bool, ...]
) -> None:
    config = config_from_hf(HF | changes)
    assert (config.sliding_window, config.sliding_layers) == (window, layers)
    expected = [window if not layers or layers[i] else None for i in range(config.n_layers)]
    assert [config.window_of(i) for i in range(config.n_layers)] == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"base": 500_000.0, "scaling": "none"}),
        ({"rope_theta": None}, {"base": 10_000.0}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, {"base": 7.0}),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, {"scaling": "linear", "factor": 4.0}),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16}},
            {
                "scaling": "yarn",
                "beta_fast": 16.0,
                "original_context_len": 256,
                "attention_factor": 0.1 * math.log(4.0) + 1.0,
            },
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5}},
            {"attention_factor": 1.5},
        ),
    ],
)
def test_rope_spellings_of_hugging_face(
    changes: dict[str, object], expected: dict[str, object]
) -> None:
    rope = config_from_hf(HF | changes).rope
    assert {field: getattr(rope, field) for field in expected} == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mixtral"}, "'mixtral' is not supported; capax runs llama, mistral, qwen2"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_size": 66}, "hidden_size is 66, which num_attention_heads 4 does not divide"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"attention_bias": True}, "attention_bias is True, which capax does not run"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'; an object"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"eos_token_id": "2"}, "eos_token_id is '2'"),
        ({"eos_token_id": list(range(100))}, "eos_token_id has 100 ids"),
        ({"layer_types": ["sliding_attention"] * 2}, "layer_types has sliding layers but no"),
    ],
)
def test_hugging_face_values_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from_hf(HF | changes)


def test_gguf_yarn_and_old_linear_scaling() -> None:
    yarn = config_from_gguf(
        GGUF
        | {
            "llama.rope.scaling.type": "yarn",
            "llama.rope.scaling.factor": 4.0,
            "llama.rope.scaling.original_context_length": 64,
            "llama.rope.scaling.attn_factor": 2.0,
        },
        SHAPES,
    ).rope
    assert (yarn.scaling, yarn.factor, yarn.original_context_len) == ("yarn", 4.0, 64)
    assert yarn.attention_factor == pytest.approx(2.0 * (0.1 * math.log(4.0) + 1.0))
    old = config_from_gguf(GGUF | {"llama.rope.scale_linear": 2.0}, SHAPES).rope
    assert (old.scaling, old.factor) == ("linear", 2.0)


def test_gguf_ids_that_end_a_text_are_collected() -> None:
    ids = {"tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.eom_token_id": 2}
    assert config_from_gguf(GGUF | ids, SHAPES).eos_ids == (2, 7)


# --- anything goes in, a bounded model or a ConfigError comes out ---------------------

evil = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70),
    st.sampled_from([-(2**63), 2**31, 2**32, 2**40, 2**63, 2**64, 10**30]),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-1, 400) | st.text(max_size=3), max_size=5),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)
rope_objects = st.dictionaries(
    st.sampled_from(
        ["rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor",
         "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor",
         "mscale", "mscale_all_dim", "truncate", "partial_rotary_factor"]
    ),
    evil | st.sampled_from(["linear", "llama3", "yarn", "default", 8.0, 1.0, 64]),
)  # fmt: skip
hf_keys = [
    *HF, "head_dim", "sliding_window", "use_sliding_window", "max_window_layers", "layer_types",
    "tie_word_embeddings", "hidden_act", "attention_bias", "mlp_bias", "quantization_config",
    "_name_or_path", "num_experts", "attention_multiplier",
]  # fmt: skip
hf_changes = st.dictionaries(st.sampled_from(hf_keys), evil, max_size=4)
gguf_keys = [
    *GGUF, "llama.rope.dimension_count", "llama.rope.scaling.type", "llama.rope.scaling.factor",
    "llama.rope.scaling.original_context_length", "llama.attention.key_length",
    "llama.attention.value_length", "llama.vocab_size", "llama.expert_count", "general.name",
    "llama.attention.sliding_window", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.tokens",
    "llama.rope.scale_linear", "llama.rope.scaling.attn_factor", "llama.logit_scale",
]  # fmt: skip
gguf_changes = st.dictionaries(
    st.sampled_from(gguf_keys), evil | st.sampled_from(["yarn", "linear"]), max_size=4
)


def assert_bounded(config: ModelConfig) -> None:
    assert 1 <= config.n_layers <= MAX_LAYERS
    assert 1 <= config.d_model <= MAX_D_MODEL
    assert 1 <= config.n_kv_heads <= config.n_heads <= MAX_HEADS
    assert config.n_heads % config.n_kv_heads == 0
    assert 1 <= config.head_dim <= MAX_HEAD_DIM
    assert 1 <= config.d_ffn <= MAX_D_FFN
    assert 1 <= config.vocab_size <= MAX_VOCAB_SIZE
    assert 1 <= config.context_len <= MAX_CONTEXT_LEN
    assert config.rope.dim == config.head_dim
    for x in (config.norm_eps, config.rope.base, config.rope.factor, config.rope.attention_factor):
        assert isinstance(x, float)
        assert math.isfinite(x)
    assert sum(1 for _ in expected_tensors(config)) <= 20 * MAX_LAYERS


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    changes=hf_changes,
    rope=st.none() | rope_objects,
    generation=st.dictionaries(st.just("eos_token_id"), evil),
)
@example(family="llama", changes={"num_attention_heads": 0}, rope=None, generation={})
@example(family="qwen2", changes={"hidden_size": 10**30}, rope=None, generation={})
@example(family="llama", changes={}, rope={"type": "yarn", "factor": 1e-3}, generation={})
def test_any_hugging_face_config_is_bounded_or_refused(
    family: str, changes: dict[str, object], rope: object, generation: dict[str, object]
) -> None:
    raw = HF | {"model_type": family} | changes | ({} if rope is None else {"rope_scaling": rope})
    try:
        config = config_from_hf(raw, generation)
    except ConfigError:
        return
    assert_bounded(config)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    changes=gguf_changes,
    factors=st.none() | st.lists(st.floats(), min_size=7, max_size=9).map(tuple),
    shape=st.sampled_from([(320, 64), (0, 64), (2**40, 64), (320,), ()]),
)
def test_any_gguf_metadata_is_bounded_or_refused(
    changes: dict[str, object], factors: tuple[float, ...] | None, shape: tuple[int, ...]
) -> None:
    try:
        config = config_from_gguf(GGUF | changes, {"token_embd.weight": shape}, factors)
    except ConfigError:
        return
    assert_bounded(config)


def test_the_unchanged_examples_are_accepted() -> None:
    """The property tests above would pass if everything were refused."""
    for name, family in FAMILIES.items():
        if not family.is_encoder:
            assert_bounded(config_from_hf(HF | {"model_type": name}))
    assert_bounded(config_from_gguf(GGUF, SHAPES))
