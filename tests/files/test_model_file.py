"""A model opens whole, under canonical names, or not at all."""

import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from capax.errors import CapaxError, FileFormatError
from capax.files.encodings import F32
from capax.files.gguf import GGUFFile, TensorData, Typed, ValueType, write_gguf
from capax.files.layouts import expected_tensors
from capax.files.model_file import open_model
from capax.files.tensors import TensorReader, read_float32
from tests.models import (
    CHAT_TEMPLATE,
    FAMILY_NAMES,
    LLAMA3_ROPE,
    YARN_ROPE,
    gguf_model,
    hf_model,
    permute_for_interleaved,
)


@pytest.fixture
def hf_copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(hf_model("llama"), tmp_path / "model"))


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite_gguf(
    source: Path,
    target: Path,
    *,
    drop: tuple[str, ...] = (),
    add: tuple[TensorData, ...] = (),
    **metadata: object,
) -> None:
    """Copy a GGUF model with some tensors left out or added and some metadata changed."""
    file = GGUFFile.open(source)
    with TensorReader() as reader:
        tensors = [
            TensorData.copy_of(t, reader) for t in file.tensors.values() if t.name not in drop
        ]
        changed = {
            **file.typed_metadata(),
            **{k.replace("__", "."): v for k, v in metadata.items()},
        }
        write_gguf(
            target,
            {k: v for k, v in changed.items() if v is not None},  # type: ignore[misc]  # any value
            [*tensors, *add],
        )


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_both_formats_give_the_same_model(family: str) -> None:
    hf, gguf = open_model(hf_model(family)), open_model(gguf_model(family))
    assert (hf.format, gguf.format) == ("safetensors", "gguf")
    assert {n: t.shape for n, t in hf.tensors.items()} == {
        n: t.shape for n, t in gguf.tensors.items()
    }
    for field in (
        "n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ffn", "vocab_size",
        "context_len", "sliding_window", "qkv_bias", "qk_norm", "tied_embeddings", "bos_id",
    ):  # fmt: skip
        assert getattr(hf.config, field) == getattr(gguf.config, field), field
    assert hf.config.eos_ids[0] == gguf.config.eos_ids[0]
    assert hf.chat_template == gguf.chat_template == CHAT_TEMPLATE
    assert hf.tokenizer_json is not None
    assert gguf.tokenizer_json is None
    assert len(gguf.metadata["tokenizer.ggml.tokens"]) == gguf.config.vocab_size  # type: ignore[arg-type]  # an array
    assert hf.nbytes == sum(t.nbytes for t in hf.tensors.values()) < hf.file_nbytes


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_weights_are_those_of_transformers(family: str) -> None:
    from safetensors.numpy import load_file

    folder = hf_model(family)
    theirs = load_file(folder / "model.safetensors")
    hf, gguf = open_model(folder), open_model(gguf_model(family))
    is_interleaved = gguf.config.rope.style == "interleaved"
    assert is_interleaved == (family in ("llama", "mistral"))
    with TensorReader() as reader:
        for expected in expected_tensors(hf.config):
            values = read_float32(reader, hf.tensors[expected.name])
            assert np.array_equal(values, theirs[expected.hf])
            if is_interleaved and "attn_q." in expected.name:
                values = permute_for_interleaved(values, hf.config.n_heads)
            elif is_interleaved and "attn_k." in expected.name:
                values = permute_for_interleaved(values, hf.config.n_kv_heads)
            assert np.array_equal(read_float32(reader, gguf.tensors[expected.name]), values)


def test_a_directory_with_a_single_gguf_is_that_model(tmp_path: Path) -> None:
    shutil.copy(gguf_model("qwen3"), tmp_path / "m.gguf")
    assert open_model(tmp_path).path == tmp_path / "m.gguf"
    shutil.copy(gguf_model("qwen3"), tmp_path / "n.gguf")
    with pytest.raises(FileFormatError, match="2 GGUF models; give the path of one"):
        open_model(tmp_path)


def test_gguf_llama3_scaling_arrives_as_frequency_factors() -> None:
    hf = open_model(hf_model("llama", rope=LLAMA3_ROPE)).config.rope
    gguf = open_model(gguf_model("llama", rope=LLAMA3_ROPE)).config.rope
    assert (hf.scaling, hf.factor, hf.original_context_len) == ("llama3", 8.0, 64)
    assert gguf.scaling == "none"
    assert gguf.freq_factors is not None
    assert len(gguf.freq_factors) == gguf.dim // 2
    assert (gguf.freq_factors[0], gguf.freq_factors[-1]) == (1.0, 8.0)


