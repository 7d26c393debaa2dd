"""Feed: parcels between who reads a source and who writes them; bounded.

The reading side adds items one by one; when they are as many points as one commit takes they
become a parcel. One parcel waits at most, so that a copy never holds more than three: one that
fills up, one that waits, one that is written.

    reader                               writer
    for _ in feed.add(item):             parcel = feed.take(patience)
        feed.wait_for_room()
    feed.finish()                        None: that was all

A slow source is not waited for without end: what has arrived when the patience of `take` ends
is given as a smaller parcel. An event loop may be the reading side as well: `add` never blocks,
and `wait_for_room` can wait in a thread of its own.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Final

from tsengine.model import GroupedBatch, PointLike, SeriesBatch
from tsengine.pipeline.parcels import Parcel, PointParcel, copied, gather, rows_of
from tsengine.pipeline.sources import batches_of
from tsengine.tables import is_table
from tsengine.waiting import Patience

POINTS_MAX: Final = 1 << 16
"""Objects of a parcel at most, points or values, as in a buffer: 65,536 points are 10 MB."""

BATCHES_MAX: Final = 1 << 14
"""Batches of a parcel at most: 16,384 of one row each take 7 MB before they are joined."""


class FeedStoppedError(Exception):
    """Is raised in the reading side when nobody will write what it reads."""


class SourceFailedError(Exception):
    """Is raised in the writing side when the source failed.

    Attributes:
        error: what it raised.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


class Feed:
    """Parcels on their way from one thread to another.

    Args:
        points_max: rows of a parcel at most.
        is_own: whether the arrays of batches are left alone by whoever gave them; else they
            are copied at once.

    Attributes:
        points: points that become a parcel next. Only the reading side appends, which it may do
            without a call of `add` as long as `points_max` and `has_batches` allow.
        points_max: how many points a parcel takes.
        has_batches: whether batches came before and wait to become a parcel.
    """

    points: list[PointLike]

    def __init__(self, points_max: int, *, is_own: bool = False) -> None:
        self.points = []
        self.points_max = min(points_max, POINTS_MAX)
        self.has_batches = False
        self._rows_max = points_max
        self._is_own = is_own
        # Guards all below, and removing from `points`. Notified of every change of it.
        self._changed = threading.Condition()
        self._batches: list[GroupedBatch | SeriesBatch] = []
        self._rows = 0  # of them
        self._limit = points_max  # rows at which they become a parcel
        self._ready: deque[Parcel] = deque()
        self._is_finished = False
        self._is_stopped = False
        self._error: BaseException | None = None

    # The reading side.

    def add(self, item: object) -> Iterator[None]:
        """Add an item; whenever this yields, there must be room before it goes on.

        Raises:
            InvalidDataError: the columns of a batch do not fit together.
            FeedStoppedError: nobody will write it. That is seen at each item, an empty batch too,
                by which a source that finds nothing to give gets to know it.
        """
        if self._is_stopped:
            raise FeedStoppedError
        if self._is_own and type(item) in (SeriesBatch, GroupedBatch):
            yield from self._add_batch(item)  # type: ignore[arg-type]  # it is one of the two
            return
        if not (isinstance(item, (SeriesBatch, GroupedBatch)) or is_table(item)):
            yield from self._add_points([item])  # type: ignore[list-item]  # judged by the writer
            return
        for batch in batches_of(item):
            if isinstance(batch, list):
                yield from self._add_points(batch)
            else:
                yield from self._add_batch(batch)

    def flush(self) -> Iterator[None]:
        """Make a parcel of what is there; yields as `add` does."""
        while self.points or self._batches:
            if self.is_full:
                yield
            else:
                with self._changed:
                    self._close_locked()

    @property
    def is_full(self) -> bool:
        """Whether a parcel waits already."""
        return len(self._ready) > 0

    def wait_for_room(self) -> None:
        """Wait until a parcel can be made.

        Raises:
            FeedStoppedError: nobody will write it.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped or not self._ready)
            if self._is_stopped:
                raise FeedStoppedError

    def finish(self, error: BaseException | None = None) -> None:
        """Say that nothing more will come, as the source has ended or failed."""
        with self._changed:
            while self.points or self._batches:
                self._close_locked()
            self._error = error
            self._is_finished = True
            self._changed.notify_all()

    def _add_points(self, points: list[PointLike]) -> Iterator[None]:
        if self.has_batches:
            yield from self.flush()
        for start in range(0, len(points), self.points_max):
            self.points += points[start : start + self.points_max]
            if len(self.points) >= self.points_max:
                yield from self.flush()

    def _add_batch(self, batch: GroupedBatch | SeriesBatch) -> Iterator[None]:
        if self.points:
            yield from self.flush()
        most = self._rows_max if batch.values.dtype.kind in "fiu" else self.points_max
        start = 0
        while start < len(batch):
            # Whoever takes what is there early sets these back meanwhile: then it is less.
            room = min(most, self._limit) - self._rows
            if room <= 0 or len(self._batches) >= BATCHES_MAX:
                yield from self.flush()
                continue
            part = rows_of(batch, start, min(start + room, len(batch)))
            start += len(part)
            if not self._is_own:
                part = copied(part)
            with self._changed:
                self._limit = min(most, self._limit)
                self._batches.append(part)
                self._rows += len(part)
                self.has_batches = True
        if self._rows >= self._limit and not self.is_full:
            with self._changed:
                self._close_locked()

    def _close_locked(self) -> None:
        """Make parcels of what is there."""
        if self._batches:
            self._ready += gather(self._batches)
            self._batches = []
            self._rows = 0
            self._limit = self._rows_max
            self.has_batches = False
        elif self.points:
            points = self.points[: self.points_max]  # the reading side may be appending
            del self.points[: len(points)]
            self._ready.append(PointParcel(points))
        self._changed.notify_all()

    # The writing side.

    def take(self, patience: Patience) -> Parcel | None:
        """Take a parcel, waiting for a full one; with no patience left, for any.

        Returns:
            The next parcel; None where the source has ended, or where nothing had come when
            patience ended: `is_finished` tells which.

        Raises:
            CancelledError: as `patience` says.
            SourceFailedError: the source did, and all that came before was taken.
        """
        with self._changed:
            patience.wait_for(self._changed, lambda: bool(self._ready) or self._is_finished)
            if not self._ready:
                self._close_locked()
            if self._ready:
                parcel = self._ready.popleft()
                self._changed.notify_all()
                return parcel
            if self._error is not None:
                raise SourceFailedError(self._error)
            return None

    @property
    def is_finished(self) -> bool:
        """Whether the source has ended and all of it was taken."""
        with self._changed:
            return self._is_finished and not self._ready and self._error is None

    def stop(self) -> None:
        """Say that nothing more will be taken."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
