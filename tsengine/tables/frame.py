"""pandas frames, read through numpy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tsengine.errors import BatchShapeError, LabelsError
from tsengine.model import Int64Array
from tsengine.tables.arrow import cells_of_array, moments_of_array
from tsengine.tables.parts import Cells, OpenTable, Part, Words, import_pyarrow, moments_of

if TYPE_CHECKING:
    import pandas as pd

_UNNAMED = "index"
"""Under what the unnamed index of a frame is given."""


def open_frame(frame: pd.DataFrame) -> OpenTable:
    """Find out what columns a frame has: its own, and the named levels of its index.

    Raises:
        BatchShapeError: they are not named by text.
    """
    import pandas as pd

    columns: list[object] = list(frame.columns)
    names = [name for name in frame.index.names if name is not None]
    odd = [name for name in [*columns, *names] if not isinstance(name, str)]
    if odd:
        raise BatchShapeError(
            f"columns of a table are named by text, not by {odd[0]!r}; rename them first, for "
            "instance by frame.rename(columns=str)"
        )
    index = None
    if isinstance(frame.index, pd.DatetimeIndex) and frame.index.name is None:
        index = _UNNAMED
        while index in columns:
            index = f"_{index}"

    def parts(rows: int, gathers: bool) -> Iterator[Part]:  # as OpenTable has it
        del gathers  # a frame is one whole
        for start in range(0, len(frame), rows):
            yield FramePart(frame.iloc[start : start + rows], index)

    return OpenTable([*columns, *names], index, parts)  # type: ignore[list-item]  # text, see above


class FramePart:
    """Some rows of a pandas frame."""

    def __init__(self, frame: pd.DataFrame, index: str | None) -> None:
        self._frame = frame
        self._index = index

    @property
    def rows(self) -> int:
        return len(self._frame)

    def moments(self, column: str) -> Int64Array | list[object]:
        import pandas as pd

        series = self._column(column)
        if isinstance(series.dtype, pd.ArrowDtype):
            return moments_of_array(_as_arrow(series))
        if isinstance(series.dtype, pd.DatetimeTZDtype) or series.dtype.kind == "M":
            times = pd.DatetimeIndex(series)
            absent = np.asarray(times.isna()) if times.hasnans else None
            return moments_of(times.asi8, times.unit, absent)
        cells = self.cells(column)
        if cells.values.dtype.kind in "iu" and cells.values.dtype != np.uint64:
            return moments_of(cells.values.astype(np.int64, copy=False), "ns", cells.absent)
        listed: list[object] = cells.values.tolist()
        if cells.absent is not None:
            for row in np.flatnonzero(cells.absent).tolist():
                listed[row] = None
        return listed

    def words(self, column: str) -> Words:
        import pandas as pd

        series = self._column(column)
        if isinstance(series.dtype, pd.CategoricalDtype):
            codes, words = np.asarray(series.cat.codes), series.cat.categories
        else:
            try:
                codes, words = pd.factorize(series)
            except TypeError as error:
                raise LabelsError(f"column {column!r} holds what is no text: {error}") from None
        texts: list[object] = [*words.tolist(), None]
        codes = codes.astype(np.int64)
        codes[codes < 0] = len(texts) - 1
        return Words(codes, texts)

    def cells(self, column: str) -> Cells:
        import pandas as pd

        series = self._column(column)
        dtype: Any = series.dtype
        if isinstance(dtype, pd.ArrowDtype):
            return cells_of_array(_as_arrow(series))
        if isinstance(dtype, np.dtype) and dtype.kind in "fiub":
            return Cells(series.to_numpy(), None)
        numpy_dtype: Any = getattr(dtype, "numpy_dtype", None)  # of the masked ones
        if isinstance(numpy_dtype, np.dtype) and numpy_dtype.kind in "fiub":
            masked: Any = series.array
            absent = np.asarray(masked.isna())
            values = masked.to_numpy(dtype=numpy_dtype, na_value=0) if absent.any() else None
            if values is None:
                return Cells(masked.to_numpy(dtype=numpy_dtype), None)
            return Cells(values, absent)
        values = np.empty(len(series), dtype=object)
        values[:] = series.to_numpy(dtype=object)
        if isinstance(
            dtype, np.dtype
        ):  # of objects, where NaN is a value, as it is in a column of floats
            gone = [value is None or value is pd.NA or value is pd.NaT for value in values]
            absent = np.array(gone, bool)
        else:
            absent = series.isna().to_numpy()
        return Cells(values, absent if absent.any() else None)

    def matrix(self, columns: Sequence[str]) -> npt.NDArray[np.float64] | None:
        frame = self._frame
        if not (frame.dtypes == np.float64).all() or list(frame.columns) != list(columns):
            return None
        matrix: npt.NDArray[np.float64] = frame.to_numpy()
        return matrix

    def _column(self, name: str) -> pd.Series[Any]:
        frame = self._frame
        if name in frame.columns:
            column = frame[name]
        elif name == self._index:
            column = frame.index.to_series()
        else:
            column = frame.index.get_level_values(name).to_series()
        return column


def _as_arrow(series: pd.Series[Any]) -> Any:
    pa = import_pyarrow()
    array = pa.array(series)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
