"""Reserve: room on the disk that is kept for making room in a store.

LMDB overwrites no page of its last commit, so even a delete takes pages before it gives any
back. On a disk that is full to the last byte it could not begin.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

RESERVE_FILE: Final = "reserve"

RESERVE_BYTES: Final = 1 << 19
"""128 pages. A delete and the sweeping behind it take about a dozen, and one more for every
500 series that the delete is about."""

RESERVE_BYTES_MIN: Final = 1 << 16
"""The reserve is taken in steps no smaller than this."""


class Reserve:
    """A file that takes room and holds nothing.

    Thread-safety: none; the writer lock of the environment is held.
    """

    def __init__(self, path: Path) -> None:
        self._path = path / RESERVE_FILE
        self._bytes = 0

    def hold(self) -> None:
        """Take the room, or of it as much as the disk gives.

        A file system that cannot set room aside gives none, and a full one what it has: that is
        no error, and tried again later.
        """
        step = RESERVE_BYTES
        while step >= RESERVE_BYTES_MIN and not self.is_whole:
            if self._bytes + step <= RESERVE_BYTES:
                self._take(self._bytes + step)
            step //= 2

    def release(self) -> bool:
        """Give the room back to the disk; whether there was any."""
        held, self._bytes = self._bytes, 0
        if held:
            with contextlib.suppress(OSError):  # then there is no more room than before
                os.truncate(self._path, 0)
        return held > 0

    @property
    def is_whole(self) -> bool:
        """Whether all of the room is taken."""
        return self._bytes == RESERVE_BYTES

    def _take(self, size: int) -> None:
        """Take so much room, or leave it at what was taken before."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with contextlib.suppress(OSError):
            file = os.open(self._path, flags, 0o600)
            try:
                os.posix_fallocate(file, 0, size)
            except OSError:
                os.ftruncate(file, self._bytes)  # a part of it may have been taken
                raise
            finally:
                os.close(file)
            self._bytes = size
