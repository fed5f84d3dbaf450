"""Knowledge capacity (arXiv 2404.05405): acceptance; trained curves are in benchmarks/."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from capax import LLM
from capax.engine.outputs import Score
from capax.errors import ConfigError
from capax.measuring.knowledge import biographies as bio
from capax.measuring.knowledge.biographies import ATTRIBUTES, MARKERS, N0, S0, Biographies
from capax.measuring.knowledge.bits import Bits, max_bits, parameters_for
from capax.measuring.knowledge.measure import measure
from tests.models import gguf_model


def test_constants() -> None:
    assert S0 == 212_083_200_000_000
    assert math.log2(S0) == pytest.approx(47.591624, abs=1e-6)
    assert math.log2(N0) == pytest.approx(27.253497, abs=1e-6)
    for n, bits in ((1_000, 64_879), (5_000, 312_787), (10_000, 615_574), (20_000, 1_211_148)):
        assert max_bits(n) == pytest.approx(bits, abs=1)
    assert bio.N_TOKENS == 25
    assert bio.VOCAB_SIZE == 136


def test_people_have_distinct_names_and_valid_values() -> None:
    people = Biographies(5_000, seed=3)
    names = people.tokens[:, 1:7]
    assert len(np.unique(names, axis=0)) == 5_000
    first, middle, last = (128 * names[:, i] + names[:, i + 1] for i in (0, 2, 4))
    assert (first.max(), middle.max(), last.max()) < (400, 400, 1000)
    for i, attribute in enumerate(ATTRIBUTES):
        tokens = people.tokens[:, bio.attribute_tokens(i)]
        assert (tokens[:, 0] == MARKERS[i]).all()
        at = 1
        for size in attribute.sizes:
            n = bio.symbols_of(size)
            values = tokens[:, at] if n == 1 else 128 * tokens[:, at] + tokens[:, at + 1]
            assert 0 <= values.min() <= values.max() < size
            assert len(np.unique(values)) == size  # 5,000 people are enough to see them all
            at += n
    assert (people.tokens == Biographies(5_000, seed=3).tokens).all()
    assert (people.tokens != Biographies(5_000, seed=4).tokens).any()


def test_documents_hold_a_persons_tokens_in_another_order() -> None:
    people = Biographies(50)
    rng = np.random.default_rng(0)
    documents = people.documents(np.arange(50), rng)
    assert (documents[:, :7] == people.tokens[:, :7]).all()
    assert (np.sort(documents, 1) == np.sort(people.tokens, 1)).all()
    orders = {tuple(t for t in d if t in MARKERS) for d in documents}
    assert len(orders) > 30


class Predictor:
    """Something that scores, with the distribution over next tokens that `chances` gives."""

    def __init__(self, n_parameters: int = 1000) -> None:
        shape = SimpleNamespace(shape=(n_parameters,), nbytes=4 * n_parameters)
        self.name = "by hand"
        self.config = SimpleNamespace(vocab_size=bio.VOCAB_SIZE)
        self.file = SimpleNamespace(tensors={"all": shape})

    def chances(self, prefix: Sequence[int]) -> np.ndarray:
        raise AssertionError

    def score(self, ids: list[int]) -> Score:
        logprobs: list[float | None] = [None]
        greedy: list[bool | None] = [None]
        for i in range(1, len(ids)):
            p = self.chances(ids[:i])
            logprobs.append(math.log(p[ids[i]]))
            greedy.append(bool(p.argmax() == ids[i]))
        return Score(ids, logprobs, greedy)


class Uniform(Predictor):
    """Knows the spelling: every valid name and value is as likely as any other."""

    def chances(self, prefix: Sequence[int]) -> np.ndarray:
        p = np.zeros(bio.VOCAB_SIZE)
        if len(prefix) < 7:
            sizes: tuple[int, ...] = bio.NAME_SIZES
            said = list(prefix[1:])
        else:
            at = max((i for i, t in enumerate(prefix) if t in MARKERS), default=None)
            sizes = () if at is None else ATTRIBUTES[prefix[at] - MARKERS.start].sizes
            said = [] if at is None else list(prefix[at + 1 :])
        for size in sizes:
            n = bio.symbols_of(size)
            if len(said) >= n:
                said = said[n:]
                continue
            if n == 1:
                p[:size] = 1 / size
            elif not said:  # the first of two symbols: as many values begin with it
                for symbol in range(-(-size // 128)):
                    p[symbol] = min(128, size - 128 * symbol) / size
            else:
                valid = min(128, size - 128 * said[0])
                p[:valid] = 1 / valid
            return p
        rest = [m for m in MARKERS if m not in prefix]
        p[rest] = 1 / len(rest)
        return p


class Lookup(Predictor):
    """Knows the people and nothing else about the order of their attributes."""

    def __init__(self, people: Biographies) -> None:
        super().__init__()
        self.people = people.tokens

    def chances(self, prefix: Sequence[int]) -> np.ndarray:
        p = np.zeros(bio.VOCAB_SIZE)
        if len(prefix) < 7:
            fits = (self.people[:, : len(prefix)] == prefix).all(1)
            p += np.bincount(self.people[fits, len(prefix)], minlength=len(p)) / fits.sum()
            return p
        person = self.people[(self.people[:, :7] == prefix[:7]).all(1)][0]
        at = max((i for i, t in enumerate(prefix) if t in MARKERS), default=None)
        if at is not None:
            value = person[bio.attribute_tokens(prefix[at] - MARKERS.start)]
            n_said = len(prefix) - at
            if n_said < len(value):
                p[value[n_said]] = 1.0
                return p
        rest = [m for m in MARKERS if m not in prefix]
        p[rest] = 1 / len(rest)
        return p


def measured(predictor: Any, people: Biographies, **options: Any) -> Bits:
    return measure(predictor, people, **options)


def test_who_knows_only_the_spelling_has_no_bits() -> None:
    bits = measured(Uniform(), Biographies(40))
    assert (bits.p1, bits.p2) == pytest.approx(bio.uniform_nats(), abs=1e-9)
    assert bits.total == pytest.approx(0.0, abs=1e-6)


def test_who_knows_everybody_has_all_bits() -> None:
    people = Biographies(64, seed=2)
    bits = measured(Lookup(people), people)
    assert bits.total == pytest.approx(max_bits(64), rel=1e-3)
    assert bits.share_known == pytest.approx(1.0, rel=1e-9)
    assert bits.per_parameter <= bits.r_max + 1e-6
    assert bits.recall == 1.0
    assert bits.p1 == pytest.approx(math.log(64))


def test_losses_that_no_model_can_have_are_an_error() -> None:
    with pytest.raises(ConfigError, match="something else stood in the context"):
        Bits(100, math.log(90), 1.0, 1.0, 0.5, 1000, 4000)
    with pytest.raises(ConfigError, match="something else"):
        Bits(100, math.log(100), -0.1, 1.0, 0.5, 1000, 4000)


def test_a_model_of_another_vocabulary_is_refused() -> None:
    with (
        LLM(gguf_model("llama"), ctx_size=64) as llm,
        pytest.raises(ConfigError, match="has 320 tokens and biographies are spelled with 136"),
    ):
        measure(llm, Biographies(4))


def test_planning() -> None:
    assert parameters_for(14e9, 2.0) == 7_000_000_000
    with pytest.raises(ConfigError, match="are no plan"):
        parameters_for(0, 2.0)


# --- trained ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any, LLM, Path]]:
    pytest.importorskip("torch")
    import torch

    from capax.measuring.knowledge.exposures import KnowledgeRecipe, train_knowledge, write_model

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("knowledge")
    recipe = KnowledgeRecipe(people=20, exposures=30, width=32)
    model = train_knowledge(recipe, folder)
    write_model(model, folder / "F32.gguf", "F32", recipe)
    with LLM(folder / "F32.gguf", threads=1) as llm:
        yield recipe, model, llm, folder


def test_everybody_is_shown_equally_often(run: tuple[Any, Any, LLM, Path]) -> None:
    from capax.measuring.knowledge.exposures import Shown

    recipe = run[0]
    shown = Shown(recipe)
    everyone = np.concatenate([shown.useful(step) for step in range(recipe.steps)])
    assert (np.bincount(everyone) == recipe.exposures).all()


def test_losses_are_those_of_one_forward_pass_per_prefix(
    run: tuple[Any, Any, LLM, Path],
) -> None:
    import torch

    recipe, model, llm, _ = run
    people = Biographies(recipe.people, recipe.seed)
    bits = measure(llm, people)
    documents = people.documents(np.arange(people.n), np.random.default_rng([7, 0]))
    p1 = p2 = 0.0
    with torch.inference_mode():
        for document in documents:
            for i in range(1, len(document)):
                row = model(torch.tensor(document[None, :i].astype(np.int64)))[0, -1]
                nats = -float(torch.log_softmax(row.double(), 0)[document[i]])
                p1 += nats if i < 7 else 0.0
                p2 += nats if i >= 7 and document[i] not in MARKERS else 0.0
    assert bits.p1 == pytest.approx(p1 / people.n, rel=1e-4)
    assert bits.p2 == pytest.approx(p2 / people.n, rel=1e-4)


def test_chances_of_names_add_up_to_at_most_one(run: tuple[Any, Any, LLM, Path]) -> None:
    names = Biographies(20).tokens[:, :7]
    scores = [run[2].score(name.tolist()).total for name in names]
    assert sum(map(math.exp, scores)) <= 1 + 1e-6


def test_bounds_hold_for_whatever_was_learned(run: tuple[Any, Any, LLM, Path]) -> None:
    _, model, llm, _ = run
    bits = measure(llm, Biographies(20))
    assert bits.n_parameters == model.n_parameters
    assert len(ATTRIBUTES) * (1 - bits.recall) <= bits.p2_first / math.log(2) + 1e-9
    assert bits.p1 >= math.log(20) - 1e-6
    assert bits.per_parameter <= bits.r_max + 1e-6
    assert bits.share_known > 0.2  # names at least: 600 documents teach something
    others = measure(llm, Biographies(20, seed=9))
    assert others.share_known < bits.share_known - 0.2  # and strangers are strangers


def test_another_order_of_attributes_says_the_same(run: tuple[Any, Any, LLM, Path]) -> None:
    some, others = (measure(run[2], Biographies(20), order_seed=s) for s in (0, 1))
    assert abs(some.p2 - others.p2) <= 0.05 * math.log(S0)


def test_a_run_that_was_stopped_ends_as_the_other(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from capax.measuring.knowledge.exposures import KnowledgeRecipe, train_knowledge

    recipe = KnowledgeRecipe(people=8, exposures=12, width=32, junk="fresh", tag=True)
    whole = train_knowledge(recipe, tmp_path / "whole", report_every=4)
    train_knowledge(recipe, tmp_path / "parts", report_every=4, stop_after=8)
    parts = train_knowledge(recipe, tmp_path / "parts", report_every=4)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)


def test_bad_recipes_are_refused() -> None:
    pytest.importorskip("torch")
    from capax.measuring.knowledge.exposures import KnowledgeRecipe

    with pytest.raises(ConfigError, match="width is 48"):
        KnowledgeRecipe(10, 10, width=48)
    with pytest.raises(ConfigError, match="exposures is 0"):
        KnowledgeRecipe(10, 0)
