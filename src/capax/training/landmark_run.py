"""`capax train landmark`: the landmark model and its twin, stoppable at any step.

A folder holds the run: the tokenizer, one folder each for the logs and checkpoints, and the two
finished models, which the engine loads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from capax.training.landmark import (
    LandmarkRecipe,
    loss_function,
    pass_key_accuracy,
    recipe_record,
)
from capax.training.landmark_data import (
    END,
    FACT,
    LANDMARK,
    QUESTION,
    Documents,
    Encode,
    train_tokenizer,
)
from capax.training.llama import Llama, export
from capax.training.loop import Schedule, train
from capax.training.python_texts import Split, python_texts

CONTEXT_LEN = 32_768  # of the exported models; positions stay inside the window all the same
REPORT_EVERY = 50


def train_landmark(
    folder: Path,
    recipe: LandmarkRecipe,
    *,
    is_twin: bool = False,
    split: Split | None = None,
    threads: int = 1,
    on_report: Callable[[Mapping[str, float]], None] | None = None,
) -> Path:
    """Train one of the two models on `split` (None: Python's own texts) and export it.

    Returns the folder of the model. A run that was stopped goes on from its checkpoint.
    """
    torch.set_num_threads(threads)
    split = split or python_texts()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(folder, recipe, split)
    encode, ids = encoder(tokenizer)
    landmark_id = None if is_twin else ids[LANDMARK]
    documents = Documents(encode, joined(encode, split.train, ids[END]))
    held_out = Documents(encode, joined(encode, split.held_out, ids[END]))
    model = Llama(recipe.shape(CONTEXT_LEN))
    model.initialise(torch.Generator().manual_seed(recipe.seed))

    def report(step: int) -> dict[str, float]:
        window = recipe.window_at(step - 1)
        whole, digits = pass_key_accuracy(model, held_out, recipe, landmark_id, window=window)
        return {"window": window, "pass_key": round(whole, 3), "digits": round(digits, 3)}

    name = "twin" if is_twin else "landmark"
    run = folder / f"{name}-run"
    train(
        model,
        loss_function(model, documents, recipe, landmark_id),
        Schedule(steps=recipe.horizon, learning_rate=recipe.learning_rate),
        run,
        recipe=recipe_record(recipe, is_twin=is_twin),
        report=report,
        report_every=REPORT_EVERY,
        on_report=on_report,
        stop_at=recipe.steps,
    )
    export_model(model, folder / name, tokenizer, recipe, landmark_id)
    write_record(folder / name, run, recipe, is_twin=is_twin)
    return folder / name


def encoder(tokenizer: str) -> tuple[Encode, dict[str, int]]:
    """Return what turns text to ids, and the ids of the special tokens."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer)
    ids = {text: backend.encode(text).ids[0] for text in (END, LANDMARK)}
    return lambda text: list(backend.encode(text).ids), ids


def joined(encode: Encode, texts: list[str], end_id: int) -> list[int]:
    """Return all texts as one row of token ids, an end behind each."""
    return [token for text in texts for token in (*encode(text), end_id)]


def export_model(
    model: Llama, folder: Path, tokenizer: str, recipe: LandmarkRecipe, landmark_id: int | None
) -> None:
    """Write a model that the engine loads; one with landmarks says so in its `config.json`."""
    extra: dict[str, object] = {"eos_token_id": 0}
    if landmark_id is not None:
        extra |= {
            "landmark.block": recipe.block,
            "landmark.token_id": landmark_id,
            "landmark.train_ctx": recipe.window,
        }
    export(model, folder, tokenizer, tokenizer_config={"eos_token": END}, extra=extra)


def write_record(folder: Path, run: Path, recipe: LandmarkRecipe, *, is_twin: bool) -> None:
    """Write beside a model how it was made: recipe, log and the digest of its weights."""
    weights = (folder / "model.safetensors").read_bytes()
    record = recipe_record(recipe, is_twin=is_twin) | {
        "sha256": {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    }
    (folder / "recipe.json").write_text(json.dumps(record, indent=2) + "\n")
    (folder / "log.jsonl").write_bytes((run / "log.jsonl").read_bytes())


def _tokenizer(folder: Path, recipe: LandmarkRecipe, split: Split) -> str:
    """Return the tokenizer of the run, the same one for both models."""
    path = folder / "tokenizer.json"
    if not path.exists():
        example = f"{FACT[0]} 12345{FACT[1]} 12345{FACT[2]}{QUESTION}"
        path.write_text(train_tokenizer([*split.train, *[example] * 200], recipe.vocab_size))
    return path.read_text()
