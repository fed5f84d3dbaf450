"""Open a model, whatever it is stored as, and prove it complete before anyone uses it.

A `.gguf` file (or one shard of several), a directory as Hugging Face lays it out, or a
directory with a single GGUF model: all give the same `ModelFile`, with tensors under
GGUF's names and shapes that agree with the configuration. Only headers are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from capax.errors import ConfigError, FileFormatError
from capax.files.config import ModelConfig
from capax.files.config_bert import config_from_bert
from capax.files.config_gguf import config_from_gguf
from capax.files.config_hf import config_from_hf
from capax.files.gguf import GGUFFile
from capax.files.json_file import read_json_object
from capax.files.layouts import expected_tensors
from capax.files.opening import open_regular
from capax.files.safetensors import SafeTensor, open_directory
from capax.files.tensors import TensorInfo, TensorReader, read_float32

MAX_CONFIG_NBYTES = 16 << 20
MAX_TOKENIZER_CONFIG_NBYTES = 64 << 20
MAX_TEMPLATE_NBYTES = 1 << 20
MAX_CARD_NBYTES = 64 << 10

ROPE_FREQS = "rope_freqs.weight"
_MERGES = "tokenizer.ggml.merges"
# Derived values that old checkpoints carry along, and the layer on top of BERT that only
# predicts whether one sentence follows another.
_REDUNDANT = re.compile(
    r"rope_freqs\.weight|.*rotary_emb\.inv_freq|blk\.\d+\.attn_rot_embd(\.weight)?"
    r"|embeddings\.position_ids|pooler\.dense\.(weight|bias)"
)
_UNSAFE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npz"}


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model on disk whose headers have been read and checked.

    `tensors`: canonical (GGUF) name to where its bytes are; exactly those the model needs.
    `metadata`: GGUF metadata, or the parsed `config.json`.
    `chat_template`: Jinja source, untrusted, or None.
    `tokenizer_json`, `tokenizer_config`: files of a Hugging Face directory, None if absent;
    a GGUF model has its tokenizer in `metadata` under `tokenizer.ggml.*`.
    `nbytes`: of all tensors in use; `file_nbytes`: of the files they lie in.
    """

    path: Path
    format: Literal["gguf", "safetensors"]
    config: ModelConfig
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, object]
    chat_template: str | None
    tokenizer_json: Path | None
    tokenizer_config: Path | None
    nbytes: int
    file_nbytes: int

    def without_merges(self) -> ModelFile:
        """Return the same without the tokenizer's merges: once it is made, nobody needs them."""
        kept = {key: value for key, value in self.metadata.items() if key != _MERGES}
        return replace(self, metadata=kept)


def open_model(path: str | Path) -> ModelFile:
    """Read and check the headers of the model at `path`.

    Raises `FileFormatError`: one sentence with the file, the field or tensor and the value.
    """
    path = Path(path)
    if path.is_dir():
        return _open_directory(path)
    if not path.exists():
        raise FileFormatError(f"{path}: there is no such file or directory")
    if path.suffix.lower() in _UNSAFE_SUFFIXES:
        raise FileFormatError(
            f"{path}: files of this kind can run code when they are loaded; "
            "convert the model to safetensors or GGUF first"
        )
    if path.name.endswith((".safetensors", ".safetensors.index.json")):
        raise FileFormatError(
            f"{path}: a safetensors model is its directory with config.json; give '{path.parent}'"
        )
    return _open_gguf(path)


