"""A backend of tsengine over sqlite3: one row a point, one transaction a commit."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from tsengine.duplicates import fold
from tsengine.engine import Capability, Engine, EngineStats, is_unbounded
from tsengine.errors import InvalidDataError, StoreOptionError, StorePathError
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
from tsengine.staging import check_kinds, receipt_of

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
            self._agree_on_options()
        except sqlite3.Error as error:
            self._db.close()
            raise StorePathError(f"{self.location!r} holds no store: {error}") from error
        except StoreOptionError:
            self._db.close()
            raise

    def _agree_on_options(self) -> None:
        given, row = self.options.to_dict(), self._db.execute("SELECT * FROM store").fetchone()
        if row is None:
            self._db.execute("INSERT INTO store VALUES (?)", (json.dumps(given),))
            return
        stored = json.loads(row[0])
        for name in self._store_options_given:
            if given[name] != stored[name]:
                raise StoreOptionError(f"{name} is {stored[name]!r} here, not {given[name]!r}")
        self._adopt_options(StoreOptions.from_dict(stored))

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
        failure: InvalidDataError | None = None
        wrong: list[int] = []
        rows = 0
        with self._transaction():
            check_kinds(batches, self._kind)
            for group in (group for batch in batches for group in batch.groups()):
                try:
                    self._store(group)
                except InvalidDataError as error:
                    failure = failure or error
                    wrong += [rows + index for index in error.indices]
                rows += len(group)
            if failure is not None:
                failure.indices = tuple(wrong)
                raise failure
        self._written = time.time_ns()
        return receipt_of(rows, {})

    def _store(self, group: SeriesBatch) -> None:
        name, kind = group.labels.id, _kind_of(group)
        first, last = int(group.timestamps[0]), int(group.timestamps[-1])
        stored_times, stored_values = _read(self._db, name, kind, first, last)
        times = np.concatenate([stored_times, group.timestamps])
        values = np.concatenate([stored_values, group.values])
        order = np.argsort(times, kind="stable")  # stored rows are older, so they stand first
        try:
            times, values = fold(times[order], values[order], self.options.duplicate_policy)
        except InvalidDataError as error:
            own = order[list(error.indices)] - len(stored_times)
            error.indices = tuple(own[own >= 0].tolist())
            raise
        text = json.dumps(dict(group.labels))
        self._db.execute("INSERT OR IGNORE INTO series VALUES (?, ?, ?)", (name, text, kind))
        if kind is ValueKind.OBJECT:
            blobs = [pack_object(value) for value in values]
        else:
            blobs = [value.tobytes() for value in values]
        self._db.executemany(
            "INSERT OR REPLACE INTO points VALUES (?, ?, ?)",
            [(name, moment, blob) for moment, blob in zip(times.tolist(), blobs, strict=True)],
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
                times, values = _read(db, labels.id, kind, start, end - 1)
                if len(times):
                    yield SeriesBatch(labels, times, values)

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


def _kind_of(group: SeriesBatch) -> ValueKind:
    return next(kind for kind in ValueKind if kind.dtype == group.values.dtype)


def _read(
    db: sqlite3.Connection, name: str, kind: ValueKind, first: int, last: int
) -> tuple[np.ndarray, np.ndarray]:
    rows = db.execute(
        f"SELECT time, value {_IN_RANGE} ORDER BY time", (name, first, last)
    ).fetchall()
    times = np.array([moment for moment, _ in rows], dtype=np.int64)
    values = np.empty(len(rows), dtype=kind.dtype)
    if kind is ValueKind.OBJECT:
        for index, (_, blob) in enumerate(rows):
            values[index] = unpack_object(blob)
    else:
        values[:] = np.frombuffer(b"".join(blob for _, blob in rows), dtype=kind.dtype)
    return times, values
