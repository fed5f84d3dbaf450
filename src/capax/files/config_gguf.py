"""Translate GGUF metadata into a `ModelConfig`.

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
    MAX_HEAD_DIM,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_VOCAB_SIZE,
    ModelConfig,
    RopeConfig,
    RopeScaling,
    check_whole,
)
from capax.files.config_fields import Fields, yarn_mscale


def config_from_gguf(
    metadata: Mapping[str, object],
    tensor_shapes: Mapping[str, tuple[int, ...]],
    freq_factors: tuple[float, ...] | None = None,
) -> ModelConfig:
    """Translate GGUF metadata; tensors tell what the metadata leaves open.

    `tensor_shapes` maps tensor names to row-major shapes. `freq_factors` are the numbers of
    the tensor `rope_freqs.weight`, if the file has it. Raises `ConfigError`.
    """
    fields = Fields(metadata)
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in FAMILIES or not FAMILIES[arch].has_gguf_name:
        known = ", ".join(f.name for f in FAMILIES.values() if f.has_gguf_name)
        raise ConfigError(
            f"general.architecture {arch!r:.60} is not supported; capax runs GGUF models of {known}"
        )
    family = FAMILIES[arch]
    for key, neutral in _GGUF_NEUTRAL.items():
        fields.refuse_unless(f"{arch}.{key}", neutral)
    d_model = fields.whole(f"{arch}.embedding_length", MAX_D_MODEL)
    n_heads = fields.whole(f"{arch}.attention.head_count", MAX_HEADS)
    n_layers = fields.whole(f"{arch}.block_count", MAX_LAYERS)
    head_dim = _gguf_head_dim(fields, arch, d_model, n_heads)
    context_len = fields.whole(f"{arch}.context_length", MAX_CONTEXT_LEN)
    window = fields.whole(f"{arch}.attention.sliding_window", 2**32, default=0, low=0)
    return ModelConfig(
        architecture=arch,
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=fields.whole(f"{arch}.attention.head_count_kv", MAX_HEADS, default=n_heads),
        head_dim=head_dim,
        d_ffn=fields.whole(f"{arch}.feed_forward_length", MAX_D_FFN),
        vocab_size=_gguf_vocab_size(fields, arch, tensor_shapes),
        context_len=context_len,
        norm_eps=fields.number(f"{arch}.attention.layer_norm_rms_epsilon", 0.0, 1.0),
        rope=_gguf_rope(fields, arch, head_dim, context_len, freq_factors),
        sliding_window=min(window, MAX_CONTEXT_LEN) or None,
        qkv_bias=family.qkv_bias or "blk.0.attn_q.bias" in tensor_shapes,
        qk_norm=family.qk_norm,
        tied_embeddings="output.weight" not in tensor_shapes,
        bos_id=_gguf_token_id(metadata, "tokenizer.ggml.bos_token_id"),
        eos_ids=_gguf_eos_ids(metadata),
        name=fields.text("general.name"),
        license=fields.text("general.license"),
    )


# Values that change nothing; anything else is a model this code would run wrongly.
_GGUF_NEUTRAL: dict[str, tuple[object, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "logit_scale": (1.0, 0.0),
    "residual_scale": (1.0, 0.0),
    "embedding_scale": (1.0, 0.0),
    "attention.scale": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.causal": (True,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "use_parallel_residual": (False,),
    "attention.sliding_window_pattern": (),
    "attention.temperature_scale": (0.0,),
}


def _gguf_head_dim(fields: Fields, arch: str, d_model: int, n_heads: int) -> int:
    key = f"{arch}.attention.key_length"
    if not fields.has(key) and d_model % n_heads:
        raise ConfigError(
            f"{arch}.embedding_length is {d_model}, which {arch}.attention.head_count {n_heads} "
            f"does not divide, and {key} is missing"
        )
    head_dim = fields.whole(key, MAX_HEAD_DIM, default=d_model // n_heads)
    value_key = f"{arch}.attention.value_length"
    value_dim = fields.whole(value_key, MAX_HEAD_DIM, default=head_dim)
    if value_dim != head_dim:
        raise ConfigError(
            f"{value_key} is {value_dim} but keys have {head_dim}; heads of two sizes "
            "are not supported"
        )
    return head_dim


def _gguf_vocab_size(
    fields: Fields, arch: str, tensor_shapes: Mapping[str, tuple[int, ...]]
) -> int:
    """Take the rows of the embedding; what the metadata says must agree with them."""
    shape = tensor_shapes.get("token_embd.weight")
    if shape is None or len(shape) != 2:
        raise ConfigError(
            "tensor 'token_embd.weight' is missing or no matrix; the vocabulary's size is its rows"
        )
    vocab_size = shape[0]
    if fields.whole(f"{arch}.vocab_size", 2**32, default=vocab_size) != vocab_size:
        raise ConfigError(
            f"{arch}.vocab_size is {fields.values[f'{arch}.vocab_size']} but "
            f"'token_embd.weight' has {vocab_size} rows"
        )
    tokens = fields.values.get("tokenizer.ggml.tokens")
    if tokens is not None and hasattr(tokens, "__len__") and len(tokens) > vocab_size:
        raise ConfigError(
            f"tokenizer.ggml.tokens has {len(tokens)} tokens but 'token_embd.weight' has "
            f"only {vocab_size} rows"
        )
    return vocab_size


def _gguf_rope(
    fields: Fields,
    arch: str,
    head_dim: int,
    context_len: int,
    freq_factors: tuple[float, ...] | None,
) -> RopeConfig:
    prefix = f"{arch}.rope."
    stated = fields.text(f"{prefix}scaling.type") or "none"
    # Files from before 2023-09 only say by how much positions shrink.
    old_factor = fields.number(f"{prefix}scale_linear", 0.0, 1e6, 0.0)
    if stated == "none" and old_factor not in (0.0, 1.0):
        stated = "linear"
    scaling = _GGUF_SCALINGS.get(stated)
    if scaling is None:
        raise ConfigError(
            f"{prefix}scaling.type is {stated!r:.60}; capax runs {', '.join(_GGUF_SCALINGS)} "
            "(llama3 scaling comes as the tensor rope_freqs.weight)"
        )
    factor = fields.number(f"{prefix}scaling.factor", 0.0, 1e6, old_factor)
    factor = factor if scaling != "none" and factor > 0 else 1.0
    attention_factor = 1.0
    original: int | None = None
    if scaling == "yarn":
        given = fields.number(f"{prefix}scaling.attn_factor", 1e-3, 1e3, 1.0)
        attention_factor = given * yarn_mscale(factor)
        original = fields.whole(
            f"{prefix}scaling.original_context_length", MAX_CONTEXT_LEN, default=context_len
        )
        fields.refuse_unless(f"{prefix}scaling.yarn_log_multiplier", (0.0,))
        fields.refuse_unless(f"{prefix}scaling.yarn_ext_factor", (1.0, -1.0))
    return RopeConfig(
        base=fields.number(f"{prefix}freq_base", 1.0, 1e15, 10_000.0),
        dim=fields.whole(f"{prefix}dimension_count", MAX_HEAD_DIM, default=head_dim),
        style=FAMILIES[arch].gguf_rope_style,
        scaling=scaling,
        factor=factor,
        original_context_len=original,
        beta_fast=fields.number(f"{prefix}scaling.yarn_beta_fast", 1e-3, 1e6, 32.0),
        beta_slow=fields.number(f"{prefix}scaling.yarn_beta_slow", 1e-3, 1e6, 1.0),
        attention_factor=attention_factor,
        freq_factors=freq_factors,
    )


_GGUF_SCALINGS: dict[str, RopeScaling] = {"none": "none", "linear": "linear", "yarn": "yarn"}


def _gguf_token_id(metadata: Mapping[str, object], key: str) -> int | None:
    value = metadata.get(key)
    return None if value is None else check_whole(key, value, 0, MAX_VOCAB_SIZE)


def _gguf_eos_ids(metadata: Mapping[str, object]) -> tuple[int, ...]:
    ids = (_gguf_token_id(metadata, f"tokenizer.ggml.{k}_token_id") for k in ("eos", "eot", "eom"))
    return tuple(dict.fromkeys(i for i in ids if i is not None))
