"""Tables that offer the Arrow interfaces, read through pyarrow."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tsengine.errors import BatchShapeError, LabelsError, ValueKindError
from tsengine.model import Int64Array
from tsengine.tables.parts import (
    Cells,
    OpenTable,
    Part,
    Words,
    import_pyarrow,
    moments_of,
)

if TYPE_CHECKING:
    import pyarrow as pa


def open_arrow(table: object) -> OpenTable:
    """Find out what columns a table or stream has.

    Raises:
        MissingDependencyError: pyarrow is not installed.
        BatchShapeError: it is one column, or has one of a type that pyarrow does not know.
        ValueKindError: a polars frame holds Python objects.
    """
    pa = import_pyarrow()
    _check_objects(table)
    try:
        if hasattr(table, "__arrow_c_stream__"):
            records = reader = pa.RecordBatchReader.from_stream(table)
            names = list(reader.schema.names)
        else:
            record = pa.record_batch(table)
            records, names = [record], list(record.schema.names)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise BatchShapeError(
            f"{type(table).__name__} is no table that pyarrow reads: {error}"
        ) from error
    return OpenTable(names, None, lambda rows, gathers: _parts(records, rows, gathers))


def _check_objects(table: object) -> None:
    """Refuse a polars frame with columns of Python objects: it offers Arrow their addresses."""
    polars = sys.modules.get("polars")
    if polars is None or not isinstance(table, polars.DataFrame):
        return
    odd = [name for name, dtype in table.schema.items() if dtype == polars.Object]
    if odd:
        raise ValueKindError(
            f"column {odd[0]!r} of a polars frame is of type Object, which cannot be read; "
            "give it another type, or a mapping of names to lists instead of the frame"
        )


def _parts(
    records: Iterable[pa.RecordBatch], rows_max: int, gathers: bool
) -> Iterator[Part]:  # as OpenTable has it
    """Cut what is longer, and gather what is shorter where that is asked for."""
    import pyarrow as pa

    waiting: list[pa.RecordBatch] = []
    count = 0
    for record in records:
        start = 0
        while start < record.num_rows:
            piece = record.slice(start, rows_max - count)
            start += piece.num_rows
            waiting.append(piece)
            count += piece.num_rows
            if count == rows_max or not gathers:
                yield ArrowPart(pa.Table.from_batches(waiting))
                waiting, count = [], 0
    if waiting:
        yield ArrowPart(pa.Table.from_batches(waiting))


class ArrowPart:
    """Some rows of an Arrow table, or a column that stands for one."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @property
    def rows(self) -> int:
        return int(self._table.num_rows)

    def moments(self, column: str) -> Int64Array | list[object]:
        return moments_of_array(self._column(column))

    def words(self, column: str) -> Words:
        encoded = self._column(column)
        try:
            return words_of_array(encoded)
        except TypeError:
            raise LabelsError(
                f"columns of labels hold text; column {column!r} holds {encoded.type}"
            ) from None

    def cells(self, column: str) -> Cells:
        return cells_of_array(self._column(column))

    def matrix(self, columns: Sequence[str]) -> npt.NDArray[np.float64] | None:
        return None  # columns stand apart

    def _column(self, name: str) -> pa.Array:
        chunked = self._table.column(name)
        return chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()


def moments_of_array(column: pa.Array) -> Int64Array | list[object]:
    """Give times, as `Part.moments` does: a timestamp without a zone is UTC, as numpy has it."""
    import pyarrow as pa

    kind = column.type
    absent = _absent(column)
    if pa.types.is_timestamp(kind):
        counts = column.view(pa.int64())
        if absent is not None:
            counts = counts.fill_null(0)
        return moments_of(np.asarray(counts.to_numpy(zero_copy_only=False)), kind.unit, absent)
    if pa.types.is_integer(kind) and not pa.types.is_uint64(kind):
        if absent is not None:
            column = column.fill_null(0)
        counts = np.asarray(column.to_numpy(zero_copy_only=False)).astype(np.int64, copy=False)
        return moments_of(counts, "ns", absent)
    listed: list[object] = column.to_pylist()
    return listed


def words_of_array(column: pa.Array) -> Words:
    """Give labels, as `Part.words` does.

    Raises:
        TypeError: it holds lists or the like.
    """
    import pyarrow as pa

    column = _without_runs(column)
    if not pa.types.is_dictionary(column.type):
        try:
            column = column.dictionary_encode()
        except pa.ArrowNotImplementedError as error:
            raise TypeError(str(error)) from None
    texts: list[object] = column.dictionary.to_pylist()
    codes = column.indices.fill_null(len(texts)) if column.null_count else column.indices
    found = np.asarray(codes.cast(pa.int64()).to_numpy(zero_copy_only=False))
    # A dictionary may hold a text twice, or a null.
    places = {word: place for place, word in enumerate(dict.fromkeys([*texts, None]))}
    if len(places) <= len(texts):
        found = np.array([places[text] for text in [*texts, None]], np.int64)[found]
    return Words(found, list(places))


def cells_of_array(column: pa.Array) -> Cells:
    """Give values, as `Part.cells` does."""
    import pyarrow as pa

    column = _without_runs(column)
    if pa.types.is_dictionary(column.type) and _is_numeric(column.type.value_type):
        column = column.dictionary_decode()
    if _is_numeric(column.type):
        absent = _absent(column)
        if absent is not None:
            column = column.fill_null(0)
        return Cells(np.asarray(column.to_numpy(zero_copy_only=False)), absent)
    values = np.empty(len(column), dtype=object)
    for row, value in enumerate(column.to_pylist()):  # one by one, or numpy would look into lists
        values[row] = value
    absent = np.array([value is None for value in values], bool)  # a dictionary may hold nulls
    return Cells(values, absent if absent.any() else None)


def _is_numeric(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _without_runs(column: pa.Array) -> pa.Array:
    """Give a column that is encoded as runs row by row."""
    import pyarrow as pa

    if not pa.types.is_run_end_encoded(column.type):
        return column
    import pyarrow.compute as pc

    return pc.run_end_decode(column)


def _absent(column: pa.Array) -> npt.NDArray[np.bool_] | None:
    if not column.null_count:
        return None
    return np.asarray(column.is_null().to_numpy(zero_copy_only=False))
