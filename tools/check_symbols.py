"""Check the built native code: what a linker could mix up, and what changes the FP environment.

Objects. A file compiled with instruction-set flags must not export a weak symbol (an inline
function or template instance with external linkage): the linker keeps one copy of it for the whole
module, possibly the AVX-512 one, and a machine without AVX-512 then dies in innocent code.

Module. No `ldmxcsr` in start-up code: objects linked with fast-math set flush-to-zero for the whole
process at import. `ldmxcsr` inside a kernel that restores it is allowed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

# The parts of a kernel's file name that say it is compiled with its own ISA flags.
ISA_SUFFIX = re.compile(r"_(avx2|avx512\w*|avxvnni|neon\w*|sse\w*|f16c)\.cpp\.o$")
# Emitted by the compiler for exception tables, the same in every object.
HARMLESS = re.compile(r"^(DW\.ref\.|_ZT[ISV])")
# What runs at start-up; `_GLOBAL__N_` is only the mangling of an unnamed namespace.
START_UP = re.compile(
    r"<_GLOBAL__(sub_)?[ID]_|set_fast_math|static_initialization|frame_dummy|<_init>"
)


def weak_symbols(object_file: Path) -> list[str]:
    """Return the defined weak and unique symbols of an object file, demangled."""
    listing = run(["nm", "--defined-only", str(object_file)])
    found = []
    for line in listing.splitlines():
        kind, name = line.split()[-2:]
        if kind in "WVu" and not HARMLESS.match(name):
            found.append(name)
    return run(["c++filt", *found]).split("\n")[:-1] if found else []


def start_up_functions_with_ldmxcsr(module: Path) -> list[str]:
    """Return the start-up functions of a shared object that load the FP control register."""
    found, function = [], ""
    for line in run(["objdump", "--disassemble", "--no-show-raw-insn", str(module)]).splitlines():
        if line.endswith(">:"):
            function = line.split(maxsplit=1)[1]
        elif "ldmxcsr" in line and (START_UP.search(function) or function_is_unnamed(function)):
            found.append(function.rstrip(":"))
    return sorted(set(found))


def function_is_unnamed(function: str) -> bool:
    """Tell whether objdump attributed code to a section only, as in a stripped module."""
    return function.startswith(("<.text", "<.init", "<.fini"))


def run(command: list[str]) -> str:
    """Run a binutils program and return what it prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> int:
    """Check the kernel objects and modules below build directories; exit 1 on a find."""
    parser = argparse.ArgumentParser(description="check the symbols of the built native code")
    parser.add_argument("build", type=Path, nargs="+", help="CMake build directories")
    options = parser.parse_args()
    files = sorted(path for build in options.build for path in build.rglob("*"))
    objects = [path for path in files if ISA_SUFFIX.search(path.name)]
    modules = [path for path in files if path.match("_native*.so")]
    if not objects or not modules:
        print(
            f"{options.build[0]}: {len(objects)} kernel objects and {len(modules)} modules found, "
            "at least one of each is needed: build first with 'make test'",
            file=sys.stderr,
        )
        return 1
    failed = False
    for path in objects:
        for symbol in weak_symbols(path):
            failed = True
            print(f"{path.name}: exports the weak symbol {symbol}", file=sys.stderr)
    for path in modules:
        for function in start_up_functions_with_ldmxcsr(path):
            failed = True
            print(f"{path.name}: {function} loads mxcsr at start-up", file=sys.stderr)
    print(f"{len(objects)} kernel objects, {len(modules)} modules: {'FAILED' if failed else 'ok'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
