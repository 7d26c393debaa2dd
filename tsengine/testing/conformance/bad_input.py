"""What bad input gets: a typed error that names the value, and the store is as it was."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pytest

from tsengine.engine import Engine
from tsengine.errors import (
    BatchShapeError,
    ConfigurationError,
    InvalidDataError,
    LabelsError,
    RangeError,
    SelectorError,
    TimestampError,
    UnknownOptionError,
    ValueKindError,
)
from tsengine.model import (
    OBJECT_BYTES_MAX,
    OBJECT_DEPTH_MAX,
    GroupedBatch,
    Labels,
    pack_object,
)
from tsengine.testing.compare import assert_rows, rows_of
from tsengine.testing.conformance.base import A, B, ConformanceBase

_NAIVE = dt.datetime(2024, 1, 31)  # noqa: DTZ001  # bad input


def _nested(depth: int) -> object:
    value: object = []
    for _ in range(depth):
        value = [value]
    return value


BAD_POINTS: dict[str, tuple[Any, type[InvalidDataError], str]] = {
    "labels are text": (("cpu", 1, 1.0), LabelsError, "cpu"),
    "labels are a dict": (({"host": "a"}, 1, 1.0), LabelsError, "host"),
    "labels are None": ((None, 1, 1.0), LabelsError, "None"),
    "labels are empty": ((Labels(), 1, 1.0), LabelsError, r"Labels\(\)"),
    "timestamp is a bool": ((A, True, 1.0), TimestampError, "True"),
    "timestamp is a float": ((A, 1.0, 1.0), TimestampError, r"1\.0"),
    "timestamp is zero": ((A, 0, 1.0), TimestampError, "0"),
    "timestamp is negative": ((A, -5, 1.0), TimestampError, "-5"),
    "timestamp is beyond int64": ((A, 2**63, 1.0), TimestampError, str(2**63)),
    "timestamp is far beyond int64": ((A, 10**40, 1.0), TimestampError, str(10**40)),
    "timestamp is None": ((A, None, 1.0), TimestampError, "None"),
    "timestamp is a naive datetime": ((A, _NAIVE, 1.0), TimestampError, "2024"),
    "timestamp is text": ((A, "soon", 1.0), TimestampError, "soon"),
    "timestamp is a numpy bool": ((A, np.bool_(True), 1.0), TimestampError, "True"),
    "timestamp is NaT": ((A, np.datetime64("NaT"), 1.0), TimestampError, "NaT"),
    "value is None": ((A, 1, None), ValueKindError, "None"),
    "value is an object of Python": ((A, 1, object()), ValueKindError, "object"),
    "value is complex": ((A, 1, 1j), ValueKindError, "1j"),
    "value is a set": ((A, 1, {1}), ValueKindError, r"\{1\}"),
    "value has keys of another type": ((A, 1, {1: 2}), ValueKindError, "1"),
    "value loses precision": ((A, 1, 2**53 + 1), ValueKindError, str(2**53 + 1)),
    "value is beyond float64": ((A, 1, 10**400), ValueKindError, "bits"),
    "value is nested too deep": (
        (A, 1, _nested(OBJECT_DEPTH_MAX + 1)),
        ValueKindError,
        str(OBJECT_DEPTH_MAX),
    ),
    "value is too large": (
        (A, 1, "x" * OBJECT_BYTES_MAX),
        ValueKindError,
        str(OBJECT_BYTES_MAX),
    ),
    "point is no tuple": (5, InvalidDataError, "5"),
    "point is too short": ((A, 1), InvalidDataError, "value"),
    "point is too long": ((A, 1, 1.0, 1.0), InvalidDataError, "value"),
}

BAD_SELECTORS: dict[str, tuple[Any, int | None]] = {
    "does not end": ('cpu{host="a"', 12),
    "has no value": ("cpu{host=}", 9),
    "has no operator": ('cpu{host "a"}', None),
    "is empty text": ("", 0),
    "goes on after its end": ('cpu{} "x"', 6),
    "has a bad expression": ('cpu{host=~"("}', 10),
    "has a back-reference": (r'cpu{host=~"(a)\\1"}', 10),
    "is a number": (5, None),
    "is bytes": (b"cpu", None),
    "has a value that is no text": ({"host": 5}, None),
    "is empty labels": (Labels(), None),
    "lists no matchers": (["cpu"], None),
}

BAD_OPTIONS: dict[str, tuple[str, object, str]] = {
    "unknown": ("no_such_option", 1, "duplicate_policy"),
    "policy": ("duplicate_policy", "newest", "last"),
    "future_max is a number": ("future_max", 5, "5m"),
    "min_timestamp": ("min_timestamp", "soon", "soon"),
    "integers": ("integers", "long", "float"),
    "read_only": ("read_only", "perhaps", "perhaps"),
}


def _series(values: object, timestamps: object = (1, 2)) -> tuple[object, object]:
    return timestamps, values


BAD_COLUMNS: dict[str, tuple[object, object, type[InvalidDataError], tuple[int, ...]]] = {
    "lengths differ": ([1, 2], [1.0], BatchShapeError, ()),
    "timestamps in two dimensions": (np.ones((2, 1), np.int64), [1.0, 2.0], BatchShapeError, ()),
    "values in two dimensions": ([1, 2], np.ones((2, 1)), BatchShapeError, ()),
    "values of a dtype of no kind": ([1, 2], np.ones(2, complex), BatchShapeError, ()),
    "values are one number": ([1, 2], 5.0, BatchShapeError, ()),
    "timestamps are one number": (5, [1.0], BatchShapeError, ()),
    "timestamps are floats": (np.array([1.0, 2.0]), [1.0, 2.0], TimestampError, (0, 1)),
    "timestamps are booleans": (np.array([True, True]), [1.0, 2.0], TimestampError, (0, 1)),
    "a timestamp is zero": ([1, 0, 2, -1], [1.0] * 4, TimestampError, (1, 3)),
    "a timestamp is beyond int64": ([1, 2**63], [1.0] * 2, TimestampError, (1,)),
    "an unsigned timestamp is beyond int64": (
        np.array([1, 2**63], np.uint64),
        [1.0] * 2,
        TimestampError,
        (1,),
    ),
    "a timestamp is naive": ([1, _NAIVE], [1.0] * 2, TimestampError, (1,)),
    "a timestamp is NaT": (
        np.array(["NaT", "2024-01-31"], "datetime64[ns]"),
        [1.0] * 2,
        TimestampError,
        (0,),
    ),
    "a value is None": ([1, 2, 3], [1.0, None, None], ValueKindError, (1, 2)),
    "an integer is inexact": ([1, 2], [1, 2**53 + 1], ValueKindError, (1,)),
    "an unsigned integer is beyond int64": (
        [1, 2],
        np.array([1, 2**63], np.uint64),
        ValueKindError,
        (1,),
    ),
    "kinds are mixed": ([1, 2, 3], ["x", 1.0, "y"], ValueKindError, (1,)),
}


class BadInputConformance(ConformanceBase):
    """Bad points, columns, selectors, ranges and options."""

    def _stored(self) -> Engine:
        engine = self.open()
        engine.write([(A, 5, 1.0), (B, 5, "x")])
        return engine

    def _unchanged(self, engine: Engine) -> None:
        assert_rows(rows_of(engine.query()), {A: [(5, 1.0)], B: [(5, "x")]})
        assert list(engine.series()) == [A, B]
        assert engine.flush_buffer().submitted == 0

    @pytest.mark.parametrize("case", list(BAD_POINTS))
    def test_a_bad_point_is_refused(self, case: str) -> None:
        """A bad point raises its type and names its value; good ones with it stay out too."""
        point, error, named = BAD_POINTS[case]
        engine = self._stored()
        with pytest.raises(error, match=named) as caught:
            engine.write([(A, 1, 2.0), point, (A, 2, 2.0), point])
        assert caught.value.indices == (1, 3)
        with pytest.raises(error, match=named):
            engine.validate_point(point)
        with pytest.raises(error, match=named):
            engine.write_to_buffer(point)
        self._unchanged(engine)

    def test_every_offender_is_named(self) -> None:
        """Offenders of several types in one call are all named; the first says the type."""
        engine = self._stored()
        bad = [(A, 1, 1.0), (A, 0, 1.0), (A, 2, "x"), (A, 3, 1.0), ("cpu", 1, 1.0), (B, 7, 1.0)]
        with pytest.raises(TimestampError, match=r"points\[1\]") as caught:
            engine.write(bad)  # type: ignore[arg-type]  # bad input
        assert caught.value.indices == (1, 2, 4, 5)
        self._unchanged(engine)

    @pytest.mark.parametrize("case", list(BAD_COLUMNS))
    def test_bad_columns_are_refused(self, case: str) -> None:
        """Columns that do not fit raise by type, and name the rows where rows are at fault."""
        timestamps, values, error, indices = BAD_COLUMNS[case]
        engine = self._stored()
        with pytest.raises(error) as caught:
            engine.write_series(Labels("new"), timestamps, values)
        assert caught.value.indices == indices
        self._unchanged(engine)

    def test_a_bad_batch_is_refused(self) -> None:
        """A GroupedBatch whose parts do not fit is refused as a whole."""
        engine = self._stored()
        times, values = np.array([1, 2]), np.array([1.0, 2.0])
        labels = Labels("new")
        bad: list[tuple[Any, Any, Any, Any]] = [
            ([labels], [0, 1], times, values),
            ([labels], [1, 2], times, values),
            ([labels], [0, 2, 2], times, values),
            ([labels, A], [0, 3, 2], times, values),
            ([labels], [0, 2], times, values[:1]),
            ([labels], [0, 2], times.astype(float), values),
            ([labels], [0, 2], times.reshape(2, 1), values),
            ([labels], [0, 2], times, values.astype(complex)),
            ([labels, labels], [0, 1, 2], times, values),
        ]
        for names, offsets, moments, column in bad:
            with pytest.raises(BatchShapeError):
                engine.write_batch(GroupedBatch(names, np.array(offsets), moments, column))
        for names in (["cpu"], [Labels()], [None]):
            with pytest.raises(LabelsError):
                engine.write_batch(GroupedBatch(names, np.array([0, 2]), times, values))  # type: ignore[arg-type]  # bad input
        self._unchanged(engine)

    def test_the_largest_and_deepest_object_is_stored(self) -> None:
        """The caps on objects are exact: one byte or level less is stored."""
        engine = self.open()
        largest = "x" * (OBJECT_BYTES_MAX - (len(pack_object("x" * 65_000)) - 65_000))
        engine.write([(A, 1, largest), (A, 2, _nested(OBJECT_DEPTH_MAX))])
        assert_rows(rows_of(engine.query()), {A: [(1, largest), (2, _nested(OBJECT_DEPTH_MAX))]})

    @pytest.mark.parametrize("case", list(BAD_SELECTORS))
    def test_a_bad_selector_is_refused(self, case: str) -> None:
        """A selector that makes no sense raises SelectorError with its position, everywhere."""
        selector, position = BAD_SELECTORS[case]
        engine = self._stored()
        for call in (
            engine.query,
            engine.scan,
            engine.count,
            engine.series,
            engine.earliest,
            engine.latest,
            engine.delete,
        ):
            with pytest.raises(SelectorError) as caught:
                call(selector)
            if position is not None:
                assert (caught.value.text, caught.value.position) == (selector, position)
        self._unchanged(engine)

    @pytest.mark.parametrize(
        ("start", "end"),
        [(6, 5), (2**63, 5), (True, None), (1.0, None), (None, 2**63 + 1), (_NAIVE, None)],
    )
    def test_a_bad_range_is_refused(self, start: Any, end: Any) -> None:
        """A range that starts after its end, or a bound that is no time, raises RangeError."""
        engine = self._stored()
        for call in (engine.query, engine.scan, engine.count, engine.delete):
            with pytest.raises(RangeError):
                call(None, start, end)
        self._unchanged(engine)

    @pytest.mark.parametrize("case", list(BAD_OPTIONS))
    def test_a_bad_option_is_refused(self, case: str) -> None:
        """An unknown option or value is refused before any I/O, and what would do is listed."""
        name, value, listed = BAD_OPTIONS[case]
        with pytest.raises(UnknownOptionError, match=listed) as caught:
            self.make_engine(self.path / "store", **{name: value})
        assert name in str(caught.value)
        assert isinstance(caught.value, ConfigurationError)
        assert list(self.path.iterdir()) == []
