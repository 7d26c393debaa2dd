"""Sources: what can be copied, as batches and points in one order.

An item of a source is a point, a `SeriesBatch`, a `GroupedBatch`, or a table: what offers the
Arrow interfaces. All else is taken for a point, and the target's judge says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Protocol, TypeAlias, cast, runtime_checkable

import numpy as np

from tsengine.engine import Engine
from tsengine.errors import BatchShapeError, UnknownOptionError
from tsengine.model import (
    GroupedBatch,
    Labels,
    PointLike,
    SeriesBatch,
    TimestampLike,
    timestamp_array,
    timestamp_range,
)
from tsengine.result import QueryResult
from tsengine.selectors import SelectorLike, to_selector
from tsengine.staging import check_shape
from tsengine.tables import is_table, table_batches, table_rows


@runtime_checkable
class ArrowTable(Protocol):
    """What offers its columns as Arrow does: tables of pyarrow, frames of polars and pandas."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Give the columns as a stream of record batches."""


Item: TypeAlias = "PointLike | SeriesBatch | GroupedBatch | ArrowTable"
"""What an iterable source yields."""

CopySource: TypeAlias = (
    "Engine | SeriesBatch | GroupedBatch | ArrowTable | Iterable[Item] | AsyncIterable[Item]"
)
"""What can be copied; an `Item` is a point, a batch or a table."""


@dataclass(frozen=True, slots=True)
class Source:
    """A source, ready to be read.

    Attributes:
        items: yields its items; engines are read from one snapshot, taken at the first.
        is_sorted: whether all points of a series come together.
        is_own: whether nobody else changes the arrays that it yields.
        points_total: how many points it has, at most; None where it does not know.
    """

    items: Iterable[object] | AsyncIterable[object]
    is_sorted: bool = False
    is_own: bool = False
    points_total: int | None = None


def source_of(
    given: CopySource,
    selector: SelectorLike,
    start: TimestampLike | None,
    end: TimestampLike | None,
    *,
    counts: bool,
) -> Source:
    """Find out how to read what a caller gives, and how many points it has where that is asked.

    Raises:
        UnknownOptionError: it cannot be read, or a selection is asked of what is no engine.
        InvalidQueryError: a bad selector or range.
        NotOpenError: the engine is not open.
    """
    if isinstance(given, Engine):
        to_selector(selector)
        timestamp_range(start, end)
        given._check_open()
        counts = counts and selector is None and start is None and end is None
        return Source(
            _Scan(given, selector, start, end),
            is_sorted=True,
            is_own=True,
            points_total=given.stats().points if counts else None,
        )
    if selector is not None or start is not None or end is not None:
        raise UnknownOptionError(
            "selector, start and end select from an engine; from an iterable, leave out what is "
            "not to be copied"
        )
    if isinstance(given, QueryResult):
        return Source(given, is_sorted=True, points_total=given.rows)
    if isinstance(given, (SeriesBatch, GroupedBatch)):
        return Source([given], points_total=len(given))
    if is_table(given):
        return Source([given], points_total=table_rows(given))
    if isinstance(given, (str, bytes)) or not isinstance(given, (Iterable, AsyncIterable)):
        raise UnknownOptionError(
            f"source {given!r} is no engine, batch, table or iterable of points; a store is "
            "opened first, by tsengine.open(url)"
        )
    return Source(given)


class _Scan:
    """The scan of an engine, begun by whoever iterates."""

    def __init__(
        self,
        engine: Engine,
        selector: SelectorLike,
        start: TimestampLike | None,
        end: TimestampLike | None,
    ) -> None:
        self._arguments = selector, start, end
        self._engine = engine

    def __iter__(self) -> Iterator[SeriesBatch | GroupedBatch]:
        return self._engine.scan_groups(*self._arguments)


def batches_of(item: object) -> Iterator[GroupedBatch | SeriesBatch | list[PointLike]]:
    """Give an item that is no single point as batches of the right shape, or lists of points.

    Raises:
        BatchShapeError: its columns do not fit together.
        TimestampError: what stands for timestamps is none.
    """
    if isinstance(item, SeriesBatch):
        timestamps = timestamp_array(item.timestamps)
        if len(timestamps) != len(item.values):
            raise BatchShapeError(
                f"{len(timestamps)} timestamps do not fit {len(item.values)} values; one each is "
                "right"
            )
        if not len(timestamps):
            return
        if _are_labels([item.labels]) and _is_column(item.values):
            yield SeriesBatch(item.labels, timestamps, item.values)
            return
        # Masked values, lists, no labels: each point is judged for itself.
        values = cast("Iterable[object]", item.values)
        if hasattr(values, "tolist"):
            values = values.tolist()
        yield list(zip(repeat(item.labels), timestamps.tolist(), values, strict=False))
    elif isinstance(item, GroupedBatch):
        if not all(map(_is_array, (item.offsets, item.timestamps, item.values))):
            raise BatchShapeError("offsets, timestamps and values of a GroupedBatch are arrays")
        check_shape(item)
        if not len(item):
            return
        if _are_labels(item.labels) and _is_column(item.values):
            yield item
            return
        for series in item.groups():
            yield from batches_of(series)
    else:
        yield from table_batches(item)


def _are_labels(labels: Iterable[object]) -> bool:
    return set(map(type, labels)) <= {Labels}


def _is_array(column: object) -> bool:
    return isinstance(column, np.ndarray)


def _is_column(values: object) -> bool:
    """Whether values can be joined with others without a look at each."""
    return type(values) is np.ndarray and values.ndim == 1 and values.dtype.kind in "fiubOU"
