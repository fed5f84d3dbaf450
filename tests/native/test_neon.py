"""The NEON kernels, cross-compiled and run under emulation: the same bits as scalar."""

import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"
COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64-static"
SOURCES = [
    "dispatch.cpp",
    "kernels_scalar.cpp",
    "kernels_neon.cpp",
    "kv/codec.cpp",
    "matmul/pack.cpp",
    "matmul/weight.cpp",
    "quants/dequantize.cpp",
    "quants/quantize.cpp",
    "quants/quantize_k.cpp",
]
FLAGS = ["-std=c++20", "-O2", "-Wall", "-Wextra", "-Wno-psabi", "-static", "-ffp-contract=off"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-march=armv8.2-a+dotprod+fp16"]


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
    reason=f"needs {COMPILER} and {EMULATOR} (Debian: g++-aarch64-linux-gnu, qemu-user-static)",
)
def test_neon_products_have_the_bits_of_scalar(tmp_path: Path) -> None:
    program = tmp_path / "compare_isas"
    sources = [str(NATIVE / name) for name in SOURCES]
    sources.append(str(Path(__file__).with_name("compare_isas.cpp")))
    build = subprocess.run(
        [COMPILER, *FLAGS, f"-I{NATIVE}", *sources, "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stderr
    assert "warning" not in build.stderr
    run = subprocess.run(
        [EMULATOR, str(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "26 products compared, 0 outputs differ" in run.stdout
