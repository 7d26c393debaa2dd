from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsengine.duplicates import DuplicatePolicy
from tsengine.errors import (
    DuplicatePointError,
    InvalidDataError,
    TimestampError,
    ValueKindError,
    ValueOverflowError,
)
from tsengine.model import (
    INT64_MAX,
    GroupedBatch,
    Labels,
    PointRules,
    SeriesBatch,
    ValueKind,
    WriteReceipt,
)
from tsengine.staging import Staging, check_kinds, in_callers_order, merge_groups, receipt_of
from tsengine.testing import Column, agrees
from tsengine.testing.operations import grouped
from tsengine.testing.strategies import Point, array_of, columns, points

SERIES: Sequence[tuple[Labels, ValueKind]] = [
    (Labels("cpu", host="a"), ValueKind.FLOAT),
    (Labels("cpu", host="b"), ValueKind.FLOAT),
    (Labels("requests"), ValueKind.INT),
    (Labels("event"), ValueKind.OBJECT),
]
A = SERIES[0][0]


def new_staging(policy: DuplicatePolicy = DuplicatePolicy.LAST) -> Staging:
    """Make a staging of a store without series."""
    return Staging(PointRules(integers=ValueKind.INT), policy, lambda _: None)


def rows_of(column: Column) -> list[Point]:
    """Give the rows of a column as points."""
    return [
        (column.labels, moment, value)
        for moment, value in zip(column.timestamps, column.values, strict=True)
    ]


@given(parts=st.lists(st.one_of(points(SERIES), columns(SERIES)), max_size=5))
def test_batches_hold_what_was_staged(parts: list[list[Point | Column]]) -> None:
    """Points and batches by turns: every row once, by kind and series, with its position."""
    staging = new_staging()
    staged: list[Point] = []
    for part in parts:
        given_columns = [item for item in part if isinstance(item, Column)]
        if given_columns:
            staging.add_batch(grouped(given_columns))
            staged += [row for column in given_columns for row in rows_of(column)]
        for item in part:
            if not isinstance(item, Column):
                staging.add_point(item)
                staged.append(item)
    assert len(staging) == len(staged)
    batches, positions = staging.batches()
    order = np.arange(len(staged)) if positions is None else positions
    assert sorted(order.tolist()) == list(range(len(staged)))
    kinds = [batch.values.dtype for batch in batches]
    assert len(kinds) == len(set(kinds))
    rows = iter(order.tolist())
    for batch in batches:
        assert len(set(batch.labels)) == len(batch.labels)
        for group in batch.groups():
            assert len(group) > 0
            mine = []
            for moment, value in zip(group.timestamps.tolist(), group.values.tolist(), strict=True):
                position = next(rows)
                mine.append((moment, position))
                labels, given_moment, given_value = staged[position]
                assert (labels, given_moment) == (group.labels, moment)
                assert agrees(given_value, value)
            assert mine == sorted(mine)  # by time, equal times in order of staging


@given(given_columns=columns(SERIES))
def test_a_batch_is_staged_as_its_points_would_be(given_columns: list[Column]) -> None:
    """add_batch and add_points of the same rows give the same columns."""
    by_batch, by_point = new_staging(), new_staging()
    by_batch.add_batch(grouped(given_columns))
    by_point.add_points(row for column in given_columns for row in rows_of(column))
    found = {g.labels: (g.timestamps.tolist(), g.values.tobytes()) for g in all_groups(by_batch)}
    wanted = {g.labels: (g.timestamps.tolist(), g.values.tobytes()) for g in all_groups(by_point)}
    if given_columns[0].opens is not None:  # bytes of objects are addresses
        assert found == wanted
    assert found.keys() == wanted.keys()
    assert array_of(given_columns[0]).ndim == 1


def all_groups(staging: Staging) -> list[SeriesBatch]:
    """Give all series of all batches."""
    return [group for batch in staging.batches()[0] for group in batch.groups()]


def test_add_points_is_all_or_none_by_index() -> None:
    """All offenders of a call are named, with the first one's type and place."""
    with pytest.raises(ValueKindError, match=r"points\[1\]") as caught:
        new_staging().add_points([(A, 1, 1.0), (A, 1, "x"), (A, 0, 1.0), (A, 2, 2.0)])
    assert caught.value.indices == (1, 2)


def test_a_refused_batch_leaves_no_trace() -> None:
    """A batch that is refused half way stages no row and fixes no kind."""
    staging = new_staging(DuplicatePolicy.SUM)
    values = np.array([1.5, "x"], dtype=object)
    other = SERIES[1][0]
    with pytest.raises(ValueKindError) as caught:
        staging.add_batch(GroupedBatch([A, other], np.array([0, 1, 2]), np.array([1, 1]), values))
    assert caught.value.indices == (1,)
    assert len(staging) == 0
    assert staging.batches() == ([], None)
    staging.add_point((other, 1, 1.0))
    with pytest.raises(TimestampError):
        staging.add_point((A, 0, 1.0))
    with pytest.raises(InvalidDataError):
        staging.add_point(5)  # type: ignore[arg-type]  # bad input
    assert len(staging) == 1


