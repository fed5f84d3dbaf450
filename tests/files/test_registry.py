"""Names, blobs and resolution; nothing outside the registry is ever touched."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from capax.errors import CapaxError, ConfigError, FileFormatError, StoreError
from capax.files.registry import Registry, resolve
from capax.files.xdg import private_dir, xdg_dir

DATA = b"model bytes" * 100
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "LLAMA_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def registry() -> Registry:
    return Registry()


def add(registry: Registry, name: str, data: bytes = DATA) -> Path:
    digest = hashlib.sha256(data).hexdigest()
    with registry.new_blob(digest, len(data)) as writer:
        writer.write(data[:50])
        writer.write(data[50:])
    return registry.path_of(registry.add_blob(name, digest, len(data), "a test"))


def everything_below(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_a_blob_is_immutable_and_private(registry: Registry) -> None:
    path = add(registry, "a-model")
    assert path.read_bytes() == DATA
    assert path.name == f"sha256-{DIGEST}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    for directory in (registry.root, path.parent, registry.root / "names"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert resolve("a-model") == path


def test_list_and_remove(registry: Registry) -> None:
    path = add(registry, "b/model-1.7")
    add(registry, "a.model")
    assert [record.name for record in registry.list()] == ["a.model", "b/model-1.7"]
    registry.remove("a.model")
    assert path.exists(), "the other name still uses the blob"
    registry.remove("b/model-1.7")
    assert not path.exists()
    assert registry.list() == []
    with pytest.raises(StoreError, match="capax list"):
        registry.remove("a.model")


def test_wrong_bytes_leave_nothing_behind(registry: Registry) -> None:
    for data in (DATA[:-1], DATA[:-1] + b"X", DATA + b"X"):
        with (
            pytest.raises(FileFormatError, match="bytes"),
            registry.new_blob(DIGEST, len(DATA)) as writer,
        ):
            writer.write(data)
    assert everything_below(registry.root) == set()


def test_an_error_in_the_source_leaves_nothing_behind(registry: Registry) -> None:
    def source_fails() -> None:
        with registry.new_blob(DIGEST, len(DATA)) as writer:
            writer.write(DATA[:10])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        source_fails()
    assert everything_below(registry.root) == set()


def test_verify_sees_a_changed_byte_and_resolve_a_changed_size(registry: Registry) -> None:
    path = add(registry, "model")
    registry.verify("model")
    path.chmod(0o600)
    path.write_bytes(b"X" + DATA[1:])
    with pytest.raises(StoreError, match="capax pull model"):
        registry.verify("model")
    path.write_bytes(DATA[1:])
    with pytest.raises(StoreError, match="1,099 bytes"):
        resolve("model")


def test_a_reference_is_not_copied_and_survives_removal(registry: Registry, tmp_path: Path) -> None:
    target = tmp_path / "mine.gguf"
    target.write_bytes(DATA)
    record = registry.add_reference("mine", target, str(target))
    assert record.nbytes == len(DATA)
    assert resolve("mine") == target
    registry.remove("mine")
    assert target.exists()
    registry.add_reference("mine", target, str(target))
    target.unlink()
    with pytest.raises(StoreError, match="gone"):
        resolve("mine")
    with pytest.raises(StoreError, match="gone"):
        registry.verify("mine")


def test_a_path_wins_over_a_name(registry: Registry, tmp_path: Path) -> None:
    add(registry, "model")
    (tmp_path / "model").write_bytes(b"here")
    assert resolve("model") == Path("model")
    assert resolve(tmp_path) == tmp_path


def test_an_unknown_name_says_what_to_run() -> None:
    with pytest.raises(StoreError, match="run 'capax pull smollm2-135m'"):
        resolve("smollm2-135m")
    with pytest.raises(StoreError, match="did you mean 'smollm2-135m'"):
        resolve("smollm2")
    with pytest.raises(StoreError, match="run 'capax pull hf:owner/repo'"):
        resolve("owner/repo")
    with pytest.raises(StoreError, match="'capax list' shows"):
        resolve("nothing-like-it")
    with pytest.raises(ConfigError, match="name is empty"):
        resolve("")
    with pytest.raises(StoreError, match="check the path"):
        resolve("./nowhere.gguf")
    with pytest.raises(StoreError):
        resolve("x" * 10_000)
    with pytest.raises(ConfigError, match="NUL"):
        resolve("a\0b")


EVIL_NAMES = [
    "", ".", "..", "../x", "a/../../x", "/etc/passwd", "a//b", "a/", "/a", "-rf", ".hidden",
    "A", "a b", "a\nb", "a\0b", "a\\b", "a:b", "a;rm", "$(id)", "%2e%2e", "a" * 65, "a/b/c/d/e",
    "é", "a\u202eb", "~root", "a..b", "con/..", "sha256-\n", "a\n",
]  # fmt: skip


@pytest.mark.parametrize("name", EVIL_NAMES)
def test_evil_names_never_become_paths(registry: Registry, name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a model name"):
        registry.find(name)
    for call in (registry.remove, registry.verify):
        with pytest.raises(ConfigError):
            call(name)
    with pytest.raises(ConfigError):
        registry.add_reference(name, tmp_path, "test")
    with pytest.raises(ConfigError), registry.locked(name):
        pass
    assert not registry.root.exists() or everything_below(registry.root) == set()


@pytest.mark.parametrize("digest", ["", "A" * 64, "../" + "a" * 61, "a" * 63, "a" * 65, None, 7])
def test_evil_digests_never_become_paths(registry: Registry, digest: object) -> None:
    with pytest.raises(ConfigError, match="SHA-256"):
        registry.add_blob("model", digest, 1, "test")  # type: ignore[arg-type]


DAMAGED_RECORDS = [
    b"", b"{", b"[]", b"null", b"\xff",
    b'{"name": "other", "source": "", "nbytes": 1, "path": "/"}',
    b'{"name": "m", "source": "", "nbytes": 1}',
    b'{"name": "m", "source": "", "nbytes": "1", "path": "/"}',
    b'{"name": "m", "source": "", "nbytes": 1, "digest": "../../x"}',
    b'{"name": "m", "source": "", "nbytes": 1, "path": "/", "more": 1}',
    b"[" * 50_000, b" " * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("data", DAMAGED_RECORDS, ids=range(len(DAMAGED_RECORDS)))
def test_a_damaged_record_is_one_clear_error(registry: Registry, data: bytes) -> None:
    add(registry, "other")
    (registry.root / "names" / "m.json").write_bytes(data)
    with pytest.raises(StoreError, match="delete it"):
        registry.find("m")


def test_a_registry_others_can_write_is_refused(registry: Registry) -> None:
    add(registry, "model")
    registry.root.chmod(0o777)
    with pytest.raises(StoreError, match="chmod 700"):
        resolve("model")
    registry.root.chmod(0o700)
    (registry.root / "blobs").chmod(0o777)
    with pytest.raises(StoreError, match="chmod 700"):
        resolve("model")


def test_a_planted_symlink_is_not_followed(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(registry, "other")
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    monkeypatch.setattr("capax.files.registry._unique", lambda: "00")
    part = registry.root / "blobs" / f"sha256-{'a' * 64}.00.part"
    part.symlink_to(victim)
    with pytest.raises(StoreError), registry.new_blob("a" * 64, 4) as writer:
        writer.write(b"evil")
    assert victim.read_bytes() == b"precious"


def hold_lock(root: Path, started: object, log: Path) -> None:
    with Registry(root).locked("model"):
        started.set()  # type: ignore[attr-defined]
        with log.open("a") as stream:
            stream.write("child\n")


def test_the_lock_keeps_other_processes_out(registry: Registry, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started, log = context.Event(), tmp_path / "log"
    with registry.locked("model"):
        child = context.Process(target=hold_lock, args=(registry.root, started, log))
        child.start()
        assert not started.wait(0.5)
        log.write_text("parent\n")
    child.join(30)
    assert log.read_text() == "parent\nchild\n"


def test_xdg_directories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert xdg_dir("DATA") == tmp_path / "data" / "capax"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert xdg_dir("DATA") == tmp_path / ".local" / "share" / "capax"
    (tmp_path / "file").touch()
    with pytest.raises(StoreError):
        private_dir(tmp_path / "file")


def hub_repo(root: Path, *files: str) -> Path:
    repo = root / "models--Owner--Repo"
    snapshot = repo / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("c" * 40)
    for file in files:
        (snapshot / file).write_bytes(b"x")
    return snapshot


def test_the_hugging_face_cache_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    snapshot = hub_repo(tmp_path / "hf" / "hub", "a.gguf", "b.gguf")
    assert resolve("Owner/Repo:a.gguf") == snapshot / "a.gguf"
    assert resolve("hf:Owner/Repo:b.gguf") == snapshot / "b.gguf"
    with pytest.raises(StoreError, match=r"choose one with 'Owner/Repo:FILE' \(a.gguf, b.gguf\)"):
        resolve("Owner/Repo")
    (snapshot / "config.json").write_text("{}")
    assert resolve("Owner/Repo") == snapshot
    with pytest.raises(StoreError, match="capax pull"):
        resolve("Owner/Repo:c.gguf")


@pytest.mark.parametrize("revision", ["", "../../x", "c" * 39, "\xff"])
def test_a_strange_revision_in_the_cache_is_a_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = hub_repo(tmp_path / "hub", "a.gguf")
    (snapshot.parents[1] / "refs" / "main").write_bytes(revision.encode("latin-1"))
    with pytest.raises(StoreError, match="capax pull"):
        resolve("Owner/Repo")


def test_the_llama_cpp_cache_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path))
    file = tmp_path / "Owner_Repo_q4.gguf"
    file.touch()
    assert resolve("Owner/Repo") == file
    assert resolve("Owner/Repo:q4.gguf") == file


def test_ollama_blobs_are_found_and_evil_digests_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    manifest = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "latest"
    manifest.parent.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    blob = tmp_path / "blobs" / f"sha256-{DIGEST}"
    blob.touch()
    media = "application/vnd.ollama.image.model"

    def write(digest: str) -> None:
        layer = {"mediaType": media, "digest": digest}
        manifest.write_text(json.dumps({"layers": [layer]}))

    write(f"sha256:{DIGEST}")
    assert resolve("tiny") == resolve("tiny:latest") == blob
    for digest in ("sha256:../../../etc/passwd", "sha256:" + "A" * 64, "", DIGEST):
        write(digest)
        with pytest.raises(CapaxError, match="capax pull"):
            resolve("tiny")
    manifest.write_bytes(b"[" * 100_000)
    with pytest.raises(StoreError, match="capax pull"):
        resolve("tiny")
    assert os.listdir(tmp_path / "blobs") == [blob.name], "read-only"
