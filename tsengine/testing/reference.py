"""The reference model: what every engine must answer, said as plainly as Python allows.

It is an independent oracle. It keeps each write of each timestamp in a list and works out
every answer from those lists at the moment it is asked; it shares no helper with the code
it judges, and of the package it imports only names and types (`tsengine.model`) and errors.

    model = ReferenceModel(duplicate_policy="max")
    model.write([(Labels("cpu"), 5, 1.0), (Labels("cpu"), 5, 2.0)])
    model.query()       # {Labels('cpu'): [(5, 2.0)]}

Float sums are the one answer that is not unique: the model gives a `FloatSum`, which knows
what it accepts. Compare with `agrees(expected, found)`, which is bit-exact for all else.
"""

from __future__ import annotations

import math
import numbers
import re
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple, TypeAlias

from tsengine.errors import (
    DuplicatePointError,
    InvalidDataError,
    LabelsError,
    TimestampError,
    ValueKindError,
    ValueOverflowError,
)
from tsengine.model import (
    OBJECT_DEPTH_MAX,
    Labels,
    ProducerMark,
    ValueKind,
    WriteReceipt,
)
from tsengine.testing.reference_aggregates import AnyZero, Near, aggregate_rows

_INT64_MIN = -(2**63)
_INT64_END = 2**63
_UINT64_END = 2**64
_EPSILON = Fraction(2) ** -52

Condition: TypeAlias = "tuple[str, str, str]"
"""A matcher as plain text: label name, one of `=`, `!=`, `=~`, `!~`, value."""

Selection: TypeAlias = "Labels | Mapping[str, str] | Sequence[Condition] | None"
"""What the model selects by: all, one series, equalities, or conditions that all hold."""

Row: TypeAlias = "tuple[int, object]"


class Column(NamedTuple):
    """Rows of one series as they stand in a columnar write.

    Attributes:
        labels: which series.
        timestamps: nanoseconds.
        values: one each.
        opens: the kind that the dtype of the column says, FLOAT or INT; None for a
            sequence or an object array, whose elements are judged one by one.
    """

    labels: Labels
    timestamps: Sequence[int]
    values: Sequence[object]
    opens: ValueKind | None = None


@dataclass(frozen=True, slots=True)
class FloatSum:
    """The sum of at least two floats, which depends on the order of adding.

    Attributes:
        terms: what is summed.
    """

    terms: tuple[float, ...]

    def accepts(self, found: object) -> bool:
        """Whether `found` lies within n·ε·Σ|v| of the exact sum."""
        if type(found) is not float:
            return False
        if not all(map(math.isfinite, self.terms)):
            with_infinity = sum(term for term in self.terms if not math.isfinite(term))
            return math.isnan(found) if math.isnan(with_infinity) else found == with_infinity
        size = sum((abs(Fraction(term)) for term in self.terms), Fraction(0))
        if size >= Fraction(2) ** 1024 - Fraction(2) ** 970:
            # A partial sum may have overflowed, or may not, by the order of adding.
            return math.isinf(found) or math.isnan(found) or self._is_near(found, size)
        return math.isfinite(found) and self._is_near(found, size)

    def _is_near(self, found: float, size: Fraction) -> bool:
        exact = sum(map(Fraction, self.terms), Fraction(0))
        return abs(Fraction(found) - exact) <= len(self.terms) * _EPSILON * size


@dataclass(slots=True)
class _Series:
    kind: ValueKind
    rows: dict[int, list[object]] = field(default_factory=dict)
    """Every write of each timestamp since the newest delete covering it, oldest first."""


@dataclass(frozen=True, slots=True)
class _Judged:
    index: int
    labels: Labels
    timestamp: int
    kind: ValueKind
    value: object


