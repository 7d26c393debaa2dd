"""Keeping: what a process knows of its buffers, so that none of their points goes in silence.

A buffer with pending points is kept alive, whoever drops it, and is flushed when the
interpreter exits. In a forked child every buffer is empty: the points are the parent's.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from typing import Final, Protocol

from tsengine.errors import ConfigurationError

EXIT_SECONDS: Final = 30.0
"""How long all buffers may take at exit: a backend that hangs is not waited for."""


class Kept(Protocol):
    """A buffer, as far as the process is concerned."""

    producer: str

    def _disown(self) -> None:
        """Become the empty copy of a forked child, where no other thread runs."""

    def _flush_at_exit(self, seconds: float) -> None:
        """Store what is pending within so many seconds, or log how much was not; never raises."""


def register(buffer: Kept, handler: object) -> None:
    """Make a new buffer known.

    Raises:
        ConfigurationError: another open buffer on this handler has its producer name.
    """
    with _lock:
        if _producers.setdefault((id(handler), buffer.producer), buffer) is not buffer:
            raise ConfigurationError(
                f"another open buffer on this handler has the producer name "
                f"{buffer.producer!r}; points of one would pass for repeated ones of the other"
            )
        _buffers.add(buffer)
    _mind_multiprocessing()


def release_producer(buffer: object, producer: str, handler: object) -> None:
    """Let others have the producer name of a buffer that has closed."""
    with _lock:
        if _producers.get((id(handler), producer)) is buffer:
            del _producers[id(handler), producer]


def keep(buffer: object) -> None:
    """Keep a buffer alive: it has pending points."""
    _unsaved.add(buffer)  # one step, as is the next: neither takes a lock


def let_go(buffer: object) -> None:
    """Keep a buffer alive no longer than others do."""
    _unsaved.discard(buffer)


def _disown_all() -> None:
    global _lock  # noqa: PLW0603  # another thread of the parent may have held it
    _lock = threading.Lock()
    _unsaved.clear()
    _producers.clear()
    for buffer in list(_buffers):
        buffer._disown()


def _flush_all() -> None:
    until = time.monotonic() + EXIT_SECONDS
    for buffer in list(_buffers):
        buffer._flush_at_exit(max(until - time.monotonic(), 0.0))


def _mind_multiprocessing() -> None:
    """See to it that processes of `multiprocessing`, which end in a way of their own, flush."""
    global _minded_pid  # noqa: PLW0603  # once a process: a new one forgets its finalizers
    util = sys.modules.get("multiprocessing.util")
    if util is not None and _minded_pid != os.getpid():
        _minded_pid = os.getpid()
        util.Finalize(None, _flush_all, exitpriority=0)


_minded_pid = 0


_lock = threading.Lock()
"""Guards `_producers` and `_buffers`; in a forked child it is made anew."""

_producers: weakref.WeakValueDictionary[tuple[int, str], Kept] = weakref.WeakValueDictionary()
"""The open buffers by the identity of their handler, which they keep alive, and producer."""

_buffers: weakref.WeakSet[Kept] = weakref.WeakSet()
"""All buffers, closed ones as well, which may have pending points."""

_unsaved: set[object] = set()
"""The buffers with pending points."""

os.register_at_fork(after_in_child=_disown_all)
atexit.register(_flush_all)
