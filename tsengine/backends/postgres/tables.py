"""Tables: what a database says of one, and names as SQL takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from tsengine.backends.postgres.session import Session
from tsengine.errors import SchemaError, UnknownOptionError

TableName: TypeAlias = str | tuple[str, str]
"""A name, looked up on the search path; or a schema and a name. Neither is parsed: any
character means itself."""

NAME_BYTES_MAX: Final = 63
"""NAMEDATALEN less one: the server would cut a longer name off without a word."""

_COLUMNS: Final = """
    SELECT a.attname, a.atttypid::int8, format_type(a.atttypid, -1), c.relkind = 'p'
    FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
    WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attnum
"""


_HAS_KEY: Final = """
    SELECT EXISTS (
        SELECT FROM pg_index AS i
        CROSS JOIN LATERAL (
            SELECT array_agg(a.attname::text) AS names FROM pg_attribute AS a
            WHERE a.attrelid = i.indrelid
                AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
        ) AS k
        WHERE i.indrelid = to_regclass(%s) AND i.indisunique AND i.indisvalid AND i.indimmediate
            AND i.indpred IS NULL AND i.indexprs IS NULL
            AND k.names @> %s::text[] AND k.names <@ %s::text[]
    )
"""
"""What ON CONFLICT asks of an index: whole, on columns, and checked at once."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        name: as it is, not quoted.
        oid: its type.
        sql_type: its type as SQL, without a length.
    """

    name: str
    oid: int
    sql_type: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table, as far as it is written to.

    Attributes:
        columns: those asked for, in that order.
        is_partitioned: whether it has partitions, of which the server tells no system columns.
    """

    columns: tuple[Column, ...]
    is_partitioned: bool


def quoted(name: object) -> str:
    """Give a name as SQL takes it, whatever its characters.

    Raises:
        UnknownOptionError: no name can be like this.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise UnknownOptionError(f"{name!r} is no name of a table, a column or a schema")
    length = len(name.encode("utf-8", "surrogatepass"))
    if length > NAME_BYTES_MAX:
        raise UnknownOptionError(
            f"the name {name!r} has {length} bytes, and PostgreSQL takes {NAME_BYTES_MAX}"
        )
    return '"' + name.replace('"', '""') + '"'


def quoted_table(table: TableName) -> str:
    """Give the name of a table as SQL takes it.

    Raises:
        UnknownOptionError: it is no name, and no pair of a schema and a name.
    """
    if isinstance(table, tuple):
        if len(table) != 2:
            raise UnknownOptionError(f"{table!r} is no pair of a schema and the name of a table")
        return ".".join(map(quoted, table))
    return quoted(table)


def describe(session: Session, table: TableName, names: Sequence[str], key: Sequence[str]) -> Table:
    """Ask for a table and some of its columns.

    Args:
        session: in a transaction.
        table: its name.
        names: of the columns.
        key: those among them that are to be unique.

    Raises:
        SchemaError: there is no such table, or it has no such column or key.
    """
    rows = session.execute(_COLUMNS, [quoted_table(table)]).fetchall()
    there = {name: Column(name, oid, sql_type) for name, oid, sql_type, _ in rows}
    if not rows:
        hint = "; give (schema, name)" if isinstance(table, str) and "." in table else ""
        raise SchemaError(f"there is no table {table!r} that this user sees{hint}")
    missing = [name for name in names if name not in there]
    if missing:
        raise SchemaError(
            f"table {table!r} has no column {missing[0]!r}; it has {', '.join(sorted(there))}"
        )
    found = session.execute(_HAS_KEY, [quoted_table(table), list(key), list(key)]).fetchone()
    if found is None or not found[0]:
        raise SchemaError(
            f"table {table!r} has no unique index on just {', '.join(key)}; key= names the columns "
            "of one, all of them, that is neither partial nor deferrable"
        )
    return Table(tuple(there[name] for name in names), is_partitioned=rows[0][3])
