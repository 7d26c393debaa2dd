"""What can be copied from: tables, columns of any dtype, and how they become parcels."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tsengine
from tsengine import CopyError, DataPoint, Engine, GroupedBatch, Labels, SeriesBatch
from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.memory import MemoryEngine
from tsengine.errors import BatchShapeError, MissingDependencyError
from tsengine.pipeline.parcels import PointParcel, RowParcel, Trail, gather, rows_of

A, B = Labels("cpu", host="a"), Labels("cpu", host="b")
TABLE = {
    "__name__": ["cpu", "cpu", "cpu"],
    "host": ["a", "b", "a"],
    "timestamp": [3, 5, 4],
    "value": [1.5, 2.5, 3.5],
}
ROWS = [(A, 3, 1.5), (A, 4, 3.5), (B, 5, 2.5)]


@pytest.fixture
def engine() -> Iterator[Engine]:
    """Give an empty store."""
    with MemoryEngine() as opened:
        yield opened


def rows(engine: Engine) -> list[tuple[Labels, int, object]]:
    """Give all rows, by series ID, then time."""
    return [(*point,) for batch in engine.scan() for point in batch.points()]


# Tables.


@pytest.mark.parametrize(
    "form",
    [
        lambda table: table,
        lambda table: table.to_batches()[0],
        lambda table: table.to_reader(),
        lambda table: table.to_pandas(),
        lambda table: [*table.slice(0, 1).to_batches(), table.slice(1)],
        lambda table: table.set_column(1, "host", table["host"].dictionary_encode()),
        lambda table: table.set_column(2, "timestamp", table["timestamp"].cast(pa.timestamp("ns"))),
        lambda table: table.set_column(3, "value", table["value"].cast(pa.float32())),
    ],
)
def test_tables_are_copied(engine: Engine, form: Any) -> None:
    """Tables, batches, readers and frames, of plain and encoded columns, give their rows."""
    assert tsengine.copy(form(pa.table(TABLE)), engine).accepted == 3
    assert rows(engine) == ROWS


def test_times_of_any_unit_and_zone_are_the_same_moment(engine: Engine) -> None:
    """Seconds, milliseconds and a zone become nanoseconds; what is out of range is rejected."""
    for unit in ("s", "ms", "us", "ns"):
        column = pa.array([1, None, 2], pa.int64()).cast(pa.timestamp(unit, "Europe/Berlin"))
        table = pa.table({"unit": [unit] * 3, "timestamp": column, "value": [1.0, 2.0, 3.0]})
        report = tsengine.copy(table, engine, on_reject=lambda *_: None)
        assert (report.accepted, report.rejected) == (2, 1)
    factors = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
    assert rows(engine) == sorted(
        [
            (Labels(unit=unit), n * f, v)
            for unit, f in factors.items()
            for n, v in ((1, 1.0), (2, 3.0))
        ],
        key=lambda row: (row[0].id, row[1]),
    )
    far = pa.table(
        {"a": ["b"], "timestamp": pa.array([2**60]).cast(pa.timestamp("s")), "value": [1]}
    )
    with pytest.raises(CopyError, match="beyond int64"):
        tsengine.copy(far, engine)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (pa.array([1, 2, 3]), int),
        (pa.array([1, 2, 3], pa.uint8()), int),
        (pa.array([True, False, True]), bool),
        (pa.array(["x", "y", "z"]), str),
        (pa.array([b"x", b"y", b"z"]), bytes),
        (pa.array([[1], [2, 3], []]), list),
        (pa.array([{"n": 1}, {"n": 2}, {"n": 3}]), dict),
    ],
)
def test_values_of_every_kind_come_over(engine: Engine, values: Any, kind: type) -> None:
    """Integers open an integer series; all that is no number becomes objects."""
    table = pa.table({**TABLE, "value": values})
    assert tsengine.copy(table, engine).accepted == 3
    given = values.to_pylist()
    assert rows(engine) == [(A, 3, given[0]), (A, 4, given[2]), (B, 5, given[1])]
    assert {type(value) for _, _, value in rows(engine)} == {kind}


def test_rows_of_a_table_that_are_no_points_are_rejected(engine: Engine) -> None:
    """Nulls and rows without labels go to `on_reject`, each once; a null label is no label."""
    table = pa.table(
        {
            "host": ["a", None, "a", None, "a", ""],
            "job": ["x", "x", None, None, "x", "x"],
            "timestamp": [1, 2, 3, 4, None, 6],
            "value": [1.0, 2.0, None, 4.0, 5.0, 6.0],
        }
    )
    handed: list[DataPoint] = []
    report = tsengine.copy(table, engine, on_reject=lambda points, _: handed.extend(points))
    assert rows(engine) == [(Labels(host="a", job="x"), 1, 1.0), (Labels(job="x"), 2, 2.0)]
    assert (report.accepted, report.rejected) == (2, 4)
    assert [point[2] for point in handed] == [None, 4.0, 5.0, 6.0]


def test_a_result_in_a_frame_comes_back(engine: Engine) -> None:
    """What `to_pandas` gives is copied back, labels called timestamp and value among it."""
    odd = Labels("load", timestamp="t", value="v", host="a")
    engine.write([(odd, 1, 1.5), (A, 2, 2.5), (A, 3, 3.5)])
    with MemoryEngine() as other:
        tsengine.copy(engine.query().to_pandas(), other)
        tsengine.verify(engine, other)


@pytest.mark.parametrize(
    "columns",
    [
        ["host", "timestamp"],
        ["host", "value"],
        ["timestamp", "timestamp", "value"],
        ["host", "host", "timestamp", "value"],
    ],
)
def test_a_table_without_its_columns_is_refused(engine: Engine, columns: list[str]) -> None:
    """One time and one value, and each label once; else the error names the columns."""
    table = pa.table([pa.array([1])] * len(columns), names=columns)
    with pytest.raises(CopyError, match="column") as caught:
        tsengine.copy(table, engine)
    assert isinstance(caught.value.__cause__, BatchShapeError)
    assert caught.value.side == "source"


def test_without_pyarrow_the_line_that_brings_it_is_named(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that is no pandas frame is refused by an error that says what to install."""
    frame = pa.table(TABLE)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(CopyError) as caught:
        tsengine.copy(frame, engine)
    assert isinstance(caught.value.__cause__, MissingDependencyError)
    assert "pip install 'tsengine[arrow]'" in str(caught.value)


