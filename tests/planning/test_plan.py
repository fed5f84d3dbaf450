from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from capax.errors import CapacityError, ConfigError
from capax.files.model_file import ModelFile
from capax.kv import kv_name
from capax.planning.budget import Budget
from capax.planning.footprint import footprint, packed_matrix_nbytes
from capax.planning.plan import Alternative, DoesNotFit, Plan, plan_run
from capax.planning.sizes import GIB, MIB
from tests.planning.imaginary import PROBE, imaginary_machine, imaginary_model

MACHINE = imaginary_machine()
SMOLLM2 = imaginary_model()
UNTIED = imaginary_model(
    n_layers=4, d_model=256, n_heads=4, n_kv_heads=4, d_ffn=512, tied=False, encoding="Q8_0"
)
MODELS = {"smollm2": SMOLLM2, "untied": UNTIED}
NAMES = st.sampled_from(sorted(MODELS))
KV = st.sampled_from([None, "f16", "int8", "f32"])
BUDGETS = st.integers(20 * MIB, 600 * MIB)
CONTEXTS = st.none() | st.integers(1, 8192)


def plan(model: ModelFile = SMOLLM2, mib: float | None = None, **options: object) -> Plan:
    budget = Budget(None if mib is None else int(mib * MIB))
    return plan_run(model, budget, machine=MACHINE, probe=PROBE, **options)  # type: ignore[arg-type]


def packed_nbytes(model: ModelFile, p: Plan) -> int:
    return sum(packed_matrix_nbytes(model, n) for n, r in p.residency.items() if r == "packed")


def test_without_a_budget_everything_is_packed_and_whole() -> None:
    p = plan()
    assert set(p.residency.values()) == {"packed"}
    assert (p.kv, p.context_len, p.notes) == ("f16", 8192, ())
    assert p.limit.source == "available memory"


def test_kv_becomes_int8_before_the_context_shrinks_and_it_is_said() -> None:
    p = plan(mib=300)
    assert (p.kv, p.context_len, p.streamed) == ("int8", 8192, frozenset())
    assert "int8 instead of f16" in p.notes[0]


def test_the_context_shrinks_before_weights_are_streamed_and_it_is_said() -> None:
    p = plan(mib=230)
    assert 2048 <= p.context_len < 8192
    assert p.streamed == frozenset()
    assert any(f"{p.context_len:,} tokens instead of the model's 8,192" in n for n in p.notes)


def test_weights_are_streamed_last_and_no_more_than_needed() -> None:
    p = plan(mib=150)
    assert p.context_len == 2048
    assert p.streamed
    # One matrix more in memory would break the budget.
    largest_layer_matrix = max(
        packed_matrix_nbytes(SMOLLM2, n)
        for n in SMOLLM2.tensors
        if n.startswith("blk.0.ffn_down.w")
    )
    assert p.limit.nbytes - p.total_nbytes < largest_layer_matrix + 2 * MIB


def test_an_embedding_that_is_only_looked_up_is_streamed_first() -> None:
    everything = plan(UNTIED)
    p = plan(UNTIED, (everything.total_nbytes - MIB) / MIB, kv="f16", context_len=8192)
    assert p.streamed == {"token_embd.weight"}
    assert p.prediction is not None
    assert everything.prediction is not None
    assert p.prediction.decode_tokens_per_second == pytest.approx(
        everything.prediction.decode_tokens_per_second
    )


@settings(max_examples=60, deadline=None)
@given(NAMES, BUDGETS, CONTEXTS, KV)
def test_a_plan_never_exceeds_its_budget(
    name: str, nbytes: int, context: int | None, kv: str | None
) -> None:
    model = MODELS[name]
    try:
        p = plan_run(model, Budget(nbytes), context_len=context, kv=kv, machine=MACHINE)
    except DoesNotFit:
        return
    assert p.total_nbytes <= nbytes
    assert p.total_nbytes == footprint(model, p.shape).total
    assert context is None or p.context_len == context
    assert kv is None or p.kv == kv


@settings(max_examples=60, deadline=None)
@given(NAMES, st.lists(BUDGETS, min_size=2, max_size=6), CONTEXTS, KV)
def test_more_memory_never_gives_a_worse_plan(
    name: str, budgets: list[int], context: int | None, kv: str | None
) -> None:
    model = MODELS[name]
    plans: list[Plan] = []
    for nbytes in sorted(budgets):
        try:
            plans.append(
                plan_run(model, Budget(nbytes), context_len=context, kv=kv, machine=MACHINE)
            )
        except DoesNotFit:
            assert not plans, "a smaller budget had fitted"
    for less, more in pairwise(plans):
        assert more.context_len >= less.context_len
        assert len(more.streamed) <= len(less.streamed) or (
            packed_nbytes(model, more) >= packed_nbytes(model, less)
        )
        assert (less.kv, more.kv) != ("f16", "int8")


