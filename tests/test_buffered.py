from __future__ import annotations

import inspect
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import Phase, given, settings

from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.memory import MemoryEngine
from tsengine.buffer import WriteBuffer
from tsengine.buffered import BufferedEngine, BufferOptions
from tsengine.engine import Capability, Engine
from tsengine.errors import (
    ForkedError,
    InvalidDataError,
    NotOpenError,
    ReadOnlyError,
    RejectedPointsError,
    StorageError,
    StoreInUseError,
    TimestampError,
    UnknownOptionError,
    UnsavedPointsError,
)
from tsengine.model import (
    DataPoint,
    GroupedBatch,
    Labels,
    ProducerMark,
    SeriesBatch,
    ValueKind,
    WriteReceipt,
)
from tsengine.result import QueryResult
from tsengine.retry import ErrorClass, RetryPolicy
from tsengine.testing import Lockstep, Target, operations
from tsengine.testing.compare import assert_rows, assert_same_answers, rows_of
from tsengine.testing.conformance.isolation import together
from tsengine.testing.conformance.lifecycle import in_a_child
from tsengine.testing.conformance.writing import batch_of

A, B, C = (Labels("cpu", host=host) for host in "abc")
IMPATIENT = RetryPolicy(max_retries=0)


def each_series(engine: Engine) -> Iterator[SeriesBatch]:
    """Give what `scan_groups` gives, series by series."""
    for item in engine.scan_groups():
        yield from item.groups() if isinstance(item, GroupedBatch) else [item]


CALLS: dict[str, Callable[[Engine, Path], object]] = {
    "write": lambda engine, _: engine.write([(B, 1, 1.0)]),
    "write_series": lambda engine, _: engine.write_series(B, [1], [1.0]),
    "write_batch": lambda engine, _: engine.write_batch(batch_of(B, [1], [1.0])),
    "write_table": lambda engine, _: engine.write_table({"timestamp": [1, 2], B.id: [1.0, 2.0]}),
    "delete": lambda engine, _: engine.delete(A),
    "query": lambda engine, _: rows_of(engine.query()),
    "scan": lambda engine, _: rows_of(engine.scan(), joined=False),
    "scan_groups": lambda engine, _: rows_of(each_series(engine), joined=False),
    "aggregate": lambda engine, _: rows_of(
        engine.aggregate(
            "cpu", 0, 9, functions=["last"], every="2ns", group_by=["host"], origin=1, fill=0
        )
    ),
    "earliest": lambda engine, _: engine.earliest(),
    "latest": lambda engine, _: engine.latest(),
    "count": lambda engine, _: engine.count(),
    "series": lambda engine, _: list(engine.series()),
    "label_names": lambda engine, _: engine.label_names(),
    "label_values": lambda engine, _: engine.label_values("host"),
    "compact": lambda engine, _: engine.compact(),
    "snapshot": lambda engine, path: engine.snapshot(str(path / "copy")),
    "check": lambda engine, _: engine.check(),
    "stats": lambda engine, _: engine.stats().points,
    "flush_buffer": lambda engine, _: engine.flush_buffer(),
}
"""Every call that comes after what is pending."""

OTHERS = {
    *("open", "close", "require", "shares_store"),
    *("validate_point", "write_to_buffer", "write_batch_to_buffer", "discard_buffer"),
    *("series_kind", "error_class", "high_water", "forget_producer"),
    *("retained_from", "changed_since"),
}
"""Every other: life, what judges, stages, or asks about marks, where retention cuts, and what
changed, which most engines do not know (`test_who_does_not_know_says_so`)."""


class Fragile(MemoryEngine):
    """A store whose commits fail on demand."""

    fails = False

    def _commit(self, batches: Sequence[GroupedBatch], mark: ProducerMark | None) -> WriteReceipt:
        if self.fails:
            raise StorageError("the disk is on fire")
        return super()._commit(batches, mark)


def fragile(**options: Any) -> tuple[BufferedEngine, Fragile]:
    """Give an open engine that does not try again, and what is behind it."""
    behind = Fragile()
    return BufferedEngine(behind, retry=IMPATIENT, age_max=None, **options).open(), behind


