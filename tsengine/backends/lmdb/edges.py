"""Edges: the first or the last point of each series, of many series at once from headers.

A header tells the first and the last row of its block, so for many series the headers of all
runs are compared as columns: a microsecond a series. Where two runs have a row at that time, a
delete is about the series, or a value is an object, the series is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import lmdb
import numpy as np

from tsengine.backends.lmdb.catalogue import kind_of
from tsengine.backends.lmdb.columns import BoolArray, Columns
from tsengine.backends.lmdb.layout import BLOCKS, KIND_SHIFT
from tsengine.backends.lmdb.reading import series_batch
from tsengine.backends.lmdb.runs import Manifest, Run
from tsengine.backends.lmdb.store import Store
from tsengine.backends.lmdb.summaries import key_of
from tsengine.model import (
    INT64_MIN,
    RANGE_END_MAX,
    DataPoint,
    Int64Array,
    Labels,
    Value,
    ValueKind,
)

MANY_SERIES: Final = 64
"""Series from which headers are compared as columns: below, a seek each costs less."""

_Found: TypeAlias = "tuple[Int64Array, Int64Array, Int64Array]"
"""Distinct series, the time of the edge of each in some rows, and the bits of its value there."""


def edge_points(
    store: Store, resolve: Callable[[lmdb.Transaction], Int64Array], *, newest: bool
) -> list[DataPoint]:
    """Give the last or first point of each series that has rows, mostly from headers alone.

    Args:
        store: which store.
        resolve: gives the numbers of the series by series ID.
        newest: whether the last.

    Raises:
        CorruptionError: a block is damaged or missing.
    """
    retained_from = store.retained_from()
    with store.environment.read() as transaction:
        manifest = store.manifest_of(transaction)
        cursor = transaction.cursor(store.environment.tables[BLOCKS])
        numbers = resolve(transaction)
        reader = _EdgeReader(store, transaction, cursor, manifest, retained_from, newest=newest)
        if len(numbers) < MANY_SERIES:
            found = list(map(reader.edge, numbers.tolist()))
        else:
            found = reader.edges(numbers)
        names = store.labels_of(transaction, manifest, numbers.tolist())
    return [
        DataPoint(labels, *edge)
        for labels, edge in zip(names, found, strict=True)
        if edge is not None
    ]


class _EdgeReader:
    """Reads edges in one transaction."""

    def __init__(
        self,
        store: Store,
        transaction: lmdb.Transaction,
        cursor: lmdb.Cursor,
        manifest: Manifest,
        retained_from: int,
        *,
        newest: bool,
    ) -> None:
        self._store = store
        self._transaction = transaction
        self._cursor = cursor
        self._manifest = manifest
        self._retained_from = retained_from
        self._newest = newest

    # Of many series.

    def edges(self, numbers: Int64Array) -> list[tuple[int, Value] | None]:
        """Give the edge of each series, None for one without rows: numbers int64[k]."""
        order = numbers.argsort()
        ascending = numbers[order]
        count = len(numbers)
        moments, bits = np.zeros(count, np.int64), np.zeros(count, np.int64)
        is_known, is_open = np.zeros(count, bool), np.zeros(count, bool)
        for run in self._manifest.runs:
            for series, at, values in self._of_run(run, ascending):
                places = ascending.searchsorted(series).clip(max=count - 1)
                mine = ascending[places] == series
                places, at, values = places[mine], at[mine], values[mine]
                known = is_known[places]
                is_open[places] |= known & (at == moments[places])
                better = at > moments[places] if self._newest else at < moments[places]
                better |= ~known
                is_open[places[better & known]] = False  # no tie at the better time so far
                moments[places[better]], bits[places[better]] = at[better], values[better]
                is_known[places] = True
        is_open |= ascending >> KIND_SHIFT == ValueKind.OBJECT
        for delete in self._manifest.deletes:
            is_open |= np.isin(ascending, delete.series)
        expired = moments < self._retained_from
        if self._newest:
            is_known &= is_open | ~expired
        else:
            is_open |= expired
        return self._in_order(numbers, order, (moments, bits), is_known, is_known & is_open)

    def _in_order(
        self,
        numbers: Int64Array,
        order: Int64Array,
        found: tuple[Int64Array, Int64Array],
        is_known: BoolArray,
        is_open: BoolArray,
    ) -> list[tuple[int, Value] | None]:
        """Give what was found by ascending number in the order of `numbers`; read what is open."""
        moments, bits = found
        edges: list[tuple[int, Value] | None] = [None] * len(numbers)
        kinds = numbers[order] >> KIND_SHIFT
        for kind in (ValueKind.FLOAT, ValueKind.INT):
            mine = np.flatnonzero(is_known & ~is_open & (kinds == kind))
            values = bits[mine].view(kind.dtype).tolist()
            rows = zip(order[mine].tolist(), moments[mine].tolist(), values, strict=True)
            for place, moment, value in rows:
                edges[place] = moment, value
        for place in order[is_open].tolist():
            edges[place] = self.edge(int(numbers[place]))
        return edges

    def _of_run(self, run: Run, numbers: Int64Array) -> Iterator[_Found]:
        """Give the edges of series in a run; of a series that is in several, all of them."""
        store, cursor = self._store, self._cursor
        recent = store.reader.recent(run)
        if recent is not None:
            yield from map(self._of_columns, recent)
            return
        summary = store.summaries.of(cursor, run, numbers, INT64_MIN, RANGE_END_MAX)
        solo = summary.headers["segments"] == 1
        alone = summary if solo.all() else summary.take(solo)
        if len(alone):
            changes = alone.series[1:] != alone.series[:-1]
            edge = np.append(changes, True) if self._newest else np.append(True, changes)
            at = alone.headers["t_max" if self._newest else "t_min"][edge]
            yield alone.series[edge], at, alone.headers["last" if self._newest else "first"][edge]
        if not solo.all():
            mixed = summary.take(~solo)
            places = zip(mixed.series.tolist(), mixed.timestamps.tolist(), strict=True)
            for series, timestamp in places:
                key = key_of(run, series, timestamp)
                yield self._of_columns(store.reader.columns(cursor, key))

    def _of_columns(self, columns: Columns) -> _Found:
        rows = columns.offsets[1:] - 1 if self._newest else columns.offsets[:-1]
        values = columns.values[rows]
        is_object = values.dtype == object
        bits = np.zeros(len(rows), np.int64) if is_object else values.view(np.int64)
        return columns.series, columns.timestamps[rows], bits

    # Of one series.

    def edge(self, number: int) -> tuple[int, Value] | None:
        """Give the edge of a series; None where it has no rows."""
        store, newest = self._store, self._newest
        policy = store.options.duplicate_policy
        start, end = self._retained_from, RANGE_END_MAX
        if not any(delete.covers(number) for delete in self._manifest.deletes):
            found = [
                edge
                for run in self._manifest.runs
                if run.series_first <= number <= run.series_last
                and (edge := store.reader.edge(self._cursor, run, number, newest=newest))
                is not None
            ]
            if not found:
                return None
            edge_at = (max if newest else min)(timestamp for timestamp, _ in found)
            if edge_at >= start:
                values = [value for timestamp, value in found if timestamp == edge_at]
                if len(values) == 1 and values[0] is not None:
                    dtype = kind_of(number).dtype
                    return edge_at, np.frombuffer(values[0], dtype)[0].item()
                start, end = edge_at, edge_at + 1
            elif newest:
                return None
        piece = store.reader.read_series(
            self._transaction, self._manifest, number, start, end, policy
        )
        if piece is None:
            return None
        row = -1 if newest else 0
        batch = series_batch(Labels(), number, piece)
        return int(batch.timestamps[row]), batch.values.tolist()[row]
