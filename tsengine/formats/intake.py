"""Intake: what readers of all formats share: the rules of the target, and points as batches.

A reader gives points that will be stored, and a reject with its line for each that cannot be.
So it judges as the target will: timestamps by its bounds, values by the kinds of its series, and
what an earlier row made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from tsengine.formats.rejects import Rejects
from tsengine.grouping import group_order
from tsengine.model import (
    GroupedBatch,
    Int64Array,
    Labels,
    PointRules,
    Value,
    ValueArray,
    ValueKind,
    fit_value,
)

SERIES_MAX: Final = 1 << 20
"""Series whose kind is remembered before all are forgotten and asked for anew."""

Judged: TypeAlias = tuple[Labels, int, Value]


class Given(NamedTuple):
    """A point as it was read.

    Attributes:
        labels: which series.
        timestamp: nanoseconds.
        value: not judged yet.
        opens_int: whether an integer opens an int series, whatever the store makes of integers
            that nobody said more of.
    """

    labels: Labels
    timestamp: int
    value: object
    opens_int: bool = False


NOTHING: Final = GroupedBatch(
    (), np.zeros(1, np.int64), np.empty(0, np.int64), np.empty(0, np.float64)
)
"""What a reader gives of rows that are all rejected: whoever takes it can tell it to stop."""


class Intake:
    """Judges what is read by the rules of a target.

    Args:
        rules: what makes a point valid there.
        kind_of: the kind of a stored series, None where there is none.
        rejects: where bad rows go.

    Thread-safety: none, but that of `rejects`.
    """

    def __init__(
        self, rules: PointRules, kind_of: Callable[[Labels], ValueKind | None], rejects: Rejects
    ) -> None:
        self.rules = rules
        self.rejects = rejects
        self._kind_of = kind_of
        self._kinds: dict[Labels, ValueKind] = {}

    @property
    def integers(self) -> ValueKind:
        """The kind that an integer opens which nobody said more of."""
        return self.rules.integers

    def judge(self, row: Sequence[Given]) -> list[Judged]:
        """Give the points of one row as they will be stored, all or none.

        From then on their series hold these kinds.

        Raises:
            InvalidDataError: one cannot be stored.
        """
        judged: list[Judged] = []
        opened: dict[Labels, ValueKind] = {}
        for given in row:
            labels = self.rules.check_labels(given.labels)
            known = opened.get(labels) or self._known(labels)
            integers = ValueKind.INT if given.opens_int else self.integers
            kind, stored = fit_value(given.value, known, integers=integers)
            if known is None:
                opened[labels] = kind
            judged.append((labels, self.rules.check_timestamp(given.timestamp), stored))
        if opened:
            self._remember(opened)
        return judged

    def admits(self, batches: Sequence[GroupedBatch]) -> bool:
        """Whether batches can be stored as they are, all or none; if so, the kinds are known.

        A series that is in two of them, as where two columns of values are of one metric, is not
        for them: which row came first would be lost.
        """
        rules = self.rules
        if len(batches) > 1:
            named = [labels for batch in batches for labels in batch.labels]
            if len(set(named)) < len(named):
                return False
        opened: dict[Labels, ValueKind] = {}
        for batch in batches:
            if not len(batch):
                continue
            timestamps = batch.timestamps
            if timestamps.min() < rules.min_timestamp or timestamps.max() > rules.max_timestamp:
                return False
            kind = _KIND_OF_DTYPE[batch.values.dtype.kind]
            for labels in batch.labels:
                known = opened.get(labels) or self._known(labels)
                if known is None:
                    opened[labels] = kind
                elif known is not kind:
                    return False
        self._remember(opened)
        return True

    def _remember(self, opened: dict[Labels, ValueKind]) -> None:
        if len(self._kinds) + len(opened) > SERIES_MAX:
            self._kinds.clear()
        self._kinds.update(opened)

    def _known(self, labels: Labels) -> ValueKind | None:
        known = self._kinds.get(labels)
        if known is None:
            known = self._kind_of(labels)
            if known is not None:
                self._remember({labels: known})
        return known


def batches_of(points: Sequence[Judged]) -> Iterator[GroupedBatch]:
    """Give judged points as columns: one batch for each kind; `NOTHING` where there are none."""
    if not points:
        yield NOTHING
    by_kind: dict[ValueKind, list[Judged]] = {}
    for point in points:
        by_kind.setdefault(_KINDS.get(type(point[2]), ValueKind.OBJECT), []).append(point)
    for kind, rows in by_kind.items():
        ranks: dict[Labels, int] = {}
        numbers = [ranks.setdefault(labels, len(ranks)) for labels, _, _ in rows]
        values = np.empty(len(rows), kind.dtype)
        for place, (_, _, value) in enumerate(rows):
            values[place] = value
        timestamps = np.fromiter((moment for _, moment, _ in rows), np.int64, len(rows))
        yield grouped(np.array(numbers, np.int64), list(ranks), timestamps, values)


def grouped(
    ranks: Int64Array,
    labels: Sequence[Labels],
    timestamps: Int64Array,
    values: npt.NDArray[np.generic],
) -> GroupedBatch:
    """Group rows by series, stable.

    Args:
        ranks: int64[n], the place in `labels` of each row's series.
        labels: distinct.
        timestamps: int64[n].
        values: [n], of the dtype of a kind.
    """
    column = cast("ValueArray", values)
    if len(ranks) and (ranks[1:] >= ranks[:-1]).all():
        starts = np.flatnonzero(np.concatenate(([True], ranks[1:] != ranks[:-1])))
        names = [labels[rank] for rank in ranks[starts].tolist()]
        return GroupedBatch(names, np.append(starts, len(ranks)), timestamps, column)
    order, distinct, offsets = group_order(ranks)
    names = [labels[rank] for rank in distinct.tolist()]
    return GroupedBatch(names, offsets, timestamps[order], column[order])


_KINDS: Final = {float: ValueKind.FLOAT, int: ValueKind.INT}
_KIND_OF_DTYPE: Final = {"f": ValueKind.FLOAT, "i": ValueKind.INT, "O": ValueKind.OBJECT}
