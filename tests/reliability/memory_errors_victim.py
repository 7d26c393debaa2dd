"""The victim of `memory_errors.py`: does one operation while Python's allocators say no.

Started as a script with one argument, JSON: scheme, folder, operations, ways, ks, fault. It forks
a child for each operation and way of failing, so that a crash costs one case, and prints a line
a case: operation, way, k, outcome. The outcome is `ok`, the exception that was raised, `torn`
where a store in memory then says that it was interrupted half way, or a signal; what breaks a
promise begins with `broken` or `hang`.
"""
# ruff: noqa: D102  # the name of an operation says what it does

from __future__ import annotations

import _testcapi  # type: ignore[import-not-found]  # no stubs: it is CPython's own
import faulthandler
import gc
import json
import logging
import mmap
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias
from unittest import mock

import tsengine
from tsengine import (
    CorruptionError,
    Engine,
    FormatVersionError,
    Labels,
    RetryPolicy,
    WriteBuffer,
)
from tsengine.backends.lmdb import LmdbEngine, merge
from tsengine.backends.memory import MemoryEngine
from tsengine.model import PointLike
from tsengine.selectors import to_selector

SECONDS_MAX: Final = 90
"""Of one case; what takes longer hangs."""

SECONDS_MAX_OF_FAULT: Final = 2
"""Likewise, where a fault was planted that makes it hang."""

REOPENED_EVERY: Final = 10
"""Cases after which the store is closed and opened."""

FAILURES: Final = {"one": 1, "twenty": 20}
"""How many allocations fail, by way. Not all from there on: CPython 3.11 then loops for ever where
it looks for a handler, as it cannot make the number of the instruction that raised."""

FLOATS: Final = [Labels("float", number=str(number)) for number in range(4)]
INTS: Final = [Labels("int", number=str(number)) for number in range(2)]
PROBE: Final = Labels("probe")

Content: TypeAlias = "dict[Labels, dict[int, object]]"
Points: TypeAlias = "list[tuple[Labels, int, Any]]"


@dataclass
class Case:
    """One call, and what it may do.

    Attributes:
        call: the call that memory fails in.
        after: what the store has to hold where it returned.
        maybe: what it may hold where the call raised, beside what it held before.
        check: looks at what was returned.
        settle: what a caller does then, with memory again.
    """

    call: Callable[[], Any]
    after: Content
    maybe: Content | None = None
    check: Callable[[Any], object] = lambda _: None
    settle: Callable[[], object] = lambda: None


