"""BA-Calendar: find a slot for a meeting that suits everyone and keeps all constraints.

A slot is feasible if the bare meeting has the duration, lies on an allowed day, within the allowed
hours and outside the banned time, and the meeting with its buffers lies in one free block of every
participant. With high priority only the first feasible slot is right (days in the order of
`days_of_week`, then by start). Slots are on a 5-minute grid. Level: constrainedness
1 - feasible / total in tenths, total being the slots where any one participant is free for the bare
meeting; level 10 has no feasible slot, and saying so is right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from capax.errors import ConfigError
from capax.scaling.complex.instance import Instance, last_final

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PEOPLE = ("Anna", "Ben", "Carla", "David", "Elif", "Farid")
NO_SLOT = "No common time slot available"
OPEN, CLOSE, GRID = 8 * 60, 18 * 60, 5  # minutes of the day
NONE_LEVEL = 10
Block = tuple[int, int]  # from, to, in minutes
Slot = tuple[str, int, int]
Free = Mapping[str, Mapping[str, Sequence[Block]]]  # person -> day -> blocks
_SLOT = re.compile(r"([A-Za-z]{6,9})[,:]?\s+(\d{1,2}):(\d\d)\s*[-\u2013]\s*(\d{1,2}):(\d\d)\b")
_PROMPT = """\
Find a time for a meeting that all participants can attend.

Free times:
{free}

Constraints:
{constraints}

