"""Arrow tables as sources: the long form that `QueryResult.to_pandas` gives.

A column `timestamp`, of Arrow timestamps or integer nanoseconds; a column `value`; every other
column is a label of that name, text, null where the series has no such label. `label_timestamp`
and `label_value` are the labels called `timestamp` and `value`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from tsengine.errors import BatchShapeError, InvalidDataError, MissingDependencyError
from tsengine.grouping import group_order
from tsengine.model import GroupedBatch, Int64Array, Labels, PointLike

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS: Final = 1 << 19
"""Rows of a table that are looked at together: what one commit takes."""

_ROWS_ONE_BY_ONE: Final = 1 << 16
"""The same where each becomes an object."""


def is_table(item: object) -> bool:
    """Whether something offers its columns as Arrow does."""
    return hasattr(item, "__arrow_c_stream__") or hasattr(item, "__arrow_c_array__")


def table_rows(table: object) -> int | None:
    """Give the number of rows, None for a stream."""
    rows: object = getattr(table, "num_rows", None)
    if rows is None and hasattr(table, "__len__"):
        rows = len(table)
    return rows if isinstance(rows, int) else None


def table_batches(table: object) -> Iterator[GroupedBatch | list[PointLike]]:
    """Give the rows of a table in their order, as columns, or as points where some are null.

    Raises:
        MissingDependencyError: pyarrow is not installed.
        BatchShapeError: it has not the columns it needs.
    """
    try:
        import pyarrow as pa  # an optional package, imported when used
    except ImportError:
        raise MissingDependencyError(
            "tables are copied through pyarrow: pip install 'tsengine[arrow]'"
        ) from None
    if hasattr(table, "__arrow_c_stream__"):
        reader = pa.RecordBatchReader.from_stream(table)
        names = _label_names(reader.schema.names)
        for record in reader:
            yield from _record_batches(record, names)
        return
    record = pa.record_batch(table)
    yield from _record_batches(record, _label_names(record.schema.names))


def _label_names(columns: list[str]) -> dict[str, str]:
    """Give the label that each column holds, by column.

    Raises:
        BatchShapeError: there is no time and value, or two columns of one name.
    """
    if columns.count("timestamp") != 1 or columns.count("value") != 1:
        raise BatchShapeError(
            "a table is copied that has one column timestamp and one column value, and labels in "
            f"the others; this one has {columns}"
        )
    names = {
        column: column.removeprefix("label_")
        if column in ("label_timestamp", "label_value")
        else column
        for column in columns
        if column not in ("timestamp", "value")
    }
    if len(set(names.values())) != len(columns) - 2:
        raise BatchShapeError(f"two columns of a table hold the same label: {columns}")
    return names


def _record_batches(
    record: pa.RecordBatch, names: dict[str, str]
) -> Iterator[GroupedBatch | list[PointLike]]:
    import pyarrow as pa

    values = record.column("value")
    timestamps = _timestamps(record.column("timestamp"))
    is_columnar = (
        timestamps is not None
        and not values.null_count
        and (pa.types.is_floating(values.type) or pa.types.is_integer(values.type))
    )
    rows = _ROWS if is_columnar else _ROWS_ONE_BY_ONE
    for start in range(0, record.num_rows, rows):
        part = record.slice(start, rows)
        ranks, labels = _series(part, names)
        if is_columnar and timestamps is not None and set(map(type, labels)) <= {Labels}:
            yield _grouped(
                ranks,
                labels,
                timestamps[start : start + rows],
                values.slice(start, rows).to_numpy(zero_copy_only=False),
            )
            continue
        moments = part.column("timestamp")
        if timestamps is not None:
            listed: list[object] = timestamps[start : start + rows].tolist()
        else:
            listed = _listed(moments)
        for at in range(0, part.num_rows, _ROWS_ONE_BY_ONE):
            few = slice(at, at + _ROWS_ONE_BY_ONE)
            named = [labels[rank] for rank in ranks[few].tolist()]
            given = part.column("value").slice(at, _ROWS_ONE_BY_ONE).to_pylist()
            yield list(zip(named, listed[few], given, strict=True))  # type: ignore[arg-type]  # judged


def _timestamps(column: pa.Array) -> Int64Array | None:
    """Give a column of timestamps as int64[n] nanoseconds; None where each is to be judged."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.null_count:
        return None
    if pa.types.is_timestamp(column.type):
        try:
            column = pc.cast(column, pa.timestamp("ns", column.type.tz))
        except pa.ArrowInvalid:
            return None  # some lie out of bounds
        return np.asarray(column.view(pa.int64()).to_numpy(zero_copy_only=False))
    if pa.types.is_integer(column.type) and not pa.types.is_uint64(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False)).astype(np.int64, copy=False)
    return None


def _listed(column: pa.Array) -> list[object]:
    """Give each timestamp as nanoseconds, and what is none as it is, for its judge."""
    import pyarrow as pa

    factors = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
    if not pa.types.is_timestamp(column.type):
        return list(column.to_pylist())
    factor = factors[column.type.unit]
    return [
        None if moment is None else moment * factor
        for moment in column.view(pa.int64()).to_pylist()
    ]


def _series(part: pa.RecordBatch, names: dict[str, str]) -> tuple[Int64Array, list[object]]:
    """Number the series of rows: int64[n], and the labels by number.

    What no labels can be made of stands there as a dict: the points of it are rejected.
    """
    import pyarrow as pa

    ranks = np.zeros(part.num_rows, np.int64)
    texts: list[list[object]] = []
    for column in names:
        array = part.column(column)
        if not pa.types.is_dictionary(array.type):
            array = array.dictionary_encode()
        words = [*array.dictionary.to_pylist(), None]
        codes = array.indices.fill_null(len(words) - 1).cast(pa.int64()).to_numpy()
        ranks, chosen, codes_chosen = _combine(ranks, codes, len(words))
        texts = [[column_texts[place] for place in chosen] for column_texts in texts]
        texts.append([words[code] for code in codes_chosen])
    count = int(ranks.max()) + 1 if len(ranks) else 0
    return ranks, [_labels(names, [text[rank] for text in texts]) for rank in range(count)]


def _combine(
    ranks: Int64Array, codes: Int64Array, words: int
) -> tuple[Int64Array, list[int], list[int]]:
    """Number the pairs that occur; give also rank and code of each."""
    pairs, numbers = np.unique(ranks * words + codes, return_inverse=True)
    return numbers, (pairs // words).tolist(), (pairs % words).tolist()


def _labels(names: dict[str, str], texts: list[object]) -> object:
    """Make the labels of a series, or give what it has instead of any."""
    given = {
        name: text for name, text in zip(names.values(), texts, strict=True) if text is not None
    }
    try:
        return Labels(given) or given  # type: ignore[arg-type]  # judged there
    except InvalidDataError:
        return given


def _grouped(
    ranks: Int64Array,
    labels: list[object],
    timestamps: Int64Array,
    values: np.ndarray[tuple[int], np.dtype[np.generic]],
) -> GroupedBatch:
    """Group rows by series."""
    order, distinct, offsets = group_order(ranks)
    return GroupedBatch(
        [labels[rank] for rank in distinct.tolist()],
        offsets,
        timestamps[order],
        values[order],  # type: ignore[arg-type]  # of any number's dtype; the target's judge casts
    )
