"""Find models other tools have already downloaded; nothing here is ever written.

- Hugging Face: `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME/hub`
- llama.cpp: `LLAMA_CACHE` (files such as `owner_repo_file.gguf`)
- Ollama: `OLLAMA_MODELS` (manifests that name a GGUF blob by digest)
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from capax.errors import StoreError
from capax.files.model_name import HubName, parse_hub_name

MAX_MANIFEST_BYTES = 1024 * 1024
_OLLAMA_NAME = re.compile(r"([a-z0-9][a-z0-9._-]{0,63})(?::([A-Za-z0-9][A-Za-z0-9._-]{0,63}))?")
_OLLAMA_MODEL_LAYER = "application/vnd.ollama.image.model"


def find_in_foreign_caches(text: str) -> Path | None:
    """Return the file or directory another tool keeps for this name, or None."""
    hub_name = parse_hub_name(text.removeprefix("hf:"))
    if hub_name is not None:
        return _in_hub_cache(hub_name) or _in_llama_cache(hub_name)
    return _in_ollama(text)


def hub_cache_dir() -> Path:
    """Return the directory huggingface_hub keeps its downloads in."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    if os.environ.get("HF_HOME"):
        return Path(os.environ["HF_HOME"]).expanduser() / "hub"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "huggingface" / "hub"


def _in_hub_cache(name: HubName) -> Path | None:
    repo = hub_cache_dir() / f"models--{name.owner}--{name.repo}"
    try:
        revision = (repo / "refs" / "main").read_text()[:128].strip()
    except (OSError, UnicodeDecodeError):
        return None
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        return None
    snapshot = repo / "snapshots" / revision
    if name.file is not None:
        file = snapshot / name.file
        return file if file.is_file() else None
    if (snapshot / "config.json").is_file():
        return snapshot
    return _only_gguf(sorted(snapshot.glob("*.gguf")), name)


def _only_gguf(files: list[Path], name: HubName) -> Path | None:
    if len(files) > 1:
        choices = ", ".join(file.name for file in files[:5])
        raise StoreError(
            f"{name.repo_id} has {len(files)} GGUF files in the cache: choose one with "
            f"'{name.repo_id}:FILE' ({choices})"
        )
    return files[0] if files else None


def _in_llama_cache(name: HubName) -> Path | None:
    if not os.environ.get("LLAMA_CACHE"):
        return None
    root = Path(os.environ["LLAMA_CACHE"]).expanduser()
    prefix = f"{name.owner}_{name.repo}_"
    if name.file is not None:
        file = root / (prefix + name.file.replace("/", "_"))
        return file if file.is_file() else None
    try:
        files = sorted(f for f in root.iterdir() if f.name.startswith(prefix))
    except OSError:
        return None
    return _only_gguf([file for file in files if file.suffix == ".gguf"], name)


def _in_ollama(text: str) -> Path | None:
    match = _OLLAMA_NAME.fullmatch(text)
    if match is None or ".." in text or not os.environ.get("OLLAMA_MODELS"):
        return None
    root = Path(os.environ["OLLAMA_MODELS"]).expanduser()
    library = root / "manifests" / "registry.ollama.ai" / "library"
    try:
        with (library / match[1] / (match[2] or "latest")).open("rb") as stream:
            manifest = json.loads(stream.read(MAX_MANIFEST_BYTES))
        layers = manifest["layers"]
        digests = [x["digest"] for x in layers if x["mediaType"] == _OLLAMA_MODEL_LAYER]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None  # not a manifest we understand: somebody else's file, so a miss
    # The digest becomes a path, so its spelling is checked first (Ollama's CVE-2024-37032).
    if len(digests) != 1 or not re.fullmatch(r"sha256:[0-9a-f]{64}", str(digests[0])):
        return None
    blob = root / "blobs" / str(digests[0]).replace(":", "-")
    return blob if blob.is_file() else None
