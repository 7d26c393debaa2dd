"""A backend of tsengine over sqlite3: one row a point, one transaction a commit."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import ClassVar

import numpy as np

from tsengine.engine import Capability, Engine, EngineStats, is_unbounded
from tsengine.errors import StoreOptionError, StorePathError
from tsengine.model import (
    GroupedBatch,
    Labels,
    ProducerMark,
    SeriesBatch,
    ValueKind,
    WriteReceipt,
    pack_object,
    unpack_object,
)
from tsengine.options import StoreOptions
from tsengine.selectors import Selector
from tsengine.staging import kind_of_column, merge_groups, receipt_of

_SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS store (options TEXT);
CREATE TABLE IF NOT EXISTS series (id TEXT PRIMARY KEY, labels TEXT, kind INT);
CREATE TABLE IF NOT EXISTS points (id TEXT, time INT, value BLOB, PRIMARY KEY (id, time))
    WITHOUT ROWID;
"""
_IN_RANGE = "FROM points WHERE id = ? AND time >= ? AND time <= ?"


class SqliteEngine(Engine):
    """A store in one sqlite3 file, `sqlite:///path`."""

    capabilities: ClassVar = frozenset({Capability.PERSISTENCE})

    def _connect(self) -> sqlite3.Connection:
        uri = f"{Path(self.location).absolute().as_uri()}?mode={'rw' if self.read_only else 'rwc'}"
        return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)

    def _open(self) -> None:
        self._lock = threading.RLock()  # guards _db, whose transactions belong to one thread
        self._written: int | None = None
        try:
            self._db = self._connect()
        except sqlite3.Error as error:
            raise StorePathError(f"{self.location!r} cannot hold a store: {error}") from error
        try:
            self._db.executescript(_SCHEMA)
            self._adopt_stored_options()
        except sqlite3.Error as error:
            self._db.close()
            raise StorePathError(f"{self.location!r} holds no store: {error}") from error
        except StoreOptionError:
            self._db.close()
            raise

    def _adopt_stored_options(self) -> None:
        row = self._db.execute("SELECT options FROM store").fetchone()
        if row is None:
            text = json.dumps(self.options.to_dict())
            self._db.execute("INSERT INTO store VALUES (?)", (text,))
        else:
            self._adopt_options(StoreOptions.from_dict(json.loads(row[0])))

    def _close(self) -> None:
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._check_open()  # a close may have come between
            yield self._db

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._database() as db, db:  # commits, or rolls back where something is raised
            db.execute("BEGIN IMMEDIATE")
            yield

    def _kind(self, labels: Labels) -> ValueKind | None:
        with self._database() as db:
            row = db.execute("SELECT kind FROM series WHERE id = ?", (labels.id,)).fetchone()
        return None if row is None else ValueKind(row[0])

    def _commit(self, batches: Sequence[GroupedBatch], mark: ProducerMark | None) -> WriteReceipt:
        with self._transaction():
            merged = merge_groups(batches, self._stored, self.options.duplicate_policy)
            for columns in merged.values():
                self._store(columns)
        self._written = time.time_ns()
        return receipt_of(sum(map(len, batches)), {})

    def _stored(self, group: SeriesBatch) -> SeriesBatch | None:
        kind = self._kind(group.labels)
        first, last = int(group.timestamps[0]), int(group.timestamps[-1])
        return None if kind is None else _read(self._db, group.labels, kind, first, last)

    def _store(self, columns: SeriesBatch) -> None:
        name, kind = columns.labels.id, kind_of_column(columns.values)
        text = json.dumps(dict(columns.labels))
        self._db.execute("INSERT OR IGNORE INTO series VALUES (?, ?, ?)", (name, text, kind))
        if kind is ValueKind.OBJECT:
            blobs = [pack_object(value) for value in columns.values]
        else:
            blobs = [value.tobytes() for value in columns.values]
        self._db.executemany(
            "INSERT OR REPLACE INTO points VALUES (?, ?, ?)",
            zip(repeat(name), columns.timestamps.tolist(), blobs),
        )

    def _matching(
        self, db: sqlite3.Connection, selector: Selector
    ) -> list[tuple[Labels, ValueKind]]:
        rows = db.execute("SELECT labels, kind FROM series ORDER BY id").fetchall()
        listed = ((Labels(json.loads(text)), ValueKind(kind)) for text, kind in rows)
        return [(labels, kind) for labels, kind in listed if selector.matches(labels)]

    def _series(self, selector: Selector) -> Iterator[Labels]:
        with self._database() as db:
            listed = self._matching(db, selector)
        return (labels for labels, _ in listed)

    def _scan(self, selector: Selector, start: int, end: int) -> Iterator[SeriesBatch]:
        with contextlib.closing(self._connect()) as db:  # its own, which pins a snapshot
            db.execute("BEGIN")
            for labels, kind in self._matching(db, selector):
                columns = _read(db, labels, kind, start, end - 1)
                if len(columns):
                    yield columns

    def _delete(self, selector: Selector, start: int, end: int) -> int:
        with self._transaction():
            selected = [labels.id for labels, _ in self._matching(self._db, selector)]
            for name in selected:
                self._db.execute(f"DELETE {_IN_RANGE}", (name, start, end - 1))
                if is_unbounded(start, end):
                    self._db.execute("DELETE FROM series WHERE id = ?", (name,))
        return len(selected)

    def _stats(self) -> EngineStats:
        with self._database() as db:
            points, series = db.execute(
                "SELECT (SELECT count(*) FROM points), (SELECT count(*) FROM series)"
            ).fetchone()
        size = Path(self.location).stat().st_size
        return EngineStats(points, True, series, size, self._written)


def _read(
    db: sqlite3.Connection, labels: Labels, kind: ValueKind, first: int, last: int
) -> SeriesBatch:
    rows = db.execute(
        f"SELECT time, value {_IN_RANGE} ORDER BY time", (labels.id, first, last)
    ).fetchall()
    times = np.array([moment for moment, _ in rows], dtype=np.int64)
    values = np.empty(len(rows), dtype=kind.dtype)
    if kind is ValueKind.OBJECT:
        for index, (_, blob) in enumerate(rows):
            values[index] = unpack_object(blob)
    else:
        values[:] = np.frombuffer(b"".join(blob for _, blob in rows), dtype=kind.dtype)
    return SeriesBatch(labels, times, values)
