"""Staging: what callers give, judged and brought into columns that backends commit.

A `Staging` gathers the writes of one call or one thread. It judges every point by the
rules of the store, and gives the batches of one commit: one `GroupedBatch` per value kind,
each series once, rows sorted by time, together with the caller's position of each row so
that receipts and errors speak of what the caller gave.

The functions after it serve the other side of a commit: `merge_groups` and `receipt_of` are
most of what a simple backend needs to store what a staging gave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt

from tsengine.duplicates import DuplicatePolicy, check_policy_kind, fold
from tsengine.errors import BatchShapeError, InvalidDataError, ValueKindError
from tsengine.grouping import group_numbers, group_order, sort_by_time
from tsengine.model import (
    GroupedBatch,
    Int64Array,
    Labels,
    PointLike,
    PointRules,
    SeriesBatch,
    Value,
    ValueArray,
    ValueKind,
    WriteReceipt,
    fit_array,
    fit_value,
    kind_of_array,
    timestamp_array,
)

KindLookup: TypeAlias = Callable[[Labels], "ValueKind | None"]


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Columns staged together: row i was `base + order[i]` of what the caller gave."""

    batch: GroupedBatch
    base: int
    order: Int64Array | None

    def positions(self) -> Int64Array:
        if self.order is None:
            return np.arange(self.base, self.base + len(self.batch))
        return self.order + self.base


