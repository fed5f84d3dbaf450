"""What a model is: one validated configuration, whatever file it came from.

`ModelConfig` and `RopeConfig` state every relation between sizes once, in their
constructors; code behind them divides, allocates and loops without asking again.
`config_from_gguf` and `config_from_hf` translate the two spellings found in files. What
a file asks for and capax does not run is refused by name, never ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from capax.errors import ConfigError

RopeStyle = Literal["interleaved", "half"]
RopeScaling = Literal["none", "linear", "llama3", "yarn"]

MAX_LAYERS = 1_024
MAX_D_MODEL = 1 << 20
MAX_HEADS = 4_096
MAX_HEAD_DIM = 4_096
MAX_D_FFN = 1 << 23
MAX_VOCAB_SIZE = 1 << 24
MAX_CONTEXT_LEN = 1 << 27
MAX_EOS_IDS = 64


@dataclass(frozen=True, slots=True)
class Family:
    """What distinguishes one supported architecture, so that another one is one more row.

    GGUF files of `interleaved` families have the rows of q and k permuted such that rotation
    pairs numbers (0, 1), (2, 3), ...; all others pair (0, dim/2), (1, dim/2 + 1), ...
    """

    name: str
    gguf_rope_style: RopeStyle
    qkv_bias: bool = False
    qk_norm: bool = False
    has_gguf_name: bool = True


FAMILIES: dict[str, Family] = {
    f.name: f
    for f in (
        Family("llama", "interleaved"),
        # Mistral is converted to GGUF as 'llama'.
        Family("mistral", "interleaved", has_gguf_name=False),
        Family("qwen2", "half", qkv_bias=True),
        Family("qwen3", "half", qk_norm=True),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """How queries and keys are rotated by their position.

    `base`: frequencies are base^(-2i/dim), i in [0, dim/2).
    `dim`: how many numbers of a head are rotated, from the first on.
    `style`: which numbers form a pair: (2i, 2i+1) or (i, i + dim/2).
    `scaling`: how frequencies are changed for long contexts; `factor`,
    `original_context_len`, `low_freq_factor`, `high_freq_factor` (llama3), `beta_fast` and
    `beta_slow` (yarn) as in the papers' reference code.
    `attention_factor` multiplies cos and sin; it is final, nothing is to be derived from it.
    `freq_factors`: [dim/2] divisors of the frequencies that come with the file (GGUF's way
    to store llama3 scaling), applied on top of `scaling`; None if there are none.
    """

    base: float
    dim: int
    style: RopeStyle
    scaling: RopeScaling = "none"
    factor: float = 1.0
    original_context_len: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    freq_factors: tuple[float, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _number("rope.base", self.base, 1.0, 1e15)
        _whole("rope.dim", self.dim, 2, MAX_HEAD_DIM)
        if self.dim % 2:
            raise ConfigError(f"rope.dim is {self.dim}; rotation needs an even number")
        _one_of("rope.style", self.style, get_args(RopeStyle))
        _one_of("rope.scaling", self.scaling, get_args(RopeScaling))
        _number("rope.factor", self.factor, 1e-3, 1e6)
        _number("rope.low_freq_factor", self.low_freq_factor, 1e-3, 1e6)
        _number("rope.high_freq_factor", self.high_freq_factor, 1e-3, 1e6)
        _number("rope.beta_fast", self.beta_fast, 1e-3, 1e6)
        _number("rope.beta_slow", self.beta_slow, 1e-3, 1e6)
        _number("rope.attention_factor", self.attention_factor, 1e-3, 1e3)
        if self.original_context_len is not None:
            _whole("rope.original_context_len", self.original_context_len, 1, MAX_CONTEXT_LEN)
        elif self.scaling in ("llama3", "yarn"):
            raise ConfigError(f"rope.scaling {self.scaling} needs rope.original_context_len")
        if self.scaling == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ConfigError(
                f"rope.high_freq_factor is {self.high_freq_factor}; it must be above "
                f"rope.low_freq_factor {self.low_freq_factor}"
            )
        if self.scaling == "yarn" and self.base <= 1.0:
            raise ConfigError(f"rope.base is {self.base}; yarn needs more than 1")
        if self.freq_factors is not None:
            if len(self.freq_factors) != self.dim // 2:
                raise ConfigError(
                    f"rope.freq_factors has {len(self.freq_factors)} numbers; "
                    f"rope.dim {self.dim} needs {self.dim // 2}"
                )
            for x in self.freq_factors:
                _number("rope.freq_factors", x, 1e-6, 1e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape of a decoder-only transformer, checked as a whole on construction.

    `sliding_window` W: a token attends to itself and the W - 1 tokens before it, in the
    layers where `sliding_layers[layer]` is true (empty: in all layers); None: no window.
    `eos_ids`: every id that ends a text. `norm_eps` is added to the mean square.
    Raises `ConfigError` naming field, value and bound.
    """

    architecture: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ffn: int
    vocab_size: int
    context_len: int
    norm_eps: float
    rope: RopeConfig
    sliding_window: int | None = None
    sliding_layers: tuple[bool, ...] = ()
    qkv_bias: bool = False
    qk_norm: bool = False
    tied_embeddings: bool = False
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    name: str | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        _family(self.architecture)
        _whole("n_layers", self.n_layers, 1, MAX_LAYERS)
        _whole("d_model", self.d_model, 1, MAX_D_MODEL)
        _whole("n_heads", self.n_heads, 1, MAX_HEADS)
        _whole("n_kv_heads", self.n_kv_heads, 1, MAX_HEADS)
        _whole("head_dim", self.head_dim, 1, MAX_HEAD_DIM)
        _whole("d_ffn", self.d_ffn, 1, MAX_D_FFN)
        _whole("vocab_size", self.vocab_size, 1, MAX_VOCAB_SIZE)
        _whole("context_len", self.context_len, 1, MAX_CONTEXT_LEN)
        _number("norm_eps", self.norm_eps, 0.0, 1.0)
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"n_heads is {self.n_heads}, which n_kv_heads {self.n_kv_heads} does not divide"
            )
        if not isinstance(self.rope, RopeConfig):
            raise ConfigError(f"rope is {self.rope!r:.60}; a RopeConfig is needed")
        if self.rope.dim != self.head_dim:
            raise ConfigError(
                f"rope.dim is {self.rope.dim} but head_dim is {self.head_dim}; "
                f"{self.architecture} models with partly rotated heads are not supported"
            )
        if self.sliding_window is not None:
            _whole("sliding_window", self.sliding_window, 1, MAX_CONTEXT_LEN)
        if self.sliding_layers and (
            self.sliding_window is None or len(self.sliding_layers) != self.n_layers
        ):
            raise ConfigError(
                f"sliding_layers has {len(self.sliding_layers)} entries; it needs one for each "
                f"of the {self.n_layers} layers and a sliding_window (now {self.sliding_window})"
            )
        for flag in ("qkv_bias", "qk_norm", "tied_embeddings"):
            if not isinstance(getattr(self, flag), bool):
                raise ConfigError(f"{flag} is {getattr(self, flag)!r:.60}; true or false is needed")
        if self.bos_id is not None:
            _whole("bos_id", self.bos_id, 0, self.vocab_size - 1)
        if len(self.eos_ids) > MAX_EOS_IDS:
            raise ConfigError(f"eos_ids has {len(self.eos_ids)} ids; at most {MAX_EOS_IDS} fit")
        for eos_id in self.eos_ids:
            _whole("eos_ids", eos_id, 0, self.vocab_size - 1)

    @property
    def d_q(self) -> int:
        """Width of all query heads together."""
        return self.n_heads * self.head_dim

    @property
    def d_kv(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.n_kv_heads * self.head_dim

    def window_of(self, layer: int) -> int | None:
        """Return the sliding window of `layer`, None where it attends to everything."""
        if self.sliding_layers and not self.sliding_layers[layer]:
            return None
        return self.sliding_window


# --- checks --------------------------------------------------------------------------


def _whole(name: str, value: object, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(
            f"{name} is {value!r:.60}; a whole number between {low:,} and {high:,} is needed"
        )
    return value


def _number(name: str, value: object, low: float, high: float) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not low <= value <= high  # False for NaN
    ):
        raise ConfigError(
            f"{name} is {value!r:.60}; a number between {low:g} and {high:g} is needed"
        )
    return float(value)


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r:.60}; one of {', '.join(allowed)} is needed")


