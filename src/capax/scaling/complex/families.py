"""The families by name, and their instances as tasks that can be sampled and checked."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import msgspec

from capax.errors import ConfigError
from capax.scaling.complex.arithmetic import Arithmetic
from capax.scaling.complex.calendar import Calendar
from capax.scaling.complex.instance import Family, Instance
from capax.scaling.complex.maze import Maze
from capax.scaling.complex.spatial_map import SpatialMap
from capax.scaling.complex.three_sat import ThreeSat
from capax.scaling.complex.tsp import Tsp

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (ThreeSat(), Tsp(), Calendar(), Maze(), SpatialMap(), Arithmetic())
}


def family_named(name: str) -> Family:
    """Return a family. Raises ConfigError for an unknown name."""
    try:
        return FAMILIES[name]
    except KeyError:
        known = ", ".join(FAMILIES)
        raise ConfigError(f"there is no family of tasks {name!r:.60}; known are {known}") from None


def reference_of(instance: Instance) -> str:
    """Return what the checker needs, as a task's reference."""
    return msgspec.json.encode(instance).decode()


@functools.lru_cache(maxsize=4096)
def instance_of(reference: str) -> Instance:
    """Read a reference. Raises ConfigError if it is none."""
    try:
        instance = msgspec.json.decode(reference, type=Instance)
    except (msgspec.MsgspecError, RecursionError) as e:
        raise ConfigError(f"this is no reference of a generated task: {e}") from None
    family_named(instance.family)
    return instance


def task_line(instance: Instance, *, chat: bool = True) -> str:
    """Return an instance as a line of a task file, without newline."""
    question: dict[str, Any] = (
        {"messages": [{"role": "user", "content": instance.prompt}]}
        if chat
        else {"prompt": instance.prompt}
    )
    return json.dumps(
        {
            "id": f"{instance.family}-{instance.level}-{instance.key[:12]}",
            **question,
            "reference": reference_of(instance),
            "checker": instance.family,
        }
    )


def outcome_of(answer: str, reference: str) -> str:
    """Return "passed" or "failed"."""
    instance = instance_of(reference)
    right = family_named(instance.family).is_right(instance.truth, answer)
    return "passed" if right else "failed"
