"""WriteBuffer: many small writes, few atomic commits, in front of any handler.

Many threads write to one buffer without a lock: a point is one `extend` of a flat list
(`buffering/arrivals.py`), which no other thread can divide. All else happens where the list is
emptied: counting, grouping by series, committing (`buffering/committing.py`). The list is never
replaced, and its front is deleted only after its points are settled, so a failed commit
leaves every point in its place.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, Literal, Self, TypeVar

from tsengine.buffering import keeping
from tsengine.buffering.acknowledgement import Acknowledgement, news_of_unsaved, tell_futures
from tsengine.buffering.arrivals import ENTRY, Awaited, News, Tell, awaited_in
from tsengine.buffering.flushing import FlushedOutbox
from tsengine.buffering.judging import Judge
from tsengine.buffering.outbox import OnReject, State, Turn
from tsengine.engine import WriteBufferHandler
from tsengine.errors import (
    BufferFullError,
    ForkedError,
    InvalidDataError,
    LifecycleError,
    UnknownOptionError,
    UnsavedPointsError,
    WaitError,
    WaitTimeoutError,
)
from tsengine.model import INT64_MAX, DataPoint, Labels, PointLike, WriteReceipt
from tsengine.options import boolean, choice, positive_integer, seconds
from tsengine.retry import RetryPolicy
from tsengine.waiting import Patience

logger = logging.getLogger("tsengine.buffer")

POINTS_MAX: Final = 65_536
"""Points of one commit: it takes some 10 ms, of which an fsync (0.1 ms) is a percent."""

AGE_MAX: Final = 1.0
"""Seconds that a point waits at most: what a dashboard does not notice."""

PENDING_FACTOR: Final = 4
"""Default of `pending_max` in multiples of `points_max`: others go on writing while one
flush takes four times as long as usual."""

NO_PATIENCE: Final = Patience(0.0, None)


class WriteBuffer(FlushedOutbox):
    """Gathers points of many threads and commits them to a handler in batches.

    A write that raises has not taken its points; one that returns has, and they are pending
    until a commit settles them: stores them, or has the handler refuse or reject them. A
    commit takes the oldest `points_max` points. It starts when so many are pending, when the
    first pending point is `age_max` old, when a submitted point waits, and on `flush()` and
    `close()`; other threads go on filling meanwhile. Points of one thread, and so of one
    series of a thread, are committed in the order of its writes.

    What becomes of a commit that fails, its class of error decides (`retry.py`): it is tried
    again, in smaller pieces, or without the points that cannot be stored, which go to
    `on_reject`. Where nothing more is to be tried its points stay pending, in their place. The
    error goes to the caller of `flush()` or `close()` and to the futures of its points; where
    neither heard it, to whichever write comes next, which then takes no point. The next commit
    tries the same points first, alone and under the same mark, so that with a handler that
    keeps marks every point is stored exactly once, whatever was reported of it.

    Args:
        handler: what to commit to: an engine, open.
        points_max: most points of one commit.
        age_max: seconds after which a pending point is committed by a thread of the buffer's
            own, counted from the oldest on; None for never.
        pending_max: pending points at which a write needs room before it takes its point; by
            default four times `points_max`. One point a thread, and the points of one bulk
            write, may exceed it.
        on_full: what a write does there: `"block"` waits until a commit made room, `"raise"`
            raises BufferFullError at once. Where no commit is under way it commits by itself,
            unless that is to happen in the background.
        full_timeout: seconds that such a wait may take; None for as long as it takes.
        background: commits happen in the buffer's own thread alone, for producers that must
            not wait for one; it costs about a fifth of the throughput.
        producer: a name that survives restarts, so that the numbering continues; by default
            a random one, whose mark goes at a clean close. One open buffer a name and store.
        retry: when a failed commit is tried again, and how its batch is divided.
        on_reject: is called with points that can never be stored and the error that says why,
            once for each, by the thread that committed, which may write to this buffer. Without
            it they are in the RejectedPointsError that `flush()` or the next write raises.
            Points that were submitted are told by their futures alone.
        clock: seconds, monotonic; injected by tests. It must not raise.

    Attributes:
        metrics: what happened so far.

    Raises:
        UnknownOptionError: an option makes no sense.
        InvalidDataError: `producer` is no name that a store can keep.
        ConfigurationError: another open buffer on this handler has that producer name.

    Thread-safety: any number of threads. After a fork the child's copy is empty and raises
    ForkedError; the points are the parent's.
    """

    __slots__ = (
        "_closer",
        "_full_timeout",
        "_judge",
        "_on_full",
    )

    def __init__(
        self,
        handler: WriteBufferHandler,
        *,
        points_max: int = POINTS_MAX,
        age_max: float | None = AGE_MAX,
        pending_max: int | None = None,
        on_full: Literal["block", "raise"] = "block",
        full_timeout: float | None = None,
        background: bool = False,
        producer: str | None = None,
        retry: RetryPolicy | None = None,
        on_reject: OnReject | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        points_max = _option("points_max", positive_integer, points_max)
        if pending_max is None:
            pending_max = PENDING_FACTOR * points_max
        pending_max = _option("pending_max", positive_integer, pending_max)
        if pending_max < points_max:
            raise UnknownOptionError(
                f"pending_max={pending_max} is less than points_max={points_max}"
            )
        age_max = _seconds_option("age_max", age_max)
        background = _option("background", boolean, background)
        self._on_full = _option("on_full", choice("block", "raise"), on_full)
        self._full_timeout = _seconds_option("full_timeout", full_timeout)
        if on_reject is not None and not callable(on_reject):
            raise UnknownOptionError(f"on_reject={on_reject!r} cannot be called")
        if retry is not None and not isinstance(retry, RetryPolicy):
            raise UnknownOptionError(f"retry={retry!r} is no RetryPolicy")
        super().__init__(
            handler,
            points_max=points_max,
            pending_max=pending_max,
            age_max=age_max,
            background=background,
            producer=producer,
            retry=RetryPolicy() if retry is None else retry,
            on_reject=on_reject,
            clock=clock,
        )
        self._judge = Judge(handler, self._entries)
        self._closer = 0  # the thread that closes it, once one does; guarded by _state_lock
        keeping.register(self, handler)
        if age_max is not None or background:
            self._need_flusher()

    # Writing.

    def write(self, point: PointLike) -> None:
        """Take one point.

        Raises:
            InvalidDataError: the point is not valid.
            BufferFullError: there is no room, or was none within `full_timeout`.
            NotOpenError: the buffer is closed, or was while this waited for room.
            RejectedPointsError: earlier points turned out to be bad; it has them.
            Exception: what a commit of earlier points failed with, unchanged.
        """
        # The hot path: only what tells that the point is valid and that there is room; the
        # rest, and to say what is wrong, is left to the slow path. No lock, which would
        # double the cost: `+=` extends the list in one step, after which nothing can raise.
        judge = self._judge
        try:
            labels, timestamp, value = point
            known = labels in judge.floats
        except (TypeError, ValueError):
            known = False
        else:
            if (
                known
                and type(value) is float
                and type(timestamp) is int
                and judge.earliest <= timestamp <= INT64_MAX
            ):
                entries = self._entries
                if len(entries) < self._room:
                    entries += (labels, timestamp, value)
                    if self._is_unwatched:
                        try:
                            self._watch()
                        except MemoryError:
                            pass  # the point is taken: the next write tries
                    return
        self._write_slowly(point)

    def write_many(self, points: Iterable[PointLike]) -> None:
        """Take points, all or none.

        All are judged before the first is taken, so they are in memory at once: give an
        endless stream in slices.

        Raises:
            InvalidDataError: of the first offender's type; `indices` names all of them.
            Exception: as in `write`.
        """
        given = list(points)
        self._make_room()
        self._take(self._judge.judge_many(given, self._points_max), len(given))
        self._commit_taken(len(given))

    def write_series(self, labels: Labels, timestamps: object, values: object) -> None:
        """Take columns of one series, all or none.

        Args:
            labels: which series.
            timestamps: [n], as for `Engine.write_series`; copied.
            values: [n], as for `Engine.write_series`; copied.

        Raises:
            InvalidDataError: as in `write_many`.
            Exception: as in `write`.
        """
        self._make_room()
        columns = self._judge.judge_series(labels, timestamps, values)
        self._take(columns.entries(labels, self._points_max), len(columns))
        self._commit_taken(len(columns))

    def submit(self, point: PointLike) -> Acknowledgement:
        """Take one point, and give a future of what becomes of it.

        A commit begins as soon as none is under way, in the buffer's own thread; points that
        are submitted meanwhile share the next one.

        Returns:
            A future with the receipt of this point, once that is durable: refused by cap or
            retention it has `refused=1`; what its commit evicted is in `committed` alone. Of a
            bad point the future raises, and no other does.

        Raises:
            Exception: as in `write`, but for InvalidDataError; the point is not taken.
        """
        future = Acknowledgement()
        self._submit(point, future, tell_futures)
        return future

    # Committing.

    def flush(
        self, timeout: float | None = None, cancel: threading.Event | None = None
    ) -> WriteReceipt:
        """Commit all that is pending, in batches of at most `points_max` points.

        With a timeout, a cancel event, or `background=True`, the buffer's own thread does it
        while this one waits; else this one does.

        Args:
            timeout: seconds to wait; None for as long as it takes.
            cancel: ends the wait when it is set.

        Returns:
            The receipts of these commits as one; its indices count the points that it took up,
            by arrival. Commits that others started are not in it; see `committed`.

        Raises:
            NotOpenError: the buffer is closed, or was before all was committed.
            WaitTimeoutError, CancelledError: the wait ended first; the commits go on.
            RejectedPointsError: these points can never be stored; all others are.
            Exception: what the handler raised, unchanged. The batches before are
                committed, all other points are pending.
        """
        self._check_outside()
        patience = Patience(timeout, cancel)
        if self._commits_here(timeout, cancel):
            with self._state_lock:
                self._check_state_locked()
            try:
                receipt = self._flush_here("flush")
            except Exception:
                self._forget_failure()  # it was of the batch that this call tells about
                raise
            self._commit_taken(self.pending)  # what others added may have filled it
        else:
            receipt = self._have_flushed(patience)
        with self._state_lock:
            self._raise_rejected_locked()
        return receipt

    def take_pending(
        self, timeout: float | None = None, cancel: threading.Event | None = None
    ) -> list[DataPoint]:
        """Give the pending points back in order of arrival; the buffer has them no more.

        Of a batch whose commit failed, the error tells whether it may be stored. A commit that
        is under way is waited for. Rejected points that nobody was told of come first.

        Args:
            timeout: seconds to wait; None for as long as it takes.
            cancel: ends the wait when it is set.

        Raises:
            ForkedError: the points are the parent's.
            WaitTimeoutError, CancelledError: the wait ended first; nothing was taken.
        """
        self._check_outside()
        patience = Patience(timeout, cancel)
        turn = Turn()
        try:
            self._take_turn(turn, patience, even_closed=True)
            if self._state is State.FORKED:
                raise ForkedError("this buffer was made before a fork; its points are the parent's")
            self._take_back()
        finally:
            if self._turn is turn:
                self._turn = None
            self._notify()
            self._tell_news()
        back = self._given_back  # until here an interrupt leaves them with us
        self._given_back = []
        return back

    def close(self, timeout: float | None = None, cancel: threading.Event | None = None) -> None:
        """Commit all that is pending and take no more, for good; a second call does nothing.

        Every other wait on the buffer ends. A write in another thread takes its point before
        the last commit, or raises; one that was about to append all through the last commit
        leaves its point pending.

        Args:
            timeout: seconds to wait; None for as long as it takes. The thread of the buffer
                then ends when its last call of the handler does.
            cancel: ends the wait when it is set.

        Raises:
            UnsavedPointsError: not all was stored, and its cause says why. The buffer is closed
                nevertheless; `take_pending()` gives the points back.
        """
        self._check_outside()
        if cancel is not None and cancel.is_set():
            timeout, cancel = 0.0, None  # it closes all the same
        patience = Patience(timeout, cancel)
        turn = Turn()  # here, as everything that is called may be interrupted
        is_mine = False
        is_flushed = False
        failure: Exception | None = None
        try:
            with self._state_lock:
                if self._state is State.OPEN:
                    is_mine = True
                    self._closer = turn.thread
                    self._state = State.CLOSING
                    self._set_room_locked()
                elif self._closer != turn.thread and not self._wait_locked(
                    patience, lambda: self._state is not State.CLOSING
                ):
                    raise WaitTimeoutError(
                        f"another thread still closes it after {timeout} seconds"
                    )
            if not is_mine:
                return
            self._notify()
            failure = self._flush_to_close(patience, here=self._commits_here(timeout, cancel))
            is_flushed = True
        finally:
            if is_mine:
                if not is_flushed:  # an interrupt is not kept waiting
                    patience = NO_PATIENCE
                try:
                    self._end_commits(turn, patience)
                finally:
                    self._state = State.CLOSED
                    has_ended = self._turn is None or self._turn is turn
                    if self._turn is turn:
                        self._turn = None
                    self._end(patience, cancel, has_ended=has_ended)
        self._settle_close(failure)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<WriteBuffer on {self._handler!r}: {self._state.value}, {self.pending} pending>"

    # Taking.

    def _write_slowly(self, point: PointLike) -> None:
        """Take a point that is not of the plainest kind, or where room is short."""
        if len(self._entries) >= self._room:
            self._make_room()
        if self._append(self._judge.judge(point)):
            self._commit_taken(1)

    def _submit(self, point: PointLike, waiter: object, tell: Tell) -> None:
        """Take a point whose fate `tell` tells to `waiter`, a bad one's as well.

        Where there is room this never waits: the flusher commits, also by size.
        """
        if len(self._entries) >= self._room:
            self._make_room()
        self._need_flusher()
        try:
            labels, timestamp, value = self._judge.judge(point)
        except InvalidDataError as error:
            tell([(waiter, error)])
            return
        self._append((labels, timestamp, Awaited(value, waiter, tell)))
        self._is_wanted = True
        try:
            if self._flusher is not None:  # in every case: an interrupt may have come in between
                self._flusher.bell.ring()
        except MemoryError:
            pass  # the point is taken: its age will have it committed, or the next one

    def _append(self, entry: tuple[object, ...]) -> bool:
        """Append one judged entry; whether that may have filled the buffer."""
        entries = self._entries
        if len(entries) < self._room:
            entries += entry
            if self._is_unwatched:
                try:
                    self._watch()
                except MemoryError:
                    pass  # as in `write`
            return False
        self._take(list(entry), 1)
        return True

    def _make_room(self) -> None:
        """Raise what stands against a write; at `pending_max`, have room made."""
        patience: Patience | None = None
        while True:
            with self._state_lock:
                if self._has_room_locked():
                    return
                if not self._may_commit or self._turn is not None:
                    if patience is None:
                        patience = Patience(self._full_timeout, None)
                    self._wait_for_room_locked(patience)
                    continue
            self._commit_once("size", None, least=self._pending_max)

    def _has_room_locked(self) -> bool:
        """Raise what stands against a write; whether there is room for one."""
        self._check_state_locked()
        self._raise_rejected_locked()
        failure, self._failure = self._failure, None
        if failure is not None:
            self._set_room_locked()
            raise failure
        return self._pending_locked() < self._pending_max

    def _wait_for_room_locked(self, patience: Patience) -> None:
        """Wait until there may be room.

        Raises:
            BufferFullError: it is not to wait, or has waited long enough.
        """
        metrics = self.metrics
        self._check_no_turn_locked()
        if self._flusher is not None:
            self._flusher.bell.ring()
        if self._on_full == "raise" and self._pending_locked() >= self._pending_max:
            metrics.full += 1
            raise BufferFullError(
                f"{self._pending_locked()} points are pending, pending_max={self._pending_max}; "
                "the point was not taken"
            )
        metrics.waits += 1
        began = self._clock()
        is_there = self._wait_locked(patience, self._may_have_room_locked)
        metrics.wait_seconds += max(self._clock() - began, 0.0)
        if not is_there:
            metrics.full += 1
            raise BufferFullError(
                f"{self._pending_locked()} points are still pending after "
                f"full_timeout={self._full_timeout} seconds; the point was not taken"
            )

    def _may_have_room_locked(self) -> bool:
        return (
            self._state is not State.OPEN
            or self._owes_error_locked()
            or self._pending_locked() < self._pending_max
            or (self._may_commit and self._turn is None)
        )

    def _take(self, entries: list[object], points: int) -> None:
        """Append judged entries, all in one step."""
        with self._state_lock:
            self._check_state_locked()
            more = points - len(entries) // ENTRY
            room = self._room_with_locked(self._extra + more)
            held = self._entries
            # All three or none: the first takes the points or raises, and from there on
            # nothing needs memory, and no call lets an interrupt in.
            held += entries
            self._extra += more
            self._room = room
        if self._is_unwatched:
            try:
                self._watch()
            except MemoryError:
                pass  # as in `write`

    def _commit_taken(self, points: int) -> None:
        """Have a full buffer committed, after a call whose points were taken."""
        try:
            self._commit_by_size(points)
        except Exception as error:  # noqa: BLE001  # ours are taken: the next write raises it
            self._owe(error)

    # Committing.

    def _commit_by_size(self, points: int) -> None:
        """Commit while the buffer is full, as far as this call's points have filled it."""
        for _ in range(1 + points // self._points_max):
            with self._state_lock:
                if self._state is not State.OPEN or self._pending_locked() < self._limit:
                    return
                least = self._limit
                if not self._may_commit:
                    self._limit = self._pending_max  # the others go on filling
                    self._set_room_locked()
            if self._may_commit:
                if self._commit_once("size", None, least=least) is None:
                    return  # another thread is at it
            else:
                self._need_flusher().bell.ring()
                return

    # Ending.

    def _flush_to_close(self, patience: Patience, *, here: bool) -> Exception | None:
        """Commit what is pending; gives what that failed with."""
        try:
            if here:
                while self._pending_locked():
                    self._flush_here("close", patience)
                self._hand_out()
            else:
                self._have_flushed(patience, closing=True)
        except Exception as error:  # noqa: BLE001  # the caller raises it
            return error
        return None

    def _end_commits(self, turn: Turn, patience: Patience) -> None:
        """Wait to be the last who commits, unless a commit hangs: what it does is not known."""
        try:
            self._take_turn(turn, patience, even_closed=True)
        except (WaitError, LifecycleError):
            pass

    def _end(self, patience: Patience, cancel: threading.Event | None, *, has_ended: bool) -> None:
        """End every wait, and let the thread end, as nobody begins a commit any more."""
        self._notify()
        with self._state_lock:
            self._set_room_locked()
        self._tell_unsaved()
        if has_ended:
            # Not before: a successor of that name goes on from our last number. A commit that
            # goes on lets it go when it ends.
            keeping.release_producer(self, self.producer, self._handler)
        if self._flusher is not None:
            self._flusher.bell.ring()  # it sees that it is done
            is_cancelled = cancel is not None and cancel.is_set()
            self._flusher.join(0.0 if is_cancelled else patience.left)

    def _tell_unsaved(self) -> None:
        """Tell those who still wait for a point that the buffer has closed without it."""
        with self._state_lock:
            delivery = self._departing
            entries = self._entries[:]
            departing = 0 if delivery is None else ENTRY * delivery.departure.entries
        news: list[News] = []
        if delivery is not None:
            # Its commit failed, and they heard, or it still goes on.
            unknown = UnsavedPointsError(
                "the commit of this point was under way when its buffer closed: it may be stored",
                count=1,
            )
            news += delivery.news(unknown)
        news += news_of_unsaved(
            awaited_in(entries[departing:]),
            "this point was pending when its buffer closed, and is not stored",
        )
        for tell, told in news:
            tell(told)
        self._tell_news()

    def _settle_close(self, failure: Exception | None) -> None:
        """Raise what is left when all is done that could be done, or forget the producer."""
        with self._state_lock:
            count = self._held_locked()
            if failure is None and self._rejected:
                failure = self._rejected[0][1]
        if count:
            why = "another thread was taking them" if failure is None else failure
            raise UnsavedPointsError(
                f"closed with {count} pending points, as their commit failed: {why}; "
                "take_pending() gives them back",
                count=count,
            ) from failure
        if failure is not None and not isinstance(failure, WaitError):
            raise failure  # of on_reject: all points are in somebody's hands
        if self._marked and self._forgets_producer:
            try:
                self._handler.forget_producer(self.producer)
            except LifecycleError:
                pass  # it was closed before its buffer; a mark too many does no harm
            except Exception as error:  # noqa: BLE001  # all points are stored
                logger.warning(
                    "the mark of %s stays: %s", self.producer, error, extra=self._fields()
                )

    def _flush_at_exit(self, seconds: float) -> None:
        """Store what is pending when the interpreter exits, or say how much was not."""
        failure: object = ""
        try:
            self.close(timeout=seconds)
        except BaseException as error:  # noqa: BLE001  # there is nobody to raise it to
            failure = error
        if self.pending or failure:
            logger.error(
                "Python exits with %d pending points in a WriteBuffer, which are lost: %s",
                self.pending,
                failure or "it was closed without them",
                extra=self._fields(),
            )


_T = TypeVar("_T")


def _option(name: str, convert: Callable[[object], _T], value: object) -> _T:
    try:
        return convert(value)
    except UnknownOptionError as error:
        raise UnknownOptionError(f"{name}: {error}") from None


def _seconds_option(name: str, value: float | None) -> float | None:
    return None if value is None else _option(name, seconds, value)
