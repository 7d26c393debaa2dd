"""Rows of tables as batches: what `Engine.write_table` commits and `copy` takes in.

In a long table each row is a point. In a wide one each cell is, and cells are counted row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from tsengine.errors import InvalidDataError, LabelsError
from tsengine.grouping import group_order
from tsengine.model import (
    INT64_MAX,
    INT64_MIN,
    GroupedBatch,
    Int64Array,
    Labels,
    PointLike,
    TimestampLike,
    ValueArray,
    WideBatch,
    timestamp,
    timestamp_array,
)
from tsengine.tables.form import LONG_ROWS_MAX, VALUE, Form, form_of
from tsengine.tables.opening import open_table
from tsengine.tables.parts import BoolArray, Cells, Part

Batch: TypeAlias = "WideBatch | GroupedBatch | list[PointLike]"

ROWS_ONE_BY_ONE: Final = 1 << 16
"""Rows that are looked at together where each becomes an object."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Points of a part of a table.

    Attributes:
        batch: the points.
        cells: gives the cell of the part at which a point of the batch stood: a row of a long
            table; row times columns of values, plus the column, in a wide one.
    """

    batch: Batch
    cells: Callable[[Int64Array], Int64Array]


def table_batches(table: object) -> Iterator[GroupedBatch | list[PointLike]]:
    """Give the rows of a long table in their order, as columns, or as points where some are null.

    It has the columns `timestamp` and `value`, and labels in all others, as `QueryResult` gives
    it.

    Raises:
        MissingDependencyError: it is no pandas frame, and pyarrow is not installed.
        BatchShapeError: it has not the columns it needs.
    """
    opened = open_table(table)
    form = form_of(opened.columns, index=opened.index, values=VALUE)
    for part in opened.parts(LONG_ROWS_MAX, False):
        for piece in _long(part, form, *_series(part, form, {})):
            yield cast("GroupedBatch | list[PointLike]", piece.batch)  # as it is long


def pieces_of(part: Part, form: Form) -> Iterator[Piece]:
    """Give the points of a part of a table.

    Raises:
        TimestampError: in a wide table a time is null or none; `indices` are cells.
        LabelsError: a row has labels that are none; `indices` are cells.
    """
    if form.is_long:
        ranks, labels = _series(part, form, form.values[0].labels)
        _check_labels(form, ranks, labels, 0)
        return _long(part, form, ranks, labels)
    return _wide(part, form) if form.values else iter(())


def _long(part: Part, form: Form, ranks: Int64Array, labels: Sequence[object]) -> Iterator[Piece]:
    times = part.moments(form.time)
    if isinstance(times, list):
        times = _converted(times)
    cells = part.cells(form.values[0].name)
    kept = _kept(Cells(cells.values, None), form)  # a null is told of and not left out
    if kept is not None:
        rows = np.flatnonzero(kept)
        ranks = ranks[rows]
        times = times[rows] if isinstance(times, np.ndarray) else [times[row] for row in rows]
        cells = Cells(cells.values[rows], None if cells.absent is None else cells.absent[rows])
    else:
        rows = np.arange(len(ranks))
    if not len(rows):
        return
    good = _are_columnar(times, cells, ranks, labels)
    if good.any():
        own = np.flatnonzero(good)
        order, distinct, offsets = group_order(ranks[own])
        taken = own[order]
        names = [labels[rank] for rank in distinct.tolist()]
        if isinstance(times, list):
            times_taken = np.array([times[row] for row in taken.tolist()], np.int64)
        else:
            times_taken = times[taken]
        values = cast("ValueArray", cells.values[taken])  # any number's; the target's judge casts
        batch = GroupedBatch(cast("list[Labels]", names), offsets, times_taken, values)
        yield Piece(batch, lambda positions: rows[taken[positions]])
    yield from _one_by_one(times, cells, ranks, labels, rows, np.flatnonzero(~good))


def _are_columnar(
    times: Int64Array | list[object], cells: Cells, ranks: Int64Array, labels: Sequence[object]
) -> BoolArray:
    """Tell which rows of a long table are numbers at a time in a series: bool[n].

    They go as columns, whatever stands beside them: one by one integers would be of another kind.
    """
    if not cells.is_numeric:
        return np.zeros(len(ranks), bool)
    good = np.ones(len(ranks), bool) if cells.absent is None else ~cells.absent
    if isinstance(times, list):
        good &= [type(time) is int and INT64_MIN <= time <= INT64_MAX for time in times]
    wrong = [rank for rank, made in enumerate(labels) if type(made) is not Labels]
    return good & ~np.isin(ranks, wrong) if wrong else good


def _one_by_one(
    times: Int64Array | list[object],
    cells: Cells,
    ranks: Int64Array,
    labels: Sequence[object],
    rows: Int64Array,
    chosen: Int64Array,
) -> Iterator[Piece]:
    """Give some rows of a long table as points, for the target to judge.

    Args:
        times: of the table.
        cells: likewise.
        ranks: int64[n], the series of each row.
        labels: by rank.
        rows: int64[n], where each stood in the part.
        chosen: int64[k], places of those to be given.
    """
    for start in range(0, len(chosen), ROWS_ONE_BY_ONE):
        few = chosen[start : start + ROWS_ONE_BY_ONE]
        given = cells.values[few].tolist()
        if cells.absent is not None:
            for row in np.flatnonzero(cells.absent[few]).tolist():
                given[row] = None
        named = [labels[rank] for rank in ranks[few].tolist()]
        moments = [times[row] for row in few] if isinstance(times, list) else times[few].tolist()
        points = cast("list[PointLike]", list(zip(named, moments, given, strict=True)))
        yield Piece(points, _shifted(rows[few]))


def _converted(moments: list[object]) -> Int64Array | list[object]:
    """Convert what `timestamp` takes; what it does not is left for the judge of points."""
    try:
        return timestamp_array(moments)
    except InvalidDataError as error:
        wrong = set(error.indices)
    return [
        moment if row in wrong else timestamp(cast("TimestampLike", moment))
        for row, moment in enumerate(moments)
    ]


def _shifted(rows: Int64Array) -> Callable[[Int64Array], Int64Array]:
    return lambda positions: rows[positions]


def _wide(part: Part, form: Form) -> Iterator[Piece]:
    count = len(form.values)
    try:
        times = timestamp_array(part.moments(form.time))
    except InvalidDataError as error:
        error.indices = tuple(row * count for row in error.indices)
        raise
    if form.labels:
        yield from _labelled(part, form, times)
        return
    names = [column.series(form.shared) for column in form.values]
    matrix = None if form.skip_nan else part.matrix(form.columns)
    if matrix is not None:
        wide = WideBatch(names, times, _series_major(matrix))
        yield Piece(wide, _wide_cells(np.arange(count), len(times), count))
        return
    # What shares the whole column of times goes as one, the rest as columns of its own.
    full: list[tuple[int, npt.NDArray[np.float64]]] = []
    rest: dict[str, list[tuple[int, Int64Array | None, npt.NDArray[np.generic]]]] = {}
    for place, column in enumerate(form.values):
        cells = part.cells(column.name)
        values, kept = cells.values, _kept(cells, form)
        if values.dtype.kind == "f" and values.dtype.itemsize <= 8 and kept is None:
            full.append((place, values.astype(np.float64, copy=False)))
            continue
        rows = None if kept is None else np.flatnonzero(kept)
        values = values if rows is None else values[rows]
        form_key = values.dtype.str if cells.is_numeric else "O"
        rest.setdefault(form_key, []).append((place, rows, values))
    if full:
        places = np.array([place for place, _ in full])
        wide = WideBatch([names[place] for place, _ in full], times, [values for _, values in full])
        yield Piece(wide, _wide_cells(places, len(times), count))
    for columns in rest.values():
        yield _joined(columns, names, times)


def _wide_cells(places: Int64Array, rows: int, count: int) -> Callable[[Int64Array], Int64Array]:
    return lambda positions: (positions % rows) * count + places[positions // rows]


def _joined(
    columns: Sequence[tuple[int, Int64Array | None, npt.NDArray[np.generic]]],
    names: Sequence[Labels],
    times: Int64Array,
) -> Piece:
    """Join columns of one dtype, each with the rows that it has."""
    all_rows = np.arange(len(times))
    rows = [all_rows if own is None else own for _, own, _ in columns]
    places = np.array([place for place, _, _ in columns])
    offsets = np.cumsum([0, *map(len, rows)])
    joined = np.concatenate(rows)
    cells = joined * len(names) + np.repeat(places, np.diff(offsets))
    batch = GroupedBatch(
        [names[place] for place, _, _ in columns],
        offsets,
        times[joined],
        cast("ValueArray", np.concatenate([values for _, _, values in columns])),
    )
    return Piece(batch, lambda positions: cells[positions])


def _labelled(part: Part, form: Form, times: Int64Array) -> Iterator[Piece]:
    """Give the cells of a wide table whose rows have labels of their own."""
    count = len(form.values)
    for place, column in enumerate(form.values):
        ranks, labels = _series(part, form, column.labels)
        _check_labels(form, ranks, labels, place)
        cells = part.cells(column.name)
        kept = _kept(cells, form)
        rows = np.arange(len(ranks)) if kept is None else np.flatnonzero(kept)
        order, distinct, offsets = group_order(ranks[rows])
        rows = rows[order]
        batch = GroupedBatch(
            cast("list[Labels]", [labels[rank] for rank in distinct.tolist()]),
            offsets,
            times[rows],
            cast("ValueArray", cells.values[rows]),
        )
        if len(rows):
            yield Piece(batch, _scaled(rows, count, place))


def _check_labels(form: Form, ranks: Int64Array, labels: Sequence[object], place: int) -> None:
    """Check that the labels of rows are some.

    Raises:
        LabelsError: `indices` are the cells of a column of values.
    """
    wrong = [rank for rank, made in enumerate(labels) if type(made) is not Labels]
    if not wrong:
        return
    rows = np.flatnonzero(np.isin(ranks, wrong))
    raise LabelsError(
        f"columns {list(form.labels)} are read as labels, which are text, and at least one; row "
        f"{rows[0]} has {labels[int(ranks[rows[0]])]!r}; name other columns by labels=, or leave "
        "the rows out",
        indices=(rows * len(form.values) + place).tolist(),
    )


def _scaled(rows: Int64Array, count: int, place: int) -> Callable[[Int64Array], Int64Array]:
    return lambda positions: rows[positions] * count + place


def _kept(cells: Cells, form: Form) -> BoolArray | None:
    """Which cells are points; None for all."""
    kept = None if cells.absent is None else ~cells.absent
    if form.skip_nan and cells.values.dtype.kind in "fO":
        values: npt.NDArray[np.generic] = cells.values
        is_nan = (
            np.isnan(cast("npt.NDArray[np.float64]", values))
            if values.dtype.kind == "f"
            else np.array([isinstance(one, float) and one != one for one in values.tolist()], bool)
        )
        if is_nan.any():
            kept = ~is_nan if kept is None else kept & ~is_nan
    return kept


def _series_major(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Turn float64[n, k] into float64[k, n] with each series in one piece."""
    if matrix.strides[0] == matrix.itemsize:
        return matrix.T
    rows, count = matrix.shape
    turned = np.empty((count, rows))
    for start in range(0, rows, _TILE):  # half the time of one go, which misses every cache
        turned[:, start : start + _TILE] = matrix[start : start + _TILE].T
    return turned


