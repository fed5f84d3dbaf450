"""The float32 directory that peers and the perplexity reference start from."""

import json
from pathlib import Path

import numpy as np

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
