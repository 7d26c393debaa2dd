"""Judging: what a buffer is given, as entries that will be stored, or an error at its caller.

The handler is asked about the first point of each series; from then on the kind of the
series and the rules that all points share decide here. A handler that wants to see every
point (`validates_every_point`) is asked about every one.
"""

from __future__ import annotations

import threading
from typing import Final

import numpy as np
import numpy.typing as npt

from tsengine.buffering.arrivals import Columns, kind_of_stored, series_of
from tsengine.engine import WriteBufferHandler
from tsengine.errors import InvalidDataError, ValueKindError
from tsengine.model import (
    INT64_MAX,
    Int64Array,
    Labels,
    PointLike,
    PointRules,
    Value,
    ValueArray,
    ValueKind,
    fit_array,
    fit_value,
    kind_of_array,
)
from tsengine.staging import series_columns

SERIES_MAX: Final = 1 << 20
"""Series remembered before they are forgotten and the handler is asked anew, so that a
producer whose series come and go does not fill the memory."""

_CHUNK: Final = 512
"""Points taken apart at once. `zip` makes an iterator for each: far more of them leave the
processor's caches, and 65,536 at once took twice the time."""


class Judge:
    """Judges points for one buffer.

    Args:
        handler: whose points they will be.
        entries: the points that the buffer holds (see `arrivals.py`); only read here.

    Attributes:
        floats: the series known to hold floats: a float of one of them at a timestamp
            between `earliest` and the end of int64 is valid, and need not be judged.
        earliest: the earliest valid timestamp, nanoseconds.

    Thread-safety: any number of threads. Of two that open one series with values of two
    kinds at once, both may pass; the handler then refuses their commit.
    """

    __slots__ = (
        "_entries",
        "_handler",
        "_kinds",
        "_lock",
        "_rules",
        "_series_max",
        "earliest",
        "floats",
    )

    floats: set[Labels]
    earliest: int

    def __init__(self, handler: WriteBufferHandler, entries: list[object]) -> None:
        self._handler = handler
        self._entries = entries
        self._lock = threading.Lock()  # guards changes of all below
        self.floats = set()
        self._kinds: dict[Labels, ValueKind] = {}  # of the other series known
        self._series_max = SERIES_MAX
        self._rules = PointRules(min_timestamp=handler.timestamp_min)
        self.earliest = self._rules.min_timestamp

    def judge(
        self, point: PointLike, before: list[object] | None = None
    ) -> tuple[Labels, int, Value]:
        """Give one point as an entry; `before` are entries of the same call.

        Raises:
            InvalidDataError: the point is not valid.
        """
        entry = self.judge_unasked(point)
        if entry is not None:
            return entry
        judged = self._handler.validate_point(point)
        self._remember(judged.labels, kind_of_stored(judged.value), before)
        return judged.labels, judged.timestamp, judged.value

    def judge_unasked(self, point: PointLike) -> tuple[Labels, int, Value] | None:
        """Give one point as an entry, where that takes no question to the handler; else None.

        For a caller that must not wait for a handler.

        Raises:
            InvalidDataError: the point is not valid.
        """
        try:
            labels, moment, given = point
        except (TypeError, ValueError):
            raise InvalidDataError(
                f"a point is (labels, timestamp, value), not {point!r}"
            ) from None
        if type(given) is float and type(moment) is int and self._opens_floats(labels, moment):
            return labels, moment, given
        known = self._known_kind(labels)
        if known is not None and not self._handler.validates_every_point:
            timestamp = self._rules.check_timestamp(moment)
            try:
                return labels, timestamp, fit_value(given, known)[1]
            except ValueKindError:
                pass  # the handler raises, and says it better, unless a delete freed the kind
        return None

    def judge_many(self, points: list[PointLike], points_max: int) -> list[object]:
        """Give points as entries of at most `points_max` points.

        Raises:
            InvalidDataError: of the first offender's type; `indices` names all of them.
        """
        entries: list[object] = []
        offenders = _Offenders("points")
        size = min(_CHUNK, points_max)
        for start in range(0, len(points), size):
            chunk = points[start : start + size]
            columns = self._float_columns(chunk)
            if columns is not None:
                entries += columns.entries(chunk[0][0], size)
                continue
            for index, point in enumerate(chunk, start):
                try:
                    entries += self.judge(point, entries)
                except InvalidDataError as error:
                    offenders.add(index, error)
        offenders.raise_any()
        return entries

    def are_plain(self, points: list[PointLike]) -> bool:
        """Whether all are floats of series known to hold floats, valid as they are given."""
        return self._float_columns(points) is not None

    def judge_series(self, labels: Labels, timestamps: object, values: object) -> Columns:
        """Give columns of one series, copied.

        Raises:
            InvalidDataError: `indices` names the offenders, where it is not all of them.
        """
        batch = series_columns(self._rules.check_labels(labels), timestamps, values)
        times = np.array(batch.timestamps)  # a copy: the caller may change the array
        self._rules.check_timestamps(times)
        if not len(times):
            return Columns(ValueKind.FLOAT, None, times, np.empty(0))
        kind, column = self._fit_series(labels, times, np.array(batch.values))
        return Columns(kind, None, times, column)

    def _opens_floats(self, labels: object, timestamp: int) -> bool:
        """Whether a float is a valid first point of a series, as far as that is told quickly.

        Half of what it would cost to ask about each of very many new series.
        """
        # With some floats known, `earliest` is that of an open handler.
        if type(labels) is Labels and labels in self.floats:
            return self.earliest <= timestamp <= INT64_MAX
        if (
            not self.floats
            or type(labels) is not Labels
            or not labels.texts
            or labels in self._kinds
            or not self.earliest <= timestamp <= INT64_MAX
            or not self._handler.holds_only_floats
        ):
            return False
        with self._lock:
            if len(self.floats) + len(self._kinds) >= self._series_max:
                self._forget_series_locked()
            self.floats.add(labels)
        return True

    def _known_kind(self, labels: object) -> ValueKind | None:
        if type(labels) is not Labels:
            return None
        return ValueKind.FLOAT if labels in self.floats else self._kinds.get(labels)

    def _float_columns(self, points: list[PointLike]) -> Columns | None:
        """Give points as columns where none needs to be judged, at C speed; else None."""
        count = len(points)
        try:
            labels, timestamps, values = zip(*points, strict=True)
            if (
                set(map(type, values)) != {float}
                or set(map(type, timestamps)) != {int}
                or not self.floats.issuperset(labels)
            ):
                return None
            times = np.fromiter(timestamps, np.int64, count)
        except (TypeError, ValueError, OverflowError):
            return None
        if times.min() < self.earliest:
            return None
        return Columns(ValueKind.FLOAT, labels, times, np.fromiter(values, np.float64, count))

    def _fit_series(
        self, labels: Labels, times: Int64Array, values: npt.NDArray[np.generic]
    ) -> tuple[ValueKind, ValueArray]:
        """Bring values to the kind of their series, and see to it that the handler agrees."""
        handler = self._handler
        known = self._known_kind(labels)
        if known is not None:
            try:
                _, column = fit_array(values, known)
            except ValueKindError:
                if handler.series_kind(labels) is known or labels in series_of(self._entries):
                    raise  # else a delete freed the kind
            else:
                if handler.validates_every_point:
                    self._ask(labels, times, column.tolist())
                return known, column
        known = handler.series_kind(labels)
        opens, _ = kind_of_array(values)
        if known is None and opens is None:
            # Only the handler knows which kind a Python integer opens in its store.
            try:
                first = handler.validate_point((labels, int(times[0]), values[0]))
            except InvalidDataError:
                fit_array(values)  # names all offenders, where the values are to blame
                raise
            known = kind_of_stored(first.value)
        kind, column = fit_array(values, known)
        shown: list[Value] = column.tolist() if handler.validates_every_point else [column[0]]
        if known is None and opens is ValueKind.INT:
            shown = [0] * len(shown)  # a large integer alone would not open a float series
        self._ask(labels, times, shown)
        self._remember(labels, kind, None)
        return kind, column

    def _ask(self, labels: Labels, times: Int64Array, values: list[Value]) -> None:
        """Ask the handler about the first points of columns."""
        offenders = _Offenders("rows")
        for index, value in enumerate(values):
            try:
                self._handler.validate_point((labels, int(times[index]), value))
            except InvalidDataError as error:
                offenders.add(index, error)
        offenders.raise_any()

    def _remember(self, labels: Labels, kind: ValueKind, before: list[object] | None) -> None:
        """Keep the kind of a series in mind.

        Raises:
            ValueKindError: points that are not committed yet make it another.
        """
        earliest = self._handler.timestamp_min
        with self._lock:
            if earliest != self.earliest:  # a store knows its options only once it is open
                self._rules = PointRules(min_timestamp=earliest)
                self.earliest = earliest
            known = self._known_kind(labels)
            if known is kind:
                return
            if known is not None:
                if labels in series_of(self._entries) or labels in series_of(before or []):
                    raise ValueKindError(
                        f"{labels.id}: value is of kind {kind.name.lower()}, but its series "
                        f"has pending points of kind {known.name.lower()}"
                    )
                self.floats.discard(labels)
                self._kinds.pop(labels, None)
            if len(self.floats) + len(self._kinds) >= self._series_max:
                self._forget_series_locked()
            if kind is ValueKind.FLOAT and not self._handler.validates_every_point:
                self.floats.add(labels)
            else:
                self._kinds[labels] = kind

    def _forget_series_locked(self) -> None:
        """Forget the series, but for those with pending points, whose kind only we know."""
        held = series_of(self._entries)
        self.floats = self.floats & held
        self._kinds = {labels: kind for labels, kind in self._kinds.items() if labels in held}
        self._series_max = len(self.floats) + len(self._kinds) + SERIES_MAX


class _Offenders:
    """Gathers what is wrong with the points of one call."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._first: InvalidDataError | None = None
        self._indices: list[int] = []

    def add(self, index: int, error: InvalidDataError) -> None:
        self._first = self._first or error
        self._indices.append(index)

    def raise_any(self) -> None:
        """Raise what the first was, naming all."""
        first, indices = self._first, self._indices
        if first is not None:
            raise type(first)(f"{self._name}[{indices[0]}]: {first}", indices=indices)
