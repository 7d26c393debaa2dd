"""Tables of other libraries, written: what the kit cannot know without them."""

from __future__ import annotations

import asyncio
import datetime as dt
import pickle
import tracemalloc
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tsengine
from tsengine import Labels, PartialWriteError, TimestampError, WriteReceipt, aio
from tsengine.backends.memory import MemoryEngine
from tsengine.errors import (
    BatchShapeError,
    InvalidDataError,
    LabelsError,
    UnknownOptionError,
    ValueKindError,
)
from tsengine.model import GroupedBatch, ProducerMark, ValueKind
from tsengine.tables.rows import _numbered
from tsengine.testing.compare import assert_rows, rows_of
from tsengine.testing.strategies import SPECIAL_FLOATS

_T = 1_700_000_000_000_000_000


@pytest.fixture
def engine() -> Iterator[MemoryEngine]:
    """Give an empty store."""
    with MemoryEngine() as opened:
        yield opened


def rows(engine: tsengine.Engine) -> dict[str, list[tuple[int, object]]]:
    """Give all rows by series ID."""
    return {labels.id: found for labels, found in rows_of(engine.query()).items()}


@given(data=st.data())
def test_copy_and_write_table_agree(data: st.DataObject) -> None:
    """A long table comes to the same points by either way, whatever library holds it."""
    count = data.draw(st.integers(1, 6))
    columns = {
        "__name__": data.draw(_column(st.sampled_from(["cpu", "memory"]), count)),
        "host": data.draw(_column(st.sampled_from(["a", "b", None]), count)),
        "timestamp": data.draw(_column(st.integers(1, 5), count)),
        "value": data.draw(_column(st.sampled_from(SPECIAL_FLOATS), count)),
    }
    table = pa.table(columns)
    for given_table in (table, pl.from_arrow(table), table.to_pandas(), table.to_reader(2)):
        written, copied = MemoryEngine(), MemoryEngine()
        with written, copied:
            reread = table.to_reader(2) if hasattr(given_table, "read_next_batch") else given_table
            assert written.write_table(given_table).accepted == count
            tsengine.copy(reread, copied)
            assert_rows(rows_of(written.query()), rows_of(copied.query()))


def _column(values: st.SearchStrategy[Any], count: int) -> st.SearchStrategy[list[Any]]:
    return st.lists(values, min_size=count, max_size=count)


@given(numbers=st.lists(st.integers(0, 3_000), max_size=20))
def test_numbers_far_and_near_are_told_alike(numbers: list[int]) -> None:
    """Series are numbered by sorting or by looking up, with one outcome."""
    distinct, places = _numbered(np.array(numbers, np.int64))
    assert distinct.tolist() == sorted(set(numbers))
    assert [distinct[place] for place in places] == numbers


@pytest.mark.parametrize("layout", ["columns", "rows", "parts"])
def test_a_frame_of_any_layout_is_the_same(engine: MemoryEngine, layout: str) -> None:
    """A pandas frame is one matrix, either way round, or many arrays."""
    matrix = np.arange(1200.0).reshape(600, 2)
    index = pd.DatetimeIndex(_T + np.arange(600), name="when")
    if layout == "rows":
        frame = pd.DataFrame(matrix, index=index, columns=["a", "b"])
    else:
        frame = pd.DataFrame({"a": matrix[:, 0].copy(), "b": matrix[:, 1].copy()}, index=index)
    if layout == "columns":
        frame = frame.copy()
    assert engine.write_table(frame, time="when") == WriteReceipt(1200, 1200)
    with MemoryEngine() as other:
        other.write_table(frame, time="when", points_max=500)
        for found in (engine.query(), other.query()):
            assert [batch.values.tolist() for batch in found] == matrix.T.tolist()
            assert found[0].timestamps.tolist() == list(range(_T, _T + 600))


