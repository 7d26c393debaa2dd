"""PostgresEngine: the store in a PostgreSQL database, behind the interface of all engines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import ClassVar, Final, TypeVar

from tsengine.aggregation import Aggregation, aggregate_batches
from tsengine.backends.postgres import marks, reading, schema
from tsengine.backends.postgres.aggregating import can_push_down, kinds_of, push_down
from tsengine.backends.postgres.catalogue import Catalogue
from tsengine.backends.postgres.checking import check_store
from tsengine.backends.postgres.connecting import CONNECTION_OPTIONS, GRACE_SECONDS, Database
from tsengine.backends.postgres.location import Location, libpq_options
from tsengine.backends.postgres.packing import int8s
from tsengine.backends.postgres.partitions import Partitions, width_for
from tsengine.backends.postgres.session import Session, Watch
from tsengine.backends.postgres.writing import Commit, RepeatError, Way, Writer
from tsengine.engine import Capability, CompactReport, Engine, EngineStats, is_unbounded
from tsengine.errors import (
    FormatVersionError,
    ServerConnectionError,
    ServerTimeoutError,
    StoreOptionError,
    StorePathError,
)
from tsengine.model import (
    INT64_MAX,
    INT64_MIN,
    DataPoint,
    GroupedBatch,
    Labels,
    ProducerMark,
    SeriesBatch,
    TimestampLike,
    ValueKind,
    WriteReceipt,
    check_label_text,
    check_producer,
    timestamp_range,
)
from tsengine.model.rules import ForwardClock
from tsengine.options import STORE_OPTIONS, nanoseconds
from tsengine.result import QueryResult
from tsengine.selectors import Selector, SelectorLike, to_selector
from tsengine.staging import Staging

_T = TypeVar("_T")

SCHEMA: Final = "tsengine"
"""The schema of a store, where none is given."""

TIMEOUT: Final = 30.0
"""Seconds that a commit or a step of a read may take, where nothing else is given."""

_SECONDS_A_POINT: Final = 20e-6
"""What each point of a commit adds to that: several times what it takes, as a rule."""

_BYTES_A_SECOND: Final = 4e6
"""Of the store, by which a delete or a check is given more time: some 50,000 points."""

_CHUNK: Final = 4_096
"""Labels that a listing reads at once."""

_MAY_PAUSE: Final = "SET LOCAL idle_in_transaction_session_timeout = 0"
"""Opens a read whose caller may take his time between two steps; each of them is bounded."""

_SIZE: Final = (
    "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c"
    " WHERE c.relnamespace = %s::bigint::oid AND c.relkind IN ('r', 'p')"
)
_REMOVE: Final = (
    "DELETE FROM points WHERE series = ANY(%s)",
    "DELETE FROM series WHERE id = ANY(%s)",
)
_DELETE: Final = "DELETE FROM points WHERE series = ANY(%s) AND time >= %s AND time <= %s"


class PostgresEngine(Engine):
    """A store in a schema of its own.

    Args:
        location: `user:password@host:port/database`, as in a URL, each part optional.
        schema: where the tables are; created where it is not there.
        partition_width: the time that one partition of the points holds, of a store that is
            created: a `timedelta` or text; a week where not given, or an eighth of the retention
            where that is shorter, but at least an hour.
        pool_size: as `Database`.
        statement_timeout: as `Database`.
        lock_timeout: as `Database`.
        options: as of every engine, and the parameters that libpq knows.

    Thread-safety: any number of threads, processes and machines.
    """

    capabilities: ClassVar = frozenset(
        {
            Capability.RETENTION,
            Capability.PERSISTENCE,
            Capability.OTHER_PROCESSES,
            Capability.PRODUCER_MARKS,
        }
    )
    option_converters: ClassVar = {
        **libpq_options(),
        **STORE_OPTIONS,
        **CONNECTION_OPTIONS,
        "schema": schema.schema_name,
        "partition_width": nanoseconds,
    }
    takes_encoded_location: ClassVar = True

    def __init__(
        self,
        location: str = "",
        *,
        clock_ns: Callable[[], int] = time.time_ns,
        **options: object,
    ) -> None:
        super().__init__("", clock_ns=clock_ns, **options)
        given = dict(self.backend_options)
        self._schema = str(given.pop("schema", SCHEMA))
        self._width_given = given.pop("partition_width", None)
        self._connection = {name: given.pop(name) for name in CONNECTION_OPTIONS if name in given}
        self._timeout = float(str(self._connection.setdefault("statement_timeout", TIMEOUT)))
        told = Location.parse(location, {name: str(value) for name, value in given.items()})
        self._location = told
        self.location = f"{told} schema {self._schema}"  # for messages: without secrets
        self._now = ForwardClock(clock_ns)
        self._catalogue = Catalogue(self._schema)

    # Primitives.

    def _open(self) -> None:
        database = Database(self._location, **self._connection)  # type: ignore[arg-type]  # converted by CONNECTION_OPTIONS
        try:
            with database.transaction(doing="opening the store", read_only=True) as session:
                found = schema.find(session, self._schema)
            if self.read_only:
                if found is None:
                    raise StorePathError(
                        f"{self.location} holds no store, and read_only=True creates none"
                    )
                if not found.is_present:
                    raise FormatVersionError(
                        f"{self.location} holds a store of version {found.version}, and "
                        "read_only=True changes none; open it for writing once"
                    )
            elif found is None or not found.is_present:
                with database.transaction(doing="creating the store") as session:
                    width = int(str(self._width_given or width_for(self.options.retention)))
                    found = schema.create(session, self._schema, self.options, width)
            self._adopt_options(found.options)
            if self._width_given not in (None, found.partition_width):
                raise StoreOptionError(
                    f"{self.location} was created with partition_width={found.partition_width}ns, "
                    f"not {self._width_given}ns; open it with that or without the option"
                )
        except BaseException:
            database.close()
            raise
        self._database = database
        self._oid = found.oid
        self._table = found.table
        self._writer = Writer(self._catalogue, self.options.duplicate_policy)
        self._partitions = Partitions(database, self._schema, found.partition_width)

    def _close(self) -> None:
        self._database.close()

    def _commit(self, batches: Sequence[GroupedBatch], mark: ProducerMark | None) -> WriteReceipt:
        now_ns = self._now()
        horizon = self._horizon(now_ns)
        self._partitions.prepare(batches, now_ns)
        if self.options.retention is not None:
            self._partitions.drop_expired(horizon, self.options.retention)
        commit = Commit.of(batches, horizon=horizon, mark=mark, now_ns=now_ns)
        way = Way.APPEND
        while True:
            try:
                with self._writing(
                    "writing points",
                    alone=way is Way.ALONE,
                    timeout=self._timeout + commit.points * _SECONDS_A_POINT,
                ) as (session, removals):
                    receipt, done = self._writer.store(session, commit, removals, way)
            except RepeatError as error:  # twice at most, and for each partition made meanwhile
                way = error.way
            else:
                done()
                return receipt

    def _kind(self, labels: Labels) -> ValueKind | None:
        return self._asking(lambda session: self._catalogue.kind(session, labels))

    def _new_staging(self) -> Staging:
        self._check_writable()
        is_fresh = False

        def kind_of(labels: Labels) -> ValueKind | None:
            # One round trip for each series would be most of what a batch of integers takes.
            nonlocal is_fresh
            if not is_fresh:
                self._asking(self._catalogue.refresh)
                is_fresh = True
            known = self._catalogue.known_kind(labels)
            return self._kind(labels) if known is None else known

        return Staging(self.rules, self.options.duplicate_policy, kind_of)

    def _series(self, selector: Selector) -> Iterator[Labels]:
        with self._reading(is_long=True) as session:
            ids = self._catalogue.resolve(session, selector).ids.tolist()
            for first in range(0, len(ids), _CHUNK):
                self._renew(session)
                yield from self._catalogue.labels_of(session, ids[first : first + _CHUNK])

    def _scan(self, selector: Selector, start: int, end: int) -> Iterator[SeriesBatch]:
        start = max(start, self._horizon(self._now()))
        if start >= end:
            return
        with self._reading(is_long=True) as session:
            found = self._catalogue.resolve(session, selector)
            renew = partial(self._renew, session)
            yield from reading.scan(session, self._catalogue, found, start, end, renew)

    def _delete(self, selector: Selector, start: int, end: int) -> int:
        with self._writing("deleting points", alone=True, timeout=self._for_all()) as (session, _):
            ids = self._catalogue.resolve(session, selector).ids
            if not len(ids):
                return 0
            if is_unbounded(start, end):
                for statement in _REMOVE:
                    session.execute(statement, (int8s(ids),))
                session.execute("UPDATE store SET removals = removals + 1")
            else:
                session.execute(_DELETE, (int8s(ids), start, end - 1))
        return len(ids)

    def _stats(self) -> EngineStats:
        horizon = self._horizon(self._now())
        with self._reading() as session:
            points = reading.count(session, None, horizon, INT64_MAX + 1)
            row = session.execute(
                "SELECT (SELECT count(*) FROM series), (SELECT max(last_write) FROM writes)"
            ).fetchone()
            size = session.execute(_SIZE, (self._oid,)).fetchone()
        assert row is not None
        assert size is not None
        return EngineStats(points, True, row[0], size[0], row[1])

    # What can be done better here than by the primitives.

    def earliest(self, selector: SelectorLike = None) -> list[DataPoint]:
        return self._edges(selector, newest=False)

    def latest(self, selector: SelectorLike = None) -> list[DataPoint]:
        return self._edges(selector, newest=True)

    def count(
        self,
        selector: SelectorLike = None,
        start: TimestampLike | None = None,
        end: TimestampLike | None = None,
    ) -> int:
        self._check_open()
        first, last = timestamp_range(start, end)
        resolved = to_selector(selector)
        first = max(first, self._horizon(self._now()))
        if first >= last:
            return 0
        with self._reading() as session:
            is_all = resolved.exact is None and not resolved.matchers
            found = None if is_all else self._catalogue.resolve(session, resolved)
            return reading.count(session, found, first, last)

    def _aggregate(self, selector: Selector, asked: Aggregation) -> QueryResult:
        start = max(asked.start, self._horizon(self._now()))
        if start >= asked.end:
            return QueryResult(())
        with self._reading(is_long=True) as session:
            found = self._catalogue.resolve(session, selector)
            renew = partial(self._renew, session)
            if can_push_down(asked, kinds_of(found)):
                return push_down(session, self._catalogue, found, asked, start, renew)
            batches = reading.scan(session, self._catalogue, found, start, asked.end, renew)
            return aggregate_batches(batches, asked)

    def label_names(self) -> list[str]:
        self._check_open()
        with self._reading() as session:
            return self._catalogue.label_names(session)

    def label_values(self, name: str) -> list[str]:
        self._check_open()
        check_label_text(name, "name")
        with self._reading() as session:
            return self._catalogue.label_values(session, name)

    def high_water(self, producer: str) -> ProducerMark | None:
        self._check_open()
        check_producer(producer)
        with self._reading() as session:
            known = marks.find(session, producer)
        return None if known is None else known[0]

    def forget_producer(self, producer: str) -> None:
        self._check_writable()
        check_producer(producer)
        with self._writing("forgetting a producer") as (session, _):
            marks.forget(session, producer)

    def check(self) -> None:
        """Verify that series and points agree, then read everything.

        Raises:
            CorruptionError: names the first series or point that is not as the store keeps it.
        """
        self._check_open()
        with self._reading(timeout=self._for_all()) as session:
            check_store(session)
        super().check()

    def compact(self) -> CompactReport:
        """Drop what retention hides; the room that updates and deletes leave is autovacuum's."""
        self._check_writable()
        before = self._size()
        reason = "the server gives room back by itself (autovacuum)"
        if self.options.retention is not None:
            kept = self._partitions.sweep(self._horizon(self._now()))
            if kept is not None:
                reason = f"what has expired is kept: {kept}; {reason}"
        return CompactReport(before, self._size(), reason)

    def shares_store(self, other: Engine) -> bool:
        if not isinstance(other, PostgresEngine) or self._is_new or other._is_new:
            return False
        return (str(self._location), self._oid) == (str(other._location), other._oid)

    # Inside.

    def _horizon(self, now_ns: int) -> int:
        """Give the earliest timestamp that retention shows."""
        if self.options.retention is None:
            return INT64_MIN
        return min(max(now_ns - self.options.retention, INT64_MIN), INT64_MAX)

    def _for_all(self) -> float:
        """Give the seconds that may be taken by what goes over all points."""
        return self._timeout + self._size() / _BYTES_A_SECOND

    def _size(self) -> int:
        with self._reading() as session:
            row = session.execute(_SIZE, (self._oid,)).fetchone()
        assert row is not None
        return int(row[0])

    def _edges(self, selector: SelectorLike, *, newest: bool) -> list[DataPoint]:
        self._check_open()
        resolved = to_selector(selector)
        horizon = self._horizon(self._now())
        with self._reading() as session:
            found = self._catalogue.resolve(session, resolved)
            return reading.edges(session, self._catalogue, found, horizon, newest=newest)

    def _asking(self, ask: Callable[[Session], _T]) -> _T:
        """Ask what takes one statement, without a transaction around it."""
        try:
            with self._database.session() as session:
                return ask(session)
        except ServerTimeoutError:
            raise
        except ServerConnectionError:  # lost while it was idle; a transaction replaces it
            with self._reading() as session:
                return ask(session)

    def _renew(self, session: Session) -> None:
        """Give the next statement of a long read its time, however long the read takes in all.

        Raises:
            NotOpenError: the engine was closed meanwhile.
        """
        self._check_open()
        session.watch = Watch(self._timeout + GRACE_SECONDS)

    @contextlib.contextmanager
    def _reading(self, *, is_long: bool = False, timeout: float | None = None) -> Iterator[Session]:
        """Begin a transaction that sees one snapshot.

        Args:
            is_long: whether it waits for a caller who may take his time between statements.
            timeout: seconds that it may take; None for the usual.
        """
        opening = [schema.open_read(self._schema), *([_MAY_PAUSE] if is_long else [])]
        with self._database.transaction(
            doing="reading",
            isolation="repeatable read",
            read_only=True,
            timeout=timeout,
            opening="; ".join([*opening, schema.WHICH_TABLE]),
        ) as session:
            assert session.opened is not None
            self._check_same(*session.opened)
            yield session

    @contextlib.contextmanager
    def _writing(
        self, doing: str, *, alone: bool = False, timeout: float | None = None
    ) -> Iterator[tuple[Session, int]]:
        """Begin a transaction that writes; gives how often series were removed."""
        opening = schema.open_write(self._schema, self._oid, alone=alone)
        with self._database.transaction(doing=doing, opening=opening, timeout=timeout) as session:
            assert session.opened is not None
            removals, table = session.opened
            self._check_same(table)
            yield session, removals

    def _check_same(self, table: int) -> None:
        """Forget what another server said, and refuse a store that was made anew meanwhile."""
        self._catalogue.on(self._database.made)
        if table != self._table:
            raise StorePathError(
                f"the store in {self.location} was dropped, and another was made in its place; "
                "open it again"
            )
