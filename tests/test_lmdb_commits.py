"""What a process remembers of commits: the file says the same, whatever comes in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

from tsengine.backends.lmdb import LmdbEngine, catalogue, merge, upkeep
from tsengine.backends.lmdb.layout import BLOCKS, UNINDEXED
from tsengine.backends.lmdb.store import Store
from tsengine.backends.lmdb.sweeping import Sweeper
from tsengine.errors import CorruptionError
from tsengine.model import Labels, ProducerMark

A = Labels("a")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A path where a store may be made."""
    return tmp_path / "store"


def commit(engine: LmdbEngine, mark: ProducerMark) -> int:
    """Commit a point with a mark, which says what is added to its sum; gives what was accepted."""
    engine.write_to_buffer((A, 1, float(mark.sequence)))
    return engine.flush_buffer(mark).accepted


def test_marks_of_producers_are_not_mixed_up(path: Path) -> None:
    """A mark is that of the producer asked for, also where another one commits meanwhile."""
    with LmdbEngine(str(path)) as engine:
        commit(engine, ProducerMark("one", 7))

        class Slow(str):
            """A name that takes as long to compare as the other producer needs to commit."""

            __slots__ = ()

            def __eq__(self, other: object) -> bool:
                thread = threading.Thread(
                    target=commit, args=(engine, ProducerMark("another", 1_000))
                )
                thread.start()
                thread.join()
                return str(self) == other

            __hash__ = str.__hash__

        assert engine.high_water(Slow("one")) == ProducerMark("one", 7)


def test_a_mark_committed_while_it_is_forgotten(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that forgot a mark while another thread committed it says what the file does."""
    with LmdbEngine(str(path)) as engine:
        commit(engine, ProducerMark("one", 1))
        environment = engine._store.environment
        write = environment.write
        thread = threading.Thread(target=commit, args=(engine, ProducerMark("one", 2)))

        def meanwhile(work: Callable[..., Any]) -> Any:
            monkeypatch.setattr(environment, "write", write)
            thread.start()
            thread.join(0.2)  # it waits for this one's lock, or is done
            return write(work)

        monkeypatch.setattr(environment, "write", meanwhile)
        engine.forget_producer("one")
        thread.join()
        remembered = engine.high_water("one")
    with LmdbEngine(str(path)) as engine:
        assert engine.high_water("one") == remembered


def test_an_interrupt_behind_a_commit_does_not_make_it_twice(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A marked commit that was interrupted when it was done already is known when repeated."""
    with LmdbEngine(str(path), duplicate_policy="sum") as engine:
        commit(engine, ProducerMark("one", 1))
        publish = Store.publish

        def interrupted(*args: Any, **options: Any) -> None:
            publish(*args, **options)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(Store, "publish", interrupted)
            with pytest.raises(KeyboardInterrupt):
                commit(engine, ProducerMark("one", 2))
        commit(engine, ProducerMark("one", 2))
        assert engine.query(A)[0].values.tolist() == [3.0]


def test_an_interrupt_behind_a_commit_leaves_nothing_behind(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a commit has to remember is found again where an interrupt kept it from that."""
    monkeypatch.setattr(catalogue, "INDEXED_AT_ONCE_MAX", 4)
    many = [Labels("text", n=str(number)) for number in range(9)]
    with LmdbEngine(str(path)) as engine:
        for timestamp in range(1, 4):
            engine.write([(A, timestamp, 0.5)])

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(engine._store.reader, "remember", interrupted)
            with pytest.raises(KeyboardInterrupt):
                engine.write([(labels, 1, "text") for labels in many])
        assert engine.count() == 3 + len(many)
        assert engine.series_kind(many[0]) is not None
        assert not engine.holds_only_floats
        engine.write([(A, 9, 0.5)])
        environment = engine._store.environment
        with environment.read() as transaction:
            assert not transaction.stat(environment.tables[UNINDEXED])["entries"]
        engine.check()


def test_a_damaged_run_keeps_nobody_from_writing(path: Path) -> None:
    """Small commits take in the small runs before them as far as these can be read."""
    with LmdbEngine(str(path), merging="manual") as engine:
        for timestamp in range(1, 4):
            engine.write([(A, timestamp, 0.5)])
        environment = engine._store.environment

        def damage(transaction: lmdb.Transaction) -> None:
            cursor = transaction.cursor(environment.tables[BLOCKS])
            cursor.first()
            cursor.put(bytes(cursor.key()), bytes(cursor.value())[:-1] + b"!")

        runs = engine._store.manifest.runs
        environment.write(damage)
    with LmdbEngine(str(path), merging="manual") as engine:
        for timestamp in range(1, 9):
            engine.write([(Labels("b"), timestamp, 0.5)])
        assert engine._store.manifest.runs[0] == runs[0]
        assert len(engine._store.manifest.runs) < 6
        assert engine.count("b") == 8
        with pytest.raises(CorruptionError):
            engine.query(A)
        with pytest.raises(CorruptionError):
            engine.check()


def test_a_commit_packed_at_once_loses_no_small_run(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the sizes from which commits are packed and to which runs are taken in."""
    monkeypatch.setattr(merge, "BULK_ROWS", 3)
    with LmdbEngine(str(path), merging="manual") as engine:
        engine.write([(A, 1, 0.5)])
        engine.write([(A, timestamp, 0.5) for timestamp in range(2, 6)])
        assert engine.count() == 5


def test_labels_of_removed_series_are_swept_without_a_commit(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan that kept them ends, and they go, though nobody writes."""
    monkeypatch.setattr(upkeep, "SWEEP_POLL_SECONDS", 0.01)
    with LmdbEngine(str(path)) as engine:
        engine.write([(Labels("b", n=str(number)), 1, 0.5) for number in range(3)])
        scan = engine.scan()
        next(scan)
        looked = threading.Event()
        sweep = Sweeper.sweep

        def look(self: Sweeper) -> bool:
            more = sweep(self)
            looked.set()
            return more

        with monkeypatch.context() as patched:
            patched.setattr(Sweeper, "sweep", look)
            engine.delete(Labels("b", n="1"))
            assert looked.wait(60)
        list(scan)
        deadline = time.monotonic() + 60
        while engine._store.sweeper.is_due:
            assert time.monotonic() < deadline
            time.sleep(0.01)
