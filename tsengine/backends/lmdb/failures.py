"""Failures: what errors of LMDB and of the system mean to tsengine."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

import lmdb

from tsengine.errors import (
    BatchTooLargeError,
    CorruptionError,
    FormatVersionError,
    SnapshotExpiredError,
    StorageError,
    StorageFullError,
    StorePathError,
)

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What the system says of a full disk, and of a user who has had his share of it."""

ROOM_BYTES_MIN: Final = 1 << 16
"""A disk with less room than this counts as full, where an I/O error is to be explained."""

_ABOUT_PATHS: Final = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.EEXIST,
        errno.ENOTEMPTY,
        errno.ENAMETOOLONG,
        errno.EROFS,
    }
)

_HINTS: Final = {
    errno.ENOENT: "make the parent first",
    errno.EEXIST: "give a path that does not exist",
    errno.ENOTEMPTY: "give a path that does not exist",
}


_OF_DAMAGED_PAGES: Final = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.BadChecksumError,
    lmdb.BadTxnError,  # a transaction that met a page that makes no sense
    lmdb.CursorFullError,  # pages that lead to each other
    lmdb.IncompatibleError,  # a table that has become one of another kind
)


def translate(error: lmdb.Error, path: Path) -> StorageError:
    """Give the error of tsengine that an LMDB error means."""
    text = f"{path}: {error}"
    if any(_says(error, number) for number in NO_ROOM):
        return full(path)
    if _says(error, errno.EIO):
        # LMDB answers so when a write was cut short, as the one is that meets a full disk.
        return full(path) if _is_full(path) else StorageError(text)
    if _says(error, errno.EAGAIN):  # LMDB knows readers by their numbers, and locks them
        return StorageError(
            f"{path} is open in another process of the same number, {os.getpid()}, as in another "
            "container; let the two share one PID namespace"
        )
    if _says(error, errno.EACCES) or _says(error, errno.EROFS):
        return StorePathError(text)
    if isinstance(error, _OF_DAMAGED_PAGES):
        return CorruptionError(text)
    if isinstance(error, (lmdb.VersionMismatchError, lmdb.InvalidError)):
        return FormatVersionError(f"{path} is no LMDB store of this version: {error}")
    if isinstance(error, lmdb.TxnFullError):
        return BatchTooLargeError(f"{path} cannot take so much in one commit: {error}")
    if isinstance(error, lmdb.BadRslotError):
        return SnapshotExpiredError(text)
    return StorageError(text)


def translate_os(error: OSError, path: Path, what: str) -> StorageError:
    """Give the error of tsengine that an error of the system means.

    Args:
        error: as it was raised.
        path: what it is about.
        what: what could not be done, as in `"cannot be opened"`.
    """
    if error.errno in NO_ROOM:
        return full(path)
    text = f"{path} {what}: {error.strerror or error}"
    if error.errno in _HINTS:
        text += f"; {_HINTS[error.errno]}"
    return StorePathError(text) if error.errno in _ABOUT_PATHS else StorageError(text)


def full(path: Path) -> StorageFullError:
    """Give the error of a full disk."""
    return StorageFullError(
        f"the disk or the quota that holds {path} is full; make room there and try again"
    )


def _says(error: lmdb.Error, number: int) -> bool:
    # LMDB's message ends with the system's own words, in the language of the process.
    return os.strerror(number) in str(error)


def _is_full(path: Path) -> bool:
    try:
        room = os.statvfs(path)
    except OSError:  # the disk that does not write does not read either
        return False
    return room.f_bavail * room.f_frsize < ROOM_BYTES_MIN
