from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tsengine.buffering.arrivals
from tsengine.buffering.arrivals import (
    Awaited,
    Columns,
    Departure,
    depart,
    kind_of_stored,
    points_of,
    series_of,
)
from tsengine.model import DataPoint, Int64Array, Labels, Value, ValueArray, ValueKind

SERIES = {
    ValueKind.FLOAT: [Labels("floats", number=str(number)) for number in range(3)],
    ValueKind.INT: [Labels("ints", number=str(number)) for number in range(3)],
    ValueKind.OBJECT: [Labels("objects", number=str(number)) for number in range(3)],
}
VALUES: dict[ValueKind, list[Value]] = {
    ValueKind.FLOAT: [0.5, -1.5],
    ValueKind.INT: [1, -(2**63)],
    ValueKind.OBJECT: ["a", True, b"b", [1, 2], {"c": [3]}],
}

points_of_kind = st.sampled_from(list(ValueKind)).flatmap(
    lambda kind: st.tuples(
        st.just(kind),
        st.lists(
            st.builds(
                DataPoint,
                st.sampled_from(SERIES[kind]),
                st.integers(1, 2**63 - 1),
                st.sampled_from(VALUES[kind]),
            ),
            min_size=1,
            max_size=6,
        ),
    )
)
calls = st.lists(st.tuples(st.booleans(), points_of_kind), max_size=12)


def columns_of(kind: ValueKind, points: list[DataPoint]) -> Columns:
    """Points as columns; without labels for each where they are of one series."""
    times: Int64Array = np.array([point.timestamp for point in points], np.int64)
    values: ValueArray = np.fromiter((point.value for point in points), kind.dtype)
    labels = tuple(point.labels for point in points)
    return Columns(kind, labels if len(set(labels)) > 1 else None, times, values)


def entries_of(
    calls: list[tuple[bool, tuple[ValueKind, list[DataPoint]]]], points_max: int
) -> tuple[list[object], list[DataPoint]]:
    """The calls as entries, single ones or columns, and their points."""
    entries: list[object] = []
    points: list[DataPoint] = []
    for at_once, (kind, some) in calls:
        points += some
        if at_once:
            entries += columns_of(kind, some).entries(some[0].labels, points_max)
        else:
            for point in some:
                entries += point
    return entries, points


def rows_of(departure: Departure) -> list[DataPoint]:
    """The rows over the batches one after the other."""
    return [
        point
        for batch in departure.batches
        for series in batch.groups()
        for point in series.points()
    ]


@pytest.mark.parametrize("ranks_max", [tsengine.buffering.arrivals._RANKS_MAX, 0])
@given(calls, st.integers(1, 20))
def test_what_departs_is_what_arrived_first(
    ranks_max: int, calls: list[tuple[bool, tuple[ValueKind, list[DataPoint]]]], points_max: int
) -> None:
    """The oldest points depart, at most `points_max`, one batch a kind, grouped by series.

    Each series' points are in order of arrival, and `positions` say which each row was. It is
    so too where labels lie too far apart in memory for their addresses to be ranks.
    """
    entries, points = entries_of(calls, points_max)
    given = entries[:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tsengine.buffering.arrivals, "_RANKS_MAX", ranks_max)
        departure = depart(entries, points_max)
    assert len(entries) == len(given)
    assert all(one is other for one, other in zip(entries, given, strict=True))
    if departure is None:
        assert not points
        return
    assert 0 < departure.points <= points_max
    assert departure.points == len(points_of(entries[: 3 * departure.entries]))
    rows = rows_of(departure)
    assert [points[position] for position in departure.positions.tolist()] == rows
    assert sorted(departure.positions.tolist()) == list(range(departure.points))
    starts = accumulate((len(batch) for batch in departure.batches), initial=0)
    for start, batch in zip(starts, departure.batches, strict=False):
        assert len(set(batch.labels)) == len(batch.labels) == len(batch.offsets) - 1
        assert (np.diff(batch.offsets) > 0).all()
        for first, last in zip(batch.offsets[:-1], batch.offsets[1:], strict=True):
            assert (np.diff(departure.positions[start + first : start + last]) > 0).all()
    assert len({batch.values.dtype for batch in departure.batches}) == len(departure.batches)
    # As many whole entries as fit.
    rest = entries[3 * departure.entries :]
    if rest:
        assert departure.points + len(points_of(rest[:3])) > points_max


