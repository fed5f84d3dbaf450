"""Say what a model file holds, from its headers alone; no weight is read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path

from capax.errors import CapaxError
from capax.files.model_file import ModelFile, open_model
from capax.files.tokenizer import load_tokenizer


@dataclass(frozen=True)
class EncodingUse:
    """How many tensors of a model have this encoding, and what they take."""

    encoding: str
    n_tensors: int
    n_parameters: int
    nbytes: int


@dataclass(frozen=True)
class ModelDescription:
    """What `capax inspect` shows; sizes in bytes, counts as they are in the file."""

    path: str
    format: str
    name: str | None
    architecture: str
    n_parameters: int
    nbytes: int
    file_nbytes: int
    bits_per_weight: float
    encodings: list[EncodingUse]
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ffn: int
    vocab_size: int
    context_len: int
    sliding_window: int | None
    rope_base: float | None
    rope_scaling: str | None
    pooling: str | None
    tied_embeddings: bool
    licence: str | None
    tokenizer: str
    eos_tokens: list[str]
    chat_template: str | None


def describe_model(path: Path) -> ModelDescription:
    """Read the headers of the model at `path`.

    A tokenizer that capax cannot use does not hide the rest: its field says why.
    Raises FileFormatError for a model that capax cannot run.
    """
    model = open_model(path)
    config = model.config
    try:
        tokenizer = load_tokenizer(model)
        kind = tokenizer.kind
        ends = [tokenizer.token_text(i) for i in sorted(tokenizer.eos_ids)]
    except CapaxError as error:
        kind, ends = f"unusable: {error}", []
    n_parameters = sum(prod(tensor.shape) for tensor in model.tensors.values())
    return ModelDescription(
        path=str(path),
        format=model.format,
        name=config.name,
        architecture=config.architecture,
        n_parameters=n_parameters,
        nbytes=model.nbytes,
        file_nbytes=model.file_nbytes,
        bits_per_weight=8 * model.nbytes / n_parameters,
        encodings=_encodings(model),
        n_layers=config.n_layers,
        d_model=config.d_model,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        d_ffn=config.d_ffn,
        vocab_size=config.vocab_size,
        context_len=config.context_len,
        sliding_window=config.sliding_window,
        rope_base=config.rope.base if config.rope else None,
        rope_scaling=config.rope.scaling if config.rope else None,
        pooling=config.encoder.pooling if config.encoder else None,
        tied_embeddings=config.tied_embeddings,
        licence=config.license,
        tokenizer=kind,
        eos_tokens=ends,
        chat_template=model.chat_template,
    )


def _encodings(model: ModelFile) -> list[EncodingUse]:
    """Return one entry for each encoding, the one with the most bytes first."""
    n_tensors: Counter[str] = Counter()
    n_parameters: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    for tensor in model.tensors.values():
        encoding = str(tensor.encoding)
        n_tensors[encoding] += 1
        n_parameters[encoding] += prod(tensor.shape)
        nbytes[encoding] += tensor.nbytes
    return [
        EncodingUse(encoding, n_tensors[encoding], n_parameters[encoding], taken)
        for encoding, taken in nbytes.most_common()
    ]
