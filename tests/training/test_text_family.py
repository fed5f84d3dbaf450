"""Families of small models of text: equal bytes for all, tokenizers that lose nothing, experts."""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
from capax import LLM  # noqa: E402
from capax.cli.main import cli  # noqa: E402
from capax.errors import ConfigError, FileFormatError  # noqa: E402
from capax.training.llama import FeedForward, Llama  # noqa: E402
from capax.training.mixture import Mixture, with_experts  # noqa: E402
from capax.training.package_texts import Package, package_texts  # noqa: E402
from capax.training.text_family import (  # noqa: E402
    MemberRecipe,
    encoded,
    text_bits,
    train_member,
    train_tokenizer,
    windows,
    write_member,
)

TEXTS = [f"The {i}th text says that {i} and {i} are {2 * i}, é and 漢 too." for i in range(300)]
N_BYTES = 12_000
RECIPE = MemberRecipe(width=32, layers=1, n_vocab=300, window=32, n_bytes=N_BYTES, steps=20)


@pytest.mark.parametrize("n_vocab", [256, 300])
def test_a_tokenizer_gives_back_the_text_and_every_vocabulary_the_same_bytes(n_vocab: int) -> None:
    tokenizer = train_tokenizer(TEXTS, n_vocab)
    tokens = encoded(TEXTS, tokenizer, N_BYTES)
    text = tokenizer.decode(tokens.tolist())
    assert text == "\n\n".join(TEXTS)[: len(text)]
    assert N_BYTES - 4 < len(text.encode()) <= N_BYTES
    if n_vocab == 256:
        assert len(tokens) == len(text.encode())


def test_every_window_is_read_once() -> None:
    tokens = np.arange(32 * 77 + 5, dtype=np.uint16)
    shown = torch.cat([windows(tokens, RECIPE, step) for step in range(RECIPE.steps)])
    assert sorted(shown.flatten().tolist()) == list(range(32 * 77))
    again = torch.cat([windows(tokens, RECIPE, step) for step in range(RECIPE.steps)])
    assert torch.equal(shown, again)


def test_too_little_text_is_one_sentence(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 256)
    with pytest.raises(ConfigError, match="the text ends"):
        encoded(TEXTS, tokenizer, 10**6)
    with pytest.raises(ConfigError, match="fewer than one window"):
        train_member(RECIPE, np.zeros(32 * 19, np.uint16), tmp_path)
    with pytest.raises(ConfigError, match="the text gives"):
        train_tokenizer(["short"], 4096)


def test_the_engine_scores_a_member_as_torch_does(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, RECIPE.n_vocab)
    member = train_member(RECIPE, encoded(TEXTS, tokenizer, N_BYTES), tmp_path / "run")
    path = tmp_path / "member.gguf"
    write_member(member.model, tokenizer, path, "F32", name="member")
    text = TEXTS[7][:24]
    ids = tokenizer.encode(text).ids
    with LLM(path, ctx_size=RECIPE.window, kv="f32") as llm:
        assert llm.tokenizer.encode(text) == ids
        logprobs = [x for x in llm.score(ids).logprobs if x is not None]
    assert -sum(logprobs) / np.log(2) == pytest.approx(text_bits(member.model, ids), rel=1e-4)
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["loss"] < np.log(300)


def test_a_mixture_runs_the_likeliest_expert_of_each_token() -> None:
    shape = RECIPE.shape
    torch.manual_seed(0)
    mixture = Mixture(shape, 4)
    h = torch.randn(2, 5, shape.d_model)
    out = mixture(h)
    for i in range(2):
        for t in range(5):
            p = mixture.router(h[i, t]).softmax(-1)
            expected = p.max() * mixture.experts[int(p.argmax())](h[i, t])
            torch.testing.assert_close(out[i, t], expected)
    assert int(mixture.counts.sum()) == 10


def test_the_balancing_loss_is_least_where_experts_are_used_alike() -> None:
    mixture = Mixture(RECIPE.shape, 4)
    with torch.no_grad():
        mixture.router.weight.zero_()
        mixture.router.weight[:, :4] = 50 * torch.eye(4)
    one = torch.zeros(8, RECIPE.width)
    one[:, 0] = 1
    mixture(one)
    assert mixture.balance.item() == pytest.approx(4, rel=1e-3)
    each = torch.zeros(8, RECIPE.width)
    each[torch.arange(8), torch.arange(8) % 4] = 1
    mixture(each)
    assert mixture.balance.item() == pytest.approx(1, rel=1e-3)


def test_experts_take_the_place_of_every_feed_forward_part() -> None:
    model = Llama(RECIPE.shape)
    mixtures = with_experts(model, 4)
    assert len(mixtures) == RECIPE.layers
    assert not any(isinstance(layer.mlp, FeedForward) for layer in model.model.layers)
    model.initialise(torch.Generator().manual_seed(0))
    assert torch.isfinite(model(torch.zeros(1, 3, dtype=torch.int64))).all()


def test_the_command_trains_on_files_and_capacity_scores_the_model(tmp_path: Path) -> None:
    data = tmp_path / "data.txt"
    data.write_text("\n\n".join(TEXTS))
    run = ["train", "text", str(data), "-o", str(tmp_path / "run"), "--steps", "10"]
    sizes = ["--vocab", "300", "--width", "32", "--layers", "1", "--window", "32"]
    done = CliRunner().invoke(cli, [*run, *sizes])
    assert done.exit_code == 0, done.output
    capacity = ["measure", "capacity", str(tmp_path / "run" / "text.gguf"), "--record", "none"]
    rest = ["--data", str(data), "--limit", "5", "--max-tokens", "32", "--json"]
    scored = CliRunner().invoke(cli, [*capacity, *rest])
    assert scored.exit_code == 0, scored.output
    assert 0 < json.loads(scored.stdout)["nll"] < np.log2(300)
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"\xff")
    refused = CliRunner().invoke(cli, ["train", "text", str(bad), "-o", str(tmp_path / "other")])
    assert "bad.txt is not UTF-8 at byte 0" in str(refused.exception)


DOCSTRING = "A docstring that is long enough. " * 20


def wheel(path: Path) -> str:
    """Write a wheel with one docstring and one description that are long enough."""
    described = {"outer": [{"description": "<p>What a service does.</p> " * 20}], "description": 1}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.py", f'def f():\n    """{DOCSTRING}"""\n')
        archive.writestr("short.py", '"""Too short."""\n')
        archive.writestr("broken.py", "def (:\n")
        archive.writestr("b.json", json.dumps(described))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_texts_of_a_wheel_are_docstrings_and_descriptions(tmp_path: Path) -> None:
    digest = wheel(tmp_path / "tiny==1.0.whl")
    found = package_texts(tmp_path, (Package("tiny==1.0", digest, "description"),))
    assert sorted(found.train + found.held_out) == [
        DOCSTRING.strip(),
        ("What a service does. " * 20).strip(),
    ]
    only_code = package_texts(tmp_path, (Package("tiny==1.0", digest),))
    assert only_code.train + only_code.held_out == [DOCSTRING.strip()]


def test_a_wheel_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    wheel(tmp_path / "tiny==1.0.whl")
    with pytest.raises(FileFormatError, match="and the pinned one 0000"):
        package_texts(tmp_path, (Package("tiny==1.0", "0" * 64),))
