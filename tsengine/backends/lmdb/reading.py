"""Reading: from runs to the rows of a series, or of many series at once.

Both ways gather one piece per run, in order of commit, and combine them; they differ in
what they are fast at. `BlockReader.read_series` answers for one series, in microseconds.
`BlockReader.read_many` decodes each block once for all series that it holds.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Final, TypeAlias, TypeVar, cast

import lmdb
import numpy as np

from tsengine.backends.lmdb.blocks import (
    Header,
    decode,
    decode_range,
    describe,
    place_of,
    read_header,
    verify,
)
from tsengine.backends.lmdb.catalogue import kind_of
from tsengine.backends.lmdb.columns import Columns, combine
from tsengine.backends.lmdb.environment import Environment
from tsengine.backends.lmdb.layout import BLOCKS, KIND_SHIFT, block_key, pack_u64, split_block_key
from tsengine.backends.lmdb.runs import Manifest, Run
from tsengine.duplicates import DuplicatePolicy, fold
from tsengine.errors import CorruptionError
from tsengine.model import (
    INT64_MAX,
    INT64_MIN,
    RANGE_END_MAX,
    Int64Array,
    Labels,
    SeriesBatch,
    ValueArray,
    ValueKind,
    unpack_object,
)

RECENT_BYTES_MAX: Final = 64 << 20
"""Memory for the columns of runs that were just flushed: 40 flushes of 65,536 points."""

MIXED_BYTES_MAX: Final = 32 << 20
"""Memory for decoded blocks of many series, which neighbours in a listing share."""

LISTED_SERIES_MAX: Final = 8_192
"""Most series of a shelf that are listed: more would take longer to list than to search."""

ROWS_UNBOUNDED: Final = 1 << 62

VERIFIED_MAX: Final = 1 << 18
"""Most blocks remembered as verified, and most whose place is: 100 bytes each; beyond that,
some are verified again."""

Piece: TypeAlias = tuple[Int64Array, ValueArray]


class Shelf:
    """Decoded rows of many series, and where each series stands in them.

    Where there are few series, plain lists tell that: looking into a list takes a third of
    the time of looking into an array, which counts where a read asks one shelf per run.
    """

    __slots__ = ("_bounds", "_series", "columns", "last_row", "size")

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.last_row = int(columns.series[-1]), int(columns.timestamps[-1])
        self.size = 16 * (len(columns) + len(columns.series))
        self._series: list[int] | None = None
        self._bounds: list[int] = []

    def take(self, number: int, start: int, end: int, is_whole: bool) -> Piece | None:
        """Give the rows of a series in a range, as views.

        Args:
            number: which series.
            start: first timestamp.
            end: one past the last timestamp.
            is_whole: whether all rows here are known to lie in the range.
        """
        columns = self.columns
        series = self._series
        if series is None:
            series = self._list_series()
        if series:
            place = bisect_left(series, number)
            if place == len(series) or series[place] != number:
                return None
            first, last = self._bounds[place], self._bounds[place + 1]
        else:
            rows = _rows_of(columns, number)
            if rows is None:
                return None
            first, last = rows
        if is_whole:
            return columns.timestamps[first:last], columns.values[first:last]
        return _cut(columns, first, last, start, end)

    def _list_series(self) -> list[int]:
        """List the series, where that pays; else give an empty list."""
        # Two threads may both do this: the lists are equal, and are set in this order.
        if len(self.columns.series) > LISTED_SERIES_MAX:
            series = []
        else:
            self._bounds = self.columns.offsets.tolist()
            series = self.columns.series.tolist()
        self._series = series
        return series


class BlockReader:
    """Reads blocks of one store, in transactions of its callers.

    Thread-safety: any number of threads.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._recent: OrderedDict[int, dict[int, Shelf]] = OrderedDict()  # by run, then kind
        self._recent_bytes = 0
        self._mixed: OrderedDict[bytes, Shelf] = OrderedDict()
        self._mixed_bytes = 0
        self._verified: set[bytes] = set()
        self._places: dict[bytes, int] = {}  # by key of block
        self._lock = threading.Lock()  # guards the three caches where they change

    def remember(self, run: int, columns: dict[ValueKind, Columns]) -> None:
        """Keep the columns of a run that was just written; the oldest make room."""
        shelves = {int(kind): Shelf(part) for kind, part in columns.items()}
        with self._lock:
            self._recent[run] = shelves
            self._recent_bytes += _size(shelves)
            while self._recent_bytes > RECENT_BYTES_MAX:
                _, oldest = self._recent.popitem(last=False)
                self._recent_bytes -= _size(oldest)

    def forget(self, run: int) -> None:
        """Drop the columns of a run that was merged away."""
        with self._lock:
            shelves = self._recent.pop(run, None)
            if shelves is not None:
                self._recent_bytes -= _size(shelves)

    def pieces_of(self, run: Run) -> dict[ValueKind, list[Columns]]:
        """Give all rows of a small run by kind, in order."""
        recent = self._recent.get(run.number)
        if recent is not None:
            return {ValueKind(kind): [shelf.columns] for kind, shelf in recent.items()}
        pieces: dict[ValueKind, list[Columns]] = {}
        with self._environment.read() as transaction:
            cursor = transaction.cursor(self._environment.tables[BLOCKS])
            for _, columns in self.blocks(cursor, run):
                pieces.setdefault(kind_of(int(columns.series[0])), []).append(columns)
        return pieces

    def read_series(
        self,
        transaction: lmdb.Transaction,
        manifest: Manifest,
        number: int,
        start: int,
        end: int,
        policy: DuplicatePolicy,
        *,
        without: Container[bytes] = (),
    ) -> Piece | None:
        """Give the rows of one series in a range, folded; None for none.

        The columns are the caller's own, but for objects, which are bytes still. Blocks whose
        keys are in `without` are left out.
        """
        cursor = transaction.cursor(self._environment.tables[BLOCKS])
        kind = number >> KIND_SHIFT
        deletes = manifest.deletes
        pieces: list[Piece] = []
        for run in manifest.runs:
            t_min, t_max = run.t_min, run.t_max
            if t_min >= end or t_max < start:
                continue
            if not run.series_first <= number <= run.series_last:
                continue
            is_whole = start <= t_min and t_max < end
            recent = self._recent.get(run.number)
            if recent is None:
                found = self._pieces(cursor, run, number, start, end, is_whole, without)
            else:
                shelf = recent.get(kind)
                piece = None if shelf is None else shelf.take(number, start, end, is_whole)
                if piece is None:
                    continue
                found = [piece]
            if deletes:
                found = _without_deleted(found, manifest, run, number)
            pieces += found
        return combine_series(pieces, policy)

    def read_many(
        self,
        transaction: lmdb.Transaction,
        manifest: Manifest,
        numbers: Int64Array,
        start: int,
        end: int,
        policy: DuplicatePolicy,
        *,
        rows_max: int = ROWS_UNBOUNDED,
        without: Container[bytes] = (),
    ) -> list[Columns] | None:
        """Give the rows of many series in a range, folded.

        Args:
            transaction: a read transaction.
            manifest: which runs.
            numbers: int64[k], ascending.
            start: first timestamp.
            end: one past the last timestamp.
            policy: the store's duplicate policy.
            rows_max: how many rows are too many.
            without: keys of blocks that are left out.

        Returns:
            Columns of each kind that occurs, ascending; None where there are too many rows.
        """
        gathered = 0
        cursor = transaction.cursor(self._environment.tables[BLOCKS])
        by_kind: dict[ValueKind, list[Columns]] = {}
        for run in manifest.runs:
            if not run.overlaps(start, end):
                continue
            deletes = list(manifest.deletes_after(run))
            for columns in self._blocks_with(cursor, run, numbers, without):
                for delete in deletes:
                    hidden = delete.hides(columns)
                    if hidden is not None:
                        columns = columns.keep(~hidden)
                columns = _in_range(columns, start, end)
                gathered += len(columns)
                if gathered > rows_max:
                    return None
                if len(columns):
                    kind = kind_of(int(columns.series[0]))
                    by_kind.setdefault(kind, []).append(columns)
        return [combine(by_kind[kind], policy) for kind in ValueKind if kind in by_kind]

    def blocks(
        self, cursor: lmdb.Cursor, run: Run, after: bytes | None = None
    ) -> Iterator[tuple[bytes, Columns]]:
        """Iterate over the blocks of a run behind a key, decoded, in order of key."""
        first = pack_u64(run.number) if after is None else after
        for key in self._walk(cursor, run, cursor.set_range(first), first):
            if key != after:
                block = cursor.value()
                yield key, self._decode(key, block, read_header(key, block))

    def headers(
        self, cursor: lmdb.Cursor, run: Run, after: bytes | None, most: int
    ) -> list[tuple[bytes, int, Header]]:
        """Give key, first series and header of some blocks of a run behind a key."""
        headers: list[tuple[bytes, int, Header]] = []
        found = cursor.set_range(pack_u64(run.number) if after is None else after)
        if found and after is not None and bytes(cursor.key()) == after:
            found = cursor.next()
        while found and len(headers) < most:
            key, block = cursor.item()
            run_number, first_series, _ = split_block_key(key)
            if run_number != run.number:
                break
            headers.append((bytes(key), first_series, read_header(key, block)))
            found = cursor.next()
        return headers

    def headers_of(
        self, cursor: lmdb.Cursor, run: Run, number: int, start: int, end: int
    ) -> Iterator[tuple[bytes, int, Header]]:
        """Iterate over key, first series and header of the blocks that may hold rows of a range."""
        for key in self._from(cursor, run, number, start):
            _, first_series, timestamp = split_block_key(key)
            if first_series > number or (first_series == number and timestamp >= end):
                return
            header = read_header(key, cursor.value())
            if header.last_series >= number:
                yield key, first_series, header

    def sample(self, cursor: lmdb.Cursor, run: Run, number: int, timestamp: int) -> Columns | None:
        """Give the rows of the block of a run that holds a place or comes before it."""
        if not _seek(cursor, block_key(run.number, number, timestamp)):
            return None
        key, block = cursor.item()
        key = bytes(key)
        if split_block_key(key)[0] != run.number:
            return None
        return self._decode(key, block, read_header(key, block))

    def edge(
        self, cursor: lmdb.Cursor, run: Run, number: int, *, newest: bool
    ) -> tuple[int, bytes | None] | None:
        """Find the first or the last row that a run has of a series.

        Returns:
            Its timestamp, and its value as 8 bytes where a header tells it; None where the
            run has no row of the series.
        """
        found: tuple[int, bytes | None] | None = None
        for key in self._from(cursor, run, number, INT64_MAX if newest else INT64_MIN):
            _, first_series, timestamp = split_block_key(key)
            if first_series > number:
                return found
            shelf = self._mixed.get(key)
            if shelf is None:
                block = cursor.value()
                header = read_header(key, block)
                if header.segments == 1:
                    if first_series == number:
                        is_object = header.kind == ValueKind.OBJECT
                        if not newest:
                            return timestamp, None if is_object else header.first
                        found = header.last_timestamp, None if is_object else header.last
                    continue
                if header.last_series < number:
                    continue
                shelf = self._shelve(key, block, header)
            columns = shelf.columns
            rows = _rows_of(columns, number)
            if rows is not None:
                row = rows[1] - 1 if newest else rows[0]
                is_object = columns.values.dtype == object
                value = None if is_object else columns.values[row : row + 1].tobytes()
                found = int(columns.timestamps[row]), value
                if not newest:
                    return found
        return found

    def window_edges(
        self, cursor: lmdb.Cursor, manifest: Manifest, number: int, start: int, end: int, rows: int
    ) -> list[int]:
        """Cut a range into windows of about `rows` rows of a series, by its blocks' headers.

        Returns:
            Timestamps `[start, …, end]`; a window ends where the next begins.
        """
        firsts: list[tuple[int, int]] = []
        for run in manifest.runs:
            if not run.overlaps(start, end):
                continue
            for key in self._from(cursor, run, number, start):
                _, first_series, timestamp = split_block_key(key)
                if first_series > number or (first_series == number and timestamp >= end):
                    break
                if first_series == number and timestamp > start:
                    firsts.append((timestamp, read_header(key, cursor.value()).rows))
        edges, gathered = [start], 0
        for timestamp, count in sorted(firsts):
            gathered += count
            if gathered >= rows and timestamp > edges[-1]:
                edges.append(timestamp)
                gathered = 0
        return [*edges, end]

    def _pieces(
        self,
        cursor: lmdb.Cursor,
        run: Run,
        number: int,
        start: int,
        end: int,
        is_whole: bool,
        without: Container[bytes],
    ) -> list[Piece]:
        """Give the rows that a run has of a series in a range, a piece a block."""
        pieces: list[Piece] = []
        stop = block_key(run.number, number, end) if end <= INT64_MAX else _behind(run, number)
        for key in self._from(cursor, run, number, start):
            if key >= stop:
                break
            if key in without:
                continue
            piece = self._piece(cursor, key, number, start, end, is_whole)
            if piece is not None:
                pieces.append(piece)
        return pieces

    def _piece(
        self, cursor: lmdb.Cursor, key: bytes, number: int, start: int, end: int, is_whole: bool
    ) -> Piece | None:
        """Give the rows that the block under the cursor has of a series in a range."""
        shelf = self._mixed.get(key)
        if shelf is None:
            block = cursor.value()
            header = read_header(key, block)
            if (header.last_series, header.last_timestamp) < (number, start):
                return None  # the block before the place sought, and it ends before it
            if header.segments == 1:
                self._verify(key, block, header)
                if is_whole:
                    columns = decode(key, block, header)
                    return columns.timestamps, columns.values
                return decode_range(key, block, header, start, end)
            shelf = self._shelve(key, block, header)
        elif shelf.last_row < (number, start):
            return None
        return shelf.take(number, start, end, is_whole)

    def _blocks_with(
        self, cursor: lmdb.Cursor, run: Run, numbers: Int64Array, without: Container[bytes]
    ) -> Iterator[Columns]:
        """Iterate over the rows that a run has of the given series, block by block."""
        recent = self._recent.get(run.number)
        if recent is not None:
            for shelf in recent.values():
                yield _only(shelf.columns, numbers)
            return
        place = int(numbers.searchsorted(run.series_first))
        while place < len(numbers) and int(numbers[place]) <= run.series_last:
            for key in self._from(cursor, run, int(numbers[place]), INT64_MIN):
                block = cursor.value()
                header = read_header(key, block)
                ahead = int(numbers.searchsorted(split_block_key(key)[1]))
                if ahead == len(numbers):
                    return
                if int(numbers[ahead]) <= header.last_series:
                    if key in without:
                        continue
                    yield _only(self._decode(key, block, header), numbers)
                elif ahead > place:
                    place = ahead
                    break  # a gap: seek the next series instead of walking there
            else:
                return

    def _from(self, cursor: lmdb.Cursor, run: Run, number: int, timestamp: int) -> Iterator[bytes]:
        """Iterate over the keys of a run's blocks from the one that may hold a row, as `_walk`."""
        key = block_key(run.number, number, timestamp)
        return self._walk(cursor, run, _seek(cursor, key), key)

    def _walk(self, cursor: lmdb.Cursor, run: Run, found: bool, start: bytes) -> Iterator[bytes]:
        """Iterate over the keys of a run's blocks from where the cursor stands, to their end.

        The cursor stands on each. Whoever stops at a block has seen that none is missing
        before it, since blocks tell their places in the run.

        Raises:
            CorruptionError: a block is missing, or the header of one is damaged.
        """
        number = start[:8]
        expected = -1
        while found:
            key = bytes(cursor.key())
            if key[:8] != number:
                break
            place = self._places.get(key)
            if place is None:
                place = place_of(key, cursor.value())
                if len(self._places) >= VERIFIED_MAX:
                    self._places.clear()
                self._places[key] = place
            if expected < 0 and (place == 0 or key <= start):
                expected = place
            if place != expected:
                break
            expected += 1
            yield key
            found = cursor.next()
        if expected != run.blocks:
            raise CorruptionError(
                f"run {run.number} has lost a block of {run.blocks} from place {max(expected, 0)}"
            )

    def _decode(self, key: bytes, block: bytes | memoryview, header: Header) -> Columns:
        """Verify once, decode, and remember blocks of many series."""
        if header.segments == 1:
            self._verify(key, block, header)
            return decode(key, block, header)
        shelf = self._mixed.get(key)
        return (self._shelve(key, block, header) if shelf is None else shelf).columns

    def _shelve(self, key: bytes, block: bytes | memoryview, header: Header) -> Shelf:
        self._verify(key, block, header)
        shelf = Shelf(decode(key, block, header))
        with self._lock:
            if key not in self._mixed:
                self._mixed[key] = shelf
                self._mixed_bytes += shelf.size
            while self._mixed_bytes > MIXED_BYTES_MAX:
                _, oldest = self._mixed.popitem(last=False)
                self._mixed_bytes -= oldest.size
        return shelf

    def is_recent(self, run: Run) -> bool:
        """Whether the rows of a run are at hand as they were written."""
        return run.number in self._recent

    def recent(self, run: Run) -> list[Columns] | None:
        """Give the rows of a run where they are at hand as they were written, by kind."""
        shelves = self._recent.get(run.number)
        return None if shelves is None else [shelf.columns for shelf in shelves.values()]

    def columns(self, cursor: lmdb.Cursor, key: bytes) -> Columns:
        """Give the rows of a block of several series, by its key.

        Raises:
            CorruptionError: it is missing or damaged.
        """
        shelf = self._mixed.get(key)
        if shelf is None:
            block = self.block(cursor, key)
            shelf = self._shelve(key, block, read_header(key, block))
        return shelf.columns

    def block(self, cursor: lmdb.Cursor, key: bytes) -> memoryview:
        """Give a block by its key, verified; its header was read before.

        Raises:
            CorruptionError: it is missing or damaged.
        """
        if not cursor.set_key(key):
            raise CorruptionError(f"{describe(key)} is missing")
        return self.block_at(cursor, key)

    def block_at(self, cursor: lmdb.Cursor, key: bytes) -> memoryview:
        """Give the block on which a cursor stands, verified.

        Raises:
            CorruptionError: it is damaged.
        """
        block = cast("memoryview", cursor.value())
        if key not in self._verified:
            self._verify(key, block, read_header(key, block))
        return block

    def _verify(self, key: bytes, block: bytes | memoryview, header: Header) -> None:
        """Check a block's checksum, once in the life of this process."""
        if key not in self._verified:
            verify(key, block, header)
            if len(self._verified) >= VERIFIED_MAX:
                self._verified.clear()
            self._verified.add(key)


