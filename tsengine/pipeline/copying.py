"""Copying: from a source to a target, overlapped, bounded, exactly once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from tsengine.engine import Engine, WriteBufferHandler
from tsengine.errors import ConfigurationError, UnknownOptionError
from tsengine.model import TimestampLike
from tsengine.options import positive_integer
from tsengine.pipeline.feed import Feed
from tsengine.pipeline.progress import CopyReport
from tsengine.pipeline.reading import Reader
from tsengine.pipeline.sources import CopySource, source_of
from tsengine.pipeline.writing import Copying, OnProgress, OnReject
from tsengine.retry import RetryPolicy
from tsengine.selectors import SelectorLike
from tsengine.waiting import Patience

POINTS_MAX: Final = 1 << 19
"""Points of a commit: 8 MB of columns. LMDB packs so many at once, which costs half of writing
them raw and merging them later."""

AGE_MAX: Final = 1.0
"""Seconds after which what a slow source has given is committed, as in a buffer."""

PROGRESS_INTERVAL: Final = 0.5


def copy(
    source: CopySource,
    target: WriteBufferHandler,
    selector: SelectorLike = None,
    start: TimestampLike | None = None,
    end: TimestampLike | None = None,
    *,
    producer: str | None = None,
    points_max: int = POINTS_MAX,
    age_max: float | None = AGE_MAX,
    points_total: int | None = None,
    on_reject: OnReject | None = None,
    progress: OnProgress | None = None,
    progress_interval: float = PROGRESS_INTERVAL,
    retry: RetryPolicy | None = None,
    timeout: float | None = None,
    cancel: threading.Event | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> CopyReport:
    """Copy points into a store, reading and writing at the same time, in bounded memory.

    The source is read by a thread that ends before this returns, however it does; its
    generators are closed. The calling thread writes, and calls `on_reject` and `progress`.
    Points are committed in the order of the source, so that what has landed is its beginning
    at any moment. A failed commit is retried and divided as a `WriteBuffer` does it. When the
    source fails, what came before is stored.

    A copy with a `producer` can be resumed by the same call, after it failed or its process was
    killed: points settled before are skipped, and none is stored twice, whatever the size of
    commits and the duplicate policy. The source must give the same points in the same order,
    which a store does that did not change meanwhile. Run again at its end it copies what was
    added behind it, and nothing else.

    Args:
        source: an engine, read from one snapshot; a batch; a table that offers the Arrow
            interface, with columns `timestamp`, `value` and one for each label; or an iterable
            or async iterable of points, batches and tables. Series without rows are not copied.
        target: what to write to: an engine, open.
        selector: which series of an engine; of no other source.
        start: the first timestamp.
        end: one past the last timestamp.
        producer: the name under which the copy is resumed, of no other copy or buffer.
        points_max: most points of one commit; of points given one by one, and of objects,
            65,536.
        age_max: seconds after which what has arrived is committed although it is less; None for
            never.
        points_total: how many points there are, where the source does not know; for `progress`.
        on_reject: is called with points that can never be stored and the error that says why,
            once for each, before a point behind them is stored. A copy that is resumed may call
            it again for points behind the last one stored. Without it the copy stops when the
            other points of their commit are stored, and has them in its error, which a kill at
            that moment keeps from being told.
        progress: is called after a commit, not more often than `progress_interval`, and in
            the end.
        progress_interval: seconds.
        retry: when a failed commit is tried again, and how its points are divided.
        timeout: seconds that all of it may take; None for as long as it takes. A commit that
            is under way is not interrupted.
        cancel: stops the copy when it is set.
        clock: seconds, monotonic; injected by tests.

    Returns:
        What was done.

    Raises:
        UnknownOptionError: an argument makes no sense, or the source cannot be read.
        ConfigurationError: source and target are one store.
        UnsupportedError: `producer` was given and the target keeps no marks.
        InvalidQueryError: a bad selector or range.
        CopyError: reading, writing or a callback failed: its cause. `report` says what had
            landed. Where points were rejected that is a RejectedPointsError.
        SourceChangedError: the copy cannot be resumed, for the source is another one.
        CopyTimeoutError: `timeout` is over.
        CopyCancelledError: `cancel` was set.
    """
    try:
        rows = positive_integer(points_max)
    except ValueError as error:
        raise UnknownOptionError(f"points_max={points_max!r}: {error}") from None
    if age_max is not None:
        _check_seconds("age_max", age_max)
    _check_seconds("progress_interval", progress_interval)
    Patience(timeout, None)  # judges it
    if (
        isinstance(source, Engine)
        and isinstance(target, Engine)
        and (source.shares_store(target) or target.shares_store(source))
    ):
        raise ConfigurationError(f"{source!r} and {target!r} are one store; nothing is to copy")
    counts = progress is not None and points_total is None
    read = source_of(source, selector, start, end, counts=counts)
    feed = Feed(rows, is_own=read.is_own)
    copying = Copying(
        target,
        producer=producer,
        points_max=rows,
        is_sorted=read.is_sorted,
        points_total=read.points_total if points_total is None else points_total,
        on_reject=on_reject,
        progress=progress,
        progress_interval=progress_interval,
        retry=retry,
        timeout=timeout,
        cancel=cancel,
        clock=clock,
    )
    reader = Reader(read, feed)
    reader.start()
    try:
        return copying.run(feed, age_max)
    finally:
        reader.stop()


def _check_seconds(name: str, seconds: object) -> None:
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not (is_number and float(str(seconds)) >= 0):
        raise UnknownOptionError(f"{name}={seconds!r} is no number of seconds from 0 on")
