"""Copying: from a source to a target, overlapped, bounded, exactly once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Final, Literal, TypeAlias, cast

from tsengine.committing import Committer, Delivery
from tsengine.engine import Engine, WriteBufferHandler
from tsengine.errors import (
    CancelledError,
    ConfigurationError,
    CopyCancelledError,
    CopyError,
    CopyTimeoutError,
    RejectedPointsError,
    SourceChangedError,
    TsEngineError,
    UnknownOptionError,
    UnsupportedError,
)
from tsengine.judging import Judge
from tsengine.metrics import CommitMetrics
from tsengine.model import (
    DataPoint,
    Int64Array,
    ProducerMark,
    TimestampLike,
    WriteReceipt,
    check_producer,
)
from tsengine.options import positive_integer
from tsengine.pipeline.feed import Feed, SourceFailedError
from tsengine.pipeline.parcels import Parcel, Trail
from tsengine.pipeline.progress import CopyReport, Progress, Tally
from tsengine.pipeline.reading import Reader, logger
from tsengine.pipeline.sources import CopySource, source_of
from tsengine.retry import RetryPolicy
from tsengine.selectors import SelectorLike
from tsengine.waiting import Patience

POINTS_MAX: Final = 1 << 19
"""Points of a commit: 8 MB of columns. LMDB packs so many at once, which costs half of writing
them raw and merging them later."""

AGE_MAX: Final = 1.0
"""Seconds after which what a slow source has given is committed, as in a buffer."""

PROGRESS_INTERVAL: Final = 0.5

OnReject: TypeAlias = Callable[[list[DataPoint], Exception], object]
OnProgress: TypeAlias = Callable[[Progress], object]
Side: TypeAlias = Literal["source", "target", "caller"]


def copy(
    source: CopySource,
    target: WriteBufferHandler,
    selector: SelectorLike = None,
    start: TimestampLike | None = None,
    end: TimestampLike | None = None,
    *,
    producer: str | None = None,
    points_max: int = POINTS_MAX,
    age_max: float = AGE_MAX,
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
        age_max: seconds after which what has arrived is committed although it is less.
        points_total: how many points there are, where the source does not know; for `progress`.
        on_reject: is called with points that can never be stored and the error that says why.
            A copy that is resumed may call it again for points behind the last one stored.
            Without it the copy stops at them, when the other points of their commit are stored.
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
    for name, seconds in (("age_max", age_max), ("progress_interval", progress_interval)):
        if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not seconds >= 0:
            raise UnknownOptionError(f"{name}={seconds!r} is no number of seconds from 0 on")
    if isinstance(source, Engine) and isinstance(target, Engine) and source.shares_store(target):
        raise ConfigurationError(f"{source!r} and {target!r} are one store; nothing is to copy")
    read = source_of(source, selector, start, end)
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


class Copying:
    """The writing side of a copy: takes parcels from a feed and has them stored.

    Arguments are those of `copy`. One thread calls `run`, once; who fills the feed is not its
    affair.
    """

    def __init__(
        self,
        target: WriteBufferHandler,
        *,
        producer: str | None,
        points_max: int,
        is_sorted: bool,
        points_total: int | None,
        on_reject: OnReject | None,
        progress: OnProgress | None,
        progress_interval: float,
        retry: RetryPolicy | None,
        timeout: float | None,
        cancel: threading.Event | None,
        clock: Callable[[], float],
    ) -> None:
        if producer is not None:
            check_producer(producer)
            if not target.marks_producers:
                raise UnsupportedError(
                    f"{target!r} keeps no producer marks, so that a copy into it cannot be resumed"
                )
        Patience(timeout, None)  # judges it
        self._target = target
        self._is_named = producer is not None
        self._producer = f"copy-{os.urandom(16).hex()}" if producer is None else producer
        self._on_reject = on_reject
        self._progress = progress
        self._progress_interval = progress_interval
        self._points_total = points_total
        self._cancel = cancel
        self._clock = clock
        self._began = clock()
        self._deadline = None if timeout is None else self._began + timeout
        self._told_at = self._began
        self._tally = Tally(is_sorted=is_sorted)
        self._trail = Trail()
        self._resumed: ProducerMark | None = None  # until the source has been skipped so far
        self._is_marked = False  # whether the target may hold a mark of ours
        self._entries: list[object] = []
        self._parcel: Parcel  # on its way
        self._positions: Int64Array  # of its rows
        self._is_late = False  # whether a retry would come after the deadline
        self._committer = Committer(
            target,
            RetryPolicy() if retry is None else retry,
            CommitMetrics(),
            points_max=points_max,
            pause=self._pause,
            by_arrival=True,
            fields={"producer": self._producer},
            clock=clock,
        )

    def run(self, feed: Feed, age_max: float) -> CopyReport:
        """Store what a feed gives, until its end; raises as `copy` does."""
        try:
            if self._is_named:
                self._resumed = self._target.high_water(self._producer)
            judge = Judge(self._target, self._entries)
        except Exception as error:
            raise self._failed("target", error) from error
        while True:
            parcel = self._take(feed, age_max)
            if parcel is not None:
                self._write(parcel, judge)
                self._tell()
            elif feed.is_finished:
                break
        if self._resumed is not None:
            raise SourceChangedError(
                f"the copy {self._producer!r} had settled {self._resumed.sequence} points, and "
                f"its source now ends after {self._trail.position}",
                report=self._report(),
                side="source",
            )
        self._forget()
        self._tell(is_done=True)
        return self._report()

    def _take(self, feed: Feed, age_max: float) -> Parcel | None:
        self._check_patience(None)
        left = age_max
        if self._deadline is not None:
            left = min(left, max(self._deadline - self._clock(), 0.0))
        try:
            return feed.take(Patience(left, self._cancel))
        except CancelledError as error:
            raise self._cancelled() from error
        except SourceFailedError as failed:
            raise self._failed("source", failed.error) from failed.error

    def _write(self, parcel: Parcel, judge: Judge) -> None:
        """Have a parcel stored, without what of it was settled before."""
        rest = self._skip(parcel)
        if rest is None:
            return
        self._parcel = parcel = rest
        failure: Exception | None = None
        delivery: Delivery | None = None
        settled = len(parcel)
        try:
            departure, rejected = parcel.departure(judge, self._entries)
        except Exception as error:
            raise self._failed("target", error) from error
        if departure is not None:
            self._positions = departure.positions
            delivery = Delivery(departure, self._mark, self._committer.size.points)
            try:
                self._committer.deliver(delivery)
            except Exception as error:  # noqa: BLE001  # raised when what has landed is counted
                failure = error
                self._ask_what_landed(delivery)
            left = delivery.left_positions()
            if len(left):
                settled = int(left[0])
        rejections: list[tuple[list[DataPoint], Exception]] = [
            ([_as_point(point)], error) for position, point, error in rejected if position < settled
        ]
        if delivery is not None:
            rejections += _rejections(delivery, settled)
            batches = delivery.departure.batches
            if settled < len(parcel):
                batches = delivery.departure.part((self._positions < settled).nonzero()[0])
            self._tally.add(delivery.receipt(), batches)
        self._tally.rejected += sum(len(points) for points, _ in rejections)
        self._trail.advance(parcel, settled, is_known_again=self._is_named)
        self._hand_out(rejections, failure)
        if failure is None:
            return
        if self._cancel is not None and self._cancel.is_set():
            raise self._cancelled() from failure
        self._check_patience(failure)
        raise self._failed("target", failure) from failure

    def _skip(self, parcel: Parcel) -> Parcel | None:
        """Give what of a parcel was not settled by an earlier run; None for nothing."""
        mark = self._resumed
        if mark is None:
            return parcel
        count = min(mark.sequence - self._trail.position, len(parcel))
        if self._trail.position + count == mark.sequence:
            if self._trail.fingerprint(parcel, count) != mark.piece:
                raise SourceChangedError(
                    f"the first {mark.sequence} points of the source are not those that the copy "
                    f"{self._producer!r} had settled; copy from the source as it was, or under "
                    "another name into an empty store",
                    report=self._report(),
                    side="source",
                )
            self._resumed = None
        self._trail.advance(parcel, count)
        self._tally.skipped += count
        return parcel.after(count) if count < len(parcel) else None

    def _mark(self, rows: Int64Array, piece: int) -> ProducerMark | None:
        """Mark the points up to the last one of these, in the order of the source."""
        if not self._target.marks_producers:
            return None
        self._is_marked = True
        count = int(self._positions[rows].max()) + 1
        fingerprint = self._trail.fingerprint(self._parcel, count) if self._is_named else 0
        return ProducerMark(self._producer, self._trail.position + count, fingerprint)

    def _ask_what_landed(self, delivery: Delivery) -> None:
        """Count what was stored although its commit failed, where the target can tell."""
        if not self._target.marks_producers:
            return
        try:
            known = self._target.high_water(self._producer)
        except Exception:  # noqa: BLE001  # the commit's error is the one to tell
            return
        while known is not None and delivery.progress.todo:
            mark = delivery.mark()
            if mark is None or known.sequence < mark.sequence:
                return
            points = len(delivery.progress.todo[-1])
            delivery.stored(WriteReceipt(points, points))

    def _hand_out(
        self, rejections: list[tuple[list[DataPoint], Exception]], failure: Exception | None
    ) -> None:
        """Give rejected points to `on_reject`, or stop."""
        if not rejections:
            return
        if self._on_reject is None:
            count = sum(len(points) for points, _ in rejections)
            cause = RejectedPointsError(
                f"{count} points cannot be stored, and are in this error: {rejections[0][1]}",
                rejections=rejections,
            )
            cause.__cause__ = rejections[0][1]
            raise self._failed("source", cause, rejections) from cause
        for place, (points, error) in enumerate(rejections):
            try:
                self._on_reject(points, error)
            except Exception as raised:
                raised.add_note(f"raised by on_reject, which was given {len(points)} points")
                if failure is not None:
                    raised.add_note(f"the copy was failing already: {failure!r}")
                raise self._failed("caller", raised, rejections[place + 1 :]) from raised

    def _tell(self, *, is_done: bool = False) -> None:
        now = self._clock()
        if self._progress is None or not (
            is_done or now - self._told_at >= self._progress_interval
        ):
            return
        self._told_at = now
        told = self._tally.progress(now - self._began, self._points_total, is_done=is_done)
        try:
            self._progress(told)
        except Exception as raised:
            raised.add_note("raised by progress")
            raise self._failed("caller", raised) from raised

    def _pause(self, seconds: float) -> bool:
        """Wait before a retry; false where the copy is to end instead."""
        if self._deadline is not None and self._clock() + seconds > self._deadline:
            self._is_late = True
            return False
        if self._cancel is None:
            time.sleep(seconds)
            return True
        return not self._cancel.wait(seconds)

    def _forget(self) -> None:
        """Drop the mark of a copy without a name, which nobody will resume."""
        if self._is_named or not self._is_marked:
            return
        try:
            self._target.forget_producer(self._producer)
        except Exception as error:  # noqa: BLE001  # all points are stored
            logger.warning("the mark of %s stays in its store: %s", self._producer, error)

    def _check_patience(self, cause: Exception | None) -> None:
        if self._is_late or (self._deadline is not None and self._clock() >= self._deadline):
            raise CopyTimeoutError(
                f"the copy took longer than its timeout; {self._landed()}",
                report=self._report(),
                side="caller",
            ) from cause

    def _cancelled(self) -> CopyCancelledError:
        return CopyCancelledError(
            f"the copy was cancelled; {self._landed()}", report=self._report(), side="caller"
        )

    def _failed(
        self,
        side: Side,
        error: BaseException,
        rejections: list[tuple[list[DataPoint], Exception]] | None = None,
    ) -> CopyError:
        told = str(error) if isinstance(error, TsEngineError) else repr(error)
        return CopyError(
            f"the copy stopped at its {side}: {told}; {self._landed()}",
            report=self._report(),
            side=side,
            rejections=rejections or (),
        )

    def _landed(self) -> str:
        report = self._report()
        told = f"{report.accepted} points had landed"
        if report.refused or report.rejected:
            told += f", {report.refused} were refused and {report.rejected} rejected"
        return f"{told} behind {report.skipped} skipped" if report.skipped else told

    def _report(self) -> CopyReport:
        return self._tally.report(self._clock() - self._began)


def _rejections(delivery: Delivery, settled: int) -> list[tuple[list[DataPoint], Exception]]:
    """Give what was rejected of the first points; what comes later is seen again."""
    departure = delivery.departure
    rejections: list[tuple[list[DataPoint], Exception]] = []
    for rows, error in delivery.progress.rejected:
        rows = rows[departure.positions[rows] < settled]
        if len(rows):
            rejections.append((departure.points_of(rows), error))
    return rejections


def _as_point(given: object) -> DataPoint:
    """Give what was taken for a point as one, or, where it is none, as it is."""
    if isinstance(given, tuple) and len(given) == len(DataPoint._fields):
        return DataPoint(*given)
    return cast("DataPoint", given)
