"""Translate a Hugging Face `config.json` into a `ModelConfig`.

What a file asks for and capax does not run is refused by name, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping

from capax.errors import ConfigError
from capax.files.config import (
    FAMILIES,
    MAX_CONTEXT_LEN,
    MAX_D_FFN,
    MAX_D_MODEL,
    MAX_EOS_IDS,
    MAX_HEAD_DIM,
    MAX_HEADS,
    MAX_LANDMARK_BLOCK,
    MAX_LAYERS,
    MAX_VOCAB_SIZE,
    LandmarkConfig,
    ModelConfig,
    RopeConfig,
    check_one_of,
    check_whole,
)
from capax.files.config_fields import Fields, yarn_mscale


def config_from_hf(
    config: Mapping[str, object], generation_config: Mapping[str, object] | None = None
) -> ModelConfig:
    """Translate a Hugging Face `config.json`; `generation_config.json` rules on eos ids.

    Raises `ConfigError` naming the key as the file spells it.
    """
    fields = Fields(config)
    arch = config.get("model_type")
    if not isinstance(arch, str) or arch not in FAMILIES:
        raise ConfigError(
            f"model_type {arch!r:.60} is not supported; capax runs {', '.join(FAMILIES)}"
        )
    family = FAMILIES[arch]
    for key, neutral in _HF_NEUTRAL.items():
        fields.refuse_unless(key, neutral)
    d_model = fields.whole("hidden_size", MAX_D_MODEL)
    n_heads = fields.whole("num_attention_heads", MAX_HEADS)
    n_layers = fields.whole("num_hidden_layers", MAX_LAYERS)
    if not fields.has("head_dim") and d_model % n_heads:
        raise ConfigError(
            f"hidden_size is {d_model}, which num_attention_heads {n_heads} does not divide, "
            "and head_dim is missing"
        )
    head_dim = fields.whole("head_dim", MAX_HEAD_DIM, default=d_model // n_heads)
    context_len = fields.whole("max_position_embeddings", MAX_CONTEXT_LEN)
    window, sliding_layers = _hf_sliding(fields, arch, n_layers)
    eos = (generation_config or {}).get("eos_token_id")
    return ModelConfig(
        architecture=arch,
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=fields.whole("num_key_value_heads", MAX_HEADS, default=n_heads),
        head_dim=head_dim,
        d_ffn=fields.whole("intermediate_size", MAX_D_FFN),
        vocab_size=fields.whole("vocab_size", MAX_VOCAB_SIZE),
        context_len=context_len,
        norm_eps=fields.number("rms_norm_eps", 0.0, 1.0, 1e-6),
        rope=_hf_rope(fields, head_dim, context_len),
        landmark=_landmark(fields),
        sliding_window=window,
        sliding_layers=sliding_layers,
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        bos_id=_first_id(config.get("bos_token_id")),
        eos_ids=_ids(eos if eos is not None else config.get("eos_token_id")),
        name=fields.text("_name_or_path"),
    )


_HF_NEUTRAL: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "mlp_bias": (False,),
    "attention_bias": (False,),
    "partial_rotary_factor": (1.0,),
    "rope_interleaved": (False,),
    "quantization_config": (),
    "num_local_experts": (0,),
    "num_experts": (0,),
    "is_encoder_decoder": (False,),
    "logits_scaling": (1.0,),
    "attention_multiplier": (),
    "residual_multiplier": (1.0,),
    "embedding_multiplier": (1.0,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
}


def _landmark(fields: Fields) -> LandmarkConfig | None:
    """Read the three keys of models trained with landmark attention, which come together."""
    keys = ("landmark.block", "landmark.token_id", "landmark.train_ctx")
    if not any(fields.has(key) for key in keys):
        return None
    return LandmarkConfig(
        block=fields.whole(keys[0], MAX_LANDMARK_BLOCK, low=2),
        token_id=fields.whole(keys[1], MAX_VOCAB_SIZE, low=0),
        window=fields.whole(keys[2], MAX_CONTEXT_LEN),
    )


def _hf_sliding(fields: Fields, arch: str, n_layers: int) -> tuple[int | None, tuple[bool, ...]]:
    layer_types = fields.values.get("layer_types")
    is_used = fields.flag("use_sliding_window", arch == "mistral")
    if not is_used or not fields.has("sliding_window"):
        if isinstance(layer_types, list) and any(t != "full_attention" for t in layer_types):
            raise ConfigError("layer_types has sliding layers but no sliding_window is in use")
        return None, ()
    window = min(fields.whole("sliding_window", 2**40), MAX_CONTEXT_LEN)
    if isinstance(layer_types, list):
        if len(layer_types) != n_layers:
            raise ConfigError(
                f"layer_types has {len(layer_types)} entries; num_hidden_layers is {n_layers}"
            )
        for t in layer_types:
            check_one_of("layer_types", t, ("full_attention", "sliding_attention"))
        return window, tuple(t == "sliding_attention" for t in layer_types)
    if arch == "mistral":
        return window, ()
    first = fields.whole("max_window_layers", 2**40, default=n_layers, low=0)
    return window, tuple(i >= first for i in range(n_layers))


def _hf_rope(fields: Fields, head_dim: int, context_len: int) -> RopeConfig:
    """Read `rope_parameters`, or `rope_theta` and `rope_scaling` as they were called before."""
    raw: dict[str, object] = {}
    for key in ("rope_scaling", "rope_parameters"):
        value = fields.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise ConfigError(f"{key} is {value!r:.60}; an object is needed")
        raw.update(value or {})
    rope = Fields(raw)
    base = rope.number("rope_theta", 1.0, 1e15, fields.number("rope_theta", 1.0, 1e15, 10_000.0))
    rope.refuse_unless("partial_rotary_factor", (1.0,))
    rope.refuse_unless("truncate", (True,))
    kind = rope.text("rope_type") or rope.text("type") or "default"
    if kind == "default":
        return RopeConfig(base=base, dim=head_dim, style="half")
    factor = rope.number("factor", 1e-3, 1e6)
    if kind == "linear":
        return RopeConfig(base=base, dim=head_dim, style="half", scaling="linear", factor=factor)
    original = rope.whole("original_max_position_embeddings", MAX_CONTEXT_LEN, default=context_len)
    if kind == "llama3":
        return RopeConfig(
            base=base,
            dim=head_dim,
            style="half",
            scaling="llama3",
            factor=factor,
            original_context_len=original,
            low_freq_factor=rope.number("low_freq_factor", 1e-3, 1e6),
            high_freq_factor=rope.number("high_freq_factor", 1e-3, 1e6),
        )
    if kind == "yarn":
        return RopeConfig(
            base=base,
            dim=head_dim,
            style="half",
            scaling="yarn",
            factor=factor,
            original_context_len=original,
            beta_fast=rope.number("beta_fast", 1e-3, 1e6, 32.0),
            beta_slow=rope.number("beta_slow", 1e-3, 1e6, 1.0),
            attention_factor=_hf_yarn_attention_factor(rope, factor),
        )
    raise ConfigError(f"rope_type is {kind!r:.60}; capax runs default, linear, llama3 and yarn")


def _hf_yarn_attention_factor(rope: Fields, factor: float) -> float:
    mscale = rope.number("mscale", 0.0, 1e3, 0.0)
    mscale_all = rope.number("mscale_all_dim", 0.0, 1e3, 0.0)
    derived = (
        yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all)
        if mscale and mscale_all
        else yarn_mscale(factor)
    )
    return rope.number("attention_factor", 1e-3, 1e3, derived)


def _ids(value: object) -> tuple[int, ...]:
    items = value if isinstance(value, list) else [] if value is None else [value]
    if len(items) > MAX_EOS_IDS:
        raise ConfigError(f"eos_token_id has {len(items)} ids; at most {MAX_EOS_IDS} fit")
    return tuple(dict.fromkeys(check_whole("eos_token_id", i, 0, MAX_VOCAB_SIZE) for i in items))


def _first_id(value: object) -> int | None:
    if isinstance(value, list):
        value = value[0] if value else None
    return None if value is None else check_whole("bos_token_id", value, 0, MAX_VOCAB_SIZE)