# What is seen.


def check_sees(engine_type: type[BufferedEngine], call: str, path: Path) -> None:
    """Check that a call gives, and leaves behind, the same with points pending as with them stored.

    They are in its way where it writes or deletes: under `first` they are those that stand.
    """
    with (
        engine_type(MemoryEngine(duplicate_policy="first"), age_max=None) as engine,
        MemoryEngine(duplicate_policy="first") as plain,
    ):
        for each in (engine, plain):
            each.write_to_buffer((B, 1, 1.0))
        for labels in (A, B):
            engine.buffer.write((labels, 1, 7.0))
            plain.write([(labels, 1, 7.0)])
        (path / "plain").mkdir()
        try:
            found, expected = CALLS[call](engine, path), CALLS[call](plain, path / "plain")
        finally:
            for each in (engine, plain):
                each.discard_buffer()
        if call != "compact":  # tells of bytes
            assert found == expected
        assert engine.buffer.pending == 0
        assert_same_answers(plain, engine.engine)
        if call == "snapshot":
            with MemoryEngine(str(path / "copy")) as copy:
                assert_same_answers(plain, copy)


@pytest.mark.parametrize("call", CALLS)
def test_every_call_comes_after_what_is_pending(call: str, tmp_path: Path) -> None:
    """Each read, write, delete and upkeep sees what was written to the buffer before it."""
    check_sees(BufferedEngine, call, tmp_path)


def test_every_call_of_an_engine_is_thought_of() -> None:
    """What `Engine` can be asked is in one of the lists here: a new call has to be put in one."""
    calls = {
        name
        for name, _ in inspect.getmembers(Engine, inspect.isfunction)
        if not name.startswith("_")
    }
    assert calls == CALLS.keys() | OTHERS


PRIMITIVES = {
    "delete": "_delete",
    "scan": "_scan",
    "series": "_series",
    "stats": "_stats",
    "flush_buffer": "_commit",
}


def forgetful(call: str) -> type[BufferedEngine]:
    """Make a BufferedEngine that forgets to flush before one call."""
    name = PRIMITIVES.get(call, call)

    def forgets(self: BufferedEngine, *args: Any, **options: Any) -> object:
        return getattr(self.engine, name)(*args, **options)

    return type(f"Forgets_{call}", (BufferedEngine,), {name: forgets})


@pytest.mark.parametrize("call", CALLS)
def test_one_call_that_forgets_is_caught(call: str, tmp_path: Path) -> None:
    """The test above fails with an engine that forgets to flush before one call."""
    with pytest.raises(AssertionError):
        check_sees(forgetful(call), call, tmp_path)


FLOATS = [(A, ValueKind.FLOAT), (B, ValueKind.FLOAT), (C, ValueKind.FLOAT)]


def run_in_lockstep(engine_type: type[BufferedEngine], examples: int) -> None:
    """Drive an engine, written to through its buffer, through random operations."""
    target = Target(lambda _, **given: engine_type(MemoryEngine(**given), age_max=None))

    @settings(max_examples=examples, phases=[Phase.generate], derandomize=True)
    @given(steps=operations(FLOATS))
    def agree(steps: Any) -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            Lockstep({"suspect": target}, Path(folder), duplicate_policy="first") as lockstep,
        ):
            lockstep.run(steps)

    agree()


@pytest.mark.parametrize("call", ["query", "delete"])
def test_lockstep_catches_one_that_forgets(call: str) -> None:
    """Random operations find a BufferedEngine that forgets, without a test that names it."""
    with pytest.raises((AssertionError, ExceptionGroup)):
        run_in_lockstep(forgetful(call), examples=100)


def test_iterators_flush_at_the_call() -> None:
    """`scan` and `series` have flushed when they return, and then go their own way."""
    with BufferedEngine(MemoryEngine(), age_max=None) as engine:
        engine.buffer.write((A, 1, 1.0))
        scan = engine.scan()
        assert engine.buffer.pending == 0
        engine.buffer.write((B, 1, 1.0))
        series = engine.series()
        assert engine.buffer.pending == 0
        engine.buffer.write((C, 1, 1.0))
        assert list(series) == [A, B]
        assert A in rows_of(scan)
        assert engine.buffer.pending == 1


