"""Differing: which results of a window are not what is stored."""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from tsengine.model import Int64Array, SeriesBatch, ValueArray, pack_object

BoolArray: TypeAlias = npt.NDArray[np.bool_]

_ROUNDED: Final = frozenset({"sum", "mean", "variance", "stddev", "delta", "increase", "rate"})
"""Functions that add floats, which rounds by how rows lie in blocks: a merge changes that."""

_ROUNDING: Final = 2.0**-44
"""By how much of themselves two sums of the same rows may differ: 256 units in the last place. 46
were seen, of 20,000 numbers around 0. Sums of numbers that cancel out further may differ by more;
then the second is stored, which is as good as the first."""


class Changes(NamedTuple):
    """How results and stored rows of one series differ.

    Attributes:
        is_new: bool[n], results that nothing is stored for.
        is_other: bool[n], results that something else is stored for.
        gone: int64[k], timestamps of stored rows that there is no result for.
    """

    is_new: BoolArray
    is_other: BoolArray
    gone: Int64Array


def is_unchanged(results: SeriesBatch, stored: SeriesBatch | None, function: str) -> bool:
    """Tell whether results are what is stored, no more and no less, as nearly all are.

    Takes a third of what `changes` does; arguments are the same.
    """
    return (
        stored is not None
        and len(stored) == len(results)
        and bool((stored.timestamps == results.timestamps).all())
        and bool(_are_same(results.values, stored.values, _base_of(function)).all())
    )


def _base_of(function: str) -> str:
    """Give the name of a function without its argument."""
    return function.partition("(")[0]


def changes(results: SeriesBatch, stored: SeriesBatch | None, function: str) -> Changes:
    """Compare results with what is stored.

    Args:
        results: of one function; timestamps strictly increasing.
        stored: rows of the same range; None for none.
        function: its name.
    """
    if stored is None or not len(stored):
        return Changes(np.ones(len(results), bool), np.zeros(len(results), bool), _NONE)
    places = stored.timestamps.searchsorted(results.timestamps)
    there = places < len(stored)
    places[~there] = 0
    there &= stored.timestamps[places] == results.timestamps
    is_other = np.zeros(len(results), bool)
    rows = np.flatnonzero(there)
    ours, theirs = results.values[rows], stored.values[places[rows]]
    is_other[rows] = ~_are_same(ours, theirs, _base_of(function))
    is_gone = np.ones(len(stored), bool)
    is_gone[places[rows]] = False
    return Changes(~there, is_other, stored.timestamps[is_gone])


_NONE: Final = np.empty(0, np.int64)


def _are_same(ours: ValueArray, theirs: ValueArray, function: str) -> BoolArray:
    """Tell which values are the same: bool[n]."""
    if ours.dtype == object or theirs.dtype == object:
        if ours.dtype != theirs.dtype:
            return np.zeros(len(ours), bool)
        pairs = zip(ours.tolist(), theirs.tolist(), strict=True)
        return np.array([pack_object(one) == pack_object(other) for one, other in pairs], bool)
    if ours.dtype.kind == theirs.dtype.kind == "i":
        return cast("BoolArray", ours == theirs)
    # Integers of a group that other members make float.
    one, other = ours.astype(np.float64, copy=False), theirs.astype(np.float64, copy=False)
    if function in ("first", "last"):
        return cast("BoolArray", one.view(np.int64) == other.view(np.int64))
    same: BoolArray = one == other
    if same.all():  # as nearly always
        return same
    same |= np.isnan(one) & np.isnan(other)
    if function in _ROUNDED:
        with np.errstate(invalid="ignore", over="ignore"):  # infinities are no near miss
            same |= np.abs(one - other) <= _ROUNDING * np.abs(other)
    return same
