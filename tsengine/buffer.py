"""WriteBuffer: many small writes, few atomic commits, in front of any handler.

Many threads write to one buffer without a lock: a point is one `extend` of a flat list
(`arrivals.py`), which no other thread can divide. All else happens where the list is
emptied: counting, grouping by series, staging, committing. The list is never replaced, and
its front is deleted only after the receipt is there, so a failed commit leaves every point
in its place.
"""

from __future__ import annotations

import enum
import os
import threading
import warnings
import weakref
from collections.abc import Iterable
from dataclasses import replace
from typing import Final, Self

from tsengine.arrivals import ENTRY, Departure, count_points, depart, points_of
from tsengine.engine import WriteBufferHandler
from tsengine.errors import (
    ConfigurationError,
    ForkedError,
    InvalidDataError,
    LifecycleError,
    NotOpenError,
    UnknownOptionError,
    UnsavedPointsError,
)
from tsengine.judging import Judge
from tsengine.model import (
    INT64_MAX,
    DataPoint,
    Labels,
    PointLike,
    ProducerMark,
    WriteReceipt,
    check_producer,
)
from tsengine.options import positive_integer

POINTS_MAX: Final = 65_536
"""Points of one commit: it takes some 10 ms, of which an fsync (0.1 ms) is a percent."""

PENDING_FACTOR: Final = 4
"""Default of `pending_max` in multiples of `points_max`: others go on writing while one
flush takes four times as long as usual."""

_NOTHING: Final = WriteReceipt(0, 0)


