"""Failures below the LMDB store: a panic is recovered from, and nothing is trusted too early.

What `strace` makes fail, and disks that are really full, are in `tests/reliability/disk.py`.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

from tsengine.backends.lmdb import LmdbEngine, environment, failures, files, merge, upkeep
from tsengine.backends.lmdb import engine as engine_module
from tsengine.backends.lmdb.reserve import RESERVE_BYTES
from tsengine.errors import NotOpenError, StorageError, StorageFullError, StorePathError
from tsengine.model import Labels

A = Labels("a", host="1")
B = Labels("b", host="1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A path where a store may be made."""
    return tmp_path / "store"


class Panicking:
    """An LMDB environment after a failed write of its meta page: it panics until closed."""

    def __init__(self, real: lmdb.Environment) -> None:
        self._real = real
        self.closed = threading.Event()

    def begin(self, **_: object) -> lmdb.Transaction:
        """Panic."""
        raise lmdb.PanicError("mdb_txn_begin: MDB_PANIC")

    def close(self) -> None:
        """Close for good."""
        self._real.close()
        self.closed.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def panic(engine: LmdbEngine) -> Panicking:
    """Have the LMDB of a store panic."""
    below = engine._store.environment
    panicking = Panicking(below._lmdb)
    below._lmdb = panicking  # type: ignore[assignment]  # all that is used of it
    return panicking


def test_reading_recovers_from_a_panic(path: Path) -> None:
    """A read that meets the panic of LMDB opens it anew and answers."""
    with LmdbEngine(str(path)) as engine:
        engine.write([(A, 1, 1.0)])
        panicking = panic(engine)
        assert engine.count() == 1
        assert panicking.closed.is_set()
        engine.write([(A, 2, 2.0)])
        assert engine.count() == 2
        engine.check()


def test_writing_recovers_from_a_panic(path: Path) -> None:
    """A write that meets the panic raises; the next one, in the same process, is stored."""
    with LmdbEngine(str(path), merging="manual") as engine:
        engine.write([(A, 1, 1.0)])
        panic(engine)
        with pytest.raises(StorageError, match="MDB_PANIC"):
            engine._store.environment.write(lambda _: None)
        engine.write([(B, 2, 2.0)])
        assert engine.count() == 2
        assert len(list(engine.series())) == 2


