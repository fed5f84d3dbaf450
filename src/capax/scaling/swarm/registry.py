"""Who is in the swarm and what their word weighs: one SQLite file, audited by a chain of hashes.

Every change is an entry that is only ever appended; its hash covers the entry before it, so a byte
altered anywhere breaks the chain from there on. The records are what the entries add up to, and are
made from them anew by `audit`.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from capax.errors import CapacityError, ConfigError, FileFormatError, StoreError
from capax.scaling.swarm.reputation import Record, standings, weights
from capax.scaling.swarm.stakes import Account, settle

ADMISSIONS_PER_DAY = 3
CHALLENGES, NEEDED = 20, 17
_DAY_S = 86_400
_FIRST = "0" * 64
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    number INTEGER PRIMARY KEY, payload TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL
)
"""


class Registry:
    """Nodes and their records. Raises StoreError if the file cannot be used."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        try:
            with closing(self._connect()) as store, store:
                store.execute(_SCHEMA)
        except sqlite3.Error as e:
            raise StoreError(f"{path} is no registry that can be used: {e}") from None
        self._records: dict[str, Record] = {}
        self._attempts: dict[str, list[float]] = {}
        self._accounts: dict[str, Account] = {}
        self._agreement: dict[str, tuple[int, int]] = {}
        self._halves: dict[str, tuple[int, int]] = {}
        self.n_rounds = 0
        for entry in self._entries():
            self._apply(entry)

    def records(self) -> dict[str, Record]:
        """Return every node's record."""
        return dict(self._records)

    def weights(self) -> dict[str, float]:
        """Return every judge's weight."""
        return weights(self._records)

    def standings(self, nodes: Iterable[str]) -> dict[str, float]:
        """Return what the answer of each of `nodes` weighs."""
        return standings(self._records, nodes)

    def accounts(self) -> dict[str, Account]:
        """Return what every judge of a round has at stake."""
        return dict(self._accounts)

    def agreement(self) -> dict[str, tuple[int, int]]:
        """Return each judge's verdicts with and against the others, over all rounds."""
        return dict(self._agreement)

    def halves(self) -> dict[str, tuple[int, int]]:
        """Return how often each node's answer ended in the upper and in the lower half."""
        return dict(self._halves)

    def check_admission(self, node: str) -> None:
        """Raise CapacityError if a node has used up its attempts of the last 24 hours."""
        since = self._clock() - _DAY_S
        recent = [t for t in self._attempts.get(node, []) if t > since]
        if len(recent) >= ADMISSIONS_PER_DAY:
            raise CapacityError(
                f"node {node!r:.60} has tried {len(recent)} times in 24 hours, and may "
                f"{ADMISSIONS_PER_DAY} times; let it try again tomorrow"
            )

    def add_admission(self, node: str, right: int, asked: int, tokens: int) -> bool:
        """Keep an attempt at admission and what it cost; returns whether the node is admitted."""
        self.check_admission(node)
        if not 0 <= right <= asked:
            raise ConfigError(f"{right} right of {asked} challenges cannot be")
        passed = asked >= CHALLENGES and right * CHALLENGES >= NEEDED * asked
        self._append({
            "kind": "admission", "node": node, "right": right, "asked": asked, "tokens": tokens,
            "passed": passed,
        })  # fmt: skip
        return passed

    def add_round(
        self, gold: Mapping[str, tuple[int, int]], verdicts: Any = None, tokens: int = 0,
        agreement: Mapping[str, tuple[int, int]] | None = None,
        answered: Mapping[str, tuple[int, int]] | None = None,
        halves: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:  # fmt: skip
        """Keep a round: (right, wrong) verdicts of each judge on gold, (0, 0) without.

        `verdicts`: whatever JSON the round is to be replayed from. `answered`: (right, wrong)
        answers of each node to gold. `agreement`: each judge's verdicts with and against the
        others; it settles stakes and earns nothing. `halves`: whose answers ended in the upper and
        the lower half; it earns nothing either.
        """
        tallies = {"gold": gold, "agreement": agreement, "answered": answered, "halves": halves}
        self._append({
            "kind": "round", "verdicts": verdicts, "tokens": tokens,
            **{
                name: {n: list(v) for n, v in (tally or {}).items()}
                for name, tally in tallies.items()
            },
        })  # fmt: skip

    def audit(self) -> int:
        """Check the whole chain; returns the number of entries.

        Raises FileFormatError naming the first entry that does not fit.
        """
        return sum(1 for _ in self._entries())

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield the entries in order, each checked. Raises FileFormatError."""
        return self._entries()

    def _append(self, entry: dict[str, Any]) -> None:
        entry = {"time": self._clock(), **entry}
        payload = json.dumps(entry, sort_keys=True)
        try:
            with closing(self._connect()) as store:
                store.execute("BEGIN IMMEDIATE")  # nobody else appends to the same entry
                last = store.execute(
                    "SELECT number, hash FROM entries ORDER BY number DESC LIMIT 1"
                ).fetchone()
                number, previous = (last[0] + 1, last[1]) if last else (1, _FIRST)
                store.execute(
                    "INSERT INTO entries VALUES (?, ?, ?, ?)",
                    (number, payload, previous, _hash(number, payload, previous)),
                )
                store.commit()
        except sqlite3.Error as e:
            raise StoreError(f"{self.path} cannot be written: {e}") from None
        self._apply(entry)

    def _entries(self) -> Iterator[dict[str, Any]]:
        previous = _FIRST
        try:
            with closing(self._connect()) as store:
                rows = store.execute(
                    "SELECT number, payload, previous, hash FROM entries ORDER BY number"
                ).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as e:
            raise FileFormatError(f"{self.path} cannot be read: {e}") from None
        for expected, (number, payload, before, found) in enumerate(rows, 1):
            fits = number == expected and before == previous
            if not (fits and isinstance(payload, str) and found == _hash(number, payload, before)):
                raise FileFormatError(
                    f"{self.path}: entry {expected} was altered; do not trust what follows it"
                )
            previous = found
            yield json.loads(payload)

    def _apply(self, entry: dict[str, Any]) -> None:
        if entry["kind"] == "admission":
            node = entry["node"]
            self._attempts.setdefault(node, []).append(entry["time"])
            before = self._records.get(node, Record())
            fields = asdict(before) | {"is_admitted": before.is_admitted or entry["passed"]}
            self._records[node] = Record(**fields)
            if entry["passed"]:
                self._accounts[node] = Account()
            return
        self.n_rounds += 1
        gold, answered, agreed, halves = (
            {n: (int(a), int(b)) for n, (a, b) in entry.get(name, {}).items()}
            for name in ("gold", "answered", "agreement", "halves")
        )
        for node in gold | answered:
            self._records[node] = self._records.get(node, Record()).after_round(
                *gold.get(node, (0, 0)), answered.get(node, (0, 0))
            )
        _add(self._agreement, agreed)
        _add(self._halves, halves)
        self._accounts = settle(self._accounts, agreed)
        for node in agreed:
            if node in self._records and not self._accounts.get(node, Account()).can_judge:
                self._records[node] = replace(self._records[node], is_admitted=False)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=10)


def _add(to: dict[str, tuple[int, int]], tally: Mapping[str, tuple[int, int]]) -> None:
    for node, (a, b) in tally.items():
        so_far = to.get(node, (0, 0))
        to[node] = (so_far[0] + a, so_far[1] + b)


def _hash(number: int, payload: str, previous: str) -> str:
    return hashlib.sha256(f"{number}\n{previous}\n{payload}".encode()).hexdigest()
