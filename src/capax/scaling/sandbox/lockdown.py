"""Take everything from this process but computing: namespaces, an empty root, Landlock, seccomp.

Standard library only: it runs before anything untrusted, in the process that will run it. The
order matters. Namespaces first, then the new root (a tmpfs with the standard library and the
system's shared libraries, read-only, and a bounded /tmp), then the user nobody, Landlock, limits,
and seccomp last, which allows a list of system calls: no process, program, socket or signal.

Every function raises OSError or LayerError; a caller that sees one must not run the code.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys

NOBODY = 65534
NEW_NS, NEW_CGROUP, NEW_UTS, NEW_IPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
NEW_USER, NEW_PID, NEW_NET = 0x10000000, 0x20000000, 0x40000000
SPACES = NEW_NS | NEW_UTS | NEW_IPC | NEW_PID | NEW_NET

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
SECCOMP_MODE_FILTER = 2
SYS_PIVOT_ROOT, SYS_LANDLOCK = 155, (444, 445, 446)  # Landlock: create, add rule, restrict self
SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")

_libc = ctypes.CDLL(None, use_errno=True)


class LayerError(Exception):
    """A layer of isolation could not be set up; the text names it and why."""


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise LayerError(f"{what}: {os.strerror(number)}")
    return result


def _prctl(option: int, *args: object) -> None:
    _check(_libc.prctl(option, *args), f"prctl {option}")


def die_with_parent() -> None:
    """Be killed when the parent ends. Changing the user takes this back, so call it after that."""
    _prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0)


# --- namespaces and the new root ---------------------------------------------------------------


def enter_namespaces() -> None:
    """Leave the host's mounts, network, processes and IPC; the next fork is process 1 there."""
    if os.geteuid() == 0 and _libc.unshare(SPACES) == 0:
        return
    uid, gid = os.geteuid(), os.getegid()
    _check(_libc.unshare(SPACES | NEW_USER), "user namespaces")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {uid} 1"),
        ("gid_map", f"{NOBODY} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encode = [None if text is None else text.encode() for text in (source, target, kind)]
    options = None if data is None else data.encode()
    result = _libc.mount(*encode, ctypes.c_ulong(flags), options)
    _check(result, f"mount {target}")


def enter_empty_root(readable: list[str], tmp_nbytes: int) -> list[str]:
    """Make a tmpfs the root, with `readable` directories read-only at their paths, and /tmp.

    Returns the directories that are there. /proc is what the tmpfs is mounted over, since it always
    exists; nothing of the host stays reachable.
    """
    root = "/proc"
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    there: list[str] = []
    for path in (*SYSTEM_LIBRARIES, *readable):
        if any(path.startswith(f"{parent}/") or path == parent for parent in there):
            continue
        if os.path.islink(path):
            os.makedirs(os.path.dirname(root + path), exist_ok=True)
            os.symlink(os.readlink(path), root + path)
        elif os.path.isdir(path):
            os.makedirs(root + path, exist_ok=True)
            _mount(path, root + path, None, MS_BIND | MS_REC)
            kept = os.statvfs(path).f_flag & MS_NOEXEC
            flags = MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | kept
            _mount("none", root + path, None, flags)
            there.append(path)
    os.mkdir(f"{root}/tmp")
    options = f"size={tmp_nbytes},nr_inodes=1024,mode=1777"
    _mount("tmpfs", f"{root}/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options)
    os.mkdir(f"{root}/old")
    paths = (root.encode(), f"{root}/old".encode())
    _check(_libc.syscall(SYS_PIVOT_ROOT, *paths), "pivot_root")
    os.chdir("/")
    _check(_libc.umount2(b"/old", MNT_DETACH), "umount of the old root")
    os.rmdir("/old")
    _mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir("/tmp")
    return there


def become_nobody() -> None:
    """Give up the user, the groups and with them every capability."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    else:  # nobody of a user namespace: capabilities are dropped by hand
        header = struct.pack("Ii", 0x20080522, 0)
        _check(_libc.capset(header, bytes(24)), "capset")
    _prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    _prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


# --- Landlock -----------------------------------------------------------------------------------


def landlock_abi() -> int:
    """Return the kernel's version of Landlock, 0 without."""
    return max(0, int(_libc.syscall(SYS_LANDLOCK[0], None, ctypes.c_size_t(0), 1)))


def restrict_files(readable: list[str]) -> None:
    """Allow reading beneath `readable`, reading and writing beneath /tmp, and no TCP."""
    abi = landlock_abi()
    if abi == 0:
        raise LayerError("Landlock: the kernel has none (5.13 or newer, with lsm=landlock)")
    n_rights = {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)
    every = (1 << n_rights) - 1
    fields = [every] + ([3] if abi >= 4 else []) + ([3] if abi >= 6 else [])
    rules = struct.pack(f"{len(fields)}Q", *fields)
    size = ctypes.c_size_t(len(rules))
    create, add, restrict = SYS_LANDLOCK
    ruleset = _check(_libc.syscall(create, rules, size, 0), "Landlock")
    execute, device, symlink = 1 << 0, 0b111 << 9, 1 << 12
    ioctl = 1 << 15
    for path, rights in (
        *((path, 0b1100) for path in readable),
        ("/tmp", every & ~(execute | device | symlink | ioctl)),
    ):
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", rights, beneath)
        _check(_libc.syscall(add, ruleset, 1, rule, 0), f"Landlock for {path}")
        os.close(beneath)
    _check(_libc.syscall(restrict, ruleset, 0), "Landlock")
    os.close(ruleset)


# --- limits and seccomp -------------------------------------------------------------------------


def limit(cpu_s: int, memory_nbytes: int, file_nbytes: int) -> None:
    """Bound CPU seconds, address space, file size, descriptors and threads; no core dumps."""
    for name, value in (
        (resource.RLIMIT_AS, memory_nbytes),
        (resource.RLIMIT_FSIZE, file_nbytes),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_NPROC, 128),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_STACK, 16 << 20),
    ):
        hard = resource.getrlimit(name)[1]
        bound = value if hard < 0 else min(value, hard)
        resource.setrlimit(name, (bound, bound))
    resource.setrlimit(resource.RLIMIT_CPU, (max(cpu_s - 1, 1), cpu_s))  # a signal that tells


