"""The float32 reference: a GGUF file's weights, dequantised, as a Hugging Face Llama directory.

`make_directory` uses the `gguf` package for dequantisation, so nothing of capax takes part in it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.peers.base import FIRST_ID

PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def rotary_halves(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Undo GGUF's row order of Llama's Q and K: pairs next to each other become two halves."""
    n_out, n_in = weight.shape
    pairs = weight.reshape(n_heads, n_out // n_heads // 2, 2, n_in)
    return pairs.swapaxes(1, 2).reshape(n_out, n_in)


def make_directory(gguf_path: Path, target: Path) -> None:
    """Write `config.json`, `model.safetensors` and a tokenizer that maps `t<id>` to `<id>`.

    Raises ValueError for an architecture other than Llama.
    """
    from gguf import GGUFReader, dequantize
    from safetensors.numpy import save_file

    reader = GGUFReader(gguf_path)

    def field(name: str) -> Any:
        return reader.fields[name].contents()

    if field("general.architecture") != "llama":
        raise ValueError(f"{gguf_path} is a {field('general.architecture')} model, not llama")
    n_heads = field("llama.attention.head_count")
    n_kv_heads = field("llama.attention.head_count_kv")
    tensors: dict[str, np.ndarray] = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name == "token_embd.weight":
            tensors["model.embed_tokens.weight"] = weight
        elif tensor.name == "output_norm.weight":
            tensors["model.norm.weight"] = weight
        elif tensor.name == "output.weight":
            tensors["lm_head.weight"] = weight
        elif tensor.name.startswith("blk."):
            _, layer, part, _ = tensor.name.split(".")
            if part in ("attn_q", "attn_k"):
                weight = rotary_halves(weight, n_heads if part == "attn_q" else n_kv_heads)
            tensors[f"model.layers.{layer}.{PARTS[part]}.weight"] = np.ascontiguousarray(weight)
        else:
            raise ValueError(f"{gguf_path} has an unexpected tensor '{tensor.name}'")
    vocab_size, d_model = tensors["model.embed_tokens.weight"].shape
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": vocab_size,
        "hidden_size": d_model,
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads,
        "head_dim": d_model // n_heads,
        "max_position_embeddings": field("llama.context_length"),
        "rms_norm_eps": field("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": field("llama.rope.freq_base"),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    target.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config, indent=2))
    write_id_tokenizer(target, vocab_size)


class LinearWork(NamedTuple):
    """What one token costs in matrix products, from the shapes and encodings in a GGUF file."""

    nbytes: int  # of all matrices; each is read once per decoded token
    layer_macs: int  # multiply-adds in the layers' matrices, for every token
    head_macs: int  # multiply-adds of the output matrix, for tokens whose logits are wanted


def linear_work(gguf_path: Path) -> LinearWork:
    """Count the matrices of a GGUF file; a tied embedding counts once, as the output matrix."""
    from gguf import GGUFReader

    matrices = [t for t in GGUFReader(gguf_path).tensors if len(t.shape) == 2]
    is_tied = not any(t.name == "output.weight" for t in matrices)
    head = "token_embd.weight" if is_tied else "output.weight"
    used = [t for t in matrices if t.name.startswith("blk.") or t.name == head]
    layers = sum(int(t.n_elements) for t in used if t.name != head)
    heads = sum(int(t.n_elements) for t in used if t.name == head)
    return LinearWork(sum(int(t.n_bytes) for t in used), layers, heads)


def write_id_tokenizer(target: Path, vocab_size: int) -> None:
    """Write a tokenizer whose token `t<id>` has that id: the benchmarks speak in ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {f"t{i}": i for i in range(vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(target / "tokenizer.json"))
    special = {"unk_token": "t0", "bos_token": "t1", "eos_token": "t2"}
    (target / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special})
    )
    assert vocab_size > FIRST_ID


def perplexity(
    directory: Path, ids: list[int], window: int, n_windows: int, threads: int
) -> dict[str, float | int]:
    """Return perplexity and mean negative log-likelihood over consecutive windows of `ids`.

    Windows do not overlap, nothing is added, and the first token of a window is not scored.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    total, n_tokens = 0.0, 0
    with torch.inference_mode():
        for start in range(0, n_windows * window, window):
            tokens = torch.tensor(ids[start : start + window])
            logits = model(tokens[None]).logits[0, :-1].double()
            log_probs = torch.log_softmax(logits, dim=-1)
            total -= float(log_probs[torch.arange(window - 1), tokens[1:]].sum())
            n_tokens += window - 1
    nll = total / n_tokens
    return {"perplexity": math.exp(nll), "nll_per_token": nll, "n_tokens": n_tokens}
