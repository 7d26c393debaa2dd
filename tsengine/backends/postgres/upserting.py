"""Upserting: a batch of rows into a table, in one transaction and one ordered statement.

The rows are copied into a temporary table that goes with the transaction, and from there:

1. Of rows with one key one is kept, by the server's own idea of equal keys.
2. Rows that are in the table as they are, to the bit, are passed over: they are neither
   rewritten nor locked.
3. The others are inserted in the order of their keys, so that two writers cannot deadlock; where
   somebody was faster the conflict is settled, again only if that changes something.

What was inserted and what updated is counted by the statement itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from tsengine.backends.postgres.binary import HEADER, NULL, TRAILER, rows_of_fields
from tsengine.backends.postgres.fields import fields_of, staged_type
from tsengine.backends.postgres.row_source import RowBatch
from tsengine.backends.postgres.session import Session
from tsengine.backends.postgres.tables import Table, TableName, quoted, quoted_table
from tsengine.errors import DataRefusedError, InvalidDataError, UnknownOptionError

OnConflict = Literal["update", "ignore", "error"]

_STAGED: Final = 'pg_temp."tsengine_staged"'

_PLANNING: Final = (
    "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; "
    "SET LOCAL enable_seqscan = off; SET LOCAL jit = off"
)
"""The planner knows nothing of a table that was filled just now, and would as soon read the whole
target for a small batch: each key is looked up by the index that the key has anyway."""


@dataclass(frozen=True, slots=True)
class Upsert:
    """What is to be done with rows.

    Attributes:
        table: into which table.
        columns: names of the columns of the rows.
        key: names of those that tell rows apart; a unique index has just these.
        on_conflict: what a row does whose key is there.
        update: names of those that a row overwrites.
        touch: names of columns that are set to the time of the transaction where a row is
            inserted or overwritten; what the rows have for them is not taken.
    """

    table: TableName
    columns: tuple[str, ...]
    key: tuple[str, ...]
    on_conflict: OnConflict
    update: tuple[str, ...]
    touch: tuple[str, ...]

    @classmethod
    def check(
        cls,
        table: TableName,
        columns: Sequence[str],
        key: Sequence[str],
        on_conflict: OnConflict,
        *,
        update: Sequence[str] | None,
        preserve: Sequence[str],
        touch: Sequence[str],
    ) -> Upsert:
        """Check what a caller asks for.

        Raises:
            UnknownOptionError: it makes no sense.
        """
        quoted_table(table)
        for what, names in (("key", key), ("update", update or ()), ("preserve", preserve)):
            if isinstance(names, str):
                raise UnknownOptionError(f"{what}={names!r} is one name; give a list of names")
            odd = [name for name in names if name not in columns]
            if odd or len(set(names)) != len(names):
                raise UnknownOptionError(
                    f"{what}={list(names)!r} is not made of columns of the rows, each once; these "
                    f"are {', '.join(columns)}"
                )
        if isinstance(touch, str) or set(touch) & {*key, *preserve, *(update or ())}:
            raise UnknownOptionError(
                f"touch={touch!r} is no list of names that key, update and preserve do not have"
            )
        if not key:
            raise UnknownOptionError("key is empty; it names the columns of a unique index")
        if len(set(columns)) != len(columns):
            raise UnknownOptionError(f"columns={list(columns)!r} has a name twice")
        if on_conflict not in ("update", "ignore", "error"):
            raise UnknownOptionError(
                f"on_conflict={on_conflict!r} is none of update, ignore, error"
            )
        if on_conflict != "update" and (update is not None or preserve):
            raise UnknownOptionError(f"update and preserve are not for on_conflict={on_conflict!r}")
        left = {*key, *touch, *preserve}
        chosen = columns if update is None else update
        both = [name for name in chosen if name in left and update is not None]
        if both:
            raise UnknownOptionError(f"{both[0]!r} is in update, and in key, touch or preserve")
        return cls(
            table,
            tuple(name for name in columns if name not in touch),
            tuple(key),
            on_conflict,
            tuple(name for name in chosen if name not in left),
            tuple(touch),
        )


@dataclass(frozen=True, slots=True)
class Landed:
    """What a batch came to, if its transaction is committed.

    Attributes:
        inserted, updated, folded: rows, as in `BulkUpsertReport`.
        transaction: number of the transaction.
        server: when the server was started; numbers of transactions may come again only
            after a crash.
    """

    inserted: int
    updated: int
    folded: int
    transaction: str
    server: str


class Statements:
    """The SQL of an upsert.

    Args:
        upsert: what is to be done.
        target: what the database says of the table, and of the columns of the rows.
    """

    def __init__(self, upsert: Upsert, target: Table) -> None:
        columns = target.columns
        self._columns = columns
        staged = [f"s{number}" for number in range(len(columns))]
        definitions = ", ".join(
            f"{name} {staged_type(column)}" for name, column in zip(staged, columns, strict=True)
        )
        self._prepare = f"{_PLANNING}; CREATE TEMP TABLE {_STAGED} ({definitions}) ON COMMIT DROP"
        self._copy = f"COPY {_STAGED} FROM STDIN (FORMAT BINARY)"
        self._upsert = _upsert_sql(upsert, target, staged)
        self._insert = ""
        if upsert.on_conflict == "update" and target.is_partitioned:
            # What is new cannot be told from xmax there. It is inserted by itself, and counted;
            # then it is there as it is, and the other statement passes over it.
            new_ones = replace(upsert, on_conflict="ignore")
            self._insert = _upsert_sql(new_ones, target, staged, newest="ctid DESC")
        self._key = [upsert.columns.index(name) for name in upsert.key]

    def encode(self, batch: RowBatch, places: Sequence[int], *, is_arrow: bool) -> bytes:
        """Give the stream of a batch.

        Args:
            batch: the rows.
            places: where the columns stand in it.
            is_arrow: whether JSON comes as text.

        Raises:
            DataRefusedError: a value does not fit; `indices` counts the rows of all batches.
        """
        try:
            fields = [
                fields_of(batch.columns[place], column, json_texts=is_arrow)
                for place, column in zip(places, self._columns, strict=True)
            ]
            for number in self._key:
                nulls = [row for row, found in enumerate(fields[number]) if found == NULL]
                if nulls:
                    raise DataRefusedError(
                        f"column {self._columns[number].name!r} is of the key, and NULL is no key",
                        indices=nulls,
                    )
        except InvalidDataError as error:
            error.indices = tuple(batch.start + row for row in error.indices)
            raise
        return HEADER + rows_of_fields(fields) + TRAILER

    def run(self, session: Session, stream: bytes, rows: int) -> Landed:
        """Upsert a batch within a transaction that has begun.

        Args:
            session: in that transaction.
            stream: as `encode` gave it.
            rows: how many it holds.
        """
        session.execute(self._prepare)
        cursor = session.cursor()
        with cursor.copy(self._copy) as copy:
            copy.write(stream)
        new = session.execute(self._insert).fetchone() if self._insert else None
        answer = session.execute(self._upsert).fetchone()
        assert answer is not None  # it is an aggregate
        inserted, updated, distinct, transaction, server = answer
        return Landed(new[0] if new else inserted, updated, rows - distinct, transaction, server)


def _upsert_sql(upsert: Upsert, target: Table, staged: Sequence[str], *, newest: str = "") -> str:
    """Give the statement that brings staged rows into the table; see the module.

    Args:
        upsert: what is to be done.
        target: the table.
        staged: names of its columns among the staged rows.
        newest: the order in which of staged rows with one key the first stays; by default what
            fits `on_conflict`.
    """
    columns = target.columns
    table = quoted_table(upsert.table)
    # The table may have columns of the same names, which would go before these.
    place = {name: f"given.{at}" for name, at in zip(upsert.columns, staged, strict=True)}
    key = ", ".join(place[name] for name in upsert.key)
    staged_key = ", ".join(staged[upsert.columns.index(name)] for name in upsert.key)
    casts = ", ".join(
        name if staged_type(column) == column.sql_type else f"{name}::{column.sql_type} AS {name}"
        for name, column in zip(staged, columns, strict=True)
    )
    names = ", ".join(quoted(name) for name in (*upsert.columns, *upsert.touch))
    values = ", ".join((*place.values(), *("now()" for _ in upsert.touch)))
    counted = (
        "count(*) FILTER (WHERE is_new), count(*) FILTER (WHERE NOT is_new), "
        "(SELECT count(*) FROM given), "
        "pg_current_xact_id()::text, pg_postmaster_start_time()::text FROM written"
    )
    if upsert.on_conflict == "error":
        return (
            f"WITH given AS MATERIALIZED (SELECT {casts} FROM {_STAGED}), "
            f"written AS (INSERT INTO {table} ({names}) SELECT {values} FROM given "
            f"ORDER BY {key} RETURNING true AS is_new) SELECT {counted}"
        )
    same_key = " AND ".join(f"there.{quoted(name)} = {place[name]}" for name in upsert.key)
    new = "true"
    if upsert.on_conflict == "ignore" or not upsert.update:
        newest, passed, settle = newest or "ctid", same_key, "NOTHING"
    else:
        newest = "ctid DESC"
        there, given, excluded = (
            ", ".join(prefix + form for form in forms)
            for prefix, forms in (
                ("there.", [quoted(name) for name in upsert.update]),
                ("", [place[name] for name in upsert.update]),
                ("excluded.", [quoted(name) for name in upsert.update]),
            )
        )
        # *= compares the bytes, and takes NULLs for equal: −0 is not 0, and a type need not
        # have an operator =. Without the cast it would be applied column by column.
        passed = f"{same_key} AND ROW({there})::record *= ROW({given})::record"
        changes = [f"{quoted(name)} = excluded.{quoted(name)}" for name in upsert.update]
        changes += [f"{quoted(name)} = now()" for name in upsert.touch]
        differs = f"ROW({there})::record *<> ROW({excluded})::record"
        settle = f"UPDATE SET {', '.join(changes)} WHERE {differs}"
        # A row that was overwritten carries the lock that was taken for it.
        new = "false" if target.is_partitioned else "there.xmax = 0"
    conflict = ", ".join(quoted(name) for name in upsert.key)
    return (
        f"WITH given AS MATERIALIZED (SELECT DISTINCT ON ({staged_key}) {casts} FROM {_STAGED} "
        f"ORDER BY {staged_key}, {newest}), "
        f"written AS (INSERT INTO {table} AS there ({names}) SELECT {values} FROM given "
        f"WHERE NOT EXISTS (SELECT FROM {table} AS there WHERE {passed}) ORDER BY {key} "
        f"ON CONFLICT ({conflict}) DO {settle} RETURNING {new} AS is_new) SELECT {counted}"
    )
