"""Environment: the LMDB of one store, its transactions and its map.

Nothing above this module meets an error of LMDB or of the system: they are translated here.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, TypeAlias, TypeVar

import lmdb

from tsengine.backends.lmdb.failures import translate, translate_os
from tsengine.backends.lmdb.files import (
    DATA_FILE,
    SCRATCH,
    HeldLock,
    allocate_lock_file,
    readers_shut_out,
    remove_scratch,
    sync_directory,
    sync_file,
)
from tsengine.errors import FormatVersionError, NotOpenError, StorageError

MAP_BYTES: Final = 1 << 40
"""Address space reserved at open. The map is sparse: it costs nothing until used, and a
large one is hardly ever grown. Halved where the limits of the process forbid it."""

MAP_BYTES_MIN: Final = 1 << 24
"""Below this, reserving gives up."""

READERS_MAX: Final = 512
"""Slots for read transactions of all processes; LMDB's own default of 126 is soon taken."""

_OTHERS_READ: Final = "another process is reading the store"

T = TypeVar("T")

Table: TypeAlias = "lmdb._Database"  # LMDB has no public name for it


class ReadTransaction:
    """One short read transaction; a context manager that gives the LMDB transaction.

    What it reads are buffers that live as long as the transaction: copy before it ends.
    """

    __slots__ = ("_environment", "_transaction")

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def __enter__(self) -> lmdb.Transaction:
        self._transaction = self._environment._begin_read(id(self))
        return self._transaction

    def __del__(self) -> None:
        # An interrupt may come between any two steps of making, entering and leaving.
        environment = getattr(self, "_environment", None)
        if environment is not None:
            environment._readers.discard(id(self))

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._transaction.abort()
        finally:
            self._environment._end_read(id(self))
        if isinstance(error, lmdb.Error):
            raise translate(error, self._environment.path) from error


