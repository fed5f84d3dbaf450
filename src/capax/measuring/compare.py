"""Comparing records: which may be compared, what differs between them, and their figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from capax.measuring.records import Difference, Record, basis, differences, subject

OTHER_MACHINE = "not compared: other machine"
TIMING_KEYS = ("machine.",)  # what must be equal for times to mean the same


class Row(NamedTuple):
    """A figure of each record; ratios to the first, None where there is no such number."""

    name: str
    values: tuple[float | None, ...]
    ratios: tuple[float | None, ...]
    intervals_overlap: bool | None
    note: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """`obstacles`: keys that make figures incomparable. `differs`: what the comparison is about."""

    ids: tuple[str, ...]
    obstacles: tuple[Difference, ...]
    differs: tuple[Difference, ...]
    rows: tuple[Row, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, `comparable` included."""
        return {
            "comparable": not self.obstacles,
            "ids": list(self.ids),
            "obstacles": [row._asdict() for row in self.obstacles],
            "differs": [row._asdict() for row in self.differs],
            "figures": [row._asdict() for row in self.rows],
        }


def compare(records: Sequence[Record]) -> Comparison:
    """Put records side by side; the first is the baseline of the ratios."""
    differs = differences([subject(record) for record in records])
    other_machine = any(row.key.startswith(TIMING_KEYS) for row in differs)
    names = dict.fromkeys(figure.name for record in records for figure in record.figures)
    return Comparison(
        ids=tuple(record.id for record in records),
        obstacles=tuple(differences([basis(record) for record in records])),
        differs=tuple(differs),
        rows=tuple(_row(name, records, other_machine) for name in names),
    )


def _row(name: str, records: Sequence[Record], other_machine: bool) -> Row:
    figures = [record.figure(name) for record in records]
    values = tuple(None if figure is None else figure.value for figure in figures)
    none = (None,) * len(values)
    if other_machine and any(figure is not None and figure.of_machine for figure in figures):
        return Row(name, values, none, None, OTHER_MACHINE)
    if len({figure.unit for figure in figures if figure is not None}) > 1:
        return Row(name, values, none, None, "not compared: other unit")
    base = values[0]
    ratios = (None, *(v / base if base and v is not None else None for v in values[1:]))
    overlap = _overlap([figure.interval if figure is not None else None for figure in figures])
    note = "" if overlap is None else "intervals overlap" if overlap else "intervals apart"
    return Row(name, values, ratios, overlap, note)


def _overlap(intervals: Sequence[tuple[float, float] | None]) -> bool | None:
    """Say whether all intervals have a point in common; None if one is missing."""
    known = [interval for interval in intervals if interval is not None]
    if len(known) < len(intervals):
        return None
    return max(low for low, _ in known) <= min(high for _, high in known)
