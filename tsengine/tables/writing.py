"""Writing tables: part by part, each one commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NoReturn, TypeAlias

import numpy as np

from tsengine.errors import InvalidDataError, PartialWriteError
from tsengine.model import Int64Array, PointRules, WideBatch, WriteReceipt
from tsengine.staging import Staging
from tsengine.tables.form import Form
from tsengine.tables.parts import OpenTable, Part
from tsengine.tables.rows import Batch, Piece, pieces_of

Commit: TypeAlias = Callable[[Sequence[Batch]], WriteReceipt]
"""Commits batches as one; indices of receipts and errors are points over them in their order."""


def write_table(commit: Commit, table: OpenTable, form: Form, points_max: int) -> WriteReceipt:
    """Write a table, as `Engine.write_table` says.

    Args:
        commit: commits the batches of one part.
        table: the table.
        form: what its columns are.
        points_max: most points of a part, unless one row has more.
    """
    landed = _Landed(max(len(form.values), 1))
    parts = table.parts(form.part_rows(points_max), True)
    while (part := _next(parts, landed)) is not None:
        pieces: list[Piece] = []
        try:
            pieces += pieces_of(part, form)
        except InvalidDataError as error:
            landed.fail(error, np.array(error.indices, np.int64))
        except Exception as error:  # noqa: BLE001  # `fail` raises it
            landed.fail(error)
        try:
            receipt = commit([piece.batch for piece in pieces]) if pieces else WriteReceipt(0, 0)
        except InvalidDataError as error:
            landed.fail(error, _cells(pieces, np.array(error.indices, np.int64)))
        except Exception as error:  # noqa: BLE001  # `fail` raises it
            landed.fail(error)
        landed.add(receipt, _cells(pieces, np.array(receipt.indices, np.int64)), part.rows)
    return landed.receipt()


def stage(staging: Staging, batches: Sequence[Batch]) -> None:
    """Stage batches, as `Commit` counts their points.

    Raises:
        InvalidDataError: as by `Staging`.
    """
    for batch in batches:
        before = len(staging)
        try:
            if isinstance(batch, list):
                staging.add_points(batch)
            else:
                staging.add_batch(batch.grouped() if isinstance(batch, WideBatch) else batch)
        except InvalidDataError as error:
            error.indices = tuple(before + index for index in error.indices)
            raise


def write_wide(
    batch: WideBatch, rules: PointRules, commit: Callable[[WideBatch], WriteReceipt]
) -> WriteReceipt | None:
    """Judge and sort a batch once for all of its series, and commit it.

    Args:
        batch: at least one series, and one row.
        rules: what makes a point valid in the store.
        commit: stores it; indices are points by series, then time.

    Returns:
        The receipt, with indices in the order of the batch; None, and nothing is stored, where
        timestamps repeat.

    Raises:
        InvalidDataError: as `Engine.write_batch`.
    """
    rules.check_distinct_labels(batch.labels)
    rules.check_timestamps(batch.timestamps)
    found = batch.in_order()
    if found is None:
        return None
    ordered, order = found
    try:
        receipt = commit(ordered)
    except InvalidDataError as error:
        error.indices = tuple(sorted(_unordered(error.indices, order)))
        raise
    return replace(receipt, indices=tuple(sorted(_unordered(receipt.indices, order))))


def _unordered(indices: Sequence[int], order: Int64Array | None) -> list[int]:
    """Tell where points of an ordered batch stood before."""
    if order is None:
        return list(indices)
    points = np.array(indices, np.int64)
    rows = len(order)
    found: list[int] = (points // rows * rows + order[points % rows]).tolist()
    return found


class _Landed:
    """What of a table is stored, and what is to be said where the rest is not."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._rows = 0
        self._total = WriteReceipt(0, 0)
        self._reasons: dict[str, int] = {}
        self._indices: list[int] = []

    def add(self, receipt: WriteReceipt, cells: Int64Array, rows: int) -> None:
        """Count a part that is stored."""
        total = self._total
        self._indices += np.sort(cells + self._rows * self._columns).tolist()
        for reason, count in receipt.reasons.items():
            self._reasons[reason] = self._reasons.get(reason, 0) + count
        self._total = WriteReceipt(
            total.submitted + receipt.submitted,
            total.accepted + receipt.accepted,
            total.refused + receipt.refused,
            total.evicted + receipt.evicted,
        )
        self._rows += rows

    def receipt(self) -> WriteReceipt:
        total = self._total
        return WriteReceipt(
            total.submitted,
            total.accepted,
            total.refused,
            total.evicted,
            self._reasons,
            tuple(self._indices),
        )

    def fail(self, error: Exception, cells: Int64Array | None = None) -> NoReturn:
        """Raise what happened to the next part; `cells` of it are at fault."""
        if isinstance(error, InvalidDataError) and cells is not None:
            rows = np.unique(cells // self._columns) + self._rows
            error.indices = tuple(rows.tolist())
        if not self._rows:
            raise error
        raise PartialWriteError(
            f"the first {self._rows} rows of the table are stored, and those after them are not: "
            f"{error}",
            receipt=self.receipt(),
            rows=self._rows,
        ) from error


def _next(parts: Iterator[Part], landed: _Landed) -> Part | None:
    try:
        return next(parts, None)
    except Exception as error:  # noqa: BLE001  # `fail` raises it
        landed.fail(error)


def _cells(pieces: Sequence[Piece], points: Int64Array) -> Int64Array:
    """Tell at which cells of a part some points of its pieces stood."""
    if not len(points):
        return points
    ends = np.cumsum([len(piece.batch) for piece in pieces])
    of_piece = ends.searchsorted(points, "right")
    found = [
        piece.cells(points[of_piece == place] - (int(ends[place]) - len(piece.batch)))
        for place, piece in enumerate(pieces)
    ]
    return np.concatenate(found)
