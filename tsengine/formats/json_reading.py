"""JSON lines: one object a line, a key for each column, read row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice

from tsengine.errors import FormatError, InvalidDataError
from tsengine.formats.blocks import Block
from tsengine.formats.csv_reading import SAMPLE_ROWS
from tsengine.formats.intake import Intake, Judged
from tsengine.formats.mapping import Choices, ColumnMapping, label_of_column
from tsengine.formats.rows import RowReader
from tsengine.formats.text_reading import TextReader
from tsengine.formats.values import read_json
from tsengine.model import GroupedBatch

_BOM = b"\xef\xbb\xbf"


def object_of(line: bytes) -> Mapping[str, object] | None:
    """Give the object of a line; None for an empty one.

    Raises:
        InvalidDataError: it is none.
    """
    line = line.strip(b" \t\r\n")
    if not line:
        return None
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise InvalidDataError(f"not UTF-8 at byte {error.start}") from None
    value = read_json(text)
    if not isinstance(value, dict):
        raise InvalidDataError(f"a JSON {type(value).__name__}, where an object is right")
    return value


def sample_of(block: Block) -> tuple[list[str], list[Mapping[str, str]], frozenset[str]]:
    """Give the keys of the first rows, these rows as text, and the keys of numbers alone.

    Raises:
        FormatError: none is an object.
    """
    keys: dict[str, bool] = {}
    rows: list[Mapping[str, str]] = []
    for line in islice(block.data.removeprefix(_BOM).split(b"\n"), SAMPLE_ROWS):
        try:
            found = object_of(line)
        except InvalidDataError:
            continue
        if found is None:
            continue
        for key, value in found.items():
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            keys[key] = keys.get(key, True) and (is_number or value is None)
        rows.append(
            {
                key: str(value)
                for key, value in found.items()
                if isinstance(value, (str, int, float))
            }
        )
    if not rows:
        raise FormatError("none of the first lines is a JSON object")
    return list(keys), rows, frozenset(key for key, is_number in keys.items() if is_number)


class JsonReader(TextReader):
    """Reads JSON lines.

    Args:
        intake: judges the points.
        mapping: what each key is that the first rows have.
        choices: what the caller said; where that is not which keys are labels, later ones are.
    """

    def __init__(self, intake: Intake, mapping: ColumnMapping, choices: Choices) -> None:
        super().__init__(intake)
        self._mapping = mapping
        self._takes_more = choices.labels is None
        self._ignored = {mapping.time, *(value.column for value in mapping.values)}
        self._rows = RowReader(mapping, intake, is_typed=True)

    def fast(self, block: Block) -> list[GroupedBatch] | None:
        """Leave all to the other way: there is no faster one yet."""
        return None

    def slow(self, block: Block, *, is_last: bool) -> tuple[list[Judged], int]:
        """Read row by row, as `TextReader` says."""
        del is_last  # blocks end with whole lines
        points: list[Judged] = []
        data = block.data.removeprefix(_BOM) if block.line == 1 else block.data
        for line, text in enumerate(data.split(b"\n"), block.line):
            try:
                cells = object_of(text)
                if cells is not None:
                    if self._takes_more:
                        self._meet(cells)
                    points += self._rows.points(cells)
            except InvalidDataError as error:
                self.intake.rejects.add(line, str(error), text)
        return points, 0

    def _meet(self, cells: Mapping[str, object]) -> None:
        """Take keys that no row had so far for labels.

        Raises:
            InvalidDataError: one holds a number: it may be a value.
        """
        labels = self._mapping.labels
        new = [key for key in cells if key not in labels and key not in self._ignored]
        if not new:
            return
        for key in new:
            if not isinstance(cells[key], (str, type(None))) or not label_of_column(key):
                raise InvalidDataError(
                    f"key {key!r} is new in this row and no text; say whether it is a value or "
                    "a label"
                )
        more = {key: label_of_column(key) for key in new}
        names: Sequence[str] = [*labels.values(), *more.values(), *self._mapping.constants]
        if len(set(names)) < len(names):
            raise InvalidDataError(f"key {new[0]!r} is a label that is there already")
        self._mapping = replace(self._mapping, labels={**labels, **more})
        self._rows = RowReader(self._mapping, self.intake, is_typed=True)
