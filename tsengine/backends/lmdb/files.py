"""Files of a store: its directory, its locks and what makes them durable.

Nothing here knows LMDB but for the names of its two files. What goes wrong is raised as the
error of tsengine that it means.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tsengine.backends.lmdb.failures import translate_os
from tsengine.backends.lmdb.reserve import RESERVE_FILE
from tsengine.errors import NotOpenError, StorageError, StoreInUseError, StorePathError
from tsengine.waiting import Patience

DATA_FILE: Final = "data.mdb"
LOCK_FILE: Final = "lock.mdb"
WRITER_LOCK: Final = "writer.lock"
READERS_LOCK: Final = "readers.lock"
SCRATCH: Final = "compacting"
"""Folder inside the store where a smaller data file is written before it is swapped in."""

LOCK_FILE_BYTES: Final = 40_960
"""64 bytes for each of `READERS_MAX` readers and LMDB's header, in whole pages."""

SWAP_SECONDS_MAX: Final = 1.0
"""How long a process that opens for reading waits for a compaction to put its file in place, which
takes milliseconds; one that was stopped in it would keep it for good."""

_KERNEL_LOCKS: Final = Path("/proc/locks")
_MOUNTS: Final = Path("/proc/self/mountinfo")

META_BYTES: Final = 2 << 15
"""Room for LMDB's two meta pages at its largest page size, 32 KiB."""

_FILES: Final = frozenset({DATA_FILE, LOCK_FILE, WRITER_LOCK, READERS_LOCK, SCRATCH, RESERVE_FILE})


class Mark(NamedTuple):
    """What the writer's lock file says: whether the store was closed, and when it was open.

    Attributes:
        is_closed: whether its last writer closed it.
        boot: which life of the machine that was in.
        metas: checksum of the meta pages as they were left; 0 where it is not closed.
    """

    is_closed: bool
    boot: str
    metas: int

    def pack(self) -> bytes:
        """Give the line; always of one length, so that it is written in place."""
        state = "closed" if self.is_closed else "open"
        text = f"tsengine {state:<6} {self.boot:<36} {self.metas:08x}"
        return f"{text} {zlib.crc32(text.encode()):08x}\n".encode()


def read_mark(path: Path) -> Mark | None:
    """Read the mark of a store; None where there is none that makes sense."""
    try:
        line = (path / WRITER_LOCK).read_bytes()
        _, state, boot, metas, _ = line.decode().split()
        mark = Mark(state == "closed", boot, int(metas, 16))
    except (OSError, ValueError):
        return None
    return mark if mark.pack() == line else None


