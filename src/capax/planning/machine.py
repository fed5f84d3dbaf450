"""What this process may use of the machine: cores, CPU quota and memory, cgroups included.

Everything is read from below one `root`, so that tests describe a machine as a directory
tree. cgroup v1 and v2 are read directly: the limit that binds is the lowest one between the
process's own group and the top of the hierarchy it can see.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from capax.errors import StoreError

# A v1 group without limit shows the largest multiple of the page size below 2^63.
_V1_UNLIMITED = 1 << 60


@dataclass(frozen=True, slots=True)
class Machine:
    """A snapshot of what the process may use.

    `affinity`: CPU numbers it may run on; `physical_cores`: cores among them (two hardware
    threads of a core count once); `cpu_quota`: CPUs' worth of time per second, None: no quota.
    `memory_total`: bytes of RAM; `memory_limit`: bytes its cgroup allows, None: no limit;
    `memory_available`: bytes it could take now, reclaimable page cache included.
    """

    cpu_model: str
    affinity: frozenset[int]
    physical_cores: int
    cpu_quota: float | None
    memory_total: int
    memory_limit: int | None
    memory_available: int
    cgroup: str


class ThreadChoice(NamedTuple):
    """How many threads to use, and which bound decided it."""

    n: int
    reason: str


class _Group(NamedTuple):
    """A cgroup directory of one controller, and where its hierarchy ends."""

    directory: Path
    top: Path
    version: int

    def upwards(self) -> Iterator[Path]:
        here = self.directory
        while True:
            yield here
            if here == self.top:
                return
            here = here.parent


def read_machine(root: Path = Path("/"), *, affinity: Collection[int] | None = None) -> Machine:
    """Read the machine below `root`; `affinity` replaces the process's own CPU set.

    Raises StoreError where /proc/meminfo cannot be read: there is nothing to plan with then.
    """
    cpus = frozenset(os.sched_getaffinity(0) if affinity is None else affinity)
    meminfo = _meminfo(root)
    limit, used = _memory_of(_groups(root, "memory"))
    available = meminfo.get("MemAvailable", meminfo.get("MemFree", 0))
    if limit is not None:
        available = max(0, min(available, limit - used))
    quota_groups = _groups(root, "cpu")
    return Machine(
        cpu_model=_cpu_model(root),
        affinity=cpus,
        physical_cores=_physical_cores(root, cpus),
        cpu_quota=_cpu_quota(quota_groups),
        memory_total=meminfo.get("MemTotal", 0),
        memory_limit=limit,
        memory_available=available,
        cgroup="+".join(sorted({f"v{g.version}" for g in quota_groups})) or "none",
    )


def usable_threads(machine: Machine, environ: Mapping[str, str] = os.environ) -> ThreadChoice:
    """Return min(affinity, whole CPUs of the quota, physical cores, OMP_NUM_THREADS), at least 1.

    More threads than that wait for each other: a team steps at the pace of its slowest member.
    """
    bounds = [
        ThreadChoice(machine.physical_cores, f"{machine.physical_cores} physical cores"),
        ThreadChoice(len(machine.affinity), f"CPU affinity of {len(machine.affinity)}"),
    ]
    if machine.cpu_quota is not None:
        bounds.append(
            ThreadChoice(
                max(1, int(machine.cpu_quota)), f"cgroup CPU quota {machine.cpu_quota:.3g}"
            )
        )
    bound = _omp_threads(environ)
    if bound:
        bounds.append(ThreadChoice(bound, f"OMP_NUM_THREADS={bound}"))
    choice = min(bounds, key=lambda bound: bound.n)
    return choice if choice.n > 0 else ThreadChoice(1, "one thread is the least")


def thread_notes(
    machine: Machine, asked: int | None, environ: Mapping[str, str] = os.environ
) -> Iterator[str]:
    """Say what is odd about a number of threads: more than run at once, or a bound unread.

    `asked`: what the user chose, None where `usable_threads` does.
    """
    most = usable_threads(machine, {})
    if asked is not None and asked > most.n:
        yield (
            f"{asked} threads are more than run at once here ({most.reason}) and wait for each "
            f"other; {most.n} are faster"
        )
    given = environ.get("OMP_NUM_THREADS", "")
    if asked is None and given.strip() and _omp_threads(environ) is None:
        yield (
            f"OMP_NUM_THREADS is {given!r:.60} and is passed over: a number of threads from 1 on "
            "is needed"
        )


def _omp_threads(environ: Mapping[str, str]) -> int | None:
    """Return the number of threads of the outermost level, None where there is none."""
    first = environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    is_number = first.isascii() and first.isdecimal() and len(first) < 10
    return (int(first) or None) if is_number else None


# --- /proc and /sys ------------------------------------------------------------------


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = (_text(path) or "").strip()
    return int(text) if re.fullmatch(r"-?\d{1,20}", text) else None


def _meminfo(root: Path) -> dict[str, int]:
    text = _text(root / "proc/meminfo")
    if text is None:
        raise StoreError(
            f"cannot read {root / 'proc/meminfo'}: capax needs Linux with /proc mounted"
        )
    pairs = re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)
    return {name: int(kib) * 1024 for name, kib in pairs}


def _cpu_model(root: Path) -> str:
    text = _text(root / "proc/cpuinfo") or ""
    match = re.search(r"^(?:model name|Model|CPU part)\s*:\s*(.+)$", text, re.MULTILINE)
    family = re.search(r"^cpu family\s*:\s*(\d+)$", text, re.MULTILINE)
    model = re.search(r"^model\s*:\s*(\d+)$", text, re.MULTILINE)
    name = match[1].strip() if match else "unknown"
    # Virtual machines often show a bare brand; family and model tell generations apart.
    return f"{name} (family {family[1]}, model {model[1]})" if family and model else name


def _physical_cores(root: Path, cpus: frozenset[int]) -> int:
    """Count the cores among `cpus`; every CPU is one where the topology cannot be read."""
    cores = set()
    for cpu in cpus:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        siblings = _text(topology / "core_cpus_list") or _text(topology / "thread_siblings_list")
        cores.add(siblings.strip() if siblings else f"cpu{cpu}")
    return len(cores)


# --- cgroups -------------------------------------------------------------------------


def _groups(root: Path, controller: str) -> list[_Group]:
    """Return the directories of this process that can limit `controller`, v1 before v2."""
    own = _own_paths(root)
    groups = []
    for line in (_text(root / "proc/self/mountinfo") or "").splitlines():
        fields, _, tail = line.partition(" - ")
        columns, kind = fields.split(), tail.split()
        if len(columns) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        version = 2 if kind[0] == "cgroup2" else 1
        if version == 1 and controller not in kind[2].split(","):
            continue
        path = own.get("" if version == 2 else controller)
        if path is None:
            continue
        top = root / _unescape(columns[4]).lstrip("/")
        groups.append(_Group(_below(top, _unescape(columns[3]), path), top, version))
    return sorted(groups, key=lambda g: g.version)


def _own_paths(root: Path) -> dict[str, str]:
    """Return controller -> path of this process's group; the v2 group has the key ''."""
    paths: dict[str, str] = {}
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            for controller in parts[1].split(","):
                paths[controller] = parts[2]
    return paths


