from __future__ import annotations

import copy
import datetime as dt
import gc
import pickle
import threading
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsengine.errors import LabelsError, TimestampError, UnknownOptionError, ValueKindError
from tsengine.model import (
    INT64_MAX,
    INT64_MIN,
    LABELS_BYTES_MAX,
    Labels,
    Value,
    ValueKind,
    duration,
    fit_array,
    fit_value,
    pack_object,
    timestamp,
    timestamp_array,
    unpack_object,
)
from tsengine.model.labels import ids_of, series_ids
from tsengine.selectors import to_selector
from tsengine.testing import agrees
from tsengine.testing.strategies import bad_values, floats, integers, labels, objects

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

# Labels


@given(given=labels())
def test_equal_labels_are_one_object(given: Labels) -> None:
    """Labels made again, in any order, by pickle or by copy, are the same object."""
    turned = dict(reversed(list(given.items())))
    assert Labels(turned) is given
    assert pickle.loads(pickle.dumps(given)) is given
    assert copy.copy(given) is copy.deepcopy(given) is given
    assert hash(given) == hash(Labels(turned))
    assert given != dict(given)


@given(given=labels(), other=labels())
def test_an_id_selects_its_series(given: Labels, other: Labels) -> None:
    """The series ID parses as a selector of at least this series; distinct labels, distinct IDs."""
    assert to_selector(given.id).matches(given)
    assert (given.id == other.id) is (given is other) is (dict(given) == dict(other))
    if to_selector(given.id).matches(other):
        assert set(given.items()) <= set(other.items())


@given(many=st.lists(labels(), min_size=1, max_size=6))
def test_ids_of_many_labels_are_those_of_each(many: list[Labels]) -> None:
    """Made by columns, the IDs of labels with equal names are the same texts."""
    for names in {one.texts[::2] for one in many}:
        alike = [one for one in many if one.texts[::2] == names]
        columns = list(zip(*(one.texts[1::2] for one in alike), strict=True))
        assert series_ids(names, columns) == ids_of(alike) == [one.id for one in alike]
    assert ids_of(many) == [one.id for one in many]
    odd = [Labels("cpu", host='"'), Labels("cpu", host="x"), Labels("no metric", host="y")]
    columns = list(zip(*(one.texts[1::2] for one in odd), strict=True))
    assert series_ids(odd[0].texts[::2], columns) == [one.id for one in odd]
    assert series_ids(("A", "__name__"), [("1",), ("cpu",)]) == [Labels("cpu", A="1").id]


def test_labels_are_let_go() -> None:
    """Interning is weak: labels that nobody holds are gone."""
    import tsengine.model.labels as module

    texts = Labels("short_lived", host="x").texts
    gc.collect()
    assert texts not in module._interned


def test_labels_are_immutable() -> None:
    """No attribute can be set or deleted."""
    given = Labels("cpu")
    for name in ("id", "name", "new"):
        with pytest.raises(AttributeError):
            setattr(given, name, "x")
    with pytest.raises(AttributeError):
        del given.id
    assert (given.name, given.get("host"), len(given), list(given)) == (
        "cpu",
        None,
        1,
        ["__name__"],
    )
    with pytest.raises(KeyError):
        given["host"]


def test_many_threads_get_one_object() -> None:
    """Threads that make equal labels at once get the same object."""
    made: list[list[Labels]] = []

    def make() -> None:
        made.append([Labels("threads", number=str(number)) for number in range(2_000)])

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len({id(one) for one in same}) == 1 for same in zip(*made, strict=True))


