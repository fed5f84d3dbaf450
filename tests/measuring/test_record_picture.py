"""Pictures of records against the size of their models."""

from typing import Any

import pytest

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure

from capax.measuring.record_picture import _points
from capax.measuring.records import Model, Record
from tests.measuring.recorded import record


def sized(name: str, n_params: int, encoding: str) -> Record:
    model = Model(name=name, digest=name * 2, n_params=n_params)
    return record(model=model, method={"weights": encoding})


def drawn(*records: Record) -> Any:
    axes = Figure().subplots()
    _points(axes, [list(records)], "perplexity", "n_params")
    return axes


def test_points_of_one_model_are_told_by_encoding_others_by_model() -> None:
    one = drawn(sized("small", 10, "Q4_1"), sized("small", 10, "F16"))
    assert {t.get_text() for t in one.texts} == {"Q4_1", "F16"}
    several = drawn(sized("small", 10, "F16"), sized("large", 20, "F16"))
    assert {t.get_text() for t in several.texts} == {"small", "large"}


@pytest.mark.parametrize(("largest", "scale"), [(250, "linear"), (350, "log")])
def test_sizes_that_lie_far_apart_have_a_logarithmic_axis(largest: int, scale: str) -> None:
    axes = drawn(sized("small", 10, "F16"), sized("large", largest, "F16"))
    assert axes.get_xscale() == scale
