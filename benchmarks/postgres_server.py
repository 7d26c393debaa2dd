"""A PostgreSQL server of the figures' own, and what hand-written programs do with it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import psycopg

import tsengine
from benchmarks.machine import all_cores
from benchmarks.workload import Columns, Workload
from tests.postgres.cluster import Cluster
from tsengine import Engine

_UPSERT: Final = "ON CONFLICT (series, time) DO UPDATE SET value = excluded.value"

_UNNEST: Final = (
    "INSERT INTO points (series, time, value) "
    f"SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::float8[]) {_UPSERT}"
)
_VALUES: Final = f"INSERT INTO points (series, time, value) VALUES (%s, %s, %s) {_UPSERT}"


class Server:
    """A server whose commits reach the disk; with its clients it may use every core.

    Args:
        folder: on a disk, where its files are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        self._stack.enter_context(all_cores())
        for folder in (self._folder, self._folder.parent):
            folder.chmod(0o711)  # ours; the server runs as another user where we are root
        self.cluster = self._stack.enter_context(Cluster(fsync=True, parent=self._folder))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @contextmanager
    def schema(self) -> Iterator[str]:
        """Name a schema that is not there, and drop it afterwards."""
        name = f"figures_{next(self._numbers)}"
        try:
            yield name
        finally:
            with self.connect() as connection:
                connection.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")

    def settle(self) -> None:
        """Write to the disk what was changed before, so that no clock pays for it."""
        with self.connect() as connection:
            connection.execute("CHECKPOINT")

    def url(self, schema: str) -> str:
        """Name a store of the server, over its socket."""
        return self.cluster.local_url(schema=schema)

    def connect(self, schema: str = "public") -> psycopg.Connection[tuple[object, ...]]:
        """Connect by hand, with the tables of a schema at hand."""
        options = f"-c search_path={schema} -c client_min_messages=warning"
        return psycopg.connect(self.cluster.local_url(), options=options, autocommit=True)

    @contextmanager
    def store(self, prime: Workload) -> Iterator[tuple[Engine, str]]:
        """Open a store of a schema of its own in which each series is known."""
        with self.schema() as schema:
            engine = tsengine.open(self.url(schema))
            try:
                engine.write_batch(prime.batch())
                yield engine, schema
            finally:
                engine.close()

    @contextmanager
    def by_hand(self, prime: Workload) -> Iterator[ByHand]:
        """Give a program written by hand that writes to the same tables, with the same rows in."""
        with self.store(prime) as (_, schema), self.connect(schema) as connection:
            ids = connection.execute("SELECT series, id FROM series").fetchall()
            numbers = {str(name): int(str(number)) for name, number in ids}
            yield ByHand(connection, np.array([numbers[labels.id] for labels in prime.labels]))


@dataclass(frozen=True, slots=True)
class ByHand:
    """A program that a user would write with psycopg, and that knows the numbers of its series.

    Attributes:
        connection: in autocommit mode.
        numbers: int64[k], of the series of a workload.
    """

    connection: psycopg.Connection[tuple[object, ...]]
    numbers: npt.NDArray[np.int64]

    def unnest(self, series: Sequence[int], times: Sequence[int], values: Sequence[float]) -> None:
        """Upsert lists, one statement and commit."""
        with self.connection.transaction():
            self.connection.execute(_UNNEST, [series, times, values])

    def executemany(self, rows: Sequence[tuple[int, int, float]]) -> None:
        """Upsert rows, one statement each, in one commit."""
        with self.connection.transaction(), self.connection.cursor() as cursor:
            cursor.executemany(_VALUES, rows)

    def copy(self, columns: Columns) -> None:
        """Upsert columns by binary COPY of a numpy array, a temporary table, and one commit."""
        rows = np.empty(
            len(columns),
            [("fields", ">i2")]
            + [(f"{what}{n}", kind) for n in range(3) for what, kind in _FIELD[n]],
        )
        rows["fields"] = 3
        filled = (self.numbers[columns.series], columns.timestamps, columns.values)
        for number, column in enumerate(filled):
            rows[f"length{number}"] = 8
            rows[f"value{number}"] = column
        with self.connection.transaction():
            self.connection.execute(
                "CREATE TEMP TABLE incoming (series bigint, time bigint, value float8) "
                "ON COMMIT DROP"
            )
            with self.connection.cursor().copy("COPY incoming FROM STDIN (FORMAT binary)") as copy:
                copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
                for first in range(0, len(rows), 16_384):
                    copy.write(rows[first : first + 16_384].tobytes())
                copy.write(b"\xff\xff")
            self.connection.execute(
                "INSERT INTO points (series, time, value) "
                f"SELECT * FROM incoming ORDER BY series, time {_UPSERT}"
            )


_FIELD: Final = tuple((("length", ">i4"), ("value", kind)) for kind in (">i8", ">i8", ">f8"))
