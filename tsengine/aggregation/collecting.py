"""Collecting: from columns of series to the tables that an answer is worked out from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, cast

import numpy as np

from tsengine.aggregation.answering import answer
from tsengine.aggregation.asking import OF_OBJECTS, Aggregation
from tsengine.aggregation.ordered import Counters, Samples
from tsengine.aggregation.partials import Gathered, Partials, Statistics, measure
from tsengine.aggregation.windows import Cut, cut, cut_rows
from tsengine.errors import AggregationError
from tsengine.model import Int64Array, Labels, SeriesBatch, ValueArray, ValueKind
from tsengine.result import QueryResult

TOGETHER_ROWS: Final = 1 << 15
"""Rows of short series that are measured in one go: a go costs some 50 µs, whatever its size."""


class Groups:
    """Which group a series belongs to, and what the labels of groups are.

    Args:
        group_by: sorted label names; None keeps series apart.

    Attributes:
        labels: of each group, by its number.
    """

    def __init__(self, group_by: Sequence[str] | None) -> None:
        self._names = group_by
        self._numbers: dict[tuple[str, ...], int] = {}
        self.labels: list[Labels] = []

    def number(self, labels: Labels) -> int:
        """Give the number of the group of a series; where series are apart, a new one."""
        names = self._names
        if names is None:
            self.labels.append(labels)
            return len(self.labels) - 1
        # An absent label is the empty text here, which no label is.
        key = tuple([labels.get(name, "") for name in names])
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.labels)
            pairs = zip(names, key, strict=True)
            self.labels.append(Labels({name: value for name, value in pairs if value}))
        return number


class CutSeries(NamedTuple):
    """Rows of one series, cut into windows.

    Attributes:
        labels: the series.
        kind: of its values.
        values: [n], not empty.
        segments: as `cut` gives them, nobody else's.
        begin: the first timestamp.
    """

    labels: Labels
    kind: ValueKind
    values: ValueArray
    segments: Cut
    begin: int


class Collector:
    """Gathers tables of every value kind.

    Thread-safety: none.
    """

    def __init__(self) -> None:
        self._gathered: dict[ValueKind, Gathered] = {}

    @property
    def rows(self) -> int:
        """How many rows are held."""
        return sum(gathered.rows for gathered in self._gathered.values())

    def add(self, kind: ValueKind, table: Partials) -> None:
        """Add a table of rows of one kind; where kinds do not matter, of any."""
        self._gathered.setdefault(kind, Gathered()).add(table)

    def tables(self) -> dict[ValueKind, Partials]:
        """Give one folded table for each kind there is."""
        tables = {kind: gathered.table() for kind, gathered in self._gathered.items()}
        return {kind: table for kind, table in tables.items() if table is not None}


def with_edges(
    measured: Statistics,
    asked: Aggregation,
    first_at: Int64Array,
    last_at: Int64Array,
    ranks: Int64Array,
) -> Statistics:
    """Add the times of first and last rows, as far as they are asked for.

    Args:
        measured: what `measure` gave.
        asked: what is asked.
        first_at: int64[m].
        last_at: int64[m].
        ranks: int64[m], places of the series among all by series ID.
    """
    if asked.needs_begin:
        measured["begin"] = first_at
    if "first" in asked.needs:
        measured["first_at"], measured["first_rank"] = first_at, ranks
    if "last" in asked.needs:
        measured["last_at"], measured["last_rank"] = last_at, ranks
    return measured


class _Scanner:
    """Takes the batches of a scan, short ones together."""

    def __init__(self, asked: Aggregation) -> None:
        self._asked = asked
        self.groups = Groups(asked.group_by)
        self.collector = Collector()
        needs = asked.needs
        quantiles = sorted({one.quantile for one in asked.functions if "samples" in one.needs})
        self.counters = Counters() if "counter" in needs else None
        self.samples = (
            Samples(np.array(quantiles), is_apart=asked.group_by is None)
            if "samples" in needs
            else None
        )
        self._pending: list[SeriesBatch] = []
        self._pending_rows = 0
        self._places: list[tuple[int, int]] = []  # rank and group of each pending batch
        self._labels: Labels | None = None
        self._rank, self._group = -1, -1

    def add(self, batch: SeriesBatch) -> None:
        """Take the next batch."""
        if batch.labels is not self._labels:
            self._labels = batch.labels
            self._rank += 1
            self._group = self.groups.number(batch.labels)
            if batch.values.dtype == object:
                refuse_objects(self._asked, batch.labels)
        if self._pending and (
            batch.values.dtype != self._pending[0].values.dtype
            or self._pending_rows + len(batch) > TOGETHER_ROWS
        ):
            self.flush()
        self._pending.append(batch)
        self._places.append((self._rank, self._group))
        self._pending_rows += len(batch)

    def flush(self) -> None:
        """Measure what is pending."""
        batches, self._pending = self._pending, []
        places, self._places = np.array(self._places, np.int64).reshape(-1, 2), []
        self._pending_rows = 0
        if not batches:
            return
        asked = self._asked
        timestamps, values = batches[0].timestamps, batches[0].values
        if len(batches) == 1:
            starts, windows = cut(timestamps, asked.every, asked.phase)
            owners = np.zeros(len(starts), np.int64)
        else:
            timestamps = np.concatenate([batch.timestamps for batch in batches])
            values = cast("ValueArray", np.concatenate([batch.values for batch in batches]))
            offsets = np.cumsum([0, *map(len, batches)])
            starts, windows = cut_rows(timestamps, offsets, asked.every, asked.phase)
            owners = offsets.searchsorted(starts, "right") - 1
        ranks, groups = places[owners].T
        self._measure(timestamps, values, (starts, windows), ranks, groups)

    def _measure(
        self,
        timestamps: Int64Array,
        values: ValueArray,
        segments: Cut,
        ranks: Int64Array,
        groups: Int64Array,
    ) -> None:
        asked, (starts, windows) = self._asked, segments
        kind = ValueKind.INT if asked.only_counts else _KINDS[values.dtype]
        measured = measure(kind, values, starts, asked.needs)
        last_at = timestamps[np.append(starts[1:], len(timestamps)) - 1]
        with_edges(measured, asked, timestamps[starts], last_at, ranks)
        self.collector.add(kind, Partials(groups, windows, measured))
        if self.counters is None and self.samples is None:
            return
        counts = cast("Int64Array", measured["rows"])
        if kind is ValueKind.FLOAT:
            kept = ~np.isnan(values)
            if not kept.all():
                counts = np.add.reduceat(kept.astype(np.int64), starts)
                filled = counts > 0
                counts, windows, ranks, groups = (
                    column[filled] for column in (counts, windows, ranks, groups)
                )
                timestamps, values = timestamps[kept], values[kept]
        if not len(counts):
            return
        if self.counters is not None:
            self.counters.add(ranks, groups, windows, counts, timestamps, values)
        if self.samples is not None:
            self.samples.add(groups, windows, counts, values)


_KINDS: Final = {kind.dtype: kind for kind in ValueKind}


def refuse_objects(asked: Aggregation, labels: Labels) -> None:
    """Check that what is asked can be asked of objects.

    Raises:
        AggregationError: it cannot; names the functions and the series.
    """
    wrong = [one.name for one in asked.functions if one.base not in OF_OBJECTS]
    if wrong:
        raise AggregationError(
            f"{', '.join(wrong)} of objects: {labels.id} holds objects, which have count, first "
            "and last"
        )


def aggregate_series(series: CutSeries, asked: Aggregation) -> QueryResult:
    """Aggregate all rows of the only series there is; what is asked goes by no order of rows.

    As `aggregate_batches` in a third of the time, which is what a short range takes.
    """
    groups = Groups(asked.group_by)
    groups.number(series.labels)
    kind = ValueKind.INT if asked.only_counts else series.kind
    starts, windows = series.segments
    with np.errstate(all="ignore"):
        measured = measure(kind, series.values, starts, asked.needs)
        if asked.needs_begin:
            measured["begin"] = np.array([series.begin])
        table = Partials(np.zeros(len(starts), np.int64), windows, measured)
        return answer(asked, groups.labels, {kind: table})


def aggregate_batches(batches: Iterable[SeriesBatch], asked: Aggregation) -> QueryResult:
    """Aggregate the batches of a scan: series by series ID, their rows by time.

    Memory goes by groups and windows; for median and quantiles also by the rows of the open
    window, or where series are merged of all windows.

    Raises:
        AggregationError: the values cannot be aggregated as asked.
    """
    scanner = _Scanner(asked)
    with np.errstate(all="ignore"):  # inf − inf is NaN, as in C
        for batch in batches:
            scanner.add(batch)
        scanner.flush()
        ordered = [one.table() for one in (scanner.counters, scanner.samples) if one is not None]
        extra = [table for table in ordered if table is not None]
        return answer(asked, scanner.groups.labels, scanner.collector.tables(), extra)
