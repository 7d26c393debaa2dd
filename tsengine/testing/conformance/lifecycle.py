"""Life of an engine: open, close, fork, read-only, reopening, snapshot files."""

from __future__ import annotations

import os
import pickle
import traceback
import warnings
from collections.abc import Callable

import pytest

from tsengine.engine import Capability, CompactReport, Engine
from tsengine.errors import (
    ForkedError,
    NotOpenError,
    ReadOnlyError,
    StorageError,
    StoreOptionError,
    StorePathError,
)
from tsengine.model import GroupedBatch
from tsengine.testing.compare import assert_rows, assert_same_answers, rows_of
from tsengine.testing.conformance.base import A, B, C, ConformanceBase, requires
from tsengine.testing.conformance.handler import in_a_thread
from tsengine.testing.conformance.writing import batch_of
from tsengine.testing.strategies import SPECIAL_FLOATS, SPECIAL_INTEGERS

READS: dict[str, Callable[[Engine], object]] = {
    "query": lambda engine: engine.query(),
    "scan": lambda engine: list(engine.scan()),
    "earliest": lambda engine: engine.earliest(),
    "latest": lambda engine: engine.latest(),
    "count": lambda engine: engine.count(),
    "series": lambda engine: list(engine.series()),
    "label_names": lambda engine: engine.label_names(),
    "label_values": lambda engine: engine.label_values("host"),
    "stats": lambda engine: engine.stats(),
    "check": lambda engine: engine.check(),
}

WRITES: dict[str, Callable[[Engine], object]] = {
    "write": lambda engine: engine.write([(A, 1, 1.0)]),
    "write of nothing": lambda engine: engine.write([]),
    "write_series": lambda engine: engine.write_series(A, [1], [1.0]),
    "write_batch": lambda engine: engine.write_batch(batch_of(A, [1], [1.0])),
    "validate_point": lambda engine: engine.validate_point((A, 1, 1.0)),
    "write_to_buffer": lambda engine: engine.write_to_buffer((A, 1, 1.0)),
    "write_batch_to_buffer": lambda engine: engine.write_batch_to_buffer(batch_of(A, [1], [1.0])),
    "flush_buffer": lambda engine: engine.flush_buffer(),
    "delete": lambda engine: engine.delete(),
    "delete of an empty range": lambda engine: engine.delete(None, 1, 1),
    "compact": lambda engine: engine.compact(),
}

each_call = pytest.mark.parametrize("call", [*READS, *WRITES])

OPTIONS: dict[str, tuple[object, object]] = {
    "duplicate_policy": ("max", "sum"),
    "min_timestamp": (5, 6),
    "future_max": ("1h", "2h"),
    "integers": ("int", "float"),
}


