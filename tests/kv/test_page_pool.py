"""The page pool: reference counts, zeroed pages, memory given back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from capax import _native

PAGE_NBYTES = 4096


def test_a_page_is_zero_when_it_is_handed_out_again() -> None:
    pool = _native.PagePool(PAGE_NBYTES, 2)
    page = pool.allocate()
    pool.write(page, b"\xff" * PAGE_NBYTES)
    pool.release(page)
    again = pool.allocate()
    assert again == page
    assert pool.read(again) == bytes(PAGE_NBYTES)


def test_a_full_pool_says_so() -> None:
    pool = _native.PagePool(PAGE_NBYTES, 2)
    assert sorted([pool.allocate(), pool.allocate()]) == [0, 1]
    assert pool.allocate() == -1
    assert pool.copy(0) == -1


def test_pages_not_in_use_are_refused() -> None:
    pool = _native.PagePool(PAGE_NBYTES, 2)
    page = pool.allocate()
    pool.release(page)
    for call in (pool.retain, pool.release, pool.copy, pool.read):
        for bad in (page, -1, 2, 2**31 - 1):
            with pytest.raises(ValueError, match="not in use"):
                call(bad)


def test_write_refuses_another_size() -> None:
    pool = _native.PagePool(PAGE_NBYTES, 1)
    page = pool.allocate()
    for nbytes in (0, PAGE_NBYTES - 1, PAGE_NBYTES + 1):
        with pytest.raises(ValueError, match="a page has"):
            pool.write(page, bytes(nbytes))


@pytest.mark.parametrize(("nbytes", "capacity"), [(0, 1), (1, 0), (-1, 1), (1, -1), (1, 2**31)])
def test_absurd_extents_are_refused(nbytes: int, capacity: int) -> None:
    with pytest.raises(ValueError, match="extent"):
        _native.PagePool(nbytes, capacity)


def test_an_address_range_that_cannot_be_had_is_a_memory_error() -> None:
    for nbytes, capacity in ((2**60, 2**20), (2**63 - 1, 2)):
        with pytest.raises(MemoryError):
            _native.PagePool(nbytes, capacity)


def test_memory_is_counted_and_given_back() -> None:
    pool = _native.PagePool(PAGE_NBYTES, 8)
    assert pool.resident_nbytes == 0
    pages = [pool.allocate() for _ in range(3)]
    assert pool.resident_nbytes == 3 * PAGE_NBYTES
    pool.release(pages[1])
    assert pool.resident_nbytes == 3 * PAGE_NBYTES
    pool.trim()
    assert pool.resident_nbytes == 2 * PAGE_NBYTES
    assert pool.read(pool.allocate()) == bytes(PAGE_NBYTES)


class PagePoolMachine(RuleBasedStateMachine):
    """Any sequence of calls agrees with a dictionary of page contents and counts."""

    CAPACITY = 6
    pages = Bundle("pages")

    def __init__(self) -> None:
        super().__init__()
        self.pool = _native.PagePool(64, self.CAPACITY)
        self.counts: dict[int, int] = {}
        self.contents: dict[int, bytes] = {}

    @rule(target=pages, fill=st.integers(1, 255))
    def allocate(self, fill: int) -> int:
        page = self.pool.allocate()
        assert (page == -1) == (len(self.counts) == self.CAPACITY)
        if page >= 0:
            assert page not in self.counts
            assert self.pool.read(page) == bytes(64)
            self.counts[page] = 1
            self.contents[page] = bytes([fill]) * 64
            self.pool.write(page, self.contents[page])
        return page

    @rule(page=pages)
    def retain(self, page: int) -> None:
        if page in self.counts:
            self.pool.retain(page)
            self.counts[page] += 1

    @rule(page=pages)
    def release(self, page: int) -> None:
        if page in self.counts:
            self.pool.release(page)
            self.counts[page] -= 1
            if not self.counts[page]:
                del self.counts[page]

    @rule(target=pages, page=pages)
    def copy(self, page: int) -> int:
        if page not in self.counts:
            return -1
        fresh = self.pool.copy(page)
        if fresh >= 0:
            self.counts[fresh] = 1
            self.contents[fresh] = self.contents[page]
        return fresh

    @rule()
    def trim(self) -> None:
        self.pool.trim()

    @invariant()
    def agrees(self) -> None:
        assert self.pool.check_integrity()
        assert self.pool.n_in_use == len(self.counts)
        for page, count in self.counts.items():
            assert self.pool.references(page) == count
            assert self.pool.read(page) == self.contents[page]


PagePoolMachine.TestCase.settings = settings(max_examples=50, deadline=None, derandomize=True)
TestPagePool = PagePoolMachine.TestCase


def test_the_view_of_memory_is_the_pages() -> None:
    pool = _native.PagePool(100, 3)
    page = pool.allocate()
    memory = pool.memory
    assert memory.shape[0] == 3
    assert memory.dtype == np.uint8
    memory[page, :100] = 7
    assert pool.read(page) == b"\x07" * 100
