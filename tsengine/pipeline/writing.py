"""Writing: the calling thread's side of a copy, from parcels to what has landed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Literal, NoReturn, TypeAlias, cast

from tsengine.buffering.committing import Committer, Delivery
from tsengine.buffering.judging import Judge
from tsengine.engine import WriteBufferHandler
from tsengine.errors import (
    CancelledError,
    CopyCancelledError,
    CopyError,
    CopyTimeoutError,
    RejectedPointsError,
    SourceChangedError,
    TsEngineError,
    UnsupportedError,
)
from tsengine.metrics import CommitMetrics
from tsengine.model import DataPoint, Int64Array, ProducerMark, WriteReceipt, check_producer
from tsengine.pipeline.feed import Feed, SourceFailedError
from tsengine.pipeline.parcels import Parcel, Trail
from tsengine.pipeline.progress import CopyReport, Progress, Tally
from tsengine.pipeline.reading import logger
from tsengine.retry import RetryPolicy
from tsengine.waiting import PAUSE_SECONDS_MAX, Patience

OnReject: TypeAlias = Callable[[list[DataPoint], Exception], object]
"""Is given points that can never be stored, and what is wrong with them."""

OnProgress: TypeAlias = Callable[[Progress], object]
"""Is told how far a copy is."""

Rejected: TypeAlias = tuple[list[DataPoint], Exception]
Side: TypeAlias = Literal["source", "target", "caller"]


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
        self._delivery: Delivery | None = None  # of it
        self._rejected: list[Rejected] = []  # nobody was told of
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

    def run(self, feed: Feed, age_max: float | None) -> CopyReport:
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

    def _take(self, feed: Feed, age_max: float | None) -> Parcel | None:
        self._check_patience(None)
        # Less than that, and a source that gives nothing would be asked without end.
        left = None if age_max is None else max(age_max, PAUSE_SECONDS_MAX)
        if self._deadline is not None:
            until = max(self._deadline - self._clock(), 0.0)
            left = until if left is None else min(left, until)
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
        try:
            departure, judged = parcel.departure(judge, self._entries)
        except Exception as error:
            raise self._failed("target", error) from error
        failure: Exception | None = None
        settled = len(parcel)
        self._delivery = None
        try:
            self._reject([([_as_point(point)], error) for _, point, error in judged])
            if departure is not None:
                self._delivery = Delivery(departure, self._mark, self._committer.size.points)
                self._committer.deliver(self._delivery)
                self._reject_found()
        except Exception as error:  # noqa: BLE001  # raised when what has landed is counted
            failure = error
            settled = self._landed_of_parcel()
        if self._delivery is not None:
            batches = self._delivery.departure.batches
            if settled < len(parcel):
                rows = (self._delivery.departure.positions < settled).nonzero()[0]
                batches = self._delivery.departure.part(rows)
            self._tally.add(self._delivery.receipt(), batches)
        self._trail.advance(parcel, settled, is_known_again=self._is_named)
        if failure is not None:
            self._raise_failure(failure)
        if self._rejected:
            count = sum(len(points) for points, _ in self._rejected)
            cause = RejectedPointsError(
                f"{count} of the points cannot be stored, and are in this error: "
                f"{self._rejected[0][1]}",
                rejections=self._rejected,
            )
            cause.__cause__ = self._rejected[0][1]
            raise self._failed("source", cause) from cause

    def _landed_of_parcel(self) -> int:
        """Tell how many points from the beginning of a parcel that failed are settled."""
        if self._delivery is None:
            return 0
        self._ask_what_landed(self._delivery)
        left = self._delivery.left_positions()
        return int(left[0]) if len(left) else len(self._parcel)

    def _raise_failure(self, failure: Exception) -> NoReturn:
        if isinstance(failure, _CallbackError):
            raise self._failed("caller", failure.raised) from failure.raised
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
        """Mark the next piece of the delivery; what was rejected before it is told first."""
        del piece  # sequences ascend from piece to piece
        self._reject_found()
        if not self._target.marks_producers:
            return None
        self._is_marked = True
        return self._mark_of(rows)

    def _mark_of(self, rows: Int64Array) -> ProducerMark:
        """Mark the points up to the last one of these, in the order of the source."""
        assert self._delivery is not None
        count = len(rows)
        if count < len(self._parcel):  # else it is the whole, as nearly always
            count = int(self._delivery.departure.positions[rows].max()) + 1
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
            rows = delivery.progress.todo[-1]
            if known.sequence < self._mark_of(rows).sequence:
                return
            delivery.stored(WriteReceipt(len(rows), len(rows)))

    def _reject_found(self) -> None:
        """Have those points rejected that the target refused since the last time."""
        delivery = self._delivery
        assert delivery is not None
        since, delivery.accounted = delivery.accounted, delivery.progress
        self._reject(delivery.rejections(since))

    def _reject(self, rejections: list[Rejected]) -> None:
        """Give points that cannot be stored to `on_reject`, or keep them for an error.

        It is done before a mark that counts them as settled is committed: a kill then has
        nobody told of them twice at worst, and never not at all.
        """
        self._tally.rejected += sum(len(points) for points, _ in rejections)
        self._rejected += rejections
        while self._rejected and self._on_reject is not None:
            points, error = self._rejected.pop(0)
            try:
                self._on_reject(points, error)
            except Exception as raised:
                raised.add_note(f"raised by on_reject, which was given {len(points)} points")
                raise _CallbackError(raised) from raised

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

    def _failed(self, side: Side, error: BaseException) -> CopyError:
        told = str(error) if isinstance(error, TsEngineError) else repr(error)
        return CopyError(
            f"the copy stopped at its {side}: {told}; {self._landed()}",
            report=self._report(),
            side=side,
            rejections=self._rejected,
        )

    def _landed(self) -> str:
        report = self._report()
        told = f"{report.accepted} points had landed"
        if report.refused or report.rejected:
            told += f", {report.refused} were refused and {report.rejected} rejected"
        return f"{told} behind {report.skipped} skipped" if report.skipped else told

    def _report(self) -> CopyReport:
        return self._tally.report(self._clock() - self._began)


class _CallbackError(Exception):
    """Is raised where a callback of the caller did."""

    def __init__(self, raised: Exception) -> None:
        super().__init__(str(raised))
        self.raised = raised


def _as_point(given: object) -> DataPoint:
    """Give what was taken for a point as one, or, where it is none, as it is."""
    if isinstance(given, tuple) and len(given) == len(DataPoint._fields):
        return DataPoint(*given)
    return cast("DataPoint", given)
