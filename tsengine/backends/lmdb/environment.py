"""Environment: the LMDB of one store, its transactions and its map.

Nothing above this module meets an error of LMDB or of the system: they are translated here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, TypeAlias, TypeVar

import lmdb

from tsengine.backends.lmdb.datafile import check_head, fill_up, missing_bytes, verify_structure
from tsengine.backends.lmdb.failures import translate, translate_os
from tsengine.backends.lmdb.files import (
    DATA_FILE,
    SCRATCH,
    WRITER_LOCK,
    HeldLock,
    Mark,
    ReadersLock,
    allocate_lock_file,
    boot,
    is_immutable,
    read_mark,
    remove_scratch,
    settle,
    sync_directory,
    sync_file,
)
from tsengine.backends.lmdb.reserve import Reserve
from tsengine.errors import (
    CorruptionError,
    FormatVersionError,
    NotOpenError,
    StorageError,
    StorageFullError,
    StoreInUseError,
)

logger = logging.getLogger(__name__)

MAP_BYTES: Final = 1 << 40
"""Address space reserved at open. The map is sparse: it costs nothing until used, and a
large one is hardly ever grown. Halved where the limits of the process forbid it."""

MAP_BYTES_MIN: Final = 1 << 24
"""Below this, reserving gives up."""

READERS_MAX: Final = 512
"""Slots for read transactions of all processes; LMDB's own default of 126 is soon taken."""

READERS_CHECKED_EVERY: Final = 16
"""Write transactions after which slots of dead readers are freed, as one that died while it read
keeps the pages of its moment. It takes 0.4 µs, and a system call for each process that reads."""

_OTHERS_READ: Final = "another process is reading the store"

RESERVE_TRIED_EVERY: Final = 64
"""Commits between two attempts to take the reserve that a full disk did not give."""

REMEDIES_MAX: Final = 8
"""How often the beginning of a read is mended and tried again: once is enough, unless others
meanwhile grow the map, take the free slots or meet a failing disk."""

T = TypeVar("T")

Table: TypeAlias = "lmdb._Database"  # LMDB has no public name for it


class ReadTransaction:
    """One short read transaction; a context manager that gives the LMDB transaction.

    What it reads are buffers that live as long as the transaction: copy before it ends.
    """

    __slots__ = ("_environment", "_reader", "_transaction")

    def __init__(self, environment: Environment) -> None:
        self._reader = id(self)  # made here, so that leaving needs no memory
        self._environment = environment

    def __enter__(self) -> lmdb.Transaction:
        self._transaction = self._environment._begin_read(self._reader)
        return self._transaction

    def __del__(self) -> None:
        # An interrupt may come between any two steps of making, entering and leaving.
        environment = getattr(self, "_environment", None)
        if environment is not None:
            environment._readers.pop(self._reader, None)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if isinstance(error, CorruptionError):
                self._environment.explain(error, self._transaction)
            self._transaction.abort()
        finally:
            self._environment._end_read(self._reader)
        if isinstance(error, lmdb.Error):
            raise translate(error, self._environment.path) from error


