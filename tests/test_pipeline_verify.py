"""Verifying: equal stores pass, and the first difference of others is named."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tsengine
from tsengine import CancelledError, DifferenceError, Engine, GroupedBatch, Labels, SeriesBatch
from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.memory import MemoryEngine
from tsengine.model import ValueArray
from tsengine.pipeline.verifying import checksums
from tsengine.selectors import Selector

A, B, C = (Labels("load", host=host) for host in "abc")
NAN, OTHER_NAN = np.array([0x7FF8000000000000, 0x7FF8000000000001]).view(np.float64).tolist()


@pytest.fixture
def left() -> Iterator[Engine]:
    """Give a store with rows of all kinds."""
    with MemoryEngine() as engine:
        engine.write([(A, t, t / 3) for t in range(1, 50)])
        engine.write_series(B, np.arange(1, 20), np.arange(1, 20))
        engine.write([(C, t, {"n": [t, None]}) for t in range(1, 10)])
        yield engine


@pytest.fixture
def right(left: Engine, tmp_path: Path) -> Iterator[Engine]:
    """Give another store with the same rows."""
    with LmdbEngine(str(tmp_path / "right")) as engine:
        tsengine.copy(left, engine)
        yield engine


def difference(left: Engine, right: Engine) -> tsengine.Difference:
    """Give what the error of `verify` carries."""
    with pytest.raises(DifferenceError) as caught:
        tsengine.verify(left, right)
    assert str(caught.value) == str(caught.value.difference)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert str(copied.difference) == str(caught.value.difference)
    return caught.value.difference


def test_equal_stores_pass(left: Engine, right: Engine) -> None:
    """The report says what was compared; a selection and a range are of both."""
    report = tsengine.verify(left, right)
    assert (report.series, report.points) == (3, 49 + 19 + 9)
    right.write([(A, 60, 1.0)])
    right.write([(Labels("new"), 5, 1.0)])
    assert tsengine.verify(left, right, "load", 5, 55).points == 45 + 15 + 5


def test_a_series_that_one_side_lacks_is_named(left: Engine, right: Engine) -> None:
    """Missing in the target or there alone, by series ID; without rows it is not there."""
    left.delete(B, 1, 100)
    found = difference(left, right)
    assert (found.labels, found.what, found.source) == (B, "extra", None)
    assert "in the target alone" in str(found)
    right.delete(A)
    found = difference(left, right)
    assert (found.labels, found.what, found.target) == (A, "missing", None)
    assert "not in the target" in str(found)


@pytest.mark.parametrize(
    ("change", "timestamp", "ours", "theirs"),
    [
        ((A, 7, 99.0), 7, 7 / 3, 99.0),
        ((A, 60, 1.0), 60, None, 1.0),
        ((B, 3, -3), 3, 3, -3),
        ((C, 4, {"n": [4, 0]}), 4, {"n": [4, None]}, {"n": [4, 0]}),
    ],
)
def test_the_first_row_that_differs_is_named(
    left: Engine, right: Engine, change: tuple[Labels, int, object], timestamp: int,
    ours: object, theirs: object,
) -> None:  # fmt: skip
    """Its time, and what each side has there."""
    right.write([change])
    found = difference(left, right)
    assert found.labels is change[0]
    assert (found.timestamp, found.source_value, found.target_value) == (timestamp, ours, theirs)
    assert str(timestamp) in str(found)


def test_a_row_that_is_missing_is_named(left: Engine, right: Engine) -> None:
    """In the middle and at the end, on either side."""
    right.delete(A, 49, 50)
    found = difference(left, right)
    assert (found.what, found.timestamp, found.target_value) == ("timestamp", 49, None)
    assert "49 rows in the source and 48 in the target" in str(found)
    left.delete(A, 10, 12)
    found = difference(left, right)
    assert (found.timestamp, found.source_value) == (10, None)


def test_another_kind_is_named(left: Engine) -> None:
    """Equal numbers of two kinds are two things."""
    with MemoryEngine() as other:
        other.write([(A, 1, 1.0)])
        with MemoryEngine() as whole:
            whole.write_series(A, np.array([1]), np.array([1]))
            found = difference(other, whole)
    assert found.what == "kind"
    assert "float in the source and int in the target" in str(found)


@pytest.mark.parametrize(("one", "two"), [(0.0, -0.0), (NAN, OTHER_NAN)])
def test_values_are_compared_bit_for_bit(one: float, two: float) -> None:
    """Zeros of two signs and NaNs of two payloads differ, each is equal to itself."""
    with MemoryEngine() as left, MemoryEngine() as right, MemoryEngine() as same:
        for engine, value in ((left, one), (right, two), (same, one)):
            engine.write_series(A, np.array([1]), np.array([value]))
        found = difference(left, right)
        assert found.what == "value"
        assert len(set(str(found).split(": ")[1].split(" in the "))) == 3  # both can be told apart
        assert tsengine.verify(left, same).points == 1


@given(cuts=st.lists(st.integers(0, 30), max_size=5), kind=st.sampled_from("fio"))
def test_a_checksum_does_not_depend_on_batches(cuts: list[int], kind: str) -> None:
    """However rows are divided, the checksum of a series is the same."""
    values: ValueArray = np.arange(30.0)
    if kind == "i":
        values = np.arange(30)
    elif kind == "o":
        values = np.array([{"n": n} for n in range(30)], object)

    class InPieces(MemoryEngine):
        def _scan(self, selector: Selector, start: int, end: int) -> Iterator[SeriesBatch]:
            for whole in super()._scan(selector, start, end):
                edges = [0, *sorted(cuts), len(whole)]
                for first, last in pairwise(edges):
                    if last > first:
                        yield SeriesBatch(
                            whole.labels, whole.timestamps[first:last], whole.values[first:last]
                        )

    with MemoryEngine() as plain, InPieces() as pieces:
        for engine in (plain, pieces):
            engine.write_batch(
                GroupedBatch([A, B], np.array([0, 30, 60]), np.tile(np.arange(1, 31), 2),
                             np.concatenate([values, values]))
            )  # fmt: skip
        assert list(checksums(plain)) == list(checksums(pieces))
        assert tsengine.verify(plain, pieces).points == 60
        assert len({one.digest for one in checksums(plain)}) == 1


def test_it_can_be_cancelled(left: Engine, right: Engine) -> None:
    """An event that is set ends it."""
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(CancelledError):
        tsengine.verify(left, right, cancel=cancel)


def test_progress_is_told_after_each_series(left: Engine, right: Engine) -> None:
    """What was found equal so far, the last of it what the report says."""
    told: list[tsengine.VerifyReport] = []
    report = tsengine.verify(left, right, progress=told.append)
    assert [one.series for one in told] == [1, 2, 3]
    assert [one.points for one in told] == [49, 49 + 19, 49 + 19 + 9]
    assert told[-1] == report
