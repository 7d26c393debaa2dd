"""Sweeping: removing runs and series that left the manifest, once nobody reads them.

What waits is listed in the table of retired rows before it leaves the manifest, so that
nothing is left behind however a process ends.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import lmdb
import numpy as np

from tsengine.backends.lmdb.catalogue import Catalogue
from tsengine.backends.lmdb.environment import Environment, Table
from tsengine.backends.lmdb.layout import (
    BLOCKS,
    REMOVED_SERIES,
    RETIRED,
    pack_u64,
    unpack_row,
    unpack_u64,
    unseal,
)
from tsengine.backends.lmdb.runs import Pins, Retired
from tsengine.errors import CorruptionError
from tsengine.model import Int64Array

SWEEP_BLOCKS: Final = 256
"""Blocks deleted in one transaction: a few milliseconds of work."""

SWEEP_SERIES: Final = 4_096
"""Removed series whose rows are deleted in one transaction, likewise."""

TAILS_SWEPT: Final = 16
"""Most retired tails that a small commit deletes on its way: more than it retires."""


@dataclass(frozen=True, slots=True, eq=False)
class RemovedSeries:
    """Series that were removed, whose labels wait for readers of older moments to end."""

    key: int
    version: int
    at_ns: int
    numbers: Int64Array

    @classmethod
    def unpack(cls, key: int, row: bytes | memoryview) -> RemovedSeries:
        """Read the row that `Store.delete` wrote.

        Raises:
            CorruptionError: it is damaged.
        """
        plain = unseal(RETIRED, pack_u64(key), row)
        try:
            version, at_ns, packed = unpack_row(plain)
            numbers = np.frombuffer(packed, np.int64)
        except (ValueError, TypeError) as error:
            raise CorruptionError(f"the row of removed series {key} is damaged") from error
        return cls(key, version, at_ns, numbers)


class Sweeper:
    """Knows what left the manifest, and deletes it once nobody reads it.

    Args:
        environment: the store's files.
        catalogue: forgets removed series.
        pins: the manifests being read in this process.
        clock_ns: nanoseconds since the Unix epoch.
        age_max_ns: how long runs stay for readers in other processes.

    Thread-safety: any number of threads; one at a time calls `sweep`.
    """

    def __init__(
        self,
        environment: Environment,
        catalogue: Catalogue,
        pins: Pins,
        clock_ns: Callable[[], int],
        age_max_ns: int,
    ) -> None:
        self._environment = environment
        self._catalogue = catalogue
        self._pins = pins
        self._clock_ns = clock_ns
        self._age_max_ns = age_max_ns
        self._lock = threading.Lock()  # guards all below
        self._runs: list[Retired] = []
        self._tails: deque[Retired] = deque()
        self._series: list[RemovedSeries] = []
        self._unfinished: set[int] = set()
        self._is_stale = False  # whether the table is to be read anew

    @property
    def owed(self) -> int:
        """How many runs wait to be deleted."""
        return len(self._runs) + len(self._tails)

    @property
    def is_due(self) -> bool:
        """Whether anything waits that small commits do not delete on their way."""
        return bool(self._is_stale or self._runs or self._series)

    def distrust(self) -> None:
        """Have the table read anew: what a failed commit left in it is unknown."""
        with self._lock:
            self._is_stale = True

    def protect(self, number: int) -> None:
        """Keep the run of a merge that began, which the table lists as retired until its end."""
        with self._lock:
            self._unfinished.add(number)

    def give_up(self, number: int) -> None:
        """Have the run of a merge that failed swept, if it did not get into the manifest."""
        with self._lock:
            self._unfinished.discard(number)
            self._is_stale = True

    def add_runs(self, runs: Sequence[Retired]) -> None:
        """Remember runs that left the manifest."""
        with self._lock:
            self._runs += runs

    def add_merged(self, number: int, runs: Sequence[Retired]) -> None:
        """Remember the inputs of a merge that is committed."""
        with self._lock:
            self._unfinished.discard(number)
            self._runs += runs

    def add_tails(self, runs: Sequence[Retired]) -> None:
        """Remember small runs that a commit took in."""
        with self._lock:
            self._tails.extend(runs)

    def add_series(self, removed: RemovedSeries) -> None:
        """Remember series that a delete removed."""
        with self._lock:
            self._series.append(removed)

    def take_tails(self) -> list[Retired]:
        """Take some tails that nobody reads, for the caller to delete in its own commit.

        A caller whose commit fails calls `distrust`.
        """
        taken: list[Retired] = []
        tails = self._tails
        if not tails:
            return taken
        oldest = self._pins.oldest()
        alone: bool | None = None
        with self._lock:
            while tails and len(taken) < TAILS_SWEPT:
                tail = tails[0]
                if oldest is not None and oldest < tail.version:
                    break
                if alone is None:
                    alone = not self._environment.has_other_processes()
                if not alone and self._clock_ns() - tail.at_ns <= self._age_max_ns:
                    break
                taken.append(tails.popleft())
        return taken

    def sweep(self) -> bool:
        """Delete some of what nobody reads; whether there is more."""
        if self._is_stale:
            self.load()
        if not (self._runs or self._tails or self._series):
            return False
        oldest = self._pins.oldest()
        alone = not self._environment.has_other_processes()
        now = self._clock_ns()

        def is_unread(one: Retired | RemovedSeries) -> bool:
            if one.version == 0 or one.at_ns < 0:
                return True
            if oldest is not None and oldest < one.version:
                return False
            return alone or now - one.at_ns > self._age_max_ns

        with self._lock:
            runs = [one for one in (*self._tails, *self._runs) if is_unread(one)]
            series = [one for one in self._series if is_unread(one)]
        if not runs and not series:
            return False
        done: set[Retired | RemovedSeries] = set()
        left: list[RemovedSeries] = []

        def work(transaction: lmdb.Transaction) -> None:
            done.clear()
            left.clear()
            tables = self._environment.tables
            room = SWEEP_BLOCKS
            for one in runs:
                key = pack_u64(one.number)
                # Readers elsewhere see by this that the run is going.
                going = Retired(one.number, one.version, -1).pack()
                transaction.put(key, going, db=tables[RETIRED])
                room -= delete_blocks(transaction, tables[BLOCKS], one.number, room)
                if room <= 0:
                    return
                transaction.delete(key, db=tables[RETIRED])
                done.add(one)
            for removed in series[:1]:
                self._catalogue.forget(transaction, removed.numbers[:SWEEP_SERIES])
                if len(removed.numbers) > SWEEP_SERIES:
                    left.append(replace(removed, numbers=removed.numbers[SWEEP_SERIES:]))
                else:
                    transaction.delete(pack_u64(removed.key), db=tables[RETIRED])
                done.add(removed)

        self._environment.write(work, makes_room=True)
        with self._lock:
            self._runs = [one for one in self._runs if one not in done]
            self._tails = deque(one for one in self._tails if one not in done)
            self._series = [one for one in self._series if one not in done]
            self._series += left
        return len(done) < len(runs) + len(series) or bool(left)

    def load(self) -> None:
        """Read what is to be swept: what an earlier life of the store left, or a failure.

        Raises:
            CorruptionError: a row is damaged.
        """
        with self._lock:
            self._is_stale = False
            self._runs.clear()
            self._tails.clear()
            self._series.clear()
        runs: list[Retired] = []
        series: list[RemovedSeries] = []
        try:
            # Begun after the lists were cleared: what is added meanwhile may be there twice,
            # which does no harm, and nothing is missed.
            with self._environment.read() as transaction:
                for key, row in transaction.cursor(self._environment.tables[RETIRED]):
                    number = unpack_u64(key)
                    if number & REMOVED_SERIES:
                        series.append(RemovedSeries.unpack(number, row))
                    else:
                        runs.append(Retired.unpack(number, row))
        except BaseException:
            self.distrust()
            raise
        with self._lock:
            self._runs += (run for run in runs if run.number not in self._unfinished)
            self._series += series


def delete_blocks(transaction: lmdb.Transaction, table: Table, run: int, most: int) -> int:
    """Delete up to `most` blocks of a run; gives how many there were."""
    cursor = transaction.cursor(table)
    prefix = pack_u64(run)
    deleted = 0
    found = cursor.set_range(prefix)
    while found and deleted < most and cursor.key()[:8] == prefix:
        cursor.delete()  # moves on to the next key, an empty one at the end of the table
        deleted += 1
    return deleted
