"""Parts: some rows of a table, whatever made it, as numpy columns.

A pandas frame is read through numpy, since its own Arrow stream would make a null of each NaN.
All else offers the Arrow interfaces, and is read through pyarrow.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tsengine.errors import MissingDependencyError
from tsengine.model import INT64_MAX, INT64_MIN, Int64Array

BoolArray = npt.NDArray[np.bool_]

NS_PER_UNIT: Final = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
"""What times are counted in, in tables of any kind."""


class Words(NamedTuple):
    """A column of labels.

    Attributes:
        codes: int64[n], a place in `words` for each row.
        words: what stands there: text, None where the label is absent, or what is no text.
    """

    codes: Int64Array
    words: list[object]


class Cells(NamedTuple):
    """A column of values.

    Attributes:
        values: [n], of any dtype; where a value is absent, anything.
        absent: bool[n], which are null; None where none is.
    """

    values: npt.NDArray[np.generic]
    absent: BoolArray | None

    @property
    def is_numeric(self) -> bool:
        """Whether it holds floats or integers, and need not be looked at one by one."""
        return self.values.dtype.kind in "fiu"


class Part(Protocol):
    """Some rows of a table; they are those of the table while it is used, not copies."""

    @property
    def rows(self) -> int:
        """How many rows."""

    def moments(self, column: str) -> Int64Array | list[object]:
        """Give a column of times as int64[n] nanoseconds.

        Where some are null, beyond int64, or of no type of time, it is a list of n: integers
        where they could be told, else what stands there, for whoever judges points.
        """

    def words(self, column: str) -> Words:
        """Give a column of labels.

        Raises:
            LabelsError: it is of a type that no text can be in.
        """

    def cells(self, column: str) -> Cells:
        """Give a column of values."""

    def matrix(self, columns: Sequence[str]) -> npt.NDArray[np.float64] | None:
        """Give columns as float64[n, k] where that costs nothing; else None."""


@dataclass(frozen=True, slots=True)
class OpenTable:
    """A table about to be read.

    Attributes:
        columns: names of its columns, a named index of a frame among them.
        index: name under which parts give the unnamed index of a frame, where that holds times.
        parts: gives the rows in their order, so many at most at a time; a stream of batches is
            gathered to so many where the second argument says so.
    """

    columns: list[str]
    index: str | None
    parts: Callable[[int, bool], Iterator[Part]]


def is_table(item: object) -> bool:
    """Whether something offers its columns as Arrow does, or is a pandas frame."""
    return (
        hasattr(item, "__arrow_c_stream__") or hasattr(item, "__arrow_c_array__") or is_frame(item)
    )


def is_frame(item: object) -> bool:
    """Whether something is a pandas frame; pandas is not imported for that."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(item, pandas.DataFrame)


def table_rows(table: object) -> int | None:
    """Give the number of rows, None for a stream."""
    rows: object = getattr(table, "num_rows", None)
    if rows is None and hasattr(table, "__len__"):
        rows = len(table)
    return rows if isinstance(rows, int) else None


def import_pyarrow() -> Any:
    """Give pyarrow.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import pyarrow as pa  # an optional package, imported when used
    except ImportError:
        raise MissingDependencyError(
            "tables are read through pyarrow: pip install 'tsengine[arrow]'"
        ) from None
    return pa


def moments_of(
    counts: Int64Array, unit: str, absent: BoolArray | None
) -> Int64Array | list[object]:
    """Give times that are counted in a unit, as `Part.moments` does."""
    factor = NS_PER_UNIT[unit]
    fits = True
    if factor > 1 and len(counts):
        known = counts if absent is None else counts[~absent]
        fits = not len(known) or (
            known.min() >= INT64_MIN // factor + 1 and known.max() <= INT64_MAX // factor
        )
    if absent is None and fits:
        return counts if factor == 1 else counts * factor
    listed: list[object] = [count * factor for count in counts.tolist()]
    if absent is not None:
        for row in np.flatnonzero(absent).tolist():
            listed[row] = None
    return listed