def in_a_child(work: Callable[[], None]) -> None:
    """Run something in a forked child and fail as it fails."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the test runner has threads
        child = os.fork()
    if not child:
        report = b""
        try:
            work()
        except BaseException:  # noqa: BLE001  # told to the parent
            report = traceback.format_exc().encode()
        os.write(writer, report)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        report = pipe.read()
    os.waitpid(child, 0)
    assert not report, report.decode()


class LifecycleConformance(ConformanceBase):
    """From open to close, and again."""

    @each_call
    def test_nothing_works_before_open(self, call: str) -> None:
        """An engine that is made and not opened refuses every call, and did no I/O."""
        engine = self.make_engine(self.path / "store")
        with pytest.raises(NotOpenError):
            ({**READS, **WRITES})[call](engine)
        assert list(self.path.iterdir()) == []
        engine.close()
        assert list(self.path.iterdir()) == []

    @each_call
    def test_nothing_works_after_close(self, call: str) -> None:
        """A closed engine refuses every call."""
        engine = self.open()
        engine.write([(A, 1, 1.0)])
        engine.close()
        with pytest.raises(NotOpenError):
            ({**READS, **WRITES})[call](engine)

    def test_close_is_idempotent_and_final(self) -> None:
        """A second close does nothing, from any thread, and what is closed never opens again."""
        engine = self.open()
        engine.close()
        engine.close()
        in_a_thread(engine.close)
        with pytest.raises(NotOpenError):
            engine.open()
        never = self.make_engine(self.path / "never")
        never.close()
        with pytest.raises(NotOpenError):
            never.open()

    def test_an_engine_opens_once(self) -> None:
        """A second open() is refused, and the engine stays open."""
        engine = self.open()
        with pytest.raises(NotOpenError):
            engine.open()
        engine.write([(A, 1, 1.0)])
        assert engine.count() == 1

    def test_with_opens_and_closes(self) -> None:
        """`with` opens what is not open, gives the engine, and closes it at the end."""
        with self.make_engine(self.path / "store") as engine:
            engine.write([(A, 1, 1.0)])
            assert engine.count() == 1
        with pytest.raises(NotOpenError):
            engine.count()
        with self.make_engine(self.path / "other").open() as engine:
            assert engine.count() == 0

    def test_a_child_of_a_fork_is_refused(self) -> None:
        """In a forked child every call raises ForkedError, and the parent's engine is unharmed."""
        engine = self.open()
        engine.write([(A, 1, 1.0)])
        engine.write_to_buffer((A, 2, 2.0))

        def in_child() -> None:
            for name, call in {**READS, **WRITES}.items():
                try:
                    call(engine)
                except ForkedError:
                    continue
                raise AssertionError(f"{name} did not raise ForkedError")

        in_a_child(in_child)
        engine.flush_buffer()
        assert_rows(rows_of(engine.query()), {A: [(1, 1.0), (2, 2.0)]})

    def test_a_child_may_close_what_it_inherited(self) -> None:
        """close() in a forked child leaves the parent's store alone."""
        engine = self.open()
        engine.write([(A, 1, 1.0)])
        in_a_child(engine.close)
        engine.write([(A, 2, 2.0)])
        assert_rows(rows_of(engine.query()), {A: [(1, 1.0), (2, 2.0)]})

    def test_a_repr_shows_where_and_whether_open(self) -> None:
        """The repr of an engine names its class and its state."""
        engine = self.open()
        assert type(engine).__name__ in repr(engine)
        before = repr(engine)
        engine.close()
        assert repr(engine) != before

    def test_compact_reports(self) -> None:
        """compact() gives a CompactReport, on an empty store as well."""
        assert isinstance(self.open().compact(), CompactReport)

    @requires(Capability.PERSISTENCE)
    def test_a_store_is_as_it_was_when_reopened(self) -> None:
        """What is committed is there after reopening, bit for bit, with kinds and order."""
        engine = self.open(integers="int")
        engine.write([(A, index + 1, value) for index, value in enumerate(SPECIAL_FLOATS)])
        engine.write([(B, index + 1, value) for index, value in enumerate(SPECIAL_INTEGERS)])
        engine.write([(C, 1, {"a": [1, 1.0, None]}), (C, 2, b"x")])
        engine.write([(A, 3, 7.5)])
        engine.delete(B, 2, 5)
        before = rows_of(engine.query())
        engine.close()
        for _ in range(2):
            engine = self.open()
            assert_rows(rows_of(engine.query()), before)
            assert list(engine.series()) == [A, B, C]
            assert engine.stats().series == 3
            assert engine.stats().points >= sum(map(len, before.values()))
            engine.check()
            engine.compact()
            assert_rows(rows_of(engine.query()), before)
            engine.close()

    @requires(Capability.PERSISTENCE)
    def test_deletes_persist(self) -> None:
        """A deleted series stays deleted, an emptied one listed, and what came later stays."""
        engine = self.open()
        engine.write([(A, 1, 1.0), (B, 1, 1.0), (C, 1, 1.0)])
        engine.delete(A)
        engine.delete(B, 0, 100)
        engine.delete(C)
        engine.write([(C, 1, "another kind")])
        engine.close()
        engine = self.open()
        assert list(engine.series()) == [B, C]
        assert_rows(rows_of(engine.query()), {C: [(1, "another kind")]})
        engine.write([(A, 1, "x")])
        assert engine.count() == 2

    @requires(Capability.PERSISTENCE)
    def test_staged_points_are_not_persisted(self) -> None:
        """What was staged and discarded is not there after reopening."""
        engine = self.open()
        engine.write_to_buffer((A, 1, 1.0))
        engine.discard_buffer()
        engine.close()
        assert self.open().count() == 0

    @requires(Capability.PERSISTENCE)
    def test_options_belong_to_the_store(self) -> None:
        """A store opened without options goes by those it was created with."""
        given = {name: first for name, (first, _) in OPTIONS.items()}
        engine = self.open(**given)
        options = engine.options
        engine.write([(A, 5, 7)])
        engine.close()
        for again in ({}, given):
            engine = self.open(**again)
            assert engine.options == options
            engine.write([(A, 5, 3)])
            assert_rows(rows_of(engine.query()), {A: [(5, 7)]})
            engine.close()

    @requires(Capability.PERSISTENCE)
    @pytest.mark.parametrize("name", list(OPTIONS))
    def test_other_options_are_refused(self, name: str) -> None:
        """Opening with another option raises StoreOptionError with both, and changes nothing."""
        first, other = OPTIONS[name]
        self.open(**{name: first}).close()
        with pytest.raises(StoreOptionError, match=name):
            self.open(**{name: other})
        assert getattr(self.open().options, name) is not None
        plain = self.open("plain")
        plain.write([(A, 5, 1.0)])
        plain.close()
        if name != "integers":
            with pytest.raises(StoreOptionError, match=name):
                self.open("plain", **{name: first})
        engine = self.open("plain")
        assert_rows(rows_of(engine.query()), {A: [(5, 1.0)]})

    @requires(Capability.PERSISTENCE)
    def test_read_only_reads(self) -> None:
        """read_only=True answers every read and refuses every write with ReadOnlyError."""
        engine = self.open(duplicate_policy="max")
        engine.write([(A, 1, 1.0), (B, 2, 2.0)])
        before = rows_of(engine.query())
        engine.close()
        engine = self.open(read_only=True)
        for call in READS.values():
            call(engine)
        for name, call in WRITES.items():
            with pytest.raises(ReadOnlyError):
                call(engine)
            assert rows_of(engine.query()) == before, name
        assert engine.options.duplicate_policy == "max"
        engine.close()

    @requires(Capability.PERSISTENCE)
    def test_read_only_creates_nothing(self) -> None:
        """read_only=True of a store that is not there fails, and leaves nothing behind."""
        with pytest.raises(StorageError):
            self.open(read_only=True)
        assert list(self.path.iterdir()) == []

    @requires(Capability.PERSISTENCE)
    def test_a_path_that_holds_no_store_is_refused(self) -> None:
        """A file that is no store raises a StorageError that names it, and stays as it was."""
        place = self.path / "store"
        place.write_bytes(b"not a store " * 1_000)
        with pytest.raises(StorageError, match="store"):
            self.open()
        assert place.read_bytes() == b"not a store " * 1_000

    @requires(Capability.SNAPSHOT_FILES)
    def test_a_snapshot_is_a_store(self) -> None:
        """A snapshot opens like a store, with the same answers, options and kinds."""
        engine = self.open(duplicate_policy="first", integers="int")
        engine.write([(A, index + 1, value) for index, value in enumerate(SPECIAL_FLOATS)])
        engine.write([(B, index + 1, value) for index, value in enumerate(SPECIAL_INTEGERS)])
        engine.write([(C, 1, {"a": [1, 1.0, None]}), (C, 2, b"x")])
        engine.delete(A, 2, 5)
        engine.delete(C, 0, 100)
        engine.snapshot(str(self.path / "copy"))
        with self.open_snapshot(self.path / "copy") as copy:
            assert_same_answers(engine, copy)
            engine.write([(A, 100, 1.0)])
            assert copy.count(A, 100, 101) == 0
            if not copy.read_only:
                copy.write([(A, 1, 100.0), (B, 100, 5), (C, 1, "x")])
                assert copy.count(None, 100) == 1
                assert engine.count(B, 100) == 0
        engine.check()

    @requires(Capability.SNAPSHOT_FILES)
    def test_a_snapshot_of_an_empty_store(self) -> None:
        """An empty store has a snapshot too."""
        engine = self.open(duplicate_policy="min")
        engine.snapshot(str(self.path / "copy"))
        with self.open_snapshot(self.path / "copy") as copy:
            assert_same_answers(engine, copy)

    @requires(Capability.SNAPSHOT_FILES)
    def test_a_snapshot_overwrites_nothing(self) -> None:
        """A path that exists, or cannot be written, raises StorePathError and stays as it was."""
        engine = self.open()
        engine.write([(A, 1, 1.0)])
        taken = self.path / "taken"
        taken.write_bytes(b"mine")
        for path in (taken, self.path / "absent" / "folder" / "copy"):
            with pytest.raises(StorePathError, match=path.name):
                engine.snapshot(str(path))
        assert taken.read_bytes() == b"mine"

    def test_results_pickle(self) -> None:
        """Labels of a result come back from pickle as the same objects; batches with their rows."""
        engine = self.open()
        engine.write([(A, 1, 1.0), (C, 1, [1])])
        batches = pickle.loads(pickle.dumps(list(engine.query())))  # noqa: S301  # our own
        assert [batch.labels for batch in batches] == [A, C]
        assert batches[0].labels is A
        assert_rows(rows_of(batches), rows_of(engine.query()))
        assert isinstance(batch_of(A, [1], [1.0]), GroupedBatch)
