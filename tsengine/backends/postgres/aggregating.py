"""Aggregating by the server, where SQL means exactly what is asked.

That is counting, the least and the greatest number, the first and the last row, and sums of
integers. A float sum in SQL rounds at each row, ours does not; and what goes by the order of all
rows takes all rows: both go over a scan.

The server groups rows by series and number of the window; where windows begin is worked out
here, from the first row in each, since it may lie before the first int64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast

import numpy as np

from tsengine.aggregation import (
    Aggregation,
    Collector,
    Groups,
    Partials,
    Statistics,
    answer,
    refuse_objects,
    window_starts,
    with_edges,
)
from tsengine.backends.postgres.catalogue import KIND_SHIFT, Catalogue, Resolved
from tsengine.backends.postgres.packing import int8s, value_column
from tsengine.backends.postgres.session import Session
from tsengine.model import Int64Array, ValueArray, ValueKind
from tsengine.result import QueryResult

_PUSHED: Final = frozenset({"min", "max", "first", "last", "sum"})

_EVERY_MAX: Final = 1 << 61
"""Nanoseconds of a window up to which SQL computes its number within int64."""

_TOGETHER: Final = 256
"""Series of one statement, which bounds an answer by their windows."""

_ROWS: Final = 1_024
"""Rows that one statement looks up: of objects 64 MB at worst."""

_EXPRESSIONS: Final = {
    "rows": "int8send(count(*))",
    "first_at": "int8send(min(time))",
    "last_at": "int8send(max(time))",
    "high": "int8send(sum(integer >> 32)::bigint)",
    "low": "int8send(sum(integer & 4294967295)::bigint)",
}
_EXTREMES: Final = {
    ValueKind.FLOAT: "float8send(coalesce({}(value) FILTER (WHERE value <> 'NaN'), 'NaN'))",
    ValueKind.INT: "int8send({}(integer))",
}
_AT: Final = (
    "SELECT string_agg({0}, '' ORDER BY w.place),"
    " string_agg(int4send(octet_length(object)), '' ORDER BY w.place)"
    " FROM unnest(%s, %s) WITH ORDINALITY w(series, time, place) JOIN points p USING (series, time)"
)
_SEND: Final = {
    ValueKind.FLOAT: "float8send(value)",
    ValueKind.INT: "int8send(integer)",
    ValueKind.OBJECT: "object",
}


def can_push_down(asked: Aggregation, kinds: frozenset[ValueKind]) -> bool:
    """Whether the server can answer: exactly, and for these kinds of series."""
    return (
        asked.needs <= _PUSHED
        and (asked.every is None or asked.every <= _EVERY_MAX)
        and not ("sum" in asked.needs and ValueKind.FLOAT in kinds)
    )


def kinds_of(series: Resolved) -> frozenset[ValueKind]:
    """Give the kinds that there are among series."""
    found: list[int] = np.unique(series.numbers >> KIND_SHIFT).tolist()
    return frozenset(map(ValueKind, found))


def push_down(
    session: Session,
    catalogue: Catalogue,
    series: Resolved,
    asked: Aggregation,
    start: int,
    renew: Callable[[], None],
) -> QueryResult:
    """Aggregate, in a transaction of one snapshot.

    Args:
        session: in that transaction.
        catalogue: of the engine.
        series: which, in their order.
        asked: what `can_push_down` takes.
        start: earliest timestamp that retention shows, or that is asked for.
        renew: is called before each statement, and gives it its time.

    Raises:
        AggregationError: the values cannot be aggregated as asked.
    """
    kinds = series.numbers >> KIND_SHIFT
    groups = Groups(asked.group_by)
    collector = Collector()
    filled = np.zeros(len(series), bool)
    found: list[tuple[ValueKind, Int64Array, Statistics]] = []
    for kind in sorted(kinds_of(series)):
        places = np.flatnonzero(kinds == kind)
        for first in range(0, len(places), _TOGETHER):
            some = places[first : first + _TOGETHER]
            renew()
            table = _measure(session, kind, series.ids[some], asked, start)
            if len(table["rows"]):
                table_places = some[cast("Int64Array", table["place"])]
                filled[table_places] = True
                found.append((kind, table_places, table))
    group_of = np.zeros(len(series), np.int64)
    having = np.flatnonzero(filled).tolist()
    renew()
    names = catalogue.labels_of(session, series.ids[filled].tolist())
    for place, labels in zip(having, names, strict=True):
        if kinds[place] == ValueKind.OBJECT:
            refuse_objects(asked, labels)
        group_of[place] = groups.number(labels)
    for kind, table_places, table in found:
        measured = _statistics(session, kind, series.ids[table_places], table, asked, renew)
        first_at = cast("Int64Array", table["first_at"])
        last_at = cast("Int64Array", table["last_at"])
        with_edges(measured, asked, first_at, last_at, table_places)
        windows = (
            np.zeros(len(first_at), np.int64)
            if asked.every is None
            else window_starts(first_at, asked.every, asked.phase)
        )
        kind = ValueKind.INT if asked.only_counts else kind
        collector.add(kind, Partials(group_of[table_places], windows, measured))
    with np.errstate(all="ignore"):  # inf − inf is NaN, as in C
        return answer(asked, groups.labels, collector.tables())


def _measure(
    session: Session, kind: ValueKind, ids: Int64Array, asked: Aggregation, start: int
) -> Statistics:
    """Ask for a row for each series and window that has rows; `place` is that of the series."""
    wanted = {"place": "int8send(w.place - 1)"}
    wanted |= {name: _EXPRESSIONS[name] for name in ("rows", "first_at", "last_at")}
    if "sum" in asked.needs and kind is ValueKind.INT:
        wanted |= {name: _EXPRESSIONS[name] for name in ("high", "low")}
    if kind in _EXTREMES:
        wanted |= {
            name: _EXTREMES[kind].format(name) for name in ("min", "max") if name in asked.needs
        }
    inner = ", ".join(f"{expression} AS {name}_" for name, expression in wanted.items())
    outer = ", ".join(f"string_agg({name}_, '')" for name in wanted)
    cursor = session.cursor(binary=True)
    cursor.execute(
        f"SELECT {outer} FROM (SELECT {inner} FROM unnest(%s) WITH ORDINALITY w(id, place)"
        " JOIN points p ON p.series = w.id WHERE time >= %s AND time <= %s"
        f" GROUP BY w.place, {_window(asked)}) g".encode(),
        (int8s(ids), start, asked.end - 1),
    )
    row = cursor.fetchone()
    assert row is not None
    return {
        name: value_column(kind if name in ("min", "max") else ValueKind.INT, raw, None)
        for name, raw in zip(wanted, row, strict=True)
    }


def _window(asked: Aggregation) -> str:
    """Give the number of a row's window: the floor of (time − phase) / every, in int64."""
    every, phase = asked.every, asked.phase
    if every is None:
        return "()"
    number = f"time / {every} - (time %% {every} < 0)::integer"
    if phase:
        number += f" - ((time %% {every} + {every}) %% {every} < {phase})::integer"
    return number


def _statistics(
    session: Session,
    kind: ValueKind,
    ids: Int64Array,
    table: Statistics,
    asked: Aggregation,
    renew: Callable[[], None],
) -> Statistics:
    measured: Statistics = {
        name: table[name] for name in ("rows", "high", "low", "min", "max") if name in table
    }
    for name in ("first", "last"):
        if name in asked.needs:
            times = cast("Int64Array", table[f"{name}_at"])
            measured[name] = _values_at(session, kind, ids, times, renew)
    return measured


def _values_at(
    session: Session,
    kind: ValueKind,
    ids: Int64Array,
    times: Int64Array,
    renew: Callable[[], None],
) -> ValueArray:
    """Look up the values of rows that are there."""
    parts: list[ValueArray] = []
    for first in range(0, len(ids), _ROWS):
        some = slice(first, first + _ROWS)
        renew()
        cursor = session.cursor(binary=True)
        cursor.execute(_AT.format(_SEND[kind]).encode(), (int8s(ids[some]), int8s(times[some])))
        row = cursor.fetchone()
        assert row is not None
        parts.append(value_column(kind, *row))
    return cast("ValueArray", np.concatenate(parts))