class ReferenceModel:
    """A store that is easy to believe; the options are those of `Engine`, durations in ns.

    Args:
        duplicate_policy: `last`, `first`, `min`, `max`, `sum` or `error`.
        retention: nanoseconds after which rows are no longer seen.
        min_timestamp: earliest valid timestamp.
        future_max: nanoseconds that a timestamp may lie ahead of the clock.
        integers: `float` or `int`, the kind that an integer scalar opens.
        max_points_per_series: newest distinct timestamps that a series keeps.
        max_points: newest rows that the store keeps.
        clock_ns: nanoseconds since the Unix epoch.

    Thread-safety: none.
    """

    def __init__(
        self,
        *,
        duplicate_policy: str = "last",
        retention: int | None = None,
        min_timestamp: int = 1,
        future_max: int | None = None,
        integers: str = "float",
        max_points_per_series: int | None = None,
        max_points: int | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.duplicate_policy = duplicate_policy
        self.retention = retention
        self.min_timestamp = min_timestamp
        self.future_max = future_max
        self.integer_kind = ValueKind.INT if integers == "int" else ValueKind.FLOAT
        self.max_points_per_series = max_points_per_series
        self.max_points = max_points
        self._clock_ns = clock_ns
        self._now_max = _INT64_MIN
        self._series: dict[Labels, _Series] = {}
        self._marks: dict[str, tuple[ProducerMark, WriteReceipt]] = {}

    # Writing.

    def write(
        self, points: Iterable[Sequence[object]], *, mark: ProducerMark | None = None
    ) -> WriteReceipt:
        """Store points in one commit.

        Raises:
            InvalidDataError: of the first offender's type; `indices` names every offender.
            DuplicatePointError: the policy is `error`.
            ValueOverflowError: an int64 sum would overflow.
        """
        judged: list[_Judged] = []
        kinds: dict[Labels, ValueKind] = {}
        first: InvalidDataError | None = None
        wrong: list[int] = []
        for index, (labels, timestamp, value) in enumerate(points):
            try:
                row = self._judge(index, labels, timestamp, value, kinds)
            except InvalidDataError as error:
                first = first or error
                wrong.append(index)
            else:
                kinds[row.labels] = row.kind
                judged.append(row)
        if first is not None:
            raise type(first)(str(first), indices=wrong)
        return self._commit(judged, mark)

    def write_columns(
        self, columns: Sequence[Column], *, mark: ProducerMark | None = None
    ) -> WriteReceipt:
        """Store the columns of `write_series` or `write_batch` in one commit.

        Raises:
            InvalidDataError: as in `write`; indices count the rows of all columns.
        """
        rows = [
            (column, timestamp, value)
            for column in columns
            for timestamp, value in zip(column.timestamps, column.values, strict=True)
        ]
        early = [i for i, (_, moment, _) in enumerate(rows) if not self._is_in_time(moment)]
        if early:
            raise TimestampError("out of bounds", indices=early)
        judged: list[_Judged] = []
        kinds: dict[Labels, ValueKind] = {}
        wrong: list[int] = []
        for index, (column, timestamp, value) in enumerate(rows):
            try:
                known = self._known(column.labels, kinds)
                if column.opens is None:
                    kind, stored = _fit(value, known, self.integer_kind)
                else:
                    kind, stored = _fit_number(value, known, column.opens)
                self._check_policy(kind)
            except ValueKindError:
                wrong.append(index)
            else:
                kinds[column.labels] = kind
                judged.append(_Judged(index, column.labels, timestamp, kind, stored))
        if wrong:
            raise ValueKindError("of another kind", indices=wrong)
        return self._commit(judged, mark)

    def delete(
        self, selection: Selection = None, start: int | None = None, end: int | None = None
    ) -> int:
        """Forget rows; without bounds the series too. Gives the number of series selected."""
        first, last = _bounds(start, end)
        if first >= last:
            return 0
        selected = [labels for labels in self._series if selects(selection, labels)]
        for labels in selected:
            if first <= _INT64_MIN and last >= _INT64_END:
                del self._series[labels]
            else:
                rows = self._series[labels].rows
                for timestamp in [moment for moment in rows if first <= moment < last]:
                    del rows[timestamp]
        return len(selected)

    def forget_producer(self, producer: str) -> None:
        """Drop the mark of a producer."""
        self._marks.pop(producer, None)

    # Reading.

    def query(
        self, selection: Selection = None, start: int | None = None, end: int | None = None
    ) -> dict[Labels, list[Row]]:
        """Give the rows of each series that has any in the range, by series ID."""
        first, last = _bounds(start, end)
        horizon = self._horizon()
        found: dict[Labels, list[Row]] = {}
        for labels in self.series(selection):
            held = self._series[labels].rows
            rows = [
                (moment, fold_writes(held[moment], self.duplicate_policy))
                for moment in sorted(held)
                if first <= moment < last and moment >= horizon
            ]
            if rows:
                found[labels] = rows
        return found

    def count(
        self, selection: Selection = None, start: int | None = None, end: int | None = None
    ) -> int:
        """Count rows."""
        return sum(len(rows) for rows in self.query(selection, start, end).values())

    def aggregate(
        self,
        selection: Selection = None,
        start: int | None = None,
        end: int | None = None,
        *,
        functions: Sequence[str],
        every: int | None = None,
        group_by: Sequence[str] | None = None,
        origin: int = 0,
        fill: object = "none",
    ) -> dict[Labels, list[Row]]:
        """Aggregate what `query` gives; `every` and `origin` in nanoseconds.

        Values are exact, or know what they accept. Under the policy `sum` there may be sums
        of floats among the rows, of which nothing more can be said: see `aggregate_rows`.

        Raises:
            AggregationError: the values cannot be aggregated so.
        """
        return aggregate_rows(
            self.query(selection, start, end),
            functions=functions,
            start=start,
            end=end,
            every=every,
            group_by=group_by,
            origin=origin,
            fill=fill,
        )

    def earliest(self, selection: Selection = None) -> list[tuple[Labels, int, object]]:
        """Give the first row of each series that has rows, by series ID."""
        return [(labels, *rows[0]) for labels, rows in self.query(selection).items()]

    def latest(self, selection: Selection = None) -> list[tuple[Labels, int, object]]:
        """Give the last row of each series that has rows, by series ID."""
        return [(labels, *rows[-1]) for labels, rows in self.query(selection).items()]

    def series(self, selection: Selection = None) -> list[Labels]:
        """Give the series, with rows or without, by series ID."""
        listed = [labels for labels in self._series if selects(selection, labels)]
        return sorted(listed, key=lambda labels: labels.id)

    def label_names(self) -> list[str]:
        """Give all label names, sorted."""
        return sorted({name for labels in self._series for name in dict(labels)})

    def label_values(self, name: str) -> list[str]:
        """Give all values of one label, sorted."""
        return sorted({dict(labels)[name] for labels in self._series if name in dict(labels)})

    def kind(self, labels: Labels) -> ValueKind | None:
        """Give the kind of a series, None where it is not in the store."""
        held = self._series.get(labels)
        return None if held is None else held.kind

    def high_water(self, producer: str) -> ProducerMark | None:
        """Give the highest mark of a producer."""
        known = self._marks.get(producer)
        return None if known is None else known[0]

    # Judging.

    def _judge(
        self,
        index: int,
        labels: object,
        timestamp: object,
        value: object,
        kinds: Mapping[Labels, ValueKind],
    ) -> _Judged:
        if not isinstance(labels, Labels) or not len(labels):
            raise LabelsError("no labels")
        if not self._is_in_time(timestamp):
            raise TimestampError(f"timestamp {timestamp!r}")
        kind, stored = _fit(value, self._known(labels, kinds), self.integer_kind)
        self._check_policy(kind)
        return _Judged(index, labels, int(timestamp), kind, stored)  # type: ignore[call-overload]  # an integer, as was just seen

    def _known(self, labels: Labels, kinds: Mapping[Labels, ValueKind]) -> ValueKind | None:
        return kinds[labels] if labels in kinds else self.kind(labels)

    def _is_in_time(self, timestamp: object) -> bool:
        if isinstance(timestamp, bool) or not isinstance(timestamp, numbers.Integral):
            return False
        latest = _INT64_END - 1
        if self.future_max is not None:
            latest = min(latest, self._clock_ns() + self.future_max)
        return self.min_timestamp <= int(timestamp) <= latest

    def _check_policy(self, kind: ValueKind) -> None:
        if kind is ValueKind.OBJECT and self.duplicate_policy in ("min", "max", "sum"):
            raise ValueKindError(f"objects have no {self.duplicate_policy}")

    # Committing.

    def _horizon(self) -> int:
        """Give the earliest time that retention shows; `now` never moves backwards."""
        if self.retention is None:
            return _INT64_MIN
        self._now_max = max(self._now_max, self._clock_ns())
        return self._now_max - self.retention

    def _commit(self, judged: Sequence[_Judged], mark: ProducerMark | None) -> WriteReceipt:
        if mark is not None and mark.producer in self._marks:
            highest, receipt = self._marks[mark.producer]
            if mark == highest:
                return receipt
            if (mark.sequence, mark.piece) < (highest.sequence, highest.piece):
                return WriteReceipt(len(judged), len(judged))
        horizon = self._horizon()
        expired = [row for row in judged if row.timestamp < horizon]
        fresh = [row for row in judged if row.timestamp >= horizon]
        self._check_duplicates(fresh, horizon)
        self._check_overflow(fresh, horizon)
        for held in self._series.values():
            for moment in [moment for moment in held.rows if moment < horizon]:
                del held.rows[moment]
        keys_before = self._keys()
        keys = self._keys_within_caps(
            keys_before | {(row.labels, row.timestamp) for row in fresh},
        )
        too_old = [row for row in fresh if (row.labels, row.timestamp) not in keys]
        for labels, moment in keys_before - keys:
            del self._series[labels].rows[moment]
        for row in fresh:
            if (row.labels, row.timestamp) in keys:
                held = self._series.setdefault(row.labels, _Series(row.kind))
                held.rows.setdefault(row.timestamp, []).append(row.value)
        reasons = {"retention": len(expired), "cap": len(too_old)}
        refused = sorted(row.index for row in expired + too_old)
        receipt = WriteReceipt(
            submitted=len(judged),
            accepted=len(judged) - len(refused),
            refused=len(refused),
            evicted=len(keys_before - keys),
            reasons={reason: count for reason, count in reasons.items() if count},
            indices=tuple(refused),
        )
        if mark is not None:
            self._marks[mark.producer] = (mark, receipt)
        return receipt

    def _stored(self, labels: Labels, timestamp: int, horizon: int) -> list[object]:
        if timestamp < horizon or labels not in self._series:
            return []
        return self._series[labels].rows.get(timestamp, [])

    def _check_duplicates(self, fresh: Sequence[_Judged], horizon: int) -> None:
        if self.duplicate_policy != "error":
            return
        seen: set[tuple[Labels, int]] = set()
        repeated: list[int] = []
        for row in fresh:
            key = (row.labels, row.timestamp)
            if key in seen or self._stored(*key, horizon):
                repeated.append(row.index)
            seen.add(key)
        if repeated:
            raise DuplicatePointError("taken", indices=repeated)

    def _check_overflow(self, fresh: Sequence[_Judged], horizon: int) -> None:
        if self.duplicate_policy != "sum":
            return
        sums: dict[tuple[Labels, int], int] = {}
        for row in fresh:
            if row.kind is ValueKind.INT:
                key = (row.labels, row.timestamp)
                stored = self._stored(*key, horizon)
                before = sums.get(key, sum(map(_integer, stored)))
                sums[key] = before + _integer(row.value)
        over = {key for key, total in sums.items() if not _INT64_MIN <= total < _INT64_END}
        if over:
            raise ValueOverflowError(
                "sum overflows",
                indices=[row.index for row in fresh if (row.labels, row.timestamp) in over],
            )

    def _keys(self) -> set[tuple[Labels, int]]:
        return {(labels, moment) for labels, held in self._series.items() for moment in held.rows}

    def _keys_within_caps(self, keys: set[tuple[Labels, int]]) -> set[tuple[Labels, int]]:
        """Keep the newest of each series, then the newest of all; of ties the greater ID."""
        if self.max_points_per_series is not None:
            moments: dict[Labels, list[int]] = {}
            for labels, moment in keys:
                moments.setdefault(labels, []).append(moment)
            keys = {
                (labels, moment)
                for labels, of_series in moments.items()
                for moment in sorted(of_series)[-self.max_points_per_series :]
            }
        if self.max_points is not None:
            keys = set(sorted(keys, key=lambda key: (key[1], key[0].id))[-self.max_points :])
        return keys


def selects(selection: Selection, labels: Labels) -> bool:
    """Whether a selection takes a series; an absent label equals the empty text."""
    if selection is None:
        return True
    if isinstance(selection, Labels):
        return dict(selection) == dict(labels)
    if isinstance(selection, Mapping):
        selection = [(name, "=", value) for name, value in selection.items()]
    values = dict(labels)
    return all(_holds(operator, values.get(name, ""), text) for name, operator, text in selection)


def fold_writes(writes: Sequence[object], policy: str) -> object:
    """Reduce the writes of one timestamp, oldest first, to what a read gives.

    min and max are IEEE 754-2019 minimumNumber and maximumNumber: a number beats NaN and
    −0 < +0; where all are NaN the first written stands.
    """
    if len(writes) == 1 or policy == "first":
        return writes[0]
    if policy == "last":
        return writes[-1]
    if policy == "sum":
        terms: list[float | int] = [term for term in writes if isinstance(term, (float, int))]
        if isinstance(terms[0], float):
            return FloatSum(tuple(map(float, terms)))
        return sum(terms)
    best: float | int | None = None
    for value in writes:
        if not isinstance(value, (float, int)) or math.isnan(value):
            continue
        if best is None or (_ordered(value) < _ordered(best)) is (policy == "min"):
            best = value
    return writes[0] if best is None else best


def agrees(expected: object, found: object) -> bool:
    """Whether a value found is the one expected: bit for bit, sums within n·ε·Σ|v|."""
    if isinstance(expected, (FloatSum, Near, AnyZero)):
        return expected.accepts(found)
    if type(expected) is not type(found):
        return False
    if isinstance(expected, float) and isinstance(found, float):
        return struct.pack("<d", expected) == struct.pack("<d", found)
    if isinstance(expected, list) and isinstance(found, list):
        return len(expected) == len(found) and all(map(agrees, expected, found))
    if isinstance(expected, dict) and isinstance(found, dict):
        return list(expected) == list(found) and all(
            agrees(value, found[key]) for key, value in expected.items()
        )
    return expected == found


def _bounds(start: int | None, end: int | None) -> tuple[int, int]:
    return (_INT64_MIN if start is None else start), (_INT64_END if end is None else end)


def _holds(operator: str, value: str, text: str) -> bool:
    if operator == "=":
        return value == text
    if operator == "!=":
        return value != text
    matched = re.fullmatch(text, value, re.DOTALL) is not None
    return matched if operator == "=~" else not matched


def _integer(value: object) -> int:
    assert isinstance(value, int)
    return value


def _ordered(value: float | int) -> tuple[float | int, float]:
    """Give what sorts numbers with −0 before +0."""
    return value, math.copysign(1.0, value)


def _fit(
    value: object, known: ValueKind | None, integer_kind: ValueKind
) -> tuple[ValueKind, object]:
    """Judge a single value: its kind and what is stored."""
    if type(value).__module__ == "numpy":  # a numpy scalar: what it is in Python
        value = getattr(value, "item", lambda: None)()
    if isinstance(value, float):
        return _of_kind(ValueKind.FLOAT, known, float(value))
    if isinstance(value, int) and not isinstance(value, bool):
        opens = integer_kind if known is None else known
        return _fit_number(int(value), known, opens)
    if value is None:
        raise ValueKindError("None is no value")
    return _of_kind(ValueKind.OBJECT, known, _normalised(value, 0))


def _fit_number(
    value: object, known: ValueKind | None, opens: ValueKind
) -> tuple[ValueKind, object]:
    """Judge a number of a float or integer column."""
    if isinstance(value, float):
        return _of_kind(ValueKind.FLOAT, known, float(value))
    if not isinstance(value, int) or known is ValueKind.OBJECT:
        raise ValueKindError(f"{value!r} in a series of another kind")
    kind = opens if known is None else known
    if kind is ValueKind.INT:
        if not _INT64_MIN <= value < _INT64_END:
            raise ValueKindError(f"{value} does not fit int64")
        return kind, int(value)
    try:
        stored = float(value)
    except OverflowError:
        raise ValueKindError(f"{value} is beyond float64") from None
    if Fraction(stored) != value:
        raise ValueKindError(f"{value} loses precision")
    return kind, stored


def _of_kind(kind: ValueKind, known: ValueKind | None, value: object) -> tuple[ValueKind, object]:
    if known is not None and known is not kind:
        raise ValueKindError(f"{value!r} is {kind.name}, the series holds {known.name}")
    return kind, value


def _normalised(value: object, depth: int) -> object:
    """Give what MessagePack gives back, or raise."""
    if depth > OBJECT_DEPTH_MAX:
        raise ValueKindError("too deep")
    if isinstance(value, (list, tuple)):
        return [_normalised(item, depth + 1) for item in value]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueKindError("keys must be text")
        return {key: _normalised(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if not _INT64_MIN <= value < _UINT64_END:
            raise ValueKindError(f"{value} is beyond 64 bits")
        return int(value)
    if value is None or isinstance(value, (bool, float, str)):
        return value
    raise ValueKindError(f"{value!r} is not carried by MessagePack")
