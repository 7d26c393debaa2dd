"""Merging: folding neighbouring runs into one, a few milliseconds at a time.

`plan` says what is due, `Merge` does it step by step. A step reads and packs outside any
write transaction and then puts a handful of blocks, so that writers hardly wait.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import lmdb
import numpy as np

from tsengine.backends.lmdb.blocks import (
    NumberPacker,
    encode,
    split_packed,
)
from tsengine.backends.lmdb.catalogue import kind_of
from tsengine.backends.lmdb.columns import Columns, combine, group_rows
from tsengine.backends.lmdb.environment import Environment
from tsengine.backends.lmdb.layout import BLOCKS
from tsengine.backends.lmdb.reading import BlockReader
from tsengine.backends.lmdb.runs import DeleteEvent, Manifest, Run
from tsengine.duplicates import DuplicatePolicy
from tsengine.model import Int64Array, ValueKind

RUNS_DUE: Final = 16
"""How many neighbouring runs of a level make a merge due."""

RUNS_MERGED: Final = 8
"""How many of them, the oldest, one merge takes: 8 of 16 keeps the file at 1.2 times the
live data, where merging all at once would double it for the time of the merge."""

BULK_ROWS: Final = 1 << 19
"""Rows from which a batch is written as merging would have left it, or, of series that share
their timestamps, with raw values in blocks of their own. Such a run is of level 0 until it is
packed, by itself, when no merge is due."""

SMALL_ROWS: Final = 65_536
"""Rows of eight runs together up to which they are merged as soon as there are eight: they
take one step and one commit, and what is small need not wait for the sake of space."""

TAIL_ROWS_MAX: Final = 1_024
"""Rows up to which the runs at the end are taken into the next small commit. A point a commit
would else leave thousands of runs, and merging them cost more commits than it saves."""

TAIL_BYTES_MAX: Final = 1 << 15
"""Bytes of one such run; objects may be large."""

RUN_ROWS_FULL: Final = 1 << 26
"""A run of this many rows is left alone while it is disjoint in time from its neighbours."""

OWN_BLOCKS_FROM: Final = 1_024
"""Rows of a series in a run from which it gets blocks of its own: blocks shared by many
series are what makes reads slow, tiny ones what makes files large."""

STEP_ROWS: Final = 131_072
"""Rows that a step takes in: about 10 ms of work by itself, of which less than one in the write
transaction. Each call into numpy or pcodec lets go of the interpreter, and beside a busy writer
waits to have it back; half as many rows are merged at half the speed there."""


def plan(runs: Sequence[Run], busy: Collection[int] = ()) -> list[Run]:
    """Give the neighbouring runs to merge next; empty where nothing is due.

    Small merges come first: the lowest level with enough neighbours. Only neighbours are
    merged, so the order of commit is kept.

    Args:
        runs: those of the manifest, in order of commit.
        busy: numbers of runs that are being merged already.
    """
    runs = runs[: tail_start(runs)]
    for level in sorted({run.level for run in runs}):
        stretch: list[Run] = []
        of_level: list[int] = []  # places in the stretch of runs of the level itself
        for run in runs:
            if run.level > level or run.number in busy or _is_full(run, runs):
                stretch, of_level = [], []
            elif stretch or run.level == level:
                if run.level == level:
                    of_level.append(len(stretch))
                stretch.append(run)
                if len(of_level) >= RUNS_MERGED:
                    # The oldest of the level, and the smaller ones that stand between them.
                    oldest = stretch[: of_level[RUNS_MERGED - 1] + 1]
                    if len(of_level) == RUNS_DUE or _are_small(oldest):
                        return oldest
    unpacked = [run for run in runs if _is_unpacked(run)]
    # One after the other: all of them at a time would be in the file twice.
    return [] if any(run.number in busy for run in unpacked) else unpacked[:1]


def is_bulk(rows: int) -> bool:
    """Whether so many rows are written as a large batch is."""
    return rows >= BULK_ROWS


def _is_unpacked(run: Run) -> bool:
    return run.level == 0 and is_bulk(run.rows)


def count_due(runs: Sequence[Run]) -> int:
    """Count the merges that are due of these runs, not those that they in turn will make due."""
    busy: set[int] = set()
    count = 0
    while due := plan(runs, busy):
        busy.update(run.number for run in due)
        count += 1
    packed_later = [run for run in runs if _is_unpacked(run) and run.number not in busy]
    return count + len(packed_later)


def tail_start(runs: Sequence[Run]) -> int:
    """Give the place from which on runs are so small that commits take them in."""
    start, rows = len(runs), 0
    while start:
        run = runs[start - 1]
        rows += run.rows
        if run.level or rows > TAIL_ROWS_MAX or run.size > TAIL_BYTES_MAX:
            break
        start -= 1
    return start


def split_tails(
    manifest: Manifest, rows: int, busy: Collection[int]
) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
    """Give the runs that stay, and the small ones at the end that a commit takes in.

    A run is taken in while it is no larger than what was gathered behind it, as in a binary
    counter: few small runs are left, and each row is written a few times more.

    Args:
        manifest: the newest.
        rows: of the commit.
        busy: numbers of runs that are being merged.
    """
    runs = manifest.runs
    newest_delete = manifest.deletes[-1].sequence if manifest.deletes else 0
    end = len(runs)
    while end:
        run = runs[end - 1]
        if (
            run.level
            or run.rows > rows
            or rows + run.rows > TAIL_ROWS_MAX
            or run.size > TAIL_BYTES_MAX
            or run.number in busy
            or (run.deletes_applied < newest_delete and any(manifest.deletes_after(run)))
        ):
            break
        rows += run.rows
        end -= 1
    return runs[:end], runs[end:]


def _are_small(runs: Sequence[Run]) -> bool:
    return sum(run.rows for run in runs) <= SMALL_ROWS


def _is_full(run: Run, runs: Sequence[Run]) -> bool:
    if run.rows < RUN_ROWS_FULL:
        return False
    return not any(
        other is not run and other.t_min <= run.t_max and other.t_max >= run.t_min for other in runs
    )


@dataclass(slots=True)
class Totals:
    """What the manifest says of a run, gathered while it is written."""

    blocks: int = 0
    rows: int = 0
    size: int = 0
    t_min: int = 2**63 - 1
    t_max: int = -(2**63)
    series_first: int = 2**63 - 1
    series_last: int = 0

    def add(self, columns: Columns, size: int) -> None:
        """Count a block."""
        timestamps = columns.timestamps
        is_one = len(columns.series) == 1
        self.blocks += 1
        self.rows += len(columns)
        self.size += size
        self.t_min = min(self.t_min, int(timestamps[0] if is_one else timestamps.min()))
        self.t_max = max(self.t_max, int(timestamps[-1] if is_one else timestamps.max()))
        self.series_first = min(self.series_first, int(columns.series[0]))
        self.series_last = max(self.series_last, int(columns.series[-1]))

    def run(self, number: int, level: int, sequences: tuple[int, int], deletes_applied: int) -> Run:
        """Give the manifest's entry."""
        return Run(
            number,
            level,
            self.blocks,
            *sequences,
            deletes_applied,
            self.rows,
            self.t_min,
            self.t_max,
            self.series_first,
            self.series_last,
            self.size,
        )


