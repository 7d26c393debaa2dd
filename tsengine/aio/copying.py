"""Copying, verifying and rolling up under asyncio: `tsengine.copy` and its like, awaited.

They run in a thread of their own, not in those of the engines, which would be held up as long.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import ParamSpec, TypedDict, TypeVar, Unpack

from tsengine import engine as core
from tsengine import pipeline, rollups
from tsengine.aio.engine import Engine
from tsengine.aio.waiting_thread import finish
from tsengine.engine import WriteBufferHandler
from tsengine.model import DurationLike, TimestampLike
from tsengine.pipeline.reading import InLoop
from tsengine.pipeline.sources import CopySource
from tsengine.pipeline.writing import OnProgress, OnReject
from tsengine.retry import RetryPolicy
from tsengine.rollups.renewing import OnRollup
from tsengine.selectors import SelectorLike
from tsengine.waiting import PAUSE_SECONDS_MAX

_P = ParamSpec("_P")
_T = TypeVar("_T")


class CopyOptions(TypedDict, total=False):
    """The options of `tsengine.copy`, where they mean what its docstring says."""

    producer: str | None
    points_max: int
    age_max: float | None
    points_total: int | None
    on_reject: OnReject | None
    progress: OnProgress | None
    progress_interval: float
    retry: RetryPolicy | None
    timeout: float | None
    cancel: threading.Event | None
    clock: Callable[[], float]


async def copy(
    source: CopySource | Engine,
    target: WriteBufferHandler | Engine,
    selector: SelectorLike = None,
    start: TimestampLike | None = None,
    end: TimestampLike | None = None,
    **options: Unpack[CopyOptions],
) -> pipeline.CopyReport:
    """Copy points into a store as `tsengine.copy` does, with its arguments and errors.

    An async iterable is iterated in the loop of the caller, so that it may wait for queues and
    sockets of that loop; each batch and table that it yields costs a hand-over to a thread. All
    other sources are read by a thread. `on_reject` and `progress` are called in the loop, which
    they hold up, and the copy waits for them; they are plain functions.

    When its task is cancelled the copy stops on both sides: the source is closed, and a commit
    that is under way is waited for. Then asyncio.CancelledError is raised, with the
    CopyCancelledError that says what had landed as its cause. A copy with a `producer` is
    resumed by the same call.
    """
    loop = asyncio.get_running_loop()
    options["cancel"] = cancel = _Either(options.get("cancel"))
    if (on_reject := options.get("on_reject")) is not None:
        options["on_reject"] = _called_in(loop, on_reject)
    if (progress := options.get("progress")) is not None:
        options["progress"] = _called_in(loop, progress)
    if isinstance(source, AsyncIterable) and not isinstance(source, Iterable):
        source = InLoop(source, loop)
    call = partial(pipeline.copy, _sync(source), _sync(target), selector, start, end, **options)
    return await _in_thread(call, cancel)


async def verify(
    source: core.Engine | Engine,
    target: core.Engine | Engine,
    selector: SelectorLike = None,
    start: TimestampLike | None = None,
    end: TimestampLike | None = None,
    *,
    cancel: threading.Event | None = None,
) -> pipeline.VerifyReport:
    """Compare what two stores hold, as `tsengine.verify` does; cancelled, it stops first."""
    either = _Either(cancel)
    call = partial(pipeline.verify, _sync(source), _sync(target), selector, start, end)
    return await _in_thread(partial(call, cancel=either), either)


class RollupOptions(TypedDict, total=False):
    """The options of `tsengine.rollup`, where they mean what its docstring says."""

    group_by: Sequence[str] | None
    origin: TimestampLike | None
    name: str | None
    of: DurationLike | None
    lookback: DurationLike | None
    follow_deletes: bool
    producer: str | None
    progress: OnRollup | None
    retry: RetryPolicy | None
    timeout: float | None
    cancel: threading.Event | None
    clock: Callable[[], float]


async def rollup(
    source: core.Engine | Engine,
    target: core.Engine | Engine,
    every: DurationLike,
    functions: Sequence[str],
    selector: SelectorLike = None,
    start: TimestampLike | None = None,
    end: TimestampLike | None = None,
    **options: Unpack[RollupOptions],
) -> rollups.RollupReport:
    """Keep aggregates as series as `tsengine.rollup` does, with its arguments and errors.

    `progress` is called in the loop, as by `copy`. When its task is cancelled the rollup stops
    behind the span of windows that is under way; then asyncio.CancelledError is raised.
    """
    loop = asyncio.get_running_loop()
    options["cancel"] = cancel = _Either(options.get("cancel"))
    if (progress := options.get("progress")) is not None:
        options["progress"] = _called_in(loop, progress)
    call = partial(
        rollups.rollup,
        _sync(source),
        _sync(target),
        every,
        functions,
        selector,
        start,
        end,
        **options,
    )
    return await _in_thread(call, cancel)


class _Either(threading.Event):
    """Is set where it was set itself, or where the caller's own event is."""

    def __init__(self, given: threading.Event | None) -> None:
        super().__init__()
        self._given = given

    def is_set(self) -> bool:
        return super().is_set() or (self._given is not None and self._given.is_set())

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for either; the caller's own is looked at now and then."""
        until = None if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            left = PAUSE_SECONDS_MAX if until is None else until - time.monotonic()
            if left <= 0:
                return False
            super().wait(min(left, PAUSE_SECONDS_MAX))
        return True


def _sync(given: _T | Engine) -> _T | core.Engine:
    return given.sync if isinstance(given, Engine) else given


def _called_in(
    loop: asyncio.AbstractEventLoop, callback: Callable[_P, object]
) -> Callable[_P, object]:
    def call(*args: _P.args, **kwargs: _P.kwargs) -> object:
        called: Future[object] = Future()
        loop.call_soon_threadsafe(_settle, called, partial(callback, *args, **kwargs))
        return called.result()

    return call


async def _in_thread(call: Callable[[], _T], cancel: threading.Event) -> _T:
    """Await a call in a thread of its own; cancelled, set the event it heeds and await its end."""
    done: Future[_T] = Future()
    # A daemon: a loop that is dropped, and with it the source, must not keep the process.
    run = contextvars.copy_context().run
    thread = threading.Thread(
        target=run, args=(_settle, done, call), name="tsengine-aio-copy", daemon=True
    )
    thread.start()

    def give_up() -> bool:
        cancel.set()
        return False

    try:
        return await finish(asyncio.wrap_future(done), give_up)
    finally:
        cancel.set()  # where the task is thrown away instead
        if done.done():
            thread.join()  # it has nothing left to do: this takes microseconds


def _settle(future: Future[_T], call: Callable[[], _T]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:  # noqa: BLE001  # raised by whoever waits
        future.set_exception(error)
