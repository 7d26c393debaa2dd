"""A backend of tsengine in a dict of columns: what there is to write, and no more."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator, Sequence

from tsengine.engine import Engine, EngineStats, is_unbounded
from tsengine.model import GroupedBatch, Labels, ProducerMark, SeriesBatch, ValueKind, WriteReceipt
from tsengine.selectors import Selector
from tsengine.staging import kind_of_column, merge_groups, receipt_of


class MinimalEngine(Engine):
    """A store in memory, `minimal://`, which is gone with its engine.

    A dict of columns is never changed, only replaced: who reads one has a snapshot.
    """

    def _open(self) -> None:
        self._lock = threading.Lock()  # one writer at a time replaces _columns
        self._columns: dict[Labels, SeriesBatch] = {}
        self._written: int | None = None

    def _close(self) -> None:
        """Nothing to give back."""

    def _commit(self, batches: Sequence[GroupedBatch], mark: ProducerMark | None) -> WriteReceipt:
        with self._lock:
            columns, policy = self._columns, self.options.duplicate_policy
            merged = merge_groups(batches, lambda group: columns.get(group.labels), policy)
            self._columns, self._written = {**columns, **merged}, time.time_ns()
        return receipt_of(sum(map(len, batches)), {})

    def _kind(self, labels: Labels) -> ValueKind | None:
        column = self._columns.get(labels)
        return None if column is None else kind_of_column(column.values)

    def _series(self, selector: Selector) -> Iterator[Labels]:
        matching = filter(selector.matches, self._columns)
        return iter(sorted(matching, key=lambda labels: labels.id))

    def _scan(self, selector: Selector, start: int, end: int) -> Iterator[SeriesBatch]:
        columns = self._columns
        for labels in sorted(filter(selector.matches, columns), key=lambda labels: labels.id):
            times, values = columns[labels].timestamps, columns[labels].values
            inside = (times >= start) & (times < end)
            if inside.any():  # the copies are deep: values may be objects
                yield SeriesBatch(labels, times[inside], copy.deepcopy(values[inside]))

    def _delete(self, selector: Selector, start: int, end: int) -> int:
        with self._lock:
            columns, matching = dict(self._columns), list(self._series(selector))
            for labels in matching:
                column = columns.pop(labels)
                if not is_unbounded(start, end):  # else the series itself goes
                    times, values = column.timestamps, column.values
                    kept = (times < start) | (times >= end)
                    columns[labels] = SeriesBatch(labels, times[kept], values[kept])
            self._columns = columns
        return len(matching)

    def _stats(self) -> EngineStats:
        columns = self._columns.values()
        size = sum(column.timestamps.nbytes + column.values.nbytes for column in columns)
        return EngineStats(sum(map(len, columns)), True, len(columns), size, self._written)