class Bench:
    """A store, and what it has to hold. Equal timestamps add up, so nothing doubled is hidden."""

    def __init__(self, scheme: str, folder: Path) -> None:
        self.scheme = scheme
        self.folder = folder
        self.moment = 1
        self.expected: Content = {}
        self.engine = self.open()
        self.buffer = buffer_type(self.engine, points_max=64, age_max=None, retry=AT_ONCE)
        for _ in range(2):
            points = self.points()
            self.engine.write(points)
            self.expected = self.with_points(points)
        points = [(labels, self.next_moment(), 1.0) for labels in FLOATS]
        self.buffer.write_many(points)  # so that the buffer knows them
        self.buffer.flush()
        self.expected = self.with_points(points)

    def open(self) -> Engine:
        """Open the store."""
        location = self.folder / "store" if self.scheme == "lmdb" else ""
        options = "&merging=inline" if self.scheme == "lmdb" else ""
        return tsengine.open(f"{self.scheme}://{location}?duplicate_policy=sum{options}")

    def next_moment(self) -> int:
        """Give a timestamp later than all before."""
        self.moment += 1
        return self.moment

    def points(self) -> Points:
        """Give points of known series and of a new one, some at one timestamp."""
        moment = self.next_moment()
        points: Points = []
        for labels in [*FLOATS, Labels("new", number=str(self.moment % 97))]:
            points += [(labels, moment, 1.0), (labels, moment, 2.0), (labels, moment - 1, 4.0)]
        return points + [(labels, moment, 1) for labels in INTS]

    def with_points(self, points: Points) -> Content:
        """Give what is expected and points."""
        content = {labels: dict(rows) for labels, rows in self.expected.items()}
        for labels, moment, value in points:
            rows = content.setdefault(labels, {})
            rows[moment] = rows.get(moment, 0) + value
        return content

    def content(self, engine: Engine) -> Content:
        """Give what is stored."""
        return {
            batch.labels: dict(zip(batch.timestamps.tolist(), batch.values.tolist(), strict=True))
            for batch in engine.query()
        }

    # Operations.

    def write(self) -> Case:
        points = self.points()
        after = self.with_points(points)
        return Case(lambda: self.engine.write(points), after, after)

    def write_series(self) -> Case:
        moments = [self.next_moment() for _ in range(100)]
        after = self.with_points([(FLOATS[0], moment, 0.5) for moment in moments])
        return Case(lambda: self.engine.write_series(FLOATS[0], moments, [0.5] * 100), after, after)

    def flush_staged(self) -> Case:
        points = self.points()
        after = self.with_points(points)

        def call() -> None:
            for point in points:
                self.engine.write_to_buffer(point)
            self.engine.flush_buffer()

        return Case(call, after, after, settle=self.engine.discard_buffer)

    def buffer_write(self) -> Case:
        point = (FLOATS[1], self.next_moment(), 1.0)
        return Case(lambda: self.buffer.write(point), self.with_points([point]))

    def buffer_write_new(self) -> Case:
        point = (Labels("seldom", number=str(self.moment % 50)), self.next_moment(), 1.0)
        return Case(lambda: self.buffer.write(point), self.with_points([point]))

    def buffer_write_filling(self) -> Case:
        points: Points = [(FLOATS[1], self.next_moment(), 1.0) for _ in range(64)]
        self.buffer.write_many(points[:-1])
        self.expected = self.with_points(points[:-1])
        return Case(lambda: self.buffer.write(points[-1]), self.with_points(points[-1:]))

    def buffer_write_many(self) -> Case:
        points = self.points()
        return Case(lambda: self.buffer.write_many(points), self.with_points(points))

    def buffer_write_series(self) -> Case:
        moments = [self.next_moment() for _ in range(100)]  # more than one commit takes
        after = self.with_points([(FLOATS[2], moment, 0.5) for moment in moments])
        return Case(lambda: self.buffer.write_series(FLOATS[2], moments, [0.5] * 100), after)

    def flush(self) -> Case:
        points = self.points()
        self.buffer.write_many(points)
        self.buffer.write((FLOATS[3], self.next_moment(), 1.0))
        self.expected = self.with_points([*points, (FLOATS[3], self.moment, 1.0)])
        return Case(self.buffer.flush, self.expected)

    def query(self) -> Case:
        def check(result: Any) -> None:
            found = dict(zip(*(column.tolist() for column in self.columns(result)), strict=True))
            assert found == self.expected[FLOATS[0]], "query() gave something else"

        return Case(lambda: self.engine.query(FLOATS[0]), self.expected, check=check)

    @staticmethod
    def columns(result: Any) -> tuple[Any, Any]:
        (batch,) = result
        return batch.timestamps, batch.values

    def query_many(self) -> Case:
        def check(result: Any) -> None:
            assert len(result) == 2, "query() gave other series"

        selector = to_selector('{__name__="float", number=~"[12]"}')  # RE2 crashes without memory
        return Case(lambda: self.engine.query(selector, 1, 50), self.expected, check=check)

    def scan(self) -> Case:
        def check(result: Any) -> None:
            rows = sum(map(len, self.expected.values()))
            assert result == rows, f"scan() gave {result} rows, not {rows}"

        return Case(lambda: sum(map(len, self.engine.scan())), self.expected, check=check)

    def look(self) -> Case:
        def call() -> tuple[int, int, int, int]:
            engine = self.engine
            latest = len(engine.latest('{__name__="float"}'))
            names = len(engine.label_values("number"))
            return latest, engine.count(FLOATS[0]), len(list(engine.series())), names

        def check(result: Any) -> None:
            assert result[:2] == (4, len(self.expected[FLOATS[0]])), f"{result} was given"

        return Case(call, self.expected, check=check)

    def stats(self) -> Case:
        return Case(self.engine.stats, self.expected)

    def count(self) -> Case:
        return Case(self.engine.count, self.expected)

    def delete_rows(self) -> Case:
        start, end = max(self.moment - 20, 1), max(self.moment - 10, 2)
        after: Content = {}
        for labels, rows in self.expected.items():
            kept = {moment: row for moment, row in rows.items() if not start <= moment < end}
            if kept:
                after[labels] = kept
        return Case(lambda: self.engine.delete(None, start, end), after, after)

    def delete_series(self) -> Case:
        points: Points = [(Labels("gone"), self.next_moment(), 1.0)]
        self.engine.write(points)
        self.expected = self.with_points(points)
        gone = next(labels for labels in self.expected if labels not in FLOATS)
        after = {labels: rows for labels, rows in self.expected.items() if labels != gone}
        return Case(lambda: self.engine.delete(gone), after, after)

    def compact(self) -> Case:
        self.engine.write([(PROBE, self.next_moment(), 1.0)])
        self.expected = self.with_points([(PROBE, self.moment, 1.0)])
        return Case(self.engine.compact, self.expected)

    def snapshot(self) -> Case:
        path = self.folder / f"snapshot-{self.next_moment()}"

        def settle() -> None:
            if not path.exists():
                return
            with tsengine.open(f"{self.scheme}://{path}") as copy:
                copy.check()
                assert self.content(copy) == self.expected, "a snapshot is not right"
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

        return Case(lambda: self.engine.snapshot(str(path)), self.expected, settle=settle)

    def check(self) -> Case:
        return Case(self.engine.check, self.expected)

    def close_buffer(self) -> Case:
        points = self.points()
        self.buffer.write_many(points)
        self.expected = self.with_points(points)

        def settle() -> None:
            self.buffer.close()
            pending = self.buffer.take_pending()
            self.buffer = buffer_type(self.engine, points_max=64, age_max=None, retry=AT_ONCE)
            if self.content(self.engine) != self.expected:  # else the commit that failed did it
                self.buffer.write_many(pending)

        return Case(self.buffer.close, self.expected, settle=settle)

    def close(self) -> Case:
        if self.scheme == "lmdb":
            return Case(self.engine.close, self.expected, settle=self.reopen)
        engine = self.open()
        engine.write(self.points())
        return Case(engine.close, self.expected, settle=engine.close)

    def reopen(self) -> None:
        """Close and open the store."""
        self.engine.close()
        self.buffer.close()
        self.engine = self.open()
        self.buffer = buffer_type(self.engine, points_max=64, age_max=None, retry=AT_ONCE)

    def open_again(self) -> Case:
        if self.scheme == "lmdb":
            self.engine.close()

            def call() -> None:
                self.engine = self.open()

            return Case(call, self.expected, settle=self.reopen)
        path = self.folder / "opened"
        path.unlink(missing_ok=True)
        self.engine.snapshot(str(path))

        def open_snapshot() -> None:
            with tsengine.open(f"{self.scheme}://{path}") as copy:
                assert self.content(copy) == self.expected

        return Case(open_snapshot, self.expected, settle=open_snapshot)

    # What has to hold after each.

    def verify(self, case: Case, *, succeeded: bool) -> None:
        """See to it that nothing is lost or half done, and that the store goes on."""
        case.settle()
        self.buffer.flush()
        stored = self.content(self.engine)
        if succeeded:
            assert stored == case.after, differences(stored, case.after)
        elif stored != self.expected:
            assert case.maybe is not None, differences(stored, self.expected)
            assert stored == case.maybe, differences(stored, case.maybe)
        self.expected = stored
        point = (PROBE, self.next_moment(), 1.0)
        self.engine.write([point])
        self.expected = self.with_points([point])
        self.engine.check()
        rows: dict[int, object] = {
            point.timestamp: point.value
            for batch in self.engine.query(PROBE)
            for point in batch.points()
        }
        wanted = self.expected[PROBE]
        assert rows == wanted, differences({PROBE: rows}, {PROBE: wanted})
        if isinstance(self.engine, LmdbEngine):
            store = self.engine._store
            assert not store.environment._readers, "a reader is still counted"
            assert store.pins.oldest() is None, "a moment is still pinned"
            users = len(self.engine._shared.users)
            assert users == 1, f"{users} engines are counted"


