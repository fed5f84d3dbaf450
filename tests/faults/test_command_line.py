"""Bad files, prompts and budgets at the command line: one sentence, an exit code, no traceback."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from capax.files.model_file import open_model
from tests.faults.child import environment
from tests.models import gguf_model

FAILED, MISUSE, DOES_NOT_FIT = 1, 2, 3


def capax(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "capax", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env=environment(),
    )


def assert_refused(
    done: subprocess.CompletedProcess[str], code: int, *words: str, n_lines: int = 1
) -> None:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    assert len(done.stderr.splitlines()) <= n_lines, done.stderr
    for word in words:
        assert word in done.stderr


def changed(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    assert len(old) == len(new)
    return content.replace(old, new)


def lying_count(content: bytes) -> bytes:
    return content[:8] + (2**60).to_bytes(8, "little") + content[16:]


def lying_offset(content: bytes) -> bytes:
    """Every tensor's offset is 8 bytes behind its name, shape and kind: make one huge."""
    name = b"blk.0.ffn_up.weight"
    at = content.index(name) + len(name) + 4 + 2 * 8 + 4
    return content[:at] + (2**40).to_bytes(8, "little") + content[at + 8 :]


def unknown_encoding(content: bytes) -> bytes:
    name = b"blk.0.ffn_up.weight"
    at = content.index(name) + len(name) + 4 + 2 * 8
    return content[:at] + (77).to_bytes(4, "little") + content[at + 4 :]


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], tuple[str, ...]]] = {
    "empty": (lambda c: b"", ()),
    "another-format": (lambda c: b"PK\x03\x04" + c[4:], ()),
    "half": (lambda c: c[: len(c) // 2], ()),
    "one-byte-short": (lambda c: c[:-1], ()),
    "header-only": (lambda c: c[:500], ()),
    "lying-count": (lying_count, ()),
    "lying-offset": (lying_offset, ("blk.0.ffn_up.weight",)),
    "unknown-encoding": (unknown_encoding, ("blk.0.ffn_up.weight", "77")),
    "unknown-architecture": (
        lambda c: changed(
            c, b"\x08\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00llama",
            b"\x08\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00laama",
        ),
        ("laama",),
    ),
    "no-merges": (
        lambda c: changed(c, b"tokenizer.ggml.merges", b"tokenizer.ggml.mergez"),
        ("merges",),
    ),
    "no-embedding": (lambda c: changed(c, b"token_embd.weight", b"token_embx.weight"), ()),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_one_sentence_that_names_it(tmp_path: Path, damage: str) -> None:
    change, words = DAMAGE[damage]
    path = tmp_path / "damaged.gguf"
    path.write_bytes(change(gguf_model("llama", encoding="Q8_0").read_bytes()))
    assert_refused(capax("run", path, "-p", "the", "-n", "2"), FAILED, "damaged.gguf", *words)


def test_flipped_bits_never_give_a_traceback(tmp_path: Path) -> None:
    """Some flips are harmless or only change weights; none may crash or go on for ever."""
    content = gguf_model("llama", encoding="Q8_0").read_bytes()
    header = min(
        t.offset for t in open_model(gguf_model("llama", encoding="Q8_0")).tensors.values()
    )
    rng = random.Random(11)
    path = tmp_path / "flipped.gguf"
    for _ in range(12):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[rng.randrange(header)] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        done = capax("run", path, "-p", "the", "-n", "2")
        assert done.returncode in (0, FAILED, DOES_NOT_FIT), done.stderr
        assert "Traceback" not in done.stderr
        assert "internal error" not in done.stderr


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ cycler.__init__.__globals__.os.system('touch /tmp/never') }}",
        "{% for m in messages %}{{ m.content",
        "{{ 'x' * 10**12 }}",
    ],
)
def test_an_evil_template_is_refused(tmp_path: Path, template: str) -> None:
    from tests.models import CHAT_TEMPLATE

    content = gguf_model("llama", encoding="Q8_0").read_bytes()
    padded = template.encode().ljust(len(CHAT_TEMPLATE.encode()))
    path = tmp_path / "evil.gguf"
    path.write_bytes(changed(content, CHAT_TEMPLATE.encode(), padded))
    assert_refused(capax("run", path, "the", "-n", "2"), FAILED, "template")


@pytest.fixture(scope="module")
def model() -> Path:
    return gguf_model("llama", encoding="Q8_0")


def test_a_prompt_longer_than_the_context_says_both_counts(model: Path) -> None:
    done = capax("run", model, "-p", "tea " * 600, "-n", "2", "--raw")
    assert_refused(done, FAILED, "512", "tokens")


def test_a_budget_too_small_exits_with_3_and_what_it_names_fits(model: Path) -> None:
    done = capax("run", model, "-p", "the", "-n", "2", "--memory", "20MiB")
    assert_refused(done, DOES_NOT_FIT, "20.00 MiB", "--memory", n_lines=5)
    suggested = done.stderr.split("--memory ")[1].split()[0]
    again = capax("run", model, "-p", "the", "-n", "2", "--memory", suggested)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--temp", "nan"], FAILED),
        (["--temp", "-1"], FAILED),
        (["--top-p", "2"], FAILED),
        (["-n", "many"], MISUSE),
        (["--no-such-flag"], MISUSE),
        (["--memory", "lots"], FAILED),
        (["--threads", "0"], FAILED),
        (["--kv", "f64"], FAILED),
    ],
    ids=str,
)
def test_a_bad_flag_is_no_traceback(model: Path, flags: list[str], code: int) -> None:
    done = capax("run", model, "-p", "the", "-n", "2", *flags)
    assert done.returncode in {code, MISUSE}, done.stderr
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    assert done.stdout == ""
    assert flags[0].lstrip("-").split("-")[0] in done.stderr


@pytest.mark.parametrize(
    "name", ["no-such-model", "/nowhere/at/all.gguf", "", "../..", "\x1b[31mred"]
)
def test_a_model_that_is_not_there_is_one_sentence(name: str) -> None:
    done = capax("run", name, "-p", "the")
    assert done.returncode in {FAILED, MISUSE}
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    assert "\x1b[31m" not in done.stderr
    assert done.stdout == ""


def test_a_model_whose_numbers_are_none_is_said(tmp_path: Path, model: Path) -> None:
    from tests.faults.test_poison import poisoned

    bad = poisoned(model, tmp_path / "bad.gguf", "output_norm.weight", float("nan"))
    done = capax("run", bad, "-p", "the", "-n", "3", "--raw")
    assert_refused(done, FAILED, "not finite", n_lines=3)