def test_the_engine_behind_is_asked_by_its_public_calls() -> None:
    """What a backend answers better than by the defaults of `Engine` is reached."""
    asked: list[str] = []

    def recording(name: str) -> Callable[..., object]:
        def call(self: MemoryEngine, *args: Any, **options: Any) -> object:
            asked.append(name)
            return getattr(MemoryEngine, name)(self, *args, **options)

        return call

    calls = [name for name in CALLS if name != "flush_buffer"] + ["high_water", "forget_producer"]
    recorder = type("Recorder", (MemoryEngine,), {name: recording(name) for name in calls})
    with tempfile.TemporaryDirectory() as folder, BufferedEngine(recorder()) as engine:
        for name in calls:
            asked.clear()
            if name in CALLS:
                CALLS[name](engine, Path(folder))
            else:
                getattr(engine, name)("producer")
            assert asked[:1] == [name]


def test_it_is_as_capable_as_the_engine_behind(tmp_path: Path) -> None:
    """Capabilities, options, location, read_only, rules and what LMDB adds are those behind."""
    behind = LmdbEngine(str(tmp_path / "store"), merging="manual", duplicate_policy="max")
    behind.open().close()
    behind = LmdbEngine(str(tmp_path / "store"), merging="manual", read_only=True)
    with BufferedEngine(behind) as engine:
        assert engine.capabilities == LmdbEngine.capabilities
        assert engine.marks_producers
        assert engine.location == behind.location
        assert engine.read_only
        assert engine.options == behind.options
        assert engine.options.duplicate_policy.value == "max"
        assert engine.rules == behind.rules
        assert engine.timestamp_min == behind.timestamp_min
        assert engine.validates_every_point == behind.validates_every_point
        assert dict(engine.backend_options) == {"merging": "manual"}
    assert Capability.PERSISTENCE not in BufferedEngine(MemoryEngine()).capabilities


def test_options_are_those_of_a_buffer() -> None:
    """A BufferedEngine takes what WriteBuffer takes, with the same types."""
    parameters = inspect.signature(WriteBuffer.__init__).parameters.keys() - {"self", "handler"}
    assert get_type_hints(BufferOptions).keys() == parameters
    hints = get_type_hints(WriteBuffer.__init__)
    for name, hint in get_type_hints(BufferOptions).items():
        assert hints[name] == hint, name


# The handler half.


def test_staging_and_buffering_do_not_meet() -> None:
    """One thread may have points staged here, staged behind and pending, each on its own."""
    with BufferedEngine(MemoryEngine(), age_max=None, producer="p") as engine:
        engine.write_to_buffer((A, 1, 1.0))
        engine.buffer.write((B, 1, 1.0))
        assert list(engine.series()) == [B]
        assert engine.staged_points == 1
        assert engine.engine.staged_points == 0
        engine.buffer.write((C, 1, 1.0))
        mark = ProducerMark("other", 5)
        assert engine.flush_buffer(mark) == WriteReceipt(1, 1)
        assert engine.high_water("other") == mark
        assert engine.high_water("p") == ProducerMark("p", 2)
        assert list(engine.engine.series()) == [A, B, C]
        engine.write_to_buffer((A, 2, 2.0))
        engine.engine.write_to_buffer((A, 3, 3.0))
        assert engine.flush_buffer() == WriteReceipt(1, 1)
        assert engine.engine.flush_buffer() == WriteReceipt(1, 1)


def test_a_pending_point_fixes_the_kind() -> None:
    """Whatever judges a point knows the kinds of the points that are pending."""
    with BufferedEngine(MemoryEngine(integers="int"), age_max=None) as engine:
        assert engine.holds_only_floats is engine.engine.holds_only_floats
        engine.buffer.write((A, 1, 1.0))
        assert engine.validate_point((A, 2, 5)) == DataPoint(A, 2, 5.0)
        assert type(engine.validate_point((A, 2, 5)).value) is float
        engine.buffer.write((B, 1, "text"))
        assert not engine.holds_only_floats
        with pytest.raises(InvalidDataError):
            engine.write_to_buffer((B, 2, 2.0))
        engine.buffer.write((C, 1, 1.0))
        assert engine.series_kind(C) is ValueKind.FLOAT
        engine.buffer.write((C, 2, 1.0))
        assert engine.series_kind(C) is ValueKind.FLOAT
        assert engine.buffer.pending == 1  # a kind that is stored is known without a commit


