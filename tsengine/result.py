"""QueryResult: what a query answers, as numpy columns and what they convert to."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Reversible, Sequence
from typing import TYPE_CHECKING, overload

import numpy as np
import numpy.typing as npt

from tsengine.errors import MissingDependencyError
from tsengine.frames import (
    long_frame,
    long_stream,
    matrix_of,
    wide_columns,
    wide_frame,
    wide_stream,
)
from tsengine.model import Int64Array, Labels, SeriesBatch

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa


class QueryResult(Collection[SeriesBatch], Reversible[SeriesBatch]):
    """The series of an answer by series ID, each with at least one row.

    It has a length, is iterated, and gives one by index or several by slice. It is no
    `collections.abc.Sequence`, only because polars would look into one row by row rather than
    take it for a table. The columns belong to the caller: they alias nothing inside an engine.

    As a table it has one of two forms, and `Engine.write_table` takes back either.

    - **Long**, a row per point: a column per label name, sorted, then `timestamp` and `value`.
      Rows are by series ID, then time. A label called `timestamp` or `value`, or one of these
      with `label_` before it, keeps its name with `label_` before it.
    - **Wide**, a row per time that any series has: `timestamp`, and a column per series, named
      by its ID (`{__name__="value"}` where that is a column of the long form). Where a series
      has no row its column has a null, which is not NaN.

    A result is a table of the Arrow PyCapsule interface, in its long form, which
    `polars.DataFrame(result)`, `pyarrow.table(result)`, `pandas.DataFrame.from_arrow(result)` and
    DuckDB take as it is, a record batch at a time. Labels are dictionary-encoded text, null where
    a series has none; times are timestamp[ns, UTC]. Values are float64 or int64; objects are
    text, booleans or binary where all are. For values of several of these, and for lists and
    maps, there is no one type: ValueKindError says what to do. That takes
    `pip install 'tsengine[frames]'`.
    """

    __slots__ = ("_batches",)

    def __init__(self, batches: Sequence[SeriesBatch]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        """Count the series."""
        return len(self._batches)

    @overload
    def __getitem__(self, index: int) -> SeriesBatch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SeriesBatch]: ...
    def __getitem__(self, index: int | slice) -> SeriesBatch | Sequence[SeriesBatch]:
        """Give one series, or a sequence of them for a slice."""
        return self._batches[index]

    def __iter__(self) -> Iterator[SeriesBatch]:
        return iter(self._batches)

    def __reversed__(self) -> Iterator[SeriesBatch]:
        return reversed(self._batches)

    def __contains__(self, batch: object) -> bool:
        return batch in self._batches

    def __repr__(self) -> str:
        return f"<QueryResult: {len(self)} series, {self.rows} rows>"

    @property
    def rows(self) -> int:
        """Count the rows of all series."""
        return sum(map(len, self._batches))

    @property
    def labels(self) -> list[Labels]:
        """The labels of each series, in order."""
        return [batch.labels for batch in self._batches]

    def to_numpy(self) -> tuple[Int64Array, npt.NDArray[np.generic]]:
        """Give the wide form as times and a matrix; `labels` tells the series of its columns.

        Returns:
            int64[n] nanoseconds, strictly increasing, and [n, k]: int64 where all series are and
            have all rows; else float64, NaN where a series has no row; object, and None there,
            where a series holds objects. Columns are contiguous.

        Raises:
            ValueKindError: integers lose precision as float64.
        """
        wide = wide_columns(self._batches)
        return wide.timestamps.copy(), matrix_of(wide)

    def to_pandas(self, *, wide: bool = False) -> pd.DataFrame:
        """Give one frame.

        Long: label columns are categorical (absent labels are missing values); `timestamp` is
        datetime64[ns, UTC]; `value` is float64 or int64, or object where kinds are mixed.

        Args:
            wide: gives the wide form, whose index is `timestamp`. Columns with gaps are of
                pandas' nullable dtypes Float64 and Int64, where NA is a gap and NaN a value.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        return wide_frame(self._batches) if wide else long_frame(self._batches)

    def to_polars(self, *, wide: bool = False) -> pl.DataFrame:
        """Give one polars frame, long or wide.

        Raises:
            ValueKindError: values have no one type.
            MissingDependencyError: polars or arro3 is not installed.
        """
        try:
            import polars as pl  # an optional package, imported when used
        except ImportError:
            raise MissingDependencyError(
                "to_polars() needs polars: pip install 'tsengine[polars]'"
            ) from None
        stream = wide_stream(self._batches) if wide else long_stream(self._batches)
        return pl.DataFrame(stream)

    def to_arrow(self, *, wide: bool = False) -> pa.Table:
        """Give one pyarrow table, long or wide.

        Raises:
            ValueKindError: values have no one type.
            MissingDependencyError: pyarrow or arro3 is not installed.
        """
        try:
            import pyarrow as pa  # an optional package, imported when used
        except ImportError:
            raise MissingDependencyError(
                "to_arrow() needs pyarrow: pip install 'tsengine[arrow]'"
            ) from None
        return pa.table(wide_stream(self._batches) if wide else self)

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Give the long form as a capsule of an Arrow stream; see the class.

        Args:
            requested_schema: a capsule of another schema of these columns, to which they are
                cast.

        Raises:
            ValueKindError: values have no one type.
            MissingDependencyError: arro3 is not installed.
        """
        return long_stream(self._batches).__arrow_c_stream__(requested_schema)


def joined_series(batches: Iterable[SeriesBatch]) -> list[SeriesBatch]:
    """Join neighbouring batches of one series, as a scan gives them."""
    joined: list[SeriesBatch] = []
    pieces: list[SeriesBatch] = []
    for batch in batches:
        if pieces and pieces[0].labels is not batch.labels:
            joined.append(_join_pieces(pieces))
            pieces = []
        pieces.append(batch)
    if pieces:
        joined.append(_join_pieces(pieces))
    return joined


def _join_pieces(pieces: Sequence[SeriesBatch]) -> SeriesBatch:
    if len(pieces) == 1:
        return pieces[0]
    return SeriesBatch(
        pieces[0].labels,
        np.concatenate([piece.timestamps for piece in pieces]),
        np.concatenate([piece.values for piece in pieces]),
    )
