"""Small random models of every supported family, made by transformers in a second.

`hf_model(family)` returns a directory as `save_pretrained` writes it, with a working
byte-level tokenizer; `gguf_model(family)` the same weights as a GGUF file, with q and k
permuted for llama and mistral as llama.cpp's converter does. Both are made once per
session and option set. Norms and biases are random too, so that leaving one out shows.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from capax.files.config import FAMILIES, ModelConfig
from capax.files.encodings import F32, encoding_named
from capax.files.gguf import TensorData, Typed, ValueType, write_gguf
from capax.files.model_file import ModelFile, open_model
from capax.files.tensors import TensorReader, read_float32

FAMILY_NAMES = ("llama", "qwen2", "qwen3", "mistral")
VOCAB_SIZE = 320
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Rotary scalings to pass as `rope=...`; each at a length where it makes a difference.
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}


def hf_model(family: str, *, rope: dict[str, Any] | None = None, **overrides: Any) -> Path:
    """Return the directory of a random model; `overrides` are transformers config keys."""
    return _hf_model(family, json.dumps(rope), json.dumps(overrides, sort_keys=True))


def gguf_model(
    family: str, *, encoding: str = "F32", rope: dict[str, Any] | None = None, **overrides: Any
) -> Path:
    """Return the same model as a GGUF file, its matrices in `encoding` (not a K encoding)."""
    key = json.dumps(overrides, sort_keys=True)
    return _gguf_model(family, encoding, json.dumps(rope), key)


def hf_oracle(model_dir: Path) -> Any:
    """Load the transformers model at `model_dir` in float32 with eager attention."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


@cache
def bert_model(pooling: str = "mean", **overrides: Any) -> Path:
    """Return the directory of a random BERT encoder with a WordPiece tokenizer of letters.

    With `pooling` "mean" there are no pooling files, so that defaults apply; "cls" comes with
    the files of sentence-transformers, which also say that nothing is normalised.
    """
    import torch
    import transformers

    keys: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 48,
        "intermediate_size": 104,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 600,
        "initializer_range": 0.15,
    }
    torch.manual_seed(20_240_602)
    model = transformers.BertModel(transformers.BertConfig(**keys | overrides))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("LayerNorm.weight"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith(".bias"):
                parameter.normal_(0.0, 0.2)
    folder = Path(tempfile.mkdtemp(prefix="bert-", dir=_root()))
    model.save_pretrained(folder)
    _write_wordpiece(folder)
    if pooling != "mean":
        steps = [("Transformer", ""), ("Pooling", "1_Pooling")]
        modules = [{"type": f"sentence_transformers.models.{t}", "path": p} for t, p in steps]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 200}')
        (folder / "1_Pooling").mkdir()
        modes = {"word_embedding_dimension": 48, f"pooling_mode_{pooling}": True}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    return folder


