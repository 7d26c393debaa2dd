"""`tsengine stats`: how much a store holds, and what is owed to it."""

from __future__ import annotations

from collections.abc import Mapping

import click

from tsengine.cli.arguments import examples, format_option, store_argument
from tsengine.cli.output import Cell, Format, JsonCell, write_record
from tsengine.cli.stores import open_for_reading
from tsengine.cli.texts import json_text, size_text, timestamp_text
from tsengine.engine import EngineStats


@click.command(
    epilog=examples(
        "tsengine stats lmdb://metrics",
        "tsengine stats lmdb://metrics --format json",
    )
)
@store_argument
@format_option
def stats(store: str, form: Format | None) -> None:
    """Tell how much a store holds, and what is owed to it.

    Points, series, bytes, and what its backend tells. Of LMDB: runs, how many there are on each
    level, merges that are owed, bytes of blocks, deletes to apply, merged runs to sweep away. As a
    table, sizes are in units for people; in the other formats bytes are bytes.
    """
    with open_for_reading(store) as engine:
        found = engine.stats()
    write_record(fields_of(found), form, shown=_shown(found))


def fields_of(found: EngineStats) -> dict[str, Cell]:
    """Give what is told, by name."""
    last = found.last_write_ns
    fields: dict[str, Cell] = {
        "points": found.points,
        "points_exact": JsonCell(found.points_exact, "true" if found.points_exact else "false"),
        "series": found.series,
        "bytes": found.bytes,
        "bytes_per_point": found.bytes / found.points if found.points else None,
        "last_write": None if last is None else timestamp_text(last),
    }
    for name, value in found.details.items():
        fields[name] = _detail(value)
    return fields


def _detail(value: object) -> Cell:
    if value is None or isinstance(value, (str, float)) or type(value) is int:
        return value
    if isinstance(value, Mapping):
        plain = {str(key): item for key, item in value.items()}
        return JsonCell(plain, json_text(plain))
    return JsonCell(value, json_text(value))


def _shown(found: EngineStats) -> dict[str, str]:
    """Give what people read in place of bare numbers."""
    shown = {
        "points": f"{found.points:,}" if found.points_exact else f"at most {found.points:,}",
        "series": f"{found.series:,}",
        "bytes": size_text(found.bytes),
    }
    if found.points:
        shown["bytes_per_point"] = f"{found.bytes / found.points:.2f}"
    for name, value in found.details.items():
        if isinstance(value, Mapping):
            shown[name] = ", ".join(f"{key}: {value[key]}" for key in sorted(value))
        elif type(value) is int:
            shown[name] = size_text(value) if name.endswith("bytes") else f"{value:,}"
    return shown
