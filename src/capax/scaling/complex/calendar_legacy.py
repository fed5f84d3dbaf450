"""BA-Calendar as it was released: what published figures were scored with, defects included.

Which slots exist is decided by the padded meeting, buffers and all, while the answer is checked
bare, and a meeting that ends at the limit is no slot though the check allows it. Participants
without the day are passed over when slots are looked for, and fail the check of availability. With
priority the first slot of the last day that has one is asked for, because each day overwrites what
the day before it said. "No slot" fails every check even where there is none, and "9:00" is a good
form that no first slot ever equals. The form counts as one of the checks in the share that passed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from capax.scaling.complex.calendar import Slot, checks, fits, parsed, slots, spelled

_FORM = re.compile(r"^(\w+) (\d{1,2}):(\d\d)-(\d{1,2}):(\d\d)$")


class LegacyScore(NamedTuple):
    """Whether all checks passed, and which share of them; the form is one."""

    all_passed: bool
    share_passed: float


def legacy_feasible(truth: Mapping[str, Any]) -> list[Slot]:
    """Return the slots of the released search, in order: every rule is of the padded meeting."""
    rules = truth["rules"]
    buffer = rules.get("buffer", 0)
    banned_day, a, b = rules.get("banned", ("", 0, 0))
    found = []
    for day, begin, end in slots(truth["days"], rules["duration"]):
        first, last = begin - buffer, end + buffer
        present = [days[day] for days in truth["free"].values() if day in days]
        if (
            present
            and all(fits(blocks, first, last) for blocks in present)
            and first >= rules.get("not_before", 0)
            and ("not_after" not in rules or last < rules["not_after"])
            and not (day == banned_day and first < b and last > a)
            and not (rules.get("weekdays") and day in ("Saturday", "Sunday"))
        ):
            found.append((day, begin, end))
    return found


def legacy_score(truth: Mapping[str, Any], answer: str) -> LegacyScore:
    """Score an answer as it was written, "Day HH:MM-HH:MM"."""
    form = _FORM.match(answer.strip())
    if form is None:
        return LegacyScore(False, 0.0)
    padded = f"{form[1]} {int(form[2]):02}:{form[3]}-{int(form[4]):02}:{form[5]}"
    passed = {"format": True, **checks(truth, parsed(padded))}
    if truth["rules"].get("priority"):
        found = legacy_feasible(truth)
        wanted = next((slot for slot in found if slot[0] == found[-1][0]), None)
        passed["high_priority"] = wanted is not None and answer.strip() == spelled(wanted)
    return LegacyScore(all(passed.values()), sum(passed.values()) / len(passed))
