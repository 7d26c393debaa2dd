"""Columns of other libraries: taken where nothing is lost, refused by row where something is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import tsengine
from tsengine.errors import InvalidDataError, TimestampError, ValueKindError

A = tsengine.Labels("a")


@pytest.mark.parametrize(
    "values",
    [
        pa.array([2**53 + 1, None]),
        pd.Series([2**53 + 1, None], dtype="Int64"),
        np.ma.array([1.0, 2.0], mask=[False, True]),
        pd.array([1.5, None], dtype="Float64"),
    ],
    ids=["arrow", "pandas integers", "masked", "pandas floats"],
)
def test_absent_values_are_refused_by_row(values: object) -> None:
    """A null, NA or masked value raises with its row, and nothing is stored in its place."""
    with tsengine.open("memory://") as engine:
        with pytest.raises(ValueKindError, match="masked or null") as caught:
            engine.write_series(A, [1, 2], values)
        assert caught.value.indices == (1,)
        assert engine.count() == 0


@pytest.mark.parametrize(
    "timestamps",
    [
        pa.array([1, None]),
        np.ma.array([1, 2], mask=[False, True]),
        pd.DatetimeIndex(np.array(["2024", "NaT"], "datetime64[ns]")),
    ],
    ids=["arrow", "masked", "pandas"],
)
def test_absent_timestamps_are_refused_by_row(timestamps: object) -> None:
    """A null, masked or NaT timestamp raises with its row."""
    with tsengine.open("memory://") as engine:
        with pytest.raises(TimestampError) as caught:
            engine.write_series(A, timestamps, [1.0, 2.0])
        assert caught.value.indices == (1,)


def test_columns_without_absences_are_taken() -> None:
    """Arrow and pandas columns, times with a zone among them, are stored exactly."""
    times = pd.DatetimeIndex([1_704_067_200_000_000_000, 1_704_067_200_000_000_001], tz="UTC")
    begin = 1_704_067_200_000_000_000
    with tsengine.open("memory://") as engine:
        engine.write_series(A, times, pa.array([1.5, float("nan")]))
        engine.write_series(
            A, pd.Series(times) + pd.Timedelta("1s"), pd.array([1, 2], dtype="Int64")
        )
        (batch,) = engine.query(A)
        assert batch.timestamps.tolist() == [begin, begin + 1, begin + 10**9, begin + 10**9 + 1]
        assert np.isnan(batch.values[1])
        assert batch.values[[0, 2, 3]].tolist() == [1.5, 1.0, 2.0]
        frame = engine.query(A).to_pandas()
        engine.write_series(tsengine.Labels("b"), frame["timestamp"], frame["value"])
        assert engine.query("b")[0].values.tobytes() == batch.values.tobytes()


def test_a_million_years_of_zone_is_out_of_range() -> None:
    """Whatever cannot be told in nanoseconds is refused and not wrapped around."""
    with tsengine.open("memory://") as engine, pytest.raises(InvalidDataError):
        engine.write_series(A, np.array(["9999-01-01"], "datetime64[s]"), [1.0])
