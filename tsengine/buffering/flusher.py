"""Flusher: the thread behind a buffer, which commits what no other thread is there to commit.

It sleeps until a bell rings or until a point is old enough; it never polls. It holds its owner
only while it works: an owner that nobody holds any more ends its thread.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Final, Protocol

PAUSE_SECONDS: Final = 1.0
"""Until the next look, where this one failed."""


class Worker(Protocol):
    """What a flusher works for."""

    def _work(self) -> float | None:
        """Do what is due; gives the seconds until the next look, None until the bell rings.

        Raises:
            StopIteration: there will never be anything to do again.
        """

    def _owe(self, error: BaseException) -> None:
        """Keep an error that nobody has heard of."""


class Bell:
    """Wakes one thread. A ring before it waits is not lost; several count as one.

    It takes no memory and blocks nobody, so that anything may ring it: a finalizer, a thread
    that holds any lock, a process that is out of memory. An Event promises none of these.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        """Wake the thread that waits, or is about to."""
        if self._lock.locked():
            try:
                self._lock.release()
            except RuntimeError:
                pass  # somebody else rang in between

    def wait(self, seconds: float | None) -> None:
        """Wait until it rings, or for so many seconds."""
        if seconds is None:
            self._lock.acquire()
        else:
            is_time = 0 <= seconds <= threading.TIMEOUT_MAX  # a clock may give what it likes
            self._lock.acquire(timeout=seconds if is_time else PAUSE_SECONDS)


class Flusher:
    """A thread that works for an owner until that is done or gone.

    Args:
        owner: whose work it does.
        name: of the thread.
    """

    __slots__ = ("_thread", "bell")

    def __init__(self, owner: Worker, name: str) -> None:
        self.bell = bell = Bell()
        # Not held by the thread, which would keep it for good; gone, it wakes the thread.
        held = weakref.ref(owner, lambda _: bell.ring())
        # A daemon: Python ends other threads before it lets anybody flush at exit.
        self._thread = threading.Thread(target=_run, args=(held, bell), name=name, daemon=True)
        self._thread.start()

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is this one."""
        return threading.current_thread() is self._thread

    def join(self, seconds: float | None = None) -> None:
        """Wait until the thread has ended, where that is another than this."""
        if not self.is_current:
            self._thread.join(seconds)


def _run(held: Callable[[], Worker | None], bell: Bell) -> None:
    while True:
        owner = held()
        if owner is None:
            return
        try:
            seconds = owner._work()
        except StopIteration:
            return
        except Exception as error:  # noqa: BLE001  # a clock that raises, or no memory
            owner._owe(error)
            seconds = PAUSE_SECONDS  # others wait for us: go on
        del owner  # not to be kept through the wait
        bell.wait(seconds)
