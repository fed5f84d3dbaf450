"""The probe: plausible rates and refused arguments."""

import pytest

from capax import _native


def test_rates_are_positive_and_the_best_is_at_least_the_median(isa: str) -> None:
    for best, median in (
        _native.probe_read_gbps(1 << 20, 2, 0.01),
        _native.probe_int8_gmacs(1, 0.01),
        _native.probe_f32_gflops(2, 0.01),
    ):
        assert best >= median > 0.0


def test_wider_instruction_sets_multiply_faster() -> None:
    names = [name for name, _ in _native.supported_isas()]
    before = _native.isa()
    rates = []
    for name in names:
        assert _native.select_isa(name)
        rates.append(_native.probe_int8_gmacs(1, 0.02)[0])
    _native.select_isa(before)
    if len(names) > 1:
        assert rates[0] > 2 * rates[-1]


def test_arguments_outside_their_range_are_refused() -> None:
    with pytest.raises(ValueError, match="threads"):
        _native.probe_int8_gmacs(0, 0.01)
    with pytest.raises(ValueError, match="seconds"):
        _native.probe_f32_gflops(1, 0.0)
    with pytest.raises(ValueError, match="seconds"):
        _native.probe_f32_gflops(1, float("nan"))
    with pytest.raises(ValueError, match="nbytes"):
        _native.probe_read_gbps(100, 1, 0.01)
