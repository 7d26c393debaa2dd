"""Tables that offer the Arrow interfaces, read through pyarrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tsengine.errors import BatchShapeError, LabelsError
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
        BatchShapeError: it offers one column, and no table.
    """
    pa = import_pyarrow()
    try:
        return _opened(table)
    except pa.ArrowInvalid as error:
        raise BatchShapeError(f"{type(table).__name__} is no table of Arrow: {error}") from error


def _opened(table: object) -> OpenTable:
    import pyarrow as pa

    if hasattr(table, "__arrow_c_stream__"):
        reader = pa.RecordBatchReader.from_stream(table)
        return OpenTable(
            list(reader.schema.names), None, lambda rows, gathers: _parts(reader, rows, gathers)
        )
    record = pa.record_batch(table)
    return OpenTable(
        list(record.schema.names), None, lambda rows, gathers: _parts([record], rows, gathers)
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
        return words_of_array(self._column(column))

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
    """Give labels, as `Part.words` does."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    if not pa.types.is_dictionary(column.type):
        try:
            column = column.dictionary_encode()
        except pa.ArrowNotImplementedError:
            raise LabelsError(
                f"a column of type {column.type} was to be read as labels, which are text"
            ) from None
    words: list[object] = [*column.dictionary.to_pylist(), None]
    codes = column.indices.fill_null(len(words) - 1) if column.null_count else column.indices
    return Words(np.asarray(codes.cast(pa.int64()).to_numpy(zero_copy_only=False)), words)


def cells_of_array(column: pa.Array) -> Cells:
    """Give values, as `Part.cells` does."""
    import pyarrow as pa

    absent = _absent(column)
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        if absent is not None:
            column = column.fill_null(0)
        return Cells(np.asarray(column.to_numpy(zero_copy_only=False)), absent)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    values = np.empty(len(column), dtype=object)
    for row, value in enumerate(column.to_pylist()):  # one by one, or numpy would look into lists
        values[row] = value
    return Cells(values, absent)


def _absent(column: pa.Array) -> npt.NDArray[np.bool_] | None:
    if not column.null_count:
        return None
    return np.asarray(column.is_null().to_numpy(zero_copy_only=False))