def test_two_in_front_of_each_other() -> None:
    """A BufferedEngine wraps another: what is in either buffer is seen, in order of flushes."""
    inner = BufferedEngine(MemoryEngine(), age_max=None)
    with BufferedEngine(inner, age_max=None) as outer:
        outer.buffer.write((A, 1, 1.0))
        inner.buffer.write((A, 1, 2.0))
        inner.buffer.write((B, 1, 2.0))
        outer.write_to_buffer((C, 1, 3.0))
        assert_rows(rows_of(outer.query()), {A: [(1, 1.0)], B: [(1, 2.0)]})
        outer.flush_buffer()
        assert list(inner.series()) == [A, B, C]
        outer.buffer.write((A, 2, 1.0))
        inner.buffer.write((B, 2, 2.0))
    with pytest.raises(NotOpenError):
        inner.count()
    with pytest.raises(NotOpenError):
        inner.engine.count()
    assert inner.buffer.committed.accepted == 3
    assert inner.buffer.pending == outer.buffer.pending == 0


def test_a_store_of_floats_tells_so_while_none_other_is_pending(tmp_path: Path) -> None:
    """A handler in front of LMDB says that any series may be of floats, but not over its buffer."""
    with BufferedEngine(LmdbEngine(str(tmp_path / "store")), age_max=None) as engine:
        said = [engine.holds_only_floats]
        engine.buffer.write((A, 1, "text"))
        said.append(engine.holds_only_floats)
        engine.buffer.take_pending()
        said.append(engine.holds_only_floats)
        assert said == [True, False, True]


def test_points_are_judged_by_the_clock_behind() -> None:
    """What may not lie ahead of the clock is judged by the clock of the engine behind."""
    behind = MemoryEngine(clock_ns=lambda: 1_000, future_max="10ns")
    with BufferedEngine(behind, age_max=None) as engine:
        engine.write_to_buffer((A, 1_010, 1.0))
        assert engine.validates_every_point
        with pytest.raises(TimestampError):
            engine.write_to_buffer((A, 1_011, 1.0))
        engine.flush_buffer()


def test_errors_are_classed_by_the_engine_behind() -> None:
    """A backend that knows its errors better than their types do is asked about them."""

    class Knowing(MemoryEngine):
        def error_class(self, error: Exception) -> ErrorClass:
            return ErrorClass.TOO_LARGE if isinstance(error, KeyError) else ErrorClass.FATAL

    with BufferedEngine(Knowing()) as engine:
        assert engine.error_class(KeyError()) is ErrorClass.TOO_LARGE


# What fails.


@pytest.mark.parametrize("call", CALLS)
def test_a_flush_that_fails_fails_the_call(call: str, tmp_path: Path) -> None:
    """The call raises what the commit failed with and does nothing; no point is lost."""
    engine, behind = fragile()
    engine.write_to_buffer((B, 1, 1.0))
    engine.buffer.write((A, 1, 1.0))
    behind.fails = True
    for _ in range(2):
        with pytest.raises(StorageError, match="on fire"):
            CALLS[call](engine, tmp_path)
        if call == "flush_buffer":  # which consumes whatever happens
            break
    assert engine.buffer.pending == 1
    assert engine.engine.count() == 0
    assert list(tmp_path.iterdir()) == []
    behind.fails = False
    engine.discard_buffer()
    assert_rows(rows_of(engine.query()), {A: [(1, 1.0)]})
    engine.close()


