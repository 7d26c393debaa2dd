"""Runs: immutable sorted sets of rows, the manifest that lists them, and who still reads them.

A store is its manifest: runs in order of commit and the deletes between them. A commit, a
merge and a delete each make a new manifest; readers keep the one they began with.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import lmdb
import msgpack
import numpy as np

from tsengine.backends.lmdb.columns import BoolArray, Columns
from tsengine.backends.lmdb.environment import Table
from tsengine.backends.lmdb.layout import (
    DELETES,
    META,
    RETIRED,
    RUNS,
    pack_u64,
    seal,
    unpack_row,
    unpack_u64,
    unseal,
)
from tsengine.errors import CorruptionError
from tsengine.model import Int64Array

_RUN: Final = struct.Struct("<IIQQQQqqQQQ")
_STATE: Final = struct.Struct("<QQQQQqQQQ")
STATE_KEY: Final = b"state"


@dataclass(frozen=True, slots=True)
class Run:
    """A run, as the manifest has it.

    Attributes:
        number: never used again, so caches go by it.
        level: 0 for what a flush wrote; merging raises it.
        blocks: how many blocks.
        sequence_first, sequence_last: the commits that it holds.
        deletes_applied: deletes up to this sequence hide none of its rows: it was written
            later, or merging has dropped what they hid.
        rows: how many rows.
        t_min, t_max: earliest and latest timestamp.
        series_first, series_last: lowest and highest series number.
        size: bytes of its blocks.
    """

    number: int
    level: int
    blocks: int
    sequence_first: int
    sequence_last: int
    deletes_applied: int
    rows: int
    t_min: int
    t_max: int
    series_first: int
    series_last: int
    size: int

    def pack(self) -> bytes:
        """Give the manifest row."""
        row = _RUN.pack(
            self.level,
            self.blocks,
            self.sequence_first,
            self.sequence_last,
            self.deletes_applied,
            self.rows,
            self.t_min,
            self.t_max,
            self.series_first,
            self.series_last,
            self.size,
        )
        return seal(RUNS, pack_u64(self.number), row)

    @classmethod
    def unpack(cls, number: int, row: bytes | memoryview) -> Run:
        """Read a manifest row.

        Raises:
            CorruptionError: it is damaged.
        """
        plain = unseal(RUNS, pack_u64(number), row)
        if len(plain) != _RUN.size:
            raise CorruptionError(f"the manifest row of run {number} has another length")
        return cls(number, *_RUN.unpack(plain))

    def overlaps(self, start: int, end: int) -> bool:
        """Whether rows may lie in a time range."""
        return self.t_min < end and self.t_max >= start

    def overlaps_run(self, other: Run) -> bool:
        """Whether both may have rows of one series at one time."""
        return (
            self.t_min <= other.t_max
            and other.t_min <= self.t_max
            and self.series_first <= other.series_last
            and other.series_first <= self.series_last
        )


@dataclass(frozen=True, slots=True, eq=False)
class DeleteEvent:
    """A delete in commit order: it hides rows of earlier commits and of no later one.

    Attributes:
        sequence: its place among the commits.
        start, end: the range, nanoseconds.
        series: int64[k], the series numbers that the selector resolved to, ascending.
    """

    sequence: int
    start: int
    end: int
    series: Int64Array

    def pack(self) -> bytes:
        """Give the row; bounds as signed 128-bit, since an end may be 2**63."""
        row = (
            self.start.to_bytes(16, "little", signed=True)
            + self.end.to_bytes(16, "little", signed=True)
            + self.series.tobytes()
        )
        return seal(DELETES, pack_u64(self.sequence), row)

    @classmethod
    def unpack(cls, sequence: int, row: bytes | memoryview) -> DeleteEvent:
        """Read a row.

        Raises:
            CorruptionError: it is damaged.
        """
        plain = unseal(DELETES, pack_u64(sequence), row)
        if len(plain) < 32 or len(plain) % 8:  # two bounds of 16 bytes
            raise CorruptionError(f"the row of delete {sequence} has an impossible length")
        return cls(
            sequence,
            int.from_bytes(plain[:16], "little", signed=True),
            int.from_bytes(plain[16:32], "little", signed=True),
            np.frombuffer(plain, np.int64, offset=32),
        )

    def covers(self, series: int) -> bool:
        """Whether the delete is about a series."""
        place = int(self.series.searchsorted(series))
        return place < len(self.series) and int(self.series[place]) == series

    def touches(self, run: Run) -> bool:
        """Whether the run may hold rows that the delete hides."""
        if run.deletes_applied >= self.sequence or not run.overlaps(self.start, self.end):
            return False
        place = int(self.series.searchsorted(run.series_first))
        return place < len(self.series) and int(self.series[place]) <= run.series_last

    def hides(self, columns: Columns) -> BoolArray | None:
        """Which rows of earlier commits it hides: bool[n], or None for none."""
        if not len(self.series):
            return None
        places = self.series.searchsorted(columns.series).clip(max=len(self.series) - 1)
        about = self.series[places] == columns.series
        if not about.any():
            return None
        timestamps = columns.timestamps
        hidden: BoolArray = np.repeat(about, np.diff(columns.offsets)) & (timestamps >= self.start)
        if self.end < 2**63:
            hidden &= timestamps < self.end
        return hidden if hidden.any() else None


class State(NamedTuple):
    """The counters of a store, one row that every commit rewrites.

    Attributes:
        version: goes up whenever the manifest changes.
        sequence: the last commit.
        next_run: the next run number.
        next_series: the next series number, before its kind is added.
        catalogue_epoch: goes up whenever a series is removed.
        last_write_ns: when the last points were committed; 0 for never.
        runs, deletes: the `digest` of their numbers, so that a missing row is seen, or a page
            as it was before.
        series: how many series are listed.
    """

    version: int = 0
    sequence: int = 0
    next_run: int = 1
    next_series: int = 1
    catalogue_epoch: int = 0
    last_write_ns: int = 0
    runs: int = 0
    deletes: int = 0
    series: int = 0

    def beyond(self, taken: State) -> State:
        """Give these with the counters that number things no lower than those taken."""
        if taken == State():  # as nearly always
            return self
        return self._replace(
            version=max(self.version, taken.version),
            sequence=max(self.sequence, taken.sequence),
            next_run=max(self.next_run, taken.next_run),
            next_series=max(self.next_series, taken.next_series),
            catalogue_epoch=max(self.catalogue_epoch, taken.catalogue_epoch),
        )

    def save(self, transaction: lmdb.Transaction, table: Table) -> None:
        """Write the row."""
        row = _STATE.pack(*self)
        transaction.put(STATE_KEY, seal(META, STATE_KEY, row), db=table)

    @classmethod
    def load(cls, transaction: lmdb.Transaction, table: Table) -> State:
        """Read the row.

        Raises:
            CorruptionError: it is damaged or missing.
        """
        row = transaction.get(STATE_KEY, db=table)
        if row is None:
            raise CorruptionError("the state row of the store is missing")
        plain = unseal(META, STATE_KEY, row)
        if len(plain) != _STATE.size:
            raise CorruptionError("the state row of the store has another length")
        return cls(*_STATE.unpack(plain))


def digest(numbers: Sequence[int]) -> int:
    """Tell runs or deletes in 64 bits: how many, and a checksum of their numbers."""
    packed = struct.pack(f"<{len(numbers)}Q", *sorted(numbers))
    return len(numbers) << 32 | zlib.crc32(packed)


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """What a store holds at one moment; immutable, so that a reader has it for nothing.

    Attributes:
        moment: what `Environment.moment` says of a transaction that sees it.
        state: the counters.
        runs: in order of commit.
        deletes: in order of commit; those that still hide rows of some run.
    """

    moment: int = 0
    state: State = field(default_factory=State)
    runs: tuple[Run, ...] = ()
    deletes: tuple[DeleteEvent, ...] = ()

    def changed_since(self, earlier: Manifest) -> list[tuple[int, int]]:
        """Give ranges of time that cover what was written or deleted since an earlier manifest.

        A run never changes. So what both manifests list is as it was, and what a delete hid that
        is forgotten by now was in runs that only the earlier one lists. Merges count as changes.
        """
        apart = set(self.runs) ^ set(earlier.runs)
        return [(run.t_min, run.t_max + 1) for run in apart] + [
            (delete.start, delete.end)
            for delete in self.deletes
            if delete.sequence > earlier.state.sequence
        ]

    def deletes_after(self, run: Run) -> Iterator[DeleteEvent]:
        """Iterate over the deletes that hide rows of a run."""
        return (delete for delete in self.deletes if delete.touches(run))

    def with_runs(
        self, runs: Sequence[Run], state: State, deletes: Sequence[DeleteEvent] | None = None
    ) -> Manifest:
        """Give the next manifest, without the deletes that hide nothing any more."""
        deletes = self.deletes if deletes is None else deletes
        deletes = tuple(delete for delete in deletes if any(map(delete.touches, runs)))
        version = max(self.state.version, state.version) + 1
        state = state._replace(
            version=version,
            runs=digest([run.number for run in runs]),
            deletes=digest([one.sequence for one in deletes]),
        )
        return Manifest(self.moment, state, tuple(runs), deletes)

    def save(
        self, transaction: lmdb.Transaction, tables: Mapping[str, Table], before: Manifest
    ) -> None:
        """Write what differs from the manifest before."""
        # Runs and deletes never change: their numbers tell which are new and which are gone.
        if self.runs is not before.runs:
            kept = {run.number for run in self.runs}
            known = {run.number for run in before.runs}
            for number in known - kept:
                transaction.delete(pack_u64(number), db=tables[RUNS])
            for run in self.runs:
                if run.number not in known:
                    transaction.put(pack_u64(run.number), run.pack(), db=tables[RUNS])
        if self.deletes is not before.deletes:
            now = {delete.sequence for delete in self.deletes}
            then = {delete.sequence for delete in before.deletes}
            for sequence in then - now:
                transaction.delete(pack_u64(sequence), db=tables[DELETES])
            for delete in self.deletes:
                if delete.sequence not in then:
                    transaction.put(pack_u64(delete.sequence), delete.pack(), db=tables[DELETES])
        self.state.save(transaction, tables[META])

    @classmethod
    def load(
        cls, transaction: lmdb.Transaction, tables: Mapping[str, Table], moment: int
    ) -> Manifest:
        """Read the manifest of the moment that a transaction sees.

        Raises:
            CorruptionError: a row is damaged or missing.
        """
        state = State.load(transaction, tables[META])
        runs = [Run.unpack(unpack_u64(key), row) for key, row in transaction.cursor(tables[RUNS])]
        deletes = [
            DeleteEvent.unpack(unpack_u64(key), row)
            for key, row in transaction.cursor(tables[DELETES])
        ]
        found = digest([run.number for run in runs]), digest([one.sequence for one in deletes])
        if found != (state.runs, state.deletes):
            raise CorruptionError(
                "the manifest lists other runs or deletes than the state of the store knows: "
                f"{len(runs)} and {len(deletes)}"
            )
        runs.sort(key=lambda run: run.sequence_last)
        return cls(moment, state, tuple(runs), tuple(deletes))


class Pins:
    """Which manifests are being read in this process, so that their runs stay.

    Thread-safety: any number of threads, without a lock: a dict is changed and copied in one
    step. So to unpin needs no memory, and cannot fail for want of it.
    """

    def __init__(self) -> None:
        self._versions: dict[object, int] = {}  # by reader

    def pin(self, reader: object, version: int) -> None:
        """Keep the runs of a manifest until its reader unpins them."""
        self._versions[reader] = version

    def unpin(self, reader: object) -> None:
        """Let go of what a reader pinned, if anything."""
        self._versions.pop(reader, None)

    def oldest(self) -> int | None:
        """The lowest version being read, None for none."""
        return min(self._versions.copy().values(), default=None)


@dataclass(frozen=True, slots=True)
class Retired:
    """A run that left the manifest, or never got into it, and waits to be swept.

    Attributes:
        number: the run.
        version: the manifest version that no longer lists it; 0 for a merge cut short.
        at_ns: when, nanoseconds since the Unix epoch.
    """

    number: int
    version: int
    at_ns: int

    def pack(self) -> bytes:
        """Give the row."""
        row = msgpack.packb([self.version, self.at_ns])
        return seal(RETIRED, pack_u64(self.number), row)

    @classmethod
    def unpack(cls, number: int, row: bytes | memoryview) -> Retired:
        """Read a row.

        Raises:
            CorruptionError: it is damaged.
        """
        plain = unseal(RETIRED, pack_u64(number), row)
        try:
            version, at_ns = unpack_row(plain)
        except (ValueError, TypeError) as error:
            raise CorruptionError(f"the row of retired run {number} is damaged") from error
        return cls(number, version, at_ns)
