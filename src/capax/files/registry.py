"""The local registry: which models are on this machine, and where.

Layout below `$XDG_CACHE_HOME/capax/models` (directories 0700, files 0444):

    names/NAME.json       what a name stands for: a Record
    blobs/sha256-DIGEST   the bytes, addressed by their digest; a directory for models that
                          are several files
    locks/                one empty file per pulled name, locked while a pull runs

A name points at a blob, or at a path elsewhere for models that are registered by
reference. Files appear by rename only, so a reader sees all of a model or nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from capax.errors import CapaxError, ConfigError, FileFormatError, StoreError
from capax.files.foreign_caches import find_in_foreign_caches
from capax.files.model_name import check_digest, check_name, parse_hub_name
from capax.files.xdg import private_dir, xdg_dir

MAX_RECORD_BYTES = 64 * 1024
_CHUNK_BYTES = 1 << 20
_MODEL_SUFFIXES = (".gguf", ".safetensors")


@dataclass(frozen=True)
class Record:
    """What the registry knows about one name.

    `digest` and `nbytes` describe the blob; a model registered by reference has `path`
    instead, and its bytes are its owner's business.
    """

    name: str
    source: str
    nbytes: int
    digest: str | None = None
    path: str | None = None


class Registry:
    """Models under one directory; several processes may use it at once."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else xdg_dir("CACHE") / "models"

    def path_of(self, record: Record) -> Path:
        """Return where the bytes of a record are (the file may have been taken away)."""
        if record.digest is not None:
            return self.root / "blobs" / f"sha256-{check_digest(record.digest)}"
        return Path(record.path or "")

    def find(self, name: str) -> Record | None:
        """Return what `name` stands for, or None. Raises StoreError if its entry is damaged."""
        path = self._record_path(name)
        if self.root.exists():
            self._prepare()  # refuses a registry that others can write
        try:
            data = _read_bounded(path, MAX_RECORD_BYTES)
        except FileNotFoundError:
            return None
        return _parse_record(data, name, path)

    def list(self) -> list[Record]:
        """Return every record, by name. A damaged entry raises StoreError and names its file."""
        names = self.root / "names"
        found = [
            str(path.relative_to(names).with_suffix("")) for path in sorted(names.rglob("*.json"))
        ]
        records = [self.find(name) for name in found]
        return [record for record in records if record is not None]

    def add_reference(self, name: str, target: Path, source: str) -> Record:
        """Register the file or directory `target` under `name` without copying it."""
        check_name(name)
        target = target.resolve()
        if not target.exists():
            raise StoreError(f"{target} does not exist, so it cannot be registered as {name!r}")
        nbytes = sum(p.stat().st_size for p in _files_of(target))
        record = Record(name, source, nbytes, path=str(target))
        self._write_record(record)
        return record

    def add_blob(self, name: str, digest: str, nbytes: int, source: str) -> Record:
        """Register a blob that is already in place."""
        record = Record(check_name(name), source, nbytes, digest=check_digest(digest))
        if not self.path_of(record).exists():
            raise StoreError(f"{self.path_of(record)} is missing, so {name!r} cannot point at it")
        self._write_record(record)
        return record

    @contextlib.contextmanager
    def new_blob(self, digest: str, nbytes: int) -> Iterator[BlobWriter]:
        """Yield a writer; on leaving, the bytes written must have this digest and size.

        The blob appears by rename after the check; on any error nothing is left behind.
        """
        check_digest(digest)
        self._prepare()
        part = self.root / "blobs" / f"sha256-{digest}.{_unique()}.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(part, flags, 0o600), "wb") as stream:
                writer = BlobWriter(stream, nbytes)
                yield writer
                writer.check(digest)
                stream.flush()
                os.fchmod(stream.fileno(), 0o444)
                os.fsync(stream.fileno())
            os.replace(part, self.root / "blobs" / f"sha256-{digest}")
            _sync_directory(part.parent)
        except OSError as error:
            raise StoreError(f"cannot write the model to {part.parent}: {error.strerror}") from None
        finally:
            part.unlink(missing_ok=True)

    @contextlib.contextmanager
    def new_directory(self, digest: str) -> Iterator[Path]:
        """Yield an empty directory to fill; on leaving, `path_digest` of it must be `digest`.

        It appears by rename after the check; on any error nothing is left behind.
        """
        check_digest(digest)
        self._prepare()
        part = private_dir(self.root / "blobs" / f"sha256-{digest}.{_unique()}.part")
        target = part.with_name(f"sha256-{digest}")
        try:
            yield part
            actual, nbytes = path_digest(part)
            if actual != digest:
                raise FileFormatError(
                    f"received {nbytes:,} bytes in files with SHA-256 {actual[:12]}…, expected "
                    f"{digest[:12]}…: the source is not what it was, and nothing was kept"
                )
            for file in _files_of(part):
                _seal(file)
            _delete(target)  # a damaged copy, or the caller would not be here
            os.replace(part, target)
            _sync_directory(part.parent)
        except OSError as error:
            raise StoreError(f"cannot write the model to {part.parent}: {error.strerror}") from None
        finally:
            _delete(part)

    def discard_parts(self, digest: str) -> None:
        """Delete what a killed pull of this blob left; the caller holds the pull's lock."""
        for part in (self.root / "blobs").glob(f"sha256-{check_digest(digest)}.*.part"):
            _delete(part)

    def remove(self, name: str) -> Record:
        """Forget `name`, and delete its bytes unless another name uses them.

        Models registered by reference lose only their name. Raises StoreError if unknown.
        """
        record = self.find(name)
        if record is None:
            raise StoreError(f"no model is named {name!r}: run 'capax list' to see the names")
        self._record_path(name).unlink(missing_ok=True)
        if record.digest is not None and all(r.digest != record.digest for r in self.list()):
            _delete(self.path_of(record))
        return record

    def verify(self, name: str) -> Record:
        """Read all bytes of `name` again and compare the digest; StoreError if they changed."""
        record = self.find(name)
        if record is None:
            raise StoreError(f"no model is named {name!r}: run 'capax list' to see the names")
        path = self.path_of(record)
        if record.digest is None:
            if not path.exists():
                raise StoreError(f"{name!r} points at {path}, which is gone: run 'capax rm {name}'")
            return record
        actual, nbytes = path_digest(path)
        if (actual, nbytes) != (record.digest, record.nbytes):
            raise StoreError(
                f"{name!r} has {nbytes:,} bytes with SHA-256 {actual[:12]}… instead of "
                f"{record.nbytes:,} with {record.digest[:12]}…: run 'capax rm {name}' and "
                f"'capax pull {name}'"
            )
        return record

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold the pull lock of `name`: the second of two pulls waits and finds it done."""
        self._prepare()
        lock = self.root / "locks" / (check_name(name).replace("/", "+") + ".lock")
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(lock, flags, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _prepare(self) -> None:
        private_dir(self.root)
        for part in ("names", "blobs", "locks"):
            private_dir(self.root / part)

    def _record_path(self, name: str) -> Path:
        return self.root / "names" / f"{check_name(name)}.json"

    def _write_record(self, record: Record) -> None:
        self._prepare()
        path = self._record_path(record.name)
        private_dir(path.parent)
        write_atomically(path, json.dumps(asdict(record), indent=1).encode(), mode=0o444)


class BlobWriter:
    """Writes a blob, counting and hashing on the way."""

    def __init__(self, stream: BinaryIO, nbytes: int) -> None:
        self._stream = stream
        import hashlib  # with it comes OpenSSL: 3 MiB, and a run needs no digest

        self._hash = hashlib.sha256()
        self._expected = nbytes
        self.written = 0

    def write(self, data: bytes) -> None:
        self.written += len(data)
        if self.written > self._expected:
            raise FileFormatError(
                f"the source sends more than the {self._expected:,} bytes it should have"
            )
        self._hash.update(data)
        try:
            self._stream.write(data)
        except OSError as error:
            raise StoreError(f"cannot write the model: {error.strerror}") from None

    def check(self, digest: str) -> None:
        actual = self._hash.hexdigest()
        if self.written != self._expected or actual != digest:
            raise FileFormatError(
                f"received {self.written:,} bytes with SHA-256 {actual[:12]}…, expected "
                f"{self._expected:,} with {digest[:12]}…: the source is damaged or not what it "
                "was, and nothing was kept"
            )


def resolve(name_or_path: str | os.PathLike[str], registry: Registry | None = None) -> Path:
    """Return the file or directory of a model.

    A path that exists wins; then a name in the registry; then `[hf:]owner/repo[:file]` in
    the Hugging Face cache; then llama.cpp's and Ollama's stores, which are only read.
    Raises StoreError with the command that would fetch the model.
    """
    text = os.fspath(name_or_path)
    if not text:
        raise ConfigError("the model's name is empty; give a name, a GGUF file or a directory")
    if "\0" in text:
        raise ConfigError(f"{text!r} is not a path or a model name: it has a NUL character")
    with contextlib.suppress(OSError):  # a name too long for a path is no path
        if Path(text).expanduser().exists():
            return Path(text).expanduser()
    registry = registry if registry is not None else Registry()
    found = _resolve_name(text, registry) or find_in_foreign_caches(text)
    if found is not None:
        return found
    is_hub_file = ":" in text and parse_hub_name(text.removeprefix("hf:")) is not None
    looks_like_path = text.startswith(("/", "./", "../", "~")) or text.endswith(_MODEL_SUFFIXES)
    if looks_like_path and not is_hub_file:
        raise StoreError(f"no file or directory {text!r}: check the path")
    raise StoreError(f"no model {text!r:.100} on this machine: {_hint(text, registry)}")


def _hint(text: str, registry: Registry) -> str:
    """Say what to do about a name that is not here: never a command that would fail as well."""
    import difflib

    from capax.files.pull import CATALOGUE

    if text in CATALOGUE:
        return f"run 'capax pull {text}'"
    if parse_hub_name(text.removeprefix("hf:")) is not None:
        return f"run 'capax pull hf:{text.removeprefix('hf:')}'"
    names = [record.name for record in registry.list()]
    near = difflib.get_close_matches(text[:100], [*names, *CATALOGUE], 1)
    if near:
        return f"did you mean {near[0]!r}?"
    return "'capax list' shows the models that are, 'capax pull --help' what can be fetched"


def _resolve_name(text: str, registry: Registry) -> Path | None:
    try:
        record = registry.find(text)
    except ConfigError:
        return None  # not spelled like a name of ours
    if record is None:
        return None
    path = registry.path_of(record)
    if not path.exists():
        raise StoreError(f"{text!r} points at {path}, which is gone: run 'capax pull {text}'")
    nbytes = sum(file.stat().st_size for file in _files_of(path))
    if record.digest is not None and nbytes != record.nbytes:
        raise StoreError(
            f"{path} has {nbytes:,} bytes, not the {record.nbytes:,} of {text!r}: "
            f"run 'capax rm {text}' and 'capax pull {text}'"
        )
    return path


def write_atomically(path: Path, data: bytes, mode: int) -> None:
    """Replace `path` by `data` in one step that survives a crash at any point."""
    part = path.with_name(f".{path.name}.{_unique()}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(part, flags, 0o600), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        os.replace(part, path)
        _sync_directory(path.parent)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)


def _unique() -> str:
    """Return what no other process calls its file."""
    return os.urandom(8).hex()


def file_digest(path: Path) -> tuple[str, int]:
    """Return the SHA-256 and size of a file. Raises StoreError if it cannot be read."""
    import hashlib

    digest, nbytes = hashlib.sha256(), 0
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
                nbytes += len(chunk)
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from None
    return digest.hexdigest(), nbytes


def path_digest(path: Path) -> tuple[str, int]:
    """Return the SHA-256 and size of a file, or of a directory with all its files.

    A directory's digest is that of its listing, as sha256sum writes it: one line
    "DIGEST  NAME" for each file, in the order of their names.
    """
    if not path.is_dir():
        return file_digest(path)
    import hashlib

    listing, total = hashlib.sha256(), 0
    for name in sorted(file.relative_to(path).as_posix() for file in _files_of(path)):
        digest, nbytes = file_digest(path / name)
        listing.update(f"{digest}  {name}\n".encode())
        total += nbytes
    return listing.hexdigest(), total


def _parse_record(data: bytes, name: str, path: Path) -> Record:
    try:
        fields: Mapping[str, Any] = json.loads(data)
        record = Record(**fields)
        if record.digest is not None:
            check_digest(record.digest)
        target_ok = (record.digest is None) == isinstance(record.path, str)
        if record.name != name or type(record.nbytes) is not int or not target_ok:
            raise ConfigError("its fields disagree")
    except (ValueError, TypeError, RecursionError, CapaxError) as error:
        raise StoreError(f"the registry entry {path} is damaged ({error}): delete it") from None
    return record


def _read_bounded(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > limit:
        raise StoreError(f"{path} has more than {limit:,} bytes: it is damaged, delete it")
    return data


def _files_of(target: Path) -> Iterator[Path]:
    return (p for p in ([target] if target.is_file() else target.rglob("*")) if p.is_file())


def _seal(path: Path) -> None:
    """Make a file read-only and see it on the disk."""
    path.chmod(0o444)
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
