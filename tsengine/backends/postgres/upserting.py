"""Upserting: a batch of rows into a table, in one transaction and one ordered statement.

The rows come as parameters, a binary array for each column, and so need no temporary table:

1. Of rows with one key one is kept, by the server's own idea of equal keys.
2. Rows that are in the table as they are, to the bit, are passed over: they are neither
   rewritten nor locked.
3. The others are inserted in the order of their keys, so that two writers cannot deadlock; where
   somebody was faster the conflict is settled, again only if that changes something.

What was inserted and what updated is counted by the statement itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from tsengine.backends.postgres.binary import NULL, BinaryArray
from tsengine.backends.postgres.fields import field_type, fields_of
from tsengine.backends.postgres.row_source import RowBatch
from tsengine.backends.postgres.session import Session
from tsengine.backends.postgres.tables import Column, Table, TableName, quoted, quoted_table
from tsengine.errors import (
    BatchTooLargeError,
    DataRefusedError,
    InvalidDataError,
    UnknownOptionError,
)

OnConflict = Literal["update", "ignore", "error"]

BYTES_MAX: Final = 256 << 20
"""Most bytes of a batch: a message to the server ends at 1 GiB, and we hold it three times."""

_ROWS: Final = "\0"
"""Stands for the rows in a statement until that is done: no name has it."""

_PLANNING: Final = (
    "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; "
    "SET LOCAL enable_seqscan = off; SET LOCAL jit = off"
)
"""For a small batch the planner would as soon read the whole target, where its statistics are
old: each key is looked up by the index that the key has anyway."""

LIFE: Final = (
    "(SELECT pg_postmaster_start_time()::text || coalesce(' ' || stats_reset::text, '') "
    "FROM pg_stat_bgwriter)"
)
"""Tells one life of a server from the next. Where one process of it crashes it recovers without
being started anew, and hands out numbers of transactions that were lost once more; but statistics
begin again. That they are reset by hand makes us careful in vain."""

_IDENTITY: Final = f"SELECT pg_current_xact_id()::text, {LIFE}"


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
        server: the life of the server, as `LIFE` tells it; numbers of transactions may come
            again in another.
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

    Attributes:
        may_race: whether somebody who inserts a key of ours at the same time makes `run` fail by
            a unique violation, unless it is careful.
    """

    def __init__(self, upsert: Upsert, target: Table) -> None:
        self._columns = target.columns
        self._key = [upsert.columns.index(name) for name in upsert.key]
        parts = _Parts.of(upsert, target)
        self._insert = ""
        self.may_race = False
        if upsert.on_conflict == "error":
            self._upsert = parts.insert_all()
        elif upsert.on_conflict == "ignore" or not upsert.update:
            self._upsert = parts.insert_new("nth", careful=False)
            self._careful = parts.insert_new("nth", careful=True)
            self.may_race = True
        else:
            self._upsert = parts.upsert(is_partitioned=target.is_partitioned)
            if target.is_partitioned:
                # What is new cannot be told from xmax there. It is inserted by itself, and
                # counted; then it is there as it is, and the other statement passes over it.
                self._insert = parts.insert_new("nth DESC", careful=True)

    def encode(
        self, batch: RowBatch, places: Sequence[int], *, is_arrow: bool
    ) -> list[BinaryArray]:
        """Give the parameters of a batch, one a column.

        Args:
            batch: the rows.
            places: where the columns stand in it.
            is_arrow: whether JSON comes as text.

        Raises:
            DataRefusedError: a value does not fit; `indices` counts the rows of all batches.
            BatchTooLargeError: they are more bytes than are sent at once.
        """
        arrays: list[BinaryArray] = []
        left = BYTES_MAX
        try:
            for number, (place, column) in enumerate(zip(places, self._columns, strict=True)):
                fields = fields_of(batch.columns[place], column, json_texts=is_arrow)
                if number in self._key and NULL in fields:
                    raise DataRefusedError(
                        f"column {column.name!r} is of the key, and NULL is no key",
                        indices=[row for row, found in enumerate(fields) if found == NULL],
                    )
                arrays.append(BinaryArray.of_fields(field_type(column), fields))
                left -= len(arrays[-1].data)
                if left < 0:
                    raise BatchTooLargeError(
                        f"{len(batch)} rows are more than {BYTES_MAX >> 20} MiB, which is sent at "
                        "once at most"
                    )
        except InvalidDataError as error:
            error.indices = tuple(batch.start + row for row in error.indices)
            raise
        return arrays

    def run(
        self, session: Session, arrays: Sequence[BinaryArray], rows: int, *, careful: bool
    ) -> Landed:
        """Upsert a batch within a transaction that has begun.

        Args:
            session: in that transaction.
            arrays: as `encode` gave them.
            rows: how many they hold.
            careful: whether it waits for others who insert the same keys, which costs a third
                more where `may_race`.
        """
        session.execute(_PLANNING)
        new = session.execute(self._insert, arrays).rowcount if self._insert else None
        is_careful = careful and self.may_race
        cursor = session.execute(self._careful if is_careful else self._upsert, arrays)
        inserted, updated, distinct = cursor.rowcount, 0, rows
        if cursor.description is not None:
            answer = cursor.fetchone()
            assert answer is not None  # it is an aggregate
            inserted, updated, distinct = answer
        identity = session.execute(_IDENTITY).fetchone()
        assert identity is not None
        if new is not None:
            inserted = new
        return Landed(inserted, updated, rows - distinct, *identity)