def test_rejected_points_are_told_once() -> None:
    """Points that cannot be stored are in the error of one call; the others are stored."""
    with BufferedEngine(MemoryEngine(duplicate_policy="error"), age_max=None) as engine:
        engine.buffer.write_many([(A, 1, 1.0), (A, 1, 2.0), (B, 1, 3.0)])
        with pytest.raises(RejectedPointsError) as caught:
            engine.latest()
        assert caught.value.points == [DataPoint(A, 1, 2.0)]
        assert_rows(rows_of(engine.query()), {A: [(1, 1.0)], B: [(1, 3.0)]})


def test_whoever_takes_rejected_points_may_ask_meanwhile() -> None:
    """`on_reject` has the points, may read and write through the engine, and no call raises."""
    seen: list[tuple[list[DataPoint], int]] = []

    def take(points: list[DataPoint], error: Exception) -> None:
        assert isinstance(error, InvalidDataError)
        seen.append((points, engine.count()))
        engine.buffer.write((C, len(seen), 1.0))

    for background in (False, True):
        seen.clear()
        engine = BufferedEngine(
            MemoryEngine(duplicate_policy="error"),
            age_max=None,
            on_reject=take,
            background=background,
        ).open()
        engine.buffer.write_many([(A, 1, 1.0), (A, 1, 2.0), (B, 1, 3.0)])
        assert engine.count() >= 2
        assert seen == [([DataPoint(A, 1, 2.0)], 2)]
        assert engine.count() == 3
        engine.close()


def test_a_buffer_closed_by_hand_is_in_nobodys_way() -> None:
    """With its buffer closed, an engine goes on unless points are left in it."""
    engine, behind = fragile()
    engine.buffer.close()
    assert engine.write([(A, 1, 1.0)]) == WriteReceipt(1, 1)
    assert engine.count() == 1
    engine.close()
    engine, behind = fragile()
    engine.buffer.write((A, 1, 1.0))
    behind.fails = True
    with pytest.raises(UnsavedPointsError):
        engine.buffer.close()
    with pytest.raises(NotOpenError, match="closed"):
        engine.count()
    assert engine.buffer.take_pending() == [DataPoint(A, 1, 1.0)]
    assert engine.count() == 0
    engine.close()


# Life.


def test_opening_opens_what_is_behind(tmp_path: Path) -> None:
    """A new engine is opened, an open one taken as it is, a closed one refused."""
    behind = MemoryEngine()
    engine = BufferedEngine(behind)
    with pytest.raises(NotOpenError):
        _ = engine.buffer
    with pytest.raises(NotOpenError):
        behind.count()
    with engine:
        assert behind.count() == 0
    behind = MemoryEngine().open()
    behind.write([(A, 1, 1.0)])
    engine = BufferedEngine(behind)
    for name, call in CALLS.items():
        if name != "check":  # which a backend may offer before
            with pytest.raises(NotOpenError):
                call(engine, tmp_path)
    for ask in (engine.high_water, engine.forget_producer):
        with pytest.raises(NotOpenError):
            ask("producer")
    with engine:
        assert engine.count() == 1
    with pytest.raises(NotOpenError):
        BufferedEngine(behind).open()


def test_an_engine_that_was_never_opened_closes_what_is_behind() -> None:
    """It is the one to close what it was given, open or not."""
    behind = MemoryEngine().open()
    BufferedEngine(behind).close()
    with pytest.raises(NotOpenError):
        behind.count()


def test_bad_options_leave_nothing_open() -> None:
    """Where the buffer cannot be made, open raises, and closes what it opened itself alone."""
    behind = MemoryEngine()
    with pytest.raises(UnknownOptionError, match="points_max"):
        BufferedEngine(behind, points_max=0).open()
    with pytest.raises(NotOpenError):
        behind.count()
    behind = MemoryEngine().open()
    with pytest.raises(UnknownOptionError, match="points_max"):
        BufferedEngine(behind, points_max=0).open()
    assert behind.count() == 0


def test_open_waits_for_a_store_in_use() -> None:
    """`open(timeout)` waits for the store behind as that would itself."""

    class Taken(MemoryEngine):
        attempts = 0

        def _open(self) -> None:
            self.attempts += 1
            if self.attempts < 3:
                raise StoreInUseError("somebody has it")
            super()._open()

    with pytest.raises(StoreInUseError):
        BufferedEngine(Taken()).open()
    engine = BufferedEngine(Taken())
    with pytest.raises(StoreInUseError):
        engine.open()
    with engine.open(timeout=60):
        assert engine.count() == 0


