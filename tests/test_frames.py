"""Results as frames of other libraries, and back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsengine import Labels, MissingDependencyError, QueryResult, SeriesBatch, ValueKindError
from tsengine.backends.memory import MemoryEngine
from tsengine.frames import stream
from tsengine.testing.compare import assert_rows, rows_of
from tsengine.testing.strategies import SPECIAL_FLOATS, SPECIAL_INTEGERS, label_sets

LONG: dict[str, Callable[[QueryResult], Any]] = {
    "result": lambda result: result,
    "pandas": lambda result: result.to_pandas(),
    "polars": lambda result: result.to_polars(),
    "arrow": lambda result: result.to_arrow(),
    "reader": pa.RecordBatchReader.from_stream,
    "polars itself": pl.DataFrame,
    "polars from_arrow": pl.from_arrow,
    "pandas itself": pd.DataFrame.from_arrow,  # type: ignore[attr-defined]  # the stubs are older
}
WIDE: dict[str, Callable[[QueryResult], Any]] = {
    "pandas": lambda result: result.to_pandas(wide=True),
    "polars": lambda result: result.to_polars(wide=True),
    "arrow": lambda result: result.to_arrow(wide=True),
}
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "float": st.sampled_from(SPECIAL_FLOATS),
    "int": st.sampled_from(SPECIAL_INTEGERS),
    "text": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=3),
    "bool": st.booleans(),
    "bytes": st.binary(max_size=3),
    "any": st.sampled_from([True, "x", b"y", [1, "z"], {"a": [1.5, None]}]),
}
_DTYPES = {"float": np.float64, "int": np.int64}
_TIMES = st.sampled_from([1, 2, 3, 10**18, 10**18 + 1, 2**63 - 1])


@st.composite
def results(draw: st.DrawFn, kinds: tuple[str, ...], *, mixed: bool) -> QueryResult:
    """Draw a result: series of one kind of value, or each of its own."""
    names = [*draw(label_sets()), *draw(st.sets(st.sampled_from(_ODD), max_size=3))]
    kind = draw(st.sampled_from(kinds))
    batches = []
    for labels in sorted(set(names), key=lambda labels: labels.id):
        kind = draw(st.sampled_from(kinds)) if mixed else kind
        times = sorted(draw(st.sets(_TIMES, min_size=1)))
        values = np.empty(len(times), _DTYPES.get(kind, object))
        for row in range(len(times)):
            values[row] = draw(_VALUES[kind])
        batches.append(SeriesBatch(labels, np.array(times), values))
    return QueryResult(batches)


_ODD = [
    Labels("value"),
    Labels("timestamp"),
    Labels("index"),
    Labels(value="v", timestamp="t"),
    Labels(label_value="v", timestamp="t"),
    Labels(label_timestamp="v", label_label_value="w"),
    Labels("label_value"),
    Labels('{__name__="value"}'),
    Labels('cpu{host="a"}'),
    Labels("cpu"),
]


def assert_comes_back(result: QueryResult, frame: Any) -> None:
    """Check that a store written from a frame holds what the result does, bit for bit."""
    with MemoryEngine() as engine:
        receipt = engine.write_table(frame)
        assert receipt.accepted == receipt.submitted == result.rows
        back = engine.query()
        assert [batch.labels for batch in back] == result.labels
        for batch, expected in zip(back, result, strict=True):
            assert batch.values.dtype == expected.values.dtype
            assert batch.timestamps.tolist() == expected.timestamps.tolist()
            if batch.values.dtype == object:
                assert_rows(rows_of([batch]), rows_of([expected]))
            else:
                assert batch.values.tobytes() == expected.values.tobytes()


@settings(max_examples=40)
@given(result=results(("float", "int", "text", "bool", "bytes"), mixed=False))
def test_long_forms_come_back(result: QueryResult) -> None:
    """Every long form of a result of one kind is written back exactly, by whoever made it."""
    for make in LONG.values():
        assert_comes_back(result, make(result))


@settings(max_examples=60)
@given(result=results(("float", "int", "text", "bool", "bytes"), mixed=True))
def test_wide_forms_come_back(result: QueryResult) -> None:
    """Every wide form comes back exactly, whatever kinds its series are of and gaps they have."""
    for make in WIDE.values():
        assert_comes_back(result, make(result))


@given(result=results(("any", "float"), mixed=True))
def test_pandas_carries_every_object(result: QueryResult) -> None:
    """Objects that Arrow has no one type for come back from pandas, long and wide."""
    assert_comes_back(result, result.to_pandas())
    assert_comes_back(result, result.to_pandas(wide=True))


def test_duckdb_takes_a_result() -> None:
    """DuckDB reads a result by its name, and what it answers is a table to be written."""
    times = np.array([10**18, 10**18 + 1])
    result = QueryResult([SeriesBatch(Labels("cpu", host=h), times, times * 0.5) for h in "ab"])
    found = duckdb.sql("SELECT sum(value) FROM result WHERE host = 'a'")
    assert found is not None
    assert found.fetchall() == [(10**18,)]
    assert_comes_back(result, duckdb.sql("SELECT * FROM result"))


def test_streams_are_made_as_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record batches come one at a time: long series cut, short ones gathered."""
    monkeypatch.setattr(stream, "BATCH_ROWS", 10)
    lengths = [3, 3, 3, 3, 25, 10, 1]
    batches = [
        SeriesBatch(Labels(n=str(n)), np.arange(1, rows + 1), np.arange(float(rows)))
        for n, rows in enumerate(lengths)
    ]
    result = QueryResult(batches)
    reader = pa.RecordBatchReader.from_stream(result)
    assert [batch.num_rows for batch in reader] == [9, 3, 10, 10, 5, 10, 1]
    assert_comes_back(result, result)
    reader = pa.RecordBatchReader.from_stream(QueryResult(batches[4:5]))
    batches[4].values[15] = -1.0  # read from where it is, when it is asked for
    assert reader.read_all()["value"][15].as_py() == -1.0


