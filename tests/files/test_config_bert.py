"""BERT configurations and pooling files: what is read, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capax.errors import ConfigError, FileFormatError
from capax.files.config import EncoderConfig, ModelConfig, RopeConfig
from capax.files.config_bert import config_from_bert
from capax.files.model_file import open_model
from tests.models import bert_model

CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "vocab_size": 100,
    "layer_norm_eps": 1e-12,
}
STEPS = [
    {"type": "sentence_transformers.models.Transformer", "path": ""},
    {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
    {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"},
]
MODE = {"word_embedding_dimension": 48, "pooling_mode_mean_tokens": True}


def write(folder: Path, name: str, value: object) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def test_a_model_without_pooling_files_takes_the_mean_of_length_one(tmp_path: Path) -> None:
    config = config_from_bert(CONFIG, tmp_path)
    assert config.encoder == EncoderConfig(n_token_types=2, max_tokens=512)
    assert (config.encoder.pooling, config.encoder.normalize) == ("mean", True)
    assert (config.rope, config.head_dim, config.n_cache_layers) == (None, 12, 1)


def test_the_files_of_sentence_transformers_are_followed(tmp_path: Path) -> None:
    write(tmp_path, "modules.json", STEPS[:2])
    write(tmp_path, "1_Pooling/config.json", {"pooling_mode_cls_token": True})
    write(tmp_path, "sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": False})
    assert config_from_bert(CONFIG, tmp_path).encoder == EncoderConfig(
        n_token_types=2, pooling="cls", normalize=False, max_tokens=256
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"num_attention_heads": 5}, "does not divide"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_attention_heads": 16}, "head_dim is 3"),
        ({"hidden_size": 2**40}, "hidden_size"),
        ({"type_vocab_size": 0}, "type_vocab_size is 0"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps"),
        ({"max_position_embeddings": None}, "max_position_embeddings is missing"),
    ],
)
def test_what_capax_does_not_run_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from_bert(CONFIG | change, tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("modules.json", {}, "a list is needed"),
        ("modules.json", [], "no Pooling step"),
        ("modules.json", STEPS[:1], "no Pooling step"),
        ("modules.json", [STEPS[2], *STEPS[:2]], "'Normalize', which capax does not run"),
        ("modules.json", [*STEPS[:2], {"type": "x.Dense", "path": "2_Dense"}], "'Dense'"),
        ("modules.json", [*STEPS[:2], STEPS[1]], "'Pooling', which capax does not run"),
        ("modules.json", [{"type": "x.Pooling", "path": "../1_Pooling"}], "path '../1_Pooling'"),
        ("modules.json", [{"type": "x.Pooling", "path": "/etc"}], "path '/etc'"),
        ("modules.json", [{"type": "x.Pooling"}], "type and path"),
        ("modules.json", [7], "type and path"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling is max_tokens"),
        ("1_Pooling/config.json", MODE | {"pooling_mode_cls_token": True}, "pooling is"),
        ("1_Pooling/config.json", {}, "pooling is none"),
        ("1_Pooling/config.json", MODE | {"word_embedding_dimension": 49}, "hidden_size 48"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": "yes"}, "true or false"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length is 0"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case"),
    ],
)
def test_pooling_files_are_checked(tmp_path: Path, name: str, value: object, message: str) -> None:
    write(tmp_path, "modules.json", STEPS)
    write(tmp_path, "1_Pooling/config.json", MODE)
    write(tmp_path, name, value)
    with pytest.raises((ConfigError, FileFormatError), match=message):
        config_from_bert(CONFIG, tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(changes=st.dictionaries(st.sampled_from([*CONFIG, "hidden_act"]), JSON, max_size=3))
def test_any_configuration_is_valid_or_refused(changes: dict[str, Any]) -> None:
    try:
        config = config_from_bert(CONFIG | changes, Path("/nonexistent"))
    except ConfigError:
        return
    assert config.n_heads * config.head_dim == config.d_model
    assert config.encoder is not None


def test_encoders_and_decoders_cannot_be_mixed_up(tmp_path: Path) -> None:
    good = config_from_bert(CONFIG, tmp_path)
    fields = {name: getattr(good, name) for name in ModelConfig.__slots__}
    rope = RopeConfig(base=1e4, dim=good.head_dim, style="half")
    for change, message in (
        ({"encoder": None}, "EncoderConfig"),
        ({"rope": rope}, "no rope"),
        ({"n_kv_heads": 2}, "do not make up"),
        ({"architecture": "llama", "rope": rope}, "decoders"),
        ({"architecture": "llama", "encoder": None}, "RopeConfig"),
        ({"context_len": 100}, "max_tokens is 512"),
    ):
        with pytest.raises(ConfigError, match=message):
            ModelConfig(**(fields | change))


def test_the_pooler_of_a_checkpoint_is_not_needed() -> None:
    from capax.files.safetensors import open_directory

    found, _ = open_directory(bert_model())
    assert "pooler.dense.weight" in found
    assert not any("pool" in name for name in open_model(bert_model()).tensors)