def test_the_index_of_a_frame_is_its_time(engine: MemoryEngine) -> None:
    """An index of times needs no name; a named one, of several levels too, is a column."""
    index = pd.date_range("2026-01-01", periods=2, freq="s", tz="Europe/Berlin")
    start = tsengine.timestamp("2026-01-01T00:00:00+01:00")
    engine.write_table(pd.DataFrame({"a": [1.0, 2.0]}, index=index))
    levels = pd.MultiIndex.from_arrays([index, ["x", "y"]], names=["timestamp", "room"])
    engine.write_table(pd.DataFrame({"b": [1.0, 2.0]}, index=levels), labels=["room"])
    assert rows(engine) == {
        "a": [(start, 1.0), (start + 10**9, 2.0)],
        'b{room="x"}': [(start, 1.0)],
        'b{room="y"}': [(start + 10**9, 2.0)],
    }


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Tokyo"])
def test_times_of_any_unit_and_zone_are_the_same_moment(
    engine: MemoryEngine, unit: str, zone: str | None
) -> None:
    """What is one moment in Arrow, pandas, polars or numpy is stored as that; no zone is UTC."""
    second = np.array([1_700_000_000], np.int64)
    table = pa.table({"timestamp": pa.array(second).cast(pa.timestamp("s")), "a": [1.0], "b": [2]})
    moved = table.set_column(0, "timestamp", table["timestamp"].cast(pa.timestamp(unit, zone)))
    plain = {"timestamp": second.astype("datetime64[s]").astype(f"datetime64[{unit}]"), "a": [1.0]}
    for given_table in (moved, pl.from_arrow(moved), moved.to_pandas(), plain):
        with MemoryEngine() as other:
            other.write_table(given_table)
            assert other.latest("a")[0].timestamp == _T


@pytest.mark.parametrize("values", ["a", ["a"]])
def test_times_may_be_what_timestamp_takes(engine: MemoryEngine, values: Any) -> None:
    """Text and moments with a zone are times in either form; a naive moment is none."""
    aware = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    table = {"timestamp": ["2026-01-01T00:00:01Z", aware], "a": [1.5, 2.5]}
    for given_table in (table, pd.DataFrame(table, dtype=object)):
        engine.write_table(given_table, values=values, labels=[])
        start = tsengine.timestamp(aware)
        assert rows(engine) == {"a": [(start, 2.5), (start + 10**9, 1.5)]}
    table["timestamp"] = [aware, dt.datetime(2026, 1, 1)]
    with pytest.raises(TimestampError) as caught:
        engine.write_table(table, values=values, labels=[])
    assert caught.value.indices == (1,)


@pytest.mark.parametrize(
    ("times", "indices"),
    [
        (pa.array([1, None, 3, None], pa.timestamp("ns")), (1, 3)),
        (pa.array([1, None, 3, 4], pa.int64()), (1,)),
        (pa.array([1, 2**60, 3, 4], pa.timestamp("s")), (1,)),
        (pa.array([1.0, 2.0, 3.0, 4.0]), (0, 1, 2, 3)),
        (pa.array([dt.date(2026, 1, 1)] * 4), (0, 1, 2, 3)),
    ],
)
@pytest.mark.parametrize("form", ["long", "wide"])
@pytest.mark.parametrize("library", ["arrow", "polars", "pandas"])
def test_times_that_are_none_are_named_by_row(
    engine: MemoryEngine, times: Any, indices: tuple[int, ...], form: str, library: str
) -> None:
    """A null, what lies beyond int64 and another type are errors with rows; nothing is stored."""
    columns = {"value": [1.0] * 4, "x": ["y"] * 4} if form == "long" else {"a": [1.0] * 4}
    table = pa.table({"timestamp": times, **columns})
    convert: dict[str, Any] = {"polars": pl.from_arrow, "pandas": pa.Table.to_pandas}
    if library == "pandas" and times.type == pa.timestamp("s"):
        return  # pandas' own conversion refuses it
    if library == "polars" and times.type == pa.timestamp("s"):
        return  # it has no seconds, and wraps around
    frame = convert.get(library, lambda given: given)(table)
    if library == "pandas" and times.type == pa.int64():
        frame = frame.astype({"timestamp": "Int64"})
    with pytest.raises(TimestampError) as caught:
        engine.write_table(frame)
    assert caught.value.indices == indices
    assert engine.count() == 0