class Staging:
    """The points of one commit, before it.

    Args:
        rules: what makes a point valid in the store.
        policy: the store's duplicate policy.
        kind_of: the kind of a stored series, None where there is none.

    Thread-safety: none; a staging belongs to one thread.
    """

    def __init__(self, rules: PointRules, policy: DuplicatePolicy, kind_of: KindLookup) -> None:
        self._rules = rules
        self._policy = policy
        self._kind_of = kind_of
        self._kinds: dict[Labels, ValueKind] = {}
        self._batched: list[tuple[Sequence[Labels], ValueKind]] = []  # not in _kinds yet
        self._points: list[tuple[Labels, int, Value]] = []
        self._chunks: list[_Chunk] = []
        self._rows = 0

    def __len__(self) -> int:
        """Count the staged points."""
        return self._rows

    def judge(self, point: PointLike) -> tuple[Labels, int, Value]:
        """Give a point as it will be stored, or raise; stages nothing.

        Raises:
            InvalidDataError: the point is not valid in this store.
        """
        return judge_point(point, self._rules, self._policy, self._known_kind)

    def add_point(self, point: PointLike) -> None:
        """Stage one point; raises as `judge` does and then stages nothing."""
        labels, _, value = judged = self.judge(point)
        if labels not in self._kinds:
            self._kinds[labels] = _kind_of_stored(value)
        self._points.append(judged)
        self._rows += 1

    def add_points(self, points: Iterable[PointLike]) -> None:
        """Stage points of one call, all or none.

        Raises:
            InvalidDataError: of the first offender's type; `indices` names all of them.
        """
        first: InvalidDataError | None = None
        wrong: list[int] = []
        for index, point in enumerate(points):
            try:
                self.add_point(point)
            except InvalidDataError as error:
                first = first or error
                wrong.append(index)
        if first is not None:
            raise type(first)(f"points[{wrong[0]}]: {first}", indices=wrong)

    def add_batch(self, batch: GroupedBatch) -> None:
        """Stage columns of many series, all or none; the caller's arrays are not kept.

        They may be referred to until the staging is committed or discarded, which the
        public calls do before they return.

        Raises:
            BatchShapeError: labels, offsets and columns do not fit together.
            InvalidDataError: labels, timestamps or values are not valid; `indices` are rows.
        """
        self._close_chunk()
        if not batch.judged:
            check_shape(batch)
            self._rules.check_distinct_labels(batch.labels)
            self._rules.check_timestamps(batch.timestamps)
        parts = self._split_by_kind(batch)
        for part, rows in parts:
            try:
                check_policy_kind(self._policy, kind_of_column(part.values))
            except ValueKindError as error:
                error.indices = tuple(range(len(part)) if rows is None else rows.tolist())
                raise
        for part, rows in parts:
            self._batched.append((part.labels, kind_of_column(part.values)))
            part, order = sort_by_time(part)
            positions = rows if order is None else (order if rows is None else rows[order])
            self._chunks.append(_Chunk(part, self._rows, positions))
        self._rows += len(batch.timestamps)

    def batches(self) -> tuple[list[GroupedBatch], Int64Array | None]:
        """Give the batches of the commit.

        Returns:
            One batch per kind, each series once and sorted by time, and int64[n], the
            caller's position of each row, over the batches one after the other; None
            where rows stand as the caller gave them.
        """
        self._close_chunk()
        merged: list[_Chunk] = []
        for kind in ValueKind:
            chunks = [chunk for chunk in self._chunks if chunk.batch.values.dtype == kind.dtype]
            if chunks:
                merged.append(chunks[0] if len(chunks) == 1 else _merge_chunks(chunks))
        batches = [chunk.batch for chunk in merged]
        if not merged or (len(merged) == 1 and merged[0].order is None and not merged[0].base):
            return batches, None
        return batches, np.concatenate([chunk.positions() for chunk in merged])

    def _staged_kinds(self) -> dict[Labels, ValueKind]:
        """Give the kinds of the series staged so far.

        Those of batches are noted only when something follows them: mostly nothing does, and
        it would cost a tenth of a flush.
        """
        while self._batched:
            names, kind = self._batched.pop()
            self._kinds.update(dict.fromkeys(names, kind))
        return self._kinds

    def _known_kind(self, labels: Labels) -> ValueKind | None:
        known = self._staged_kinds().get(labels)
        return self._kind_of(labels) if known is None else known

    def _split_by_kind(self, batch: GroupedBatch) -> list[tuple[GroupedBatch, Int64Array | None]]:
        """Bring each series of a batch to its kind; rows are None for "all, as they stand"."""
        opens, values = kind_of_array(batch.values)
        if opens is ValueKind.FLOAT:
            # The store itself refuses a float column for a series of another kind, at commit,
            # where the answer counts; asking here as well would cost a look-up per series.
            self._check_staged_floats(batch)
            if batch.judged and values.dtype == ValueKind.FLOAT.dtype:  # no group of it is empty
                return [(batch, None)]
            _, column = fit_array(values, ValueKind.FLOAT)
            filled = _filled_groups(replace(batch, values=column))
            return [(filled, None)] if len(filled) else []
        parts: dict[ValueKind, list[tuple[Labels, Int64Array, ValueArray]]] = {}
        wrong: list[int] = []
        first: ValueKindError | None = None
        bounds = batch.offsets.tolist()
        for index, labels in enumerate(batch.labels):
            start, end = bounds[index], bounds[index + 1]
            if start == end:
                continue
            try:
                kind, column = fit_array(
                    values[start:end], self._known_kind(labels), integers=self._rules.integers
                )
            except ValueKindError as error:
                first = first or ValueKindError(f"{labels.id}: {error}")
                wrong.extend(start + row for row in error.indices)
            else:
                parts.setdefault(kind, []).append((labels, np.arange(start, end), column))
        if first is not None:
            raise ValueKindError(str(first), indices=wrong)
        split: list[tuple[GroupedBatch, Int64Array | None]] = []
        for groups in parts.values():
            rows = np.concatenate([rows for _, rows, _ in groups])
            offsets = np.cumsum([0, *(len(rows) for _, rows, _ in groups)])
            part = GroupedBatch(
                [labels for labels, _, _ in groups],
                offsets,
                batch.timestamps[rows],
                np.concatenate([column for _, _, column in groups]),
            )
            split.append((part, rows))
        return split

    def _check_staged_floats(self, batch: GroupedBatch) -> None:
        """Refuse a column of floats for series that were staged with another kind."""
        kinds = self._staged_kinds()
        wrong: list[int] = []
        first = ""
        for index, labels in enumerate(batch.labels if kinds else ()):
            kind = kinds.get(labels, ValueKind.FLOAT)
            if kind is not ValueKind.FLOAT:
                first = first or f"{labels.id} holds {kind.name.lower()}, the values are float"
                wrong.extend(range(int(batch.offsets[index]), int(batch.offsets[index + 1])))
        if wrong:
            raise ValueKindError(first, indices=wrong)

    def _close_chunk(self) -> None:
        """Bring single points staged so far into columns, so that order is kept."""
        if not self._points:
            return
        points, self._points = self._points, []
        base = self._rows - len(points)
        by_kind: dict[ValueKind, list[int]] = {}
        for index, (labels, _, _) in enumerate(points):
            by_kind.setdefault(self._kinds[labels], []).append(index)
        for kind, rows in by_kind.items():
            ranks: dict[Labels, int] = {}
            for row in rows:
                ranks.setdefault(points[row][0], len(ranks))
            order, distinct, offsets = group_order(
                np.array([ranks[points[row][0]] for row in rows], dtype=np.int64)
            )
            names = list(ranks)
            values = np.empty(len(rows), dtype=kind.dtype)
            for position, row in enumerate(rows):
                values[position] = points[row][2]
            timestamps = np.array([points[row][1] for row in rows], dtype=np.int64)
            batch, by_time = sort_by_time(
                GroupedBatch(
                    [names[rank] for rank in distinct.tolist()],
                    offsets,
                    timestamps[order],
                    values[order],
                )
            )
            arrival = np.array(rows, dtype=np.int64)[order]
            self._chunks.append(
                _Chunk(batch, base, arrival if by_time is None else arrival[by_time])
            )