def boot() -> str:
    """Name this life of the machine: page caches do not outlive it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


class HeldLock:
    """The lock that a process holds while it has a store open.

    Exclusive as the writer, shared as a reader; none where nobody can write at all. The lock is
    the kernel's and goes with the process, however that ends.

    Raises:
        StoreInUseError: another process has the store open for writing, as this one wants to.
        StorageError: the lock file cannot be opened.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self._name = path / (READERS_LOCK if read_only else WRITER_LOCK)
        self._lock: int | None = None
        if read_only and is_immutable(path):
            return  # there can be no writer to be told
        self._lock = _open_lock(self._name)
        try:
            if read_only:
                _share(self._lock, path)
            elif not _try_lock(self._lock, fcntl.LOCK_EX, path):
                raise StoreInUseError(
                    f"{path} is open for writing in another process{_holder_of(self._lock)}; "
                    "close it there, or open with read_only=True"
                )
        except BaseException:
            self.abandon()
            raise

    def mark(self, mark: Mark, *, durable: bool) -> None:
        """Write into the lock file; the writer does.

        Raises:
            StorageError: it cannot be written.
        """
        assert self._lock is not None
        try:
            os.pwrite(self._lock, mark.pack(), 0)
            if durable:
                os.fsync(self._lock)
        except OSError as error:
            raise translate_os(error, self._name, "cannot be written") from error

    @property
    def is_held(self) -> bool:
        """Whether it was not given back yet."""
        return self._lock is not None

    def check_kept(self) -> None:
        """Check that the lock file still has a name; half a microsecond.

        Raises:
            StorageError: it was removed, and mostly the whole store with it. Another process
                may hold a new one of that name.
        """
        if self._lock is not None and not os.fstat(self._lock).st_nlink:
            raise StorageError(
                f"{self._name} was removed while the store was open, and maybe all of it; close "
                "it, and look at what is left before you open it again"
            )

    def check_place(self) -> None:
        """Check that the path still leads to this store, before something is done by that path.

        Raises:
            StorageError: it was moved or removed; another store may be there by now.
        """
        if self._lock is None:
            return
        try:
            is_here = os.path.samestat(os.fstat(self._lock), self._name.lstat())
        except FileNotFoundError:
            is_here = False
        except OSError as error:
            raise translate_os(error, self._name, "cannot be found again") from error
        if not is_here:
            raise StorageError(
                f"{self._name.parent} was moved or removed while it was open; close it, and open "
                "it where it is now"
            )

    def release(self) -> None:
        """Unlock and close."""
        lock, self._lock = self._lock, None
        if lock is not None:
            _release(lock)

    def __del__(self) -> None:
        # Where even giving it back was cut short. Not unlocked: a forked child drops it, too.
        if getattr(self, "_lock", None) is not None:
            self.abandon()

    def abandon(self) -> None:
        """Close and not unlock: in a forked child, whose parent keeps the lock."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)


def is_immutable(path: Path) -> bool:
    """Whether the file system that holds a path is read-only, for this whole machine.

    One that is only mounted read-only here may be written by way of another mount, as with a
    volume that two containers have: there a reader has to be seen.
    """
    if not os.statvfs(path).f_flag & os.ST_RDONLY:
        return False
    device = path.stat().st_dev
    place = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError, ValueError):  # not to be told: then it may be written
        for line in _MOUNTS.read_text().splitlines():
            # 36 35 98:0 /root /mount rw,noatime shared:1 - ext4 /dev/root ro,errors=continue
            mount, _, system = line.partition(" - ")
            if mount.split()[2] == place:
                return "ro" in system.split()[-1].split(",")
    return False


class ReadersLock:
    """The lock that processes which only read share, as the writer sees it.

    Thread-safety: any number of threads.

    Raises:
        StorageError: the lock file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = _open_lock(path / READERS_LOCK)  # open for life: asked at small commits
        self._mutex = threading.Lock()  # threads of one process would take it for another's

    def is_free(self) -> bool:
        """Whether no process that only reads has the store open at this moment."""
        with self.shut_out() as alone:
            return alone

    @contextlib.contextmanager
    def shut_out(self) -> Iterator[bool]:
        """Keep processes that only read from opening; gives whether none has the store open."""
        with self._mutex:
            if self._lock < 0:  # by another thread, after the call that is under way had begun
                raise NotOpenError(f"{self._path} was closed")
            # Processes that came after it was removed have locked another file of its name.
            is_kept = os.fstat(self._lock).st_nlink > 0
            alone = is_kept and _try_lock(self._lock, fcntl.LOCK_EX, self._path)
            try:
                yield alone
            finally:
                if alone:
                    fcntl.flock(self._lock, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the lock file, once no thread uses it; a second time does nothing."""
        with self._mutex:
            self.abandon()

    def abandon(self) -> None:
        """Close it in a forked child, where the thread that uses it goes on in the parent."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)


def _open_lock(path: Path) -> int:
    # Not blocking, for what is no lock file but a pipe by that name.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, flags, 0o600)
    except OSError as error:
        raise translate_os(error, path, "cannot be opened for writing, as locks are") from error


def _try_lock(lock: int, how: int, path: Path) -> bool:
    """Lock an open file where nobody has it locked in a way that forbids it; whether it is ours."""
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise translate_os(error, path, "cannot be locked; use a local file system") from error
    return True


def _share(lock: int, path: Path) -> None:
    """Lock a file together with other readers, once no compaction keeps it."""
    patience = Patience(SWAP_SECONDS_MAX, None)
    while not _try_lock(lock, fcntl.LOCK_SH, path):
        if not patience.wait():
            raise StoreInUseError(
                f"the data file of {path} is being replaced by a compaction{_holder_of(lock)}; "
                "open it later"
            )


def _release(lock: int) -> None:
    # Unlocked first, since a child forked meanwhile may hold a copy of the descriptor.
    try:
        fcntl.flock(lock, fcntl.LOCK_UN)
    finally:
        os.close(lock)


def _holder_of(lock: int) -> str:
    """Tell which process has locked a file, as part of a message.

    Empty where the kernel does not show it: in another system than Linux, across containers.
    """
    found = os.fstat(lock)
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    with contextlib.suppress(OSError, ValueError):
        for line in _KERNEL_LOCKS.read_text().splitlines():
            # 1: FLOCK  ADVISORY  WRITE 4711 fe:01:131073 0 EOF
            _, kind, *_, process, where, _, _ = line.split()
            if kind == "FLOCK" and where == place and int(process) > 0:
                return f" (process {process})"
    return ""


def open_directory(path: Path, *, read_only: bool) -> int:
    """Give a descriptor of a directory that holds a store or may become one.

    Raises:
        StorePathError: it holds something else.
    """
    try:
        if not read_only:
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)  # before LMDB would make it, with the mode of its files
        if not stat.S_ISDIR(path.stat().st_mode):
            raise StorePathError(f"{path} is a file; a store is a directory")
        _check_entries(path, read_only=read_only)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except StorePathError:
        raise
    except FileNotFoundError as error:
        if path.is_symlink():
            raise StorePathError(f"{path} is a symbolic link to nothing") from error
        if read_only:
            raise StorePathError(
                f"{path} does not exist; a store is created by a writer"
            ) from error
        raise translate_os(error, path, "cannot hold a store") from error
    except OSError as error:
        raise translate_os(error, path, "cannot hold a store") from error


