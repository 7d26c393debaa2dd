"""Absent elements: what columns of other libraries may hold and a store cannot.

numpy turns them into something that looks like a value: a masked element into what lies
under the mask, a null of pandas or Arrow into NaN, whole integers into floats on the way.
"""

from __future__ import annotations

import numpy as np


def absent_rows(column: object) -> list[int]:
    """Give the rows that are masked (numpy), NA (pandas extension types) or null (Arrow).

    NaN in a column of floats is a value and no absence.
    """
    if isinstance(column, np.ma.MaskedArray):
        return [int(row) for row in np.flatnonzero(np.ma.getmaskarray(column))]
    if getattr(column, "null_count", 0):  # an Arrow array
        to_pylist = getattr(column, "to_pylist", list)
        return [row for row, value in enumerate(to_pylist()) if value is None]
    dtype = getattr(column, "dtype", None)
    isna = getattr(column, "isna", None)
    if isna is not None and not isinstance(dtype, np.dtype):  # a pandas extension type
        return [int(row) for row in np.flatnonzero(np.asarray(isna()))]
    return []