class Environment:
    """An open LMDB environment.

    Args:
        path: the directory, as `files.open_directory` leaves it.
        tables: names of the tables; those with True hold sorted duplicates.
        read_only: open for reading beside a writer of another process.
        durable: whether a commit is on disk when it returns; otherwise a power cut may
            take the last one (`metasync=False`), never the store.

    Raises:
        StorePathError, StoreInUseError, FormatVersionError, StorageError.

    Thread-safety: any number of threads read; writes are one at a time under a lock.
    """

    def __init__(
        self, path: Path, tables: Iterable[tuple[str, bool]], *, read_only: bool, durable: bool
    ) -> None:
        self.path = path
        self.read_only = read_only
        self._durable = durable
        self._table_names = tuple(tables)
        self._gate_lock = threading.Lock()  # guards _readers, _shut and _closed
        self._gate = threading.Condition(self._gate_lock)  # waited at by those shut out
        self._readers: set[int] = set()  # by identity, so that leaving twice is leaving once
        self._shut = False
        self._closed = False
        self._write_lock = threading.Lock()  # guards LMDB's one write transaction
        self._lock = HeldLock(path, read_only=read_only)
        try:
            if not read_only:
                remove_scratch(path)
            self._lmdb = _open_lmdb(path, read_only=read_only, durable=durable)
            try:
                self._open_tables()
            except BaseException:
                self._lmdb.close()
                raise
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        """Close, waiting for the transactions of this process to end."""
        with self._write_lock, self._alone():
            self._closed = True
            self._lmdb.close()
        self._lock.release()

    def abandon(self) -> None:
        """Let go of a parent's environment in a forked child.

        The locks stay the parent's: a descriptor that the child closes does not unlock. With
        a transaction of the parent under way the LMDB handle is left alone, since to end
        that here would end it there; the child then cannot open this path.
        """
        self._lock.abandon()
        if not self._readers and not self._write_lock.locked():
            self._lmdb.close()

    def read(self) -> ReadTransaction:
        """Begin a read transaction, for use with `with`."""
        return ReadTransaction(self)

    def write(self, work: Callable[[lmdb.Transaction], T]) -> T:
        """Run `work` in a write transaction and commit it.

        Args:
            work: gets the transaction; it may be called again after the map has grown, so
                it changes nothing but the transaction.

        Raises:
            NotOpenError: the environment was closed.
            StorageFullError: the disk is full; nothing was committed.
            StorageError: the commit failed; its outcome is unknown.
        """
        with self._write_lock:
            with self._gate_lock:
                self._check_open_locked()
            while True:
                try:
                    with self._lmdb.begin(write=True, buffers=True) as transaction:
                        result = work(transaction)
                except lmdb.MapFullError:
                    self._resize_map(self._lmdb.info()["map_size"] * 2)
                except lmdb.MapResizedError:
                    self._resize_map(0)
                except lmdb.Error as error:
                    raise translate(error, self.path) from error
                else:
                    return result

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Keep writers of this process, and so all writers, from the file meanwhile."""
        with self._write_lock:
            yield

    def has_other_processes(self) -> bool:
        """Whether a process that only reads has the store open at this moment."""
        if self.read_only:
            return True
        with readers_shut_out(self.path) as alone:
            return not alone

    def file_bytes(self) -> int:
        """Bytes that the data file takes on disk."""
        return (self.path / DATA_FILE).stat().st_blocks * 512

    def copy(self, path: Path) -> None:
        """Write a compacted copy of the data file to a file of another directory."""
        with self.read():  # holds the gate: the map must not move under the copy
            try:
                self._lmdb.copy(os.fsencode(path), compact=True)  # type: ignore[arg-type]  # takes both
            except lmdb.Error as error:
                raise translate(error, path) from error

    def shrink(self, reopened: Callable[[lmdb.Transaction], None]) -> str:
        """Rewrite the data file without free pages and swap it in, if nobody else has it open.

        Args:
            reopened: called with a transaction on the new file before anybody else reads.

        Returns:
            Why it was not done; empty where it was.

        Raises:
            StorageError: the new file could not be written; the old one stands.
        """
        try:
            if self.has_other_processes():
                return _OTHERS_READ
            with self._write_lock:  # so that the copy stays what the file holds
                try:
                    self._copy_to_scratch()
                    with readers_shut_out(self.path) as alone:
                        if not alone:
                            return _OTHERS_READ
                        with self._alone():
                            self._swap_in_copy(reopened)
                finally:
                    remove_scratch(self.path)
        except lmdb.Error as error:
            raise translate(error, self.path) from error
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise translate_os(error, self.path, "cannot be made smaller") from error
        return ""

    def _copy_to_scratch(self) -> None:
        """Write the smaller file, while readers of this process and of others go on."""
        scratch = self.path / SCRATCH
        remove_scratch(self.path)
        scratch.mkdir(mode=0o700)
        self._lmdb.copy(os.fsencode(scratch), compact=True)  # type: ignore[arg-type]  # takes both
        (scratch / DATA_FILE).chmod(0o600)
        sync_file(scratch / DATA_FILE)

    def _swap_in_copy(self, reopened: Callable[[lmdb.Transaction], None]) -> None:
        """Put the smaller file in place; nobody has the store open but this caller."""
        try:
            self._lmdb.close()
            (self.path / SCRATCH / DATA_FILE).replace(self.path / DATA_FILE)
            sync_directory(self.path)
        finally:
            self._lmdb.close()  # a second time does nothing
            self._reopen()
        with self._lmdb.begin(buffers=True) as transaction:
            reopened(transaction)

    def _reopen(self) -> None:
        self._lmdb = _open_lmdb(self.path, read_only=self.read_only, durable=self._durable)
        self._open_tables()

    def clear_dead_readers(self) -> int:
        """Free the reader slots of processes that died; gives their number."""
        return int(self._lmdb.reader_check())

    def _begin_read(self, reader: int) -> lmdb.Transaction:
        with self._gate_lock:
            while self._shut:
                self._gate.wait()
            self._check_open_locked()
            self._readers.add(reader)
        try:
            return self._lmdb.begin(buffers=True)
        except lmdb.MapResizedError:
            self._end_read(reader)
            with self._write_lock:
                self._resize_map(0)
            return self._begin_read(reader)
        except lmdb.ReadersFullError as error:
            self._end_read(reader)
            if self.clear_dead_readers():
                return self._begin_read(reader)
            raise translate(error, self.path) from error
        except lmdb.Error as error:
            self._end_read(reader)
            raise translate(error, self.path) from error

    def _end_read(self, reader: int) -> None:
        with self._gate_lock:
            self._readers.discard(reader)
            if self._shut and not self._readers:
                self._gate.notify_all()

    def _check_open_locked(self) -> None:
        if self._closed:  # by another thread, after the call that is under way had begun
            raise NotOpenError(f"{self.path} was closed")

    def _resize_map(self, size: int) -> None:
        """Grow the map to `size`, 0 for what another process made it; the writer lock is held.

        Remapping under a live reader would be a SIGBUS: new ones wait at the gate, and the
        last of the old ones opens it.
        """
        with self._alone():
            try:
                self._lmdb.set_mapsize(size)
            except lmdb.Error as error:
                # LMDB has unmapped the file by now and is of no use any more.
                self._lmdb.close()
                self._reopen()
                raise StorageError(
                    f"{self.path}: the map cannot grow to {size} bytes ({error}); raise the "
                    "limit of the process's address space"
                ) from error

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Shut the gate and wait for the readers to leave; the writer lock is held."""
        with self._gate_lock:
            self._shut = True
            try:
                # Mostly told; but a reader that an interrupt ended goes without a word.
                while not self._gate.wait_for(lambda: not self._readers, timeout=0.1):
                    pass
                yield
            finally:
                self._shut = False
                self._gate.notify_all()

    def _open_tables(self) -> None:
        try:
            self.tables: dict[str, Table] = {
                name: self._lmdb.open_db(
                    name.encode(),
                    # Not dupfixed as well: LMDB 0.9.36 crashes when it writes a compacted copy
                    # of a table with more fixed-size duplicates of one key than fit a page.
                    dupsort=duplicates,
                    create=not self.read_only,
                )
                for name, duplicates in self._table_names
            }
        except lmdb.NotFoundError as error:
            raise FormatVersionError(
                f"{self.path} holds LMDB data that is no tsengine store"
            ) from error
        except lmdb.Error as error:
            raise translate(error, self.path) from error


def _open_lmdb(path: Path, *, read_only: bool, durable: bool) -> lmdb.Environment:
    is_new = not (path / DATA_FILE).exists()
    if not read_only:
        allocate_lock_file(path)
    size = MAP_BYTES
    while True:
        try:
            environment = lmdb.open(
                os.fsencode(path),
                map_size=size,
                readonly=read_only,
                create=not read_only,
                metasync=durable,
                mode=0o600,
                max_dbs=16,
                max_readers=READERS_MAX,
            )
        except (lmdb.MemoryError, OSError, lmdb.Error) as error:
            if size > MAP_BYTES_MIN and _is_about_memory(error):
                size //= 2
                continue
            if isinstance(error, lmdb.Error):
                raise translate(error, path) from error
            raise StorageError(f"{path}: {error}") from error
        if is_new:
            # LMDB syncs its files but not the directories that name them.
            sync_directory(path)
            sync_directory(path.parent)
        return environment


def _is_about_memory(error: Exception) -> bool:
    return isinstance(error, lmdb.MemoryError) or "Cannot allocate memory" in str(error)