def test_types_are_those_that_are_promised() -> None:
    """Labels are dictionaries, times timestamp[ns, UTC], and nothing that is there is null."""
    batch = SeriesBatch(Labels("cpu", host="a"), np.array([1]), np.array([1.5]))
    schema = pa.schema(QueryResult([batch]).to_arrow().schema)
    text = pa.dictionary(pa.int32(), pa.string())
    time = pa.field("timestamp", pa.timestamp("ns", "UTC"), nullable=False)
    value = pa.field("value", pa.float64(), nullable=False)
    assert schema == pa.schema([("__name__", text), ("host", text), time, value])


def test_a_requested_schema_is_given() -> None:
    """Who asks for columns of other types gets them."""
    batch = SeriesBatch(Labels("cpu"), np.array([1, 2]), np.array([1, 2]))
    asked = pa.schema(
        [
            ("__name__", pa.string()),
            ("timestamp", pa.timestamp("us", "UTC")),
            ("value", pa.float64()),
        ]
    )
    table = pa.table(QueryResult([batch]), schema=asked)
    assert table.schema == asked
    assert table["value"].to_pylist() == [1.0, 2.0]


def test_values_of_no_one_type_are_refused_in_words() -> None:
    """The error names the types, and what carries them."""
    times = np.array([1])
    floats = SeriesBatch(Labels("a"), times, np.array([1.5]))
    integers = SeriesBatch(Labels("b"), times, np.array([1]))
    lists = SeriesBatch(Labels("c"), times, np.array([None], object))
    lists.values[0] = [1]
    for batches, named in (([floats, integers], "float, int"), ([lists], "list")):
        result = QueryResult(batches)
        for convert in (result.to_arrow, result.to_polars, result.__arrow_c_stream__):
            with pytest.raises(ValueKindError, match=f"{named}.*wide=True"):
                convert()
    assert QueryResult([floats, integers]).to_polars(wide=True).width == 3


def test_to_numpy_is_the_wide_form() -> None:
    """A matrix of the kind that all series have, with room for gaps where there are some."""
    t = np.array([1, 2, 3])
    a = SeriesBatch(Labels("a"), t, np.array([1, 2, 3]))
    b = SeriesBatch(Labels("b"), t[1:], np.array([0.5, np.inf]))
    c = SeriesBatch(Labels("c"), t[:1], np.array(["x"], object))
    times, matrix = QueryResult([a, a]).to_numpy()
    assert (times.tolist(), matrix.tolist()) == ([1, 2, 3], [[1, 1], [2, 2], [3, 3]])
    assert matrix.dtype == np.int64
    times[0] = 0
    assert a.timestamps[0] == 1
    times, matrix = QueryResult([a, b]).to_numpy()
    np.testing.assert_array_equal(matrix, [[1, np.nan], [2, 0.5], [3, np.inf]])
    times, matrix = QueryResult([a, b, c]).to_numpy()
    assert matrix.tolist() == [[1, None, "x"], [2, 0.5, None], [3, np.inf, None]]
    times, matrix = QueryResult([]).to_numpy()
    assert (times.shape, matrix.shape) == ((0,), (0, 0))
    big = SeriesBatch(Labels("big"), t, np.array([2**53 + 1] * 3))
    with pytest.raises(ValueKindError, match="precision"):
        QueryResult([big, b]).to_numpy()


def test_an_empty_result_is_an_empty_frame() -> None:
    """In every form it has its columns, no rows, and is written back as nothing."""
    empty = QueryResult([])
    for make in [*LONG.values(), *WIDE.values()]:
        assert len(make(empty)) == 0 if hasattr(make(empty), "__len__") else True
        assert_comes_back(empty, make(empty))


@pytest.mark.parametrize(
    ("package", "call", "extra"),
    [
        ("pandas", lambda result: result.to_pandas(), "pandas"),
        ("pandas", lambda result: result.to_pandas(wide=True), "pandas"),
        ("polars", lambda result: result.to_polars(), "polars"),
        ("pyarrow", lambda result: result.to_arrow(), "arrow"),
        ("arro3.core", lambda result: result.to_arrow(), "frames"),
        ("arro3.core", lambda result: result.to_polars(wide=True), "frames"),
        ("arro3.core", lambda result: result.__arrow_c_stream__(), "frames"),
    ],
)
def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, package: str, call: Any, extra: str
) -> None:
    """Without its package a conversion says which line brings it."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'tsengine\[{extra}\]'"):
        call(QueryResult([]))