def test_check_before_opening_is_that_behind(tmp_path: Path) -> None:
    """A store that is not trusted is checked before it is opened, where the backend can."""
    place = str(tmp_path / "store")
    with LmdbEngine(place) as plain:
        plain.write([(A, 1, 1.0)])
    engine = BufferedEngine(LmdbEngine(place))
    engine.check()
    with engine:
        assert engine.count() == 1


def test_close_says_all_it_could_not_save() -> None:
    """Points pending, staged here and staged behind are counted; what was pending comes back."""
    engine, behind = fragile()
    engine.write_to_buffer((B, 1, 1.0))
    behind.write_to_buffer((C, 1, 1.0))
    engine.buffer.write_many([(A, 1, 1.0), (A, 2, 2.0)])
    behind.fails = True
    with pytest.raises(UnsavedPointsError) as caught:
        engine.close()
    assert caught.value.count == 4
    for closed in (engine, behind):
        with pytest.raises(NotOpenError):
            closed.count()
    engine.close()
    assert engine.buffer.take_pending() == [DataPoint(A, 1, 1.0), DataPoint(A, 2, 2.0)]
    engine.close()


def test_close_while_it_opens_closes_all() -> None:
    """A close() in another thread that comes while open() is under way leaves no buffer open."""
    opening, closing = threading.Event(), threading.Event()

    class Slow(MemoryEngine):
        def _open(self) -> None:
            opening.set()
            assert closing.wait(60)

    class Telling:
        """The lock of open() and close(), which tells when close() is about to wait for it."""

        lock = threading.Lock()

        def __enter__(self) -> None:
            if opening.is_set():
                closing.set()
            self.lock.acquire()

        def __exit__(self, *_: object) -> None:
            self.lock.release()

    engine = BufferedEngine(Slow())
    engine._lifecycle_lock = Telling()  # type: ignore[assignment]  # as far as it is used

    def open_it() -> None:
        engine.open()

    def close_it() -> None:
        assert opening.wait(60)
        engine.close()

    together(open_it, close_it)
    with pytest.raises(NotOpenError):
        engine.buffer.flush()
    with pytest.raises(NotOpenError):
        engine.engine.count()


def test_close_says_what_was_pending() -> None:
    """With points pending alone, the error is that of the buffer, with its cause."""
    engine, behind = fragile()
    engine.buffer.write((A, 1, 1.0))
    behind.fails = True
    with pytest.raises(UnsavedPointsError, match="take_pending") as caught:
        engine.close()
    assert caught.value.count == 1
    assert isinstance(caught.value.__cause__, StorageError)
    engine.buffer.take_pending()


def test_close_goes_on_after_every_failure() -> None:
    """Where buffer and engine both fail at closing, both are told, and a second call closes."""

    class Stuck(Fragile):
        def _close(self) -> None:
            if self.fails:
                raise StorageError("cannot close")
            super()._close()

    def fail(points: list[DataPoint], error: Exception) -> None:
        behind.fails = True
        raise KeyError("no place for them")

    behind = Stuck(duplicate_policy="error")
    engine = BufferedEngine(behind, age_max=None, on_reject=fail).open()
    engine.buffer.write_many([(A, 1, 1.0), (A, 1, 2.0)])
    with pytest.raises(ExceptionGroup) as caught:
        engine.close()
    assert [type(error) for error in caught.value.exceptions] == [KeyError, StorageError]
    behind.fails = False
    engine.close()
    assert behind._holds_store is False


def test_what_was_pending_is_there_after_reopening(tmp_path: Path) -> None:
    """Closing stores what is pending."""
    with BufferedEngine(LmdbEngine(str(tmp_path / "store")), age_max=None) as engine:
        engine.buffer.write((A, 1, 1.0))
    with LmdbEngine(str(tmp_path / "store")) as plain:
        assert_rows(rows_of(plain.query()), {A: [(1, 1.0)]})


