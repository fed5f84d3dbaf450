from dataclasses import replace

import pytest

from capax.planning.footprint import Shape, matrix_names
from capax.planning.prediction import (
    DECODE_EFFICIENCY,
    decode_seconds,
    predict,
    prefill_seconds,
)
from tests.planning.imaginary import PROBE, imaginary_model

MODEL = imaginary_model()
SHAPE = Shape(context_len=4096, kv="f16", threads=2, prefill_chunk=256, n_sequences=1, logit_rows=1)


def test_decode_reads_every_weight_once_per_token() -> None:
    nbytes = MODEL.nbytes  # norms are a rounding error
    seconds = decode_seconds(MODEL, SHAPE, PROBE, depth=0)
    assert seconds == pytest.approx(
        nbytes / (PROBE.read_rate(nbytes) * DECODE_EFFICIENCY), rel=0.02
    )


def test_depth_costs_bandwidth_and_int8_kv_half_of_it() -> None:
    shallow = decode_seconds(MODEL, SHAPE, PROBE, 0)
    deep = decode_seconds(MODEL, SHAPE, PROBE, 4000)
    assert deep > 1.5 * shallow
    assert decode_seconds(MODEL, replace(SHAPE, kv="int8"), PROBE, 4000) < deep


def test_streaming_costs_the_disk_at_every_token_and_once_per_chunk() -> None:
    streamed = replace(SHAPE, streamed=frozenset(matrix_names(MODEL)))
    disk = sum(MODEL.tensors[name].nbytes for name in streamed.streamed) / 2e9
    assert decode_seconds(MODEL, streamed, PROBE, 0) == pytest.approx(disk, rel=0.01)
    extra = prefill_seconds(MODEL, streamed, PROBE, 512) - prefill_seconds(MODEL, SHAPE, PROBE, 512)
    assert extra == pytest.approx(2 * disk)


def test_more_threads_prefill_faster() -> None:
    one = predict(MODEL, replace(SHAPE, threads=1), PROBE).prefill_tokens_per_second
    two = predict(MODEL, SHAPE, PROBE).prefill_tokens_per_second
    assert two == pytest.approx(2 * one)


def test_a_prediction_names_its_probe() -> None:
    assert "Test CPU, avx512, 2 threads" in predict(MODEL, SHAPE, PROBE).basis


def test_bandwidth_is_interpolated_between_measured_footprints() -> None:
    mib = 1 << 20
    assert PROBE.read_rate(mib) == 100e9  # constant below
    assert PROBE.read_rate(8 * mib) == pytest.approx(90e9)  # halfway on a logarithmic axis
    assert PROBE.read_rate(16 * mib) == 80e9
    assert PROBE.read_rate(4096 * mib) == 30e9  # constant above