def combine_series(pieces: Sequence[Piece], policy: DuplicatePolicy) -> Piece | None:
    """Merge pieces of one series in order of commit, and fold equal timestamps.

    In-order data is only concatenated. Where pieces overlap, what lies before the earliest
    late row stays as it is, and the tail alone is sorted.

    Returns:
        Columns that belong to the caller; None where there are no rows.
    """
    if not pieces:
        return None
    if len(pieces) == 1:
        timestamps, values = pieces[0]
        return _own(timestamps), _own(values)
    firsts = [int(timestamps[0]) for timestamps, _ in pieces]
    lasts = [int(timestamps[-1]) for timestamps, _ in pieces]
    late: int | None = None
    reached = lasts[0]
    for first, last in zip(firsts[1:], lasts[1:], strict=True):
        if first <= reached and (late is None or first < late):
            late = first
        reached = max(reached, last)
    if late is None:
        return (
            np.concatenate([timestamps for timestamps, _ in pieces]),
            np.concatenate([values for _, values in pieces]),
        )
    heads: list[Piece] = []
    tails: list[Piece] = []
    for piece, first, last in zip(pieces, firsts, lasts, strict=True):
        if first >= late:
            tails.append(piece)
        elif last < late:
            heads.append(piece)
        else:
            cut = int(piece[0].searchsorted(late))
            heads.append((piece[0][:cut], piece[1][:cut]))
            tails.append((piece[0][cut:], piece[1][cut:]))
    all_timestamps = np.concatenate([timestamps for timestamps, _ in heads + tails])
    all_values = cast("ValueArray", np.concatenate([values for _, values in heads + tails]))
    tail = sum(len(timestamps) for timestamps, _ in heads)
    order = all_timestamps[tail:].argsort(kind="stable")
    if tail:
        all_timestamps[tail:] = all_timestamps[tail:].take(order)
        all_values[tail:] = all_values[tail:].take(order)
    else:
        all_timestamps, all_values = all_timestamps.take(order), all_values.take(order)
    if policy is DuplicatePolicy.ERROR:
        policy = DuplicatePolicy.LAST  # nothing repeats: that was enforced at the write
    return fold(all_timestamps, all_values, policy)