# x86-64 numbers. Reading and writing what is open, files by path (Landlock decides which), memory,
# time, waiting, own signals' handlers, and threads of this process.
ALLOWED = (
    0, 1, 2, 3, 4, 5, 6, 7, 8,  # read write open close stat fstat lstat poll lseek
    9, 10, 11, 12, 13, 14, 15,  # mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn
    17, 18, 19, 20, 21, 22, 23, 24, 25, 28,  # pread ... pipe select yield mremap madvise
    32, 33, 34, 35, 36, 37, 38, 39,  # dup dup2 pause nanosleep itimers alarm getpid
    60, 63, 72, 77, 78, 79, 80, 82, 83, 84, 87, 89,  # exit uname fcntl ... mkdir unlink readlink
    96, 97, 98, 99, 100, 102, 104, 107, 108, 110,  # time limits usage ids
    127, 131, 186, 201, 202, 204, 217, 218,  # sigpending sigaltstack gettid futex affinity getdents
    228, 229, 230, 231, 234,  # clocks exit_group tgkill (only process 1 and itself are there)
    257, 258, 262, 263, 264, 267, 269, 270, 271, 273, 292, 293,  # the ...at calls ppoll dup3 pipe2
    316, 318, 332, 334, 436, 439,  # renameat2 getrandom statx rseq close_range faccessat2
)  # fmt: skip
CLONE, CLONE3, CLONE_THREAD = 56, 435, 0x00010000
EPERM, ENOSYS = 1, 38
ARCHITECTURE = 0xC000003E  # x86-64
RET_ALLOW, RET_ERRNO, RET_KILL = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, JUMP_EQ, JUMP_GE, JUMP_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


def filter_program() -> bytes:
    """Return the seccomp filter: pairs of (is it this call?, then that)."""
    code: list[tuple[int, int, int, int]] = [
        (LOAD, 0, 0, 4),
        (JUMP_EQ, 1, 0, ARCHITECTURE),
        (RETURN, 0, 0, RET_KILL),
        (LOAD, 0, 0, 0),
        (JUMP_GE, 0, 1, 0x40000000),  # the x32 numbers
        (RETURN, 0, 0, RET_KILL),
        (JUMP_EQ, 0, 4, CLONE),
        (LOAD, 0, 0, 16),
        (JUMP_SET, 0, 1, CLONE_THREAD),
        (RETURN, 0, 0, RET_ALLOW),
        (RETURN, 0, 0, RET_ERRNO | EPERM),
        (JUMP_EQ, 0, 1, CLONE3),
        (RETURN, 0, 0, RET_ERRNO | ENOSYS),  # glibc falls back to clone, whose flags can be seen
    ]
    for number in ALLOWED:
        code += [(JUMP_EQ, 0, 1, number), (RETURN, 0, 0, RET_ALLOW)]
    code.append((RETURN, 0, 0, RET_ERRNO | EPERM))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def filter_system_calls() -> None:
    """Allow the calls of the list from here on."""
    if os.uname().machine != "x86_64" or sys.maxsize < 2**32:
        raise LayerError("seccomp: the filter is for x86-64 only")
    program = filter_program()
    held = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(held))
    held_header = ctypes.create_string_buffer(header, len(header))
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, held_header, 0, 0)