def test_kinds_are_checked_over_batches() -> None:
    """check_kinds names the rows of each series that holds another kind, over all batches."""
    kinds = {SERIES[0][0]: ValueKind.INT, SERIES[3][0]: ValueKind.OBJECT}
    floats = GroupedBatch(
        [SERIES[1][0], A], np.array([0, 1, 3]), np.array([1, 1, 2]), np.array([1.0, 2.0, 3.0])
    )
    integers = GroupedBatch([SERIES[3][0]], np.array([0, 1]), np.array([1]), np.array([1]))
    with pytest.raises(ValueKindError, match="holds int") as caught:
        check_kinds([floats, integers], lambda labels: kinds.get(labels))
    assert caught.value.indices == (1, 2, 3)
    check_kinds([floats], lambda _: None)


def batch_of(*series: SeriesBatch) -> GroupedBatch:
    """Put columns of one kind behind one another."""
    return GroupedBatch(
        [one.labels for one in series],
        np.cumsum([0, *map(len, series)]),
        np.concatenate([one.timestamps for one in series]),
        np.concatenate([one.values for one in series]),
    )


def column_of(labels: Labels, timestamps: list[int], values: Sequence[float]) -> SeriesBatch:
    """Make columns of one series; all integers give an int column."""
    return SeriesBatch(labels, np.array(timestamps, np.int64), np.array(values))


B, INTS = SERIES[1][0], SERIES[2][0]
STORED = {
    A: column_of(A, [1, 3, 5], [1.0, 3.0, 5.0]),
    INTS: column_of(INTS, [1, 3], [INT64_MAX, 3]),
}


def stored_columns(group: SeriesBatch) -> SeriesBatch | None:
    """Give what a store of two series holds."""
    return STORED.get(group.labels)


@pytest.mark.parametrize("whole", [True, False])
def test_groups_are_merged_with_what_is_stored(whole: bool) -> None:
    """Stored rows are the older ones; what the store reads beyond the range stays as it is."""

    def stored(group: SeriesBatch) -> SeriesBatch | None:
        held = STORED.get(group.labels)
        if whole or held is None:
            return held
        first, last = group.timestamps[0], group.timestamps[-1]
        inside = (held.timestamps >= first) & (held.timestamps <= last)
        return SeriesBatch(held.labels, held.timestamps[inside], held.values[inside])

    floats = batch_of(column_of(A, [3, 4, 4], [30.0, 1.0, 2.0]), column_of(B, [9], [9.0]))
    integers = batch_of(column_of(INTS, [3], [30]))
    merged = merge_groups([floats, integers], stored, DuplicatePolicy.SUM)
    found = {
        labels: list(zip(rows.timestamps.tolist(), rows.values.tolist(), strict=True))
        for labels, rows in merged.items()
    }
    assert found == {
        A: [(1, 1.0), (3, 33.0), (4, 3.0), (5, 5.0)] if whole else [(3, 33.0), (4, 3.0)],
        B: [(9, 9.0)],
        INTS: [(1, INT64_MAX), (3, 33)] if whole else [(3, 33)],
    }


def test_merged_columns_are_nobody_elses() -> None:
    """Neither the caller's arrays nor the stored ones are in the result."""
    batch = batch_of(column_of(A, [7], [7.0]), column_of(B, [9], [9.0]))
    merged = merge_groups([batch], stored_columns, DuplicatePolicy.LAST)
    assert merged.keys() == {A, B}
    for mine in merged.values():
        for other in (batch, STORED[A]):
            assert not np.shares_memory(mine.timestamps, other.timestamps)
            assert not np.shares_memory(mine.values, other.values)


@pytest.mark.parametrize(
    ("policy", "error", "indices"),
    [
        (DuplicatePolicy.ERROR, DuplicatePointError, (1, 4, 5, 6)),
        (DuplicatePolicy.SUM, ValueOverflowError, (5,)),
    ],
)
def test_refused_rows_are_named_over_all_series(
    policy: DuplicatePolicy, error: type[InvalidDataError], indices: tuple[int, ...]
) -> None:
    """All offenders are named, over the batches one after the other, stored rows never."""
    floats = batch_of(column_of(A, [2, 3, 4], [0.0, 0.0, 0.0]), column_of(B, [9, 9], [0.0, 0.0]))
    integers = batch_of(column_of(INTS, [1, 3], [1, 1]))
    with pytest.raises(error) as caught:
        merge_groups([floats, integers], stored_columns, policy)
    assert caught.value.indices == indices


def test_other_kinds_are_refused_before_policies() -> None:
    """Values of another kind than a series holds are named, listed without rows or not."""
    empty = SeriesBatch(B, np.array([], np.int64), np.array([], np.int64))
    floats = batch_of(column_of(A, [1], [1.0]), column_of(B, [1, 2], [1.0, 2.0]))
    with pytest.raises(ValueKindError, match="holds int") as caught:
        merge_groups(
            [floats],
            lambda group: empty if group.labels == B else stored_columns(group),
            DuplicatePolicy.ERROR,
        )
    assert caught.value.indices == (1, 2)


def test_receipts_are_translated_to_the_callers_order() -> None:
    """Refused rows come back as the caller's positions, ascending."""
    receipt = receipt_of(4, {"cap": np.array([0, 3]), "retention": np.array([], np.int64)})
    assert receipt == WriteReceipt(4, 2, 2, 0, {"cap": 2}, (0, 3))
    translated = in_callers_order(receipt, np.array([2, 0, 3, 1]))
    assert translated.indices == (1, 2)
    assert in_callers_order(receipt, None) is receipt