def test_yarn_is_the_same_from_both_formats() -> None:
    hf = open_model(hf_model("qwen2", rope=YARN_ROPE)).config.rope
    assert hf.attention_factor == pytest.approx(0.1 * np.log(4.0) + 1.0)
    assert open_model(gguf_model("qwen2", rope=YARN_ROPE)).config.rope == hf


def test_sharded_directories_open_like_whole_ones(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "sharded"
    model = AutoModelForCausalLM.from_pretrained(hf_model("qwen2"))
    model.save_pretrained(folder, max_shard_size="100KB")
    whole, sharded = open_model(hf_model("qwen2")), open_model(folder)
    assert len({t.path for t in sharded.tensors.values()}) > 1
    with TensorReader() as reader:
        for name, tensor in whole.tensors.items():
            other = sharded.tensors[name]
            assert np.array_equal(reader.read(tensor), reader.read(other))


def test_eos_ids_come_from_the_generation_config(hf_copy: Path) -> None:
    (hf_copy / "generation_config.json").write_text('{"eos_token_id": [5, 2, 5]}')
    assert open_model(hf_copy).config.eos_ids == (5, 2)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\n---\nlicense: mit\n", "apache-2.0"),
        ("---\nlanguage: en\n---\nlicense: mit\n", None),
        ("license: mit\n", None),
        ("", None),
    ],
)
def test_the_licence_comes_from_the_model_card(
    hf_copy: Path, card: str, licence: str | None
) -> None:
    (hf_copy / "README.md").write_text(card)
    config = open_model(hf_copy).config
    assert (config.name, config.license) == ("model", licence)


@pytest.mark.parametrize(
    ("in_config", "expected"),
    [
        ("plain", "plain"),
        ([{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}], "b"),
        ([{"name": ["x"], "template": "a"}], None),
        (None, None),
    ],
)
def test_chat_template_of_the_tokenizer_config(
    hf_copy: Path, in_config: object, expected: str | None
) -> None:
    (hf_copy / "tokenizer_config.json").write_text(json.dumps({"chat_template": in_config}))
    assert open_model(hf_copy).chat_template == expected
    (hf_copy / "chat_template.jinja").write_text("own file wins")
    assert open_model(hf_copy).chat_template == "own file wins"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported; capax runs llama, "),
        ({"hidden_size": 128}, r"'model\.embed_tokens\.weight' has shape \[320, 64\] .* \[320, 12"),
        ({"num_hidden_layers": 4}, r"'model\.layers\.3\.input_layernorm\.weight' is missing"),
        ({"num_hidden_layers": 2}, r"holds tensor 'model\.layers\.2\..* and 8 more"),
        ({"num_key_value_heads": 3}, "n_heads is 4, which n_kv_heads 3 does not divide"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', which capax does not run"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"vocab_size": 2**40}, "vocab_size is 1099511627776"),
    ],
)
def test_a_directory_that_does_not_fit_its_config_is_refused(
    hf_copy: Path, changes: dict[str, object], message: str
) -> None:
    change_config(hf_copy, **changes)
    with pytest.raises(FileFormatError, match=message):
        open_model(hf_copy)


def test_tied_models_ignore_a_copy_of_the_head(hf_copy: Path) -> None:
    change_config(hf_copy, tie_word_embeddings=True)
    assert "output.weight" not in open_model(hf_copy).tensors