def series_batch(labels: Labels, number: int, piece: Piece) -> SeriesBatch:
    """Make the caller's columns of what a read gathered."""
    timestamps, values = piece
    if kind_of(number) is ValueKind.OBJECT:
        objects = np.empty(len(values), dtype=object)
        try:
            for row, packed in enumerate(values.tolist()):
                objects[row] = unpack_object(packed)
        except CorruptionError as error:
            raise CorruptionError(f"{error}; the series is {labels.id}") from error
        values = objects
    return SeriesBatch(labels, timestamps, values)


_Column = TypeVar("_Column", bound="np.ndarray[tuple[int, ...], np.dtype[np.generic]]")


def _own(column: _Column) -> _Column:
    """Give a column that shares no memory with a cache or a transaction."""
    return column if column.flags.owndata and column.flags.writeable else column.copy()


def _seek(cursor: lmdb.Cursor, key: bytes) -> bool:
    """Go to the last block of a run that begins at or before a row, or to its first."""
    if not cursor.set_range(key):
        return bool(cursor.last())
    if cursor.key() == key:
        return True
    if not cursor.prev():
        return bool(cursor.first())
    if cursor.key()[:8] == key[:8]:
        return True
    return bool(cursor.next())  # the run begins behind the row


def _behind(run: Run, number: int) -> bytes:
    """Give a key behind all blocks that begin with a series."""
    return block_key(run.number, number + 1, INT64_MIN)