@pytest.mark.parametrize("library", ["arrow", "polars", "pandas"])
def test_nulls_mean_what_the_form_says(engine: MemoryEngine, library: str) -> None:
    """In a wide table a null is no row, in labels no label, in a long table's value an error."""
    table = pa.table(
        {
            "timestamp": [1, 2],
            "room": ["x", None],
            "warm": [1.5, None],
            "count": pa.array([None, 2**62], pa.int64()),
            "note": [None, "wet"],
        }
    )
    frame: Any = table
    if library == "polars":
        frame = pl.from_arrow(table)
    if library == "pandas":
        frame = table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
        frame["warm"] = frame["warm"].astype("Float64")
    assert engine.write_table(frame, labels=["room"]).submitted == 3
    assert rows(engine) == {
        "count": [(2, 2**62)],
        "note": [(2, "wet")],
        'warm{room="x"}': [(1, 1.5)],
    }
    with pytest.raises(ValueKindError) as caught:
        engine.write_table(frame, labels=["room"], values="count")
    assert caught.value.indices == (0,)


@pytest.mark.parametrize(
    ("column", "error"),
    [
        (pa.array([dt.timedelta(1)]), ValueKindError),
        (pa.array([dt.datetime(2026, 1, 1)]), ValueKindError),
        (pa.array([[None]]), None),
    ],
)
def test_values_of_types_that_are_no_values_are_refused(
    engine: MemoryEngine, column: Any, error: Any
) -> None:
    """A column of times or durations is of no kind, and its rows are named."""
    table = pa.table({"timestamp": [5], "a": column})
    if error is None:
        engine.write_table(table)
        return
    with pytest.raises(error) as caught:
        engine.write_table(table)
    assert caught.value.indices == (0,)


@pytest.mark.parametrize("library", ["arrow", "polars", "pandas"])
def test_labels_that_are_no_text_are_refused(engine: MemoryEngine, library: str) -> None:
    """A column of numbers is none of labels; the rows are named."""
    table = pa.table({"timestamp": [1, 2], "host": [1, 2], "a": [1.0, 2.0], "value": [1.0, 2.0]})
    convert: dict[str, Any] = {"polars": pl.from_arrow, "pandas": pa.Table.to_pandas}
    frame = convert.get(library, lambda given: given)(table)
    for values in (["a"], None):
        with pytest.raises(LabelsError) as caught:
            engine.write_table(frame, labels=["host"], values=values)
        assert caught.value.indices == (0, 1)
    assert engine.count() == 0


@pytest.mark.parametrize(
    "labels",
    [
        pa.array(["x", "x"], pa.large_string()),
        pa.array(["x", "x"]).cast(pa.string_view()),
        pa.array(["x", "x"]).dictionary_encode(),
        pa.RunEndEncodedArray.from_arrays([2], ["x"]),
    ],
    ids=str,
)
def test_labels_come_in_any_type_of_text(engine: MemoryEngine, labels: Any) -> None:
    """However a table has its text, and beside a column of nulls."""
    engine.write_table(
        pa.table({"h": labels, "n": pa.nulls(2), "timestamp": [1, 2], "value": [1.5, 2.5]})
    )
    assert rows(engine) == {'{h="x"}': [(1, 1.5), (2, 2.5)]}


