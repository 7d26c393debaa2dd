"""Committing: from a batch that departs to points that are stored or rejected, each once.

A `Delivery` is a batch on its way. It is tried as a whole, under one mark; what fails is
retried under the same mark and unchanged, or divided into pieces that have marks of their own,
as `retry.py` says. A piece that was stored, whatever was reported of it, is never stored again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from tsengine.buffering.arrivals import Departure, News, Outcome, Tell
from tsengine.engine import WriteBufferHandler
from tsengine.errors import (
    InvalidDataError,
    LifecycleError,
    RejectedPointsError,
    ValueOverflowError,
)
from tsengine.metrics import CommitMetrics
from tsengine.model import DataPoint, Int64Array, ProducerMark, WriteReceipt
from tsengine.retry import BatchSize, ErrorClass, RetryPolicy

logger = logging.getLogger("tsengine.commits")

NOTHING: Final = WriteReceipt(0, 0)
"""The receipt of no points at all."""

_STORED: Final = WriteReceipt(1, 1)
"""The receipt of one point that was stored."""

MarkOf = Callable[[Int64Array, int], ProducerMark | None]
"""Gives the mark of a piece from its rows and its number, which is 0 for a whole batch; None
where the handler keeps no marks."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a delivery is.

    Attributes:
        todo: rows of the pieces that are still to be stored, the next one last.
        piece: number of the next piece; 0 for the whole.
        receipts: what was stored: rows, and the receipt whose indices count these.
        rejected: rows that cannot be stored, and why.
        too_large_at: points of a piece that was given up as too large however often it was
            tried; smaller ones out of it are not tried so often.
    """

    todo: tuple[Int64Array, ...]
    piece: int = 0
    receipts: tuple[tuple[Int64Array, WriteReceipt], ...] = ()
    rejected: tuple[tuple[Int64Array, Exception], ...] = ()
    too_large_at: int = 0


class Delivery:
    """A batch on its way into a handler.

    Args:
        departure: the batch.
        mark_of: marks its pieces.
        size: points of a piece at most, to begin with.

    Attributes:
        departure: the batch.
        progress: how far it is. It is replaced as a whole, so that no error and no interrupt
            leaves a step half done.
        accounted: how far it was when whoever sends it last looked.
        told: points whose waiters were told of a failure, by arrival. They wait no longer; what
            becomes of these points in the end is told to others.
    """

    __slots__ = ("_mark_of", "accounted", "departure", "progress", "told")

    def __init__(self, departure: Departure, mark_of: MarkOf, size: int) -> None:
        self.departure = departure
        self._mark_of = mark_of
        rows = np.arange(departure.points)
        self.progress = Progress((rows,))
        if departure.points > size:
            self.progress = Progress(self._cut(rows, size), 1)
        self.accounted = self.progress
        self.told: frozenset[int] = frozenset()

    @property
    def left(self) -> int:
        """How many points are neither stored nor rejected, as far as that is accounted for."""
        return sum(map(len, self.accounted.todo))

    def mark(self) -> ProducerMark | None:
        """The mark of the next piece, the same until that is settled."""
        return self._mark_of(self.progress.todo[-1], self.progress.piece)

    def stored(self, receipt: WriteReceipt) -> None:
        """Go on after the next piece was stored."""
        was = self.progress
        self.progress = replace(
            was,
            todo=was.todo[:-1],
            piece=was.piece + 1,
            receipts=(*was.receipts, (was.todo[-1], receipt)),
        )

    def cut(self, size: int) -> None:
        """Go on in pieces of at most so many points, in order of arrival."""
        was = self.progress
        pieces = [piece for rows in was.todo for piece in self._cut(rows, size)]
        self.progress = replace(was, todo=tuple(pieces), piece=was.piece + 1)

    def give_up_whole(self) -> None:
        """Take the next piece for too large at any size that it was to be tried at."""
        was = self.progress
        self.progress = replace(was, too_large_at=len(was.todo[-1]))

    def divide(self, error: Exception, *, by_arrival: bool) -> None:
        """Go on after the next piece was refused for good: without the bad points, or in halves.

        Halves are by series, which isolates a bad series in few steps, or by arrival. Points
        of one series keep their order either way.
        """
        rows = self.progress.todo[-1]
        # Of points whose sum overflows the first may well be stored: halving finds them.
        if isinstance(error, InvalidDataError) and not isinstance(error, ValueOverflowError):
            bad = sorted({index for index in error.indices if 0 <= index < len(rows)})
            if bad:
                self._reject(rows[bad], error, np.delete(rows, bad))
                return
        if len(rows) == 1:
            self._reject(rows, error, rows[:0])
            return
        if by_arrival:
            self._go_on(self._cut(rows, (len(rows) + 1) // 2))
        else:
            self._go_on((rows[len(rows) // 2 :], rows[: len(rows) // 2]))

    def receipt(self, since: Progress | None = None) -> WriteReceipt:
        """Give what was stored as one receipt; its indices count all points by arrival.

        Args:
            since: leave out what was stored by then.
        """
        positions = self.departure.positions
        receipts = self.progress.receipts[len(since.receipts) if since else 0 :]
        reasons: dict[str, int] = {}
        indices: list[int] = []
        for rows, receipt in receipts:
            for reason, count in receipt.reasons.items():
                reasons[reason] = reasons.get(reason, 0) + count
            if receipt.indices:
                indices += positions[rows[list(receipt.indices)]].tolist()
        return WriteReceipt(
            submitted=sum(receipt.submitted for _, receipt in receipts),
            accepted=sum(receipt.accepted for _, receipt in receipts),
            refused=sum(receipt.refused for _, receipt in receipts),
            evicted=sum(receipt.evicted for _, receipt in receipts),
            reasons=reasons,
            indices=tuple(sorted(indices)),
        )

    def left_positions(self) -> Int64Array:
        """Give the numbers by arrival of the points that are left, ascending."""
        rows = [self.departure.positions[piece] for piece in self.progress.todo]
        return np.sort(np.concatenate(rows)) if rows else np.empty(0, np.int64)

    def rejections(self, since: Progress) -> list[tuple[list[DataPoint], Exception]]:
        """Give the points that were rejected since, and that nobody waits for, by error."""
        awaited = {place for place, _ in self.departure.awaited} - self.told
        rejections: list[tuple[list[DataPoint], Exception]] = []
        for rows, error in self.progress.rejected[len(since.rejected) :]:
            if awaited:
                positions = self.departure.positions[rows].tolist()
                rows = rows[[position not in awaited for position in positions]]
            if len(rows):
                rejections.append((self.departure.points_of(rows), error))
        return rejections

    def news(self, failure: BaseException | None = None) -> list[News]:
        """Give what is to be told to those who wait for a point that is settled.

        Args:
            failure: told of the points that are left; they stay where they are.
        """
        if not self.departure.awaited:
            return []
        outcomes = self._outcomes()
        left = set(self.left_positions().tolist())
        told: dict[Tell, list[tuple[object, Outcome]]] = {}
        for position, awaited in self.departure.awaited:
            outcome: Outcome | None = outcomes.get(position, _STORED)
            if position in left:
                outcome = failure
            if outcome is not None and position not in self.told:
                told.setdefault(awaited.tell, []).append((awaited.waiter, outcome))
        return list(told.items())

    def told_of(self, failure: BaseException | None) -> frozenset[int]:
        """Give by arrival whose waiters have heard of a failure, once they hear of this one."""
        if failure is None:
            return self.told
        left = self.left_positions().tolist()
        return self.told.union({place for place, _ in self.departure.awaited}.intersection(left))

    @property
    def has_unheard(self) -> bool:
        """Whether points are left whose failure nobody has heard of."""
        return not self.told.issuperset(self.left_positions().tolist())

    def _outcomes(self) -> dict[int, Outcome]:
        """Give what became of the points that were not simply stored, by arrival."""
        positions = self.departure.positions
        outcomes: dict[int, Outcome] = {}
        for rows, error in self.progress.rejected:
            if isinstance(error, InvalidDataError):
                outcomes |= dict.fromkeys(positions[rows].tolist(), error)
                continue
            # By its type it could be taken for a failure that leaves the point pending.
            for row in rows.tolist():
                points = self.departure.points_of(np.array([row]))
                told = RejectedPointsError(
                    f"{points[0]!r} cannot be stored: {error}", rejections=[(points, error)]
                )
                told.__cause__ = error
                outcomes[int(positions[row])] = told
        for rows, receipt in self.progress.receipts:
            if receipt.indices:
                # Which of several reasons it was for one point, no receipt says.
                reason = " or ".join(sorted(receipt.reasons))
                refused = WriteReceipt(1, 0, 1, 0, {reason: 1}, (0,))
                outcomes |= dict.fromkeys(positions[rows[list(receipt.indices)]].tolist(), refused)
        return outcomes

    def _cut(self, rows: Int64Array, size: int) -> tuple[Int64Array, ...]:
        by_arrival = rows[self.departure.positions[rows].argsort()]
        pieces = [np.sort(by_arrival[at : at + size]) for at in range(0, len(rows), size)]
        return tuple(reversed(pieces))

    def _reject(self, bad: Int64Array, error: Exception, rest: Int64Array) -> None:
        if isinstance(error, InvalidDataError):
            error.indices = tuple(range(len(bad)))  # of the points that it is handed out with
        was = self.progress
        todo = (*was.todo[:-1], rest) if len(rest) else was.todo[:-1]
        rejected = (*was.rejected, (bad, error))
        self.progress = replace(was, todo=todo, piece=was.piece + 1, rejected=rejected)

    def _go_on(self, pieces: tuple[Int64Array, ...]) -> None:
        was = self.progress
        self.progress = replace(was, todo=(*was.todo[:-1], *pieces), piece=was.piece + 1)


class Committer:
    """Has deliveries stored by a handler, with all the patience of a policy.

    Args:
        handler: what to commit to.
        policy: when to try again.
        metrics: counts what happens.
        points_max: points of one commit at most.
        pause: waits so many seconds; false where the wait was ended, as by a close.
        by_arrival: whether batches are divided by arrival alone, never by series, so that
            what is stored is at any moment a beginning of what arrived.
        fields: given to every record of the log.
        clock: seconds, monotonic.

    Attributes:
        size: how many points are committed at once at the moment.

    Thread-safety: one thread at a time.
    """

    __slots__ = (
        "_by_arrival",
        "_clock",
        "_fields",
        "_handler",
        "_pause",
        "_policy",
        "_staging",
        "metrics",
        "size",
    )

    def __init__(
        self,
        handler: WriteBufferHandler,
        policy: RetryPolicy,
        metrics: CommitMetrics,
        *,
        points_max: int,
        pause: Callable[[float], bool],
        by_arrival: bool = False,
        fields: Mapping[str, object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._handler = handler
        self._policy = policy
        self._pause = pause
        self._by_arrival = by_arrival
        self._fields = fields
        self._clock = clock
        self._staging: tuple[int, int] | None = None  # thread and points of what was staged last
        self.metrics = metrics
        self.size = BatchSize(points_max, policy.min_batch_size)

    def deliver(self, delivery: Delivery) -> None:
        """Have a delivery stored; returns when none of its points is left.

        Raises:
            Exception: what an attempt failed with, unchanged, where no further one is due. What
                is left of the delivery may be delivered again, before anything that is newer.
        """
        began = self._clock()
        rejected_before = len(delivery.progress.rejected)
        retries = 0
        try:
            while delivery.progress.todo:
                piece = delivery.progress.piece
                if self._attempt(delivery, retries, began):
                    retries += 1
                    self.metrics.retries += 1
                elif delivery.progress.piece != piece:
                    retries = 0
        finally:
            rejected = delivery.progress.rejected[rejected_before:]
            if rejected:
                count = sum(len(rows) for rows, _ in rejected)
                self._log(logging.WARNING, "points were rejected", rejected[0][1], count)

    def _attempt(self, delivery: Delivery, retries: int, began: float) -> bool:
        """Try the next piece; whether it failed, and the same one is to be tried again."""
        try:
            mark = delivery.mark()
        except Exception as error:
            # Nothing was tried: whatever the error is about, it is not about these points.
            self.metrics.failures += 1
            if self._handler.error_class(error) is not ErrorClass.TRANSIENT:
                raise
            self._wait(error, len(delivery.progress.todo[-1]), retries, began)
            return True
        try:
            self._try(delivery, mark)
        except Exception as error:  # noqa: BLE001  # raised again where it is not handled
            self.metrics.failures += 1
            return self._handle(error, delivery, mark, retries, began)
        return False

    def _try(self, delivery: Delivery, mark: ProducerMark | None) -> None:
        rows = delivery.progress.todo[-1]
        started = self._clock()
        try:
            receipt = self._hand_over(delivery.departure, rows, mark)
        finally:
            self.metrics.latency.observe(max(self._clock() - started, 0.0))
        self._count(delivery, receipt)
        self.size.grow(len(rows))

    def _count(self, delivery: Delivery, receipt: WriteReceipt) -> None:
        size = len(delivery.progress.todo[-1])
        delivery.stored(receipt)
        metrics = self.metrics
        metrics.batches += 1
        metrics.points += receipt.submitted
        metrics.refused += receipt.refused
        metrics.sizes.observe(size)

    def _hand_over(
        self, departure: Departure, rows: Int64Array, mark: ProducerMark | None
    ) -> WriteReceipt:
        """Have the handler commit rows; indices of receipts and errors count these rows."""
        handler = self._handler
        here = threading.get_ident()
        if handler.staged_points and self._staging == (here, handler.staged_points):
            handler.discard_buffer()  # ours: an interrupt came when it was to be discarded
        if handler.staged_points:
            raise LifecycleError(
                f"this thread has {handler.staged_points} points staged on {handler!r} itself; "
                "flush_buffer() or discard_buffer() there first"
            )
        whole = len(rows) == departure.points
        staged = 0
        is_staged = False
        try:
            for batch in departure.batches if whole else departure.part(rows):
                self._staging = here, staged + len(batch)
                handler.write_batch_to_buffer(batch)
                staged += len(batch)
            is_staged = True
            receipt = handler.flush_buffer() if mark is None else handler.flush_buffer(mark)
            self._staging = None  # what is staged from now on is somebody else's
            return self._checked(receipt, len(rows))
        except BaseException as error:
            handler.discard_buffer()
            self._staging = None
            if isinstance(error, InvalidDataError) and not is_staged:
                error.indices = tuple(index + staged for index in error.indices)
            raise

    def _checked(self, receipt: object, points: int) -> WriteReceipt:
        """Give a handler's receipt, or where it cannot be one of so many points, one that can.

        The points are stored: an error would have them tried again.
        """
        if (
            isinstance(receipt, WriteReceipt)
            and receipt.submitted == receipt.accepted + receipt.refused == points
            and all(type(row) is int and 0 <= row < points for row in receipt.indices)
        ):
            return receipt
        logger.error(
            "%r answered %d points with %r, which is no receipt of them",
            self._handler,
            points,
            receipt,
            extra={**self._fields, "points": points},
        )
        return WriteReceipt(points, points)

    def _handle(
        self,
        error: Exception,
        delivery: Delivery,
        mark: ProducerMark | None,
        retries: int,
        began: float,
    ) -> bool:
        """Do what an error calls for, or raise it; whether the same piece is tried again."""
        size = len(delivery.progress.todo[-1])
        verdict = self._handler.error_class(error)
        if verdict in (ErrorClass.TOO_LARGE, ErrorClass.PERMANENT) and mark is not None:
            # Nothing was stored, the error says. Where the number is there it is wrong, and
            # to divide the batch, or to hand its points out, would have them twice.
            try:
                is_stored = _is_stored(self._handler, mark)
            except Exception as second:  # noqa: BLE001  # its own class says what is to be done
                second.__context__ = error
                error, verdict = second, self._handler.error_class(second)
                if verdict is not ErrorClass.FATAL:
                    verdict = ErrorClass.TRANSIENT
            else:
                if is_stored:
                    self._log(logging.WARNING, "a commit that failed had been stored", error, size)
                    self._count(delivery, WriteReceipt(size, size))
                    return False
        if verdict is ErrorClass.TOO_LARGE:
            if size > self.size.shrink(size):
                self._log(logging.INFO, "a batch was too large, and is divided", error, size)
                self.metrics.splits += 1
                delivery.cut(self.size.points)
                return False
            if size <= delivery.progress.too_large_at:
                verdict = ErrorClass.PERMANENT
        if verdict is ErrorClass.TRANSIENT or (
            verdict is ErrorClass.TOO_LARGE and retries < self._policy.max_retries
        ):
            self._wait(error, size, retries, began)
            return True
        if verdict is ErrorClass.TOO_LARGE:
            delivery.give_up_whole()
        elif verdict is not ErrorClass.PERMANENT:
            raise error
        self._check_deadline(error, began)
        before = len(delivery.progress.rejected)
        delivery.divide(error, by_arrival=self._by_arrival)
        rejected = sum(len(rows) for rows, _ in delivery.progress.rejected[before:])
        self.metrics.rejected += rejected
        self.metrics.splits += rejected < size
        return False

    def _check_deadline(self, error: Exception, began: float, pause: float = 0.0) -> None:
        """Raise an error instead of going on where that would be after the deadline."""
        deadline = self._policy.deadline
        if deadline is not None and self._clock() - began + pause > deadline:
            raise error

    def _wait(self, error: Exception, points: int, retries: int, began: float) -> None:
        """Pause before the next attempt, or raise where there is to be none."""
        if retries >= self._policy.max_retries:
            raise error
        seconds = self._policy.pause(retries)
        self._check_deadline(error, began, seconds)
        self._log(
            logging.WARNING,
            f"a commit failed, and is tried again in {seconds:.3f} s",
            error,
            points,
        )
        if not self._pause(seconds):
            raise error

    def _log(self, level: int, text: str, error: Exception, points: int) -> None:
        logger.log(
            level,
            "%s: %s",
            text,
            error,
            extra={**self._fields, "points": points, "error_type": type(error).__name__},
        )


def _is_stored(handler: WriteBufferHandler, mark: ProducerMark) -> bool:
    known = handler.high_water(mark.producer)
    return known is not None and (known.sequence, known.piece) >= (mark.sequence, mark.piece)


def join_receipts(receipts: list[tuple[int, WriteReceipt]]) -> WriteReceipt:
    """Make one receipt of those of batches that were committed one after the other.

    Args:
        receipts: each behind the number of points that its indices count.
    """
    if len(receipts) == 1:
        return receipts[0][1]
    base = 0
    reasons: dict[str, int] = {}
    indices: list[int] = []
    for points, receipt in receipts:
        for reason, count in receipt.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
        indices += (base + index for index in receipt.indices)
        base += points
    return WriteReceipt(
        submitted=sum(receipt.submitted for _, receipt in receipts),
        accepted=sum(receipt.accepted for _, receipt in receipts),
        refused=sum(receipt.refused for _, receipt in receipts),
        evicted=sum(receipt.evicted for _, receipt in receipts),
        reasons=reasons,
        indices=tuple(indices),
    )
