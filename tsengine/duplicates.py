"""Duplicate policies: what a second point at one series and timestamp does.

Policies work on columns already sorted, where later rows are newer writes. Backends call
`fold` inside a batch and across what is stored, and never decide by themselves: that is
how every backend comes to the same answer.
"""

from __future__ import annotations

import enum
from typing import Final

import numpy as np
import numpy.typing as npt

from tsengine.errors import DuplicatePointError, ValueKindError, ValueOverflowError
from tsengine.model import INT64_MAX, INT64_MIN, Int64Array, ValueArray, ValueKind


class DuplicatePolicy(enum.StrEnum):
    """Named as in RedisTimeSeries, whose users know these words.

    `MIN` and `MAX` are minimumNumber and maximumNumber of IEEE 754-2019: a number beats
    NaN, and -0 < +0. Where all are NaN the first written stands.
    """

    LAST = "last"
    """The newest write stands."""
    FIRST = "first"
    """The oldest write stands."""
    MIN = "min"
    MAX = "max"
    SUM = "sum"
    """Values add up; int64 overflow is refused at the write."""
    ERROR = "error"
    """A second write is refused."""


_ONE_MORE: Final = np.ones(1, bool)

_NUMERIC: Final = frozenset({DuplicatePolicy.MIN, DuplicatePolicy.MAX, DuplicatePolicy.SUM})


def check_policy_kind(policy: DuplicatePolicy, kind: ValueKind) -> None:
    """Raise ValueKindError where the policy has no meaning for the kind."""
    if kind is ValueKind.OBJECT and policy in _NUMERIC:
        raise ValueKindError(
            f"objects have no {policy.value}: a store with duplicate_policy={policy.value!r} "
            "holds numbers only"
        )


def distinct_starts(timestamps: Int64Array, groups: Int64Array | None = None) -> Int64Array | None:
    """Find where rows of equal key begin.

    Args:
        timestamps: int64[n], non-decreasing within a group.
        groups: int64[n], non-decreasing; None for one group.

    Returns:
        int64[m], the first row of each distinct key; None where all n are distinct, the
        common case, which copies nothing.
    """
    if len(timestamps) < 2:  # a pair is what can be equal
        return None
    same = timestamps[1:] == timestamps[:-1]
    if groups is not None:
        same &= groups[1:] == groups[:-1]
    if not same.any():
        return None
    return np.flatnonzero(np.concatenate(([True], ~same)))


def fold(
    timestamps: Int64Array, values: ValueArray, policy: DuplicatePolicy
) -> tuple[Int64Array, ValueArray]:
    """Reduce rows of equal timestamp to one row each.

    Args:
        timestamps: int64[n], nanoseconds, non-decreasing.
        values: [n], newest last among equal timestamps.
        policy: what equal timestamps do.

    Returns:
        Columns with strictly increasing timestamps; the inputs themselves where nothing
        was equal.

    Raises:
        DuplicatePointError: the policy is `error` and two rows are equal.
        ValueOverflowError: the policy is `sum` and an int64 sum overflows.
    """
    if len(timestamps) < 2:  # a pair is what can be equal
        return timestamps, values
    distinct = timestamps[1:] != timestamps[:-1]
    if distinct.all():
        return timestamps, values
    if policy is DuplicatePolicy.LAST or policy is DuplicatePolicy.FIRST:
        # Most stores have one of these two: a mask does it in half the time of row numbers.
        ends = [distinct, _ONE_MORE] if policy is DuplicatePolicy.LAST else [_ONE_MORE, distinct]
        kept = np.concatenate(ends)
        return timestamps[kept], values[kept]
    starts = np.flatnonzero(np.concatenate([_ONE_MORE, distinct]))
    return timestamps[starts], fold_values(starts, values, policy)


def fold_values(starts: Int64Array, values: ValueArray, policy: DuplicatePolicy) -> ValueArray:
    """Reduce the rows between neighbouring starts to one value each.

    Args:
        starts: int64[m], ascending, the first 0: where each distinct key begins.
        values: [n], newest last within a key.
        policy: what rows of equal key do.

    Returns:
        The values, [m].

    Raises:
        DuplicatePointError: the policy is `error`; `indices` names each second row.
        ValueOverflowError: an int64 sum overflows; `indices` names the rows of each
            such key.
    """
    ends: Int64Array = np.append(starts[1:], len(values))
    if policy is DuplicatePolicy.LAST:
        return values[ends - 1]
    if policy is DuplicatePolicy.FIRST:
        return values[starts]
    if policy is DuplicatePolicy.ERROR:
        repeated = np.setdiff1d(np.arange(len(values)), starts, assume_unique=True)
        raise DuplicatePointError(
            f"{len(repeated)} points repeat a series and timestamp, which "
            "duplicate_policy='error' refuses",
            indices=repeated.tolist(),
        )
    if values.dtype == np.int64:
        return _fold_integers(starts, ends, values, policy)
    floats: npt.NDArray[np.float64] = values  # type: ignore[assignment]  # objects never get here
    if policy is DuplicatePolicy.SUM:
        with np.errstate(invalid="ignore", over="ignore"):  # inf - inf is NaN, as in C
            total: npt.NDArray[np.float64] = np.add.reduceat(floats, starts)
        return total
    return _fold_extreme(starts, floats, policy)


def _fold_integers(
    starts: Int64Array, ends: Int64Array, values: ValueArray, policy: DuplicatePolicy
) -> ValueArray:
    integers: Int64Array = values  # type: ignore[assignment]  # the caller looked at the dtype
    folded: Int64Array
    if policy is DuplicatePolicy.MIN:
        folded = np.minimum.reduceat(integers, starts)
    elif policy is DuplicatePolicy.MAX:
        folded = np.maximum.reduceat(integers, starts)
    else:
        folded = np.add.reduceat(integers, starts)
        # int64 wraps silently. A float64 sum within half the range proves that nothing did.
        rough = np.add.reduceat(np.abs(integers.astype(np.float64)), starts)
        wrong: list[int] = []
        message = ""
        for key in np.flatnonzero(rough >= 2.0**62).tolist():
            rows = range(int(starts[key]), int(ends[key]))
            exact = sum(integers[rows.start : rows.stop].tolist())
            if not INT64_MIN <= exact <= INT64_MAX:
                message = message or f"the sum {exact} does not fit int64"
                wrong.extend(rows)
        if wrong:
            raise ValueOverflowError(message, indices=wrong)
    return folded


def _fold_extreme(
    starts: Int64Array, values: npt.NDArray[np.float64], policy: DuplicatePolicy
) -> npt.NDArray[np.float64]:
    """Reduce by the total order of IEEE 754, in which -0 < +0, with NaN last chosen."""
    bits = np.ascontiguousarray(values).view(np.int64)
    ordered = bits ^ ((bits >> 63) & INT64_MAX)  # signed integers in the order of the floats
    smallest = policy is DuplicatePolicy.MIN
    loses = INT64_MAX if smallest else INT64_MIN
    ordered = np.where(np.isnan(values), loses, ordered)
    chosen = (np.minimum if smallest else np.maximum).reduceat(ordered, starts)
    folded = (chosen ^ ((chosen >> 63) & INT64_MAX)).view(np.float64)
    extreme: npt.NDArray[np.float64] = np.where(chosen == loses, values[starts], folded)
    return extreme
