"""Bounded caches: which entries each rule keeps, their bytes, copies, records and room."""

from __future__ import annotations

import numpy as np
import pytest

from capax import LLM, SamplingParams
from capax.errors import CapacityError, ConfigError, StoreError
from capax.files.model_file import open_model
from capax.kv import kv_method, kv_name, parse_kv
from capax.kv.bounded import BoundedStore, Entries, best, recent
from capax.kv.h2o import H2OPolicy
from capax.kv.random_eviction import RandomPolicy
from capax.kv.snapkv import SnapPolicy, pooled
from capax.kv.stream import StreamPolicy
from capax.kv.trim import TrimPolicy
from tests.kv.bounded_runs import PlannedGates, Runner, heads, some_ids, tiny
from tests.models import gguf_model

RULES = ("stream", "h2o", "snapkv", "random")


@pytest.fixture(scope="module")
def runner() -> Runner:
    return Runner()


def entries(positions: list[int], numbers: list[float] | None = None, layer: int = 0) -> Entries:
    p = np.array([positions], np.int32)
    return Entries(layer, p, np.array([numbers or []], np.float32), now=positions[-1])


def kept(policy: object, e: Entries, n: int) -> list[int]:
    rows = best(policy.scores(e), n)  # type: ignore[attr-defined]
    return [int(e.positions[0, i]) for i in rows[0]]


def test_best_keeps_order_and_lets_the_older_of_equals_go() -> None:
    scores = np.array([[1.0, 5.0, 1.0, 1.0, 0.0], [np.nan, 1, 2, 3, -np.inf]])
    assert best(scores, 3).tolist() == [[1, 2, 3], [1, 2, 3]]


def test_recent_counts_positions_not_entries() -> None:
    assert recent(entries([0, 50, 98, 99]), 2).tolist() == [[False, False, True, True]]


def test_stream_keeps_sinks_and_the_newest() -> None:
    assert kept(StreamPolicy(2), entries([0, 1, 2, 7, 8, 9]), 4) == [0, 1, 8, 9]


def test_h2o_keeps_recent_ones_and_heavy_hitters() -> None:
    e = entries([0, 3, 5, 7, 8, 9], [1.0, 9.0, 2.0, 8.0, 0.1, 0.0])
    assert kept(H2OPolicy(2), e, 4) == [3, 7, 8, 9]


def test_snapkv_keeps_neighbours_of_what_the_window_attends_to() -> None:
    assert pooled(np.array([[0, 0, 5, 0, 0, 1]], np.float32), 3).tolist() == [[0, 5, 5, 5, 1, 1]]
    e = entries([0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 5, 0, 0, 1, 0, 0])
    assert kept(SnapPolicy(2, 3), e, 5) == [1, 2, 3, 6, 7]


def test_trim_keeps_first_and_last_ones_only_if_it_is_told_to() -> None:
    e = entries([0, 1, 2, 3, 4, 5], [-9.0, -1.0, -0.1, -0.01, -0.1, -9.0])
    gates = PlannedGates(lambda layer, p: [0.0])
    assert kept(TrimPolicy(gates), e, 3) == [2, 3, 4]
    assert kept(TrimPolicy(gates, window=1, sinks=1), e, 3) == [0, 3, 5]