def test_a_table_in_parts_is_known_again(engine: Engine) -> None:
    """A named copy of a table goes on where it was, and a table has a size for progress."""
    table = pa.table(
        {
            "host": [str(n % 3) for n in range(90)],
            "timestamp": list(range(1, 91)),
            "value": [float(n) for n in range(90)],
        }
    )
    told: list[Any] = []
    tsengine.copy(table, engine, producer="t", points_max=7, progress=told.append)
    assert told[-1].points_total == 90
    assert tsengine.copy(table, engine, producer="t").skipped == 90


# Columns.


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        (np.array([1.5, 2.5], np.float32), [1.5, 2.5]),
        (np.array([1, 2], np.int8), [1, 2]),
        (np.array([1, 2**63 - 1], np.uint64), [1, 2**63 - 1]),
        (np.array(["x", "long"]), ["x", "long"]),
        (np.array([True, False]), [True, False]),
        (np.array([{"n": 1}, [2]], object), [{"n": 1}, [2]]),
        ([1.5, 2.5], [1.5, 2.5]),
        (pd.Series([1.5, 2.5]), [1.5, 2.5]),
    ],
)
def test_columns_of_any_dtype_become_their_kind(engine: Engine, values: Any, stored: Any) -> None:
    """What `write_series` takes, a batch may hold; alone and joined with others."""
    times: Any = np.array(["1970-01-01T00:00:01", "1970-01-01T00:00:02"], "datetime64[s]")
    other = SeriesBatch(Labels("other"), np.array([1]), np.array([1.0]))
    tsengine.copy([SeriesBatch(A, times, values)], engine)
    tsengine.copy([other, SeriesBatch(B, times, values), other], engine)
    for labels in (A, B):
        assert [value for one, _, value in rows(engine) if one is labels] == stored


def test_a_large_batch_is_cut(engine: Engine) -> None:
    """A batch of more points than one commit takes lands in pieces, series cut anywhere."""
    labels = [Labels(n=str(n)) for n in range(7)]
    batch = GroupedBatch(
        labels, np.array([0, 5, 5, 17, 18, 40, 41, 50]), np.arange(1, 51), np.arange(50.0)
    )
    assert tsengine.copy(batch, engine, points_max=8).series == 6
    with MemoryEngine() as other:
        other.write_batch(batch)
        tsengine.verify(other, engine)


@settings(max_examples=200)
@given(st.data())
def test_a_place_is_known_by_what_comes_before_it_however_it_comes(data: st.DataObject) -> None:
    """Fingerprints of points and of columns agree, at any place, in parcels of any size."""
    count = data.draw(st.integers(1, 30))
    points = [
        (data.draw(st.sampled_from([A, B])), data.draw(st.integers(1, 2**62)), float(number))
        for number in range(count)
    ]
    place = data.draw(st.integers(1, count))
    trail = Trail()
    whole = trail.fingerprint(PointParcel(list(points)), place)
    assert 0 <= whole < 2**31
    cut = data.draw(st.integers(0, place - 1))
    trail.advance(PointParcel(list(points[:cut])), cut)
    rest = [
        SeriesBatch(labels, np.array([timestamp]), np.array([value]))
        for labels, timestamp, value in points[cut:]
    ]
    (parcel,) = gather(rest)
    assert trail.fingerprint(parcel, place - cut) == whole
    after = data.draw(st.integers(0, place - cut - 1))
    trail.advance(parcel, after)
    assert trail.fingerprint(parcel.after(after), place - cut - after) == whole


