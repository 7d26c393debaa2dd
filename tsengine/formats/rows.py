"""Rows: cells under columns, read one row at a time into points, with a reason where that fails."""

from __future__ import annotations

import json
from collections.abc import Mapping

from tsengine.errors import InvalidDataError, TimestampError, ValueKindError
from tsengine.formats.columns import LabelsMaker
from tsengine.formats.intake import Given, Intake, Judged
from tsengine.formats.mapping import ColumnMapping, ValueColumn
from tsengine.formats.times import UNITS
from tsengine.formats.values import ValueForm, read_value


class RowReader:
    """Makes points of rows by a mapping.

    Args:
        mapping: what each column is.
        intake: judges the points.
        is_typed: whether cells are what JSON has, where text is text; else all are text.
    """

    def __init__(self, mapping: ColumnMapping, intake: Intake, *, is_typed: bool = False) -> None:
        self._mapping = mapping
        self._is_typed = is_typed
        self._intake = intake
        self._maker = LabelsMaker(list(mapping.labels.values()), mapping.constants)

    def points(self, cells: Mapping[str, object]) -> list[Judged]:
        """Give the points of a row.

        Args:
            cells: by column: text, or what JSON has; None and empty text are nothing.

        Raises:
            InvalidDataError: a cell is bad, or there is no value.
        """
        mapping = self._mapping
        moment = cells.get(mapping.time)
        if moment is None or moment == "":
            raise TimestampError(f"no time in column {mapping.time}")
        timestamp = self._timestamp(moment)
        texts = tuple(_label_text(column, cells.get(column)) for column in mapping.labels)
        given: list[Given] = []
        for column in mapping.values:
            cell = cells.get(column.column)
            if cell is None or (cell == "" and not self._is_value(column)):
                continue
            labels = self._maker.labels(column.metric, texts)
            value = self._value(column, cell)
            given.append(Given(labels, timestamp, value, opens_int=column.form is ValueForm.INT))
        if not given:
            names = ", ".join(column.column for column in mapping.values)
            raise ValueKindError(f"no value in column {names}")
        return self._intake.judge(given)

    def _is_value(self, column: ValueColumn) -> bool:
        """Whether an empty text in a column is a value, and not the absence of one."""
        if self._is_typed:
            return True
        return column.form is ValueForm.TEXT and len(self._mapping.values) == 1

    def _value(self, column: ValueColumn, cell: object) -> object:
        try:
            if not isinstance(cell, str):
                return _typed_value(cell, column.form)
            if self._is_typed and column.form is ValueForm.JSON:
                return cell
            return read_value(cell, column.form)
        except InvalidDataError as error:
            raise type(error)(f"column {column.column}: {error}") from None

    def _timestamp(self, moment: object) -> int:
        form = self._mapping.time_form
        if isinstance(moment, str):
            return form.read(moment)
        if isinstance(moment, (int, float)) and not isinstance(moment, bool):
            if form.form in UNITS:
                return form.read(repr(moment))
            raise TimestampError(f"{moment!r} is a number, and times are read as {form.form}")
        raise TimestampError(f"{moment!r} is no time")


def _label_text(column: str, cell: object) -> str | None:
    if cell is None or isinstance(cell, str):
        return cell
    if isinstance(cell, (bool, int, float)):
        return json.dumps(cell)
    raise InvalidDataError(f"a list or map in column {column} is no label")


def _typed_value(cell: object, form: ValueForm) -> object:
    """Give a value that JSON has a type for."""
    is_number = isinstance(cell, (int, float)) and not isinstance(cell, bool)
    match form:
        case ValueForm.JSON:
            return cell
        case ValueForm.TEXT:
            raise ValueKindError(f"{json.dumps(cell)[:80]} is no text")
        case ValueForm.INT if isinstance(cell, int) and is_number:
            return cell
        case ValueForm.FLOAT if is_number:
            return read_value(repr(cell), form)
        case ValueForm.AUTO if is_number:
            return cell
    raise ValueKindError(f"{json.dumps(cell)[:80]} is no {form.value} value")
