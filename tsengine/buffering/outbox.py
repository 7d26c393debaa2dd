"""Outbox: points that were taken, in order of arrival, and how they leave.

The half of a buffer that commits. It holds the points, gives one thread at a time the right to
commit the oldest of them, and accounts for what became of them; `buffer.py` decides when.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from typing import TypeAlias

from tsengine.buffering import keeping
from tsengine.buffering.acknowledgement import Acknowledgement, news_of_unsaved
from tsengine.buffering.arrivals import ENTRY, News, awaited_in, depart, points_of
from tsengine.buffering.committing import NOTHING, Committer, Delivery, join_receipts
from tsengine.buffering.flusher import Flusher
from tsengine.engine import WriteBufferHandler
from tsengine.errors import (
    ForkedError,
    LifecycleError,
    NotOpenError,
    RejectedPointsError,
    StorageError,
    WaitTimeoutError,
)
from tsengine.metrics import BufferMetrics
from tsengine.model import (
    DataPoint,
    Int64Array,
    ProducerMark,
    WriteReceipt,
    check_producer,
)
from tsengine.retry import RetryPolicy
from tsengine.waiting import Patience

OnReject: TypeAlias = Callable[[list[DataPoint], Exception], object]
"""Is given points that cannot be stored, and what is wrong with them."""

Rejection: TypeAlias = tuple[list[DataPoint], Exception]


class State(Enum):
    """Of a buffer."""

    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"
    FORKED = "forked"


class Turn:
    """Stands for the right to commit, while its thread has it."""

    __slots__ = ("thread",)

    def __init__(self) -> None:
        self.thread = threading.get_ident()


class Outbox:
    """Points on their way to a handler.

    Args:
        handler: what to commit to.
        points_max: points of one commit at most.
        pending_max: pending points at which a write has to wait for a commit.
        producer: the name under which batches are numbered; None for a random one.
        retry: how patient a commit is.
        on_reject: takes points that cannot be stored; None keeps them for the next call.
        clock: seconds, monotonic.

    Thread-safety: any number of threads; who calls what holds which lock, the names say.
    """

    __slots__ = (
        "__weakref__",
        "_cause",
        "_changed",
        "_clock",
        "_committed",
        "_committer",
        "_departing",
        "_entries",
        "_extra",
        "_failure",
        "_first_at",
        "_flusher",
        "_forgets_producer",
        "_given_back",
        "_handler",
        "_is_timed",
        "_is_unwatched",
        "_last_told",
        "_limit",
        "_marked",
        "_news",
        "_on_reject",
        "_pending_max",
        "_points_max",
        "_rejected",
        "_room",
        "_sequence",
        "_settled",
        "_state",
        "_state_lock",
        "_told",
        "_turn",
        "_waiting",
        "metrics",
        "producer",
    )

    producer: str
    """The name under which batches are numbered."""

    def __init__(
        self,
        handler: WriteBufferHandler,
        *,
        points_max: int,
        pending_max: int,
        producer: str | None,
        retry: RetryPolicy,
        on_reject: OnReject | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._points_max = points_max
        self._pending_max = pending_max
        self._on_reject = on_reject
        self._handler = handler
        self._clock = clock
        if producer is not None:
            check_producer(producer)
        self._forgets_producer = producer is None
        self.producer = f"buffer-{os.urandom(16).hex()}" if producer is None else producer
        self._entries: list[object] = []

        # The right to commit: guards the front of _entries, _departing, _sequence, _marked, _cause
        # and _last_told. Never waited for but through _changed, so that a close ends the wait.
        # Changed under _state_lock, but for being given back, which is one step.
        self._turn: Turn | None = None
        self._departing: Delivery | None = None  # whose commit is under way or has failed
        self._sequence: int | None = None  # of the last batch committed; None before the first
        self._marked = False  # whether the handler may hold a mark of ours
        self._cause = ""  # what made the present commit due
        self._last_told = 0  # how many waited for points of the last batch
        self.metrics = BufferMetrics()
        self._committer = Committer(
            handler,
            retry,
            self.metrics,
            points_max=points_max,
            pause=_pause_of(weakref.ref(self)),
            fields={"producer": self.producer},
            clock=clock,
        )

        # Guards all below but the flags. _changed is notified of every end of a commit and of
        # every change of state. A handler of a signal may call us while its thread has it.
        self._state_lock = threading.RLock()
        self._changed = threading.Condition(self._state_lock)
        self._waiting = 0  # threads that wait for _changed
        self._extra = 0  # points in _entries beyond one an entry
        self._settled = 0  # points that have left _entries
        self._committed = NOTHING
        self._rejected: list[Rejection] = []  # not handed out yet
        self._news: list[News] = []  # not told yet
        self._given_back: list[DataPoint] = []  # on their way to the caller of take_pending
        self._failure: BaseException | None = None  # that nobody has heard of
        self._told: BaseException | None = None  # a failure that futures told of all its points
        self._state = State.OPEN
        self._limit = points_max  # pending points at which a write does more than append
        self._room = 0  # list elements below which a write only appends; follows from the others
        self._flusher: Flusher | None = None
        self._set_room_locked()

        # Flags, each changed in one step. Whoever appends looks at them afterwards, whoever
        # commits sets them and then looks at what was appended: so one sees what the other did.
        self._is_unwatched = True  # nobody will commit a first point for its age
        self._is_timed = False  # the flusher will look by itself before a new point is old
        self._first_at = 0.0  # when the first pending point came, or somewhat earlier

    @property
    def pending(self) -> int:
        """How many points were taken and are neither settled nor given back."""
        with self._state_lock:
            return self._held_locked()

    @property
    def committed(self) -> WriteReceipt:
        """What became of all points committed so far, without indices."""
        return self._committed

    def _pending_locked(self) -> int:
        """Count the points that are still to be committed."""
        delivery = self._departing
        landed = 0 if delivery is None else delivery.departure.points - delivery.left
        return len(self._entries) // ENTRY + self._extra - landed

    def _rejected_points_locked(self) -> int:
        return sum(len(points) for points, _ in self._rejected)

    def _held_locked(self) -> int:
        """Count all points that are in our hands alone."""
        return self._pending_locked() + self._rejected_points_locked() + len(self._given_back)

    def _set_room_locked(self) -> None:
        self._room = self._room_with_locked(self._extra)

    def _room_with_locked(self, extra: int) -> int:
        if self._state is not State.OPEN or self._owes_error_locked():
            return 0
        return ENTRY * (self._limit - extra - 1)  # the last one does more

    def _owes_error_locked(self) -> bool:
        """Whether the next write has to raise what befell earlier points."""
        return self._failure is not None or (self._on_reject is None and bool(self._rejected))

    def _check_state_locked(self) -> None:
        if self._state is State.FORKED:
            raise ForkedError("this buffer was made before a fork; make a new one here")
        if self._state is not State.OPEN:
            raise NotOpenError("this buffer is closed")

    def _check_outside(self) -> None:
        """Raise where a handler of a signal calls us in the midst of a step of this thread's.

        To write is harmless there; to commit or to close would change what the step stands on.
        """
        if self._state_lock._is_owned():  # type: ignore[attr-defined]  # as a Condition asks it
            raise LifecycleError(
                "called by a signal in the midst of a call of this buffer: let the handler set an "
                "event or raise, and close the buffer outside of it"
            )

    # Watching.

    def _watch(self) -> None:
        """See to it that points which are pending are committed in time, whoever drops us.

        Where it does not come to its end the next write calls it again.
        """
        with self._state_lock:
            self._watch_locked()

    def _watch_locked(self) -> None:
        if not self._is_unwatched or not self._entries:
            return
        keeping.keep(self)
        self._first_at = self._clock()
        if self._flusher is not None and not self._is_timed:
            self._flusher.bell.ring()
        self._is_unwatched = False

    def _rest(self) -> None:
        """Have the next write watched, where nothing is pending."""
        with self._state_lock:
            self._rest_locked()

    def _rest_locked(self) -> None:
        if self._entries:
            return
        if not self._rejected:
            keeping.let_go(self)
        self._is_unwatched = True
        self._watch_locked()  # for who appended before, and saw that it was watched

    # Waiting, and the right to commit.

    def _wait_locked(self, patience: Patience, ready: Callable[[], bool]) -> bool:
        self._waiting += 1
        try:
            return patience.wait_for(self._changed, ready)
        finally:
            self._waiting -= 1

    def _notify(self) -> None:
        """Wake all who wait, to look at what they wait for."""
        with self._state_lock:
            if self._waiting:
                self._changed.notify_all()

    def _take_turn(
        self, turn: Turn, patience: Patience | None = None, *, even_closed: bool = False
    ) -> bool:
        """Get the right to commit; false where the buffer was closed, or there is no patience.

        The caller gives it back by `if self._turn is turn: self._turn = None`, in the `finally`
        of a `try` that this call stands in: then no interrupt can leave it taken.

        Raises:
            LifecycleError: this thread has it already: a handler, or a handler of the log, calls
                the buffer that it is called by.
            WaitTimeoutError, CancelledError: as the patience says.
        """

        def ready() -> bool:
            if self._state is State.CLOSED and not even_closed:
                return True
            if self._turn is None:
                self._turn = turn
            return self._turn is turn

        with self._state_lock:
            if patience is None:
                ready()
            else:
                self._check_no_turn_locked()
                if not self._wait_locked(patience, ready):
                    raise WaitTimeoutError("a commit is under way, and goes on")
        return self._turn is turn

    def _check_no_turn_locked(self) -> None:
        if self._turn is not None and self._turn.thread == threading.get_ident():
            raise LifecycleError(
                "this buffer is committing in this thread, and was called by what the commit calls"
            )

    # Committing.

    def _commit_once(
        self, cause: str, patience: Patience | None, *, least: int = 1
    ) -> tuple[int, WriteReceipt] | None:
        """Commit the oldest points, first those of a commit that failed, and tell of them.

        Args:
            cause: what made it due.
            patience: for the right to commit; None where somebody else who has it will do.
            least: pending points below which there is nothing to do.

        Returns:
            How many they were and their receipt, whose indices count them by arrival; None
            where nothing was done: too few are pending, somebody else commits, or the buffer
            is closed.

        Raises:
            Exception: what the commit failed with, or `on_reject`.
        """
        turn = Turn()
        done: tuple[int, WriteReceipt] | None = None
        try:
            if self._take_turn(turn, patience):
                with self._state_lock:
                    is_due = self._pending_locked() >= least
                if is_due:
                    done = self._commit_next(cause)
        finally:
            if self._turn is turn:
                self._turn = None
            self._notify()
            self._tell_news()
            if self._state is State.CLOSED:  # it went on while it was closed
                keeping.release_producer(self, self.producer, self._handler)
        self._hand_out()
        return done

    def _flush_here(self, cause: str, patience: Patience | None = None) -> WriteReceipt:
        """Commit what is pending now; what others add meanwhile may wait.

        Raises:
            NotOpenError: the buffer was closed, and left some of it pending.
        """
        if patience is None:
            patience = Patience(None, None)
        receipts: list[tuple[int, WriteReceipt]] = []
        with self._state_lock:
            target = self._settled + len(self._entries) // ENTRY + self._extra
        while self._settled < target:
            done = self._commit_once(cause, patience)
            if done is not None:
                receipts.append(done)
            elif self._state is State.CLOSED and self._settled < target:
                raise NotOpenError("this buffer was closed before all was committed")
            else:
                break  # it was taken back
        self._hand_out()
        return join_receipts(receipts)

    def _commit_next(self, cause: str) -> tuple[int, WriteReceipt] | None:
        """Commit the oldest points; the caller has the right to, and tells of them afterwards."""
        self._cause = cause
        with self._state_lock:
            self._limit = self._pending_max  # the others go on filling, and nothing slows them
            self._set_room_locked()
        delivery = self._departing
        departed_at, takes_all = 0.0, False
        try:
            if delivery is None:
                departed_at = self._clock()
                size = self._committer.size.points
                departure = depart(self._entries, size)
                if departure is not None:
                    takes_all = ENTRY * departure.entries == len(self._entries)
                    self._departing = delivery = Delivery(departure, self._mark_of, size)
                    self.metrics.flushes[cause] += 1
            if delivery is not None:
                self._committer.deliver(delivery)
                self._account(delivery)
        except BaseException as error:
            if self._departing is not None and isinstance(error, Exception):
                self._account(self._departing, error)
            with self._state_lock:
                pending = self._pending_locked()
                self._limit = min(pending + self._points_max, self._pending_max)
                self._set_room_locked()
            raise
        if delivery is None:
            with self._state_lock:
                self._limit = self._points_max
                self._set_room_locked()
            return None
        if takes_all:
            self._first_at = departed_at
        self._last_told = len(delivery.departure.awaited)
        self._rest()
        return delivery.departure.points, delivery.receipt()

    def _account(self, delivery: Delivery, failure: Exception | None = None) -> None:
        """Take off what is pending what of a delivery was settled since the last time.

        Args:
            delivery: the one that is departing.
            failure: told to those who wait for what is left of it.
        """
        progress = delivery.progress
        receipt = replace(delivery.receipt(delivery.accounted), indices=())
        rejections = delivery.rejections(delivery.accounted)
        news = delivery.news(failure)
        told = delivery.told_of(failure)
        departure = delivery.departure
        is_settled = not progress.todo
        elements = ENTRY * departure.entries
        sequence = 1 if self._sequence is None else self._sequence + 1
        with self._state_lock:
            committed = join_receipts([(0, self._committed), (0, receipt)])
            rejected = self._rejected + rejections
            all_news = self._news + news
            extra = self._extra - (departure.points - departure.entries)
            settled = self._settled + departure.points
            # All or none: nothing that follows needs memory, and without a call no interrupt
            # comes between.
            delivery.accounted = progress
            delivery.told = told
            self._committed = committed
            self._rejected = rejected
            self._news = all_news
            self._told = None
            if is_settled:
                del self._entries[:elements]
                self._departing = None
                self._sequence = sequence
                self._extra = extra
                self._settled = settled
                self._failure = None
                self._limit = self._points_max
            self._set_room_locked()
        if failure is not None and not delivery.has_unheard:
            self._told = failure

    def _take_back(self) -> None:
        """Put all points that are not settled into `_given_back`; the caller may commit."""
        if self._departing is not None:
            self._account(self._departing)  # there may have been no memory for it
        entries = self._entries[:]
        points = points_of(entries)
        departing = self._departing
        back = points
        news: list[News] = []
        if departing is not None:  # some of it may be settled
            batch = departing.departure.points
            left = departing.left_positions().tolist()
            back = [points[position] for position in left] + points[batch:]
            news = departing.news()
        news += news_of_unsaved(awaited_in(entries), "this point was taken back by take_pending()")
        with self._state_lock:
            rejects = [point for some, _ in self._rejected for point in some]
            back = self._given_back + rejects + back
            extra = self._extra - (len(points) - len(entries) // ENTRY)
            sequence = self._sequence
            if departing is not None and sequence is not None:
                sequence += 1  # the number of its batch may be taken
            settled = self._settled + len(points)
            rejected: list[Rejection] = []
            all_news = self._news + news
            elements = len(entries)
            # All that may fail is done: what follows is all or none.
            self._given_back = back
            self._departing = None
            self._sequence = sequence
            self._extra = extra
            self._settled = settled
            self._rejected = rejected
            self._news = all_news
            self._limit = self._points_max
            self._failure = None
            self._told = None
            del self._entries[:elements]
            self._set_room_locked()
            self._rest_locked()

    def _mark_of(self, rows: Int64Array, piece: int) -> ProducerMark | None:
        if not self._handler.marks_producers:
            return None
        if self._sequence is None:
            mark = None if self._forgets_producer else self._handler.high_water(self.producer)
            self._sequence = 0 if mark is None else mark.sequence
        self._marked = True
        return ProducerMark(self.producer, self._sequence + 1, piece)

    def _pause(self, duration: float) -> bool:
        """Wait before a retry; false where a close wants its turn, or is over."""
        expected = State.CLOSING if self._cause == "close" else State.OPEN
        with self._state_lock:
            return not self._wait_locked(
                Patience(duration, None), lambda: self._state is not expected
            )

    # What became of points. The calling thread has no lock, and not the right to commit.

    def _tell_news(self) -> None:
        """Tell who waits for points what became of them; once more, where an interrupt came."""
        if not self._news:
            return
        news: list[News] = []
        try:
            with self._state_lock:
                news, self._news = self._news, news
            while news:
                tell, told = news[0]
                tell(told)
                del news[0]
        finally:
            if news:
                with self._state_lock:
                    news += self._news
                    self._news = news

    def _hand_out(self) -> None:
        """Give rejected points to `on_reject`."""
        on_reject = self._on_reject
        if on_reject is None or not self._rejected:
            return
        rejected: list[Rejection] = []
        try:
            with self._state_lock:
                rejected, self._rejected = self._rejected, rejected
            while rejected:
                points, error = rejected[0]
                del rejected[0]  # from here to the call nothing can come between
                on_reject(points, error)
        except BaseException as raised:
            raised.add_note("raised by on_reject, or while it was to be called")
            raise
        finally:
            if rejected:
                with self._state_lock:
                    rejected += self._rejected
                    self._rejected = rejected
        self._rest()

    def _raise_rejected_locked(self) -> None:
        if self._rejected and self._on_reject is None:
            rejected = self._rejected
            count = self._rejected_points_locked()
            error = RejectedPointsError(
                f"{count} points cannot be stored, and are in this error: {rejected[0][1]}",
                rejections=rejected,
            )
            error.__cause__ = rejected[0][1]
            self._rejected = []
            self._set_room_locked()
            self._rest_locked()
            raise error

    def _owe(self, error: BaseException) -> None:
        """Keep an error for whichever write comes next, unless all who lost by it were told.

        Of a full buffer it is kept in any case: who waits for room hears why there is none.
        """
        if error is self._told and self._pending_locked() < self._pending_max:
            return
        if not isinstance(error, Exception):  # it would end a thread that has not caused it
            raised = StorageError(f"a commit was ended by {error!r}")
            raised.__cause__ = error
            error = raised
        # Without a lock, which may need memory that is not there: room that is given by another
        # thread meanwhile, or taken once too often, does no harm.
        self._failure = error
        self._room = 0

    def _forget_failure(self) -> None:
        with self._state_lock:
            self._failure = None
            self._set_room_locked()

    def _disown(self) -> None:
        """Become the empty copy of a forked child, where no other thread runs."""
        # Another thread of the parent may have held the locks, and the right to commit.
        self._turn = None
        self._state_lock = threading.RLock()
        self._changed = threading.Condition(self._state_lock)
        self._waiting = 0
        for awaited in awaited_in(self._entries):
            if isinstance(awaited.waiter, Acknowledgement):
                awaited.waiter.disown()
        self._entries.clear()
        self._rejected = []
        self._news = []
        self._given_back = []
        self._extra = 0
        self._departing = None
        self._failure = None
        self._told = None
        self._flusher = None
        self._state = State.FORKED
        self._set_room_locked()


def _pause_of(held: Callable[[], Outbox | None]) -> Callable[[float], bool]:
    """Give the pause of a buffer to what the buffer holds, without a circle."""

    def pause(duration: float) -> bool:
        buffer = held()
        return buffer is not None and buffer._pause(duration)

    return pause
