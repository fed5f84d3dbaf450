"""Recorded programs: whatever is recorded or run, an operation stays within its memory."""

from __future__ import annotations

import numpy as np
import pytest

from capax import _native
from capax.weights import quantize

WIDTH, VOCAB_SIZE = 32, 50
ROTARY = np.ones((64, WIDTH // 2), np.float32)


def weight(n_out: int = VOCAB_SIZE, n_in: int = WIDTH) -> _native.Weight:
    values = np.random.default_rng(0).standard_normal((n_out, n_in)).astype(np.float32)
    return _native.Weight.from_bytes(values.tobytes(), "F32", n_out, n_in)


def recorded() -> tuple[_native.Program, int, int]:
    """A program that embeds, gathers, maps to logits and samples; its input and logits."""
    program = _native.Program(2)
    x, gathered, logits = (
        program.buffer(WIDTH, False),
        program.buffer(WIDTH, True),
        program.buffer(VOCAB_SIZE, True),
    )
    program.embed(weight(), x)
    program.gather(x, gathered)
    head = program.linear(gathered, None, 0.0, -1, False)
    program.linear_output(head, weight(), None, logits)
    program.sample(logits)
    return program, x, logits


def attention(program: _native.Program, x: int, *, layer: int = 0, n_heads: int = 1) -> None:
    k, v, out = (program.buffer(WIDTH, False) for _ in range(3))
    program.attention(
        layer, x, k, v, out, n_heads, n_heads, WIDTH, ROTARY, ROTARY, False, None, None, 0.0, 1.0,
        0, True,
    )  # fmt: skip


def run(
    program: _native.Program,
    *,
    bounds: list[tuple[int, int, int]] | None = None,
    tokens: tuple[int, ...] = (1,),
    begin: int = 0,
    end: int | None = None,
    pool: _native.PagePool | None = None,
    layout: _native.KVLayout | None = None,
    samplers: list[_native.Sampler] | None = None,
) -> list[_native.SampleResult]:
    page = np.zeros(1, np.int32)
    return program.run(
        begin,
        program.n_operations if end is None else end,
        np.array(tokens, np.int32),
        np.array(bounds or [(0, len(tokens), 0)], np.int32),
        [page] if pool else [],
        pool,
        layout,
        np.zeros(1, np.int32),
        samplers or [],
    )


def sampler(*biased: int) -> _native.Sampler:
    return _native.Sampler(
        np.zeros(0, np.int32),
        temperature=0.0,
        bias_tokens=np.array(biased, np.int32),
        bias_values=np.full(len(biased), 1e6, np.float32),
    )


def test_a_step_samples_from_the_logits_of_its_row() -> None:
    program, _, logits = recorded()
    program.reserve(4, 2)
    [(status, token, _, _)] = run(program, samplers=[sampler()])
    assert status == "ok"
    assert token == int(program.rows(logits)[0].argmax())
    assert run(program, samplers=[sampler(7)])[0][1] == 7


def test_a_sampler_that_does_not_fit_the_logits_is_refused() -> None:
    program, _, _ = recorded()
    program.reserve(4, 2)
    with pytest.raises(ValueError, match=f"token {VOCAB_SIZE} is not in"):
        run(program, samplers=[sampler(VOCAB_SIZE)])
    with pytest.raises(ValueError, match="a sampler is None"):
        run(program, samplers=[None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="nothing samples"):
        run(program, end=2, samplers=[sampler()])


def test_tokens_are_checked_against_every_table() -> None:
    program = _native.Program(1)
    x = program.buffer(WIDTH, False)
    program.embed(weight(), x)
    program.embed(weight(VOCAB_SIZE + 1), x)
    program.reserve(1, 1)
    run(program, tokens=(VOCAB_SIZE - 1,))
    for token in (-1, VOCAB_SIZE):
        with pytest.raises(ValueError, match="outside the vocabulary"):
            run(program, tokens=(token,))


@pytest.mark.parametrize("bounds", [(-1, 1, 0), (0, 2, 0), (0, -(2**31), 0), (1, -(2**31), 0),
                                    (0, 1, -1), (0, 1, 2**31 - 1)])  # fmt: skip
def test_bounds_outside_the_step_are_refused(bounds: tuple[int, int, int]) -> None:
    program, x, _ = recorded()
    attention(program, x)
    program.reserve(4, 2)
    with pytest.raises(ValueError, match=r"sequence . has rows"):
        run(program, bounds=[bounds])


def test_an_operation_on_tokens_refuses_gathered_rows() -> None:
    program = _native.Program(1)
    gathered = program.buffer(WIDTH, True)
    with pytest.raises(ValueError, match="gathered"):
        program.embed(weight(), gathered)
    with pytest.raises(ValueError, match="gathered"):
        attention(program, gathered)


def test_the_head_never_reads_tokens() -> None:
    program, _, _ = recorded()
    program.reserve(4, 2)
    run(program)
    program.run_head(1, np.zeros(1, np.int32))
    with pytest.raises(ValueError, match="does not read tokens"):
        program.run_head(0, np.zeros(1, np.int32))


def test_an_output_over_what_its_operation_reads_is_refused() -> None:
    program = _native.Program(1)
    x, up, y = (program.buffer(WIDTH, False) for _ in range(3))
    operation = program.linear(x, None, 0.0, up, False)
    square = weight(WIDTH)
    program.linear_output(operation, square, None, y)
    for buffer in (x, up, y):
        with pytest.raises(ValueError, match="needs a buffer that nothing else"):
            program.linear_output(operation, square, None, buffer)


@pytest.mark.parametrize("n_heads", [0, -1, 2**16 + 1, 2**27, 2**27 + 1, 2**31 - 1])
def test_absurd_head_counts_are_refused(n_heads: int) -> None:
    """2^27 + 1 heads of 32 are 32 floats wide in 32 bits."""
    program = _native.Program(1)
    with pytest.raises(ValueError, match="attention of layer 0"):
        attention(program, program.buffer(WIDTH, False), n_heads=n_heads)


@pytest.mark.parametrize(("layer", "dim"), [(1, WIDTH), (0, WIDTH // 2)])
def test_a_pool_whose_pages_are_too_small_is_refused(layer: int, dim: int) -> None:
    program, x, _ = recorded()
    attention(program, x, layer=layer)
    program.reserve(4, 2)
    layout = _native.KVLayout("f16", 1, dim, dim)
    pool = _native.PagePool(layout.layer_page_nbytes, 1)
    pool.allocate()
    with pytest.raises(ValueError, match="no room for every layer"):
        run(program, pool=pool, layout=layout)


def test_a_free_page_is_refused() -> None:
    program, x, _ = recorded()
    attention(program, x)
    program.reserve(4, 2)
    layout = _native.KVLayout("f16", 1, WIDTH, WIDTH)
    pool = _native.PagePool(layout.layer_page_nbytes, 2)
    with pytest.raises(ValueError, match="page 0 of sequence 0 is free"):
        run(program, pool=pool, layout=layout)
    pool.allocate()
    run(program, pool=pool, layout=layout)


def test_rows_are_reserved_once_and_nothing_is_recorded_later() -> None:
    program, x, _ = recorded()
    with pytest.raises(ValueError, match="no rows are reserved"):
        run(program)
    for rows in ((0, 1), (1, 0), (-1, 1), (2**57, 1), (2**62, 1)):
        with pytest.raises(ValueError, match="1 to 2\\^30 rows"):
            program.reserve(*rows)
    program.reserve(4, 2)
    view = program.rows(x)
    for late in (
        lambda: program.reserve(8, 2),
        lambda: program.buffer(8, False),
        lambda: program.embed(weight(), x),
        lambda: program.linear(x, None, 0.0, -1, False),
    ):
        with pytest.raises(ValueError, match="reserve"):
            late()
    run(program)
    assert view[0].any()


def test_rows_that_no_memory_holds_are_a_memory_error() -> None:
    program = _native.Program(1)
    program.buffer(2**30, False)
    for _ in range(2):
        with pytest.raises(MemoryError):
            program.reserve(2**30, 1)
    with pytest.raises(ValueError, match="2\\^30 floats wide"):
        program.buffer(2**30 + 1, False)


def test_what_a_program_borrows_outlives_its_names() -> None:
    program, _, logits = recorded()  # its weights have no other owner
    program.reserve(4, 2)
    run(program)
    view = program.rows(logits)
    before = view[0].copy()
    del program
    assert np.array_equal(view[0], before)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (lambda p, x, _: p.positions(x, np.zeros((9, 8), np.float32)), "another width"),
        (lambda p, x, _: p.positions(7, np.zeros((9, WIDTH), np.float32)), "no such buffer"),
        (lambda p, x, v: p.layer_norm(x, v, v[:8], 1e-5), "another width"),
        (lambda p, x, v: p.layer_norm(-1, v, v, 1e-5), "no such buffer"),
        (lambda p, x, v: p.gelu(7), "no such buffer"),
        (lambda p, x, v: p.gelu(p.buffer(8, True)), "gathered"),
    ],
)
def test_rowwise_operations_fit_their_buffers(record, message: str) -> None:
    program = _native.Program(1)
    x = program.buffer(WIDTH, False)
    with pytest.raises(ValueError, match=message):
        record(program, x, np.ones(WIDTH, np.float32))


def test_rowwise_operations_see_each_sequence_at_its_positions() -> None:
    rng = np.random.default_rng(3)
    table = rng.standard_normal((9, WIDTH)).astype(np.float32)
    gain, shift = rng.standard_normal((2, WIDTH)).astype(np.float32)
    for n_threads in (1, 2, 3):
        program = _native.Program(n_threads)
        x = program.buffer(WIDTH, False)
        program.embed(weight(), x)
        program.positions(x, table)
        program.layer_norm(x, gain, shift, 1e-5)
        program.gelu(x)
        program.reserve(8, 1)
        tokens = (3, 1, 4, 1, 5)
        run(program, tokens=tokens, bounds=[(0, 2, 7), (2, 5, 0)])
        rows = weight().rows(np.array(tokens)) + table[[7, 8, 0, 1, 2]]
        want = _native.gelu(_native.layer_norm(rows, gain, shift, 1e-5))
        assert np.array_equal(program.rows(x)[:5], want)
        with pytest.raises(ValueError, match=r"sequence . has rows"):
            run(program, tokens=tokens, bounds=[(0, 2, 8), (2, 5, 0)])  # position 9 has no row


def test_a_step_keeps_to_the_mask_of_each_sampler() -> None:
    program, _, _ = recorded()
    program.reserve(4, 2)
    masked = sampler()
    masked.set_mask(np.array([1 << 5, 0], np.uint32))
    assert run(program, samplers=[masked])[0][1] == 5
    masked.set_mask(np.zeros(2, np.uint32))
    assert run(program, samplers=[masked])[0][:2] == ("all_masked", -1)
    masked.set_mask(np.ones(1, np.uint32))
    with pytest.raises(ValueError, match="mask has 1 words but 50 tokens need 2"):
        run(program, samplers=[masked])


@pytest.mark.parametrize("encoding", ["Q8_0", "Q4_1", "F16"])
@pytest.mark.parametrize("n", [1, 2, 3, 17, 40])
def test_wanted_rows_keep_what_int8_rounds_off(encoding: str, n: int) -> None:
    n_in, n_out = 64, 300
    rng = np.random.default_rng(n)
    rows = (rng.standard_normal((n, n_in)) ** 3).astype(np.float32)
    values = rng.standard_normal((n_out, n_in)).astype(np.float32)
    table = _native.Weight.from_bytes(rows.tobytes(), "F32", n, n_in)
    matrix = _native.Weight.from_bytes(quantize(encoding, values), encoding, n_out, n_in)

    program = _native.Program(2)
    x, wanted = program.buffer(n_in, False), program.buffer(n_in, True)
    plain, doubled = program.buffer(n_out, False), program.buffer(n_out, True)
    program.embed(table, x)
    program.linear_output(program.linear(x, None, 0.0, -1, False), matrix, None, plain)
    program.gather(x, wanted)
    program.linear_output(program.linear(wanted, None, 0.0, -1, False), matrix, None, doubled)
    program.linear_output(program.linear(wanted, None, 0.0, -1, True), matrix, None, doubled)
    program.reserve(n, n)

    def products(first: int, end: int, begin: int = 0, stop: int = 4) -> np.ndarray:
        picked = np.arange(first, end, dtype=np.int32)
        program.run(
            begin, stop, picked, np.array([(0, len(picked), 0)], np.int32), [], None, None,
            np.arange(len(picked), dtype=np.int32), [],
        )  # fmt: skip
        return program.rows(doubled)[: len(picked)].copy()

    together = products(0, n)
    exact = rows.astype(np.float64) @ matrix.dequantize().astype(np.float64).T
    assert [products(t, t + 1).tobytes() for t in range(n)] == [row.tobytes() for row in together]
    products(0, n)
    lost = np.abs(program.rows(plain)[:n] - exact).max()
    kept = np.abs(together - exact).max()
    assert kept < lost / 50 if encoding != "F16" else kept <= lost
    assert products(0, n, 0, 5).tobytes() == (2 * together).tobytes()  # added to what was there
