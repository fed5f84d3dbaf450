"""The one place that reads capax's own environment variables, `CAPAX_*`.

Flags of the command line have variables of their own name (`--ctx-size`: CAPAX_CTX_SIZE);
the command line reads those. What is left are settings without a flag, and they are here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from capax.errors import ConfigError

PREFIX = "CAPAX_"
ISA = "CAPAX_ISA"
PREEMPT_EVERY = "CAPAX_TEST_PREEMPT_EVERY"
OWN = (ISA, PREEMPT_EVERY)


def flag_variable(parameter: str) -> str:
    """Return the environment variable of a flag: 'ctx_size' or 'ctx-size' -> CAPAX_CTX_SIZE."""
    return PREFIX + parameter.upper().replace("-", "_")


def wanted_isa(supported: Sequence[str], environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the instruction set that CAPAX_ISA forces, or None where it is unset or empty.

    `supported`: what this build and CPU can run, the widest first. Raises ConfigError, listing
    them, for any other name: a comparison must never run on another path than it says.
    """
    name = environ.get(ISA, "").strip()
    if not name:
        return None
    if name not in supported:
        raise ConfigError(
            f"{ISA} is {name!r:.60}; this machine can run {', '.join(supported)}: set one of these "
            f"or unset {ISA}"
        )
    return name


def apply_isa(environ: Mapping[str, str] = os.environ) -> str:
    """Select the instruction set that CAPAX_ISA asks for and return the one in use.

    Called once at engine start. Raises ConfigError as `wanted_isa` does.
    """
    from capax._native import isa, select_isa, supported_isas

    name = wanted_isa([supported for supported, _ in supported_isas()], environ)
    if name is not None:
        select_isa(name)
    return isa()


def preempt_every(environ: Mapping[str, str] = os.environ) -> int:
    """Return after how many steps a request gives its pages up though there is room; 0: never.

    For tests of the engine. Raises ConfigError for anything but a whole number from 0 on.
    """
    value = environ.get(PREEMPT_EVERY, "").strip() or "0"
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise ConfigError(
            f"{PREEMPT_EVERY} is {value!r:.60} but must be a whole number of steps; unset it"
        )
    return int(value)


def unknown_variables(known: Sequence[str], environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the CAPAX_* variables that are set and mean nothing: most likely misspelt."""
    return sorted(
        name for name in environ if name.startswith(PREFIX) and name not in {*known, *OWN}
    )
