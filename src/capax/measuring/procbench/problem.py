"""A problem of ProcBench: a procedure, a question, and every state on the way to the answer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind = Literal["str", "int", "strs", "ints"]  # strs, ints: a list of them
State: TypeAlias = "str | int | list[str] | list[int]"

MIN_STEPS, MAX_STEPS = 2, 25
LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"


@dataclass(frozen=True, slots=True)
class Task:
    """One procedure: the type of its states, and that of the last one."""

    number: int
    name: str
    kind: Kind
    final_kind: Kind

    @property
    def code(self) -> str:
        """How the published files call it: task01."""
        return f"task{self.number:02d}"


_TYPES: tuple[tuple[str, Kind, Kind], ...] = (
    ("Sort", "str", "str"),
    ("Gather", "str", "str"),
    ("Count", "strs", "int"),
    ("Search", "ints", "ints"),
    ("Copy", "str", "str"),
    ("Substitute", "str", "str"),
    ("Encode", "strs", "strs"),
    ("Split1", "strs", "strs"),
    ("Split2", "strs", "strs"),
    ("Compose", "strs", "strs"),
    ("Decompose", "str", "str"),
    ("Rhythm", "str", "str"),
    ("Compare", "str", "strs"),
    ("Count2", "ints", "ints"),
    ("Decode", "str", "str"),
    ("PushPop", "str", "str"),
    ("Rotate", "str", "str"),
    ("FillWord", "str", "str"),
    ("DeleteChar", "str", "str"),
    ("DeleteWord", "str", "str"),
    ("Cumulate", "int", "int"),
    ("MoveCyclic", "str", "str"),
    ("FindCyclic", "strs", "str"),
)
TASKS: Mapping[str, Task] = {
    name: Task(number, name, kind, final_kind)
    for number, (name, kind, final_kind) in enumerate(_TYPES, 1)
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with its states: `init`, then `states[i]` after step i + 1, the last included.

    `instructions`: the text of the procedure, shared by all problems of a task. `example`: a name
    that is unique within the task.
    """

    task: Task
    example: str
    instructions: str
    question: str
    init: State
    states: tuple[State, ...]

    @property
    def steps(self) -> int:
        return len(self.states)

    @property
    def final(self) -> State:
        return self.states[-1]

    @property
    def intermediate(self) -> list[State]:
        return list(self.states[:-1])

    @property
    def prompt(self) -> str:
        """What the model is asked."""
        return f"{self.instructions}\n[Question]\n{self.question}"

    @property
    def digest(self) -> str:
        """SHA-256 of task and question, hexadecimal: equal only for equal problems."""
        return hashlib.sha256(f"{self.task.name}\n{self.question}".encode()).hexdigest()