@pytest.mark.parametrize("labels", [[{"a": 1}], [[1]], [b"x"], [1.5]], ids=str)
def test_labels_of_types_without_text_are_refused(engine: MemoryEngine, labels: Any) -> None:
    """Structures, lists, bytes and numbers are no labels, in Arrow and in pandas."""
    table = pa.table({"h": labels, "timestamp": [1], "value": [1.5]})
    for given_table in (table, table.to_pandas(), {"h": labels, "timestamp": [1], "value": [1.5]}):
        with pytest.raises(LabelsError):
            engine.write_table(given_table)


@pytest.mark.parametrize("given_table", [pd.Series([1.5]), pl.Series([1.5]), [1], "x", None, 5])
def test_what_is_no_table_is_refused(engine: MemoryEngine, given_table: Any) -> None:
    """A column by itself, too, although it offers an Arrow stream."""
    with pytest.raises(BatchShapeError, match="no table"):
        engine.write_table(given_table)


def test_dictionaries_of_parts_may_differ(engine: MemoryEngine) -> None:
    """Batches with texts of their own are gathered to one part."""
    batches = [
        pa.record_batch(
            {"h": pa.array(texts).dictionary_encode(), "timestamp": [n], "value": [float(n)]}
        )
        for n, texts in enumerate((["a"], ["b"], ["a"]), 1)
    ]
    engine.write_table(pa.RecordBatchReader.from_batches(batches[0].schema, batches))
    assert rows(engine) == {'{h="a"}': [(1, 1.0), (3, 3.0)], '{h="b"}': [(2, 2.0)]}


class Sink(MemoryEngine):
    """A store that counts what it is given and drops it."""

    rows = 0

    def _commit(self, batches: Sequence[GroupedBatch], mark: ProducerMark | None) -> WriteReceipt:
        count = sum(map(len, batches))
        self.rows += count
        return WriteReceipt(count, count)


@pytest.mark.parametrize("form", ["long", "wide"])
def test_a_stream_takes_bounded_memory(form: str) -> None:
    """Ten times as many batches take no more."""
    columns: dict[str, Any] = {"a": np.zeros(4_096), "b": np.zeros(4_096)}
    if form == "long":
        columns = {"host": ["x", "y"] * 2_048, "value": np.zeros(4_096)}

    def batches(count: int) -> Iterator[pa.RecordBatch]:
        for n in range(count):
            times = np.arange(n * 4_096, (n + 1) * 4_096) + 1
            yield pa.record_batch({"timestamp": times, **columns})

    peaks = []
    for count in (8, 80):
        schema = pa.record_batch({"timestamp": np.arange(4_096), **columns}).schema
        with Sink() as sink:
            tracemalloc.start()
            sink.write_table(
                pa.RecordBatchReader.from_batches(schema, batches(count)), points_max=16_384
            )
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert sink.rows == count * 4_096 * (2 if form == "wide" else 1)
    assert peaks[1] < 1.5 * peaks[0]


def test_a_stream_is_gathered_to_commits(engine: MemoryEngine) -> None:
    """Batches of a few rows become parts of as many as were asked for, and errors count on."""
    table = pa.table({"timestamp": [*range(1, 50), None], "a": [0.5] * 50, "b": [1.5] * 50})
    with pytest.raises(PartialWriteError) as caught:
        engine.write_table(table.to_reader(max_chunksize=3), points_max=32)
    assert (caught.value.rows, caught.value.receipt.accepted, engine.count()) == (48, 96, 96)
    assert isinstance(caught.value.__cause__, TimestampError)
    assert caught.value.__cause__.indices == (49,)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.rows, again.receipt) == (caught.value.rows, caught.value.receipt)


