"""Columns: rows with labels in columns of their own, told apart at the speed of arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from tsengine.errors import InvalidDataError
from tsengine.formats.arrow_columns import codes
from tsengine.model import METRIC_NAME, Int64Array, Labels

if TYPE_CHECKING:
    import pyarrow as pa

_SERIES_MAX: Final = 1 << 17
"""Series that are kept by their texts: making one anew costs microseconds."""

_TABLE_MAX: Final = 1 << 20
"""Most pairs of numbers for which a table of all is made, to tell those that occur."""


@dataclass(frozen=True, slots=True, eq=False)
class SeriesColumn:
    """Which series each row is of.

    Attributes:
        ranks: int64[n], a number of its series for each row.
        texts: for each series the texts of the columns of labels, None where there is none.
    """

    ranks: Int64Array
    texts: Sequence[tuple[str | None, ...]]


def series_column(rows: int, columns: Sequence[pa.Array]) -> SeriesColumn:
    """Tell rows apart by their texts.

    Args:
        rows: how many there are.
        columns: of text, plain or dictionary-encoded, one for each label. A null and an empty
            text are no label.
    """
    ranks = np.zeros(rows, np.int64)
    texts: list[tuple[str | None, ...]] = [()]
    for column in columns:
        numbers, words = _codes(column)
        ranks, pairs = combine(ranks, numbers, len(words))
        texts = [(*texts[pair // len(words)], words[pair % len(words)]) for pair in pairs]
    return SeriesColumn(ranks, texts)


class LabelsMaker:
    """Makes labels of the texts of columns.

    Args:
        names: of the labels, one for each column.
        constants: labels that all get.
    """

    def __init__(self, names: Sequence[str], constants: Mapping[str, str]) -> None:
        self._names = names
        self._constants = constants
        self._made: dict[tuple[str | None, tuple[str | None, ...]], Labels] = {}

    def series(self, metric: str | None, column: SeriesColumn) -> tuple[Int64Array, list[Labels]]:
        """Give the distinct labels of a column of series, and the place of each row's among them.

        Raises:
            InvalidDataError: some make no labels.
        """
        names = [self.labels(metric, texts) for texts in column.texts]
        places: dict[Labels, int] = {}
        numbers = [places.setdefault(labels, len(places)) for labels in names]
        if len(places) == len(names):
            return column.ranks, names
        # A null and an empty text are the same: no label.
        return np.array(numbers, np.int64)[column.ranks], list(places)

    def labels(self, metric: str | None, texts: tuple[str | None, ...]) -> Labels:
        """Make labels; empty texts are none.

        Raises:
            InvalidDataError: there are none, or such as no series has.
        """
        key = metric, texts
        known = self._made.get(key)
        if known is None:
            named = {
                name: text for name, text in zip(self._names, texts, strict=True) if text
            } | dict(self._constants)
            if metric is not None:
                named[METRIC_NAME] = metric
            known = Labels(named)
            if not known:
                raise InvalidDataError("no label, so that nothing says which series it is")
            if len(self._made) >= _SERIES_MAX:
                self._made.clear()
            self._made[key] = known
        return known


def _codes(column: pa.Array) -> tuple[Int64Array, list[str | None]]:
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    words: list[str | None] = [*column.dictionary.to_pylist(), None]
    if column.indices.null_count:
        filled = column.indices.fill_null(len(words) - 1)
        column = pa.DictionaryArray.from_arrays(filled, [*words[:-1], ""])
    return codes(column), words


def combine(ranks: Int64Array, codes: Int64Array, words: int) -> tuple[Int64Array, list[int]]:
    """Number the pairs that occur; give which they are."""
    pairs = ranks * words + codes
    if not len(pairs):
        return pairs, []
    most = int(pairs.max()) + 1
    if most > max(_TABLE_MAX, len(pairs)):
        distinct, numbers = np.unique(pairs, return_inverse=True)
        return numbers, distinct.tolist()
    occurs = np.zeros(most, bool)
    occurs[pairs] = True
    found = np.flatnonzero(occurs)
    number_of = np.empty(most, np.int64)
    number_of[found] = np.arange(len(found))
    return number_of[pairs], found.tolist()
