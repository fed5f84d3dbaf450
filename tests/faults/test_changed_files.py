"""Model files that change while their weights are streamed from them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.faults.child import run_child
from tests.models import gguf_model

STREAMING = """
import os, shutil, sys
import numpy as np
from capax import LLM, SamplingParams
from capax.errors import FileFormatError
from capax.files.model_file import open_model
from capax.kv import PagedKVCache, PagePool
from capax.models import Model, ModelTensors, SequenceSlice, Step
path, spare = sys.argv[1:3]
llm = LLM(path, threads=2)
params = SamplingParams(max_tokens=6, seed=1, ignore_eos=True)
expected = llm.generate([5, 6, 7], params).token_ids
file = open_model(path)
model = Model(
    file.config,
    ModelTensors(file, dict.fromkeys(file.tensors, "streamed")),
    context_len=512, max_tokens=256, max_logit_rows=32, n_threads=2,
)
llm._model = llm.engine._model = model
assert llm.generate([5, 6, 7], params).token_ids == expected
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(shutil.copy(gguf_model("llama", encoding="Q4_0"), tmp_path / "model.gguf"))


def test_a_file_truncated_while_in_use_is_an_error_that_names_it(path: Path) -> None:
    spare = shutil.copy(path, path.with_name("spare"))
    done = run_child(
        STREAMING
        + """
whole = os.path.getsize(path)
stream = llm.stream([9] * 40, params)
next(stream)
for size in (whole // 2, whole - 1, 100, 0):
    os.truncate(path, size)
    for call in (
        lambda: llm.generate([5, 6, 7], params),
        lambda: llm.score([5, 6, 7]),
        lambda: llm.logits([5, 6, 7]),
        lambda: list(stream) if size == whole // 2 else llm.generate([8], params),
    ):
        try:
            call()
        except FileFormatError as error:
            assert path in str(error) and "truncated" in str(error), error
        else:
            raise SystemExit(f"no error at {size}")
        llm.engine.check_integrity()
    assert llm.engine.n_unfinished == 0
    with open(spare, "rb") as source, open(path, "r+b") as target:  # the same file, whole again
        shutil.copyfileobj(source, target)
    assert llm.generate([5, 6, 7], params).token_ids == expected
print("fine")
""",
        path,
        spare,
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


def test_a_file_replaced_or_removed_while_in_use_goes_on_working(path: Path) -> None:
    other = shutil.copy(gguf_model("qwen2", encoding="Q4_0"), path.with_name("other"))
    done = run_child(
        STREAMING
        + """
os.replace(spare, path)
assert llm.generate([5, 6, 7], params).token_ids == expected
os.unlink(path)
llm.close()
assert llm.generate([5, 6, 7], params).token_ids == expected
print("fine")
""",
        path,
        other,
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
    assert not os.path.exists(path)
