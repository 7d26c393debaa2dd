"""Series as a stream of Arrow record batches, made as they are asked for.

The stream is a capsule of the Arrow C interface, which polars, pandas, pyarrow, DuckDB and others
take; arro3 makes it, a package of some megabytes that needs none of them. Columns of numbers are
those of the answer, not copies, where a record batch has rows of one series.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from tsengine.errors import MissingDependencyError, ValueKindError
from tsengine.frames.long import TIME, VALUE, LabelColumn, joined, label_columns
from tsengine.frames.wide import WideColumn, wide_columns
from tsengine.model import Int64Array, SeriesBatch

if TYPE_CHECKING:
    from arro3.core import Array, DataType, RecordBatch, RecordBatchReader

BATCH_ROWS: Final = 1 << 16
"""Rows of a record batch: few enough to be made in a millisecond, enough to be worth the call."""

CELLS_MAX: Final = 1 << 22
"""Cells of a record batch of a wide table."""


def long_stream(batches: Sequence[SeriesBatch]) -> RecordBatchReader:
    """Give series as the stream that `QueryResult` describes.

    Raises:
        ValueKindError: their values have no one type.
        MissingDependencyError: arro3 is not installed.
    """
    _require_arro3()
    import arro3.core as ac

    labels = label_columns(batches)
    kind = _value_type(VALUE, [batch.values for batch in batches])
    encoded = ac.DataType.dictionary(ac.DataType.int32(), ac.DataType.string())
    schema = ac.Schema(
        [
            *(ac.Field(label.column, encoded, nullable=True) for label in labels),
            ac.Field(TIME, _time_type(), nullable=False),
            ac.Field(VALUE, kind, nullable=False),
        ]
    )

    def made() -> Iterator[RecordBatch]:
        words = [_words(label) for label in labels]
        for first, pieces in _gathered(batches):
            places = np.arange(first, first + len(pieces))
            rows = np.repeat(places, [len(piece) for piece in pieces])
            columns = [
                texts.take(ac.Array.from_numpy(_codes(label, rows)))
                for label, texts in zip(labels, words, strict=True)
            ]
            columns.append(_times(_one([piece.timestamps for piece in pieces])))
            columns.append(_array(_one([piece.values for piece in pieces]), kind))
            yield ac.RecordBatch.from_arrays(columns, schema=schema)

    return ac.RecordBatchReader.from_batches(schema, made())


def wide_stream(batches: Sequence[SeriesBatch]) -> RecordBatchReader:
    """Give series as a stream of one column of times and one each of values.

    Raises:
        ValueKindError: values of a series have no one type.
        MissingDependencyError: arro3 is not installed.
    """
    _require_arro3()
    import arro3.core as ac

    wide = wide_columns(batches)
    kinds = [
        _value_type(
            column.name,
            [column.values if column.absent is None else column.values[~column.absent]],
        )
        for column in wide.columns
    ]
    fields = [ac.Field(TIME, _time_type(), nullable=False)]
    for column, kind in zip(wide.columns, kinds, strict=True):
        fields.append(ac.Field(column.name, kind, nullable=column.absent is not None))
    schema = ac.Schema(fields)
    rows = min(max(CELLS_MAX // max(len(kinds), 1), 1), BATCH_ROWS)

    def made() -> Iterator[RecordBatch]:
        for start in range(0, len(wide.timestamps), rows):
            part = slice(start, start + rows)
            columns = [_times(wide.timestamps[part])]
            columns += [
                _wide_array(column, kind, part)
                for column, kind in zip(wide.columns, kinds, strict=True)
            ]
            yield ac.RecordBatch.from_arrays(columns, schema=schema)

    return ac.RecordBatchReader.from_batches(schema, made())


def _gathered(batches: Sequence[SeriesBatch]) -> Iterator[tuple[int, list[SeriesBatch]]]:
    """Cut long series and gather short ones to some rows; tell the place of the first series."""
    waiting: list[SeriesBatch] = []
    count = first = 0
    for place, batch in enumerate(batches):
        if count and count + len(batch) > BATCH_ROWS:
            yield first, waiting
            waiting, count = [], 0
        if not waiting:
            first = place
        if len(batch) <= BATCH_ROWS:
            waiting.append(batch)
            count += len(batch)
            continue
        for start in range(0, len(batch), BATCH_ROWS):
            part = slice(start, start + BATCH_ROWS)
            piece = SeriesBatch(batch.labels, batch.timestamps[part], batch.values[part])
            yield place, [piece]
    if waiting:
        yield first, waiting


def _one(columns: Sequence[npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
    return columns[0] if len(columns) == 1 else joined(columns, columns[0].dtype)


def _codes(label: LabelColumn, series: Int64Array) -> npt.NDArray[np.int32]:
    """Give the places of labels in `_words` for rows of some series: absent ones come last."""
    codes = label.codes[series]
    codes[codes < 0] = len(label.texts)
    return codes.astype(np.int32)


def _words(label: LabelColumn) -> Array:
    """Give the texts of a label, encoded, and a null behind them; rows are taken from it."""
    import arro3.core as ac

    plain = ac.Array([*label.texts, None], type=ac.DataType.string())
    return plain.cast(ac.DataType.dictionary(ac.DataType.int32(), ac.DataType.string()))


def _times(timestamps: npt.NDArray[np.generic]) -> Array:
    import arro3.core as ac

    return ac.Array.from_numpy(np.ascontiguousarray(timestamps)).cast(_time_type())


def _array(values: npt.NDArray[np.generic], kind: DataType) -> Array:
    import arro3.core as ac

    if values.dtype == object:
        return ac.Array(values.tolist(), type=kind)
    return ac.Array.from_numpy(np.ascontiguousarray(values))


def _wide_array(column: WideColumn, kind: DataType, part: slice) -> Array:
    import arro3.core as ac

    if column.absent is None or column.values.dtype == object:
        return _array(column.values[part], kind)
    # arro3 makes no array of a mask: places with nulls are taken first, then the values there.
    absent = column.absent[part]
    rows = np.arange(len(absent))
    rows[absent] = BATCH_ROWS
    return _array(column.values[part], kind).take(_places().take(ac.Array.from_numpy(rows)))


@lru_cache(maxsize=1)
def _places() -> Array:
    """Give the places of rows, and a null behind them."""
    import arro3.core as ac

    return ac.Array([*range(BATCH_ROWS), None], type=ac.DataType.int64())


def _time_type() -> DataType:
    import arro3.core as ac

    return ac.DataType.timestamp("ns", tz="UTC")


def _value_type(column: str, parts: Sequence[npt.NDArray[np.generic]]) -> DataType:
    """Find the type that holds all values of a column.

    Raises:
        ValueKindError: there is none.
    """
    import arro3.core as ac

    dtypes = {part.dtype for part in parts} or {np.dtype(np.float64)}
    if dtypes == {np.dtype(np.float64)}:
        return ac.DataType.float64()
    if dtypes == {np.dtype(np.int64)}:
        return ac.DataType.int64()
    types: set[type] = {
        float if dtype == np.float64 else int for dtype in dtypes - {np.dtype(object)}
    }
    types.update(type(value) for part in parts if part.dtype == object for value in part.tolist())
    found = {str: ac.DataType.string, bytes: ac.DataType.binary, bool: ac.DataType.bool}
    if len(types) == 1 and types <= found.keys():
        return found[types.pop()]()
    named = ", ".join(sorted(one.__name__ for one in types))
    raise ValueKindError(
        f"column {column!r} would hold values of {named}, for which Arrow has no one type here; "
        "query series of one kind apart, ask for wide=True, or for to_pandas(), which holds any"
    )


def _require_arro3() -> None:
    try:
        import arro3.core  # noqa: F401  # an optional package, imported when used
    except ImportError:
        raise MissingDependencyError(
            "the Arrow stream of a result needs arro3: pip install 'tsengine[frames]'"
        ) from None