@given(calls, st.integers(1, 20))
def test_entries_give_back_their_points(
    calls: list[tuple[bool, tuple[ValueKind, list[DataPoint]]]], points_max: int
) -> None:
    """Entries, single ones and columns, tell their points, how many, and of which series."""
    entries, points = entries_of(calls, points_max)
    found = points_of(entries)
    assert found == points
    assert [type(point.value) for point in found] == [type(point.value) for point in points]
    assert len(points_of(entries)) == len(points)
    assert series_of(entries) == {point.labels for point in points}


@given(st.integers(1, 30), st.data())
def test_a_part_of_a_departure_is_a_departure(points_max: int, data: st.DataObject) -> None:
    """Chosen rows alone are grouped as all are, and come back as points by arrival."""
    entries, points = entries_of(data.draw(calls), points_max)
    departure = depart(entries, points_max)
    if departure is None:
        return
    rows = rows_of(departure)
    chosen = sorted(data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=1)))
    batches = departure.part(np.array(chosen))
    found = [point for batch in batches for one in batch.groups() for point in one.points()]
    assert found == [rows[row] for row in chosen]
    assert len({batch.values.dtype for batch in batches}) == len(batches)
    for batch in batches:
        assert len(set(batch.labels)) == len(batch.labels) == len(batch.offsets) - 1
        assert batch.judged
    arrived = sorted(departure.positions[chosen].tolist())
    assert departure.points_of(np.array(chosen)) == [points[place] for place in arrived]


@given(st.lists(points_of_kind, max_size=12), st.data())
def test_awaited_points_depart_like_others(
    some: list[tuple[ValueKind, list[DataPoint]]], data: st.DataObject
) -> None:
    """Points whose fate is waited for depart in their place, and are named by arrival."""
    entries: list[object] = []
    plain: list[object] = []
    awaited: list[tuple[int, object]] = []
    arrived = 0
    for kind, points in some:
        if data.draw(st.booleans()):
            columns = columns_of(kind, points).entries(points[0].labels, 20)
            entries += columns
            plain += columns
            arrived += len(points)
            continue
        for labels, timestamp, value in points:
            plain += (labels, timestamp, value)
            if data.draw(st.booleans()):
                waiter = object()
                awaited.append((arrived, waiter))
                entries += (labels, timestamp, Awaited(value, waiter, lambda told: None))
            else:
                entries += (labels, timestamp, value)
            arrived += 1
    points_max = data.draw(st.integers(20, 40))
    departure, expected = depart(entries, points_max), depart(plain, points_max)
    assert points_of(entries) == points_of(plain)
    assert len(points_of(entries)) == len(points_of(plain))
    if departure is None or expected is None:
        assert departure is expected
        return
    assert rows_of(departure) == rows_of(expected)
    assert departure.entries == expected.entries
    assert departure.positions.tolist() == expected.positions.tolist()
    assert [(place, value.waiter) for place, value in departure.awaited] == [
        (place, waiter) for place, waiter in awaited if place < departure.points
    ]


def test_only_stored_forms_have_a_kind() -> None:
    """Values as they are stored tell their kind; others raise rather than be guessed."""
    for kind, values in VALUES.items():
        assert {kind_of_stored(value) for value in values} == {kind}
    for value in (None, np.float64(1.0), (1, 2), 1j):
        with pytest.raises(TypeError, match="stored form"):
            kind_of_stored(value)  # type: ignore[arg-type]  # what it must refuse
