"""Statements that store points: one for each value kind and duplicate policy.

What a policy does stands here as SQL, to the bit as `duplicates.fold` does it:

- a row that would stay what it is is not written anew, but where its value is one that SQL calls
  equal to another: -0 and 0, and all NaN, are told apart by their bytes;
- to SQL NaN is greater than all numbers, which makes it lose under `min`; under `max` it has to
  be told;
- SQL refuses a float sum that overflows, and ours is an infinity.
"""

from __future__ import annotations

import functools
from typing import Final

from tsengine.duplicates import DuplicatePolicy
from tsengine.model import ValueKind

COLUMNS: Final = {
    ValueKind.FLOAT: "value",
    ValueKind.INT: "integer",
    ValueKind.OBJECT: "object",
}
"""The column of `points` that holds the values of a kind."""

TYPES: Final = {
    ValueKind.FLOAT: "double precision",
    ValueKind.INT: "bigint",
    ValueKind.OBJECT: "bytea",
}

INCOMING: Final = "tsengine_incoming"
"""Temporary tables that a large commit is copied into, one a kind; they go with it."""

_NEGATIVE_ZERO: Final = "decode('8000000000000000', 'hex')"
_OTHER_BYTES: Final = "float8send(points.value) <> float8send(excluded.value)"

_WHERE: Final = {
    (DuplicatePolicy.LAST, ValueKind.FLOAT): (
        "points.value <> excluded.value OR "
        f"((excluded.value = 0 OR excluded.value = 'NaN') AND {_OTHER_BYTES})"
    ),
    (DuplicatePolicy.LAST, ValueKind.INT): "points.integer <> excluded.integer",
    (DuplicatePolicy.LAST, ValueKind.OBJECT): "points.object <> excluded.object",
    (DuplicatePolicy.MIN, ValueKind.FLOAT): (
        "excluded.value < points.value OR (excluded.value = 0 AND points.value = 0 AND "
        f"float8send(excluded.value) = {_NEGATIVE_ZERO} AND {_OTHER_BYTES})"
    ),
    (DuplicatePolicy.MIN, ValueKind.INT): "excluded.integer < points.integer",
    (DuplicatePolicy.MAX, ValueKind.FLOAT): (
        "excluded.value <> 'NaN' AND (points.value = 'NaN' OR excluded.value > points.value OR "
        "(excluded.value = 0 AND points.value = 0 AND "
        f"float8send(points.value) = {_NEGATIVE_ZERO} AND {_OTHER_BYTES}))"
    ),
    (DuplicatePolicy.MAX, ValueKind.INT): "excluded.integer > points.integer",
}
"""When a stored row is replaced by one that comes."""

# Two numbers overflow only where both are large; there their halves can be added, exactly, and
# the sum of those tells. NaN is greater than 'Infinity', and so not among them.
_LARGE: Final = "abs({0}.value) >= 1e290 AND abs({0}.value) < 'Infinity'"
_FLOAT_SUM: Final = (
    f"CASE WHEN {_LARGE.format('points')} AND {_LARGE.format('excluded')} AND "
    "abs(points.value / 2 + excluded.value / 2) >= 8.98846567431158e307::float8 "
    "THEN sign(points.value) * 'Infinity'::float8 ELSE points.value + excluded.value END"
)
"""8.98846567431158e307 is 2¹⁰²³, from which on the double of a float64 is none."""


_SLOTS: Final = 64

_NOTE_WRITE: Final = (
    f"WITH noted AS (INSERT INTO writes VALUES (pg_backend_pid() %% {_SLOTS}, %s)"
    " ON CONFLICT (slot) DO UPDATE"
    " SET last_write = greatest(writes.last_write, excluded.last_write)) "
)
"""Two sessions share a slot in 64 cases; the second then waits for the commit of the first."""


@functools.cache
def insert(kind: ValueKind, policy: DuplicatePolicy, *, copied: bool, notes: bool) -> bytes:
    """Give the statement that stores rows, which come sorted by series and time, each key once.

    Args:
        kind: of the values.
        policy: of the store.
        copied: whether they are in the temporary table; else they are three arrays.
        notes: whether it notes when that was, its first parameter, as the last of a commit does:
            a statement of its own would cost a round trip.
    """
    before = _NOTE_WRITE if notes else ""
    column = COLUMNS[kind]
    # A temporary table is read from its beginning to its end, never by several processes: rows
    # are locked in the order of their keys, as everybody locks them, without sorting again.
    source = (
        f"SELECT series, time, {column} FROM pg_temp.{INCOMING}_{column}"
        if copied
        else "SELECT * FROM unnest(%s, %s, %s)"
    )
    return (
        f"{before}INSERT INTO points (series, time, {column}) {source}{_conflict(kind, policy)}"
    ).encode()


def _conflict(kind: ValueKind, policy: DuplicatePolicy) -> str:
    column = COLUMNS[kind]
    if policy is DuplicatePolicy.ERROR:
        return ""  # a repeated key is an error
    if policy is DuplicatePolicy.FIRST:
        return " ON CONFLICT (series, time) DO NOTHING"
    new = f"excluded.{column}"
    where = ""
    if policy is DuplicatePolicy.SUM:
        new = _FLOAT_SUM if kind is ValueKind.FLOAT else f"points.{column} + {new}"
    else:
        where = f" WHERE {_WHERE[policy, kind]}"
    return f" ON CONFLICT (series, time) DO UPDATE SET {column} = {new}{where}"


@functools.cache
def create_incoming(kind: ValueKind) -> bytes:
    """Give the statement that makes the temporary table."""
    column = COLUMNS[kind]
    return (
        f"CREATE TEMPORARY TABLE {INCOMING}_{column} (series bigint, time bigint, {column} "
        f"{TYPES[kind]}) ON COMMIT DROP"
    ).encode()


@functools.cache
def copy_incoming(kind: ValueKind) -> bytes:
    """Give the statement that copies into it."""
    column = COLUMNS[kind]
    return (
        f"COPY pg_temp.{INCOMING}_{column} (series, time, {column}) FROM STDIN (FORMAT binary)"
    ).encode()


@functools.cache
def select_stored(kind: ValueKind) -> bytes:
    """Give the statement that reads what is stored under keys, two arrays; each row once."""
    return (
        f"SELECT DISTINCT ON (series, time) series, time, p.{COLUMNS[kind]}"
        " FROM unnest(%s, %s) w(series, time) JOIN points p USING (series, time)"
        " ORDER BY series, time"
    ).encode()
