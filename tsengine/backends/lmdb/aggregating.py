"""Aggregating where the rows are: headers that answer, values decoded in place, and the rest.

A block of one series is clean where no other run may have rows of that series in its time and
no later delete touches it. A clean one inside the range and one window answers by its header;
other clean ones are decoded into a buffer and measured there. All other rows are read as a
query reads them, without the blocks that are clean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Final, TypeAlias

import lmdb
import numpy as np

from tsengine.aggregation import (
    Aggregation,
    Collector,
    Cut,
    Groups,
    Partials,
    Statistics,
    aggregate_series,
    answer,
    cut,
    cut_regular,
    cut_rows,
    measure,
    window_starts,
    with_edges,
)
from tsengine.backends.lmdb.blocks import (
    decode_times,
    decode_values_into,
    layout_of,
    read_header,
)
from tsengine.backends.lmdb.catalogue import kind_of
from tsengine.backends.lmdb.layout import BLOCKS, KIND_SHIFT
from tsengine.backends.lmdb.planning import Plan, make_plan
from tsengine.backends.lmdb.reading import Piece
from tsengine.backends.lmdb.runs import Manifest, Run
from tsengine.backends.lmdb.short_series import read_short_series
from tsengine.backends.lmdb.store import Store
from tsengine.backends.lmdb.summaries import Summary, key_of
from tsengine.model import Int64Array, Labels, ValueArray, ValueKind
from tsengine.result import QueryResult
from tsengine.selectors import Selector

BUFFER_ROWS: Final = 1 << 15
"""Rows that are decoded before they are measured: 256 KiB, which stay in the cache. Decoding into
1 MiB takes a third longer."""

REST_ROWS: Final = 1 << 20
"""Rows that are read together where blocks do not answer: 16 MiB of columns."""

FEW_SERIES: Final = 16
"""Series that are read one by one at any rate: a look into a run for one takes microseconds."""

LONG_SERIES: Final = 2_000
"""Average rows of a series from which each is read by itself."""

_Block: TypeAlias = "tuple[int, int, int, int, int, bool]"
"""Series and first timestamp of a block, and what `Layout` says of it."""

_ORDERLESS: Final = frozenset({"sum", "squares", "min", "max", "first", "last"})
"""Statistics that do not go by the order of rows."""

_FROM_HEADERS: Final = _ORDERLESS - {"squares"}
_MASK: Final = (1 << 32) - 1


def push_down(
    store: Store,
    selector: Selector,
    resolve: Callable[[lmdb.Transaction], Int64Array],
    asked: Aggregation,
) -> QueryResult | None:
    """Aggregate by blocks; None where a scan has to do it.

    Args:
        store: which store.
        selector: which series.
        resolve: gives their numbers by series ID.
        asked: what is asked.

    Raises:
        AggregationError: the values cannot be aggregated as asked.
        CorruptionError: a block is damaged or missing.
        SnapshotExpiredError: as for a scan.
    """
    if not asked.needs <= _ORDERLESS:
        return None
    start = max(asked.start, store.retained_from())
    if start >= asked.end:
        return QueryResult(())
    selects_all = selector.exact is None and not selector.matchers
    if selector.exact is not None:
        short = read_short_series(store, selector.exact, start, asked)
        if short is not None:
            return aggregate_series(short, asked) if len(short.values) else QueryResult(())
    is_nameless = selects_all and asked.group_by == () and not asked.needs & {"first", "last"}

    def plan(transaction: lmdb.Transaction) -> Plan | None:
        manifest = store.manifest_of(transaction)
        numbers = None if is_nameless else resolve(transaction)
        if not asked.only_counts and _has_objects(manifest, numbers):
            return None
        return make_plan(store, transaction, asked, numbers, lambda: resolve(transaction), start)

    with store.pinned(plan) as (manifest, planned):
        if planned is None:
            return None
        labels: list[Labels] = []
        if planned.numbers is not None:
            with store.environment.read() as transaction:
                labels = store.labels_of(transaction, manifest, planned.numbers.tolist())
        return _Aggregator(store, planned, labels).result()


def _has_objects(manifest: Manifest, numbers: Int64Array | None) -> bool:
    if numbers is None:
        return any(run.series_last >> KIND_SHIFT == ValueKind.OBJECT for run in manifest.runs)
    return bool((numbers >> KIND_SHIFT == ValueKind.OBJECT).any())


class _Aggregator:
    """One aggregation of a plan.

    Args:
        store: which store; the manifest of the plan is pinned.
        plan: how it is read.
        labels: of the numbers of the plan.

    Thread-safety: none.
    """

    def __init__(self, store: Store, plan: Plan, labels: list[Labels]) -> None:
        self._store = store
        self._plan = plan
        self._asked = plan.asked
        self._collector = Collector()
        self._groups = Groups(plan.asked.group_by)
        if plan.numbers is None:
            self._groups.number(Labels())
        else:
            of_rank = np.array([self._groups.number(one) for one in labels], np.int64)
            self._ranks = plan.numbers.argsort()
            self._numbers = plan.numbers[self._ranks]
            self._group_of = of_rank[self._ranks]
        needs = plan.asked.needs
        self._needs_times = plan.asked.needs_begin or bool(needs & {"first", "last"})
        self._buffers: dict[ValueKind, ValueArray] = {}
        self._known_cut: tuple[tuple[int, int, int], Cut] | None = None

    def result(self) -> QueryResult:
        """Read all there is, and give the answer."""
        plan, asked = self._plan, self._asked
        with np.errstate(all="ignore"):  # inf − inf is NaN, as in C
            for part in plan.parts:
                if not len(part.summary):
                    continue
                decoded = part.is_clean
                if asked.needs <= _FROM_HEADERS:
                    answers = decoded & part.is_inside(asked, plan.start, plan.end)
                    decoded = decoded & ~answers
                    self._add_headers(part.summary.take(answers))
                self._decode(part.run, part.summary.take(decoded))
            if plan.rest_rows:
                self._read_rest()
            return answer(asked, self._groups.labels, self._collector.tables())

    def _add(
        self,
        kind: ValueKind,
        series: Int64Array,
        windows: Int64Array,
        measured: Statistics,
        edges: tuple[Int64Array, Int64Array],
    ) -> None:
        """Add segments of series, all of them selected, with the times of their edges."""
        if self._plan.numbers is None:
            groups = ranks = np.zeros(len(series), np.int64)
        else:
            places = self._numbers.searchsorted(series)
            groups, ranks = self._group_of[places], self._ranks[places]
        with_edges(measured, self._asked, *edges, ranks)
        kind = ValueKind.INT if self._asked.only_counts else kind
        self._collector.add(kind, Partials(groups, windows, measured))

    # Headers.

    def _add_headers(self, summary: Summary) -> None:
        """Add blocks by what their headers say."""
        asked = self._asked
        for kind, some in _by_kind(summary):
            heads = some.headers
            t_min, t_max = heads["t_min"].copy(), heads["t_max"].copy()
            if asked.every is None:
                windows = np.zeros(len(some), np.int64)
            else:
                windows = window_starts(t_min, asked.every, asked.phase)
            measured: Statistics = {"rows": heads["rows"].astype(np.int64)}
            if "sum" in asked.needs:
                _add_sums(kind, some, measured)
            for name in asked.needs & {"min", "max", "first", "last"}:
                measured[name] = heads[name].copy().view(kind.dtype)
            self._add(kind, some.series, windows, measured, (t_min, t_max))

    # Blocks that are decoded.

    def _decode(self, run: Run, summary: Summary) -> None:
        """Add the rows in range of clean blocks."""
        for kind, some in _by_kind(summary):
            layout = layout_of(some.headers)
            blocks = list(zip(some.series.tolist(), some.timestamps.tolist(), *layout, strict=True))
            before = np.cumsum(some.headers["rows"], dtype=np.int64)
            first = 0
            while first < len(blocks):
                rows_before = int(before[first - 1]) if first else 0
                last = int(before.searchsorted(rows_before + BUFFER_ROWS, "right"))
                last = max(last, first + 1)
                rows = int(before[last - 1]) - rows_before
                self._decode_some(run, kind, blocks[first:last], rows)
                first = last

    def _decode_some(
        self, run: Run, kind: ValueKind, blocks: Sequence[_Block], rows_max: int
    ) -> None:
        """Decode blocks into the buffer, one behind the other, and measure them together."""
        buffer = self._buffer(kind, rows_max)
        owners, counts, cuts, edges = [], [], [], []
        filled = 0
        with self._store.environment.read() as transaction:
            self._store.check_runs(transaction, self._plan.manifest)
            cursor = transaction.cursor(self._store.environment.tables[BLOCKS])
            for series, earliest, rows, step, offset, is_raw in blocks:
                key = key_of(run, series, earliest)
                block = self._store.reader.block(cursor, key)
                first, last, times = self._rows_in_range(key, block, earliest, rows, step)
                if first >= last:
                    continue
                if not self._asked.only_counts:
                    into = buffer[filled : filled + last]
                    decode_values_into(key, block, offset, rows, is_raw=is_raw, into=into)
                    if first:
                        into[: last - first] = into[first:]
                if times is None:
                    segments = self._cut_regular(earliest + first * step, step, last - first)
                else:
                    segments = cut(times, self._asked.every, self._asked.phase)
                if self._needs_times:
                    begin = earliest + first * step
                    edges.append(_edges(segments[0], last - first, times, begin, step))
                owners.append(series)
                counts.append(len(segments[0]))
                cuts.append((segments[0] + filled, segments[1]))
                filled += last - first
        if filled:
            starts, windows = (np.concatenate(columns) for columns in zip(*cuts, strict=True))
            measured = measure(kind, buffer[:filled], starts, self._asked.needs)
            at = [np.concatenate(columns) for columns in zip(*edges, strict=True)]
            series_of = np.repeat(np.array(owners), counts)
            self._add(kind, series_of, windows, measured, (at[0], at[1]) if at else _NO_EDGES)

    def _rows_in_range(
        self, key: bytes, block: bytes | memoryview, earliest: int, rows: int, step: int
    ) -> tuple[int, int, Int64Array | None]:
        """Give the first row in range of a block, one past the last, and irregular timestamps."""
        start, end = self._plan.start, self._plan.end
        if step:
            first = max(-((earliest - start) // step), 0)
            return first, min(-((earliest - end) // step), rows), None
        times = decode_times(key, block, read_header(key, block))
        first, last = int(times.searchsorted(start)), int(times.searchsorted(end - 1, "right"))
        return first, last, times[first:last]

    def _cut_regular(self, first: int, step: int, rows: int) -> Cut:
        """Cut regular times; those of neighbouring blocks are often the same."""
        known = self._known_cut
        if known is not None and known[0] == (first, step, rows):
            return known[1]
        segments = cut_regular(first, step, rows, self._asked.every, self._asked.phase)
        self._known_cut = (first, step, rows), segments
        return segments

    def _buffer(self, kind: ValueKind, rows: int) -> ValueArray:
        buffer = self._buffers.get(kind)
        if buffer is None or len(buffer) < rows:
            dtype = np.dtype(np.int64) if kind is ValueKind.OBJECT else kind.dtype
            buffer = self._buffers[kind] = np.empty(max(rows, BUFFER_ROWS), dtype)
        return buffer

    # All other rows.

    def _read_rest(self) -> None:
        """Add the rows of blocks that are not clean, as a query reads them."""
        plan = self._plan
        without = {
            key_of(part.run, series, timestamp)
            for part in plan.parts
            for series, timestamp in zip(
                part.summary.series[part.is_clean].tolist(),
                part.summary.timestamps[part.is_clean].tolist(),
                strict=True,
            )
        }
        series = len(plan.rest)
        if series <= FEW_SERIES or plan.rest_rows > LONG_SERIES * series:
            for number in plan.rest.tolist():
                self._read_series(number, without)
            return
        each = max(series * REST_ROWS // plan.rest_rows, 1)
        for first in range(0, series, each):
            self._read_together(plan.rest[first : first + each], without)

    def _read_series(self, number: int, without: set[bytes]) -> None:
        """Add the rows of one series, in stretches where it is long."""
        store, plan, asked = self._store, self._plan, self._asked
        edges = [plan.start, plan.end]
        if plan.rest_rows > REST_ROWS:
            with store.environment.read() as transaction:
                store.check_runs(transaction, plan.manifest)
                cursor = transaction.cursor(store.environment.tables[BLOCKS])
                edges = store.reader.window_edges(
                    cursor, plan.manifest, number, plan.start, plan.end, REST_ROWS
                )
        for start, end in pairwise(edges):
            with store.environment.read() as transaction:
                store.check_runs(transaction, plan.manifest)
                piece = store.reader.read_series(
                    transaction,
                    plan.manifest,
                    number,
                    start,
                    end,
                    store.options.duplicate_policy,
                    without=without,
                )
            if piece is not None:
                segments = cut(piece[0], asked.every, asked.phase)
                series = np.full(len(segments[0]), number)
                self._add_columns(kind_of(number), piece, segments, series)

    def _read_together(self, numbers: Int64Array, without: set[bytes]) -> None:
        """Add the rows of many series, each block decoded once; of half of them, if too many."""
        store, plan, asked = self._store, self._plan, self._asked
        with store.environment.read() as transaction:
            store.check_runs(transaction, plan.manifest)
            columns = store.reader.read_many(
                transaction,
                plan.manifest,
                numbers,
                plan.start,
                plan.end,
                store.options.duplicate_policy,
                rows_max=4 * REST_ROWS,
                without=without,
            )
        if columns is None and len(numbers) == 1:
            self._read_series(int(numbers[0]), without)
        elif columns is None:
            middle = len(numbers) // 2
            self._read_together(numbers[:middle], without)
            self._read_together(numbers[middle:], without)
        for part in columns or ():
            if len(part):
                segments = cut_rows(part.timestamps, part.offsets, asked.every, asked.phase)
                owners = part.offsets.searchsorted(segments[0], "right") - 1
                kind = kind_of(int(part.series[0]))
                piece = part.timestamps, part.values
                self._add_columns(kind, piece, segments, part.series[owners])

    def _add_columns(
        self, kind: ValueKind, piece: Piece, segments: Cut, series: Int64Array
    ) -> None:
        (timestamps, values), (starts, windows) = piece, segments
        measured = measure(kind, values, starts, self._asked.needs)
        ends = np.append(starts[1:], len(timestamps)) - 1
        self._add(kind, series, windows, measured, (timestamps[starts], timestamps[ends]))


_NO_EDGES: Final = np.empty(0, np.int64), np.empty(0, np.int64)
"""Of segments whose times are not asked for."""


def _edges(
    starts: Int64Array, rows: int, times: Int64Array | None, begin: int, step: int
) -> tuple[Int64Array, Int64Array]:
    """Give the times of the first and last row of segments, of regular rows or as listed."""
    ends = np.append(starts[1:], rows) - 1
    if times is None:
        return begin + starts * step, begin + ends * step
    return times[starts], times[ends]


def _by_kind(summary: Summary) -> Iterator[tuple[ValueKind, Summary]]:
    """Give the blocks of each value kind; they are in order of series, and so of kind."""
    if not len(summary):
        return
    kinds = summary.series >> KIND_SHIFT
    if kinds[0] == kinds[-1]:
        yield ValueKind(int(kinds[0])), summary
        return
    for kind in ValueKind:
        mine = kinds == kind
        if mine.any():
            yield kind, summary.take(mine)


def _add_sums(kind: ValueKind, summary: Summary, measured: Statistics) -> None:
    """Add sums as headers have them: a float64 and its error, or an integer of 128 bits."""
    low, high = summary.headers["sum"].copy(), summary.headers["sum_error"].copy()
    if kind is ValueKind.INT:
        measured["high"] = (high << 32) + ((low >> 32) & _MASK)
        measured["low"] = low & _MASK
        return
    measured["sum"], measured["error"] = low.view(np.float64), high.view(np.float64)
    measured["numbers"] = measured["rows"] - summary.headers["nan_count"]
