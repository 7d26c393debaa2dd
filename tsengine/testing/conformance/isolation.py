"""Nothing is shared by accident: arguments, results, threads."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from tsengine.errors import NotOpenError
from tsengine.model import GroupedBatch, Labels, SeriesBatch, ValueKind
from tsengine.testing.compare import assert_rows, rows_of
from tsengine.testing.conformance.base import A, B, C, ConformanceBase
from tsengine.testing.conformance.writing import batch_of, each_way, write_by

_TIMES = [1, 2, 3]

_COLUMNS: dict[ValueKind, Callable[[], Any]] = {
    ValueKind.FLOAT: lambda: np.array([1.0, 2.0, 3.0]),
    ValueKind.INT: lambda: np.array([2**60, 7, -5]),
    ValueKind.OBJECT: lambda: np.array([[1], {"a": [2]}, "x"], dtype=object),
}

each_kind = pytest.mark.parametrize("kind", list(ValueKind))


def _spoil(values: Any) -> None:
    """Overwrite a column in place, and what is inside objects."""
    if values.dtype == object:
        for value in values.tolist():
            if isinstance(value, list):
                value.append("spoilt")
            elif isinstance(value, dict):
                value["spoilt"] = True
                for item in value.values():
                    if isinstance(item, list):
                        item.append("spoilt")
        values[:] = "spoilt"
    else:
        values[:] = 99


class AliasingConformance(ConformanceBase):
    """Arguments are not kept, results are copies."""

    @each_kind
    def test_arrays_given_are_not_kept(self, kind: ValueKind) -> None:
        """A caller may reuse its arrays, lists and objects once a write has returned."""
        engine = self.open()
        expected = list(zip(_TIMES, _COLUMNS[kind]().tolist(), strict=True))
        times, values = np.array(_TIMES), _COLUMNS[kind]()
        engine.write_series(A, times, values)
        times[:] = 77
        _spoil(values)
        times, values, offsets = np.array(_TIMES), _COLUMNS[kind](), np.array([0, 3])
        labels = [B]
        engine.write_batch(GroupedBatch(labels, offsets, times, values))
        labels[0] = Labels("spoilt")
        times[:], offsets[:] = 77, 0
        _spoil(values)
        times, values, offsets = np.array(_TIMES), _COLUMNS[kind](), np.array([0, 3])
        engine.write_batch_to_buffer(GroupedBatch([C], offsets, times, values))
        engine.flush_buffer()
        times[:], offsets[:] = 77, 0
        _spoil(values)
        assert_rows(rows_of(engine.query()), dict.fromkeys((A, B, C), expected))

    @each_way
    def test_objects_given_are_not_kept(self, way: str) -> None:
        """An object value changed after its write stays in the store as it was."""
        engine = self.open()
        value: dict[str, list[int]] = {"a": [1]}
        write_by(way, engine, A, [1], [value])
        value["a"].append(2)
        assert_rows(rows_of(engine.query()), {A: [(1, {"a": [1]})]})

    def test_staged_objects_are_not_kept(self) -> None:
        """An object value changed between staging and flush is stored as it was staged."""
        engine = self.open()
        value: dict[str, list[int]] = {"a": [1]}
        engine.write_to_buffer((A, 1, value))
        value["a"].append(2)
        engine.flush_buffer()
        assert_rows(rows_of(engine.query()), {A: [(1, {"a": [1]})]})

    @each_kind
    @pytest.mark.parametrize("source", ["query", "range", "scan", "exact"])
    def test_results_alias_nothing(self, kind: ValueKind, source: str) -> None:
        """Whoever overwrites a result changes his own copy, and may."""
        engine = self.open()
        engine.write_series(A, _TIMES, _COLUMNS[kind]())
        engine.write_series(B, _TIMES, _COLUMNS[kind]())
        engine.write([(A, 2, _COLUMNS[kind]().tolist()[1])])
        before = rows_of(engine.query())
        reads: dict[str, Callable[[], Iterable[SeriesBatch]]] = {
            "query": engine.query,
            "range": lambda: engine.query("cpu", 1, 3),
            "scan": lambda: list(engine.scan()),
            "exact": lambda: engine.query(A),
        }
        for batch in reads[source]():
            batch.timestamps[:] = 5
            _spoil(batch.values)
        assert_rows(rows_of(engine.query()), before)
        assert_rows(rows_of(engine.scan(), joined=False), before)

    def test_points_of_a_result_alias_nothing(self) -> None:
        """Objects in earliest, latest and validate_point are the caller's own."""
        engine = self.open()
        engine.write([(A, 1, {"a": [1]})])
        for point in (
            *engine.latest(),
            *engine.earliest(),
            engine.validate_point((A, 1, {"a": [1]})),
        ):
            assert isinstance(point.value, dict)
            point.value["spoilt"] = True
        assert_rows(rows_of(engine.query()), {A: [(1, {"a": [1]})]})

    def test_results_outlive_the_engine(self) -> None:
        """A result is readable after further writes, deletes and after close."""
        engine = self.open()
        engine.write_series(A, np.arange(1, 10_001), np.arange(10_000.0))
        result = engine.query()
        engine.delete()
        engine.compact()
        engine.write_series(A, np.arange(1, 10_001), np.zeros(10_000))
        engine.close()
        np.testing.assert_array_equal(result[0].values, np.arange(10_000.0))
        np.testing.assert_array_equal(result[0].timestamps, np.arange(1, 10_001))

    def test_arrays_given_are_left_alone(self) -> None:
        """A write changes none of the caller's arrays, and takes read-only ones."""
        engine = self.open()
        times, values, offsets = np.array([3, 1, 2]), np.array([1.0, 2.0, 3.0]), np.array([0, 3])
        for array in (times, values, offsets):
            array.setflags(write=False)
        engine.write_series(A, times, values)
        engine.write_batch(GroupedBatch((B,), offsets, times, values))
        assert times.tolist() == [3, 1, 2]
        assert values.tolist() == [1.0, 2.0, 3.0]
        rows = [(1, 2.0), (2, 3.0), (3, 1.0)]
        assert_rows(rows_of(engine.query()), {A: rows, B: rows})


