"""Lossless compression: every byte comes back, at the size the log-probabilities promise."""

import lzma
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from capax import LLM
from capax.errors import ConfigError, StoreError
from capax.measuring import compression
from capax.measuring.compression import MAGIC, compress, decompress, read_header
from tests.models import gguf_model

SOURCES = Path(__file__).parents[2] / "src"
PROSE = ("the rain in the hills and the sound of it on the roof; " * 9).encode()
FILES = {
    "prose": PROSE,
    "code": b"def f(x):\n\treturn [y ** 2 for y in x if y % 3]\n" * 4,
    "not latin": "日本語の文章、ελληνικά и русский 🦫\r\n".encode() * 3,
    "empty": b"",
    "one byte": b"a",
    "not UTF-8": b"caf\xe9 \xff\xfe\x00 " + PROSE[:40],
    "every byte": bytes(range(256)),
    "control tokens spelt out": b"<|im_start|>user <|endoftext|>",
}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(gguf_model("llama"), ctx_size=64, n_sequences=16, threads=2) as llm:
        yield llm


@pytest.mark.parametrize("name", FILES)
def test_the_file_comes_back(llm: LLM, name: str) -> None:
    data = FILES[name]
    result = compress(data, llm, window=24)
    assert decompress(result.content, llm) == data
    header, payload = read_header(result.content)
    assert header.n_tokens == result.n_tokens
    assert len(payload) == result.payload_nbytes


def test_the_size_is_what_the_log_probabilities_promise(llm: LLM) -> None:
    result = compress(PROSE, llm, window=24)
    bits = 8 * result.payload_nbytes
    assert result.predicted_bits - 8 < bits < result.predicted_bits + 7e-5 * result.n_tokens + 64
    ids = llm.tokenizer.encode(PROSE.decode(), add_special=False)
    assert result.n_tokens == len(ids)


def test_threads_and_chunks_do_not_matter(llm: LLM) -> None:
    content = compress(PROSE, llm, window=24).content
    with LLM(gguf_model("llama"), ctx_size=48, n_sequences=16, threads=1, prefill_chunk=5) as other:
        assert compress(PROSE, other, window=24).content == content
        assert decompress(content, other) == PROSE


def test_a_model_with_bos_codes_the_first_token_too() -> None:
    with LLM(gguf_model("mistral"), ctx_size=64, n_sequences=16) as llm:
        result = compress(PROSE, llm, window=20)
        assert decompress(result.content, llm) == PROSE


def test_another_model_is_refused(llm: LLM) -> None:
    content = compress(PROSE, llm, window=24).content
    with (
        LLM(gguf_model("qwen2"), ctx_size=64, n_sequences=16) as other,
        pytest.raises(StoreError, match="with another model"),
    ):
        decompress(content, other)


def test_another_cache_precision_is_refused(llm: LLM) -> None:
    content = compress(PROSE, llm, window=24).content
    with (
        LLM(gguf_model("llama"), ctx_size=64, n_sequences=16, kv="int8") as other,
        pytest.raises(StoreError, match="give --kv f16"),
    ):
        decompress(content, other)


def test_other_logits_are_refused(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    content = compress(PROSE, llm, window=24).content
    monkeypatch.setattr(compression, "_fingerprint", lambda llm, window: bytes(8))
    with pytest.raises(StoreError, match="computes other logits"):
        decompress(content, llm)


@pytest.mark.parametrize("at", [-1, -20, -100])
def test_a_flipped_byte_is_found(llm: LLM, at: int) -> None:
    content = bytearray(compress(PROSE, llm, window=24).content)
    content[at] ^= 0x10
    with pytest.raises(StoreError, match="damaged"):
        decompress(bytes(content), llm)


def test_a_cut_file_is_found(llm: LLM) -> None:
    content = compress(PROSE, llm, window=24).content
    with pytest.raises(StoreError):
        decompress(content[:-9], llm)
    for n in range(0, 60, 7):
        with pytest.raises(StoreError):
            decompress(content[:n], llm)


@pytest.mark.parametrize(
    "change",
    [
        {"n_bytes": -1},
        {"n_bytes": 1 << 60},
        {"n_tokens": 1 << 60},
        {"n_tokens": -5},
        {"lanes": 0},
        {"lanes": 4096},
        {"window": 1},
        {"checksum": b"short"},
    ],
)
def test_a_lying_header_is_refused_before_any_work(llm: LLM, change: dict[str, object]) -> None:
    header, payload = read_header(compress(PROSE, llm, window=24).content)
    encoded = msgspec.msgpack.encode(msgspec.structs.replace(header, **change))
    with pytest.raises(StoreError, match="contradict"):
        decompress(MAGIC + len(encoded).to_bytes(2, "little") + encoded + payload, llm)


def test_an_lzma_bomb_gives_no_more_than_its_header_says(llm: LLM) -> None:
    header, _ = read_header(compress(bytes(range(256)), llm, window=24).content)
    if header.window:
        header = msgspec.structs.replace(header, window=0)
    encoded = msgspec.msgpack.encode(header)
    bomb = lzma.compress(bytes(1 << 24))
    with pytest.raises(StoreError, match="damaged"):
        decompress(MAGIC + len(encoded).to_bytes(2, "little") + encoded + bomb, llm)


def test_a_window_that_does_not_fit_is_refused(llm: LLM) -> None:
    for window in (1, 65):
        with pytest.raises(ConfigError, match=f"window is {window}"):
            compress(PROSE, llm, window=window)
    content = compress(PROSE, llm, window=60).content
    with (
        LLM(gguf_model("llama"), ctx_size=32, n_sequences=16) as small,
        pytest.raises(ConfigError, match="raise --ctx-size"),
    ):
        decompress(content, small)


def test_commands_restore_a_file_in_another_process(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(PROSE)
    model = str(gguf_model("llama"))

    def capax(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "capax", "measure", *arguments, "-m", model],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(SOURCES)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    packed = capax("compress", "in.txt", "-o", "packed", "--window", "24")
    assert packed.returncode == 0, packed.stderr
    assert "bits per byte" in packed.stdout
    restored = capax("decompress", "packed", "-o", "out.txt")
    assert restored.returncode == 0, restored.stderr
    assert (tmp_path / "out.txt").read_bytes() == PROSE
    refused = capax("decompress", "packed", "-o", "out.txt")
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    foreign = capax("decompress", "in.txt", "-o", "again.txt")
    assert foreign.returncode == 1
    assert "capax measure compress" in foreign.stderr


def test_the_real_model_halves_what_xz_makes_of_prose(smollm2: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/architecture.md").read_bytes()[:6000]
    with LLM(smollm2, ctx_size=513, n_sequences=16) as llm:
        result = compress(text, llm, window=512)
        assert decompress(result.content, llm) == text
    assert len(result.content) < 0.8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
