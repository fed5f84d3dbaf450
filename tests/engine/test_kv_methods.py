"""Methods that keep codes under the engine: batches, prefixes, choices, giving way, the server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from capax import LLM, SamplingParams
from capax.errors import ConfigError
from tests.acceptance.test_million import codebook
from tests.kv.landmark_models import landmark_model
from tests.models import hf_model
from tests.serving.conftest import client_of

METHODS = ("kivi:bits=4,block=64", "kivi:bits=2", "million", "xquant:bits=4")
SHARING = METHODS[:3]
GREEDY = SamplingParams(max_tokens=40, ignore_eos=True, temperature=0.0)


def ids(n: int, seed: int) -> list[int]:
    return [5 + (seed * 31 + i * i * 7) % 300 for i in range(n)]


PROMPTS = [ids(150, 1), ids(3, 2), ids(130, 3)]


def load(kv: str, folder: Path, **options: Any) -> LLM:
    if kv == "million":
        path = folder / "book.safetensors"
        if not path.exists():
            codebook().save(path)
        kv = f"million:subspaces=8,bits=6,codebook={path}"
    settings = {"ctx_size": 256, "prefill_chunk": 48, "n_sequences": 4, "threads": 1, **options}
    return LLM(hf_model("llama"), kv=kv, **settings)


def answers(llm: LLM, prompts: list[list[int]], params: SamplingParams) -> list[list[list[int]]]:
    outputs = llm.generate(prompts, params)
    llm.engine.check_integrity()
    return [[choice.token_ids for choice in output.outputs] for output in outputs]


@pytest.mark.parametrize("kv", METHODS)
def test_batches_and_giving_way_change_no_token(kv: str, tmp_path: Path) -> None:
    with load(kv, tmp_path) as llm, load(kv, tmp_path, n_sequences=1) as narrow:
        alone = [answers(llm, [prompt], GREEDY)[0] for prompt in PROMPTS]
        llm.close()
        assert answers(llm, PROMPTS, GREEDY) == alone
        assert answers(narrow, PROMPTS, GREEDY) == alone


@pytest.mark.parametrize("kv", METHODS)
def test_choices_share_a_prompt(kv: str, tmp_path: Path) -> None:
    params = SamplingParams(n=3, max_tokens=30, temperature=1.0, seed=3, ignore_eos=True)
    with load(kv, tmp_path) as llm:
        choices = answers(llm, PROMPTS[:1], params)[0]
        assert len({tuple(choice) for choice in choices}) == 3
        assert answers(llm, [PROMPTS[1], PROMPTS[0]], params)[1] == choices


@pytest.mark.parametrize("kv", SHARING)
def test_a_known_prefix_is_taken_over_as_codes(kv: str, tmp_path: Path) -> None:
    with load(kv, tmp_path) as llm:
        cold = llm.generate(PROMPTS[0], GREEDY)
        warm = llm.generate(PROMPTS[0], GREEDY)
        assert cold.usage.cached_tokens == 0
        assert warm.usage.cached_tokens == 128  # whole blocks of 64 or 128
        assert warm.token_ids == cold.token_ids


def test_a_method_without_shared_pages_computes_a_prompt_again(tmp_path: Path) -> None:
    with load("xquant:bits=4", tmp_path) as llm:
        cold, warm = (llm.generate(PROMPTS[0], GREEDY) for _ in range(2))
        assert warm.usage.cached_tokens == 0
        assert warm.token_ids == cold.token_ids


@pytest.fixture
async def server(tmp_path: Path, anyio_backend: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(load("million", tmp_path)) as client:
        yield client


@pytest.mark.anyio
async def test_the_server_reuses_prefixes_of_codes(server: httpx2.AsyncClient) -> None:
    body = {"model": "tiny", "prompt": PROMPTS[0], "max_tokens": 20, "temperature": 0}
    first, second = [(await server.post("/v1/completions", json=body)).json() for _ in range(2)]
    assert second["choices"][0]["text"] == first["choices"][0]["text"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == 128


@pytest.mark.parametrize("kv", ["f16", "kivi:bits=4"])
def test_landmark_tokens_need_the_landmark_cache(kv: str) -> None:
    with pytest.raises(ConfigError, match=r"trained with landmark tokens.* use kv=landmark"):
        LLM(landmark_model(), kv=kv, ctx_size=256)
    with LLM(landmark_model(), ctx_size=256, threads=1) as llm:
        assert llm.plan.kv == "landmark"
