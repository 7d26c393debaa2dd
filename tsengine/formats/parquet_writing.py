"""Writing Parquet: the columns of the long form, as tables are copied, typed.

Labels are dictionary-encoded text, null where a series has none; `timestamp` is a timestamp of
nanoseconds in UTC; `value` float64, `value_int` int64, `value_object` MessagePack, of which one is
not null. Every value of a store is carried, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO, Final

import numpy as np

from tsengine.errors import MissingDependencyError
from tsengine.formats.arrow_columns import arrow_int64s
from tsengine.formats.mapping import TIME_COLUMN_TYPED, label_column
from tsengine.formats.text_writing import KIND_COLUMNS, kind_of
from tsengine.model import Int64Array, SeriesBatch, ValueKind, pack_object

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS: Final = 1 << 19
"""Rows of a row group, 8 MB of numbers; and objects count eightfold."""

_OBJECT_ROWS: Final = 8


class ParquetWriter:
    """Writes Parquet.

    Args:
        stream: where to.
        names: of all labels.
        kinds: of all values.

    Raises:
        MissingDependencyError: pyarrow is not installed.
    """

    def __init__(self, stream: BinaryIO, names: Sequence[str], kinds: Sequence[ValueKind]) -> None:
        try:
            import pyarrow as pa  # an optional package, imported when used
            from pyarrow import parquet
        except ImportError:
            raise MissingDependencyError(
                "Parquet is written through pyarrow: pip install 'tsengine[arrow]'"
            ) from None
        self._names = names
        self._kinds = kinds
        self._pieces: list[SeriesBatch] = []
        self._rows = 0
        types = {
            ValueKind.FLOAT: pa.float64(),
            ValueKind.INT: pa.int64(),
            ValueKind.OBJECT: pa.binary(),
        }
        text = pa.dictionary(pa.int32(), pa.string())
        self._schema = pa.schema(
            [
                *((label_column(name), text) for name in names),
                (TIME_COLUMN_TYPED, pa.timestamp("ns", "UTC")),
                *((KIND_COLUMNS[kind], types[kind]) for kind in kinds),
            ]
        )
        self._writer = parquet.ParquetWriter(stream, self._schema)

    def begin(self) -> None:
        """Write what comes before all rows, which is written already."""

    def write(self, batch: SeriesBatch) -> None:
        """Write the rows of a series, together with others."""
        most = _ROWS if batch.values.dtype.kind in "fi" else _ROWS // _OBJECT_ROWS
        for start in range(0, len(batch), most):
            rows = slice(start, start + most)
            part = SeriesBatch(batch.labels, batch.timestamps[rows], batch.values[rows])
            self._pieces.append(part)
            self._rows += len(part) * (_ROWS // most)
            if self._rows >= _ROWS:
                self._write_group()

    def end(self) -> None:
        """Write what is left, and the end of the file."""
        self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        import pyarrow as pa

        pieces, self._pieces, self._rows = self._pieces, [], 0
        if not pieces:
            return
        sizes = np.array([len(piece) for piece in pieces])
        columns = [self._label_column(name, pieces, sizes) for name in self._names]
        moments = arrow_int64s(np.concatenate([piece.timestamps for piece in pieces]))
        columns.append(moments.view(pa.timestamp("ns", "UTC")))
        columns += [self._value_column(kind, pieces) for kind in self._kinds]
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))

    def _label_column(
        self, name: str, pieces: Sequence[SeriesBatch], sizes: Int64Array
    ) -> pa.Array:
        import pyarrow as pa

        words: dict[str, int] = {}
        codes: list[int | None] = []
        for piece in pieces:
            text = piece.labels.get(name)
            codes.append(None if text is None else words.setdefault(text, len(words)))
        places = arrow_int64s(np.repeat(np.arange(len(pieces)), sizes))
        indices = pa.array(codes, pa.int32()).take(places)
        return pa.DictionaryArray.from_arrays(indices, pa.array(list(words), pa.string()))

    def _value_column(self, kind: ValueKind, pieces: Sequence[SeriesBatch]) -> pa.Array:
        import pyarrow as pa

        arrays: list[pa.Array] = []
        field = self._schema.field(KIND_COLUMNS[kind])
        for piece in pieces:
            if kind_of(piece) is not kind:
                arrays.append(pa.nulls(len(piece), field.type))
            elif kind is ValueKind.OBJECT:
                packed = [pack_object(value) for value in piece.values.tolist()]
                arrays.append(pa.array(packed, field.type))
            else:
                buffer = pa.py_buffer(np.ascontiguousarray(piece.values))
                arrays.append(pa.Array.from_buffers(field.type, len(piece), [None, buffer]))
        return pa.concat_arrays(arrays)