def test_recovery_waits_for_readers_and_they_for_it(path: Path) -> None:
    """LMDB is not closed under a read that goes on; reads that begin meanwhile wait."""
    with LmdbEngine(str(path)) as engine:
        engine.write([(A, 1, 1.0)])
        below = engine._store.environment
        counts: list[int] = []
        with below.read() as transaction:
            panicking = panic(engine)
            threads = [
                threading.Thread(target=lambda: counts.append(engine.count())) for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            assert not panicking.closed.wait(0.2)
            assert transaction.stat(below.tables["runs"])["entries"] == 1
        for thread in threads:
            thread.join(60)
        assert counts == [1] * 4


def test_a_store_that_cannot_be_opened_anew_is_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where opening anew fails as well every call says so, until it succeeds."""
    with LmdbEngine(str(path)) as engine:
        engine.write([(A, 1, 1.0)])
        panic(engine)
        with monkeypatch.context() as patched:
            patched.setattr(environment, "_open_lmdb", _failing(StorageError("no disk")))
            for _ in range(2):
                with pytest.raises(StorageError, match="no disk"):
                    engine.count()
                with pytest.raises(StorageError, match="no disk"):
                    engine.write([(A, 2, 2.0)])
        assert engine.count() == 1
        engine.write([(A, 2, 2.0)])
    with pytest.raises(NotOpenError):
        engine.count()


def test_nothing_is_committed_before_the_file_is_durable(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed commit none is tried until what the file shows was written again."""
    with LmdbEngine(str(path), merging="manual") as engine:
        engine.write([(A, 1, 1.0)])
        panic(engine)
        with pytest.raises(StorageError):
            engine._store.environment.write(lambda _: None)
        with monkeypatch.context() as patched:
            patched.setattr(environment, "settle", _failing(StorageError("not durable")))
            for _ in range(2):
                with pytest.raises(StorageError, match="not durable"):
                    engine.write([(A, 2, 2.0)])
            assert engine.count() == 1
        engine.write([(A, 2, 2.0)])
        assert engine.count() == 2


def test_settling_changes_no_byte(path: Path) -> None:
    """What is written again is what is there."""
    with LmdbEngine(str(path)) as engine:
        engine.write([(A, 1, 1.0)])
    before = (path / "data.mdb").read_bytes()
    files.settle(path)
    assert (path / "data.mdb").read_bytes() == before


def test_numbers_of_a_failed_commit_are_not_used_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit taken back may have been seen: its numbers must not mean something else later."""
    with LmdbEngine(str(path), merging="manual") as engine:
        engine.write([(A, 1, 1.0)])
        store = engine._store
        before = store.manifest.state
        with monkeypatch.context() as patched:
            patched.setattr(store.environment, "write", _failing(StorageError("taken back")))
            with pytest.raises(StorageError, match="taken back"):
                engine.write([(B, 2, 2.0)])
        engine.write([(Labels("c"), 3, 3.0)])
        after = store.manifest
        assert after.runs[-1].number == before.next_run + 1
        assert after.state.version == before.version + 2
        assert after.state.next_series == before.next_series + 2
        assert [batch.labels.name for batch in engine.query()] == ["a", "c"]
        engine.check()


def test_a_moment_is_told_from_all_others(path: Path) -> None:
    """Compaction and reopening begin LMDB's numbers anew; ours differ."""
    with LmdbEngine(str(path), merging="manual") as engine:
        below = engine._store.environment
        moments = []
        for number in range(3):
            engine.write([(A, 1 + number, 1.0)])
            with below.read() as transaction:
                moments.append(below.moment(transaction))
            if number == 1:
                panic(engine)
            else:
                engine.compact()
        assert len(set(moments)) == 3
        assert engine.count() == 3


def test_a_store_that_could_not_be_made_leaves_nothing_in_the_way(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMDB may write one of its two first pages and fail; the next open makes the store."""

    def half(*_: object, **__: object) -> lmdb.Environment:
        (path / "data.mdb").write_bytes(bytes(4_096))
        raise lmdb.DiskError(f"mdb_env_open: {os.strerror(errno.ENOSPC)}")

    with monkeypatch.context() as patched:
        patched.setattr(lmdb, "open", half)
        with pytest.raises(StorageFullError, match="make room"):
            LmdbEngine(str(path)).open()
    with LmdbEngine(str(path)) as engine:
        engine.write([(A, 1, 1.0)])


def test_errors_of_the_system_are_told_apart(tmp_path: Path) -> None:
    """No room is a full disk, also over quota; a path is a path; all else is the storage."""
    for number, expected in [
        (errno.ENOSPC, StorageFullError),
        (errno.EDQUOT, StorageFullError),
        (errno.EIO, StorageError),
        (errno.EACCES, StorePathError),
        (errno.EROFS, StorePathError),
    ]:
        of_lmdb = failures.translate(lmdb.Error(f"mdb: {os.strerror(number)}"), tmp_path)
        of_system = failures.translate_os(OSError(number, os.strerror(number)), tmp_path, "is bad")
        assert type(of_lmdb) is type(of_system) is expected


def test_a_write_cut_short_means_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMDB calls it an I/O error when only a part of a write found room."""
    error = lmdb.Error(f"mdb_txn_commit: {os.strerror(errno.EIO)}")
    assert type(failures.translate(error, tmp_path)) is StorageError
    monkeypatch.setattr(failures, "ROOM_BYTES_MIN", 1 << 62)
    assert type(failures.translate(error, tmp_path)) is StorageFullError
    assert type(failures.translate(error, tmp_path / "gone")) is StorageError


@pytest.mark.parametrize("broken", ["copy", "sync_directory"])
def test_a_failed_snapshot_is_typed_and_leaves_nothing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """An error of the system is translated, and the same path can be given again."""
    with LmdbEngine(str(path)) as engine:
        engine.write([(A, 1, 1.0)])
        with monkeypatch.context() as patched:
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if broken == "copy":
                patched.setattr(engine._store.environment, "copy", _failing(full))
            else:
                patched.setattr(engine_module, "sync_directory", _failing(full))
            with pytest.raises(StorageFullError):
                engine.snapshot(str(tmp_path / "copy"))
        assert not (tmp_path / "copy").exists()
        engine.snapshot(str(tmp_path / "copy"))


def test_merging_that_failed_is_tried_again_without_a_commit(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What failed for want of room is done once there is some, though nobody writes."""
    monkeypatch.setattr(upkeep, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(merge, "RUNS_DUE", 3)
    monkeypatch.setattr(merge, "RUNS_MERGED", 2)
    with LmdbEngine(str(path)) as engine:
        work = engine._shared.upkeep
        failed = threading.Event()
        with monkeypatch.context() as patched:

            def fail(*_: object) -> None:
                failed.set()
                raise StorageFullError("no room")

            patched.setattr(work, "_finish", fail)
            for number in range(8):
                engine.write((A, 1 + number * 2_000 + row, 1.0) for row in range(1_500))
            assert failed.wait(60)
        deadline = time.monotonic() + 60
        while len(engine._store.manifest.runs) == 8 or work.error is not None:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_the_reserve_is_given_for_making_room_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk refuses a write and takes a delete, which gets the room that was kept for it."""
    with LmdbEngine(str(path), merging="manual") as engine:
        engine.write([(A, 1, 1.0)])
        below = engine._store.environment
        commit = below._commit
        reserve = path / "reserve"

        def commit_where_room(work: Callable[[lmdb.Transaction], Any]) -> Any:
            if reserve.stat().st_blocks:
                raise StorageFullError("no room")
            return commit(work)

        assert reserve.stat().st_blocks * 512 == RESERVE_BYTES
        with monkeypatch.context() as patched:
            patched.setattr(below, "_commit", commit_where_room)
            with pytest.raises(StorageFullError):
                engine.write([(A, 2, 1.0)])
            assert engine.delete(A) == 1
        assert engine.count() == 0
        assert reserve.stat().st_blocks * 512 == RESERVE_BYTES
        engine.check()


def test_less_reserve_is_better_than_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk does not give all of it a part is taken, and the whole when it can be."""
    allocate = os.posix_fallocate

    def scarce(file: int, start: int, size: int) -> None:
        if size > RESERVE_BYTES // 4 and "reserve" in Path(f"/proc/self/fd/{file}").readlink().name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(file, start, size)

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", scarce)
        engine = LmdbEngine(str(path), merging="manual").open()
    with engine:
        assert (path / "reserve").stat().st_blocks * 512 == RESERVE_BYTES // 4
        for number in range(environment.RESERVE_TRIED_EVERY):
            engine.write([(A, 1 + number, 1.0)])
        assert (path / "reserve").stat().st_blocks * 512 == RESERVE_BYTES


def _failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> object:
        raise error

    return fail
