"""Bulk upsert: any rows into any table that has a key, in batches, with one retry policy.

Each batch is a transaction of its own. What a failed one calls for is decided as for buffers,
by `tsengine.retry`: it is tried again, or tried in halves whose size is remembered and regrown.
Where a connection is lost while a commit is on its way, the server is asked what became of that
transaction, so that no row is written or counted twice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Final

import psycopg

from tsengine.backends.postgres.binary import BinaryArray
from tsengine.backends.postgres.connecting import Database
from tsengine.backends.postgres.lending import ConnectionPool, ForeignConnection, Transactions
from tsengine.backends.postgres.row_source import ArrowStream, Row, RowBatch, RowSource
from tsengine.backends.postgres.sqlstates import is_misplaced
from tsengine.backends.postgres.tables import TableName, describe
from tsengine.backends.postgres.upserting import LIFE, Landed, OnConflict, Statements, Upsert
from tsengine.errors import (
    BulkUpsertCancelledError,
    BulkUpsertError,
    CancelledError,
    DataRefusedError,
    InvalidDataError,
    LifecycleError,
    ServerConnectionError,
    ServerTimeoutError,
    StorageError,
    UnknownOptionError,
)
from tsengine.metrics import BulkUpsertReport
from tsengine.retry import BatchSize, ErrorClass, RetryPolicy, classify

logger = logging.getLogger("tsengine.bulk_upsert")

BULK_POLICY: Final = RetryPolicy(deadline=None)
"""The policy of who gives none: as many retries as any, and as long as those last."""

_CAREFUL_BATCHES: Final = 16
"""For how many batches a call is careful after somebody else inserted a key at the same time."""

_QUESTIONS_MIN: Final = 5
"""How often it is asked again what became of a transaction, at least: with the pauses of the
policy that is more than a second, which a server takes to be back after a crash."""


def bulk_upsert(
    target: str | Database | ForeignConnection | ConnectionPool,
    table: TableName,
    rows: Iterable[Row] | ArrowStream,
    *,
    key: Sequence[str],
    columns: Sequence[str] | None = None,
    on_conflict: OnConflict = "update",
    update: Sequence[str] | None = None,
    preserve: Sequence[str] = (),
    touch: Sequence[str] = (),
    policy: RetryPolicy = BULK_POLICY,
    cancel: threading.Event | None = None,
    progress: Callable[[BulkUpsertReport], object] | None = None,
) -> BulkUpsertReport:
    """Bring rows into a table, however many.

    Rows are taken as they are needed, one batch ahead of none. Each batch is committed by
    itself: where the call fails, those before are stored, and its error says so. Repeating the
    call is harmless, and writes nothing where nothing has changed.

    Args:
        target: a URL, for connections that live as long as the call; a `Database`; a connection
            of psycopg that is in no transaction; or a pool, that is anything whose
            `connection()` lends one in a `with`. On a connection of yours nothing is left
            behind; where time is up, or `cancel` is set while it waits, it is closed. A single
            connection that is lost cannot be replaced, and ends the call.
        table: a name, or a schema and a name.
        rows: mappings, all with the same names; sequences, in the order of `columns`; or Arrow
            data. In a json column any Python value is a value of JSON, and `bytes` a document;
            so is the text of Arrow.
        key: columns that tell rows apart; the table has a unique index on just these. None of
            them may be NULL.
        columns: names of the rows' columns; mappings and Arrow data tell them.
        on_conflict: what a row does whose key is there. `update` overwrites, where a value
            differs to the bit; `ignore` leaves what is there; `error` ends the call. Of several
            rows with one key in a batch the last stands, under `ignore` the first.
        update: the columns that are overwritten; None for all that key, preserve and touch do not
            have.
        preserve: columns that are set where a row is inserted, and never overwritten.
        touch: columns that are set to the time of the transaction where a row is inserted or
            overwritten, whatever the rows have for them; alone they are no difference. Leave
            `updated_at` out of `touch` to keep the values of the rows, as in a migration.
        policy: `batch_size`, `min_batch_size`, `max_retries`, `timeout` of an attempt,
            `throttle_interval` between batches, the pauses, and a `deadline` of each batch.
        cancel: ends the call when it is set, wherever it waits.
        progress: told the report after each batch.

    Returns:
        What became of the rows.

    Raises:
        BulkUpsertError: it stopped; `report` says what had landed, `indices` which rows are to
            blame, where that is known, and its cause is what stopped it: an error of
            `tsengine.errors`, or what `rows` or `progress` raised.
        BulkUpsertCancelledError: `cancel` was set.
        UnknownOptionError: an argument makes no sense; nothing was done.
    """
    if cancel is not None and cancel.is_set():
        raise BulkUpsertCancelledError("cancelled before it began", report=BulkUpsertReport())
    with closing(Transactions(target)) as transactions:
        call = _Call(transactions, policy, cancel, progress)
        try:
            source = RowSource(rows, columns)
            if not source.columns:
                return call.report  # there are no rows to tell them
            upsert = Upsert.check(
                table,
                source.columns,
                key,
                on_conflict,
                update=update,
                preserve=preserve,
                touch=touch,
            )
            call.run(source, upsert)
        except (UnknownOptionError, BulkUpsertError):
            raise
        except Exception as error:
            raise call.failed(error) from error
        return call.report


class _Call:
    """One call of `bulk_upsert`.

    Attributes:
        report: how far it is.
    """

    def __init__(
        self,
        transactions: Transactions,
        policy: RetryPolicy,
        cancel: threading.Event | None,
        progress: Callable[[BulkUpsertReport], object] | None,
    ) -> None:
        self._transactions = transactions
        self._policy = policy
        self._cancel = cancel or threading.Event()
        self._progress = progress
        self._size = BatchSize(policy.batch_size, policy.min_batch_size)
        self._statements: Statements | None = None
        self._careful = 0
        self.report = BulkUpsertReport(batch_size=self._size.points)

    def run(self, source: RowSource, upsert: Upsert) -> None:
        self._source = source
        self._upsert = upsert
        self._places = [source.columns.index(name) for name in upsert.columns]
        interval = 0.0
        while (batch := source.take(self._size.points)) is not None:
            self._pause(interval)
            interval = self._policy.throttle_interval
            self._deliver(batch)
            if self._progress is not None:
                self._progress(self.report)
            self._pause(0)  # before more is taken: the source need not be asked in vain

    def failed(self, error: Exception) -> BulkUpsertError:
        """Give what is raised for an error, with what had landed."""
        report = self.report
        landed = report.submitted - report.unknown
        message = f"stopped after {landed} rows that are settled: {error}"
        if report.unknown:
            message = f"{message}; of {report.unknown} more it is not known whether they are stored"
        indices = error.indices if isinstance(error, InvalidDataError) else ()
        if isinstance(error, CancelledError):
            return BulkUpsertCancelledError(message, report=report, indices=indices)
        return BulkUpsertError(message, report=report, indices=indices)

    # Inside.

    def _deliver(self, batch: RowBatch) -> None:
        """Have a batch stored, or its first part; what is left goes back to the source."""
        began = time.monotonic()
        retries = 0
        arrays: list[BinaryArray] | None = None
        while True:
            try:
                if self._statements is None:
                    self._statements = self._described()
                if arrays is None:
                    arrays = self._statements.encode(
                        batch, self._places, is_arrow=self._source.is_arrow
                    )
                landed = self._attempt(self._statements, arrays, len(batch))
            except Exception as error:  # noqa: BLE001  # raised again where it is not handled
                smaller = self._handle(error, batch, retries, began)
                if smaller is not None:
                    batch, arrays, retries = smaller, None, 0
                else:
                    retries += 1
                self._report(retries=self.report.retries + 1)
            else:
                self._size.grow(len(batch))
                self._settle(batch, landed)
                return

    def _described(self) -> Statements:
        with self._transactions.transaction(
            timeout=self._policy.timeout,
            cancel=self._cancel,
            doing=f"describing table {self._upsert.table!r}",
        ) as session:
            upsert = self._upsert
            table = describe(session, upsert.table, upsert.columns, upsert.key)
            return Statements(upsert, table)

    def _attempt(self, statements: Statements, arrays: list[BinaryArray], rows: int) -> Landed:
        """Store a batch in one transaction, or two where others are in its way."""
        self._careful = max(self._careful - 1, 0)
        try:
            return self._store(statements, arrays, rows)
        except DataRefusedError as error:
            cause = error.__cause__
            if isinstance(cause, psycopg.errors.UniqueViolation):
                if not statements.may_race or self._careful:
                    raise
                self._careful = _CAREFUL_BATCHES
            elif not is_misplaced(cause):
                raise  # where no partition fits, the second attempt says so again
        return self._store(statements, arrays, rows)

    def _store(self, statements: Statements, arrays: list[BinaryArray], rows: int) -> Landed:
        landed: Landed | None = None
        try:
            with self._transactions.transaction(
                timeout=self._policy.timeout,
                cancel=self._cancel,
                doing=f"upserting {rows} rows into {self._upsert.table!r}",
            ) as session:
                landed = statements.run(session, arrays, rows, careful=self._careful > 0)
        except CancelledError:
            if landed is not None:  # the commit was on its way, and the caller has no time
                self._report(submitted=self.report.submitted + rows, unknown=rows)
            raise
        except ServerConnectionError as error:
            if landed is None or not error.commit_unknown:
                raise
            if not self._is_committed(landed, error, rows):
                raise
        assert landed is not None
        return landed

    def _is_committed(self, landed: Landed, error: Exception, rows: int) -> bool:
        """Find out whether a transaction was committed whose connection was lost meanwhile.

        Raises:
            _OutcomeUnknownError: it cannot be told, and to try again might store rows twice.
        """
        outcome = self._outcome(landed)
        if outcome is None:
            self._report(submitted=self.report.submitted + rows, unknown=rows)
            raise _OutcomeUnknownError(str(error)) from error
        return outcome

    def _outcome(self, landed: Landed) -> bool | None:
        """Ask the server whether a transaction was committed, until it knows; None if it never."""
        for number in range(max(self._policy.max_retries, _QUESTIONS_MIN) + 1):
            pause = self._policy.pause(number - 1) if number else 0
            if self._cancel.wait(pause) or not self._transactions.is_usable:
                return None
            try:
                server, status = self._status(landed)
            except CancelledError:
                return None
            except DataRefusedError:
                return False  # after a crash: no transaction that was committed had this number
            except (StorageError, LifecycleError) as error:
                logger.warning("the outcome of a commit is not known yet: %s", error)
                continue
            if status == "aborted":
                return False
            if server != landed.server or status is None:
                # The server was restarted, and the number may be another's by now; or it is too
                # old. To repeat what is harmless tells less exactly what was new.
                return None if self._upsert.on_conflict == "error" else False
            if status == "committed":
                return True
        return None

    def _status(self, landed: Landed) -> tuple[str, str | None]:
        """Give which life of the server this is, and the status of a transaction.

        One that is in progress still, whose client is us and gone, is ended; in another life its
        number may be a stranger's.
        """
        with self._transactions.transaction(
            timeout=self._policy.timeout, cancel=self._cancel, doing="asking for an outcome"
        ) as session:
            session.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                f"WHERE backend_xid = %s::xid8::xid AND pid <> pg_backend_pid() AND {LIFE} = %s",
                [landed.transaction, landed.server],
            )
            row = session.execute(
                f"SELECT {LIFE}, pg_xact_status(%s::xid8)", [landed.transaction]
            ).fetchone()
        assert row is not None
        server, status = row
        return server, status

    def _handle(
        self, error: Exception, batch: RowBatch, retries: int, began: float
    ) -> RowBatch | None:
        """Do what an error calls for, or raise it; the part to try instead, None for the same."""
        verdict = classify(error)
        if isinstance(error, _OutcomeUnknownError) or not self._transactions.is_usable:
            raise error
        # What takes too long is too much at once, or waits for somebody; nobody knows.
        if verdict is ErrorClass.TOO_LARGE or isinstance(error, ServerTimeoutError):
            size = self._size.shrink(len(batch))
            self._report(batch_size=size)
            if size < len(batch):
                logger.info("%d rows were too many, and are divided: %s", len(batch), error)
                batch, rest = batch.cut(size)
                self._source.put_back(rest)
                return batch
        if verdict not in (ErrorClass.TRANSIENT, ErrorClass.TOO_LARGE):
            raise error
        pause = self._policy.pause(retries)
        deadline = self._policy.deadline
        is_late = deadline is not None and time.monotonic() - began + pause > deadline
        if retries >= self._policy.max_retries or is_late:
            raise error
        logger.warning("%d rows are tried again in %.3f s: %s", len(batch), pause, error)
        self._pause(pause)
        return None

    def _pause(self, seconds: float) -> None:
        if self._cancel.wait(seconds):
            raise CancelledError("cancelled by the caller between two attempts")

    def _settle(self, batch: RowBatch, landed: Landed) -> None:
        rest = len(batch) - landed.inserted - landed.updated - landed.folded
        was = self.report
        self._report(
            submitted=was.submitted + len(batch),
            inserted=was.inserted + landed.inserted,
            updated=was.updated + landed.updated,
            unchanged=was.unchanged + rest,
            folded=was.folded + landed.folded,
            batches=was.batches + 1,
            batch_size=self._size.points,
        )

    def _report(self, **counts: int) -> None:
        self.report = replace(self.report, **counts)


class _OutcomeUnknownError(ServerConnectionError):
    """Ends a call whose last commit was on its way."""

    def __init__(self, message: str) -> None:
        super().__init__(message, commit_unknown=True)
