import json
from dataclasses import replace
from pathlib import Path

import pytest

from capax.errors import ConfigError
from capax.planning.probe import (
    READ_FOOTPRINTS,
    Probe,
    cached_probe,
    keep_probe,
    measure,
    measure_disk,
    probe_path,
)
from capax.planning.sizes import MIB
from tests.planning.imaginary import PROBE, imaginary_machine


class FakeKernels:
    """Rates that show which question was asked."""

    def isa(self) -> str:
        return "fake"

    def probe_read_gbps(self, nbytes: int, threads: int, seconds: float) -> tuple[float, float]:
        return threads + nbytes / 2**40, 0.5

    def probe_int8_gmacs(self, threads: int, seconds: float) -> tuple[float, float]:
        return 100.0 * threads, 0.5

    def probe_f32_gflops(self, threads: int, seconds: float) -> tuple[float, float]:
        return 10.0 * threads, 0.5


def test_a_probe_survives_the_cache(tmp_path: Path) -> None:
    path = keep_probe(PROBE, tmp_path)
    assert path == probe_path("Test CPU", "avx512", 2, tmp_path)
    assert cached_probe(imaginary_machine(), "avx512", 2, tmp_path) == PROBE
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file is left


def test_another_cpu_isa_or_thread_count_has_no_probe(tmp_path: Path) -> None:
    keep_probe(PROBE, tmp_path)
    machine = imaginary_machine()
    assert cached_probe(machine, "avx2", 2, tmp_path) is None
    assert cached_probe(machine, "avx512", 1, tmp_path) is None
    assert cached_probe(replace(machine, cpu_model="Other"), "avx512", 2, tmp_path) is None


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        b'{"version": 0}',
        b'{"version": 1}',
        b"\xff\xfe",
        b" " * (2 << 20),
    ],
)
def test_a_damaged_cache_is_a_miss(tmp_path: Path, damage: bytes) -> None:
    path = keep_probe(PROBE, tmp_path)
    path.write_bytes(damage)
    assert cached_probe(imaginary_machine(), "avx512", 2, tmp_path) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("read_gbps", {}),
        ("read_gbps", {"4096": float("nan")}),
        ("int8_gmacs", {"2": -1.0}),
        ("int8_gmacs", {"two": 1.0}),
        ("disk", []),
        ("threads", None),
    ],
)
def test_a_lying_probe_is_refused(field: str, value: object) -> None:
    data = json.loads(json.dumps(PROBE.to_json())) | {field: value}
    with pytest.raises(ConfigError, match="capax probe --refresh"):
        Probe.from_json(data)


def test_measuring_asks_every_footprint_and_thread_count(tmp_path: Path) -> None:
    probe = measure(
        imaginary_machine(), 2, FakeKernels(), cache=tmp_path, seconds=0.0, disk_seconds=0.06
    )
    assert sorted(probe.read_gbps) == list(READ_FOOTPRINTS)
    assert probe.int8_gmacs == {1: 100.0, 2: 200.0}
    assert probe.f32_gflops == {1: 10.0, 2: 20.0}
    assert Probe.from_json(json.loads(json.dumps(probe.to_json()))) == probe


def test_the_disk_curve_covers_patterns_and_leaves_no_file(tmp_path: Path) -> None:
    curve = measure_disk(tmp_path, file_nbytes=2 * MIB, seconds=0.06)
    assert {(p.pattern, p.block_nbytes) for p in curve} == {
        (pattern, nbytes) for pattern in ("sequential", "random") for nbytes in (4096, 65_536, MIB)
    }
    assert all(p.gbps > 0 for p in curve)
    assert list(tmp_path.iterdir()) == []