@settings(max_examples=60, deadline=None)
@given(NAMES, st.integers(1, 600 * MIB), CONTEXTS, KV)
def test_every_way_out_of_a_refusal_fits(
    name: str, nbytes: int, context: int | None, kv: str | None
) -> None:
    model = MODELS[name]
    ways: tuple[Alternative, ...] | None = None
    try:
        plan_run(model, Budget(nbytes), context_len=context, kv=kv, machine=MACHINE)
    except DoesNotFit as refusal:
        ways = refusal.alternatives
    assume(ways is not None)
    assert ways
    assert len(ways) <= 3
    for way in ways:
        p = plan_run(
            model,
            Budget(way.memory or nbytes),
            context_len=way.context_len or context,
            kv=way.kv or kv,
            machine=MACHINE,
        )
        assert p.total_nbytes <= (way.memory or nbytes), way
        assert "every weight" not in way.summary or not p.streamed, way


def test_a_refusal_is_one_sentence_with_need_limit_and_next_step() -> None:
    with pytest.raises(CapacityError) as caught:
        plan(mib=100, context_len=8192)
    message = str(caught.value)
    assert "imaginary.gguf with 8,192 tokens of int8 KV needs at least" in message
    assert "100 MiB (budget)" in message
    assert "--ctx-size" in message or "--memory" in message
    ways = caught.value.alternatives  # type: ignore[attr-defined]
    assert len(ways) == 3
    assert sum("tok/s" in way.summary for way in ways) >= 2


def test_a_container_limit_lowers_the_budget_and_it_is_said() -> None:
    machine = imaginary_machine(limit=400 * MIB)
    p = plan_run(SMOLLM2, Budget(GIB), machine=machine)
    assert p.limit.nbytes == 400 * MIB
    assert "lowered to 400 MiB (cgroup limit)" in p.notes[0]


def test_a_way_out_that_this_machine_does_not_have_is_not_a_flag() -> None:
    machine = imaginary_machine(limit=100 * MIB)
    with pytest.raises(DoesNotFit) as caught:
        plan_run(SMOLLM2, Budget(GIB), context_len=8192, machine=machine)
    flags = [way for way in caught.value.alternatives if way.summary.startswith("--memory")]
    assert all(way.memory is not None and way.memory <= 100 * MIB for way in flags)
    assert any("a machine or container with" in way.summary for way in caught.value.alternatives)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_len": 8193}, "context length is 8,193; the model was trained for 8,192"),
        ({"context_len": 0}, "context length is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"prefill_chunk": 0}, "prefill chunk is 0"),
        ({"n_sequences": 0}, "number of sequences is 0"),
        ({"kv": "q4_0"}, "KV cache 'q4_0' is unknown"),
    ],
)
def test_values_outside_their_range_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(**options)  # type: ignore[arg-type]


def test_q8_0_is_another_word_for_int8() -> None:
    assert kv_name("q8_0") == kv_name("int8") == "int8"


def test_the_full_cache_can_be_spelled_as_a_method() -> None:
    assert kv_name("full") == "f16"
    assert kv_name("full:type=bf16") == "bf16"
    with pytest.raises(ConfigError, match="full:type is 'f17'; use one of f32, f16, bf16, int8"):
        kv_name("full:type=f17")


def test_a_plan_is_one_json_document() -> None:
    import json

    document = json.loads(json.dumps(plan(mib=150).to_json()))
    assert document["bytes"]["total"] == sum(
        n for name, n in document["bytes"].items() if name != "total"
    )
    assert document["limit_bytes"] == 150 * MIB
    assert document["predicted"]["decode_tokens_per_second"] > 0


def test_several_contexts_become_fewer_before_anything_else_gives_way() -> None:
    all_in = plan(context_len=512, n_sequences=16)
    one = plan(context_len=512)
    assert (all_in.n_sequences, all_in.notes) == (16, ())
    between = (all_in.total_nbytes + one.total_nbytes) / 2 / MIB
    some = plan(mib=between, context_len=512, n_sequences=16)
    assert 6 <= some.n_sequences <= 9
    assert some.total_nbytes <= between * MIB
    assert (some.context_len, some.kv, some.streamed) == (512, "f16", frozenset())
    assert f"KV cache for {some.n_sequences} whole contexts instead of 16" in some.notes[0]
    least = plan(mib=one.total_nbytes / MIB - 0.1, context_len=512, n_sequences=16)
    assert (least.n_sequences, least.kv) == (1, "int8")
