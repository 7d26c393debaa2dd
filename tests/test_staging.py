from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsengine.duplicates import DuplicatePolicy
from tsengine.errors import InvalidDataError, TimestampError, ValueKindError
from tsengine.model import (
    GroupedBatch,
    Labels,
    PointRules,
    SeriesBatch,
    ValueKind,
    WriteReceipt,
)
from tsengine.staging import Staging, check_kinds, in_callers_order, receipt_of
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


def test_receipts_are_translated_to_the_callers_order() -> None:
    """Refused rows come back as the caller's positions, ascending."""
    receipt = receipt_of(4, {"cap": np.array([0, 3]), "retention": np.array([], np.int64)})
    assert receipt == WriteReceipt(4, 2, 2, 0, {"cap": 2}, (0, 3))
    translated = in_callers_order(receipt, np.array([2, 0, 3, 1]))
    assert translated.indices == (1, 2)
    assert in_callers_order(receipt, None) is receipt
