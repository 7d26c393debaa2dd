"""Writing: from the batches of a commit to sorted, folded columns by series number."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat

import lmdb
import numpy as np

from tsengine.backends.lmdb.catalogue import NumberCache
from tsengine.backends.lmdb.columns import Columns, fold_columns
from tsengine.backends.lmdb.layout import KIND_SHIFT
from tsengine.backends.lmdb.runs import Manifest
from tsengine.backends.lmdb.store import Store
from tsengine.duplicates import DuplicatePolicy, distinct_starts
from tsengine.errors import (
    DuplicatePointError,
    InvalidDataError,
    ValueKindError,
    ValueOverflowError,
)
from tsengine.model import (
    INT64_MAX,
    INT64_MIN,
    GroupedBatch,
    Int64Array,
    Labels,
    ValueKind,
    pack_object,
)


@dataclass(slots=True)
class Prepared:
    """A commit, ready to be written.

    Attributes:
        columns: rows by kind, sorted, one per series and timestamp.
        newcomers: series to register by kind, in the order of the numbers given to them.
        refused: rows refused by retention, over the batches one after the other.
    """

    columns: dict[ValueKind, Columns] = field(default_factory=dict)
    newcomers: dict[ValueKind, list[Labels]] = field(default_factory=dict)
    refused: Int64Array = field(default_factory=lambda: np.empty(0, np.int64))


def prepare(
    store: Store,
    transaction: lmdb.Transaction,
    manifest: Manifest,
    batches: Sequence[GroupedBatch],
    retained_from: int,
) -> Prepared:
    """Judge the batches of a commit against the store; its `commit_lock` is held.

    Args:
        store: where they go.
        transaction: a read transaction of the moment of `manifest`.
        manifest: the newest; `commit_lock` is held.
        batches: at most one per kind; each series once, its rows sorted by time.
        retained_from: earlier rows are refused.

    Raises:
        ValueKindError, DuplicatePointError, ValueOverflowError: indices are rows over the
            batches one after the other.
    """
    numbered: list[_Numbered] = []
    offenders = _Offenders()
    base = 0
    first_series = next_series = store.counters.next_series
    for batch in batches:
        kind = next(kind for kind in ValueKind if batch.values.dtype == kind.dtype)
        with offenders.gathered():
            numbers, newcomers = number_series(
                store, transaction, batch.labels, batch.offsets, kind, manifest, base=base
            )
            columns, rows = _by_number(batch, numbers, kind)
            numbered.append(_Numbered(kind, columns, rows, newcomers, base))
        base += len(batch)
    offenders.raise_any()
    prepared = Prepared()
    refused = [prepared.refused]
    for one in numbered:
        columns, rows, newcomers = one.columns, one.rows, one.newcomers
        if retained_from > INT64_MIN and len(columns) and columns.timestamps.min() < retained_from:
            kept = columns.timestamps >= retained_from
            rows = np.arange(len(columns)) if rows is None else rows
            refused.append(one.base + rows[~kept])
            columns, rows = columns.keep(kept), rows[kept]
        shift = one.kind << KIND_SHIFT
        newcomers, columns = _renumber(
            newcomers, columns, first_series + shift, next_series + shift
        )
        if len(columns):
            with offenders.gathered():
                _enforce(store, transaction, manifest, columns, rows, one.base)
                folded = fold_columns(columns, store.options.duplicate_policy)
                prepared.columns[one.kind] = folded
                prepared.newcomers[one.kind] = newcomers
            next_series += len(newcomers)
    offenders.raise_any()
    prepared.refused = np.concatenate(refused)
    return prepared


@dataclass(frozen=True, slots=True)
class _Numbered:
    """A batch whose series have numbers; those of new ones count from the same first number."""

    kind: ValueKind
    columns: Columns
    rows: Int64Array | None
    newcomers: list[Labels]
    base: int


class _Offenders:
    """Gathers what is wrong with the batches of a commit, so that one error names all rows."""

    def __init__(self) -> None:
        self._first: InvalidDataError | None = None
        self._indices: list[int] = []

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        try:
            yield
        except InvalidDataError as error:
            self._first = self._first or error
            self._indices += error.indices

    def raise_any(self) -> None:
        if self._first is not None:
            self._first.indices = tuple(sorted(self._indices))
            raise self._first


def number_series(
    store: Store,
    transaction: lmdb.Transaction,
    labels: Sequence[Labels],
    offsets: Int64Array,
    kind: ValueKind,
    manifest: Manifest,
    *,
    base: int = 0,
) -> tuple[Int64Array, list[Labels]]:
    """Give each series of a batch its number: int64[k], and the labels of new ones.

    New ones have the next numbers of the store, in the order in which they stand.

    Args:
        store: where they go; its `commit_lock` is held.
        transaction: a read transaction of the moment of `manifest`.
        labels: k series.
        offsets: int64[k + 1], where the rows of each begin.
        kind: value kind of all rows.
        manifest: the newest.
        base: rows of batches before this one.

    Raises:
        ValueKindError: some hold another kind; indices are their rows, behind the base.
    """
    first_series, listed = store.counters.next_series, manifest.state.series
    cache: NumberCache = store.numbers()
    known = map(cache.numbers.get, labels, repeat(0))
    numbers = np.fromiter(known, np.int64, len(labels))
    newcomers: list[Labels] = []
    next_number = first_series + (kind << KIND_SHIFT)
    unknown = np.flatnonzero(numbers == 0)
    if len(unknown) and len(cache.numbers) == listed:
        # The cache holds every series of the store: what it does not hold is new.
        newcomers = [labels[index] for index in unknown.tolist()]
        numbers[unknown] = np.arange(next_number, next_number + len(unknown))
        unknown = unknown[:0]
    for index in unknown.tolist():
        number = store.catalogue.look_up(transaction, labels[index], cache)
        if number is None:
            number = next_number + len(newcomers)
            newcomers.append(labels[index])
        numbers[index] = number
    wrong = np.flatnonzero(numbers >> KIND_SHIFT != kind)
    if len(wrong):
        other = ValueKind(int(numbers[wrong[0]]) >> KIND_SHIFT)
        bounds = offsets.tolist()
        raise ValueKindError(
            f"{labels[wrong[0]].id} holds {other.name.lower()}, the values are {kind.name.lower()}",
            indices=[
                base + row
                for index in wrong.tolist()
                for row in range(bounds[index], bounds[index + 1])
            ],
        )
    return numbers, newcomers


def _by_number(
    batch: GroupedBatch, numbers: Int64Array, kind: ValueKind
) -> tuple[Columns, Int64Array | None]:
    """Sort a batch by series number; gives the row of the batch that each row was, or None."""
    timestamps, values, offsets = batch.timestamps, batch.values, batch.offsets
    if kind is ValueKind.OBJECT:
        packed = np.empty(len(values), dtype=object)
        packed[:] = [pack_object(value) for value in values.tolist()]
        values = packed
    filled = offsets[1:] > offsets[:-1]
    if not filled.all():
        numbers, offsets = numbers[filled], np.append(offsets[:-1][filled], offsets[-1])
    if (numbers[1:] > numbers[:-1]).all():
        return Columns(numbers, offsets, timestamps, values), None
    # Series mostly come in the order in which they were made, and stable sorting uses that.
    order = numbers.argsort(kind="stable")
    if len(order) == len(timestamps):  # a row each, as in a flush over very many series
        return Columns(numbers[order], offsets, timestamps[order], values[order]), order
    counts = np.diff(offsets)[order]
    ordered = np.zeros(len(order) + 1, np.int64)
    np.cumsum(counts, out=ordered[1:])
    rows = np.repeat(offsets[:-1][order] - ordered[:-1], counts) + np.arange(len(timestamps))
    return Columns(numbers[order], ordered, timestamps[rows], values[rows]), rows


def _renumber(
    newcomers: list[Labels], columns: Columns, provisional: int, first: int
) -> tuple[list[Labels], Columns]:
    """Give new series their numbers from `first`, leaving out those that lost all rows."""
    if not newcomers:
        return newcomers, columns
    fresh = columns.series >= provisional
    kept = columns.series[fresh] - provisional
    if len(kept) == len(newcomers) and first == provisional:
        return newcomers, columns
    series = columns.series.copy()
    series[fresh] = first + np.arange(len(kept))
    return (
        [newcomers[place] for place in kept.tolist()],
        Columns(series, columns.offsets, columns.timestamps, columns.values),
    )


def _enforce(
    store: Store,
    transaction: lmdb.Transaction,
    manifest: Manifest,
    columns: Columns,
    rows: Int64Array | None,
    base: int,
) -> None:
    """Enforce the policies that look at what is stored: `error`, and `sum` of integers."""
    policy = store.options.duplicate_policy
    sums = policy is DuplicatePolicy.SUM and columns.values.dtype == np.int64
    if policy is not DuplicatePolicy.ERROR and not sums:
        return
    stored = store.reader.read_many(
        transaction,
        manifest,
        columns.series,
        int(columns.timestamps.min()),
        int(columns.timestamps.max()) + 1,
        policy,
    )
    before = stored[0] if stored else columns.rows(0, 0)  # of one kind, and never too many
    rows = np.arange(len(columns)) if rows is None else rows
    series = np.concatenate([before.row_series(), columns.row_series()])
    timestamps = np.concatenate([before.timestamps, columns.timestamps])
    order = np.lexsort((timestamps, series))
    starts = distinct_starts(timestamps[order], series[order])
    if starts is None:
        return
    places = np.concatenate([np.full(len(before), -1), base + rows])[order]
    if not sums:
        repeated = np.ones(len(order), bool)
        repeated[starts] = False
        offenders = np.sort(places[repeated])
        raise DuplicatePointError(
            f"{len(offenders)} points repeat a series and timestamp, which "
            "duplicate_policy='error' refuses",
            indices=offenders.tolist(),
        )
    values = np.concatenate([before.values, columns.values])[order]
    _check_sums(values, starts, places)


def _check_sums(values: Int64Array, starts: Int64Array, places: Int64Array) -> None:
    ends = np.append(starts[1:], len(values))
    # A float64 sum within half the range proves that the exact one is within it.
    rough = np.add.reduceat(np.abs(values.astype(np.float64)), starts)
    wrong: list[int] = []
    message = ""
    for key in np.flatnonzero(rough >= 2.0**62).tolist():
        mine = slice(int(starts[key]), int(ends[key]))
        total = sum(values[mine].tolist())
        if not INT64_MIN <= total <= INT64_MAX:
            message = message or f"the sum {total} does not fit int64"
            wrong += [place for place in places[mine].tolist() if place >= 0]
    if wrong:
        raise ValueOverflowError(message, indices=sorted(wrong))