def test_a_canonical_name_in_a_directory_is_not_mistaken_for_the_tensor(hf_copy: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(hf_copy / "model.safetensors")
    tensors["output_norm.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, hf_copy / "model.safetensors")
    with pytest.raises(FileFormatError, match=r"holds tensor 'output_norm\.weight'"):
        open_model(hf_copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": ("blk.1.ffn_up.weight",)}, r"tensor 'blk\.1\.ffn_up\.weight' is missing"),
        ({"drop": ("token_embd.weight",)}, r"'token_embd\.weight' is missing"),
        ({"general__architecture": "gptj"}, "'gptj' is not supported; capax runs GGUF models of"),
        ({"general__architecture": None}, r"general\.architecture None is not supported"),
        ({"llama__expert_count": 8}, r"llama\.expert_count is 8, which capax does not run"),
        ({"llama__rope__scaling__type": "longrope"}, r"scaling\.type is 'longrope'"),
        ({"llama__block_count": 4}, r"'blk\.3\.attn_norm\.weight' is missing; .* 4 layers"),
        ({"llama__block_count": 0}, r"llama\.block_count is 0"),
        ({"llama__vocab_size": 321}, r"llama\.vocab_size is 321 but 'token_embd\.weight' has 320"),
        ({"llama__rope__freq_base": math.nan}, r"llama\.rope\.freq_base is nan"),
        ({"llama__rope__freq_base": 0.0}, r"llama\.rope\.freq_base is 0\.0"),
        ({"llama__attention__head_count": 0}, r"llama\.attention\.head_count is 0"),
        ({"llama__attention__head_count": 2**31}, r"llama\.attention\.head_count is 2147483648"),
        ({"llama__attention__head_count_kv": 3}, "n_kv_heads 3 does not divide"),
        ({"llama__attention__head_count_kv": [2, 2, 2]}, r"head_count_kv is GGUFArray\(INT32 x 3"),
        ({"llama__context_length": 2**40}, r"llama\.context_length is 1099511627776"),
        ({"llama__embedding_length": 66}, r"'token_embd\.weight' has shape \[320, 64\]"),
        ({"llama__attention__key_length": 0}, r"llama\.attention\.key_length is 0"),
        ({"llama__attention__layer_norm_rms_epsilon": -math.inf}, "rms_epsilon is -inf"),
        ({"llama__attention__value_length": 8}, r"value_length is 8 but keys have 16"),
        ({"llama__rope__dimension_count": 8}, r"rope\.dim is 8 but head_dim is 16"),
        ({"tokenizer__ggml__bos_token_id": 320}, "bos_id is 320; .* between 0 and 319"),
        ({"tokenizer__chat_template": Typed(1, ValueType.UINT8)}, "chat template is no string"),
        (
            {"add": (TensorData("blk.0.attn_output.bias", (64,), F32, bytes(256)),)},
            r"holds tensor 'blk\.0\.attn_output\.bias', which llama models",
        ),
        (
            {"add": (TensorData("rope_freqs.weight", (8,), F32, np.full(8, np.nan, "f4")),)},
            r"rope\.freq_factors is nan",
        ),
        (
            {"add": (TensorData("rope_freqs.weight", (9,), F32, np.ones(9, "f4")),)},
            r"rope\.freq_factors has 9 numbers; rope\.dim 16 needs 8",
        ),
    ],
)
def test_a_gguf_that_does_not_fit_its_metadata_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "bad.gguf"
    rewrite_gguf(gguf_model("llama"), path, **change)  # type: ignore[arg-type]  # mixed options
    with pytest.raises(FileFormatError, match=message) as caught:
        open_model(path)
    assert "bad.gguf" in str(caught.value)


@pytest.mark.parametrize("name", ["m.bin", "m.pt", "m.pkl", "m.ckpt"])
def test_formats_that_can_run_code_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(FileFormatError, match="convert the model to safetensors or GGUF"):
        open_model(tmp_path / name)


def test_the_real_model_opens_fast_and_complete(smollm2: Path) -> None:
    start = time.perf_counter()
    model = open_model(smollm2)
    assert time.perf_counter() - start < 0.25  # measured 0.013 s, 2026-11
    c = model.config
    assert (c.n_layers, c.d_model, c.n_heads, c.n_kv_heads, c.head_dim) == (30, 576, 9, 3, 64)
    assert (c.d_ffn, c.vocab_size, c.context_len, c.rope.base) == (1536, 49_152, 8_192, 100_000.0)
    assert c.tied_embeddings
    assert c.license == "apache-2.0"
    assert len(model.tensors) == 272
    assert {t.encoding.name for t in model.tensors.values()} == {"F32", "Q4_1", "Q8_0"}


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no such file or directory"):
        open_model(tmp_path / "nowhere")
    with pytest.raises(FileFormatError, match=r"no config\.json and no \.gguf file"):
        open_model(tmp_path)
    with pytest.raises(FileFormatError, match="is its directory"):
        open_model(hf_model("llama") / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileFormatError, match=r"config\.json: model_type None"):
        open_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "model_type": "llama"}')
    with pytest.raises(CapaxError, match="'model_type' appears twice"):
        open_model(tmp_path)
