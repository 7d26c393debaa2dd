"""What tests of formats share: files read without a store, one way or the other."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from tsengine import Engine, FileAccessError, FormatError, GroupedBatch, Labels, ValueKind
from tsengine.formats.blocks import Block
from tsengine.formats.intake import Intake, batches_of
from tsengine.formats.rejects import Rejects
from tsengine.formats.text_reading import TextReader
from tsengine.model import PointRules

Rows: TypeAlias = dict[str, list[tuple[int, object]]]
"""Time and value of the rows of each series, in their order; floats as their bits."""


def intake(rejects: Rejects, *, integers: ValueKind = ValueKind.FLOAT) -> Intake:
    """Give the intake of a store that is empty and takes any time."""
    return Intake(PointRules(min_timestamp=-(2**63), integers=integers), lambda _: None, rejects)


def rows_of(batches: Iterable[GroupedBatch]) -> Rows:
    """Give the rows of batches by series."""
    rows: Rows = {}
    for batch in batches:
        for series in batch.groups():
            for _, moment, value in series.points():
                rows.setdefault(series.labels.id, []).append((moment, exact(value)))
    return rows


def exact(value: object) -> object:
    """Give a value such that equal ones are equal to the bit and of one type."""
    if isinstance(value, float):
        return "float", struct.pack("<d", value)
    return type(value).__name__, value


def slowly(reader: TextReader, data: bytes) -> Rows:
    """Read row by row."""
    points, left = reader.slow(Block(data, 1), is_last=True)
    assert left == 0
    return rows_of(batches_of(points))


def quickly(reader: TextReader, data: bytes) -> Rows | None:
    """Read at once; None where the reader says that it cannot."""
    found = reader.fast(Block(data, 1))
    return None if found is None else rows_of(found)


class Pieces(io.BytesIO):
    """A file of these bytes, whole."""

    failure: FormatError | FileAccessError | None = None


def stored(engine: Engine) -> Rows:
    """Give all rows of a store."""
    rows: Rows = {}
    for batch in engine.scan():
        for labels, moment, value in batch.points():
            rows.setdefault(labels.id, []).append((moment, exact(value)))
    return rows


def file(folder: Path, name: str, data: bytes | str) -> str:
    """Write a file; give its path."""
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


__all__ = ["Labels", "Pieces", "Rows", "exact", "file", "intake", "quickly", "rows_of", "slowly"]