class WriteBuffer:
    """Gathers points of many threads and commits them to a handler in batches.

    A write that raises has not taken its points; one that returns has, and they stay
    pending until a commit stored them. A commit takes the oldest `points_max` points. It
    starts when so many are pending, in the thread whose write made them so many, and on
    `flush()` and `close()`; other threads go on filling meanwhile. Points of one thread are
    committed in the order of its writes.

    When a commit fails, its points stay pending. The error goes to the caller of `flush()`
    or `close()`; of a commit that a write started, to whichever write comes next, which
    then takes no point. The outcome may be unknown: so the same points are tried again
    unchanged, alone, and under the same mark before any others, and with a handler that
    keeps marks every point is stored exactly once. Where such an error carries `indices`,
    they count the pending points, oldest first.

    Args:
        handler: what to commit to: an engine, open.
        points_max: most points of one commit.
        pending_max: pending points at which a write commits before it takes its point,
            after the commit of another thread if there is one; by default four times
            `points_max`. One point a thread, and the points of one bulk write, may exceed it.
        producer: a name that survives restarts, so that the numbering continues; by default
            a random one, whose mark goes at a clean close. One open buffer a name and store.

    Raises:
        UnknownOptionError: `points_max` or `pending_max` make no sense.
        InvalidDataError: `producer` is no name that a store can keep.
        ConfigurationError: another open buffer on this handler has that producer name.

    Thread-safety: any number of threads. After a fork the child's copy is empty and raises
    ForkedError; the points are the parent's.
    """

    __slots__ = (
        "__weakref__",
        "_committed",
        "_departing",
        "_entries",
        "_extra",
        "_failure",
        "_flush_lock",
        "_forgets_producer",
        "_handler",
        "_judge",
        "_limit",
        "_marked",
        "_pending_max",
        "_points_max",
        "_room",
        "_sequence",
        "_staging",
        "_state",
        "_state_lock",
        "producer",
    )

    producer: str
    """The name under which batches are numbered."""

    def __init__(
        self,
        handler: WriteBufferHandler,
        *,
        points_max: int = POINTS_MAX,
        pending_max: int | None = None,
        producer: str | None = None,
    ) -> None:
        self._points_max = _at_least_one("points_max", points_max)
        if pending_max is None:
            pending_max = PENDING_FACTOR * self._points_max
        self._pending_max = _at_least_one("pending_max", pending_max)
        if self._pending_max < self._points_max:
            raise UnknownOptionError(
                f"pending_max={pending_max} is less than points_max={points_max}"
            )
        self._handler = handler
        if producer is not None:
            check_producer(producer)
        self._forgets_producer = producer is None
        self.producer = f"buffer-{os.urandom(16).hex()}" if producer is None else producer

        self._entries: list[object] = []
        self._judge = Judge(handler, self._entries)

        # Held through a commit; guards the front of _entries, _departing, _sequence, _staging,
        # _marked and _committed. Taken before _state_lock where both are.
        self._flush_lock = threading.Lock()
        self._departing: Departure | None = None  # whose commit is under way or has failed
        self._sequence: int | None = None  # of the last batch committed; None before the first
        self._staging: tuple[int, int] | None = None  # thread and points of what was staged last
        self._marked = False  # whether the handler may hold a mark of ours
        self._committed = _NOTHING

        # Guards _extra, _failure, _state, _limit, and _room, which follows from these four.
        self._state_lock = threading.Lock()
        self._extra = 0  # points in _entries beyond one an entry
        self._failure: Exception | None = None  # of a commit that a write started
        self._state = _State.OPEN
        self._limit = self._points_max  # pending points at which a write does more than append
        self._room = 0  # list elements below which a write only appends
        self._set_room_locked()

        with _module_lock:
            if _producers.setdefault((id(handler), self.producer), self) is not self:
                raise ConfigurationError(
                    f"another open buffer on this handler has the producer name "
                    f"{self.producer!r}; points of one would pass for repeated ones of the other"
                )
            _buffers.add(self)
        weakref.finalize(self, _warn_of_loss, self._entries, type(handler).__name__)

    # Writing.

    def write(self, point: PointLike) -> None:
        """Take one point.

        Raises:
            InvalidDataError: the point is not valid.
            NotOpenError: the buffer is closed.
            Exception: what a commit failed with that an earlier write started, unchanged.
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

    # Committing.

    def flush(self) -> WriteReceipt:
        """Commit all that is pending, in batches of at most `points_max` points.

        Returns:
            The receipts of these commits as one; its indices count the points in order of
            arrival. Commits that writes started are not in it; see `committed`.

        Raises:
            NotOpenError: the buffer is closed.
            Exception: what the handler raised, unchanged. The batches before are
                committed, all other points are pending.
        """
        with self._flush_lock:
            with self._state_lock:
                self._check_state_locked()
            try:
                return self._commit_all()
            except Exception:
                with self._state_lock:
                    self._failure = None  # it was of the batch that this call tells about
                    self._set_room_locked()
                raise

    def take_pending(self) -> list[DataPoint]:
        """Give the pending points back in order of arrival; the buffer has them no more.

        Of a batch whose commit failed, the error tells whether it may be stored.

        Raises:
            ForkedError: the points are the parent's.
        """
        with self._flush_lock:
            if self._state is _State.FORKED:
                raise ForkedError("this buffer was made before a fork; its points are the parent's")
            entries = self._entries[:]
            points = points_of(entries)
            with self._state_lock:
                if self._departing is not None and self._sequence is not None:
                    self._sequence += 1  # the number of its batch may be taken
                    self._departing = None
                extra = self._extra - (len(points) - len(entries) // ENTRY)
                self._limit = self._points_max
                self._failure = None
                room = self._room_with_locked(extra)
                # All that may fail is done: nothing between here and the caller can.
                del self._entries[: len(entries)]
                self._extra = extra
                self._room = room
        return points

    def close(self) -> None:
        """Commit all that is pending and take no more, for good; a second call does nothing.

        A write in another thread takes its point before the last commit, or raises; one
        that was about to append all through the last commit leaves its point pending.

        Raises:
            UnsavedPointsError: a commit failed, which is the cause. The buffer is closed
                nevertheless; `take_pending()` gives the points back.
        """
        with self._state_lock:
            was_open = self._state is _State.OPEN
            if was_open:
                self._state = _State.CLOSED
                self._set_room_locked()
        with self._flush_lock:  # so that a second caller, too, returns when it is done
            if was_open:
                try:
                    self._close_flushing()
                finally:  # not before: a successor of that name goes on from our last number
                    with _module_lock:
                        _producers.pop((id(self._handler), self.producer), None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<WriteBuffer on {self._handler!r}: {self._state.value}, {self.pending} pending>"

    @property
    def pending(self) -> int:
        """How many points were taken and are not known to be committed."""
        with self._state_lock:
            return self._pending_locked()

    @property
    def committed(self) -> WriteReceipt:
        """What became of all points committed so far, without indices."""
        return self._committed

    # Taking.

    def _pending_locked(self) -> int:
        return len(self._entries) // ENTRY + self._extra

    def _set_room_locked(self) -> None:
        self._room = self._room_with_locked(self._extra)

    def _room_with_locked(self, extra: int) -> int:
        if self._state is _State.OPEN and self._failure is None:
            return ENTRY * (self._limit - extra - 1)  # the last one does more
        return 0

    def _check_state_locked(self) -> None:
        if self._state is _State.FORKED:
            raise ForkedError("this buffer was made before a fork; make a new one here")
        if self._state is _State.CLOSED:
            raise NotOpenError("this buffer is closed")

    def _write_slowly(self, point: PointLike) -> None:
        """Take a point that is not of the plainest kind, or where room is short."""
        if len(self._entries) >= self._room:
            self._make_room()
        entry = self._judge.judge(point)
        entries = self._entries
        if len(entries) < self._room:
            entries += entry
        else:
            self._take(list(entry), 1)

    def _make_room(self) -> None:
        """Raise what stands against a write; at `pending_max`, commit."""
        while True:
            with self._state_lock:
                self._check_state_locked()
                failure, self._failure = self._failure, None
                if failure is not None:
                    self._set_room_locked()
                    raise failure
                if self._pending_locked() < self._pending_max:
                    return
            with self._flush_lock:
                if self.pending >= self._pending_max:
                    self._commit_next()

    def _take(self, entries: list[object], points: int) -> None:
        """Append judged entries, all in one step; commit if that fills the buffer."""
        with self._state_lock:
            self._check_state_locked()
            extra = self._extra + points - len(entries) // ENTRY
            room = self._room_with_locked(extra)
            held = self._entries
            # All three or none: the first takes the points or raises, and from there on
            # nothing needs memory, and no call lets an interrupt in.
            held += entries
            self._extra = extra
            self._room = room
        try:
            self._commit_by_size(points)
        except Exception as error:  # noqa: BLE001  # ours are taken: the next write raises it
            # Without a lock, which may need memory that is not there: room that is given
            # by another thread meanwhile, or taken once too often, does no harm.
            self._failure = error
            self._room = 0

    # Committing. Callers hold _flush_lock, but for _commit_by_size.

    def _commit_by_size(self, points: int) -> None:
        """Commit while the buffer is full, as far as this call's points have filled it."""
        for _ in range(1 + points // self._points_max):
            with self._state_lock:
                pending = self._pending_locked()
                if pending < self._limit:
                    return
            if not self._flush_lock.acquire(blocking=pending >= self._pending_max):
                return  # another thread is at it
            try:
                with self._state_lock:
                    full = self._pending_locked() >= self._limit
                if full:
                    self._commit_next()
            finally:
                self._flush_lock.release()

    def _commit_all(self) -> WriteReceipt:
        """Commit what is pending now; what others add meanwhile may wait."""
        due = self.pending
        receipts: list[WriteReceipt] = []
        while due > 0:
            points, receipt = self._commit_next()
            if not points:
                break
            due -= points
            receipts.append(receipt)
        return _join(receipts)

    def _commit_next(self) -> tuple[int, WriteReceipt]:
        """Commit the oldest points, first those of a commit that failed; count them."""
        if self._sequence is None:
            self._sequence = self._last_sequence()
        with self._state_lock:
            self._limit = self._pending_max  # the others go on filling, and nothing slows them
            self._set_room_locked()
        try:
            departing = self._departing
            if departing is None:
                departing = depart(self._entries, self._points_max)
            if departing is None:
                with self._state_lock:
                    self._limit = self._points_max
                    self._set_room_locked()
                return 0, _NOTHING
            self._departing = departing
            receipt = self._hand_over(departing, ProducerMark(self.producer, self._sequence + 1))
        except BaseException:
            with self._state_lock:
                self._limit = min(self._pending_locked() + self._points_max, self._pending_max)
                self._set_room_locked()
            raise
        sequence = self._sequence + 1
        elements = ENTRY * departing.entries
        committed = _join([self._committed, replace(receipt, indices=())])
        with self._state_lock:
            extra = self._extra - (departing.points - departing.entries)
            # All six or none: the first raises for want of memory, or nothing does, and
            # without a call among them no interrupt comes between.
            del self._entries[:elements]
            self._departing = None
            self._sequence = sequence
            self._extra = extra
            self._committed = committed
            self._failure = None
            self._limit = self._points_max
            self._set_room_locked()
        return departing.points, receipt

    def _last_sequence(self) -> int:
        if self._forgets_producer or not self._handler.marks_producers:
            return 0
        mark = self._handler.high_water(self.producer)
        return 0 if mark is None else mark.sequence

    def _hand_over(self, departing: Departure, mark: ProducerMark) -> WriteReceipt:
        """Have the handler commit a batch; its indices then count in order of arrival."""
        handler = self._handler
        if handler.staged_points and self._staging == (
            threading.get_ident(),
            handler.staged_points,
        ):
            handler.discard_buffer()  # ours: an interrupt came when it was to be discarded
        if handler.staged_points:
            raise LifecycleError(
                f"this thread has {handler.staged_points} points staged on {handler!r} itself; "
                "flush_buffer() or discard_buffer() there first"
            )
        staged = 0
        is_staged = False
        try:
            for batch in departing.batches:
                self._staging = threading.get_ident(), staged + len(batch)
                handler.write_batch_to_buffer(batch)
                staged += len(batch)
            is_staged = True
            if handler.marks_producers:
                self._marked = True
                receipt = handler.flush_buffer(mark)
            else:
                receipt = handler.flush_buffer()
        except BaseException as error:
            handler.discard_buffer()
            if isinstance(error, InvalidDataError):
                error.indices = departing.arrived(error.indices, 0 if is_staged else staged)
            raise
        return replace(receipt, indices=departing.arrived(receipt.indices))

    def _close_flushing(self) -> None:
        try:
            while self.pending:
                self._commit_all()
        except Exception as error:
            count = self.pending
            raise UnsavedPointsError(
                f"closed with {count} pending points, as their commit failed: {error}; "
                "take_pending() gives them back",
                count=count,
            ) from error
        if self._marked and self._forgets_producer:
            try:
                self._handler.forget_producer(self.producer)
            except LifecycleError:
                pass  # it was closed before its buffer; a mark too many does no harm

    def _disown(self) -> None:
        """Become the empty copy of a forked child, where no other thread runs."""
        self._entries.clear()
        self._extra = 0
        self._departing = None
        self._failure = None
        self._state = _State.FORKED
        self._flush_lock = threading.Lock()  # another thread of the parent may have held them
        self._state_lock = threading.Lock()
        self._set_room_locked()


class _State(enum.Enum):
    OPEN = "open"
    CLOSED = "closed"
    FORKED = "forked"


def _at_least_one(name: str, value: int) -> int:
    try:
        return positive_integer(value)
    except UnknownOptionError as error:
        raise UnknownOptionError(f"{name}: {error}") from None


def _join(receipts: list[WriteReceipt]) -> WriteReceipt:
    """Make one receipt of those of batches that were committed one after the other."""
    if len(receipts) == 1:
        return receipts[0]
    base = 0
    reasons: dict[str, int] = {}
    indices: list[int] = []
    for receipt in receipts:
        for reason, count in receipt.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
        indices += (base + index for index in receipt.indices)
        base += receipt.submitted
    return WriteReceipt(
        submitted=base,
        accepted=sum(receipt.accepted for receipt in receipts),
        refused=sum(receipt.refused for receipt in receipts),
        evicted=sum(receipt.evicted for receipt in receipts),
        reasons=reasons,
        indices=tuple(indices),
    )


def _warn_of_loss(entries: list[object], handler: str) -> None:
    """Say so where a buffer goes with points in it, at the latest when Python exits."""
    if entries:
        warnings.warn(
            f"a WriteBuffer on {handler} was dropped with {count_points(entries)} pending "
            "points, which are lost; close() stores them",
            RuntimeWarning,  # unlike a ResourceWarning it is shown by default
            stacklevel=1,
        )


def _disown_all() -> None:
    global _module_lock  # noqa: PLW0603  # another thread of the parent may have held it
    _module_lock = threading.Lock()
    for buffer in list(_buffers):
        buffer._disown()


_module_lock = threading.Lock()
"""Guards the two below; in a forked child it is made anew."""

_producers: weakref.WeakValueDictionary[tuple[int, str], WriteBuffer] = (
    weakref.WeakValueDictionary()
)
"""The open buffers by the identity of their handler, which they keep alive, and producer."""

_buffers: weakref.WeakSet[WriteBuffer] = weakref.WeakSet()
"""All buffers, closed ones as well, which may have pending points."""

os.register_at_fork(after_in_child=_disown_all)