def test_a_source_that_fails_is_told_of(engine: MemoryEngine) -> None:
    """What a stream raises comes out as it is, or behind what landed."""

    def batches(good: int) -> Iterator[pa.RecordBatch]:
        for n in range(good):
            yield pa.record_batch({"timestamp": [n + 1], "a": [0.5]})
        raise RuntimeError("the source broke")

    schema = pa.schema([("timestamp", pa.int64()), ("a", pa.float64())])
    with pytest.raises(pa.ArrowInvalid, match="broke"):
        engine.write_table(pa.RecordBatchReader.from_batches(schema, batches(0)), points_max=1)
    with pytest.raises(PartialWriteError, match=r"first 3 rows.*broke") as caught:
        engine.write_table(pa.RecordBatchReader.from_batches(schema, batches(3)), points_max=1)
    assert caught.value.receipt == WriteReceipt(3, 3)
    assert engine.count() == 3


def test_names_of_columns_are_told_apart(engine: MemoryEngine) -> None:
    """Two columns of a name, or names that are no text, are refused."""
    twice = pa.table(
        [pa.array([1]), pa.array([1.0]), pa.array([2.0])], names=["timestamp", "a", "a"]
    )
    for table in (twice, twice.to_pandas(), pd.DataFrame({0: [1.0], "timestamp": [1]})):
        with pytest.raises(BatchShapeError):
            engine.write_table(table)
    with pytest.raises(UnknownOptionError):
        engine.write_table(twice, points_max=0)


def test_arrow_arrays_and_extension_columns_are_taken(engine: MemoryEngine) -> None:
    """A single record batch, and pandas columns held by Arrow, are tables as well."""
    batch = pa.record_batch({"timestamp": [1, 2], "a": [1.5, 2.5]})

    class Exported:
        def __arrow_c_array__(self, requested_schema: object = None) -> object:
            return batch.__arrow_c_array__(requested_schema)

    engine.write_table(Exported())
    frame = pa.table({"timestamp": [1, None], "b": [1.5, 2.5]}).to_pandas(
        types_mapper=pd.ArrowDtype
    )
    engine.write_table(frame.iloc[:1])
    assert rows(engine) == {"a": [(1, 1.5), (2, 2.5)], "b": [(1, 1.5)]}
    with pytest.raises(TimestampError):
        engine.write_table(frame)


def test_tables_are_written_under_asyncio_and_through_a_buffer() -> None:
    """Both faces take tables; a buffer's pending points come first."""
    frame = pd.DataFrame({"timestamp": [1, 2], "a": [1.5, 2.5]})

    async def main() -> None:
        async with aio.Engine(MemoryEngine()) as engine:
            assert await engine.write_table(frame) == WriteReceipt(2, 2)
            assert await engine.count() == 2

    asyncio.run(main())
    with tsengine.BufferedEngine(MemoryEngine(), age_max=None) as buffered:
        buffered.buffer.write((Labels("a"), 1, 0.5))
        buffered.write_table(frame)
        assert rows(buffered) == {"a": [(1, 1.5), (2, 2.5)]}


def _encoded(*columns: str) -> dict[str, pa.Array]:
    """Give three rows, a null in the second, as dictionaries that no writer of ours makes."""
    places = pa.array([0, 1, 2], pa.int32())
    words = {
        "text": pa.array(["x", None, "x"]),  # twice, and a null in the dictionary itself
        "floats": pa.array([1.5, None, 1.5]),
        "ints": pa.array([2**62 + 1, None, 7]),
    }
    return {name: pa.DictionaryArray.from_arrays(places, words[name]) for name in columns}


def test_dictionaries_may_repeat_words_and_hold_nulls(engine: MemoryEngine) -> None:
    """A text that a dictionary has twice is one label, and its null is a null; kinds stay."""
    times = pa.array([1, 2, 3])
    numbers = {"timestamp": times, **_encoded("text", "floats", "ints")}
    engine.write_table(pa.table({"timestamp": times, **_encoded("text"), "a": [1, 2, 3]}), **_ROOM)
    engine.write_table(pa.table(numbers))
    assert rows(engine) == {
        "a": [(2, 2)],
        'a{room="x"}': [(1, 1), (3, 3)],
        "floats": [(1, 1.5), (3, 1.5)],
        "ints": [(1, 2**62 + 1), (3, 7)],
        "text": [(1, "x"), (3, "x")],
    }


