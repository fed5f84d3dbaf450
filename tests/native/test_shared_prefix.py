"""Sequences attended together for the pages they share: each has the bits of `kv_attend` alone.

Random page tables over one pool: prefixes of two trunks of every length around pages and spans,
tails of their own, strangers; odd head sizes, group sizes above and below a register tile, windows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capax import _native

PAGE, SPAN = _native.PAGE_TOKENS, _native.SPAN_TOKENS
TYPES = ["f32", "f16", "bf16", "int8"]
CAPACITY = 256
LAYER = 1  # of two: what is found at an offset
MOST_PAGES = 20


class Geometry(NamedTuple):
    n_kv_heads: int = 2
    n_group: int = 3
    head_dim: int = 16
    window: int = 0
    threads: int = 2


class Member(NamedTuple):
    """A sequence with `shared` pages of a trunk and `own` more tokens before its new one."""

    trunk: int
    shared: int
    own: int


class Pages:
    """A pool with two trunks of pages; everything in it is random."""

    def __init__(self, geometry: Geometry, kind: str) -> None:
        self.geometry = geometry
        heads, dim = geometry.n_kv_heads, geometry.head_dim
        self.layout = _native.KVLayout(kind, heads, dim, dim)
        self.offset = LAYER * self.layout.layer_page_nbytes
        self.pool = _native.PagePool((LAYER + 1) * self.layout.layer_page_nbytes, CAPACITY)
        for _ in range(CAPACITY):  # any page may be in a table
            self.pool.allocate()
        self.rng = np.random.default_rng(3)
        self.free = self.rng.permutation(CAPACITY).astype(np.int32).tolist()
        self.trunks = [self.take(MOST_PAGES) for _ in range(2)]

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape).astype(np.float32)

    def take(self, n: int) -> list[int]:
        taken, self.free = self.free[:n], self.free[n:]
        assert len(taken) == n
        for page in taken:
            self.fill(page)
        return taken

    def fill(self, page: int) -> None:
        k, v = (self.normal(PAGE, self.geometry.n_kv_heads, self.geometry.head_dim) for _ in "kv")
        table = np.array([page], np.int32)
        _native.kv_append(self.layout, self.pool.memory, self.offset, table, k, v, 0)

    def table(self, member: Member) -> np.ndarray:
        own = self.take(member.own // PAGE + 1)
        return np.array([*self.trunks[member.trunk][: member.shared], *own], np.int32)

    def alone(self, q: np.ndarray, table: np.ndarray, position: int) -> np.ndarray:
        return _native.kv_attend(
            self.layout, self.pool.memory, self.offset, table, q[None], position,
            self.geometry.head_dim**-0.5, self.geometry.window, by_span=True,
        )[0]  # fmt: skip


def together(
    pages: Pages, q: np.ndarray, tables: list[np.ndarray], positions: list[int]
) -> np.ndarray:
    """Append a token to every sequence and attend, all in one step: [n, n_heads, head_dim]."""
    heads, group, dim, window, threads = pages.geometry
    n = len(tables)
    program = _native.Program(threads)
    table = _native.Weight.from_bytes(bytes(4 * 32), "F32", 1, 32)  # a step needs a vocabulary
    program.embed(table, program.buffer(32, False))
    widths = (heads * group * dim, heads * dim, heads * dim, heads * group * dim)
    buffers = [program.buffer(width, False) for width in widths]
    still = np.ones((4096, dim // 2), np.float32), np.zeros((4096, dim // 2), np.float32)
    program.attention(
        LAYER, *buffers, heads * group, heads, dim, *still, False, None, None, 0.0, dim**-0.5,
        window, True,
    )  # fmt: skip
    program.reserve(n, 1)
    rows = [program.rows(buffer) for buffer in buffers]
    rows[0][:] = q.reshape(n, -1)
    rows[1][:], rows[2][:] = pages.normal(n, heads * dim), pages.normal(n, heads * dim)
    bounds = np.array([(i, i + 1, position) for i, position in enumerate(positions)], np.int32)
    nothing = np.empty(0, np.int32)
    program.run(0, 2, np.zeros(n, np.int32), bounds, tables, pages.pool, pages.layout, nothing, [])
    return rows[3].reshape(n, heads * group, dim).copy()


def check(geometry: Geometry, kind: str, members: list[Member]) -> np.ndarray:
    pages = Pages(geometry, kind)
    tables = [pages.table(member) for member in members]
    positions = [member.shared * PAGE + member.own for member in members]
    q = 2 * pages.normal(len(members), geometry.n_kv_heads * geometry.n_group, geometry.head_dim)
    found = together(pages, q, tables, positions)
    for i, member in enumerate(members):
        alone = pages.alone(q[i], tables[i], positions[i])
        assert np.array_equal(found[i], alone), f"sequence {i}, {member}"
    return found


MEMBERS = st.lists(
    st.builds(
        Member,
        st.integers(0, 1),
        st.sampled_from([0, 1, 2, 7, 8, 9, 15, 16, 17, MOST_PAGES]),
        st.sampled_from([0, 1, 15, 16, 17, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, SPAN - 1, SPAN]),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    members=MEMBERS,
    kind=st.sampled_from(TYPES),
    geometry=st.builds(
        Geometry,
        st.integers(1, 3),
        st.sampled_from([1, 2, 3, 5, 7, 8]),
        st.sampled_from([2, 16, 18, 34]),
        st.sampled_from([0, 0, 0, 1, 100, 700]),
        st.integers(1, 3),
    ),
)
def test_random_page_tables_give_the_bits_of_each_alone(
    members: list[Member], kind: str, geometry: Geometry
) -> None:
    check(geometry, kind, members)


@pytest.mark.parametrize("kind", TYPES)
def test_shared_pages_on_every_isa(isa: str, kind: str) -> None:
    members = [Member(0, 9, own) for own in (0, 1, 70, 130)] + [Member(1, 1, 5), Member(0, 2, 3)]
    check(Geometry(head_dim=18), kind, members)


@pytest.mark.parametrize("kind", TYPES)
def test_every_isa_gives_the_same_bits(on_every_isa, kind: str) -> None:  # type: ignore[no-untyped-def]
    members = [Member(0, 9, own) for own in (0, 1, 70)]
    results = on_every_isa(lambda: check(Geometry(), kind, members))
    for name, found in results.items():
        assert np.array_equal(found, results["scalar"]), name


@pytest.mark.parametrize("n_group", [1, 3, 8, 24, 49])
def test_more_sequences_than_a_tile_has_rows_for(n_group: int) -> None:
    members = [Member(0, 3, own) for own in range(51 if n_group == 1 else 18)]
    check(Geometry(n_kv_heads=1, n_group=n_group), "f16", members)


def test_negative_control_one_page_read_from_a_neighbour_is_seen() -> None:
    pages = Pages(Geometry(), "f16")
    members = [Member(0, 2, 70), Member(0, 2, 71)]
    tables = [pages.table(member) for member in members]
    positions = [member.shared * PAGE + member.own for member in members]
    q = pages.normal(2, 6, 16)
    wrong = [tables[0], tables[1].copy()]
    wrong[1][2] = tables[0][2]  # as if three pages were shared
    found = together(pages, q, wrong, positions)
    assert np.array_equal(found[0], pages.alone(q[0], tables[0], positions[0]))
    assert not np.array_equal(found[1], pages.alone(q[1], tables[1], positions[1]))
