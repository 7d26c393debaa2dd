"""Keeping: what a process knows of its buffers, so that none of their points goes in silence.

A buffer with pending points is kept alive, whoever drops it, and is flushed when the
interpreter exits. In a forked child every buffer is empty: the points are the parent's.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from typing import Protocol

from tsengine.errors import ConfigurationError


class Kept(Protocol):
    """A buffer, as far as the process is concerned."""

    producer: str

    def _disown(self) -> None:
        """Become the empty copy of a forked child, where no other thread runs."""

    def _flush_at_exit(self) -> None:
        """Store what is pending, or log how much was not; raises nothing."""


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


def release_producer(buffer: Kept, handler: object) -> None:
    """Let others have the producer name of a buffer that has closed."""
    with _lock:
        _producers.pop((id(handler), buffer.producer), None)


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
    for buffer in list(_buffers):
        buffer._flush_at_exit()


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
