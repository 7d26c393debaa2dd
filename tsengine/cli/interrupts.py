"""Interrupts: Ctrl-C as a request to stop, for work that says how far it got."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def cancelled_by_signals() -> Iterator[threading.Event]:
    """Give an event that the first Ctrl-C or SIGTERM sets; the second interrupts as ever.

    Signals are the main thread's: elsewhere nothing sets it.
    """
    cancel = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        cancel.set()
        for one, handler in before.items():
            signal.signal(one, handler)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
        # Who ignores one, as nohup and background jobs do, goes on ignoring it.
        before = {one: was for one, was in before.items() if was not in (None, signal.SIG_IGN)}
    try:
        for one in before:
            signal.signal(one, stop)
        yield cancel
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
