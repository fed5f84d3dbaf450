"""How a model's authors recommend to sample from it."""

from __future__ import annotations

from typing import Any

from capax.files.json_file import read_json_object
from capax.files.model_file import ModelFile

MAX_GENERATION_CONFIG_NBYTES = 1 << 20
# Our name and the one after general.sampling. in a GGUF file.
NAMES = (("temperature", "temp"), ("top_k", "top_k"), ("top_p", "top_p"), ("min_p", "min_p"))


def recommended_sampling(file: ModelFile) -> dict[str, float]:
    """Return what the file recommends: GGUF's general.sampling.*, or generation_config.json.

    The values are as the file has them, in range or not.
    """
    found: dict[str, Any]
    if file.format == "gguf":
        found = {name: file.metadata.get(f"general.sampling.{key}") for name, key in NAMES}
    else:
        config = _generation_config(file)
        found = {name: config.get(name) for name, _ in NAMES}
        if config.get("do_sample") is False:
            found["temperature"] = 0.0
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _generation_config(file: ModelFile) -> dict[str, Any]:
    path = file.path / "generation_config.json"
    return read_json_object(path, MAX_GENERATION_CONFIG_NBYTES) if path.is_file() else {}