@contextmanager
def _switching_fast() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def together(*works: Callable[[], None]) -> None:
    """Run all at once, each in its thread, switching as fast as can be; raise what one raised."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(works))

    def run(work: Callable[[], None]) -> None:
        try:
            barrier.wait()
            work()
        except BaseException as error:  # noqa: BLE001  # raised again below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    with _switching_fast():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


class ThreadConformance(ConformanceBase):
    """Any thread may make any call."""

    def test_concurrent_writes_are_all_stored(self) -> None:
        """What several threads write, by every way, is what is stored."""
        engine = self.open()

        def work(number: int) -> Callable[[], None]:
            labels = Labels("thread", number=str(number))

            def run() -> None:
                for turn in range(20):
                    moment = turn * 4 + 1
                    engine.write([(labels, moment, 1.0), (A, moment * 8 + number, 1.0)])
                    engine.write_series(labels, [moment + 1], [2.0])
                    engine.write_to_buffer((labels, moment + 2, 3.0))
                    engine.flush_buffer()
                    engine.write_batch(batch_of(labels, [moment + 3], [4.0]))

            return run

        together(*(work(number) for number in range(4)))
        rows = rows_of(engine.query())
        for number in range(4):
            found = rows.pop(Labels("thread", number=str(number)))
            assert found == [(moment, float((moment - 1) % 4 + 1)) for moment in range(1, 81)]
        assert [len(found) for found in rows.values()] == [80]

    def test_concurrent_sums_lose_nothing(self) -> None:
        """Commits to one point by several threads each count once."""
        engine = self.open(duplicate_policy="sum", integers="int")

        def work() -> None:
            for _ in range(25):
                engine.write([(A, 1, 1), (A, 2, 1), (B, 1, 1)])

        together(work, work, work, work)
        assert_rows(rows_of(engine.query()), {A: [(1, 100), (2, 100)], B: [(1, 100)]})

    def test_readers_see_whole_commits(self) -> None:
        """While commits and deletes go on, each read sees all of a commit or nothing of it."""
        engine = self.open()
        done = threading.Event()
        series = (A, B, C)

        def write() -> None:
            try:
                for turn in range(1, 41):
                    engine.write(
                        [(labels, moment, float(turn)) for labels in series for moment in (1, 2)]
                    )
                    if turn % 10 == 0:
                        engine.delete(None, 2, 3)
                        engine.compact()
            finally:
                done.set()

        def read(how: Callable[[], Any]) -> Callable[[], None]:
            def run() -> None:
                newest = 0.0
                while not done.is_set():
                    rows = rows_of(how(), joined=False)
                    if not rows:
                        continue
                    assert list(rows) == list(series)
                    values = {float(str(row[1])) for found in rows.values() for row in found}
                    assert len(values) == 1, f"a read saw parts of several commits: {rows}"
                    assert len({len(found) for found in rows.values()}) == 1
                    assert max(values) >= newest
                    newest = max(values)

            return run

        together(write, read(engine.query), read(engine.scan))
        assert engine.count() == 3

    def test_of_racing_kinds_one_wins(self) -> None:
        """Two threads that open one series with two kinds: one is stored, the other is told."""
        engine = self.open()
        refused: list[str] = []

        def work(value: object) -> Callable[[], None]:
            def run() -> None:
                for number in range(20):
                    try:
                        engine.write([(Labels("race", number=str(number)), 1, value)])
                    except ValueError:
                        refused.append(str(number))

            return run

        together(work(1.0), work("x"))
        assert len(refused) == 20
        assert len(set(refused)) == 20
        assert engine.count() == 20

    def test_duplicates_race_for_one_place(self) -> None:
        """Under `error` exactly one of several writers gets a place."""
        engine = self.open(duplicate_policy="error")
        won: list[int] = []

        def work(number: int) -> Callable[[], None]:
            def run() -> None:
                for moment in range(1, 21):
                    try:
                        engine.write([(A, moment, float(number))])
                    except ValueError:
                        continue
                    won.append(moment)

            return run

        together(work(1), work(2), work(3))
        assert sorted(won) == list(range(1, 21))
        assert engine.count() == 20

    def test_close_waits_for_nobody_to_crash(self) -> None:
        """Calls that race with close() finish or raise NotOpenError, and no point is half there."""
        engine = self.open()

        def work() -> None:
            try:
                for moment in range(1, 10_000):
                    engine.write([(A, moment, 1.0)])
                    engine.count(A, moment, moment + 1)
                    engine.latest()
            except NotOpenError:
                return

        def close() -> None:
            while engine.count(A) < 5:
                pass
            engine.close()

        together(work, work, close)
