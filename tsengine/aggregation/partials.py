"""Partials: what windows need of the rows in them, as a table that folds.

A row of the table stands for some rows of one group in one window. It is measured over
columns, and rows of equal group and window fold into one, in any order: so memory goes by
windows, however many points there are.

Statistics by name, all of them arrays of one length:

    rows                          how many, int64
    numbers                       how many are not NaN, int64; float kind only
    sum, error                    float kind: a float64 sum and what rounding took from it
    high, low                     int kind: the exact sum is high·2³² + low, int64
    squares                       squared distances from the mean, summed, float64
    min, max                      of the kind; NaN where there are no numbers
    first, first_at, first_rank   the earliest row: its value, time, and rank of its series
    last, last_at, last_rank      the latest row
    begin                         the earliest time
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from tsengine.model import Int64Array, ValueArray, ValueKind

Statistics: TypeAlias = "dict[str, ValueArray]"
FloatArray: TypeAlias = "npt.NDArray[np.float64]"

ARITHMETIC: Final = ("sum", "min", "max")
"""Statistics that leave NaN out."""

TABLE_ROWS: Final = 1 << 16
"""Rows that a table may always have before it is folded: some MiB."""

_LONG: Final = 32
"""Average partial sums of a segment from which one call for each costs less than all at once."""

_HALF: Final = 32
_LOW: Final = (1 << _HALF) - 1


@dataclass(frozen=True, slots=True)
class Partials:
    """The table.

    Attributes:
        groups: int64[m], numbers of groups.
        windows: int64[m], starts of windows.
        statistics: by name, [m] each.
    """

    groups: Int64Array
    windows: Int64Array
    statistics: Statistics

    def __len__(self) -> int:
        return len(self.groups)

    def take(self, rows: npt.NDArray[np.bool_]) -> Partials:
        """Give the rows where `rows` (bool[m]) is true."""
        kept = {name: column[rows] for name, column in self.statistics.items()}
        return Partials(self.groups[rows], self.windows[rows], kept)


def measure(
    kind: ValueKind, values: ValueArray, starts: Int64Array, needs: Collection[str]
) -> Statistics:
    """Measure segments of a column: `rows`, and of what is needed all that has no time.

    NaN is left out of sums and extremes. Sums are pairwise: what they round off grows with the
    logarithm of the rows.

    Args:
        kind: of the values.
        values: [n], not empty.
        starts: int64[m], ascending, the first 0: where segments begin.
        needs: names of statistics, `sum` for `high` and `low` too.
    """
    bounds = np.empty(len(starts) + 1, np.int64)
    bounds[:-1], bounds[-1] = starts, len(values)
    measured: Statistics = {"rows": bounds[1:] - bounds[:-1]}
    if kind is ValueKind.INT:
        _measure_integers(measured, cast("Int64Array", values), starts, needs)
    elif kind is ValueKind.FLOAT:
        floats = cast("FloatArray", values)
        _measure_floats(measured, floats, starts, needs)
        some = next((measured[name] for name in ARITHMETIC if name in measured), None)
        # NaN of any row is in its segment's sum, minimum and maximum, and so in their squares.
        # A square is never less than 0, so infinities make none. A sum takes twice as long.
        if some is not None and (squared := np.dot(some, some)) != squared:
            _measure_without_nan(measured, floats, starts, needs)
    if "first" in needs:
        measured["first"] = values[starts]
    if "last" in needs:
        measured["last"] = values[bounds[1:] - 1]
    return measured


def _measure_floats(
    measured: Statistics, values: FloatArray, starts: Int64Array, needs: Collection[str]
) -> None:
    if "sum" in needs:
        measured["numbers"] = measured["rows"]
        measured["sum"] = np.add.reduceat(values, starts)
        measured["error"] = np.zeros(len(starts))
    if "squares" in needs:
        measured["squares"] = _squares(values, starts, measured)
    if "min" in needs:
        measured["min"] = np.minimum.reduceat(values, starts)
    if "max" in needs:
        measured["max"] = np.maximum.reduceat(values, starts)


def _measure_without_nan(
    measured: Statistics, values: FloatArray, starts: Int64Array, needs: Collection[str]
) -> None:
    """Measure again without the rows that are NaN, if there are any."""
    kept = ~np.isnan(values)
    if kept.all():
        return  # it came of infinities
    numbers = np.add.reduceat(kept.astype(np.int64), starts)
    filled = np.flatnonzero(numbers)
    counts = numbers[filled]
    some: Statistics = {"rows": counts}
    if len(filled):
        _measure_floats(some, values[kept], np.cumsum(counts) - counts, needs)
    for name in measured.keys() - {"rows", "numbers"}:
        column = np.full(len(numbers), np.nan if name in ("min", "max") else 0.0)
        if len(filled):
            column[filled] = some[name]
        measured[name] = column
    if "numbers" in measured:
        measured["numbers"] = numbers


def _measure_integers(
    measured: Statistics, values: Int64Array, starts: Int64Array, needs: Collection[str]
) -> None:
    if "sum" in needs:
        measured["high"] = np.add.reduceat(values >> _HALF, starts)
        measured["low"] = np.add.reduceat(values & _LOW, starts)
    if "min" in needs:
        measured["min"] = np.minimum.reduceat(values, starts)
    if "max" in needs:
        measured["max"] = np.maximum.reduceat(values, starts)
    if "squares" in needs:
        measured["squares"] = _squares(values.astype(np.float64), starts, measured)


def _squares(values: FloatArray, starts: Int64Array, measured: Statistics) -> FloatArray:
    """Sum squared distances from the mean of each segment, which has numbers alone."""
    rows = measured["rows"]
    apart = values - np.repeat(sums(measured) / rows, cast("Int64Array", rows))
    np.multiply(apart, apart, out=apart)
    return np.add.reduceat(apart, starts)


def sums(statistics: Statistics) -> FloatArray:
    """Give the sums as float64, of either kind."""
    if "high" in statistics:
        return statistics["high"] * float(1 << _HALF) + statistics["low"]
    return cast("FloatArray", statistics["sum"] + statistics["error"])


def numbers_of(statistics: Statistics) -> Int64Array:
    """Give how many rows are numbers, of either kind."""
    return cast("Int64Array", statistics.get("numbers", statistics["rows"]))


def concatenate(tables: Sequence[Partials]) -> Partials:
    """Put tables of the same statistics one behind the other."""
    if len(tables) == 1:
        return tables[0]
    return Partials(
        np.concatenate([table.groups for table in tables]),
        np.concatenate([table.windows for table in tables]),
        {
            name: np.concatenate([table.statistics[name] for table in tables])
            for name in tables[0].statistics
        },
    )


def fold(table: Partials) -> Partials:
    """Sort by group and window, and fold rows of equal group and window into one."""
    groups, windows, statistics = table.groups, table.windows, table.statistics
    same = groups[1:] == groups[:-1]
    is_sorted = (groups[1:] >= groups[:-1]) & (~same | (windows[1:] >= windows[:-1]))
    if not is_sorted.all():
        order = np.lexsort((windows, groups))
        groups, windows = groups[order], windows[order]
        statistics = {name: column[order] for name, column in statistics.items()}
        same = groups[1:] == groups[:-1]
    same &= windows[1:] == windows[:-1]
    if not same.any():
        return Partials(groups, windows, statistics)
    starts = np.flatnonzero(np.concatenate(([True], ~same)))
    return Partials(groups[starts], windows[starts], _fold(statistics, starts))


class Gathered:
    """Tables of the same statistics, folded whenever they have doubled, so that they stay small.

    Thread-safety: none.
    """

    def __init__(self) -> None:
        self._tables: list[Partials] = []
        self._limit = TABLE_ROWS
        self.rows = 0

    def add(self, table: Partials) -> None:
        """Add a table."""
        self._tables.append(table)
        self.rows += len(table)
        if self.rows > self._limit:
            folded = fold(concatenate(self._tables))
            self._tables, self.rows = [folded], len(folded)
            self._limit = max(2 * self.rows, TABLE_ROWS)

    def table(self) -> Partials | None:
        """Give all of it, folded; None where nothing was added."""
        return fold(concatenate(self._tables)) if self._tables else None


def _fold(statistics: Statistics, starts: Int64Array) -> Statistics:
    """Fold each segment of rows into one."""
    folded: Statistics = {}
    for name in statistics.keys() & {"rows", "numbers", "measured", "rated"}:
        folded[name] = np.add.reduceat(statistics[name], starts)
    for name in statistics.keys() & {"delta", "increase", "rate"}:
        gains = cast("FloatArray", statistics[name])
        folded[name] = np.add(*add_segments(gains, np.zeros(len(gains)), starts))
    if "sum" in statistics:
        folded["sum"], folded["error"] = add_segments(
            cast("FloatArray", statistics["sum"]), cast("FloatArray", statistics["error"]), starts
        )
    if "high" in statistics:
        low = np.add.reduceat(statistics["low"], starts)
        folded["high"] = np.add.reduceat(statistics["high"], starts) + (low >> _HALF)
        folded["low"] = low & _LOW
    if "squares" in statistics:
        folded["squares"] = _fold_squares(statistics, folded, starts)
    if "min" in statistics:
        folded["min"] = np.fmin.reduceat(statistics["min"], starts)
    if "max" in statistics:
        folded["max"] = np.fmax.reduceat(statistics["max"], starts)
    if "begin" in statistics:
        folded["begin"] = np.minimum.reduceat(statistics["begin"], starts)
    if "first" in statistics:
        _fold_edge(statistics, folded, starts, "first")
    if "last" in statistics:
        _fold_edge(statistics, folded, starts, "last")
    return folded


def _fold_squares(statistics: Statistics, folded: Statistics, starts: Int64Array) -> FloatArray:
    """Merge by Chan, Golub and LeVeque: what is inside parts, and the parts around their mean."""
    parts, counts = numbers_of(statistics), np.diff(np.append(starts, len(statistics["squares"])))
    means = sums(statistics) / np.maximum(parts, 1)
    mean = sums(folded) / np.maximum(numbers_of(folded), 1)
    apart = means - np.repeat(mean, counts)
    between = np.where(parts > 0, parts * apart * apart, 0.0)
    return cast("FloatArray", np.add.reduceat(statistics["squares"] + between, starts))


def _fold_edge(statistics: Statistics, folded: Statistics, starts: Int64Array, name: str) -> None:
    """Take the earliest or the latest row of each segment, of one time by the rank of series."""
    moments, ranks = statistics[f"{name}_at"], statistics[f"{name}_rank"]
    counts = np.diff(np.append(starts, len(moments)))
    order = np.lexsort((ranks, moments, np.repeat(np.arange(len(starts)), counts)))
    rows = order[starts if name == "first" else starts + counts - 1]
    for column in (name, f"{name}_at", f"{name}_rank"):
        folded[column] = statistics[column][rows]


def add_segments(
    totals: FloatArray, errors: FloatArray, starts: Int64Array
) -> tuple[FloatArray, FloatArray]:
    """Add segments of sums with their errors, and tell what that rounds off.

    Few long segments are added by `math.fsum`, others as neighbours in pairs, all at once.

    Args:
        totals: float64[n].
        errors: float64[n], what is to be added to each total.
        starts: int64[m], ascending, the first 0.

    Returns:
        Totals and errors, float64[m]; of totals that are not finite the error is 0.
    """
    if len(starts) * _LONG < len(totals):
        return _add_exactly(totals, errors, starts)
    counts = np.diff(np.append(starts, len(totals)))
    errors = np.add.reduceat(errors, starts)
    while len(totals) > len(counts):
        place = np.arange(len(totals)) - np.repeat(np.cumsum(counts) - counts, counts)
        is_left = place & 1 == 0
        left = np.flatnonzero(is_left & (place + 1 < np.repeat(counts, counts)))
        one, other = totals[left], totals[left + 1]
        total = one + other
        of_other = total - one
        error = (one - (total - of_other)) + (other - of_other)  # TwoSum, of Knuth
        error[~np.isfinite(error)] = 0.0
        owner = np.repeat(np.arange(len(counts)), counts)[left]
        errors += np.bincount(owner, error, len(counts))
        totals = totals.copy()
        totals[left] = total
        totals = totals[is_left]
        counts = (counts + 1) // 2
    errors[~np.isfinite(totals)] = 0.0
    return totals, errors


def _add_exactly(
    totals: FloatArray, errors: FloatArray, starts: Int64Array
) -> tuple[FloatArray, FloatArray]:
    added = np.add.reduceat(totals, starts)  # stands where it is not finite
    bounds = [*starts.tolist(), len(totals)]
    for place, (first, last) in enumerate(pairwise(bounds)):
        if np.isfinite(added[place]):
            with contextlib.suppress(OverflowError):  # on the way, where the end is in range
                added[place] = math.fsum(
                    [*totals[first:last].tolist(), *errors[first:last].tolist()]
                )
    return added, np.zeros(len(starts))
