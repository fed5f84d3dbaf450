"""Which tensors a model of each family must bring, under which name and in which shape.

Names are those of GGUF, with `{}` for the layer; `hf` is what Hugging Face calls the same
tensor. Another family is one more entry of `LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from capax.files.config import ModelConfig


def _always(_: ModelConfig) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class TensorRule:
    """One tensor of a layout; repeated for every layer if the name has a `{}`."""

    name: str
    hf: str
    shape: Callable[[ModelConfig], tuple[int, ...]]
    is_needed: Callable[[ModelConfig], bool] = _always


@dataclass(frozen=True, slots=True)
class ExpectedTensor:
    """A tensor that must be there; `shape` is row-major, for a matrix `(n_out, n_in)`."""

    name: str
    hf: str
    shape: tuple[int, ...]


DENSE_DECODER: tuple[TensorRule, ...] = (
    TensorRule(
        "token_embd.weight", "model.embed_tokens.weight", lambda c: (c.vocab_size, c.d_model)
    ),
    TensorRule(
        "blk.{}.attn_norm.weight",
        "model.layers.{}.input_layernorm.weight",
        lambda c: (c.d_model,),
    ),
    TensorRule(
        "blk.{}.attn_q.weight",
        "model.layers.{}.self_attn.q_proj.weight",
        lambda c: (c.d_q, c.d_model),
    ),
    TensorRule(
        "blk.{}.attn_k.weight",
        "model.layers.{}.self_attn.k_proj.weight",
        lambda c: (c.d_kv, c.d_model),
    ),
    TensorRule(
        "blk.{}.attn_v.weight",
        "model.layers.{}.self_attn.v_proj.weight",
        lambda c: (c.d_kv, c.d_model),
    ),
    TensorRule(
        "blk.{}.attn_q.bias",
        "model.layers.{}.self_attn.q_proj.bias",
        lambda c: (c.d_q,),
        lambda c: c.qkv_bias,
    ),
    TensorRule(
        "blk.{}.attn_k.bias",
        "model.layers.{}.self_attn.k_proj.bias",
        lambda c: (c.d_kv,),
        lambda c: c.qkv_bias,
    ),
    TensorRule(
        "blk.{}.attn_v.bias",
        "model.layers.{}.self_attn.v_proj.bias",
        lambda c: (c.d_kv,),
        lambda c: c.qkv_bias,
    ),
    TensorRule(
        "blk.{}.attn_q_norm.weight",
        "model.layers.{}.self_attn.q_norm.weight",
        lambda c: (c.head_dim,),
        lambda c: c.qk_norm,
    ),
    TensorRule(
        "blk.{}.attn_k_norm.weight",
        "model.layers.{}.self_attn.k_norm.weight",
        lambda c: (c.head_dim,),
        lambda c: c.qk_norm,
    ),
    TensorRule(
        "blk.{}.attn_output.weight",
        "model.layers.{}.self_attn.o_proj.weight",
        lambda c: (c.d_model, c.d_q),
    ),
    TensorRule(
        "blk.{}.ffn_norm.weight",
        "model.layers.{}.post_attention_layernorm.weight",
        lambda c: (c.d_model,),
    ),
    TensorRule(
        "blk.{}.ffn_gate.weight",
        "model.layers.{}.mlp.gate_proj.weight",
        lambda c: (c.d_ffn, c.d_model),
    ),
    TensorRule(
        "blk.{}.ffn_up.weight",
        "model.layers.{}.mlp.up_proj.weight",
        lambda c: (c.d_ffn, c.d_model),
    ),
    TensorRule(
        "blk.{}.ffn_down.weight",
        "model.layers.{}.mlp.down_proj.weight",
        lambda c: (c.d_model, c.d_ffn),
    ),
    TensorRule("output_norm.weight", "model.norm.weight", lambda c: (c.d_model,)),
    TensorRule(
        "output.weight",
        "lm_head.weight",
        lambda c: (c.vocab_size, c.d_model),
        lambda c: not c.tied_embeddings,
    ),
)


def _encoder_rules() -> tuple[TensorRule, ...]:
    """Every part of a BERT layer is a linear map or a layer norm, all with a bias."""
    layer, hf_layer = "blk.{}.", "encoder.layer.{}."

    def vectors(name: str, hf: str, width: Callable[[ModelConfig], int]) -> Iterator[TensorRule]:
        for part in ("weight", "bias"):
            yield TensorRule(f"{name}.{part}", f"{hf}.{part}", lambda c: (width(c),))

    def linear(
        name: str,
        hf: str,
        n_out: Callable[[ModelConfig], int],
        n_in: Callable[[ModelConfig], int],
    ) -> Iterator[TensorRule]:
        yield TensorRule(
            f"{layer}{name}.weight", f"{hf_layer}{hf}.weight", lambda c: (n_out(c), n_in(c))
        )
        yield TensorRule(f"{layer}{name}.bias", f"{hf_layer}{hf}.bias", lambda c: (n_out(c),))

    def d_model(c: ModelConfig) -> int:
        return c.d_model

    def d_ffn(c: ModelConfig) -> int:
        return c.d_ffn

    def n_token_types(c: ModelConfig) -> int:
        return c.encoder.n_token_types if c.encoder else 0

    return (
        TensorRule(
            "token_embd.weight",
            "embeddings.word_embeddings.weight",
            lambda c: (c.vocab_size, c.d_model),
        ),
        TensorRule(
            "position_embd.weight",
            "embeddings.position_embeddings.weight",
            lambda c: (c.context_len, c.d_model),
        ),
        TensorRule(
            "token_types.weight",
            "embeddings.token_type_embeddings.weight",
            lambda c: (n_token_types(c), c.d_model),
        ),
        *vectors("token_embd_norm", "embeddings.LayerNorm", d_model),
        *linear("attn_q", "attention.self.query", d_model, d_model),
        *linear("attn_k", "attention.self.key", d_model, d_model),
        *linear("attn_v", "attention.self.value", d_model, d_model),
        *linear("attn_output", "attention.output.dense", d_model, d_model),
        *vectors(f"{layer}attn_output_norm", f"{hf_layer}attention.output.LayerNorm", d_model),
        *linear("ffn_up", "intermediate.dense", d_ffn, d_model),
        *linear("ffn_down", "output.dense", d_model, d_ffn),
        *vectors(f"{layer}layer_output_norm", f"{hf_layer}output.LayerNorm", d_model),
    )


LAYOUTS: dict[str, tuple[TensorRule, ...]] = {
    "llama": DENSE_DECODER,
    "mistral": DENSE_DECODER,
    "qwen2": DENSE_DECODER,
    "qwen3": DENSE_DECODER,
    "bert": _encoder_rules(),
}


def expected_tensors(config: ModelConfig) -> Iterator[ExpectedTensor]:
    """Yield every tensor a model of this configuration needs."""
    for rule in LAYOUTS[config.architecture]:
        if not rule.is_needed(config):
            continue
        shape = rule.shape(config)
        if "{}" not in rule.name:
            yield ExpectedTensor(rule.name, rule.hf, shape)
            continue
        for layer in range(config.n_layers):
            yield ExpectedTensor(rule.name.format(layer), rule.hf.format(layer), shape)