def _open_directory(folder: Path) -> ModelFile:
    if (folder / "config.json").is_file():
        return _open_hf(folder)
    models = [
        p for p in sorted(folder.glob("*.gguf"))
        if not re.search(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", p.name)
    ]  # fmt: skip
    if len(models) == 1:
        return _open_gguf(models[0])
    found = f"{len(models)} GGUF models; give the path of one" if models else "no .gguf file"
    raise FileFormatError(f"{folder}: holds no config.json and {found}")


def _open_gguf(path: Path) -> ModelFile:
    file = GGUFFile.open(path)
    template = file.metadata.get("tokenizer.chat_template")
    try:
        freq_factors = _freq_factors(file)
        shapes = {name: t.shape for name, t in file.tensors.items()}
        config = config_from_gguf(file.metadata, shapes, freq_factors)
    except ConfigError as e:
        raise FileFormatError(f"{path}: {e}") from e
    tensors = _complete(path, config, file.tensors, {})
    _refuse_unexpected(path, config, file.tensors.keys() - tensors.keys())
    return ModelFile(
        path=file.path,
        format="gguf",
        config=config,
        tensors=tensors,
        metadata=file.metadata,
        chat_template=_template(path, template),
        tokenizer_json=None,
        tokenizer_config=None,
        nbytes=sum(t.nbytes for t in tensors.values()),
        file_nbytes=file.file_nbytes,
    )


def _freq_factors(file: GGUFFile) -> tuple[float, ...] | None:
    tensor = file.tensors.get(ROPE_FREQS)
    if tensor is None:
        return None
    if len(tensor.shape) != 1 or tensor.nbytes > MAX_CONFIG_NBYTES:
        raise ConfigError(
            f"tensor {ROPE_FREQS!r} has shape {list(tensor.shape)}; one row is needed"
        )
    with TensorReader() as reader:
        return tuple(read_float32(reader, tensor).tolist())


def _open_hf(folder: Path) -> ModelFile:
    raw = read_json_object(folder / "config.json", MAX_CONFIG_NBYTES)
    name, licence = _model_card(folder)
    generation_path = folder / "generation_config.json"
    generation = (
        read_json_object(generation_path, MAX_CONFIG_NBYTES) if generation_path.is_file() else {}
    )
    try:
        config = (
            config_from_bert(raw, folder)
            if raw.get("model_type") == "bert"
            else config_from_hf(raw, generation)
        )
        config = replace(config, name=config.name or name, license=licence)
    except ConfigError as e:
        raise FileFormatError(f"{folder / 'config.json'}: {e}") from e
    found, file_nbytes = open_directory(folder)
    names = {e.hf: e.name for e in expected_tensors(config)}
    if config.tied_embeddings:
        found.pop("lm_head.weight", None)  # a copy of the embedding, if it is there at all
    infos = _to_tensor_infos(folder, config, found, names)
    tensors = _complete(folder, config, infos, {name: hf for hf, name in names.items()})
    tokenizer_json = folder / "tokenizer.json"
    tokenizer_config = folder / "tokenizer_config.json"
    return ModelFile(
        path=folder,
        format="safetensors",
        config=config,
        tensors=tensors,
        metadata=raw,
        chat_template=_hf_template(folder, tokenizer_config),
        tokenizer_json=tokenizer_json if tokenizer_json.is_file() else None,
        tokenizer_config=tokenizer_config if tokenizer_config.is_file() else None,
        nbytes=sum(t.nbytes for t in tensors.values()),
        file_nbytes=file_nbytes,
    )


def _model_card(folder: Path) -> tuple[str, str | None]:
    """Return the directory's name and the licence its README.md states, if it does."""
    card = folder / "README.md"
    text = ""
    if card.is_file():
        with open_regular(card) as f:
            text = f.read(MAX_CARD_NBYTES).decode("utf-8", "replace")
    front_matter = text.split("\n---", 1)[0] if text.startswith("---\n") else ""
    stated = re.search(r"^license: *([\w.+-]{1,100}) *$", front_matter, re.MULTILINE)
    return folder.resolve().name, stated[1] if stated else None


def _to_tensor_infos(
    folder: Path, config: ModelConfig, found: Mapping[str, SafeTensor], names: Mapping[str, str]
) -> dict[str, TensorInfo]:
    """Rename to canonical names; `names` maps those of Hugging Face to them."""
    _refuse_unexpected(folder, config, found.keys() - names.keys())
    return {
        names[hf]: tensor.to_tensor_info(names[hf]) for hf, tensor in found.items() if hf in names
    }


def _complete(
    path: Path,
    config: ModelConfig,
    found: Mapping[str, TensorInfo],
    shown: Mapping[str, str],
) -> dict[str, TensorInfo]:
    """Return the expected tensors, or say which is missing or misshapen.

    `shown` translates canonical names to those of the file, for the messages.
    """
    tensors: dict[str, TensorInfo] = {}
    for expected in expected_tensors(config):
        tensor = found.get(expected.name)
        name = shown.get(expected.name, expected.name)
        if tensor is None:
            raise FileFormatError(
                f"{path}: tensor {name!r} is missing; a {config.architecture} model of "
                f"{config.n_layers} layers needs it"
            )
        if tensor.shape != expected.shape:
            raise FileFormatError(
                f"{tensor.path}: tensor {name!r} has shape {list(tensor.shape)} but the "
                f"configuration says {list(expected.shape)}"
            )
        if len(tensor.shape) == 1 and not tensor.encoding.is_float:
            raise FileFormatError(
                f"{tensor.path}: tensor {name!r} is stored as {tensor.encoding}; "
                "norms and biases must be F32, F16 or BF16"
            )
        tensors[expected.name] = tensor
    return tensors


def _refuse_unexpected(path: Path, config: ModelConfig, names: Iterable[str]) -> None:
    unexpected = sorted(n for n in names if not _REDUNDANT.fullmatch(n))
    if unexpected:
        more = f" and {len(unexpected) - 1} more" if len(unexpected) > 1 else ""
        raise FileFormatError(
            f"{path}: holds tensor {unexpected[0]!r}{more}, which {config.architecture} models as "
            "capax runs them do not have; the results would be wrong without it"
        )


def _template(path: Path, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MAX_TEMPLATE_NBYTES:
        raise FileFormatError(
            f"{path}: the chat template is no string of at most {MAX_TEMPLATE_NBYTES:,} characters"
        )
    return value


def _hf_template(folder: Path, tokenizer_config: Path) -> str | None:
    """Return the default chat template: its own file, else the tokenizer config's entry."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        with open_regular(own) as f:
            raw = f.read(MAX_TEMPLATE_NBYTES + 1)
        try:
            return _template(own, raw.decode("utf-8"))
        except UnicodeDecodeError as e:
            raise FileFormatError(f"{own} is not valid UTF-8 at byte {e.start}") from e
    if not tokenizer_config.is_file():
        return None
    value = read_json_object(tokenizer_config, MAX_TOKENIZER_CONFIG_NBYTES).get("chat_template")
    if isinstance(value, list):  # named templates
        entries = [t for t in value if isinstance(t, dict) and t.get("name") == "default"]
        value = entries[0].get("template") if entries else None
    return _template(tokenizer_config, value)