def differences(stored: Content, expected: Content) -> str:
    """Tell how two contents differ, in short."""
    for labels in {**expected, **stored}:
        held, wanted = stored.get(labels, {}), expected.get(labels, {})
        if held != wanted:
            less = {moment: row for moment, row in wanted.items() if held.get(moment) != row}
            more = {moment: row for moment, row in held.items() if wanted.get(moment) != row}
            return f"{labels.id}: expected {less}, stored {more}"
    return "no difference"


def fail(case: Case, way: str, k: int) -> BaseException | None:
    """Make the call with the k-th allocation failing, or some from there on."""
    begin, remove = _testcapi.set_nomemory, _testcapi.remove_mem_hooks
    last = k + FAILURES[way]
    # The interpreter leaves a `with` by a tuple, which it mostly has at hand; but collecting
    # garbage has thrown away those. Without one a lock stays locked, whoever wrote the code.
    ready = [(k, None, number) for number in range(2_000)]
    del ready
    call = case.call
    try:
        begin(k, last)
        try:
            result = call()
        finally:
            remove()
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is reported
        return error
    case.check(result)
    return None


def name_of(error: BaseException) -> str:
    """Name an exception. Where it is no MemoryError, something below us has hidden that."""
    if isinstance(error, (CorruptionError, FormatVersionError)):
        return f"broken: {error!r}, of a store that is sound"
    return type(error).__name__


