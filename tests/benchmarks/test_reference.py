"""The float32 directory that peers and the perplexity reference start from."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import reference


def test_rotary_halves_undoes_the_interleaving_of_pairs() -> None:
    halves = np.arange(2 * 6 * 3, dtype=np.float32).reshape(12, 3)  # 2 heads of 6 rows
    # GGUF puts row i of the first half beside row i of the second half, head by head.
    interleaved = halves.reshape(2, 2, 3, 3).swapaxes(1, 2).reshape(12, 3)
    assert np.array_equal(reference.rotary_halves(interleaved, 2), halves)


def test_the_id_tokenizer_maps_names_to_their_ids(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    reference.write_id_tokenizer(tmp_path, 200)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("t5 t199 t0").ids == [5, 199, 0]
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["unk_token"] == "t0"


def test_linear_work_counts_a_tied_embedding_once(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((10, 4), np.float32))
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((6, 4), np.float16))
    writer.add_tensor("blk.0.attn_norm.weight", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    work = reference.linear_work(tmp_path / "tiny.gguf")
    assert work == reference.LinearWork(nbytes=160 + 48, layer_macs=24, head_macs=40)