@dataclass(frozen=True, slots=True)
class _Parts:
    """The pieces that statements are made of, all quoted.

    Attributes:
        table: the table.
        rows: the arrays as a table `sent`, whose last column is `nth`.
        names: what is inserted.
        values: from what, out of `given`.
        given: what its columns are read as, see `_read`.
        sent_key: the key among them.
        key: the key, out of `given`.
        conflict: the key, of the table.
        same_key: whether a row `there` has the key.
        update: of each column that is overwritten its name, and where it is in `given`.
        touch: columns that are set to the time.
    """

    table: str
    rows: str
    names: str
    values: str
    given: str
    sent_key: str
    key: str
    conflict: str
    same_key: str
    update: Sequence[tuple[str, str]]
    touch: Sequence[str]

    @classmethod
    def of(cls, upsert: Upsert, target: Table) -> _Parts:
        sent = {name: f"s{number}" for number, name in enumerate(upsert.columns)}
        # The table may have columns of the same names, which would go before these.
        given = {name: f"given.{at}" for name, at in sent.items()}
        touch = [quoted(name) for name in upsert.touch]
        arrays = ", ".join("%b" for _ in sent)
        return cls(
            table=quoted_table(upsert.table),
            rows=f"unnest({arrays}) WITH ORDINALITY AS sent({', '.join(sent.values())}, nth)",
            names=", ".join([*map(quoted, upsert.columns), *touch]),
            values=", ".join([*given.values(), *("now()" for _ in touch)]),
            given=", ".join(_read(sent[each.name], each) for each in target.columns),
            sent_key=", ".join(sent[name] for name in upsert.key),
            key=", ".join(given[name] for name in upsert.key),
            conflict=", ".join(map(quoted, upsert.key)),
            same_key=" AND ".join(f"there.{quoted(name)} = {given[name]}" for name in upsert.key),
            update=[(quoted(name), given[name]) for name in upsert.update],
            touch=touch,
        )

    def insert_all(self) -> str:
        """Insert every row; a key that is there is an error."""
        return self._finished(
            f"INSERT INTO {self.table} ({self.names}) SELECT {self.values} "
            f"FROM (SELECT {self.given} FROM {_ROWS}) AS given ORDER BY {self.key}"
        )

    def insert_new(self, winner: str, *, careful: bool) -> str:
        """Insert the rows whose key is not there; of several with one key, one."""
        settle = f" ON CONFLICT ({self.conflict}) DO NOTHING" if careful else ""
        return self._finished(
            f"INSERT INTO {self.table} ({self.names}) SELECT {self.values} "
            f"FROM ({self._distinct(winner)}) AS given "
            f"WHERE NOT EXISTS (SELECT FROM {self.table} AS there WHERE {self.same_key}) "
            f"ORDER BY {self.key}{settle}"
        )

    def upsert(self, *, is_partitioned: bool) -> str:
        """Insert or overwrite; tell how many rows were new, overwritten, and of different keys."""
        there = ", ".join(f"there.{name}" for name, _ in self.update)
        given = ", ".join(place for _, place in self.update)
        excluded = ", ".join(f"excluded.{name}" for name, _ in self.update)
        changes = [f"{name} = excluded.{name}" for name, _ in self.update]
        changes += [f"{name} = now()" for name in self.touch]
        # A row that was overwritten carries the lock that was taken for it.
        is_new = "false" if is_partitioned else "there.xmax = 0"
        # *= compares the bytes, and takes NULLs for equal: −0 is not 0, and a type need not
        # have an operator =. Without the cast it would be applied column by column.
        return self._finished(
            f"WITH given AS MATERIALIZED ({self._distinct('nth DESC')}), "
            f"written AS (INSERT INTO {self.table} AS there ({self.names}) "
            f"SELECT {self.values} FROM given WHERE NOT EXISTS ("
            f"SELECT FROM {self.table} AS there WHERE {self.same_key} "
            f"AND ROW({there})::record *= ROW({given})::record) ORDER BY {self.key} "
            f"ON CONFLICT ({self.conflict}) DO UPDATE SET {', '.join(changes)} "
            f"WHERE ROW({there})::record *<> ROW({excluded})::record "
            f"RETURNING {is_new} AS is_new) "
            "SELECT count(*) FILTER (WHERE is_new), count(*) FILTER (WHERE NOT is_new), "
            "(SELECT count(*) FROM given) FROM written"
        )

    def _distinct(self, winner: str) -> str:
        return (
            f"SELECT DISTINCT ON ({self.sent_key}) {self.given} FROM {_ROWS} "
            f"ORDER BY {self.sent_key}, {winner}"
        )

    def _finished(self, statement: str) -> str:
        """Put the rows in; a % in a name is none of the driver's."""
        return statement.replace("%", "%%").replace(_ROWS, self.rows)


def _read(sent: str, column: Column) -> str:
    """Give how a column of the rows is read, so that its values are equal where the table's are."""
    is_text = field_type(column) != column.oid
    sql_type = column.rounded_type or (column.sql_type if is_text else None)
    cast = f"::{sql_type}" if sql_type else ""
    collate = f" COLLATE {column.collation}" if column.collation else ""
    return f"{sent}{cast}{collate} AS {sent}"
