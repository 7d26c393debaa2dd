"""WriteBufferHandler: what a buffer needs of a backend."""

from __future__ import annotations

from abc import ABC, abstractmethod

from tsengine.model import (
    DataPoint,
    GroupedBatch,
    Labels,
    PointLike,
    ProducerMark,
    ValueKind,
    WriteReceipt,
)
from tsengine.retry import ErrorClass, classify


class WriteBufferHandler(ABC):
    """What a `WriteBuffer` needs of a backend.

    Staging belongs to the calling thread: two buffers on one engine never see each other's
    points, and no caller gets another's errors. Every call may be made by any thread.

    Attributes:
        validates_every_point: whether `validate_point` must see every point, rather than
            the first of each series.
        marks_producers: whether `flush_buffer` takes marks.
    """

    validates_every_point: bool = False
    marks_producers: bool = False

    @property
    def holds_only_floats(self) -> bool:
        """Whether any series can begin with a float, at this moment, without being asked about.

        The timestamp must not be too early all the same. A handler may always say no, and does
        where nothing can be written, so that `validate_point` says why.
        """
        return False

    @property
    @abstractmethod
    def timestamp_min(self) -> int:
        """The earliest timestamp that is valid, nanoseconds."""

    @property
    def staged_points(self) -> int:
        """How many points the calling thread has staged, where the handler tells; else 0."""
        return 0

    @abstractmethod
    def validate_point(self, point: PointLike) -> DataPoint:
        """Judge a point; stages and stores nothing.

        Returns:
            The point as it will be stored: its value a `float`, an `int`, or a normalised
            object, by the kind of its series.

        Raises:
            InvalidDataError: the point is not valid in this store.
        """

    @abstractmethod
    def write_to_buffer(self, point: PointLike) -> None:
        """Stage one point for this thread's next flush; nobody sees it before.

        Raises:
            InvalidDataError: the point is not valid; what was staged stays.
        """

    @abstractmethod
    def flush_buffer(self, mark: ProducerMark | None = None) -> WriteReceipt:
        """Commit what this thread staged, atomically, together with a producer mark.

        The staging is consumed whatever happens: the caller keeps its own copy until the
        receipt is there. A batch whose mark is not above the stored one is a no-op and
        answered by the receipt of its first commit where it was the last batch.

        Returns:
            The receipt; its indices count what was staged, in order.

        Raises:
            InvalidDataError: nothing was stored; `indices` count what was staged.
            StorageError: the commit failed or its outcome is unknown; to repeat it with
                the same mark is harmless.
        """

    def write_batch_to_buffer(self, batch: GroupedBatch) -> None:
        """Stage a batch at once; by default point by point.

        Raises:
            InvalidDataError: the batch is not valid.
        """
        for series in batch.groups():
            for point in series.points():
                self.write_to_buffer(point)

    @abstractmethod
    def discard_buffer(self) -> None:
        """Forget what this thread staged."""

    def error_class(self, error: Exception) -> ErrorClass:
        """Say what an error of staging or flushing calls for; by default goes by its type.

        A backend whose driver raises errors of its own, or that knows better which of them
        time heals, overrides this. What is retried, and how, is not its affair: `retry.py`.
        """
        return classify(error)

    def series_kind(self, labels: Labels) -> ValueKind | None:
        """Give the kind of a stored series; None where it is not stored, or cannot be told."""
        return None

    def high_water(self, producer: str) -> ProducerMark | None:
        """Give the highest mark committed by a producer, None where there is none.

        Raises:
            InvalidDataError: no producer can have that name.
        """
        return None

    def forget_producer(self, producer: str) -> None:
        """Drop the mark of a producer that is done for good.

        Raises:
            InvalidDataError: no producer can have that name.
        """
        return
