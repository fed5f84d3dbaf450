"""What this machine can do: read bandwidth by footprint, arithmetic by threads, disk.

A probe takes a few seconds and is kept under the XDG cache directory, one file per CPU
model, instruction set and thread count. Plans interpolate it; nothing else is assumed
about the machine.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from capax.errors import ConfigError, StoreError
from capax.files.registry import write_atomically
from capax.files.xdg import private_dir, xdg_dir
from capax.planning.machine import Machine
from capax.planning.sizes import MIB

VERSION = 1
MAX_PROBE_FILE_NBYTES = 1 << 20
READ_FOOTPRINTS = (4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB)
DISK_FILE_NBYTES = 128 * MIB
DISK_BLOCKS = (4096, 65_536, MIB)
SECONDS_PER_MEASUREMENT = 0.25
DISK_SECONDS = 2.0


class Kernels(Protocol):
    """The native probes; each runs for about `seconds` and returns (best, median) rates.

    The best is the roof: what lies between the two is other work on the machine.
    """

    def isa(self) -> str: ...
    def probe_read_gbps(self, nbytes: int, threads: int, seconds: float) -> tuple[float, float]: ...
    def probe_int8_gmacs(self, threads: int, seconds: float) -> tuple[float, float]: ...
    def probe_f32_gflops(self, threads: int, seconds: float) -> tuple[float, float]: ...


@dataclass(frozen=True, slots=True)
class DiskPoint:
    """Uncached reads of one pattern and block size: 10^9 bytes per second."""

    pattern: Literal["sequential", "random"]
    block_nbytes: int
    gbps: float


@dataclass(frozen=True, slots=True)
class Probe:
    """One machine measured; rates are 10^9 per second.

    `read_gbps`: footprint in bytes -> bytes per second read with `threads` threads;
    `int8_gmacs`, `f32_gflops`: thread count -> multiply-adds of int8 pairs, float operations.
    """

    cpu_model: str
    isa: str
    threads: int
    created: str
    read_gbps: Mapping[int, float]
    int8_gmacs: Mapping[int, float]
    f32_gflops: Mapping[int, float]
    disk: tuple[DiskPoint, ...]

    def read_rate(self, footprint: int) -> float:
        """Return bytes per second for reading `footprint` bytes over and over.

        Interpolated between measured footprints on a logarithmic axis, constant outside.
        """
        points = sorted(self.read_gbps.items())
        low = max((p for p in points if p[0] <= footprint), default=points[0])
        high = min((p for p in points if p[0] >= footprint), default=points[-1])
        if low[0] == high[0]:
            return low[1] * 1e9
        share = math.log(footprint / low[0]) / math.log(high[0] / low[0])
        return (low[1] + share * (high[1] - low[1])) * 1e9

    def int8_rate(self, threads: int) -> float:
        """Return int8 multiply-adds per second with `threads` threads (nearest measured)."""
        return self.int8_gmacs[min(self.int8_gmacs, key=lambda n: (abs(n - threads), n))] * 1e9

    def f32_rate(self, threads: int) -> float:
        """Return float operations per second with `threads` threads (nearest measured)."""
        return self.f32_gflops[min(self.f32_gflops, key=lambda n: (abs(n - threads), n))] * 1e9

    def disk_rate(self, pattern: Literal["sequential", "random"] = "sequential") -> float:
        """Return the best uncached bytes per second of a pattern over the block sizes."""
        return max(point.gbps for point in self.disk if point.pattern == pattern) * 1e9

    def to_json(self) -> dict[str, Any]:
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, data: object) -> Probe:
        """Read what `to_json` gave. Raises ConfigError for anything else."""
        if not isinstance(data, dict) or data.get("version") != VERSION:
            raise ConfigError(
                f"a probe of version {VERSION} is needed; run 'capax probe --refresh'"
            )
        try:
            probe = cls(
                cpu_model=str(data["cpu_model"]),
                isa=str(data["isa"]),
                threads=int(data["threads"]),
                created=str(data["created"]),
                read_gbps=_rates(data["read_gbps"]),
                int8_gmacs=_rates(data["int8_gmacs"]),
                f32_gflops=_rates(data["f32_gflops"]),
                disk=tuple(
                    DiskPoint(d["pattern"], int(d["block_nbytes"]), _rate(d["gbps"]))
                    for d in data["disk"]
                ),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise ConfigError(
                f"the probe file is damaged ({type(e).__name__}: {e}); run 'capax probe --refresh'"
            ) from None
        if {d.pattern for d in probe.disk} != {"sequential", "random"}:
            raise ConfigError("the probe file has no disk curve; run 'capax probe --refresh'")
        return probe


def _rate(value: object) -> float:
    rate = float(value)  # type: ignore[arg-type]  # a wrong type is the TypeError caught above
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"rate {rate}")
    return rate


def _rates(data: Mapping[Any, Any]) -> dict[int, float]:
    rates = {int(key): _rate(value) for key, value in data.items()}
    if not rates or min(rates) <= 0:
        raise ValueError("a rate table is empty")
    return rates


# --- the cache -----------------------------------------------------------------------


def probe_path(cpu_model: str, isa: str, threads: int, cache: Path | None = None) -> Path:
    """Return where the probe of this CPU, instruction set and thread count is kept."""
    name = "".join(c if c.isalnum() else "-" for c in cpu_model.lower())[:80]
    directory = (xdg_dir("CACHE") if cache is None else cache) / "probes"
    return directory / f"{name}-{isa}-{threads}t.json"


def cached_probe(
    machine: Machine, isa: str, threads: int, cache: Path | None = None
) -> Probe | None:
    """Return the kept probe, or None if there is none; a damaged file is as good as none."""
    path = probe_path(machine.cpu_model, isa, threads, cache)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_PROBE_FILE_NBYTES + 1)
        probe = Probe.from_json(json.loads(raw)) if len(raw) <= MAX_PROBE_FILE_NBYTES else None
    except (OSError, ValueError, RecursionError, ConfigError):
        return None
    is_this = probe is not None and (probe.cpu_model, probe.isa, probe.threads) == (
        machine.cpu_model,
        isa,
        threads,
    )
    return probe if is_this else None


def keep_probe(probe: Probe, cache: Path | None = None) -> Path:
    """Write the probe where `cached_probe` finds it, whole or not at all; returns the path."""
    path = probe_path(probe.cpu_model, probe.isa, probe.threads, cache)
    private_dir(path.parent)
    write_atomically(path, json.dumps(probe.to_json(), indent=1).encode(), 0o600)
    return path


# --- measuring -----------------------------------------------------------------------


def measure(
    machine: Machine,
    threads: int,
    kernels: Kernels,
    *,
    cache: Path | None = None,
    seconds: float = SECONDS_PER_MEASUREMENT,
    disk_seconds: float = DISK_SECONDS,
    on_progress: Callable[[str], None] = lambda what: None,
) -> Probe:
    """Measure this machine: about a dozen native measurements of `seconds`, then the disk."""
    reads: dict[int, float] = {}
    for nbytes in READ_FOOTPRINTS:
        on_progress(f"read bandwidth at {nbytes // MIB} MiB")
        reads[nbytes] = kernels.probe_read_gbps(nbytes, threads, seconds)[0]
    counts = sorted({1, threads})
    on_progress("int8 and float32 arithmetic")
    int8 = {n: kernels.probe_int8_gmacs(n, seconds)[0] for n in counts}
    f32 = {n: kernels.probe_f32_gflops(n, seconds)[0] for n in counts}
    on_progress("disk")
    directory = private_dir(xdg_dir("CACHE") if cache is None else cache)
    disk = measure_disk(directory, seconds=disk_seconds)
    return Probe(
        cpu_model=machine.cpu_model,
        isa=kernels.isa(),
        threads=threads,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        read_gbps=reads,
        int8_gmacs=int8,
        f32_gflops=f32,
        disk=disk,
    )


def measure_disk(
    directory: Path, *, file_nbytes: int = DISK_FILE_NBYTES, seconds: float = DISK_SECONDS
) -> tuple[DiskPoint, ...]:
    """Time uncached `pread` of a temporary file, by pattern and block size.

    The file is removed at once; the page cache is dropped before each measurement. The
    curve takes about `seconds` besides writing the file.
    """
    import tempfile  # slow to import, and every run reads the kept probe

    slice_seconds = seconds / (2 * len(DISK_BLOCKS))
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            block = os.urandom(MIB)  # incompressible: some file systems and disks compress
            for _ in range(file_nbytes // MIB):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            patterns: tuple[Literal["sequential", "random"], ...] = ("sequential", "random")
            return tuple(
                DiskPoint(
                    pattern,
                    nbytes,
                    _read_gbps(file.fileno(), file_nbytes, nbytes, pattern, slice_seconds),
                )
                for pattern in patterns
                for nbytes in DISK_BLOCKS
            )
    except OSError as e:
        raise StoreError(
            f"cannot measure the disk in {directory}: {e.strerror}; "
            f"{file_nbytes // MIB} MiB of free space are needed"
        ) from e


def _read_gbps(fd: int, file_nbytes: int, nbytes: int, pattern: str, seconds: float) -> float:
    is_random = pattern == "random"
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM if is_random else os.POSIX_FADV_SEQUENTIAL)
    n_blocks = file_nbytes // nbytes
    # A step coprime to the count visits every block once in an order without neighbours.
    step = _coprime_near(int(n_blocks * 0.618), n_blocks) if is_random else 1
    buffer = bytearray(nbytes)
    done = 0
    started = time.perf_counter()
    elapsed = 0.0
    for i in range(n_blocks):
        done += os.preadv(fd, [buffer], i * step % n_blocks * nbytes)
        elapsed = time.perf_counter() - started
        if elapsed >= seconds:
            break
    return done / max(elapsed, 1e-9) / 1e9


def _coprime_near(n: int, of: int) -> int:
    n = max(1, n)
    while math.gcd(n, of) != 1:
        n += 1
    return n