@settings(max_examples=200)
@given(st.data())
def test_joining_keeps_every_row_and_its_place(data: st.DataObject) -> None:
    """Batches of several dtypes and series become columns whose positions are their order."""
    dtypes: list[Any] = [np.float64, np.int64, object]
    items: list[GroupedBatch | SeriesBatch] = []
    number = 0
    for _ in range(data.draw(st.integers(1, 8))):
        count = data.draw(st.integers(1, 4))
        dtype = data.draw(st.sampled_from(dtypes))
        times = np.arange(number, number + count)
        values = np.array([None] * count if dtype is object else times, dtype)
        number += count
        items.append(SeriesBatch(data.draw(st.sampled_from([A, B])), times, values))
    given_rows = [
        (item.labels, int(moment), item.values.dtype)
        for item in items
        if isinstance(item, SeriesBatch)
        for moment in item.timestamps
    ]
    at = 0
    for parcel in gather(items):
        assert isinstance(parcel, RowParcel)
        assert len({batch.values.dtype for batch in parcel.batches}) == len(parcel.batches)
        found = [
            (series.labels, int(moment), series.values.dtype)
            for batch in parcel.batches
            for series in batch.groups()
            for moment in series.timestamps
        ]
        positions = range(len(found)) if parcel.positions is None else parcel.positions.tolist()
        placed = dict(zip(positions, found, strict=True))
        assert [placed[place] for place in range(len(placed))] == given_rows[at : at + len(found)]
        names = [labels for batch in parcel.batches for labels in batch.labels]
        assert len(set(names)) == len(names)
        at += len(found)
    assert at == number


@given(
    bounds=st.lists(st.integers(0, 20), max_size=6),
    start=st.integers(0, 20),
    size=st.integers(1, 20),
)
def test_rows_of_a_batch_are_those_asked_for(bounds: list[int], start: int, size: int) -> None:
    """A cut anywhere keeps each row with its series."""
    offsets = np.array([0, *sorted(bounds), 20])
    labels = [Labels(n=str(n)) for n in range(len(offsets) - 1)]
    batch = GroupedBatch(labels, offsets, np.arange(20), np.arange(20.0))
    end = min(start + size, 20)
    if start >= end:
        return
    whole = [(one.labels, int(t)) for one in batch.groups() for t in one.timestamps]
    part = rows_of(batch, start, end)
    assert isinstance(part, GroupedBatch)
    assert part.offsets[-1] == end - start
    cut = [(one.labels, int(t)) for one in part.groups() for t in one.timestamps]
    assert cut == whole[start:end]


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_groups_of_a_scan_are_its_rows(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """`scan_groups` gives what `scan` gives, in its order, and arrays that are the caller's."""
    chance = np.random.default_rng(seed)
    kinds = [1.5, {"n": 1}] if seed % 3 == 0 else [1.5]
    with LmdbEngine(str(tmp_path_factory.mktemp("groups") / "store"), block_points=16) as store:
        for _ in range(chance.integers(1, 5)):
            numbers = chance.permutation(60)[: chance.integers(1, 60)].tolist()
            store.write(
                [
                    (
                        Labels(n=str(number), kind=str(number % len(kinds))),
                        int(moment),
                        kinds[number % len(kinds)],
                    )
                    for number in numbers
                    for moment in chance.integers(1, 99, 3)
                ]
            )
        if seed % 2:
            store.compact()
        store.delete('{n=~"1.*"}', 20, 60)
        bounds = (None, None) if seed % 5 else (30, 70)
        wanted = [
            (batch.labels, point.timestamp, point.value)
            for batch in store.scan(None, *bounds)
            for point in batch.points()
        ]
        found = []
        for item in list(store.scan_groups(None, *bounds)):
            for batch in item.groups() if isinstance(item, GroupedBatch) else [item]:
                found += [(batch.labels, point.timestamp, point.value) for point in batch.points()]
            assert item.timestamps.flags.writeable
            item.timestamps[:] = 1
            item.values[:] = 0
        assert found == wanted
        assert [
            (batch.labels, point.timestamp, point.value)
            for batch in store.scan(None, *bounds)
            for point in batch.points()
        ] == wanted