def _check_entries(path: Path, *, read_only: bool) -> None:
    """Check that a directory holds the files of a store and nothing that poses as one."""
    present = set()
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name in _FILES:
                _check_entry(entry)
            # LMDB makes the file of a new store empty, and a writer may end there.
            if entry.name != DATA_FILE or entry.stat().st_size:
                present.add(entry.name)
    if DATA_FILE not in present:
        if read_only:
            raise StorePathError(f"{path} holds no store; a store is created by a writer")
        if present - _FILES:
            raise StorePathError(
                f"{path} is a directory with other files; give an empty or a new one"
            )


def _check_entry(entry: os.DirEntry[str]) -> None:
    if entry.is_symlink():
        raise StorePathError(f"{entry.path} is a symbolic link; a store has none")
    if entry.name == SCRATCH:
        if not entry.is_dir():
            raise StorePathError(f"{entry.path} is no directory; a store has no such file")
        return
    if not entry.is_file():
        raise StorePathError(f"{entry.path} is no regular file; a store has no others")
    # By way of another directory the same data would have other locks.
    if entry.name == DATA_FILE and entry.stat().st_nlink > 1:
        raise StorePathError(
            f"{entry.path} has another name (a hard link), by which it could be open as well; "
            "remove that, or use a copy that snapshot() made"
        )


def allocate_lock_file(path: Path) -> None:
    """Give the table of readers its disk blocks, before LMDB maps it.

    LMDB leaves the file sparse: on a full disk a reader whose slot lies on a page without a
    block would die by SIGBUS. Done while this process has no lock on the file, since to close
    a descriptor of it drops those.
    """
    try:
        file = os.open(
            path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            size = max(os.fstat(file).st_size, LOCK_FILE_BYTES)
            if os.fstat(file).st_blocks * 512 < size:  # else a full disk is no obstacle
                os.posix_fallocate(file, 0, size)
        finally:
            os.close(file)
    except OSError as error:
        raise translate_os(error, path, "cannot hold a store") from error


def remove_scratch(path: Path) -> None:
    """Remove what compacting left behind; only a process that holds the writer's lock may."""
    shutil.rmtree(path / SCRATCH, ignore_errors=True)


def settle(path: Path) -> None:
    """Make durable what the data file shows, and its name; the writer's lock is held.

    After a failed commit, or one that a process did not live to see, the newest meta page may
    be there for all to read and yet not on disk: a failed fsync leaves its pages clean, so the
    next one would not write them. They are written again as they are, through a descriptor
    that saw no failure, before anything is answered or built upon them.

    Raises:
        StorageError: the disk does not take it.
    """
    try:
        try:
            file = os.open(path / DATA_FILE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return  # a store to be made
        try:
            shown = os.pread(file, META_BYTES, 0)
            if os.pwrite(file, shown, 0) != len(shown):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            os.fsync(file)
        finally:
            os.close(file)
        sync_directory(path)
        with contextlib.suppress(PermissionError):  # one that may be passed but not read
            sync_directory(path.parent)
    except OSError as error:
        raise translate_os(error, path, "cannot be made durable") from error


def sync_file(path: Path) -> None:
    """Make the contents of a file durable."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