def _family(architecture: object) -> Family:
    found = FAMILIES.get(architecture) if isinstance(architecture, str) else None
    if found is None:
        raise ConfigError(
            f"architecture {architecture!r:.60} is not supported; capax runs {', '.join(FAMILIES)}"
        )
    return found


class _Fields:
    """Typed access to the raw values of a file; errors name the key as the file spells it."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self.values = values

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def whole(self, key: str, high: int, *, default: int | None = None, low: int = 1) -> int:
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise ConfigError(f"{key} is missing; a whole number is needed")
            return default
        return _whole(key, value, low, high)

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise ConfigError(f"{key} is missing; a number is needed")
            return default
        return _number(key, value, low, high)

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ConfigError(f"{key} is {value!r:.60}; true or false is needed")
        return value

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{key} is {value!r:.60}; a string is needed")
        return value[:4096] if value else None

    def refuse_unless(self, key: str, allowed: tuple[object, ...]) -> None:
        value = self.values.get(key)
        if value is not None and not any(
            value == x and isinstance(value, bool) == isinstance(x, bool) for x in allowed
        ):
            raise ConfigError(
                f"{key} is {value!r:.60}, which capax does not run; "
                f"it runs {' or '.join(repr(x) for x in allowed) or 'models without it'}"
            )


# --- GGUF ----------------------------------------------------------------------------


def config_from_gguf(
    metadata: Mapping[str, object],
    tensor_shapes: Mapping[str, tuple[int, ...]],
    freq_factors: tuple[float, ...] | None = None,
) -> ModelConfig:
    """Translate GGUF metadata; tensors tell what the metadata leaves open.

    `tensor_shapes` maps tensor names to row-major shapes. `freq_factors` are the numbers of
    the tensor `rope_freqs.weight`, if the file has it. Raises `ConfigError`.
    """
    fields = _Fields(metadata)
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


def _gguf_head_dim(fields: _Fields, arch: str, d_model: int, n_heads: int) -> int:
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
    fields: _Fields, arch: str, tensor_shapes: Mapping[str, tuple[int, ...]]
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
    fields: _Fields,
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
        attention_factor = given * _yarn_mscale(factor)
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
    return None if value is None else _whole(key, value, 0, MAX_VOCAB_SIZE)


def _gguf_eos_ids(metadata: Mapping[str, object]) -> tuple[int, ...]:
    ids = (_gguf_token_id(metadata, f"tokenizer.ggml.{k}_token_id") for k in ("eos", "eot", "eom"))
    return tuple(dict.fromkeys(i for i in ids if i is not None))


# --- Hugging Face --------------------------------------------------------------------


def config_from_hf(
    config: Mapping[str, object], generation_config: Mapping[str, object] | None = None
) -> ModelConfig:
    """Translate a Hugging Face `config.json`; `generation_config.json` rules on eos ids.

    Raises `ConfigError` naming the key as the file spells it.
    """
    fields = _Fields(config)
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


def _hf_sliding(fields: _Fields, arch: str, n_layers: int) -> tuple[int | None, tuple[bool, ...]]:
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
            _one_of("layer_types", t, ("full_attention", "sliding_attention"))
        return window, tuple(t == "sliding_attention" for t in layer_types)
    if arch == "mistral":
        return window, ()
    first = fields.whole("max_window_layers", 2**40, default=n_layers, low=0)
    return window, tuple(i >= first for i in range(n_layers))


def _hf_rope(fields: _Fields, head_dim: int, context_len: int) -> RopeConfig:
    """Read `rope_parameters`, or `rope_theta` and `rope_scaling` as they were called before."""
    raw: dict[str, object] = {}
    for key in ("rope_scaling", "rope_parameters"):
        value = fields.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise ConfigError(f"{key} is {value!r:.60}; an object is needed")
        raw.update(value or {})
    rope = _Fields(raw)
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


def _hf_yarn_attention_factor(rope: _Fields, factor: float) -> float:
    mscale = rope.number("mscale", 0.0, 1e3, 0.0)
    mscale_all = rope.number("mscale_all_dim", 0.0, 1e3, 0.0)
    derived = (
        _yarn_mscale(factor, mscale) / _yarn_mscale(factor, mscale_all)
        if mscale and mscale_all
        else _yarn_mscale(factor)
    )
    return rope.number("attention_factor", 1e-3, 1e3, derived)


def _yarn_mscale(factor: float, multiplier: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0


def _ids(value: object) -> tuple[int, ...]:
    items = value if isinstance(value, list) else [] if value is None else [value]
    if len(items) > MAX_EOS_IDS:
        raise ConfigError(f"eos_token_id has {len(items)} ids; at most {MAX_EOS_IDS} fit")
    return tuple(dict.fromkeys(_whole("eos_token_id", i, 0, MAX_VOCAB_SIZE) for i in items))


def _first_id(value: object) -> int | None:
    if isinstance(value, list):
        value = value[0] if value else None
    return None if value is None else _whole("bos_token_id", value, 0, MAX_VOCAB_SIZE)
