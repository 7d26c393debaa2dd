"""WaitingThread: the one thread in which an asyncio object makes the calls that may wait.

Its calls run one after the other. Nobody who awaits one blocks the loop, and who is
cancelled takes nothing from the others.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tsengine.errors import CancelledError, ForkedError, NotOpenError

logger = logging.getLogger("tsengine.aio")

_T = TypeVar("_T")


class WaitingThread:
    """A thread that is there from the first call until `end`.

    Args:
        name: of the thread.
        what: whose it is, for messages.

    Thread-safety: for the thread of one event loop.
    """

    def __init__(self, name: str, what: str) -> None:
        self._name = name
        self._what = what
        self._pid = os.getpid()
        self._executor: ThreadPoolExecutor | None = None
        self._ending: asyncio.Future[object] | None = None

    @property
    def is_ending(self) -> bool:
        """Whether it takes no more calls."""
        return self._ending is not None

    def submit(self, call: Callable[[], _T]) -> concurrent.futures.Future[_T]:
        """Have a call made after those before it.

        Raises:
            NotOpenError: it takes no more.
            ForkedError: the thread is the parent's.
        """
        self.check_process()
        if self._ending is not None:
            raise NotOpenError(f"this {self._what} is closed")
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix=self._name)
        return self._executor.submit(call)

    async def read(self, call: Callable[[], _T]) -> _T:
        """Await a call whose result nobody needs who is cancelled: it is not waited for then."""
        return await asyncio.wrap_future(self.submit(call))

    async def change(self, call: Callable[[], _T], cancel: threading.Event | None = None) -> _T:
        """Await a call that changes something.

        Cancelled before the call has begun it is not made; afterwards it is waited for
        nevertheless, so that nothing goes on behind the caller's back.

        Args:
            call: what to do.
            cancel: is set when the caller is cancelled, for a call that heeds it.
        """
        job = self.submit(call)

        def give_up() -> bool:
            if cancel is not None:
                cancel.set()
            return job.cancel()

        return await finish(asyncio.wrap_future(job), give_up)

    async def end(self, call: Callable[[], object], *, at_once: bool = False) -> None:
        """Make a last call, and end the thread; a second time, wait for the first.

        Args:
            call: is made after the others.
            at_once: whether it is made beside them instead, as it ends their waits.

        Raises:
            Exception: what the call raised, to whoever ended it first.
        """
        if not self.is_own_process:
            return
        if self._ending is not None:
            if not self._ending.done():
                await asyncio.wait([self._ending])
            return
        executor, self._executor = self._executor, None
        # In a thread of its own, which alone may wait for the end of the other.
        closer = ThreadPoolExecutor(1, thread_name_prefix=f"{self._name}-close")
        self._ending = asyncio.wrap_future(closer.submit(_end, executor, call, at_once))
        closer.shutdown(wait=False)
        try:
            await finish(self._ending)
        finally:
            closer.shutdown()  # it has nothing left to do: this takes microseconds

    @property
    def is_own_process(self) -> bool:
        """Whether this is no child of the process that made it."""
        return self._pid == os.getpid()

    def check_process(self) -> None:
        """Raise ForkedError in a child of the process that made it."""
        if not self.is_own_process:
            raise ForkedError(f"this {self._what} was made before a fork; make a new one here")


def _end(executor: ThreadPoolExecutor | None, call: Callable[[], object], at_once: bool) -> None:
    try:
        if executor is None or at_once:
            call()
        else:
            executor.submit(call).result()
    finally:
        if executor is not None:
            executor.shutdown()


async def finish(future: asyncio.Future[_T], give_up: Callable[[], bool] = lambda: False) -> _T:
    """Await a future to its end, even when cancelled; the cancellation is raised then.

    Args:
        future: is not cancelled.
        give_up: is asked when cancelled, whether what the future stands for was prevented.

    Raises:
        asyncio.CancelledError: whoever awaits this was cancelled. An error of the future is
            its cause, and is logged.
        Exception: that of the future.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            if give_up():
                raise
            cancelled = error
    if cancelled is None:
        return future.result()
    failure = None if future.cancelled() else future.exception()
    if failure is not None and not isinstance(failure, CancelledError):
        logger.error(
            "a call failed whose caller was cancelled: %s",
            failure,
            extra={"error_type": type(failure).__name__},
        )
    raise cancelled from failure
