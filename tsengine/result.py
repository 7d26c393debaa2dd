"""QueryResult: what a query answers, as numpy columns and what they convert to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tsengine.errors import MissingDependencyError
from tsengine.model import Labels, SeriesBatch

if TYPE_CHECKING:
    import pandas as pd


class QueryResult(Sequence[SeriesBatch]):
    """The series of an answer by series ID, each with at least one row.

    The columns belong to the caller: they alias nothing inside an engine.
    """

    __slots__ = ("_batches",)

    def __init__(self, batches: Sequence[SeriesBatch]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        """Count the series."""
        return len(self._batches)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # typed by Sequence's overloads
        """Give one series, or a sequence of them for a slice."""
        return self._batches[index]

    def __iter__(self) -> Iterator[SeriesBatch]:
        return iter(self._batches)

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

    def to_pandas(self) -> pd.DataFrame:
        """Give one long frame: a column per label name, `timestamp`, `value`.

        Label columns are categorical (absent labels are missing values) and sorted by
        name; `timestamp` is datetime64[ns, UTC]; `value` is float64 or int64, or object
        where kinds are mixed. Rows are by series ID, then time. A label called
        `timestamp` or `value` keeps its name with `label_` before it.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        try:
            import pandas as pd  # an optional package, imported when used
        except ImportError:
            raise MissingDependencyError(
                "to_pandas() needs pandas: pip install 'tsengine[pandas]'"
            ) from None
        lengths = [len(batch) for batch in self._batches]
        columns: dict[str, object] = {}
        names = {name for batch in self._batches for name in batch.labels}
        for name in sorted(names):
            texts = sorted({batch.labels[name] for batch in self._batches if name in batch.labels})
            place = {text: code for code, text in enumerate(texts)}
            codes = [place.get(batch.labels.get(name, ""), -1) for batch in self._batches]
            column = name
            while column in ("timestamp", "value") or (column != name and column in names):
                column = f"label_{column}"
            columns[column] = pd.Categorical.from_codes(
                np.repeat(np.array(codes, dtype=np.int64), lengths), categories=pd.Index(texts)
            )
        timestamps = _join([batch.timestamps for batch in self._batches], np.dtype(np.int64))
        columns["timestamp"] = pd.DatetimeIndex(timestamps.view("datetime64[ns]"), tz="UTC")
        dtypes = {batch.values.dtype for batch in self._batches} or {np.dtype(np.float64)}
        dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(object)
        columns["value"] = _join([batch.values for batch in self._batches], dtype)
        return pd.DataFrame(columns)


def _join(
    columns: Sequence[np.ndarray[tuple[int], np.dtype[np.generic]]], dtype: np.dtype[np.generic]
) -> np.ndarray[tuple[int], np.dtype[np.generic]]:
    if not columns:
        return np.empty(0, dtype)
    return np.concatenate([column.astype(dtype, copy=False) for column in columns])