_TILE: Final = 256


def _series(part: Part, form: Form, own: Mapping[str, str]) -> tuple[Int64Array, list[object]]:
    """Number the series of rows: int64[n], and the labels by number.

    What no labels can be made of stands there as a dict: the points of it are rejected.

    Args:
        part: the rows.
        form: tells the columns of labels.
        own: labels that all of them have beside those and the shared ones.
    """
    ranks = np.zeros(part.rows, np.int64)
    texts: list[list[object]] = []
    for column in form.labels:
        codes, words = part.words(column)
        pairs, ranks = _numbered(ranks * len(words) + codes)
        chosen = (pairs // len(words)).tolist()
        texts = [[column_texts[place] for place in chosen] for column_texts in texts]
        texts.append([words[code] for code in (pairs % len(words)).tolist()])
    count = int(ranks.max()) + 1 if len(ranks) else 0
    always = {**form.shared, **own}
    names = list(form.labels.values())
    return ranks, [_labels(always, names, [text[rank] for text in texts]) for rank in range(count)]


def _numbered(pairs: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Give the distinct ones of some numbers from 0 on, ascending, and the place of each there.

    Numbers that reach not far are looked up rather than sorted: a tenth of the time.
    """
    reach = int(pairs.max(initial=0)) + 1
    if reach > 4 * len(pairs) + 1_024:
        distinct, places = np.unique(pairs, return_inverse=True)
        return distinct, places.astype(np.int64, copy=False)
    occurs = np.zeros(reach, bool)
    occurs[pairs] = True
    return np.flatnonzero(occurs), (np.cumsum(occurs) - 1)[pairs]


def _labels(always: Mapping[str, str], names: Sequence[str], texts: Sequence[object]) -> object:
    """Make the labels of a series, or give what it has instead of any."""
    given: dict[str, object] = dict(always)
    given.update((name, text) for name, text in zip(names, texts, strict=True) if text is not None)
    try:
        return Labels(given) or given  # type: ignore[arg-type]  # judged there
    except InvalidDataError:
        return given
