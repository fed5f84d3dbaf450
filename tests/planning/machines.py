"""Machines described as directory trees, for the readers of /proc and cgroups."""

from pathlib import Path

CPUINFO = "processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: Test CPU\n"
MEMINFO = "MemTotal: {total} kB\nMemFree: {free} kB\nMemAvailable: {available} kB\n"

V2_MOUNT = "30 23 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def machine_tree(root: Path, files: dict[str, str] | None = None, *, mib: int = 8192) -> Path:
    """A machine of `mib` MiB, three quarters of it available, with two cores of two threads."""
    kib = mib * 1024
    tree = {
        "proc/cpuinfo": CPUINFO,
        "proc/meminfo": MEMINFO.format(total=kib, free=kib // 4, available=kib * 3 // 4),
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": "",
    }
    for cpu in range(4):
        tree[f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"] = (
            f"{cpu % 2},{cpu % 2 + 2}\n"
        )
    return write(root, tree | (files or {}))