def test_random_keeps_a_sample_that_does_not_age() -> None:
    """After many rounds of dropping, old and new positions are left alike."""
    policy, held = RandomPolicy(0, 7), []
    counts = np.zeros(4)
    for layer in range(200):
        held = list(range(40))
        for t in range(40, 400):
            held.append(t)
            if len(held) == 50:
                held = kept(policy, entries(held, layer=layer), 40)
        held = kept(policy, entries(held, layer=layer), 40)
        counts += np.bincount(np.array(held) // 100, minlength=4)
    assert counts.sum() == 200 * 40
    assert np.abs(counts / 2000 - 1).max() < 0.08  # 2000 +- 40 in each quarter


def test_random_follows_its_seed(runner: Runner) -> None:
    def survivors(seed: int) -> list[list[int]]:
        cache = runner.bounded(f"random:memory=40,buffer=8,seed={seed}")
        runner.feed(cache, some_ids(200))
        return [k.tolist() for k in heads(cache, runner.config.n_layers)]

    first = survivors(1)
    assert first == survivors(1)
    assert first != survivors(2)
    assert len({tuple(k) for k in first}) == len(first)  # each head draws for itself
    assert all(k[-20:] == list(range(180, 200)) for k in first)


def test_h2o_sums_are_the_attention_weights(runner: Runner) -> None:
    """All weights of a query sum to one, so the sums of n entries sum to n queries and heads."""
    cache = runner.bounded("h2o:memory=150,buffer=16")
    runner.feed(cache, some_ids(100))
    group = runner.config.n_heads // runner.config.n_kv_heads
    sums = cache._memory.numbers[:, :, :100].sum(axis=-1)
    assert np.allclose(sums, 100 * group, rtol=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_a_fork_goes_its_own_way(runner: Runner, rule: str) -> None:
    ids = some_ids(130)
    cache = runner.bounded(f"{rule}:memory=40,buffer=16")
    runner.feed(cache, ids[:90])
    twin = cache.fork()
    ahead = runner.feed(twin, some_ids(40, seed=5))
    expected = runner.feed(cache, ids[90:])
    fresh = runner.bounded(f"{rule}:memory=40,buffer=16")
    assert np.array_equal(runner.feed(fresh, ids)[90:], expected)
    assert not np.array_equal(ahead, expected)


@pytest.mark.parametrize("rule", RULES)
def test_a_record_brings_everything_back(runner: Runner, rule: str) -> None:
    ids = some_ids(120)
    cache = runner.bounded(f"{rule}:memory=40,buffer=16")
    runner.feed(cache, ids[:100])
    content = cache.export()
    other = runner.bounded(f"{rule}:memory=40,buffer=16")
    other.load(content)
    assert np.array_equal(runner.feed(other, ids[100:]), runner.feed(cache, ids[100:]))


def test_foreign_and_damaged_records_are_refused(runner: Runner) -> None:
    cache = runner.bounded("stream:memory=40,buffer=16")
    runner.feed(cache, some_ids(30))
    content = cache.export()
    with pytest.raises(StoreError, match="no header"):
        cache.load(b"short")
    with pytest.raises(StoreError, match="another model, method or version"):
        runner.bounded("stream:memory=41,buffer=16").load(content)
    with pytest.raises(StoreError, match="bytes of entries, not"):
        cache.load(content[:-1])
    damaged = bytearray(content)
    damaged[-1] ^= 1
    with pytest.raises(StoreError, match="damaged"):
        cache.load(bytes(damaged))
    assert cache.n_tokens == 30


def test_room_is_counted_and_given_back(runner: Runner) -> None:
    store = kv_method("stream:memory=48,buffer=16").open(runner.file, 2, 2)
    assert isinstance(store, BoundedStore)
    first, second, third = store.new(), store.new(), store.new()
    before = store.nbytes
    runner.feed(first, some_ids(100))
    runner.feed(second, some_ids(5))
    assert store.nbytes - before == 2 * store.footprint.page == first.nbytes + second.nbytes
    assert first.pages_wanted(1000) == 0
    assert third.pages_wanted(1) == 1
    with pytest.raises(CapacityError, match="1 more pages"):
        third.reserve(1)
    first.close()
    assert store.n_free == 1
    assert store.nbytes - before == store.footprint.page
    runner.feed(third, some_ids(5))


def test_a_repeated_step_is_refused(runner: Runner) -> None:
    cache = runner.bounded("stream:memory=48,buffer=16")
    runner.feed(cache, some_ids(10))
    cache._n_tokens = 8  # as after a step that failed between two layers
    with pytest.raises(ValueError, match="layer 0 has seen 10 tokens and is given position 8"):
        runner.feed(cache, [5])


def test_what_counted_attention_cannot_go_back(runner: Runner) -> None:
    cache = runner.bounded("h2o:memory=48,buffer=16")
    runner.feed(cache, some_ids(10))
    with pytest.raises(ValueError, match="is counted already"):
        cache.truncate(8)
    cache.truncate(0)
    assert cache.nbytes == 0


def test_the_default_buffer_fills_the_page() -> None:
    for memory, n_entries in [(64, 128), (112, 128), (113, 192), (128, 192), (48, 64)]:
        assert parse_kv(f"stream:memory={memory}").options.n_entries == n_entries


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("stream:memory=0", "memory=0 is not in 1"),
        ("stream:buffer=0", "buffer=0 is not in 1"),
        ("stream:memory=4,sinks=4", "sinks=4 is not in 0..memory - 1 = 3"),
        ("h2o:memory=8,recent=9", "recent=9 is not in 0..memory = 8"),
        ("random:seed=-1", "seed=-1 is not in"),
        ("snapkv:window=17,buffer=16", "window=17 is not in 1..16"),
        ("snapkv:pool=4", "pool=4 is not an odd number"),
        ("trim:memory=64", "needs gates="),
        ("trim:gates=g,window=200", "window=200 and sinks=0 are not in 0..memory = 128"),
    ],
)
def test_options_out_of_range_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kv_name(spec)


def test_a_sliding_window_is_refused() -> None:
    config = open_model(gguf_model("mistral")).config
    with pytest.raises(ConfigError, match="sliding window"):
        kv_method("stream").footprint(config)


# --- under the engine -------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_requests_together_are_as_alone(rule: str) -> None:
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    prompts = [some_ids(n, seed=n) for n in (90, 3, 140)]
    with LLM(
        tiny("Q8_0"),
        kv=f"{rule}:memory=40,buffer=24",
        threads=1,
        ctx_size=256,
        n_sequences=3,
        prefill_chunk=50,
    ) as llm:
        alone = [llm.generate(p, params).outputs[0].token_ids for p in prompts]
        together = [output.outputs[0].token_ids for output in llm.generate(prompts, params)]
        assert together == alone
        choices = llm.generate(
            prompts[0], SamplingParams(max_tokens=30, n=3, temperature=1.0, seed=1, ignore_eos=True)
        ).outputs
        assert len({tuple(choice.token_ids) for choice in choices}) == 3
        llm.engine.check_integrity()
        assert llm.engine._store.n_free == llm.engine._store.capacity


def test_the_plan_is_what_is_held() -> None:
    with LLM(tiny("Q8_0"), kv="h2o:memory=40,buffer=24", threads=1, ctx_size=256) as llm:
        assert llm.plan.footprint.kv == llm.plan.n_pages * llm.plan.kv_footprint.page
        cache = llm.engine._store.new()
        cache.reserve(100)
        assert llm.measured_memory()["kv"] == llm.plan.kv_footprint.page
        cache.close()
