"""Maze: questions about the one path through a text maze, with four options.

A tree of rooms is carved depth first, so exactly one simple path leads from S to E; it is marked.
Asked: right turns, all turns, or where E lies from S. Level: rooms per side; a side has
2 * rooms + 1 characters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from capax.errors import ConfigError
from capax.scaling.complex.choices import FORM, FourOptions, with_options
from capax.scaling.complex.instance import Instance

KINDS = ("right turns", "turns", "position")
STEPS = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left: clockwise
Cell = tuple[int, int]
_ASKED = {
    "right turns": "How many right turns does the marked path from S to E make?",
    "turns": "How many turns, left and right together, does the marked path from S to E make?",
    "position": "Where does E lie, seen from S? North is up.",
}
_PROMPT = """\
This is a maze. # is a wall, S the start, E the exit, and X marks the path from S to E; blanks are \
free but not on the path.

{grid}

{question}
{options}

{form}"""


def carve(rng: np.random.Generator, rooms: int) -> np.ndarray:
    """Return a maze, bool [2 rooms + 1, 2 rooms + 1], True where one can go."""
    free = np.zeros((2 * rooms + 1, 2 * rooms + 1), bool)
    stack: list[Cell] = [(int(rng.integers(rooms)), int(rng.integers(rooms)))]
    free[2 * stack[0][0] + 1, 2 * stack[0][1] + 1] = True
    while stack:
        row, column = stack[-1]
        for way in rng.permutation(4):
            down, right = STEPS[way]
            r, c = row + down, column + right
            if 0 <= r < rooms and 0 <= c < rooms and not free[2 * r + 1, 2 * c + 1]:
                free[row + r + 1, column + c + 1] = free[2 * r + 1, 2 * c + 1] = True
                stack.append((r, c))
                break
        else:
            stack.pop()
    return free


def path_between(free: np.ndarray, start: Cell, end: Cell) -> list[Cell]:
    """Return the way from start to end, both included; the maze is a tree."""
    before: dict[Cell, Cell] = {start: start}
    queue = [start]
    for at in queue:
        for down, right in STEPS:
            there = at[0] + down, at[1] + right
            if free[there] and there not in before:
                before[there] = at
                queue.append(there)
    path = [end]
    while path[-1] != start:
        path.append(before[path[-1]])
    return path[::-1]


def turns(path: Sequence[Cell]) -> tuple[int, int]:
    """Return the right turns of a path, and all turns."""
    ways = [STEPS.index((b[0] - a[0], b[1] - a[1])) for a, b in pairwise(path)]
    changes = [(b - a) % 4 for a, b in pairwise(ways)]
    return changes.count(1), changes.count(1) + changes.count(3)


def direction(down: int, right: int) -> str:
    """Return the name of a direction, for rows down and columns to the right."""
    vertical = "south" if down > 0 else "north" if down < 0 else ""
    return vertical + ("east" if right > 0 else "west" if right < 0 else "")


class Maze(FourOptions):
    """See the module. Level: rooms per side."""

    name = "maze"
    default_counts: Mapping[int, int] = {5: 1500}
    share = 3

    def make(self, rng: np.random.Generator, level: int, number: int) -> Instance | None:
        """Make a maze; three neighbours in `number` ask about the same."""
        if not 2 <= level <= 50:
            raise ConfigError(f"maze has levels 2 to 50 (rooms per side), not {level}")
        free = carve(rng, level)
        ends = rng.permutation(level * level)[:2]
        start, end = ((2 * int(e // level) + 1, 2 * int(e % level) + 1) for e in ends)
        path = path_between(free, start, end)
        kind = KINDS[number % 3]
        right, every = turns(path)
        truth = direction(end[0] - start[0], end[1] - start[1])
        if kind == "position":
            names = [direction(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b]
            others = [name for name in names if name != truth]
            wrong = [others[i] for i in rng.permutation(7)[:3]]
        else:
            n = right if kind == "right turns" else every
            truth = str(n)
            low = max(0, n - int(rng.integers(4)))
            wrong = [str(v) for v in range(low, low + 4) if v != n][:3]
        options, letter = with_options(rng, truth, wrong)
        grid = draw(free, path)
        prompt = _PROMPT.format(grid=grid, question=_ASKED[kind], options=options, form=FORM)
        return Instance(
            self.name,
            level,
            kind,
            prompt,
            [kind, grid],
            {"letter": letter, "answer": truth},
            0.25,
        )


def draw(free: np.ndarray, path: Sequence[Cell]) -> str:
    """Return the maze as lines."""
    grid = np.where(free, " ", "#")
    for cell in path:
        grid[cell] = "X"
    grid[path[0]], grid[path[-1]] = "S", "E"
    return "\n".join("".join(row) for row in grid)