class BlockBuilder:
    """Cuts sorted rows of one kind into packed blocks.

    A series with many rows gets blocks of its own; others share blocks of about
    `block_points` rows, cut at borders of series where there is one.
    """

    def __init__(self, run: int, kind: ValueKind, block_points: int, totals: Totals) -> None:
        self._run = run
        self._kind = kind
        self._block_points = block_points
        self._own_from = min(OWN_BLOCKS_FROM, block_points)
        self._totals = totals
        self._packer = NumberPacker()
        self._waiting: Columns | None = None

    def add(self, columns: Columns, *, last: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Take rows behind those taken before, and give the blocks that are complete."""
        if self._waiting is not None:
            columns = _append(self._waiting, columns)
        self._waiting = None
        ready = 0
        for start, end, own in self._stretches(columns):
            is_tail = end == len(columns) and not last
            if own:
                cuts = self._cut_evenly(start, end, is_tail=is_tail)
            else:
                cuts = self._cut_between_series(columns.offsets, start, end, is_tail=is_tail)
            for first, until in pairwise(cuts):
                for piece in split_packed(self._kind, columns.rows(first, until)):
                    yield self._encode(piece)
            ready = cuts[-1]
        if ready < len(columns):
            self._waiting = columns.rows(ready, len(columns))

    def _stretches(self, columns: Columns) -> Iterator[tuple[int, int, bool]]:
        """Iterate over rows of one large series, or of small neighbours."""
        counts = np.diff(columns.offsets)
        start = 0
        for large in np.flatnonzero(counts >= self._own_from).tolist():
            first, end = int(columns.offsets[large]), int(columns.offsets[large + 1])
            if start < first:
                yield start, first, False
            yield first, end, True
            start = end
        if start < len(columns):
            yield start, len(columns), False

    def _cut_evenly(self, start: int, end: int, *, is_tail: bool) -> list[int]:
        points = self._block_points
        if is_tail:  # more rows of the series may follow: keep enough for a full block
            return (
                [*range(start, end - points + 1, points)] if end - start > 2 * points else [start]
            )
        parts = -(-(end - start) // points)
        return [start + (end - start) * part // parts for part in range(parts + 1)]

    def _cut_between_series(
        self, offsets: Int64Array, start: int, end: int, *, is_tail: bool
    ) -> list[int]:
        cuts = [start]
        while end - cuts[-1] > self._block_points:
            border = int(offsets[offsets.searchsorted(cuts[-1] + self._block_points, "right") - 1])
            cuts.append(border if border > cuts[-1] else cuts[-1] + self._block_points)
        return cuts if is_tail else [*cuts, end]

    def _encode(self, columns: Columns) -> tuple[bytes, bytes]:
        place = self._totals.blocks
        key, block = encode(self._run, self._kind, columns, place=place, packer=self._packer)
        self._totals.add(columns, len(key) + len(block))
        return key, block


def _append(before: Columns, after: Columns) -> Columns:
    if not len(after):
        return before
    return group_rows(
        np.concatenate([before.row_series(), after.row_series()]),
        np.concatenate([before.timestamps, after.timestamps]),
        np.concatenate([before.values, after.values]),
    )


class _Input:
    """One run being merged: rows read and not yet taken."""

    def __init__(self, reader: BlockReader, run: Run, deletes: Sequence[DeleteEvent]) -> None:
        self._reader = reader
        self._run = run
        self._deletes = deletes
        self._after: bytes | None = None
        self._ahead: Columns | None = None  # a block of the next kind, read one too far
        self.rows: list[Columns] = []
        self.last_row: tuple[int, int] | None = None  # None once nothing more of the kind comes
        self._exhausted = False

    def fill(self, cursor: lmdb.Cursor, kind: ValueKind, rows: int) -> None:
        """Read blocks of a kind until so many rows are there, or no more come."""
        have = sum(map(len, self.rows))
        while have < rows:
            columns = self._next(cursor, kind)
            if columns is None:
                self.last_row = None
                return
            self.last_row = int(columns.series[-1]), int(columns.timestamps[-1])
            for delete in self._deletes:
                hidden = delete.hides(columns)
                if hidden is not None:
                    columns = columns.keep(~hidden)
            if len(columns):
                self.rows.append(columns)
                have += len(columns)

    def take(self, frontier: tuple[int, int] | None) -> list[Columns]:
        """Take the rows up to and including a row; all for None."""
        if frontier is None:
            taken, self.rows = self.rows, []
            return taken
        taken = []
        while self.rows:
            columns = self.rows[0]
            end = _rows_until(columns, frontier)
            if end:
                taken.append(columns.rows(0, end) if end < len(columns) else columns)
            if end < len(columns):
                self.rows[0] = columns.rows(end, len(columns))
                break
            del self.rows[0]
        return taken

    def _next(self, cursor: lmdb.Cursor, kind: ValueKind) -> Columns | None:
        columns, self._ahead = self._ahead, None
        if columns is None and not self._exhausted:
            for key, block in self._reader.blocks(cursor, self._run, self._after):
                self._after, columns = key, block
                break
            else:
                self._exhausted = True
        if columns is not None and kind_of(int(columns.series[0])) is not kind:
            self._ahead, columns = columns, None
        return columns


def _rows_until(columns: Columns, frontier: tuple[int, int]) -> int:
    """Count the rows up to and including (series, timestamp)."""
    series, timestamp = frontier
    place = int(columns.series.searchsorted(series))
    if place == len(columns.series):
        return len(columns)
    start = int(columns.offsets[place])
    if columns.series[place] != series:
        return start
    end = int(columns.offsets[place + 1])
    return start + int(columns.timestamps[start:end].searchsorted(timestamp, "right"))


class Merge:
    """Folds neighbouring runs into a new one, step by step.

    Args:
        environment: the store's files.
        reader: the store's block reader.
        manifest: as it is when the merge begins; deletes that come later hide rows of the
            new run as they would have hidden those of the old ones.
        inputs: neighbours in order of commit.
        number: the new run's number, listed as retired until it is in the manifest.
        policy: the store's duplicate policy.
        block_points: rows of a packed block.
        retained_from: rows before this are dropped by retention.

    Attributes:
        level: of the highest input.
        is_listed: whether blocks of it are stored, and it is listed as retired.

    Thread-safety: none; one thread at a time steps.
    """

    def __init__(
        self,
        environment: Environment,
        reader: BlockReader,
        manifest: Manifest,
        inputs: Sequence[Run],
        *,
        number: int,
        policy: DuplicatePolicy,
        block_points: int,
        retained_from: int,
    ) -> None:
        self.inputs = tuple(inputs)
        self.level = max(run.level for run in inputs)
        self.number = number
        self.is_listed = False
        self._environment = environment
        self._policy = policy
        self._block_points = block_points
        self._retained_from = retained_from
        self._sources = [
            _Input(reader, run, list(manifest.deletes_after(run))) for run in self.inputs
        ]
        self._deletes_applied = manifest.state.sequence
        self._totals = Totals()
        self._kinds = list(ValueKind)
        self._builder: BlockBuilder | None = None

    def step(self) -> tuple[list[tuple[bytes, bytes]], bool]:
        """Merge some rows: gives the blocks to put, and whether there is more to do.

        Whoever does not put them drops the merge: it does not give them again.
        """
        gathered: list[tuple[bytes, bytes]] = []
        while self._kinds:
            blocks, more = self._merge_some(self._kinds[0])
            gathered += blocks
            if not more:
                self._kinds.pop(0)
                self._builder = None
            elif gathered:
                return gathered, True
        return gathered, False

    def result(self) -> Run | None:
        """The new run, once `step` has nothing more to do; None where no row was left."""
        if not self._totals.rows:
            return None
        level = max(max(run.level for run in self.inputs) + (len(self.inputs) > 1), 1)
        if len(self.inputs) == 1 and _is_unpacked(self.inputs[0]):
            level = max(level, level_of(self._totals.rows))
        return self._totals.run(
            self.number,
            level,
            (self.inputs[0].sequence_first, self.inputs[-1].sequence_last),
            self._deletes_applied,
        )

    def _merge_some(self, kind: ValueKind) -> tuple[list[tuple[bytes, bytes]], bool]:
        share = max(STEP_ROWS // len(self._sources), 1)
        with self._environment.read() as transaction:
            for source in self._sources:
                cursor = transaction.cursor(self._environment.tables[BLOCKS])
                source.fill(cursor, kind, share)
        frontiers = [source.last_row for source in self._sources if source.last_row is not None]
        frontier = min(frontiers, default=None)
        # Within a run keys are distinct: what equals the frontier is all here.
        taken = [columns for source in self._sources for columns in source.take(frontier)]
        if self._retained_from > -(2**63):
            taken = [columns.keep(columns.timestamps >= self._retained_from) for columns in taken]
        merged = combine(taken, self._policy)
        if self._builder is None:
            self._builder = BlockBuilder(self.number, kind, self._block_points, self._totals)
        if not len(merged) and frontier is not None:
            return [], True
        return list(self._builder.add(merged, last=frontier is None)), frontier is not None


def pack_columns(
    run: int, columns_by_kind: dict[ValueKind, Columns], block_points: int, totals: Totals
) -> list[tuple[bytes, bytes]]:
    """Give the packed blocks of rows that are sorted and folded already."""
    blocks: list[tuple[bytes, bytes]] = []
    for kind in sorted(columns_by_kind):
        builder = BlockBuilder(run, kind, block_points, totals)
        blocks += builder.add(columns_by_kind[kind], last=True)
    return blocks


def level_of(rows: int) -> int:
    """The level at which a large batch begins: where merges would have brought its rows."""
    level, usual = 0, 65_536
    while rows >= usual * RUNS_MERGED:
        level, usual = level + 1, usual * RUNS_MERGED
    return level