def series_columns(labels: Labels, timestamps: object, values: object) -> GroupedBatch:
    """Make the batch of one series from what a caller gives.

    Raises:
        BatchShapeError: the columns do not fit together.
        TimestampError: a timestamp is none.
    """
    times = timestamp_array(timestamps)
    _, column = kind_of_array(values)
    if len(times) != len(column):
        raise BatchShapeError(
            f"{len(times)} timestamps do not fit {len(column)} values; one each is right"
        )
    # An element of an object array is judged by the rules of single values.
    return GroupedBatch([labels], np.array([0, len(times)]), times, cast("np.ndarray", column))


def judge_point(
    point: PointLike, rules: PointRules, policy: DuplicatePolicy, kind_of: KindLookup
) -> tuple[Labels, int, Value]:
    """Give a point as it will be stored.

    Raises:
        InvalidDataError: the point is not valid in a store of these rules and policy.
    """
    try:
        given_labels, moment, given = point
    except (TypeError, ValueError):
        raise InvalidDataError(f"a point is (labels, timestamp, value), not {point!r}") from None
    labels = rules.check_labels(given_labels)
    timestamp = rules.check_timestamp(moment)
    try:
        kind, value = fit_value(given, kind_of(labels), integers=rules.integers)
    except ValueKindError as error:
        raise ValueKindError(f"{labels.id}: {error}") from None
    check_policy_kind(policy, kind)
    return labels, timestamp, value


def check_kinds(batches: Sequence[GroupedBatch], kind_of: KindLookup) -> None:
    """Check that no series is given values of another kind than it holds.

    Raises:
        ValueKindError: `indices` are rows over the batches one after the other.
    """
    wrong: list[int] = []
    message = ""
    base = 0
    for batch in batches:
        kind = kind_of_column(batch.values)
        bounds = batch.offsets.tolist()
        for index, labels in enumerate(batch.labels):
            known = kind_of(labels)
            if known is not None and known is not kind:
                message = message or (
                    f"{labels.id} holds {known.name.lower()}, the values are {kind.name.lower()}"
                )
                wrong.extend(range(base + bounds[index], base + bounds[index + 1]))
        base += len(batch)
    if wrong:
        raise ValueKindError(message, indices=wrong)


def merge_groups(
    batches: Sequence[GroupedBatch],
    stored: Callable[[SeriesBatch], SeriesBatch | None],
    policy: DuplicatePolicy,
) -> dict[Labels, SeriesBatch]:
    """Merge the batches of a commit with what is stored, for backends that rewrite columns.

    It takes the memory of all that it reads and gives, and changes nothing: a backend stores
    the result at once, and lets no other commit come between.

    Args:
        batches: what `Engine._commit` was given.
        stored: gives what a series holds, all of it or at least its rows from the first to
            the last timestamp of the batch: timestamps strictly increasing, the dtype that of
            the series' kind even where no row is there; None where the series is not listed.
        policy: the store's duplicate policy.

    Returns:
        For each series of the batches what `stored` gave and its new rows as one: timestamps
        strictly increasing, arrays that nobody else refers to.

    Raises:
        ValueKindError: some series hold another kind.
        DuplicatePointError, ValueOverflowError: the policy refuses rows.
            `indices` are, for each of the three, rows over the batches one after the other.
    """
    groups = [group for batch in batches for group in batch.groups()]
    held = {group.labels: older for group in groups if (older := stored(group)) is not None}
    kinds = {labels: kind_of_column(older.values) for labels, older in held.items()}
    check_kinds(batches, kinds.get)
    merged: dict[Labels, SeriesBatch] = {}
    first: InvalidDataError | None = None
    wrong: list[int] = []
    base = 0
    for group in groups:
        before = held.get(group.labels, _no_rows(group))
        timestamps = np.concatenate([before.timestamps, group.timestamps])
        values: ValueArray = np.concatenate([before.values, group.values])
        order = np.argsort(timestamps, kind="stable")  # of equal ones the stored row stays first
        try:
            columns = fold(timestamps[order], values[order], policy)
        except InvalidDataError as error:
            first = first or type(error)(f"{group.labels.id}: {error}")
            own = order[list(error.indices)] - len(before)  # negative are the stored rows
            wrong.extend((own[own >= 0] + base).tolist())
        else:
            merged[group.labels] = SeriesBatch(group.labels, *columns)
        base += len(group)
    if first is not None:
        raise type(first)(str(first), indices=wrong)
    return merged


