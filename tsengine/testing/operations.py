"""Operations as data: what a store is asked to do, told to an engine, a buffer or the model.

The state machine and the agreement test speak of stores in these words, so that a failure
shrinks to a few of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from hypothesis import strategies as st

from tsengine.engine import Engine
from tsengine.errors import InvalidDataError
from tsengine.model import GroupedBatch, Int64Array, Labels, ValueArray, ValueKind, WriteReceipt
from tsengine.testing.reference import Column, ReferenceModel
from tsengine.testing.strategies import (
    Point,
    Selected,
    aggregations,
    array_of,
    columns,
    points,
    ranges,
    selectors,
)


@dataclass(frozen=True, slots=True)
class Write:
    """Write points, in one call."""

    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class WriteColumns:
    """Write columns of one kind, in one call."""

    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a range of what is selected."""

    selected: Selected
    start: int | None
    end: int | None


@dataclass(frozen=True, slots=True)
class Read:
    """Compare what a range of a selection holds."""

    selected: Selected
    start: int | None
    end: int | None


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Compare an aggregation of a range of a selection.

    Attributes:
        asked: as `strategies.aggregations` has it, in pairs.
    """

    selected: Selected
    start: int | None
    end: int | None
    asked: tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Compact:
    """Fold what can be folded."""


@dataclass(frozen=True, slots=True)
class Reopen:
    """Close and open again, where the backend persists."""


Operation: TypeAlias = "Write | WriteColumns | Delete | Read | Aggregate | Compact | Reopen"
"""One thing that a store is asked to do."""

Outcome: TypeAlias = "WriteReceipt | int | tuple[type[InvalidDataError], tuple[int, ...]]"
"""What a call gave: a receipt, a number of series, or an error's type and indices."""

Series: TypeAlias = "Sequence[tuple[Labels, ValueKind]]"


def operations(series: Series, *, count_max: int = 10) -> st.SearchStrategy[list[Operation]]:
    """Sequences of operations over series of known kinds; writes are the most."""
    names = [labels for labels, _ in series]
    write = points(series).map(lambda given: Write(tuple(given)))
    write_columns = columns(series).map(lambda given: WriteColumns(tuple(given)))
    bounded = st.tuples(selectors(names), ranges())
    read = bounded.map(lambda given: Read(given[0], *given[1]))
    delete = bounded.map(lambda given: Delete(given[0], *given[1]))
    aggregate = st.tuples(selectors(names), ranges(), aggregations()).map(
        lambda given: Aggregate(given[0], given[1][0], given[1][1], tuple(given[2].items()))
    )
    one: st.SearchStrategy[Operation] = st.one_of(
        write, write, write_columns, write_columns, delete, read, aggregate,
        st.just(Compact()), st.just(Reopen()),
    )  # fmt: skip
    return st.lists(one, min_size=1, max_size=count_max)


def grouped(given: Sequence[Column]) -> GroupedBatch:
    """Give columns of one kind as a GroupedBatch."""
    offsets: Int64Array = np.cumsum([0, *(len(column.timestamps) for column in given)])
    values: ValueArray = np.concatenate([array_of(column) for column in given])
    times = np.array([moment for column in given for moment in column.timestamps], np.int64)
    return GroupedBatch([column.labels for column in given], offsets, times, values)


def write_to_engine(engine: Engine, operation: Write | WriteColumns) -> Outcome:
    """Do a write in one call, by `write`, `write_series` or `write_batch` as it fits."""
    try:
        if isinstance(operation, Write):
            return engine.write(operation.points)
        if len(operation.columns) == 1:
            column = operation.columns[0]
            return engine.write_series(column.labels, list(column.timestamps), array_of(column))
        return engine.write_batch(grouped(operation.columns))
    except InvalidDataError as error:
        return type(error), error.indices


def write_to_model(model: ReferenceModel, operation: Write | WriteColumns) -> Outcome:
    """Do the same in the reference model."""
    try:
        if isinstance(operation, Write):
            return model.write(operation.points)
        return model.write_columns(operation.columns)
    except InvalidDataError as error:
        return type(error), error.indices
