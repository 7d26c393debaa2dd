"""The wide form: one column of times, and one of values for each series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from tsengine.frames.long import TIME, VALUE
from tsengine.model import Int64Array, Labels, SeriesBatch, ValueKind, fit_array

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class WideColumn:
    """The values of a series at the times of all.

    Attributes:
        name: the series ID; see `column_name`.
        values: [n], of the series' kind; where it has no row 0, or None.
        absent: bool[n], where it has no row; None where it has all.
    """

    name: str
    values: npt.NDArray[np.generic]
    absent: BoolArray | None


@dataclass(frozen=True, slots=True)
class WideColumns:
    """The columns of a wide table.

    Attributes:
        timestamps: int64[n], those of any series, strictly increasing.
        columns: one per series.
    """

    timestamps: Int64Array
    columns: list[WideColumn]


def wide_columns(batches: Sequence[SeriesBatch]) -> WideColumns:
    """Bring series to common times; columns without gaps are those of the batches."""
    timestamps = _common_times([batch.timestamps for batch in batches])
    return WideColumns(timestamps, [_column(batch, timestamps) for batch in batches])


def matrix_of(wide: WideColumns) -> npt.NDArray[np.generic]:
    """Give the values as one matrix [n, k].

    It is int64 where all series are and none has gaps; else float64, with NaN in gaps; object,
    with None in gaps, where a series holds objects.

    Raises:
        ValueKindError: integers lose precision as float64.
    """
    columns = wide.columns
    kinds = {column.values.dtype for column in columns} or {np.dtype(np.float64)}
    dtype: np.dtype[np.generic] = ValueKind.FLOAT.dtype
    if ValueKind.OBJECT.dtype in kinds:
        dtype = ValueKind.OBJECT.dtype
    elif kinds == {ValueKind.INT.dtype} and all(column.absent is None for column in columns):
        dtype = ValueKind.INT.dtype
    # Series by series in memory, as what reads columns likes it.
    matrix: npt.NDArray[np.generic] = np.empty((len(columns), len(wide.timestamps)), dtype)
    for row, column in zip(matrix, columns, strict=True):
        values = column.values
        if dtype == ValueKind.FLOAT.dtype:
            _, values = fit_array(values, ValueKind.FLOAT)
        row[:] = values
        if column.absent is not None:
            row[column.absent] = None if dtype == ValueKind.OBJECT.dtype else np.nan
    return matrix.T


def column_name(labels: Labels) -> str:
    """Name the column of a series: by its ID, unless a column of a long table is called so."""
    name = labels.id
    return f'{{__name__="{name}"}}' if name in (TIME, VALUE) else name


def _common_times(columns: Sequence[Int64Array]) -> Int64Array:
    if not columns:
        return np.empty(0, np.int64)
    first = columns[0]
    if all(np.array_equal(first, other) for other in columns[1:]):
        return first
    return np.unique(np.concatenate(columns))


def _column(batch: SeriesBatch, timestamps: Int64Array) -> WideColumn:
    name = column_name(batch.labels)
    if len(batch) == len(timestamps):
        return WideColumn(name, batch.values, None)
    rows = timestamps.searchsorted(batch.timestamps)
    empty: object = None if batch.values.dtype == object else 0
    values = cast("npt.NDArray[np.generic]", np.full(len(timestamps), empty, batch.values.dtype))
    values[rows] = batch.values
    absent = np.ones(len(timestamps), bool)
    absent[rows] = False
    return WideColumn(name, values, absent)
