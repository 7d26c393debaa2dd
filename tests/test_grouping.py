from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tsengine.grouping import group_numbers, group_order, sort_by_time, take_rows
from tsengine.model import GroupedBatch, Labels

NAMES = [Labels("series", number=str(number)) for number in range(6)]

groups_of_rows = st.lists(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 99)), max_size=6), min_size=1, max_size=6
)


def batch_of(groups: list[list[tuple[int, int]]]) -> GroupedBatch:
    """Give groups of (timestamp, value) as a batch."""
    rows = [row for group in groups for row in group]
    return GroupedBatch(
        NAMES[: len(groups)],
        np.cumsum([0, *map(len, groups)]),
        np.array([moment for moment, _ in rows], np.int64),
        np.array([value for _, value in rows], np.float64),
    )


def groups_of(batch: GroupedBatch) -> dict[Labels, list[tuple[int, float]]]:
    """Give the rows of each series of a batch."""
    return {
        group.labels: list(zip(group.timestamps.tolist(), group.values.tolist(), strict=True))
        for group in batch.groups()
    }


@given(ranks=st.lists(st.one_of(st.integers(0, 4), st.integers(0, 2**31 - 1)), max_size=30))
def test_grouping_sorts_rows_stable(ranks: list[int]) -> None:
    """group_order is Python's stable sort; distinct ranks ascend, offsets bound their rows."""
    order, distinct, offsets = group_order(np.array(ranks, np.int64))
    assert order.tolist() == sorted(range(len(ranks)), key=ranks.__getitem__)
    assert distinct.tolist() == sorted(set(ranks))
    assert np.diff(offsets).tolist() == [ranks.count(rank) for rank in sorted(set(ranks))]
    assert offsets[0] == 0
    assert offsets.dtype == np.int64


@given(groups=groups_of_rows)
def test_rows_know_their_group(groups: list[list[tuple[int, int]]]) -> None:
    """group_numbers repeats each group's number once per row, empty groups included."""
    expected = [number for number, group in enumerate(groups) for _ in group]
    assert group_numbers(batch_of(groups).offsets).tolist() == expected


@given(groups=groups_of_rows)
def test_sorting_by_time_is_stable_within_series(groups: list[list[tuple[int, int]]]) -> None:
    """Each series is sorted on its own, equal times keep their order, positions lead back."""
    batch = batch_of(groups)
    found, order = sort_by_time(batch)
    expected = [sorted(group, key=lambda row: row[0]) for group in groups]
    assert list(groups_of(found).values()) == expected
    if order is None:
        assert found is batch
        assert expected == groups
    else:
        assert batch.timestamps[order].tolist() == found.timestamps.tolist()
        assert batch.values[order].tolist() == found.values.tolist()
        assert sorted(order.tolist()) == list(range(len(batch)))


@given(groups=groups_of_rows, data=st.data())
def test_rows_are_taken_and_empty_series_dropped(
    groups: list[list[tuple[int, int]]], data: st.DataObject
) -> None:
    """take_rows keeps what is asked for, in order; a series without rows goes."""
    batch = batch_of(groups)
    keep = data.draw(st.lists(st.booleans(), min_size=len(batch), max_size=len(batch)))
    found = take_rows(batch, np.array(keep, bool))
    left = iter(keep)
    expected = [[row for row in group if next(left)] for group in groups]
    assert groups_of(found) == {
        name: [(moment, float(value)) for moment, value in group]
        for name, group in zip(NAMES, expected, strict=False)
        if group
    }
