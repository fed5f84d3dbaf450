"""What a model is: one validated configuration, whatever file it came from.

`ModelConfig` and `RopeConfig` state every relation between sizes once, in their
constructors; code behind them divides, allocates and loops without asking again.
`config_gguf.py` and `config_hf.py` translate the two spellings found in files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from capax.errors import ConfigError

RopeStyle = Literal["interleaved", "half"]
RopeScaling = Literal["none", "linear", "llama3", "yarn"]
Pooling = Literal["mean", "cls"]

MAX_LAYERS = 1_024
MAX_D_MODEL = 1 << 20
MAX_HEADS = 4_096
MAX_HEAD_DIM = 4_096
MAX_D_FFN = 1 << 23
MAX_VOCAB_SIZE = 1 << 24
MAX_CONTEXT_LEN = 1 << 27
MAX_EOS_IDS = 64
MAX_TOKEN_TYPES = 1_024
MAX_LANDMARK_BLOCK = 65_536


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
    is_encoder: bool = False


FAMILIES: dict[str, Family] = {
    f.name: f
    for f in (
        Family("llama", "interleaved"),
        # Mistral is converted to GGUF as 'llama'.
        Family("mistral", "interleaved", has_gguf_name=False),
        Family("qwen2", "half", qkv_bias=True),
        Family("qwen3", "half", qk_norm=True),
        Family("bert", "half", qkv_bias=True, has_gguf_name=False, is_encoder=True),
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
        check_number("rope.base", self.base, 1.0, 1e15)
        check_whole("rope.dim", self.dim, 2, MAX_HEAD_DIM)
        if self.dim % 2:
            raise ConfigError(f"rope.dim is {self.dim}; rotation needs an even number")
        check_one_of("rope.style", self.style, get_args(RopeStyle))
        check_one_of("rope.scaling", self.scaling, get_args(RopeScaling))
        check_number("rope.factor", self.factor, 1e-3, 1e6)
        check_number("rope.low_freq_factor", self.low_freq_factor, 1e-3, 1e6)
        check_number("rope.high_freq_factor", self.high_freq_factor, 1e-3, 1e6)
        check_number("rope.beta_fast", self.beta_fast, 1e-3, 1e6)
        check_number("rope.beta_slow", self.beta_slow, 1e-3, 1e6)
        check_number("rope.attention_factor", self.attention_factor, 1e-3, 1e3)
        if self.original_context_len is not None:
            check_whole("rope.original_context_len", self.original_context_len, 1, MAX_CONTEXT_LEN)
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
                check_number("rope.freq_factors", x, 1e-6, 1e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """What only encoders have, whose tokens attend to each other both ways.

    `n_token_types`: segments a text may consist of; everything is of type 0 here.
    `pooling`: how a text's rows become one, their mean or the first row ("cls").
    `normalize`: whether an embedding is brought to length 1.
    `max_tokens`: longest text the model's author means it for, at most `context_len`.
    """

    n_token_types: int
    pooling: Pooling = "mean"
    normalize: bool = True
    max_tokens: int

    def __post_init__(self) -> None:
        check_whole("n_token_types", self.n_token_types, 1, MAX_TOKEN_TYPES)
        check_one_of("pooling", self.pooling, get_args(Pooling))
        if not isinstance(self.normalize, bool):
            raise ConfigError(f"normalize is {self.normalize!r:.60}; true or false is needed")
        check_whole("max_tokens", self.max_tokens, 1, MAX_CONTEXT_LEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class LandmarkConfig:
    """What a model trained with landmark attention says of it.

    `block`: tokens of a block, the last one being the landmark `token_id`. `window`: the longest
    input it was trained on, landmarks included.
    """

    block: int
    token_id: int
    window: int

    def __post_init__(self) -> None:
        check_whole("landmark.block", self.block, 2, MAX_LANDMARK_BLOCK)
        check_whole("landmark.token_id", self.token_id, 0, MAX_VOCAB_SIZE)
        check_whole("landmark.train_ctx", self.window, 2 * self.block, MAX_CONTEXT_LEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape of a transformer, checked as a whole on construction.

    `sliding_window` W: a token attends to itself and the W - 1 tokens before it, in the
    layers where `sliding_layers[layer]` is true (empty: in all layers); None: no window.
    `eos_ids`: every id that ends a text. `norm_eps` is added to the mean square.
    `landmark`: None for models without landmark tokens.
    `rope` is None and `encoder` given for encoders, whose positions are learned vectors.
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
    rope: RopeConfig | None
    encoder: EncoderConfig | None = None
    landmark: LandmarkConfig | None = None
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
        family = _family(self.architecture)
        check_whole("n_layers", self.n_layers, 1, MAX_LAYERS)
        check_whole("d_model", self.d_model, 1, MAX_D_MODEL)
        check_whole("n_heads", self.n_heads, 1, MAX_HEADS)
        check_whole("n_kv_heads", self.n_kv_heads, 1, MAX_HEADS)
        check_whole("head_dim", self.head_dim, 1, MAX_HEAD_DIM)
        check_whole("d_ffn", self.d_ffn, 1, MAX_D_FFN)
        check_whole("vocab_size", self.vocab_size, 1, MAX_VOCAB_SIZE)
        check_whole("context_len", self.context_len, 1, MAX_CONTEXT_LEN)
        check_number("norm_eps", self.norm_eps, 0.0, 1.0)
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"n_heads is {self.n_heads}, which n_kv_heads {self.n_kv_heads} does not divide"
            )
        if family.is_encoder:
            self._check_encoder()
        elif self.encoder is not None:
            raise ConfigError(f"encoder is given but {self.architecture} models are decoders")
        elif not isinstance(self.rope, RopeConfig):
            raise ConfigError(f"rope is {self.rope!r:.60}; a RopeConfig is needed")
        elif self.rope.dim != self.head_dim:
            raise ConfigError(
                f"rope.dim is {self.rope.dim} but head_dim is {self.head_dim}; "
                f"{self.architecture} models with partly rotated heads are not supported"
            )
        if self.sliding_window is not None:
            check_whole("sliding_window", self.sliding_window, 1, MAX_CONTEXT_LEN)
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
            check_whole("bos_id", self.bos_id, 0, self.vocab_size - 1)
        if len(self.eos_ids) > MAX_EOS_IDS:
            raise ConfigError(f"eos_ids has {len(self.eos_ids)} ids; at most {MAX_EOS_IDS} fit")
        for eos_id in self.eos_ids:
            check_whole("eos_ids", eos_id, 0, self.vocab_size - 1)
        if self.landmark is not None:
            check_whole("landmark.token_id", self.landmark.token_id, 0, self.vocab_size - 1)

    def _check_encoder(self) -> None:
        if not isinstance(self.encoder, EncoderConfig) or self.rope is not None:
            raise ConfigError(f"{self.architecture} models need an EncoderConfig and no rope")
        if self.encoder.max_tokens > self.context_len:
            raise ConfigError(
                f"max_tokens is {self.encoder.max_tokens}, more than the {self.context_len} "
                "positions the model has"
            )
        if self.n_kv_heads != self.n_heads or self.n_heads * self.head_dim != self.d_model:
            raise ConfigError(
                f"{self.n_heads} heads of {self.head_dim} with {self.n_kv_heads} for keys do not "
                f"make up d_model {self.d_model}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}; an even number is needed")

    @property
    def n_cache_layers(self) -> int:
        """Layers whose keys and values exist at a time: an encoder's overwrite each other."""
        return self.n_layers if self.encoder is None else 1

    def n_rows(self, n_tokens: int) -> int:
        """Return the most rows that a step of `n_tokens` takes: each may close a block."""
        return n_tokens if self.landmark is None else 2 * n_tokens

    def n_positions(self, context_len: int) -> int:
        """Return how many positions keys and queries are turned by in such a context."""
        if self.landmark is None:
            return context_len
        block = self.landmark.block
        return max(self.landmark.window, (context_len // (block - 1) + 3) * block)

    @property
    def d_q(self) -> int:
        """Width of all query heads together."""
        return self.n_heads * self.head_dim

    @property
    def d_kv(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.n_kv_heads * self.head_dim

    @property
    def attention_scale(self) -> float:
        """What attention scores are multiplied with."""
        return float(self.head_dim**-0.5)

    def window_of(self, layer: int) -> int | None:
        """Return the sliding window of `layer`, None where it attends to everything."""
        if self.sliding_layers and not self.sliding_layers[layer]:
            return None
        return self.sliding_window


# --- checks --------------------------------------------------------------------------


def check_whole(name: str, value: object, low: int, high: int) -> int:
    """Return `value` if it is an int (no bool) in [low, high]."""
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(
            f"{name} is {value!r:.60}; a whole number between {low:,} and {high:,} is needed"
        )
    return value


def check_number(name: str, value: object, low: float, high: float) -> float:
    """Return `value` as a float if it is a number (no bool, no NaN) in [low, high]."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not low <= value <= high  # False for NaN
    ):
        raise ConfigError(
            f"{name} is {value!r:.60}; a number between {low:g} and {high:g} is needed"
        )
    return float(value)


def check_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse any `value` that is not one of the strings `allowed`."""
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r:.60}; one of {', '.join(allowed)} is needed")


def _family(architecture: object) -> Family:
    found = FAMILIES.get(architecture) if isinstance(architecture, str) else None
    if found is None:
        raise ConfigError(
            f"architecture {architecture!r:.60} is not supported; capax runs {', '.join(FAMILIES)}"
        )
    return found
