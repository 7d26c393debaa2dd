"""Tables without a library: mappings of column names to arrays and lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from tsengine.errors import BatchShapeError, LabelsError
from tsengine.model import Int64Array
from tsengine.tables.parts import Cells, OpenTable, Part, Words, moments_of


def open_mapping(table: Mapping[str, object]) -> OpenTable:
    """Bring the columns of a mapping into arrays of one length.

    Raises:
        BatchShapeError: they are not named by text, no columns, or of several lengths.
    """
    columns: dict[str, Cells] = {}
    for name, given in table.items():
        if not isinstance(name, str):
            raise BatchShapeError(f"columns of a table are named by text, not by {name!r}")
        columns[name] = _cells(name, given)
    lengths = {len(column.values) for column in columns.values()}
    if len(lengths) > 1:
        sizes = {name: len(column.values) for name, column in columns.items()}
        raise BatchShapeError(f"the columns of a table have one length, not {sizes}")

    def parts(rows: int, gathers: bool) -> Iterator[Part]:
        del gathers  # a mapping is one whole
        for start in range(0, max(lengths, default=0), rows):
            yield MappingPart(columns, start, start + rows)

    return OpenTable(list(columns), None, parts)


class MappingPart:
    """Some rows of a mapping of columns."""

    def __init__(self, columns: Mapping[str, Cells], start: int, end: int) -> None:
        self._columns = columns
        self._rows = slice(start, end)

    @property
    def rows(self) -> int:
        return len(next(iter(self._columns.values())).values[self._rows])

    def moments(self, column: str) -> Int64Array | list[object]:
        values, absent = self.cells(column)
        if values.dtype.kind == "M":
            unit, step = np.datetime_data(cast("np.dtype[np.datetime64]", values.dtype))
            if step == 1 and unit in ("s", "ms", "us", "ns"):
                gone = np.isnat(values)
                absent = gone if absent is None else gone | absent
                counts = np.where(absent, 0, values.view(np.int64))
                return moments_of(counts, unit, absent if absent.any() else None)
        if values.dtype.kind in "iu" and values.dtype != np.uint64:
            return moments_of(values.astype(np.int64, copy=False), "ns", absent)
        listed: list[object] = list(values)
        for row in [] if absent is None else np.flatnonzero(absent).tolist():
            listed[row] = None
        return listed

    def words(self, column: str) -> Words:
        values, absent = self.cells(column)
        listed: list[object] = values.tolist()
        for row in [] if absent is None else np.flatnonzero(absent).tolist():
            listed[row] = None
        try:
            places = {word: code for code, word in enumerate(dict.fromkeys(listed))}
        except TypeError as error:
            raise LabelsError(f"column {column!r} holds what is no text: {error}") from None
        return Words(np.array([places[word] for word in listed], np.int64), list(places))

    def cells(self, column: str) -> Cells:
        values, absent = self._columns[column]
        return Cells(values[self._rows], None if absent is None else absent[self._rows])

    def matrix(self, columns: Sequence[str]) -> npt.NDArray[np.float64] | None:
        return None  # columns stand apart


def _cells(name: str, given: object) -> Cells:
    if isinstance(given, np.ndarray):
        if given.ndim != 1:
            raise BatchShapeError(f"column {name!r} has the shape {given.shape}, not one dimension")
        values = np.asarray(given)
        absent = np.ma.getmaskarray(given) if isinstance(given, np.ma.MaskedArray) else None
        if values.dtype == np.dtype(object):
            absent = np.array([value is None for value in values], bool)
        return Cells(values, absent if absent is not None and absent.any() else None)
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
        raise BatchShapeError(f"column {name!r} is an array or a list, not {given!r}")
    absent = np.array([value is None for value in given], bool)
    kinds = {type(value) for value in given if value is not None}
    if kinds == {float}:
        return Cells(
            np.array([0.0 if value is None else value for value in given]),
            absent if absent.any() else None,
        )
    listed = np.empty(len(given), dtype=object)
    for row, value in enumerate(given):  # one by one, or numpy would look into lists
        listed[row] = value
    return Cells(listed, absent if absent.any() else None)