def in_callers_order(receipt: WriteReceipt, positions: Int64Array | None) -> WriteReceipt:
    """Translate the refused rows of a receipt to the caller's positions."""
    if not receipt.indices or positions is None:
        return receipt
    return replace(receipt, indices=tuple(sorted(positions[list(receipt.indices)].tolist())))


def receipt_of(
    submitted: int, refused_rows: Mapping[str, npt.NDArray[np.int64]], *, evicted: int = 0
) -> WriteReceipt:
    """Make the receipt of a commit from the refused rows by reason.

    Args:
        submitted: rows of the commit.
        refused_rows: int64 rows by reason, over the batches one after the other.
        evicted: stored points that a cap removed.
    """
    reasons = {reason: len(rows) for reason, rows in refused_rows.items() if len(rows)}
    refused = sum(reasons.values())
    indices = tuple(sorted(chain.from_iterable(rows.tolist() for rows in refused_rows.values())))
    return WriteReceipt(submitted, submitted - refused, refused, evicted, reasons, indices)


def check_shape(batch: GroupedBatch) -> None:
    """Check that labels, offsets and columns of a batch fit together.

    Raises:
        BatchShapeError: they do not.
    """
    offsets, timestamps, values = batch.offsets, batch.timestamps, batch.values
    if timestamps.ndim != 1 or values.ndim != 1 or offsets.ndim != 1:
        raise BatchShapeError(
            f"columns must have one dimension, not offsets {offsets.shape}, timestamps "
            f"{timestamps.shape}, values {values.shape}"
        )
    if timestamps.dtype != np.int64 or offsets.dtype != np.int64:
        raise BatchShapeError(
            f"offsets and timestamps of a GroupedBatch are int64, not {offsets.dtype} and "
            f"{timestamps.dtype}"
        )
    if len(timestamps) != len(values):
        raise BatchShapeError(
            f"{len(timestamps)} timestamps do not fit {len(values)} values; one each is right"
        )
    if len(offsets) != len(batch.labels) + 1:
        raise BatchShapeError(
            f"{len(offsets)} offsets do not fit {len(batch.labels)} series; one more is right"
        )
    if offsets[0] != 0 or offsets[-1] != len(timestamps) or (offsets[1:] < offsets[:-1]).any():
        raise BatchShapeError(
            f"offsets must ascend from 0 to {len(timestamps)}, not from {offsets[0]} to "
            f"{offsets[-1]}"
        )


def kind_of_column(values: ValueArray) -> ValueKind:
    """Give the kind that a column as it is stored holds, by its dtype.

    Raises:
        BatchShapeError: the dtype is that of no kind.
    """
    for kind in ValueKind:
        if values.dtype == kind.dtype:
            return kind
    raise BatchShapeError(f"values of dtype {values.dtype} are of no kind")


def _kind_of_stored(value: Value) -> ValueKind:
    if type(value) is float:
        return ValueKind.FLOAT
    return ValueKind.INT if type(value) is int else ValueKind.OBJECT


def _no_rows(group: SeriesBatch) -> SeriesBatch:
    return SeriesBatch(group.labels, group.timestamps[:0], group.values[:0])


def _filled_groups(batch: GroupedBatch) -> GroupedBatch:
    """Leave out series without rows: a backend is to list none that stores nothing."""
    filled = np.flatnonzero(np.diff(batch.offsets))
    if len(filled) == len(batch.labels):
        return batch
    return replace(
        batch,
        labels=[batch.labels[index] for index in filled.tolist()],
        offsets=np.append(batch.offsets[filled], len(batch)),
    )


def _merge_chunks(chunks: Sequence[_Chunk]) -> _Chunk:
    """Join chunks of one kind, in which a series may stand more than once."""
    batches = [chunk.batch for chunk in chunks]
    ranks: dict[Labels, int] = {}
    for batch in batches:
        for labels in batch.labels:
            ranks.setdefault(labels, len(ranks))
    row_ranks = [
        np.array([ranks[labels] for labels in batch.labels], np.int64)[group_numbers(batch.offsets)]
        for batch in batches
    ]
    order, distinct, offsets = group_order(np.concatenate(row_ranks))
    names = list(ranks)
    values: ValueArray = np.concatenate([batch.values for batch in batches])
    timestamps = np.concatenate([batch.timestamps for batch in batches])
    joined, by_time = sort_by_time(
        GroupedBatch(
            [names[rank] for rank in distinct.tolist()], offsets, timestamps[order], values[order]
        )
    )
    positions = np.concatenate([chunk.positions() for chunk in chunks])[order]
    return _Chunk(joined, 0, positions if by_time is None else positions[by_time])
