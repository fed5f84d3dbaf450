"""The symbol check finds a kernel object that exports what the linker may share between ISAs."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[2] / "tools" / "check_symbols.py"

pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in ("g++", "nm", "objdump", "c++filt")),
    reason="needs g++ and binutils",
)

CLEAN = (
    'static inline int twice(int x) { return 2 * x; } extern "C" int f(int x) { return twice(x); }'
)
WEAK = (
    "template <class T> __attribute__((noinline)) T twice(T x) { return x + x; }\n"
    "int f(int x) { return twice(x); }"
)
FLUSHES = (
    "__attribute__((constructor)) static void set_fast_math() { __builtin_ia32_ldmxcsr(0x9fc0); }"
)
RESTORES = (
    "namespace { __attribute__((noinline)) void calm() { __builtin_ia32_ldmxcsr(0x1f80); } }\n"
    "void run() { calm(); }"
)


def check(build: Path, kernel: str, module: str) -> subprocess.CompletedProcess[str]:
    kernel_source, module_source = build / "kernels_avx2.cpp", build / "module.cpp"
    kernel_source.write_text(kernel)
    module_source.write_text(module)
    compile_with = ["g++", "-O1", "-fPIC"]
    subprocess.run([*compile_with, "-c", kernel_source, "-o", f"{kernel_source}.o"], check=True)
    subprocess.run(
        [*compile_with, "-shared", module_source, "-o", build / "_native.so"], check=True
    )
    command = [sys.executable, str(CHECK), str(build)]
    return subprocess.run(command, capture_output=True, text=True)


def test_clean_code_passes(tmp_path: Path) -> None:
    finished = check(tmp_path, CLEAN, CLEAN)
    assert (finished.returncode, finished.stderr) == (0, "")


def test_a_weak_symbol_is_named(tmp_path: Path) -> None:
    finished = check(tmp_path, WEAK, CLEAN)
    assert finished.returncode == 1
    assert "kernels_avx2.cpp.o: exports the weak symbol int twice<int>(int)" in finished.stderr


@pytest.mark.skipif(platform.machine() != "x86_64", reason="mxcsr is a register of x86")
def test_a_call_may_set_its_own_environment(tmp_path: Path) -> None:
    finished = check(tmp_path, CLEAN, RESTORES)
    assert (finished.returncode, finished.stderr) == (0, "")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="mxcsr is a register of x86")
def test_flush_to_zero_at_start_up_is_found(tmp_path: Path) -> None:
    finished = check(tmp_path, CLEAN, FLUSHES)
    assert finished.returncode == 1
    assert "loads mxcsr at start-up" in finished.stderr


def test_an_empty_build_directory_is_a_failure(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, str(CHECK), str(tmp_path)], capture_output=True, text=True
    )
    assert finished.returncode == 1
    assert "0 kernel objects" in finished.stderr