def _rows_of(columns: Columns, number: int) -> tuple[int, int] | None:
    """Give the bounds of the rows of a series."""
    if len(columns.series) == 1:
        return (0, len(columns)) if columns.series[0] == number else None
    place = int(columns.series.searchsorted(number))
    if place == len(columns.series) or columns.series[place] != number:
        return None
    return int(columns.offsets[place]), int(columns.offsets[place + 1])


def _cut(columns: Columns, first: int, last: int, start: int, end: int) -> Piece | None:
    """Give those of the rows `first` to `last` that lie in a range, as views."""
    timestamps = columns.timestamps
    if timestamps[first] < start:
        first += int(timestamps[first:last].searchsorted(start))
    if first < last and timestamps[last - 1] >= end:
        last = first + int(timestamps[first:last].searchsorted(end))
    if first >= last:
        return None
    return timestamps[first:last], columns.values[first:last]


def _only(columns: Columns, numbers: Int64Array) -> Columns:
    """Keep the rows of the given series (int64[k], ascending)."""
    places = numbers.searchsorted(columns.series).clip(max=len(numbers) - 1)
    wanted = numbers[places] == columns.series
    if wanted.all():
        return columns
    return columns.keep(np.repeat(wanted, np.diff(columns.offsets)))


def _in_range(columns: Columns, start: int, end: int) -> Columns:
    timestamps = columns.timestamps
    if start == INT64_MIN and end == RANGE_END_MAX:
        return columns
    kept = timestamps >= start
    if end < RANGE_END_MAX:
        kept &= timestamps < end
    return columns if kept.all() else columns.keep(kept)


def _without_deleted(pieces: list[Piece], manifest: Manifest, run: Run, number: int) -> list[Piece]:
    """Take away the rows of a run that later deletes hide."""
    for delete in manifest.deletes_after(run):
        if not delete.covers(number):
            continue
        kept = []
        for timestamps, values in pieces:
            shown = timestamps < delete.start
            if delete.end < RANGE_END_MAX:
                shown |= timestamps >= delete.end
            if shown.any():
                kept.append((timestamps[shown], values[shown]))
        pieces = kept
    return pieces


def _size(shelves: Mapping[int, Shelf]) -> int:
    return sum(shelf.size for shelf in shelves.values())