class Environment:
    """An open LMDB environment.

    Args:
        path: the directory, as `files.open_directory` leaves it.
        tables: names of the tables.
        read_only: open for reading beside a writer of another process.
        durable: whether a commit is on disk when it returns; otherwise a power cut may
            take the last one (`metasync=False`), never the store.
        verify: verify the structure of the file before LMDB maps it, even where there is no
            reason to doubt it; with `read_only`, no writer may have the store open.

    Raises:
        StorePathError, StoreInUseError, FormatVersionError, CorruptionError, StorageError.

    Thread-safety: any number of threads read; writes are one at a time under a lock.
    """

    def __init__(
        self,
        path: Path,
        tables: Iterable[str],
        *,
        read_only: bool,
        durable: bool,
        verify: bool = False,
    ) -> None:
        self.path = path
        self.read_only = read_only
        # What can be added to an error, with the transaction in which it was met.
        self.explain: Callable[[CorruptionError, lmdb.Transaction], None] = lambda *_: None
        self._durable = durable
        self._table_names = tuple(tables)
        self._gate_lock = threading.Lock()  # guards what is added to _readers, _shut and _closed
        self._gate = threading.Condition(self._gate_lock)  # waited at by those shut out
        # By identity, so that leaving twice is leaving once, and in which thread each reads.
        # Taken out without the lock: a dict changes in one step.
        self._readers: dict[int, int] = {}
        self._shut = False
        self._closed = False
        # Guards LMDB's one write transaction, and with it what changes _lmdb or follows here.
        self._write_lock = threading.Lock()
        self._writes = 0
        self._is_down = False  # whether LMDB is closed, since opening it anew failed
        self._is_doubtful = False  # whether what the file shows may not all be on disk
        self._times_opened = 0
        self._reserve = Reserve(path)
        self._lock = HeldLock(path, read_only=read_only)
        self._readers_lock: ReadersLock | None = None
        try:
            if not read_only:
                self._readers_lock = ReadersLock(path)
                remove_scratch(path)
            _inspect(path, read_only=read_only, verify=verify)
            if not read_only:
                settle(path)
                # On disk before the first commit: a mark of the close before would accuse it.
                self._lock.mark(Mark(False, boot(), 0), durable=True)
            self._lmdb = _open_lmdb(path, read_only=read_only, durable=durable)
            try:
                self._open_tables()
            except BaseException:
                self._lmdb.close()
                raise
            if not read_only:
                self._reserve.hold()
        except BaseException:
            self._release_locks()
            raise

    def close(self) -> None:
        """Close, waiting for the transactions of this process to end; again where it raised."""
        with self._write_lock, self._gate_lock:
            self._wait_for_readers_locked()
            if self._closed and not self._lock.is_held:  # on read-only media none ever is
                return
            self._closed = True
            if self.read_only:
                self._lmdb.close()
            else:
                self._close_cleanly()
        self._release_locks()

    def _release_locks(self) -> None:
        if self._readers_lock is not None:
            self._readers_lock.close()
        self._lock.release()

    def _close_cleanly(self) -> None:
        """Close, and leave word that nothing was cut short."""
        try:
            if not self._durable:
                self._lmdb.sync(True)
            self._lmdb.close()
            self._lock.check_place()
            if self._is_doubtful:
                settle(self.path)  # else a power cut could leave other metas than the mark says
            metas = check_head(self.path / DATA_FILE)
            fill_up(self.path / DATA_FILE)
            self._lock.mark(Mark(True, boot(), metas or 0), durable=False)
        except (lmdb.Error, OSError):
            # Every commit had its answer before. Without a mark the next open looks closer.
            logger.warning("%s was closed without its mark", self.path, exc_info=True)
            self._lmdb.close()  # a second time does nothing

    def abandon(self) -> None:
        """Let go of a parent's environment in a forked child.

        The locks stay the parent's: a descriptor that the child closes does not unlock. With
        a transaction of the parent under way the LMDB handle is left alone, since to end
        that here would end it there; the child then cannot open this path.
        """
        self._lock.abandon()
        if self._readers_lock is not None:
            self._readers_lock.abandon()
        if not self._readers and not self._write_lock.locked():
            self._lmdb.close()

    def read(self) -> ReadTransaction:
        """Begin a read transaction, for use with `with`."""
        return ReadTransaction(self)

    def write(self, work: Callable[[lmdb.Transaction], T], *, makes_room: bool = False) -> T:
        """Run `work` in a write transaction and commit it.

        Args:
            work: gets the transaction; it may be called again after the map has grown, so
                it changes nothing but the transaction.
            makes_room: whether it leads to free pages; on a full disk it gets the reserve.

        Raises:
            NotOpenError: the environment was closed.
            StorageFullError: the disk is full; nothing was committed.
            StorageError: the commit failed; its outcome is unknown. The next call finds the
                environment usable again, if only the disk is.
        """
        with self._write_lock:
            with self._gate_lock:
                self._check_open_locked()
            self._lock.check_kept()
            self._mend()
            if self._writes % READERS_CHECKED_EVERY == 0:
                self.clear_dead_readers()
            self._writes += 1
            try:
                result = self._commit(work)
            except StorageFullError:
                if not (makes_room and self._reserve.release()):
                    raise
                try:
                    self._mend()
                    result = self._commit(work)
                finally:
                    self._reserve.hold()
            else:
                if not self._reserve.is_whole and self._writes % RESERVE_TRIED_EVERY == 0:
                    self._reserve.hold()
            return result

    @contextlib.contextmanager
    def without_reserve(self) -> Iterator[None]:
        """Give the reserve back to the disk meanwhile, for work that makes more room than that."""
        with self._write_lock:
            self._reserve.release()
        try:
            yield
        finally:
            with self._write_lock:
                if not self._closed:
                    self._reserve.hold()

    def _commit(self, work: Callable[[lmdb.Transaction], T]) -> T:
        while True:
            try:
                return self._write_once(work)
            except lmdb.MapFullError:
                self._resize_map(self._lmdb.info()["map_size"] * 2)
            except lmdb.MapResizedError:
                self._resize_map(0)
            except lmdb.Error as error:
                self._is_doubtful = True
                raise translate(error, self.path) from error

    def _write_once(self, work: Callable[[lmdb.Transaction], T]) -> T:
        # Not by `with`, whose end may itself lack memory: a transaction that goes on would
        # keep all writers waiting until nobody refers to it any more, such as a traceback.
        transaction = self._lmdb.begin(write=True, buffers=True)
        try:
            result = work(transaction)
            transaction.commit()
        except BaseException:
            transaction.abort()
            raise
        return result

    def moment(self, transaction: lmdb.Transaction) -> int:
        """Give a number for what a transaction sees, another one for anything else.

        LMDB's own number is not enough: it comes again after a commit that was taken back,
        and begins anew in a compacted file. Both are opened anew, which is counted here.
        """
        return (self._times_opened << 48) + int(transaction.id())

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Keep writers of this process, and so all writers, from the file meanwhile."""
        with self._write_lock:
            yield

    def has_other_processes(self) -> bool:
        """Whether a process that only reads has the store open at this moment."""
        return self._readers_lock is None or not self._readers_lock.is_free()

    def file_bytes(self) -> int:
        """Bytes that the data file takes on disk."""
        try:
            return (self.path / DATA_FILE).stat().st_blocks * 512
        except OSError as error:
            raise translate_os(error, self.path, "cannot be measured") from error

    def copy(self, path: Path) -> None:
        """Write a compacted copy of the data file, closed, to another directory."""
        while not self._copy_once(path):
            # A writer elsewhere grew the map since the read had begun; the next one sees it.
            (path / DATA_FILE).unlink(missing_ok=True)
        lock = HeldLock(path, read_only=False)
        try:
            lock.mark(Mark(True, boot(), check_head(path / DATA_FILE) or 0), durable=True)
        finally:
            lock.release()

    def _copy_once(self, path: Path) -> bool:
        with self.read():  # holds the gate: the map must not move under the copy
            try:
                self._lmdb.copy(os.fsencode(path), compact=True)  # type: ignore[arg-type]  # takes both
            except lmdb.MapResizedError:
                return False
            except lmdb.Error as error:
                raise translate(error, path) from error
        return True

    def shrink(self) -> str:
        """Rewrite the data file without free pages and swap it in, if nobody else has it open.

        Returns:
            Why it was not done; empty where it was.

        Raises:
            StorageError: the new file could not be written; the old one stands.
        """
        try:
            if self._readers_lock is None or not self._readers_lock.is_free():
                return _OTHERS_READ
            with self._write_lock:  # so that the copy stays what the file holds
                with self._gate_lock:
                    self._check_open_locked()  # else this would open again what was closed
                self._lock.check_place()  # else this would put its file in the place of another
                self._mend()
                try:
                    self._copy_to_scratch()
                    with self._readers_lock.shut_out() as alone:
                        if not alone:
                            return _OTHERS_READ
                        with self._gate_lock:
                            self._wait_for_readers_locked()
                            self._swap_in_copy()
                        sync_directory(self.path)
                        self._is_doubtful = False
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

    def _swap_in_copy(self) -> None:
        """Put the smaller file in place; nobody has the store open but this caller."""
        self._lock.check_place()
        self._take_down()
        try:
            (self.path / SCRATCH / DATA_FILE).replace(self.path / DATA_FILE)
            self._is_doubtful = True  # until the new name is durable
        finally:
            self._reopen()

    # Failures. The writer lock is held in all of these.

    def _mend(self) -> None:
        """Make up for a failure: from here on what the file shows is durable.

        Raises:
            StorageError: the disk does not do its part yet; nothing may be committed.
        """
        if self._is_doubtful or self._is_down:
            self._lock.check_place()
            self._revive()
            settle(self.path)
            self._is_doubtful = False

    def _revive(self) -> None:
        """Open LMDB anew where it cannot be used any more.

        After a failed write of its meta page LMDB answers nothing but that it panics.
        """
        with self._gate_lock:
            self._check_open_locked()
        if not self._is_down:
            try:
                self._lmdb.begin().abort()
            except lmdb.PanicError:
                pass
            except lmdb.Error:
                return  # that has another remedy
            else:
                return  # it can be used; another thread may have seen to it
        with self._gate_lock:
            self._wait_for_readers_locked()
            self._reopen()

    def _take_down(self) -> None:
        self._is_down = True
        self._lmdb.close()  # a second time does nothing

    def _reopen(self) -> None:
        self._lock.check_place()
        self._take_down()
        self._times_opened += 1  # first: the moments of another opening must not pass for its own
        self._lmdb = _open_lmdb(self.path, read_only=self.read_only, durable=self._durable)
        try:
            self._open_tables()
        except BaseException:  # an interrupt for one: whoever reads or writes next opens it
            self._lmdb.close()
            raise
        self._is_down = False

    def clear_dead_readers(self) -> int:
        """Free the reader slots of processes that died; gives their number.

        One that died in a transaction would keep the pages of its moment from being used
        again, and the file would grow.
        """
        with self._gate_lock:  # so that LMDB is not being reopened
            self._check_open_locked()
            try:
                return int(self._lmdb.reader_check())
            except lmdb.Error as error:
                raise translate(error, self.path) from error

    def _begin_read(self, reader: int) -> lmdb.Transaction:
        remedies = 0
        while True:
            with self._gate_lock:
                while self._shut:
                    self._gate.wait()
                self._check_open_locked()
                self._readers[reader] = threading.get_ident()
            try:
                return self._lmdb.begin(buffers=True)
            except BaseException as error:
                self._end_read(reader)
                if not isinstance(error, lmdb.Error):
                    raise
                remedies += 1
                if remedies > REMEDIES_MAX:
                    raise translate(error, self.path) from error
                self._remedy(error)

    def _remedy(self, error: lmdb.Error) -> None:
        """Do what lets a read begin that could not, or raise."""
        if isinstance(error, lmdb.MapResizedError):
            with self._write_lock:
                self._resize_map(0)
        elif isinstance(error, lmdb.PanicError) or self._is_down:
            with self._write_lock:
                self._revive()
        elif isinstance(error, lmdb.ReadersFullError):
            if not self.clear_dead_readers():
                raise StorageError(
                    f"{self.path}: there are no more than {self._lmdb.info()['max_readers']} read "
                    "transactions at once, in all processes together; read by fewer threads"
                ) from error
        else:
            raise translate(error, self.path) from error

    def _end_read(self, reader: int) -> None:
        self._readers.pop(reader, None)  # before the lock, which may need memory
        with self._gate_lock:
            if self._shut:
                self._gate.notify_all()

    def _check_open_locked(self) -> None:
        if self._closed:  # by another thread, after the call that is under way had begun
            raise NotOpenError(f"{self.path} was closed")

    def _resize_map(self, size: int) -> None:
        """Grow the map to `size`, 0 for what another process made it; the writer lock is held.

        Remapping under a live reader would be a SIGBUS: new ones wait at the gate, and the
        last of the old ones opens it.
        """
        with self._gate_lock:
            self._wait_for_readers_locked()
            self._check_open_locked()
            try:
                self._lmdb.set_mapsize(size)
            except lmdb.Error as error:
                # LMDB has unmapped the file by now and is of no use any more.
                self._reopen()
                if size == 0:
                    return  # smaller than the other's, but as large as the data at least
                raise StorageError(
                    f"{self.path}: the map cannot grow to {size} bytes ({error}); raise the "
                    "limit of the process's address space"
                ) from error

    def _wait_for_readers_locked(self) -> None:
        """Shut the gate until the readers have left; none comes in while the lock is held on.

        The writer lock is held as well. No generator with `yield` in the lock: one that an
        interrupt ends goes on holding it for as long as somebody looks at the interrupt.
        """
        here = threading.get_ident()

        def is_empty() -> bool:
            # This thread reads nothing now: where it is still listed, an interrupt came just
            # when it left, and is being handled.
            return all(thread == here for thread in self._readers.copy().values())

        self._shut = True
        try:
            # Mostly told; but a reader that an interrupt ended goes without a word.
            while not self._gate.wait_for(is_empty, timeout=0.1):
                pass
        finally:
            self._shut = False
            self._gate.notify_all()  # they come in when the lock is given back

    def _open_tables(self) -> None:
        self.tables: dict[str, Table] = {}
        try:
            with self._lmdb.begin() as transaction:
                is_new = not transaction.stat()["entries"]
            if is_new and self.read_only:  # a writer may be about to make it
                raise FormatVersionError(f"{self.path} was never opened by a writer")
            if is_new:
                with self._lmdb.begin(write=True) as transaction:  # all of them or none
                    for name in self._table_names:
                        self._open_table(name, transaction)
                return
            for name in self._table_names:
                with contextlib.suppress(lmdb.NotFoundError):
                    self._open_table(name, None)
        except lmdb.Error as error:
            raise translate(error, self.path) from error
        missing = [name for name in self._table_names if name not in self.tables]
        if len(missing) == len(self._table_names):
            raise FormatVersionError(f"{self.path} holds LMDB data that is no tsengine store")
        if missing:
            raise CorruptionError(f"{self.path} has lost its tables {', '.join(missing)}")

    def _open_table(self, name: str, creating: lmdb.Transaction | None) -> None:
        # None holds sorted duplicates: LMDB 0.9.36 crashes when it writes a compacted copy of a
        # table with more fixed-size ones of one key than fit a page.
        table = self._lmdb.open_db(name.encode(), creating, create=creating is not None)
        if any(table.flags().values()):
            raise CorruptionError(f"{self.path} has lost the kind of its table {name!r}")
        self.tables[name] = table


def _inspect(path: Path, *, read_only: bool, verify: bool) -> None:
    """Look at a data file before LMDB maps it; its directory is locked.

    Always at its head, which takes microseconds. At all of it where it is too short, and where it
    may be torn: its last writer did not close it and the machine was started anew. A writer that
    was killed leaves nothing torn behind while the machine runs on: what it wrote is in the page
    cache, and LMDB overwrites no page that the last commit needs.

    Raises:
        StoreInUseError: `verify` and `read_only`, and another process writes.
        FormatVersionError, CorruptionError: as `check_head` and `verify_structure`.
    """
    data = path / DATA_FILE
    mark = read_mark(path)
    metas = check_head(data)
    if metas is None and not data.exists():
        return
    if read_only and read_mark(path) != mark:
        return  # a writer came or went in between, and has looked at it itself
    if mark is not None and mark.is_closed and mark.metas != (metas or 0):
        raise CorruptionError(
            f"{data} is not as it was closed; where you put another file there on purpose, remove "
            f"{path / WRITER_LOCK}"
        )
    if metas is None:
        return  # empty: the process that made it got no further
    missing = missing_bytes(data)
    if read_only and (verify or missing):
        try:
            # So that no writer moves pages meanwhile, where there can be one.
            writer = None if is_immutable(path) else HeldLock(path, read_only=False)
        except StoreInUseError:
            if verify:
                raise
            return  # the process that writes has looked at it
        try:
            _verify(data, missing)
        finally:
            if writer is not None:
                writer.release()
    elif (
        verify
        or missing
        or mark is None
        or not (mark.is_closed or mark.boot == boot() != "unknown")
    ):
        try:
            _verify(data, missing)
        except CorruptionError:
            if read_only and read_mark(path) != mark:
                return
            raise


def _verify(data: Path, missing: int) -> None:
    try:
        verify_structure(data)
    except CorruptionError as error:
        if missing:
            raise CorruptionError(f"{data} is cut off: {missing} bytes are missing") from error
        raise


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
                create=False,  # the directory, which is there
                metasync=durable,
                mode=0o600,
                max_dbs=16,
                max_readers=READERS_MAX,
            )
            break
        except (lmdb.MemoryError, OSError, lmdb.Error) as error:
            if size > MAP_BYTES_MIN and _is_about_memory(error):
                size //= 2
                continue
            if is_new and not read_only:
                # One of its two first pages may be there, which would be no store for ever.
                with contextlib.suppress(OSError):
                    (path / DATA_FILE).unlink()
            if isinstance(error, OSError):
                raise translate_os(error, path, "cannot be opened") from error
            raise translate(error, path) from error
    if is_new:
        # LMDB syncs its files but not the directories that name them.
        try:
            sync_directory(path)
            sync_directory(path.parent)
        except OSError as error:
            environment.close()
            raise translate_os(error, path, "cannot be made durable") from error
    return environment


def _is_about_memory(error: Exception) -> bool:
    return isinstance(error, lmdb.MemoryError) or "Cannot allocate memory" in str(error)
