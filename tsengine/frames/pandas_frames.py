"""Series as pandas frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tsengine.errors import MissingDependencyError
from tsengine.frames.long import TIME, VALUE, joined, label_columns, values_column
from tsengine.frames.wide import WideColumn, wide_columns
from tsengine.model import Int64Array, SeriesBatch

if TYPE_CHECKING:
    import pandas as pd


def long_frame(batches: Sequence[SeriesBatch]) -> pd.DataFrame:
    """Give the frame that `QueryResult.to_pandas` describes.

    Raises:
        MissingDependencyError: pandas is not installed.
    """
    _require_pandas()
    import pandas as pd

    lengths = [len(batch) for batch in batches]
    columns: dict[str, object] = {
        label.column: pd.Categorical.from_codes(
            np.repeat(label.codes, lengths), categories=pd.Index(label.texts)
        )
        for label in label_columns(batches)
    }
    columns[TIME] = _times(
        joined([batch.timestamps for batch in batches], np.dtype(np.int64)).view(np.int64)
    )
    columns[VALUE] = values_column(batches)
    return pd.DataFrame(columns)


def wide_frame(batches: Sequence[SeriesBatch]) -> pd.DataFrame:
    """Give the frame that `QueryResult.to_pandas` describes under `wide`.

    Raises:
        MissingDependencyError: pandas is not installed.
    """
    _require_pandas()
    import pandas as pd

    wide = wide_columns(batches)
    index = _times(wide.timestamps).rename(TIME)
    columns = [
        pd.Series(_array(column), index=index, name=column.name, copy=False)
        for column in wide.columns
    ]
    if not columns:
        return pd.DataFrame(index=index)
    return pd.concat(columns, axis=1)


def _array(column: WideColumn) -> Any:
    """Give a column for pandas: of a dtype with room for NA where it has gaps."""
    import pandas as pd

    if column.absent is None or column.values.dtype == object:
        return column.values
    values: Any = column.values
    make = pd.arrays.IntegerArray if values.dtype == np.int64 else pd.arrays.FloatingArray
    return make(values, column.absent)


def _times(timestamps: Int64Array) -> pd.DatetimeIndex:
    import pandas as pd

    return pd.DatetimeIndex(timestamps.view("datetime64[ns]"), tz="UTC")


def _require_pandas() -> None:
    try:
        import pandas as pd  # noqa: F401  # an optional package, imported when used
    except ImportError:
        raise MissingDependencyError(
            "to_pandas() needs pandas: pip install 'tsengine[pandas]'"
        ) from None