def bert_oracle(model_dir: Path) -> Any:
    """Load the transformers encoder at `model_dir` in float32 with eager attention."""
    import torch
    from transformers import BertModel

    model = BertModel.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def _write_wordpiece(folder: Path) -> None:
    """Write a lower-casing WordPiece tokenizer whose words are letters and pairs of letters."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece

    letters = "etaoinshrdlucmfwypvbgkqjxz"
    texts = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{a}" for a in letters)]
    texts += [a + b for a in letters for b in letters][: VOCAB_SIZE - len(texts)]
    vocabulary = {text: i for i, text in enumerate(texts)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(texts[:4])
    tokenizer.enable_truncation(8)  # as files come; nothing may be cut silently
    tokenizer.save(str(folder / "tokenizer.json"))


@cache
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="capax-test-models-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


@cache
def _hf_model(family: str, rope_json: str, overrides_json: str) -> Path:
    import torch
    import transformers

    keys: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32 if family == "qwen3" else 16,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": family == "qwen3",
        "bos_token_id": 0,
        "eos_token_id": [2, 0],
        "pad_token_id": None,
        "initializer_range": 0.15,
        "rope_parameters": json.loads(rope_json)
        or {"rope_type": "default", "rope_theta": 10_000.0},
    }
    if family == "qwen2":
        keys.pop("head_dim")
    if family == "mistral":
        keys["sliding_window"] = 24
    keys.update(json.loads(overrides_json))
    name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "mistral": "Mistral"}[family]
    config = getattr(transformers, f"{name}Config")(**keys)
    torch.manual_seed(20_240_601)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            elif parameter_name.endswith(".bias"):
                parameter.normal_(0.0, 0.2)
    folder = Path(tempfile.mkdtemp(prefix=f"{family}-", dir=_root()))
    model.save_pretrained(folder)
    _write_tokenizer(folder, keys["vocab_size"])
    return folder


@cache
def _gguf_model(family: str, encoding: str, rope_json: str, overrides_json: str) -> Path:
    source = _hf_model(family, rope_json, overrides_json)
    path = _root() / f"{source.name}-{encoding}.gguf"
    convert_to_gguf(open_model(source), path, encoding)
    return path


def convert_to_gguf(model: ModelFile, path: Path, encoding: str = "F32") -> None:
    """Write a safetensors model as GGUF: float32 vectors, matrices in `encoding`."""
    c = model.config
    is_interleaved = FAMILIES[c.architecture].gguf_rope_style == "interleaved"
    out: list[TensorData] = []
    with TensorReader() as reader:
        for name, info in model.tensors.items():
            values = read_float32(reader, info)
            if is_interleaved and ".attn_q." in name:
                values = permute_for_interleaved(values, c.n_heads)
            elif is_interleaved and ".attn_k." in name:
                values = permute_for_interleaved(values, c.n_kv_heads)
            out.append(_encoded(name, values, encoding if values.ndim == 2 else "F32"))
    if c.rope.scaling == "llama3":
        factors = llama3_freq_factors(c)
        out.append(TensorData("rope_freqs.weight", factors.shape, F32, factors))
    write_gguf(path, _metadata(model), out)


def permute_for_interleaved(values: np.ndarray, n_heads: int) -> np.ndarray:
    """Reorder the rows of each head from halves (i, i + dim/2) to pairs (2i, 2i + 1)."""
    rows = values.reshape(n_heads, 2, values.shape[0] // n_heads // 2, *values.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(values.shape)


def llama3_freq_factors(config: ModelConfig) -> np.ndarray:
    """Return the divisors of the rotary frequencies that llama3 scaling amounts to."""
    rope = config.rope
    assert rope.original_context_len is not None
    i = np.arange(0, rope.dim, 2, dtype=np.float64)
    wavelength = 2 * np.pi * rope.base ** (i / rope.dim)
    low_wavelength = rope.original_context_len / rope.low_freq_factor
    high_wavelength = rope.original_context_len / rope.high_freq_factor
    smooth = (rope.original_context_len / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    between = 1 / ((1 - smooth) / rope.factor + smooth)
    factors = np.where(wavelength > low_wavelength, rope.factor, between)
    return np.where(wavelength < high_wavelength, 1.0, factors).astype(np.float32)


def _encoded(name: str, values: np.ndarray, encoding: str) -> TensorData:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    data = values if encoding == "F32" else quantize(values, GGMLQuantizationType[encoding])
    return TensorData(name, values.shape, encoding_named(encoding), data)


def _metadata(model: ModelFile) -> dict[str, Any]:
    c = model.config
    arch = c.architecture if FAMILIES[c.architecture].has_gguf_name else "llama"
    metadata: dict[str, Any] = {
        "general.architecture": arch,
        "general.name": f"tiny random {c.architecture}",
        "general.license": "apache-2.0",
        f"{arch}.block_count": c.n_layers,
        f"{arch}.context_length": c.context_len,
        f"{arch}.embedding_length": c.d_model,
        f"{arch}.feed_forward_length": c.d_ffn,
        f"{arch}.attention.head_count": c.n_heads,
        f"{arch}.attention.head_count_kv": c.n_kv_heads,
        f"{arch}.attention.key_length": c.head_dim,
        f"{arch}.attention.value_length": c.head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": c.norm_eps,
        f"{arch}.rope.freq_base": c.rope.base,
        f"{arch}.rope.dimension_count": c.rope.dim,
        f"{arch}.vocab_size": c.vocab_size,
    }
    if c.sliding_window is not None:
        metadata[f"{arch}.attention.sliding_window"] = c.sliding_window
    if c.rope.scaling in ("linear", "yarn"):
        metadata[f"{arch}.rope.scaling.type"] = c.rope.scaling
        metadata[f"{arch}.rope.scaling.factor"] = c.rope.factor
    if c.rope.scaling == "yarn":
        metadata[f"{arch}.rope.scaling.original_context_length"] = c.rope.original_context_len
    tokens, merges = vocabulary(c.vocab_size)
    n_specials = len(SPECIALS)
    metadata |= {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": Typed(
            [3] * n_specials + [1] * (len(tokens) - n_specials), ValueType.INT32
        ),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }
    return metadata


# --- a byte-level BPE vocabulary of any size above 259 --------------------------------


def vocabulary(vocab_size: int) -> tuple[list[str], list[str]]:
    """Return `vocab_size` tokens (specials, 256 bytes, merges) and the merges."""
    alphabet = _byte_alphabet()
    tokens = [*SPECIALS, *alphabet]
    merges: list[str] = []
    lefts = ["\u0120", *"etaoinshrdlu"]
    pairs = ((a, b) for a in lefts for b in "etaoinshrdlucmfwypvbgkqjxz")
    for a, b in pairs:
        if len(tokens) >= vocab_size:
            break
        merges.append(f"{a} {b}")
        tokens.append(a + b)
    tokens += [f"<|unused_{i}|>" for i in range(len(tokens), vocab_size)]
    return tokens, merges


def _byte_alphabet() -> list[str]:
    """Return the printable stand-ins of the 256 bytes, as GPT-2 orders them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
    tokens, merges = vocabulary(vocab_size)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, text in enumerate(SPECIALS)
        ],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": merges,
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIALS[0],
        "eos_token": SPECIALS[2],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