A slot starts at a multiple of five minutes. Think step by step. Then end with one line in the \
form 'Final Answer: Day HH:MM-HH:MM' for the meeting itself, or 'Final Answer: {no_slot}'."""


def fits(blocks: Sequence[Block], begin: int, end: int) -> bool:
    """Say whether a time lies in one of the blocks."""
    return any(a <= begin and end <= b for a, b in blocks)


def checks(truth: Mapping[str, Any], slot: Slot) -> dict[str, bool]:
    """Return each constraint that applies, and whether a slot keeps it; priority is not here."""
    day, begin, end = slot
    rules = truth["rules"]
    buffer = rules.get("buffer", 0)
    found = {
        "meeting_duration": end - begin == rules["duration"],
        "grid": begin % GRID == 0 and day in truth["days"],
        "availability": all(
            fits(days.get(day, ()), begin - buffer, end + buffer) for days in truth["free"].values()
        ),
    }
    if rules.get("weekdays"):
        found["no_meetings_on_weekends"] = day not in DAYS[5:]
    if "not_before" in rules:
        found["no_meetings_before"] = begin >= rules["not_before"]
    if "not_after" in rules:
        found["no_meetings_after"] = end <= rules["not_after"]
    if "banned" in rules:
        banned_day, a, b = rules["banned"]
        found["no_meetings_during_specific_times"] = day != banned_day or end <= a or begin >= b
    return found


def slots(days: Sequence[str], duration: int) -> Iterator[Slot]:
    """Yield every slot of the grid, in order."""
    for day in days:
        for begin in range(0, 24 * 60 - duration + 1, GRID):
            yield day, begin, begin + duration


def feasible(truth: Mapping[str, Any]) -> list[Slot]:
    """Return the feasible slots in order: those that pass every one of `checks`."""
    rules = truth["rules"]
    duration, buffer = rules["duration"], rules.get("buffer", 0)
    begins = np.arange(OPEN, CLOSE - duration + 1, GRID)
    found = []
    for day in truth["days"]:
        good = np.ones(begins.size, bool)
        for days in truth["free"].values():
            good &= _free(days.get(day, ()), begins - buffer, begins + duration + buffer)
        good &= begins >= rules.get("not_before", 0)
        good &= begins + duration <= rules.get("not_after", 24 * 60)
        banned_day, a, b = rules.get("banned", ("", 0, 0))
        if day == banned_day:
            good &= (begins + duration <= a) | (begins >= b)
        if rules.get("weekdays") and day in DAYS[5:]:
            continue
        found += [(day, begin, begin + duration) for begin in begins[good].tolist()]
    return found


def n_total(truth: Mapping[str, Any]) -> int:
    """Count the slots in which at least one participant is free for the bare meeting."""
    duration = truth["rules"]["duration"]
    begins = np.arange(OPEN, CLOSE - duration + 1, GRID)
    total = 0
    for day in truth["days"]:
        anyone = np.zeros(begins.size, bool)
        for days in truth["free"].values():
            anyone |= _free(days.get(day, ()), begins, begins + duration)
        total += int(anyone.sum())
    return total


def _free(blocks: Sequence[Block], begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    found = np.zeros(begins.size, bool)
    for a, b in blocks:
        found |= (a <= begins) & (ends <= b)
    return found


def draw(rng: np.random.Generator, tightness: float) -> dict[str, Any]:
    """Return free blocks and rules; blocks of a day are apart by five minutes or more.

    `tightness`, 0 to 1, makes people less alike and rules more; levels are measured, not set by it.
    """
    n_days = int(rng.integers(1, 4))
    first = int(rng.integers(0, 8 - n_days))
    days = DAYS[first : first + n_days]
    people = PEOPLE[: int(rng.integers(2, 7))]
    shared = {day: _blocks(rng) for day in days}
    free = {
        person: {day: _blocks(rng) if rng.random() < tightness else shared[day] for day in days}
        for person in people
    }
    longest = 4 + round(15 * tightness)
    rules: dict[str, Any] = {"duration": int(rng.integers(3, longest)) * 5}
    if rng.random() < 0.7 * tightness:
        rules["buffer"] = int(rng.choice([5, 10, 15, 30]))
    for name, chance in (("weekdays", 0.4 * tightness), ("priority", 0.3)):
        if rng.random() < chance:
            rules[name] = True
    if rng.random() < 0.5 * tightness:
        rules["not_before"] = int(rng.integers(9, 12)) * 60
    if rng.random() < 0.5 * tightness:
        rules["not_after"] = int(rng.integers(14, 18)) * 60
    if rng.random() < 0.5 * tightness:
        begin = int(rng.integers(9, 16)) * 60
        rules["banned"] = [days[int(rng.integers(n_days))], begin, begin + 60]
    return {"days": list(days), "free": free, "rules": rules}


def _blocks(rng: np.random.Generator) -> list[Block]:
    blocks: list[Block] = []
    for _ in range(int(rng.integers(1, 5))):
        length = int(rng.integers(6, 49)) * 5
        begin = OPEN + int(rng.integers(0, (CLOSE - OPEN - length) // 5 + 1)) * 5
        end = begin + length
        if all(end + GRID <= a or begin >= b + GRID for a, b in blocks):
            blocks.append((begin, end))
    return sorted(blocks)


class Calendar:
    """See the module. Level: constrainedness in tenths; 10 has no slot."""

    name = "calendar"
    default_counts: Mapping[int, int] = {**dict.fromkeys(range(2, 10), 225), NONE_LEVEL: 200}
    share = 1

    def make(self, rng: np.random.Generator, level: int, number: int) -> Instance | None:
        """Draw a calendar; None unless it falls in the level."""
        if not 0 <= level <= NONE_LEVEL:
            raise ConfigError(f"calendar has levels 0 to 10 (tenths constrained), not {level}")
        truth = draw(rng, (level / NONE_LEVEL) ** 1.5)
        found, total = feasible(truth), n_total(truth)
        if total == 0 or level != (int(10 * (total - len(found)) / total) if found else NONE_LEVEL):
            return None
        right = found[:1] if truth["rules"].get("priority") else found
        truth["right"] = [spelled(slot) for slot in right]
        truth["constrainedness"] = 1 - len(found) / total
        n_answers = sum(1 for _ in slots(truth["days"], truth["rules"]["duration"])) + 1
        return Instance(
            self.name,
            level,
            "",
            _PROMPT.format(free=_free_text(truth), constraints=_rules_text(truth), no_slot=NO_SLOT),
            [truth["days"], truth["free"], truth["rules"]],
            truth,
            max(len(right), 1) / n_answers,
        )

    def extract(self, text: str) -> str | None:
        """Return "Day HH:MM-HH:MM" with two digits everywhere, or the words for no slot."""
        line = last_final(text)
        if line is None:
            return None
        if "no common time slot" in line.lower():
            return NO_SLOT
        found = _SLOT.search(line)
        if found is None or found[1].capitalize() not in DAYS:
            return None
        hours = [int(found[i]) for i in (2, 3, 4, 5)]
        return "{} {:02}:{:02}-{:02}:{:02}".format(found[1].capitalize(), *hours)

    def is_right(self, truth: Mapping[str, Any], answer: str) -> bool:
        """Check all constraints, and with priority that it is the first slot of all."""
        if answer == NO_SLOT:
            return not truth["right"]
        slot = parsed(answer)
        if not all(checks(truth, slot).values()):
            return False
        return not truth["rules"].get("priority") or answer == truth["right"][0]

    def solve(self, instance: Instance) -> str:
        """Write the first right slot."""
        return f"Final Answer: {next(iter(instance.truth['right']), NO_SLOT)}"

    def guess(self, instance: Instance, rng: np.random.Generator) -> str:
        """Write a uniform slot of the grid, or that there is none."""
        every = list(slots(instance.truth["days"], instance.truth["rules"]["duration"]))
        at = int(rng.integers(len(every) + 1))
        return f"Final Answer: {spelled(every[at]) if at < len(every) else NO_SLOT}"

    def hint(self, instance: Instance, answer: str | None) -> str:
        """Name a constraint that the slot breaks."""
        if answer is None:
            return "No slot in the asked form was found."
        if answer == NO_SLOT:
            return "There is a slot."
        broken = [n for n, kept in checks(instance.truth, parsed(answer)).items() if not kept]
        return f"It breaks {broken[0]}." if broken else "There is an earlier slot."


def spelled(slot: Slot) -> str:
    """Return a slot as "Day HH:MM-HH:MM"."""
    day, begin, end = slot
    return f"{day} {_clock(begin)}-{_clock(end)}"


def parsed(answer: str) -> Slot:
    """Return the slot of an extracted answer."""
    day, times = answer.split(" ")
    begin, end = (60 * int(t[:2]) + int(t[3:]) for t in times.split("-"))
    return day, begin, end


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


def _free_text(truth: Mapping[str, Any]) -> str:
    return "\n".join(
        f"{person}: "
        + "; ".join(
            f"{day} {', '.join(f'{_clock(a)}-{_clock(b)}' for a, b in blocks)}"
            for day, blocks in days.items()
        )
        for person, days in truth["free"].items()
    )


def _rules_text(truth: Mapping[str, Any]) -> str:
    rules = truth["rules"]
    lines = [f"The meeting takes {rules['duration']} minutes."]
    if "buffer" in rules:
        lines.append(
            f"Everyone must also be free for {rules['buffer']} minutes before and after it, in the "
            "same free block."
        )
    if rules.get("weekdays"):
        lines.append("It is not on a weekend.")
    if "not_before" in rules:
        lines.append(f"It does not begin before {_clock(rules['not_before'])}.")
    if "not_after" in rules:
        lines.append(f"It does not end after {_clock(rules['not_after'])}.")
    if "banned" in rules:
        day, a, b = rules["banned"]
        lines.append(f"It does not touch {day} {_clock(a)}-{_clock(b)}.")
    if rules.get("priority"):
        lines.append("It has high priority: only the earliest possible slot counts.")
    return "\n".join(f"- {line}" for line in lines)