class TakesFirst(WriteBuffer):
    """A planted fault: takes points and may raise all the same."""

    __slots__ = ()

    def write_many(self, points: Iterable[PointLike]) -> None:
        """Take them, and need memory afterwards."""
        super().write_many(points)
        bytes(1_000)


class HoldsLock(MemoryEngine):
    """A planted fault: keeps its lock where memory is short."""

    def count(self, *_: object) -> int:
        self._lock.acquire()
        bytes(1_000)
        self._lock.release()
        return 0


buffer_type = WriteBuffer

AT_ONCE = RetryPolicy(max_retries=0)
"""So that an operation is done once, and allocation k is the same each time."""


def tell(text: str) -> None:
    """Write to standard output, of which a crash loses nothing."""
    os.write(1, text.encode())


def plant(fault: str) -> int:
    """Plant a fault; give how long a case may take."""
    global buffer_type  # noqa: PLW0603  # of this process, which has no other
    if fault == "takes first":
        buffer_type = TakesFirst
    elif fault == "holds lock":
        MemoryEngine.count = HoldsLock.count  # type: ignore[method-assign,assignment]  # a fault
    return SECONDS_MAX_OF_FAULT if fault else SECONDS_MAX


def do_cases(
    bench: Bench, operation: str, way: str, ks: list[int], done: memoryview, seconds_max: int
) -> None:
    """Do one operation with each k; `done[0]` counts them."""
    faulthandler.enable()
    gc.disable()  # so that k is the same allocation each time
    scheme = bench.scheme
    for number, k in enumerate(ks):
        tell(f"{operation} {way} {k} ")
        faulthandler.dump_traceback_later(seconds_max, exit=True)
        case: Case = getattr(bench, operation)()
        error = fail(case, way, k)
        outcome = "ok" if error is None else name_of(error)
        succeeded = error is None
        if error is not None:
            traceback.clear_frames(error.__traceback__)
        del error
        gc.collect()
        try:
            bench.verify(case, succeeded=succeeded)
            if number % REOPENED_EVERY == 0 and scheme == "lmdb":
                bench.reopen()
                assert bench.content(bench.engine) == bench.expected, "reopened it differs"
        except BaseException as broken:  # noqa: BLE001  # whatever it is, it is reported
            if "interrupted half way" in str(broken) and scheme == "memory":
                bench.buffer.take_pending()
                bench = Bench(scheme, bench.folder)
                tell("torn\n")
                done[0] += 1
                continue
            trace = " ".join(traceback.format_exception(broken)).replace("\n", " | ")
            tell(f"broken after {outcome}: {trace}\n")
            os._exit(0)
        tell(outcome + "\n")
        done[0] += 1
    os._exit(0)


def main() -> None:
    """Do all cases that the argument asks for."""
    asked = json.loads(sys.argv[1])
    logging.basicConfig(stream=Path(os.devnull).open("w"))  # noqa: SIM115  # for life
    sys.unraisablehook = lambda _: None  # a __del__ without memory
    seconds_max = plant(asked["fault"])
    done = memoryview(mmap.mmap(-1, 8)).cast("Q")  # shared with the children
    small = mock.patch.multiple(merge, RUNS_DUE=3, RUNS_MERGED=2, TAIL_ROWS_MAX=0)
    small.start()  # for life
    for operation in asked["operations"]:
        for way in asked["ways"]:
            folder = Path(asked["folder"]) / f"{operation}-{way}"
            ks = list(asked["ks"])
            while ks:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                done[0] = 0
                child = os.fork()
                if child == 0:
                    bench = Bench(asked["scheme"], folder)
                    do_cases(bench, operation, way, ks, done, seconds_max)
                _, status = os.waitpid(child, 0)
                if not os.WIFSIGNALED(status):
                    if status:
                        tell("hang\n")
                    break
                tell(f"signal {os.WTERMSIG(status)}\n")
                ks = ks[done[0] + 1 :]  # a library below us has crashed: go on behind it


if __name__ == "__main__":
    main()
