"""Threads: what went in is what is stored, whatever other threads do meanwhile."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from tests.reliability.threads import Plan, run
from tsengine import Engine, Labels, LifecycleError, NotOpenError, WriteBuffer, WriteReceipt
from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.memory import MemoryEngine
from tsengine.model import GroupedBatch

A = Labels("a")


@pytest.mark.parametrize("seed", range(3))
def test_threads_on_an_lmdb_store(tmp_path: Path, seed: int) -> None:
    """Eight threads write, read, delete, merge, compact, copy, reopen and close in LMDB."""
    merging = ["background", "inline", "manual"][seed]
    done = run(Plan(seed, tmp_path, "lmdb", seed != 1, 6, {"merging": merging}))
    assert len(done) > 10, f"only {done} were done"


@pytest.mark.parametrize("seed", range(4))
def test_threads_on_a_store_in_memory(tmp_path: Path, seed: int) -> None:
    """Eight threads write, read, delete, compact, copy and close in memory."""
    done = run(Plan(seed, tmp_path, "memory", seed % 2 == 1, 40))
    assert len(done) > 10, f"only {done} were done"


class NoLock:
    """A lock that keeps nobody out."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def without_lock(engine: Engine) -> None:
    """Take away what makes commits wait for each other."""
    if isinstance(engine, LmdbEngine):
        engine._store.commit_lock = cast("threading.RLock", NoLock())
    else:
        assert isinstance(engine, MemoryEngine)
        engine._lock = cast("threading.Lock", NoLock())


class LosingBuffer(WriteBuffer):
    """Forgets what arrives while it commits."""

    __slots__ = ()

    def _commit_next(self, cause: str) -> tuple[int, WriteReceipt] | None:
        done = super()._commit_next(cause)
        with self._state_lock:
            self._entries.clear()
            self._extra = 0
        return done


@pytest.mark.parametrize("scheme", ["lmdb", "memory"])
@pytest.mark.parametrize("fault", ["no lock", "losing buffer"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_harness_sees_faults(tmp_path: Path, scheme: str, fault: str) -> None:
    """A store whose commits do not wait for each other, and a buffer that loses, are caught."""
    if fault == "no lock":
        plan = Plan(0, tmp_path, scheme, False, 40, spoil=without_lock)
    else:
        plan = Plan(0, tmp_path, scheme, False, 40, buffer=LosingBuffer)
    with pytest.raises(AssertionError, match="seed 0"):
        run(plan)


def batch_of_one() -> GroupedBatch:
    """Give one row of one series."""
    return GroupedBatch([A], np.array([0, 1]), np.array([1]), np.array([1.0]))


@pytest.mark.parametrize("scheme", ["lmdb", "memory"])
def test_a_flush_of_a_closed_engine_leaves_nothing_staged(tmp_path: Path, scheme: str) -> None:
    """What a thread staged before another closed the engine is not in its way for ever."""
    engine = MemoryEngine() if scheme == "memory" else LmdbEngine(str(tmp_path / "store"))
    with engine:
        engine.write_batch_to_buffer(batch_of_one())
        with pytest.raises(LifecycleError):
            engine.close()
        with pytest.raises(NotOpenError):
            engine.flush_buffer()
        assert engine.staged_points == 0


def test_a_compaction_overtaken_by_a_close_opens_nothing(tmp_path: Path) -> None:
    """A store that was closed before its file could be swapped stays closed and can be opened."""
    engine = LmdbEngine(str(tmp_path / "store"))
    with engine:
        engine.write([(A, 1, 1.0)])
        store = engine._store
    with pytest.raises(NotOpenError):
        store.shrink()
    with LmdbEngine(str(tmp_path / "store")) as again:
        assert again.count() == 1
