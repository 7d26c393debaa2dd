"""The long form: a column for each label, one of times, one of values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tsengine.model import Int64Array, SeriesBatch

TIME: Final = "timestamp"
VALUE: Final = "value"

_TAKEN: Final = re.compile(r"(?:label_)*(?:timestamp|value)")
"""Labels so called would be taken for columns of another meaning, or for one another."""


@dataclass(frozen=True, slots=True)
class LabelColumn:
    """A column of labels, encoded.

    Attributes:
        column: its name: that of the label, with `label_` before it where that is
            `timestamp`, `value`, or one of these with `label_` before it.
        texts: the values that occur, sorted.
        codes: int64[k], the place in `texts` for each series; -1 where it has no such label.
    """

    column: str
    texts: list[str]
    codes: Int64Array


def label_columns(batches: Sequence[SeriesBatch]) -> list[LabelColumn]:
    """Give the columns of labels of some series, sorted by label."""
    columns = []
    for name in sorted({name for batch in batches for name in batch.labels}):
        texts = sorted({batch.labels[name] for batch in batches if name in batch.labels})
        place = {text: code for code, text in enumerate(texts)}
        codes = [place.get(batch.labels.get(name, ""), -1) for batch in batches]
        column = f"label_{name}" if _TAKEN.fullmatch(name) else name
        columns.append(LabelColumn(column, texts, np.array(codes, np.int64)))
    return columns


def values_column(batches: Sequence[SeriesBatch]) -> npt.NDArray[np.generic]:
    """Join the values of some series: float64 or int64; object where kinds are mixed."""
    dtypes = {batch.values.dtype for batch in batches} or {np.dtype(np.float64)}
    dtype: np.dtype[np.generic] = dtypes.pop() if len(dtypes) == 1 else np.dtype(object)
    return joined([batch.values for batch in batches], dtype)


def joined(
    columns: Sequence[npt.NDArray[np.generic]], dtype: np.dtype[np.generic]
) -> npt.NDArray[np.generic]:
    """Join columns; without any, give one without rows."""
    if not columns:
        return np.empty(0, dtype)
    return np.concatenate([column.astype(dtype, copy=False) for column in columns])
