"""What users would take otherwise, each as its own documentation says it is fastest.

Every peer gets numbers for series where we get labels, so none pays for a lookup. Clocks
run from the first write until the last point is durable; opening, making the table and
closing the database are outside of it, as they are for us.
"""

from __future__ import annotations

import sqlite3
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import duckdb
import pyarrow as pa
import rocksdict

from benchmarks.workload import Columns, Row

SQLITE_CACHE_KIB = 262_144
"""Page cache of sqlite3: with its default of 2 MB the leaves that 1,000 series write to
do not fit, and it is three times slower."""


class Peer(ABC):
    """A store that is not ours, in a folder of its own.

    Args:
        folder: an empty folder on the disk.
        rows_per_commit: how many rows `ingest` commits at a time.
    """

    product: str
    """Name and version."""

    def __init__(self, folder: Path, rows_per_commit: int) -> None:
        self.folder = folder
        self.rows_per_commit = rows_per_commit

    def ingest(self, rows: Sequence[Row]) -> float:
        """Write rows as they come, so many a commit.

        Returns:
            Seconds from the first write until the last row is durable.
        """
        started = time.perf_counter()
        self._ingest(rows)
        return time.perf_counter() - started

    @abstractmethod
    def load(self, columns: Columns) -> float:
        """Write columns by series, then time, the fastest way there is for many rows.

        Returns:
            Seconds from the first write until the last row is durable.
        """

    @abstractmethod
    def count(self) -> int:
        """Count the rows, so that nothing is measured that was not done."""

    @abstractmethod
    def close(self) -> None:
        """Close the database."""

    @abstractmethod
    def _ingest(self, rows: Sequence[Row]) -> None:
        """Write rows and make them durable."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _slices(self, rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
        size = self.rows_per_commit
        for first in range(0, len(rows), size):
            yield rows[first : first + size]


class RocksDb(Peer):
    """RocksDB through `rocksdict`: a synced WriteBatch per commit, raw keys and values.

    Keys are series and timestamp, both big-endian, so that they sort. RocksDB takes keys
    faster in order, so each batch is sorted first; at 1,000 rows of 1,000 series in turn it
    is in order as it comes.
    """

    product = "RocksDB (rocksdict)"
    _pack_key = struct.Struct(">IQ").pack
    _pack_value = struct.Struct("<d").pack

    def __init__(self, folder: Path, rows_per_commit: int = 1_000) -> None:
        super().__init__(folder, rows_per_commit)
        self._options = rocksdict.Options(raw_mode=True)
        self._synced = rocksdict.WriteOptions()
        self._synced.sync = True
        self._db = rocksdict.Rdict(str(folder / "rocksdb"), self._options)

    def _ingest(self, rows: Sequence[Row]) -> None:
        pack_key, pack_value = self._pack_key, self._pack_value
        sort = self.rows_per_commit > 1_000
        for part in self._slices(rows):
            batch = rocksdict.WriteBatch(raw_mode=True)
            put = batch.put
            for series, timestamp, value in sorted(part) if sort else part:
                put(pack_key(series, timestamp), pack_value(value))
            self._db.write(batch, self._synced)

    def load(self, columns: Columns) -> float:
        """Write one sorted table file and take it in, as the documentation of bulk loading says."""
        started = time.perf_counter()
        path = self.folder / "bulk.sst"
        writer = rocksdict.SstFileWriter(self._options)
        writer.open(str(path))
        pack_key, pack_value = self._pack_key, self._pack_value
        step = 1_000_000  # rows turned into Python objects at a time
        for first in range(0, len(columns), step):
            part = slice(first, first + step)
            for series, timestamp, value in zip(
                columns.series[part].tolist(),
                columns.timestamps[part].tolist(),
                columns.values[part].tolist(),
                strict=True,
            ):
                writer[pack_key(series, timestamp)] = pack_value(value)
        writer.finish()
        self._db.ingest_external_file([str(path)])
        return time.perf_counter() - started

    def count(self) -> int:
        """Count the keys by walking over them."""
        return sum(1 for _ in self._db.keys())  # noqa: SIM118  # a store has no __iter__

    def close(self) -> None:
        """Close the database."""
        self._db.close()


class Sqlite(Peer):
    """sqlite3 of the standard library: WITHOUT ROWID, key (series, time), WAL, NORMAL.

    With `synchronous=NORMAL` a commit is durable only once the log is checkpointed, so the
    clock stops after that; it takes 1 % of the time.
    """

    product = f"sqlite {sqlite3.sqlite_version}"

    def __init__(self, folder: Path, rows_per_commit: int = 100_000) -> None:
        super().__init__(folder, rows_per_commit)
        self._connection = sqlite3.connect(folder / "sqlite.db", isolation_level=None)
        for setting in (
            "journal_mode=WAL",
            "synchronous=NORMAL",
            f"cache_size=-{SQLITE_CACHE_KIB}",
        ):
            self._connection.execute(f"PRAGMA {setting}")
        self._connection.execute(
            "CREATE TABLE points (series INTEGER, timestamp INTEGER, value REAL, "
            "PRIMARY KEY (series, timestamp)) WITHOUT ROWID"
        )

    def _ingest(self, rows: Sequence[Row]) -> None:
        for part in self._slices(rows):
            self._insert(part)
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def load(self, columns: Columns) -> float:
        """Insert in key order, a million rows a transaction."""
        started = time.perf_counter()
        step = 1_000_000
        for first in range(0, len(columns), step):
            part = slice(first, first + step)
            self._insert(
                list(
                    zip(
                        columns.series[part].tolist(),
                        columns.timestamps[part].tolist(),
                        columns.values[part].tolist(),
                        strict=True,
                    )
                )
            )
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return time.perf_counter() - started

    def _insert(self, rows: Sequence[Row]) -> None:
        self._connection.execute("BEGIN")
        self._connection.executemany("INSERT INTO points VALUES (?, ?, ?)", rows)
        self._connection.execute("COMMIT")

    def latest(self) -> list[Row]:
        """Give the last row of each series, by a seek in the index each, in one statement."""
        found: list[Row] = self._connection.execute(
            "WITH RECURSIVE known(series) AS (SELECT min(series) FROM points UNION ALL "
            "SELECT (SELECT min(series) FROM points WHERE series > known.series) FROM known "
            "WHERE known.series IS NOT NULL) "
            "SELECT known.series, points.timestamp, points.value FROM known JOIN points "
            "ON points.series = known.series AND points.timestamp = "
            "(SELECT max(timestamp) FROM points AS newest WHERE newest.series = known.series)"
        ).fetchall()
        return found

    def count(self) -> int:
        """Count the rows."""
        return int(self._connection.execute("SELECT count(*) FROM points").fetchone()[0])

    def close(self) -> None:
        """Close the database."""
        self._connection.close()


class DuckDb(Peer):
    """DuckDB on one thread, fed with Arrow tables; a commit is durable, its log is synced."""

    product = f"DuckDB {duckdb.__version__}"

    def __init__(self, folder: Path, rows_per_commit: int = 1_000) -> None:
        super().__init__(folder, rows_per_commit)
        self._connection = duckdb.connect(str(folder / "points.duckdb"))
        self._connection.execute("SET threads = 1")
        self._connection.execute(
            "CREATE TABLE points (series UINTEGER, timestamp BIGINT, value DOUBLE)"
        )

    def _ingest(self, rows: Sequence[Row]) -> None:
        for part in self._slices(rows):
            series, timestamps, values = zip(*part, strict=True)
            self._insert(
                pa.table(
                    {
                        "series": pa.array(series, pa.uint32()),
                        "timestamp": pa.array(timestamps, pa.int64()),
                        "value": pa.array(values, pa.float64()),
                    }
                )
            )

    def load(self, columns: Columns) -> float:
        """Insert one Arrow table over the same columns, which copies nothing beforehand.

        The clock stops when the commit returns; a checkpoint after it takes 1 % more.
        """
        table = pa.table(
            {
                "series": columns.series,
                "timestamp": columns.timestamps,
                "value": columns.values,
            }
        )
        started = time.perf_counter()
        self._insert(table)
        return time.perf_counter() - started

    def load_series(self, label: str, texts: Sequence[str]) -> None:
        """Make the table `series`: a number and one label of each."""
        numbers = pa.array(range(len(texts)), pa.uint32())
        self._connection.register("incoming", pa.table({"series": numbers, label: texts}))
        self._connection.execute("CREATE TABLE series AS SELECT * FROM incoming")
        self._connection.unregister("incoming")

    def fetch(self, query: str, threads: int) -> object:
        """Ask, on so many threads, and fetch the answer as numpy columns."""
        self._connection.execute(f"SET threads = {threads}")
        return self._connection.execute(query).fetchnumpy()

    def _insert(self, table: object) -> None:
        self._connection.register("incoming", table)
        self._connection.execute("INSERT INTO points SELECT * FROM incoming")
        self._connection.unregister("incoming")

    def count(self) -> int:
        """Count the rows."""
        row = self._connection.execute("SELECT count(*) FROM points").fetchone()
        assert row is not None  # an aggregate gives one row
        return int(row[0])

    def close(self) -> None:
        """Close the database."""
        self._connection.close()


def single_thread() -> None:
    """Keep Arrow, which feeds DuckDB, to the one core that everything gets."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
