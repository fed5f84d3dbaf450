"""Every kernel test may run on each instruction set this machine has."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from capax import _native

ISAS = [name for name, _ in _native.supported_isas()]


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _native.isa()
    assert _native.select_isa(request.param)
    yield request.param
    _native.select_isa(before)


@pytest.fixture
def on_every_isa() -> Iterator[Callable[[Callable[[], Any]], dict[str, Any]]]:
    """Run a function once per instruction set; the results by name."""
    before = _native.isa()

    def run(compute: Callable[[], Any]) -> dict[str, Any]:
        results = {}
        for name in ISAS:
            assert _native.select_isa(name)
            results[name] = compute()
        return results

    yield run
    _native.select_isa(before)