@pytest.mark.parametrize(
    ("first", "rest", "named"),
    [
        ("", {}, "empty"),
        ("cpu", {"host": ""}, "host"),
        ("cpu", {"host": 5}, "5"),
        ("cpu", {"host": None}, "None"),
        ("cpu", {"host": b"a"}, "b'a'"),
        ("cpu", {"host": "a\0b"}, "NUL"),
        ("cpu", {"a\0b": "x"}, "NUL"),
        ("cpu", {"host": "\ud800"}, "surrogate"),
        ("cpu", {"__name__": "x"}, "twice"),
        ({"host": "a"}, {"host": "b"}, "twice"),
        ({"": "a"}, {}, "empty"),
        ({5: "a"}, {}, "5"),
        (5, {}, "5"),
        (["cpu"], {}, "cpu"),
        ("cpu", {"host": "x" * LABELS_BYTES_MAX}, "too long"),
        ("é" * (LABELS_BYTES_MAX // 2), {}, "too long"),
    ],
)
def test_bad_labels_are_refused(first: Any, rest: dict[str, Any], named: str) -> None:
    """Empty, non-text, NUL, surrogates, repetition and length are refused by name."""
    with pytest.raises(LabelsError, match=named):
        Labels(first, **rest)


def test_the_longest_labels_are_taken() -> None:
    """The bound on the series ID is exact, in bytes."""
    room = LABELS_BYTES_MAX - len('{x=""}')
    assert len(Labels(x="y" * room).id) == LABELS_BYTES_MAX
    with pytest.raises(LabelsError):
        Labels(x="y" * (room + 1))
    with pytest.raises(LabelsError):
        Labels(x="é" * (room // 2 + 1))


# Time


@given(
    moment=st.datetimes(dt.datetime(1678, 1, 1), dt.datetime(2262, 1, 1), timezones=st.timezones())
)
def test_datetimes_convert_exactly(moment: dt.datetime) -> None:
    """An aware datetime is its distance from the epoch, by integers, in every form."""
    elapsed = moment.astimezone(dt.UTC) - EPOCH
    nanoseconds = (elapsed // dt.timedelta(microseconds=1)) * 1_000
    assert timestamp(moment) == nanoseconds
    utc = moment.astimezone(dt.UTC)
    assert timestamp(utc.isoformat()) == nanoseconds
    assert timestamp(np.datetime64(utc.replace(tzinfo=None), "us")) == nanoseconds
    assert timestamp(pd.Timestamp(utc)) == nanoseconds
    assert timestamp_array([moment, utc]).tolist() == [nanoseconds] * 2


@given(nanoseconds=st.integers(-(10**18), INT64_MAX))
def test_nanoseconds_survive_every_form(nanoseconds: int) -> None:
    """Integers, numpy, pandas and text of nine digits give back the nanosecond."""
    assert timestamp(nanoseconds) == timestamp(np.int64(nanoseconds)) == nanoseconds
    assert timestamp(np.datetime64(nanoseconds, "ns")) == nanoseconds
    assert timestamp(pd.Timestamp(nanoseconds, tz="UTC")) == nanoseconds
    assert timestamp(pd.Timestamp(nanoseconds, tz="UTC").isoformat()) == nanoseconds
    column = np.array([nanoseconds, 5])
    assert timestamp_array(column) is column
    assert timestamp_array(column.view("datetime64[ns]")).tolist() == [nanoseconds, 5]
    assert timestamp_array(pd.Series([nanoseconds])).tolist() == [nanoseconds]


@pytest.mark.parametrize(
    "moment",
    [
        True,
        np.bool_(True),
        1.0,
        np.float64(1),
        None,
        "",
        "soon",
        "2024-01-31",
        "2024-01-31T12:00:00",
        "2024-01-31T12:00:00.1234567891Z",
        dt.datetime(2024, 1, 31),
        dt.date(2024, 1, 31),
        dt.timedelta(1),
        np.datetime64("NaT"),
        np.timedelta64(5, "s"),
        pd.NaT,
        pd.Timestamp("2024-01-31"),
        np.datetime64("3000-01-01"),
        dt.datetime(2300, 1, 1, tzinfo=dt.UTC),
        2**63,
        -(2**63) - 1,
    ],
    ids=repr,
)
def test_what_is_no_timestamp_is_refused(moment: Any) -> None:
    """Naive, inexact, absent and unrepresentable times raise TimestampError, also in a list."""
    with pytest.raises(TimestampError):
        timestamp(moment)
    with pytest.raises(TimestampError) as caught:
        timestamp_array([1, moment, 2])
    assert caught.value.indices == (1,)


@pytest.mark.parametrize(
    ("length", "nanoseconds"),
    [
        ("1ns", 1),
        ("5us", 5_000),
        ("250ms", 250_000_000),
        ("5m", 300_000_000_000),
        ("1h30m", 5_400_000_000_000),
        ("2d", 172_800_000_000_000),
        ("1w", 604_800_000_000_000),
        (dt.timedelta(microseconds=1), 1_000),
        (dt.timedelta(days=1, microseconds=1), 86_400_000_001_000),
    ],
)
def test_durations_convert(length: Any, nanoseconds: int) -> None:
    """Text with units and timedelta give nanoseconds."""
    assert duration(length) == nanoseconds


@pytest.mark.parametrize(
    "length", [5, 5.0, True, None, "", "5", "m", "5 m", "-5m", "0s", "1.5h", "5M", dt.timedelta(0)]
)
def test_bare_numbers_are_no_durations(length: Any) -> None:
    """A number without its unit is refused, and so is what is not positive."""
    with pytest.raises(UnknownOptionError, match="5m"):
        duration(length)


# Values


def fit_naively(
    value: object, known: ValueKind | None, opens: ValueKind
) -> tuple[ValueKind, object] | None:
    """Say what fit_value must give, None where it must raise; for Python numbers."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        kind = ValueKind.OBJECT
        return (kind, value) if known in (None, kind) else None
    if isinstance(value, float):
        return (ValueKind.FLOAT, value) if known in (None, ValueKind.FLOAT) else None
    kind = known or opens
    if kind is ValueKind.INT:
        return (kind, value) if INT64_MIN <= value <= INT64_MAX else None
    if kind is ValueKind.OBJECT or abs(value) >= 2**1024 or Fraction(float(value)) != value:
        return None
    return kind, float(value)


any_value = st.one_of(floats(), integers(), st.integers(), objects())
any_kind = st.sampled_from([None, *ValueKind])


@given(value=any_value, known=any_kind, opens=st.sampled_from([ValueKind.FLOAT, ValueKind.INT]))
def test_a_value_fits_as_said(value: object, known: ValueKind | None, opens: ValueKind) -> None:
    """fit_value agrees with the rules spelt out, bit for bit."""
    wanted = fit_naively(value, known, opens)
    if wanted is None:
        with pytest.raises(ValueKindError):
            fit_value(value, known, integers=opens)
        return
    kind, stored = fit_value(value, known, integers=opens)
    assert kind is wanted[0]
    assert agrees(wanted[1], stored)


@given(
    values=st.one_of(
        st.lists(floats(), max_size=6), st.lists(integers(), max_size=6), st.lists(any_value)
    ),
    known=any_kind,
    opens=st.sampled_from([ValueKind.FLOAT, ValueKind.INT]),
)
def test_a_column_fits_as_its_values_do(
    values: list[object], known: ValueKind | None, opens: ValueKind
) -> None:
    """A sequence is judged like its elements in order; those that do not fit are named."""
    wrong: list[int] = []
    stored: list[object] = []
    kind = known
    for index, value in enumerate(values):
        wanted = fit_naively(value, kind, opens)
        if wanted is None:
            wrong.append(index)
        else:
            kind = wanted[0]
            stored.append(wanted[1])
    if wrong:
        with pytest.raises(ValueKindError) as caught:
            fit_array(values, known, integers=opens)
        assert sorted(caught.value.indices) == wrong
        return
    found, column = fit_array(values, known, integers=opens)
    assert found is (kind or ValueKind.FLOAT)
    assert column.dtype == found.dtype
    assert all(map(agrees, stored, column.tolist()))
    assert len(column) == len(stored)


@given(
    values=st.lists(st.integers(0, 2**64 - 1) | integers().map(abs), min_size=1, max_size=6),
    known=st.sampled_from([None, ValueKind.FLOAT, ValueKind.INT]),
    dtype=st.sampled_from([np.int64, np.uint64, np.int32, np.uint8]),
)
def test_integer_arrays_fit_as_their_values_do(
    values: list[int], known: ValueKind | None, dtype: Any
) -> None:
    """An integer array of any width opens an int series, or fits a float series where exact."""
    bounds = np.iinfo(dtype)
    array = np.array([min(max(value, bounds.min), bounds.max) for value in values], dtype)
    kind = known or ValueKind.INT
    wanted = [fit_naively(int(value), kind, kind) for value in array]
    wrong = tuple(index for index, fitted in enumerate(wanted) if fitted is None)
    if wrong:
        with pytest.raises(ValueKindError) as caught:
            fit_array(array, known)
        assert caught.value.indices == wrong
    else:
        found, column = fit_array(array, known)
        assert found is kind
        assert column.tolist() == [fitted[1] for fitted in wanted if fitted is not None]


@given(value=bad_values(), known=any_kind)
def test_what_no_kind_carries_is_refused(value: object, known: ValueKind | None) -> None:
    """None, foreign objects, keys that are no text and too large integers never fit."""
    with pytest.raises(ValueKindError):
        fit_value(value, known)


@given(value=objects())
def test_objects_are_their_own_normal_form(value: Value) -> None:
    """Packing and unpacking gives an equal value that shares nothing with the first."""
    found = unpack_object(pack_object(value))
    assert agrees(value, found)
    if isinstance(value, (list, dict)) and value:
        assert found is not value


def test_columns_are_not_copied_where_they_fit() -> None:
    """A contiguous column of its kind comes back itself, a strided one as a copy."""
    column = np.arange(10.0)
    assert fit_array(column)[1] is column
    strided = fit_array(column[::2])[1]
    assert strided.flags.c_contiguous
    assert strided.tolist() == [0, 2, 4, 6, 8]
