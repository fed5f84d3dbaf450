import os
import re
from pathlib import Path

import pytest

from capax.errors import StoreError
from capax.planning.machine import Machine, read_machine, thread_notes, usable_threads
from capax.planning.sizes import GIB, MIB
from tests.planning.machines import V1_MOUNTS, V2_MOUNT, machine_tree

ALL_CPUS = range(4)


def read(root: Path, files: dict[str, str] | None = None, cpus: range = ALL_CPUS) -> Machine:
    return read_machine(machine_tree(root, files), affinity=cpus)


def test_a_machine_without_cgroups_offers_what_proc_says(tmp_path: Path) -> None:
    machine = read(tmp_path)
    assert machine.cpu_model == "Test CPU (family 26, model 2)"
    assert machine.memory_total == 8 * GIB
    assert machine.memory_available == 6 * GIB
    assert machine.memory_limit is None
    assert machine.cpu_quota is None
    assert machine.cgroup == "none"


def test_hardware_threads_of_one_core_count_once(tmp_path: Path) -> None:
    assert read(tmp_path).physical_cores == 2
    assert read(tmp_path, cpus=range(1)).physical_cores == 1


def test_v2_limits_are_read(tmp_path: Path) -> None:
    machine = read(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/app\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/pod/app/memory.max": f"{2 * GIB}\n",
            "sys/fs/cgroup/pod/app/memory.current": f"{GIB}\n",
            "sys/fs/cgroup/pod/app/memory.stat": f"active_file 0\ninactive_file {GIB // 2}\n",
            "sys/fs/cgroup/pod/app/cpu.max": "150000 100000\n",
        },
    )
    assert machine.memory_limit == 2 * GIB
    assert machine.memory_available == 2 * GIB - GIB // 2  # page cache can be reclaimed
    assert machine.cpu_quota == 1.5
    assert machine.cgroup == "v2"


def test_the_parents_limit_binds_when_it_is_lower(tmp_path: Path) -> None:
    machine = read(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/app\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/pod/app/memory.max": "max\n",
            "sys/fs/cgroup/pod/app/cpu.max": "max 100000\n",
            "sys/fs/cgroup/pod/memory.max": f"{GIB}\n",
            "sys/fs/cgroup/pod/cpu.max": "50000 100000\n",
        },
    )
    assert machine.memory_limit == machine.memory_available == GIB
    assert machine.cpu_quota == 0.5


def test_v1_limits_are_read(tmp_path: Path) -> None:
    machine = read(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/job\n1:cpu,cpuacct:/job\n0::/\n",
            "proc/self/mountinfo": V1_MOUNTS,
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{700 * MIB}\n",
            "sys/fs/cgroup/memory/job/memory.usage_in_bytes": f"{300 * MIB}\n",
            "sys/fs/cgroup/memory/job/memory.stat": f"total_active_file {100 * MIB}\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
        },
    )
    assert machine.memory_limit == 700 * MIB
    assert machine.memory_available == 500 * MIB
    assert machine.cpu_quota == 2.0
    assert machine.cgroup == "v1"


def test_v1_without_limits_has_none(tmp_path: Path) -> None:
    machine = read(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/\n1:cpu,cpuacct:/\n",
            "proc/self/mountinfo": V1_MOUNTS,
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
    )
    assert machine.memory_limit is None
    assert machine.cpu_quota is None


@pytest.mark.parametrize("path", ["/docker/abc", "/elsewhere", "/docker/abc/../../../etc"])
def test_a_containers_own_part_of_the_hierarchy_is_found(tmp_path: Path, path: str) -> None:
    machine = read(
        tmp_path,
        {
            "proc/self/cgroup": f"0::{path}\n",
            "proc/self/mountinfo": V2_MOUNT.replace("0:27 / ", "0:27 /docker/abc "),
            "sys/fs/cgroup/memory.max": f"{GIB}\n",
            "memory.max": "1\n",
        },
    )
    assert machine.memory_limit == GIB


def test_damaged_files_are_no_limit_and_no_crash(tmp_path: Path) -> None:
    machine = read(
        tmp_path,
        {
            "proc/self/cgroup": "nonsense\n0::/a\n",
            "proc/self/mountinfo": "short line\n" + V2_MOUNT,
            "sys/fs/cgroup/a/memory.max": "many\n",
            "sys/fs/cgroup/a/cpu.max": "5\n",
        },
    )
    assert machine.memory_limit is None
    assert machine.cpu_quota is None


def test_no_proc_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="meminfo"):
        read_machine(tmp_path)


def machine_with(*, cores: int = 8, cpus: int = 16, quota: float | None = None) -> Machine:
    return Machine("x", frozenset(range(cpus)), cores, quota, GIB, None, GIB, "v2")


@pytest.mark.parametrize(
    ("machine", "environ", "n", "reason"),
    [
        (machine_with(), {}, 8, "8 physical cores"),
        (machine_with(cpus=3, cores=4), {}, 3, "CPU affinity of 3"),
        (machine_with(quota=2.9), {}, 2, "cgroup CPU quota 2.9"),
        (machine_with(quota=0.3), {}, 1, "cgroup CPU quota 0.3"),
        (machine_with(), {"OMP_NUM_THREADS": "4,2"}, 4, "OMP_NUM_THREADS=4"),
        (machine_with(), {"OMP_NUM_THREADS": "64"}, 8, "8 physical cores"),
        (machine_with(), {"OMP_NUM_THREADS": "no"}, 8, "8 physical cores"),
    ],
)
def test_threads_are_the_lowest_bound_with_its_reason(
    machine: Machine, environ: dict[str, str], n: int, reason: str
) -> None:
    assert usable_threads(machine, environ) == (n, reason)


@pytest.mark.parametrize(
    ("machine", "asked", "environ", "note"),
    [
        (machine_with(), 8, {}, None),
        (machine_with(), 9, {"OMP_NUM_THREADS": "no"}, "9 threads are more .*8 physical cores"),
        (machine_with(quota=2.9), 3, {}, "3 threads are more .*quota 2.9.*; 2 are faster"),
        (machine_with(), None, {"OMP_NUM_THREADS": "4,2"}, None),
        (machine_with(), None, {"OMP_NUM_THREADS": " "}, None),
        (machine_with(), None, {"OMP_NUM_THREADS": "two"}, "OMP_NUM_THREADS is 'two'"),
        (machine_with(), None, {"OMP_NUM_THREADS": "0"}, "OMP_NUM_THREADS is '0'"),
        (machine_with(), None, {"OMP_NUM_THREADS": "9" * 5000}, "OMP_NUM_THREADS is '999"),
        (machine_with(), 4, {"OMP_NUM_THREADS": "two"}, None),
    ],
)
def test_odd_numbers_of_threads_get_a_note(
    machine: Machine, asked: int | None, environ: dict[str, str], note: str | None
) -> None:
    notes = list(thread_notes(machine, asked, environ))
    assert len(notes) == (note is not None)
    assert note is None or re.search(note, notes[0])


def test_this_machine_can_be_read() -> None:
    machine = read_machine()
    assert machine.affinity == os.sched_getaffinity(0)
    assert 0 < machine.memory_available <= machine.memory_total
    assert 1 <= usable_threads(machine).n <= len(machine.affinity)