def _below(top: Path, mounted: str, path: str) -> Path:
    """Return where `path` of the hierarchy lies when its part `mounted` is mounted at `top`.

    In a container the mount may show only the container's own part, or the path may lead
    outside of what is mounted (a namespace); the top is then the process's group.
    """
    try:
        relative = PurePosixPath(path).relative_to(mounted)
    except ValueError:
        return top
    if ".." in relative.parts:
        return top
    directory = top / relative
    return directory if directory.is_dir() else top


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), field)


def _memory_of(groups: list[_Group]) -> tuple[int | None, int]:
    """Return the lowest memory limit and the bytes already charged to that group.

    Page cache that can be reclaimed is not counted as used: loading a model a second time
    must not look impossible because its file is still cached.
    """
    tightest: tuple[int, int] | None = None
    for group in groups:
        names = (
            ("memory.max", "memory.current", ("active_file", "inactive_file"))
            if group.version == 2
            else (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                ("total_active_file", "total_inactive_file"),
            )
        )
        for directory in group.upwards():
            limit = _number(directory / names[0])
            if limit is None or not 0 < limit < _V1_UNLIMITED:
                continue
            usage = _number(directory / names[1]) or 0
            stat = dict(re.findall(r"^(\w+) (\d+)$", _text(directory / "memory.stat") or "", re.M))
            used = max(0, usage - sum(int(stat.get(name, 0)) for name in names[2]))
            if tightest is None or limit - used < tightest[0] - tightest[1]:
                tightest = (limit, used)
    return tightest if tightest is not None else (None, 0)


def _cpu_quota(groups: list[_Group]) -> float | None:
    """Return the lowest quota in CPUs, None where no group has one."""
    quotas = []
    for group in groups:
        for directory in group.upwards():
            if group.version == 2:
                quota, _, period = (_text(directory / "cpu.max") or "").strip().partition(" ")
            else:
                quota = str(_number(directory / "cpu.cfs_quota_us") or "")
                period = str(_number(directory / "cpu.cfs_period_us") or "")
            if quota.isdecimal() and period.isdecimal() and int(period) > 0:
                quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


# --- this process --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Resident bytes of this process: its own, those of mapped files, and the most it had."""

    anonymous: int
    file_mapped: int
    peak: int


def process_memory(root: Path = Path("/")) -> ProcessMemory:
    """Read what this process holds; page cache that is not mapped belongs to nobody."""
    text = _text(root / "proc/self/status") or ""
    kib = {name: int(n) for name, n in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    return ProcessMemory(
        anonymous=1024 * kib.get("RssAnon", 0),
        file_mapped=1024 * (kib.get("RssFile", 0) + kib.get("RssShmem", 0)),
        peak=1024 * kib.get("VmHWM", 0),
    )


def reset_peak_memory(root: Path = Path("/")) -> bool:
    """Begin a new peak from what is resident now; False where the system does not allow it."""
    try:
        (root / "proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