def test_a_read_only_engine_reads(tmp_path: Path) -> None:
    """With nothing to write there is nothing to flush: reads answer, the buffer refuses."""
    with LmdbEngine(str(tmp_path / "store")) as plain:
        plain.write([(A, 1, 1.0)])
    with BufferedEngine(LmdbEngine(str(tmp_path / "store"), read_only=True)) as engine:
        assert engine.count() == 1
        with pytest.raises(ReadOnlyError):
            engine.buffer.write((A, 2, 2.0))
        with pytest.raises(ReadOnlyError):
            engine.write([(A, 2, 2.0)])
        assert engine.count() == 1


def test_a_child_of_a_fork_has_nothing_pending() -> None:
    """In a forked child engine and buffer are refused; the parent's points are stored once."""
    engine = BufferedEngine(MemoryEngine(duplicate_policy="sum"), age_max=None).open()
    engine.buffer.write((A, 1, 1.0))

    def in_child() -> None:
        with pytest.raises(ForkedError):
            engine.count()
        with pytest.raises(ForkedError):
            engine.buffer.write((A, 1, 1.0))
        assert engine.buffer.pending == 0
        engine.close()

    in_a_child(in_child)
    assert_rows(rows_of(engine.query()), {A: [(1, 1.0)]})
    engine.close()


# Threads.


def test_in_the_background_a_read_waits_for_the_flusher() -> None:
    """With `background=True` no read commits in its own thread, and it sees the points."""
    threads: set[threading.Thread] = set()

    class Watched(MemoryEngine):
        def _commit(
            self, batches: Sequence[GroupedBatch], mark: ProducerMark | None
        ) -> WriteReceipt:
            threads.add(threading.current_thread())
            return super()._commit(batches, mark)

    with BufferedEngine(Watched(), age_max=None, background=True) as engine:
        engine.buffer.write((A, 1, 1.0))
        assert engine.latest() == [DataPoint(A, 1, 1.0)]
    assert len(threads) == 1
    assert threading.current_thread() not in threads


@pytest.mark.parametrize("background", [False, True])
def test_threads_read_their_writes(background: bool) -> None:
    """While others write, read and delete, each thread sees what it wrote, whoever committed."""
    with BufferedEngine(
        MemoryEngine(), points_max=7, age_max=0.001, background=background
    ) as engine:

        def work(number: int) -> Callable[[], None]:
            labels = Labels("thread", number=str(number))

            def run() -> None:
                for turn in range(1, 60):
                    engine.buffer.write((labels, turn, float(turn)))
                    if turn % 3 == 0:
                        assert engine.count(labels) == turn
                    if turn % 7 == 0:
                        engine.write_to_buffer((labels, turn, -1.0))
                        engine.flush_buffer()
                        assert engine.latest(labels) == [DataPoint(labels, turn, -1.0)]
                    if turn % 20 == 0:
                        engine.delete(labels, turn)
                        engine.write_series(labels, [turn], [0.0])
                        assert engine.count(labels) == turn

            return run

        together(*(work(number) for number in range(4)))
        result = engine.query()
        assert isinstance(result, QueryResult)
        assert [len(batch) for batch in result] == [59] * 4


@pytest.mark.parametrize("_round", range(20))
def test_close_while_others_write_loses_nothing(_round: int) -> None:
    """Whatever a write to the buffer took is stored, or given back, when close() comes between."""
    behind = MemoryEngine()
    closes = behind.close
    behind.close = lambda: None  # type: ignore[method-assign]  # so that it can be looked at
    engine = BufferedEngine(behind, points_max=5).open()
    taken = [0, 0]
    begun = threading.Event()

    def work(number: int) -> Callable[[], None]:
        labels = Labels("thread", number=str(number))

        def run() -> None:
            try:
                for turn in range(1, 10_000):
                    engine.buffer.write((labels, turn, 1.0))
                    taken[number] = turn
                    if turn > 10:
                        begun.set()
            except NotOpenError:
                return

        return run

    def close() -> None:
        assert begun.wait(60)
        try:
            engine.close()
        except UnsavedPointsError:
            pass

    together(work(0), work(1), close)
    assert behind.count() + len(engine.buffer.take_pending()) == sum(taken)
    closes()
