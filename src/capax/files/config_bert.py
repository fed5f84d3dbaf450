"""Translate the configuration of a BERT encoder, and of the pooling behind it.

`config.json` describes the transformer. How its rows become one embedding is written in
the files of the sentence-transformers library: `modules.json` lists the steps, and the
pooling step has a directory of its own. Without them a text's embedding is the mean of its
rows, brought to length 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from capax.errors import ConfigError
from capax.files.config import (
    MAX_CONTEXT_LEN,
    MAX_D_FFN,
    MAX_D_MODEL,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_TOKEN_TYPES,
    MAX_VOCAB_SIZE,
    EncoderConfig,
    ModelConfig,
    Pooling,
)
from capax.files.config_fields import Fields
from capax.files.json_file import read_json_list, read_json_object

MAX_STEP_NBYTES = 1 << 20

_NEUTRAL: dict[str, tuple[object, ...]] = {
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "quantization_config": (),
}
_MODE = "pooling_mode_"
_POOLINGS: dict[str, Pooling] = {"mean_tokens": "mean", "cls_token": "cls"}


def config_from_bert(config: Mapping[str, object], folder: Path) -> ModelConfig:
    """Translate the `config.json` of a BERT model and the pooling files in its `folder`.

    Raises `ConfigError` naming the key as the file spells it.
    """
    fields = Fields(config)
    for key, neutral in _NEUTRAL.items():
        fields.refuse_unless(key, neutral)
    d_model = fields.whole("hidden_size", MAX_D_MODEL)
    n_heads = fields.whole("num_attention_heads", MAX_HEADS)
    if d_model % n_heads:
        raise ConfigError(
            f"hidden_size is {d_model}, which num_attention_heads {n_heads} does not divide"
        )
    context_len = fields.whole("max_position_embeddings", MAX_CONTEXT_LEN)
    pooling, normalize = _pooling(folder, d_model)
    return ModelConfig(
        architecture="bert",
        n_layers=fields.whole("num_hidden_layers", MAX_LAYERS),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=d_model // n_heads,
        d_ffn=fields.whole("intermediate_size", MAX_D_FFN),
        vocab_size=fields.whole("vocab_size", MAX_VOCAB_SIZE),
        context_len=context_len,
        norm_eps=fields.number("layer_norm_eps", 0.0, 1.0, 1e-12),
        rope=None,
        encoder=EncoderConfig(
            n_token_types=fields.whole("type_vocab_size", MAX_TOKEN_TYPES),
            pooling=pooling,
            normalize=normalize,
            max_tokens=_max_tokens(folder, context_len),
        ),
        qkv_bias=True,
        name=fields.text("_name_or_path"),
    )


def _max_tokens(folder: Path, context_len: int) -> int:
    path = folder / "sentence_bert_config.json"
    fields = Fields(read_json_object(path, MAX_STEP_NBYTES) if path.is_file() else {})
    fields.refuse_unless("do_lower_case", (False,))  # the tokenizer says so itself
    return min(fields.whole("max_seq_length", MAX_CONTEXT_LEN, default=context_len), context_len)


def _pooling(folder: Path, d_model: int) -> tuple[Pooling, bool]:
    """Return how rows become one, and whether that is normalised."""
    path = folder / "modules.json"
    if not path.is_file():
        return "mean", True
    pooling: Pooling | None = None
    normalize = False
    for step in read_json_list(path, MAX_STEP_NBYTES):
        kind, where = _step(step)
        if kind == "Pooling" and pooling is None:
            pooling = _pooling_mode(folder / where / "config.json", d_model)
        elif kind == "Normalize" and pooling is not None:
            normalize = True
        elif kind != "Transformer" or pooling is not None:
            raise ConfigError(f"modules.json has the step {kind!r:.60}, which capax does not run")
    if pooling is None:
        raise ConfigError("modules.json has no Pooling step")
    return pooling, normalize


def _step(step: object) -> tuple[str, str]:
    kind, where = (step.get("type"), step.get("path")) if isinstance(step, dict) else (None, None)
    if not isinstance(kind, str) or not isinstance(where, str):
        raise ConfigError(f"modules.json has the entry {step!r:.60}; type and path are needed")
    if not re.fullmatch(r"[A-Za-z0-9_-]{0,64}", where):
        raise ConfigError(f"modules.json has the path {where!r:.60}; a directory name is needed")
    return kind.rpartition(".")[2], where


def _pooling_mode(path: Path, d_model: int) -> Pooling:
    fields = Fields(read_json_object(path, MAX_STEP_NBYTES))
    if fields.whole("word_embedding_dimension", MAX_D_MODEL, default=d_model) != d_model:
        raise ConfigError(f"word_embedding_dimension is not the hidden_size {d_model}")
    named = [k.removeprefix(_MODE) for k in fields.values if k.startswith(_MODE)]
    used = [name for name in named if fields.flag(_MODE + name, False)]
    if len(used) != 1 or used[0] not in _POOLINGS:
        raise ConfigError(
            f"pooling is {', '.join(used) or 'none'}; capax runs one of {', '.join(_POOLINGS)}"
        )
    return _POOLINGS[used[0]]