@pytest.mark.parametrize("odd", ["timestamp", "value", "host"])
def test_a_row_that_is_refused_changes_no_other(engine: MemoryEngine, odd: str) -> None:
    """Integers stay integers beside a row that has no value, time or text; it alone is named."""
    columns: dict[str, list[Any]] = {
        "__name__": ["a"] * 3,
        "host": ["x"] * 3,
        "timestamp": [1, 2, 3],
        "value": [7, 8, 2**62 + 1],
    }
    columns[odd][1] = "" if odd == "host" else None
    table = pa.table(columns)
    with pytest.raises(InvalidDataError) as caught:
        engine.write_table(table)
    assert caught.value.indices == (1,)
    assert tsengine.copy(table, engine, on_reject=lambda *_: None).rejected == 1
    assert rows(engine) == {'a{host="x"}': [(1, 7), (3, 2**62 + 1)]}
    assert engine.series_kind(Labels("a", host="x")) is ValueKind.INT


_ROOM: dict[str, Any] = {"labels": {"text": "room"}, "values": "a"}


def test_columns_of_runs_are_read_row_by_row(engine: MemoryEngine) -> None:
    """A column that is encoded as runs is as any other: of labels, and of numbers."""
    ends = pa.array([2, 3], pa.int32())
    table = pa.table(
        {
            "timestamp": [1, 2, 3],
            "text": pa.RunEndEncodedArray.from_arrays(ends, pa.array(["x", "y"])),
            "a": pa.RunEndEncodedArray.from_arrays(ends, pa.array([2**62 + 1, 7])),
        }
    )
    engine.write_table(table, **_ROOM)
    assert rows(engine) == {
        'a{room="x"}': [(1, 2**62 + 1), (2, 2**62 + 1)],
        'a{room="y"}': [(3, 7)],
    }


def test_a_polars_categorical_is_text_where_values_are(engine: MemoryEngine) -> None:
    """Its words are given as string views, for which Arrow decodes no dictionaries."""
    engine.write_table(
        pl.DataFrame({"timestamp": [1, 2], "a": pl.Series(["x", None], dtype=pl.Categorical)})
    )
    assert rows(engine) == {"a": [(1, "x")]}


@pytest.mark.parametrize(
    "column",
    [
        pa.array([["x"]]),
        pa.array([{"x": 1}]),
        pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), pa.array([["x"]])),
    ],
)
def test_lists_are_no_labels(engine: MemoryEngine, column: Any) -> None:
    """A column that Arrow cannot encode is named, as one of numbers is."""
    table = pa.table({"timestamp": [1], "tags": column, "value": [1.5]})
    with pytest.raises(LabelsError, match="tags"):
        engine.write_table(table)


def test_what_pyarrow_cannot_read_is_refused(engine: MemoryEngine) -> None:
    """Types that only polars has are named, not read as bytes."""
    frame = pl.DataFrame({"timestamp": [1], "a": pl.Series([1], dtype=pl.Int128)})
    with pytest.raises(BatchShapeError, match="pli128"):
        engine.write_table(frame)
    frame = pl.DataFrame({"timestamp": [1], "a": pl.Series([object()])})
    with pytest.raises(ValueKindError, match="'a'"):
        engine.write_table(frame)
    assert engine.count() == 0


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"time": ["timestamp"]}, BatchShapeError),
        ({"labels": [5]}, BatchShapeError),
        ({"values": [None]}, BatchShapeError),
        ({"shared_labels": ["host"]}, LabelsError),
    ],
)
def test_arguments_of_other_types_are_refused(
    engine: MemoryEngine, options: dict[str, Any], error: type[Exception]
) -> None:
    """What can name no column and no label is told, before a row is read."""
    with pytest.raises(error):
        engine.write_table({"timestamp": [1], "a": [1.5]}, **options)
    assert engine.count() == 0
