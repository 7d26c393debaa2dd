"""Lending: transactions for `bulk_upsert`, on whatever connections its caller has."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

import psycopg
from psycopg import pq
from psycopg.rows import tuple_row

from tsengine.backends.postgres.connecting import (
    GRACE_SECONDS,
    LOCK_SECONDS,
    Database,
    begin_statement,
    transact,
    translated,
)
from tsengine.backends.postgres.location import libpq_options, parse_url
from tsengine.backends.postgres.session import Session, Watch, use_settings
from tsengine.errors import LifecycleError, ServerConnectionError, UnknownOptionError

ForeignConnection = psycopg.Connection[object]
"""A connection that somebody else made, of whatever rows."""


@runtime_checkable
class ConnectionPool(Protocol):
    """What lends connections of psycopg, as `psycopg_pool.ConnectionPool` does."""

    def connection(self) -> AbstractContextManager[ForeignConnection]:
        """Lend a connection that is in no transaction, until the end of the block."""


class Transactions:
    """Begins transactions, each as `Database.transaction`, on what a caller gave.

    Args:
        target: a URL, a database, a pool or a connection.

    Raises:
        UnknownOptionError: it is none of these, or the URL cannot be read.
    """

    def __init__(self, target: str | Database | ForeignConnection | ConnectionPool) -> None:
        self._owns = isinstance(target, str)
        if isinstance(target, str):
            target = Database(parse_url(target, libpq_options()), pool_size=1)
        if not isinstance(target, (Database, psycopg.Connection, ConnectionPool)):
            raise UnknownOptionError(
                f"rows go to a URL, a Database, a connection of psycopg or a pool of these; a "
                f"{type(target).__name__} is none"
            )
        if isinstance(target, psycopg.Connection):
            _check_idle(target)
        self._target = target

    @property
    def is_usable(self) -> bool:
        """Whether a further transaction can begin; not where the one connection is lost."""
        return not (isinstance(self._target, psycopg.Connection) and self._target.closed)

    def close(self) -> None:
        """Close the connections that are not the caller's."""
        if self._owns and isinstance(self._target, Database):
            self._target.close()

    @contextmanager
    def transaction(
        self, *, timeout: float | None, cancel: threading.Event | None, doing: str
    ) -> Generator[Session]:
        """Begin a transaction; commit it at the end of the block, or roll it back on an error.

        Args:
            timeout: seconds for all of it; None for no bound.
            cancel: ends every wait when it is set.
            doing: for messages.

        Raises:
            TsEngineError: as `Database.transaction`.
        """
        seconds = float("inf") if timeout is None else timeout
        if isinstance(self._target, Database):
            with self._target.transaction(timeout=seconds, cancel=cancel, doing=doing) as session:
                yield session
        elif isinstance(self._target, psycopg.Connection):
            with _on(self._target, seconds, cancel, doing) as session:
                yield session
        else:
            with (
                translated(doing),
                self._target.connection() as connection,
                _on(connection, seconds, cancel, doing) as session,
            ):
                yield session


@contextmanager
def _on(
    connection: ForeignConnection, timeout: float, cancel: threading.Event | None, doing: str
) -> Generator[Session]:
    """Do a transaction on somebody's connection, through a session that shares its socket."""
    _check_idle(connection)
    watch = Watch(timeout + GRACE_SECONDS, cancel)
    watch.check()  # not in the first wait, which would close it
    pgconn = connection.pgconn
    handlers = pgconn.notice_handler, pgconn.notify_handler
    session = Session(pgconn, tuple_row)
    try:
        use_settings(session)
        session.watch = watch
        begin = begin_statement(timeout=timeout, lock_timeout=LOCK_SECONDS)
        with translated(doing):
            session.execute(begin)
        with transact(session, doing):
            yield session
    finally:
        pgconn.notice_handler, pgconn.notify_handler = handlers
        del session.pgconn  # its owner closes it


def _check_idle(connection: ForeignConnection) -> None:
    if connection.closed:
        raise ServerConnectionError("the connection that rows were to go to is closed")
    if connection.info.transaction_status != pq.TransactionStatus.IDLE:
        raise LifecycleError(
            "the connection that rows were to go to is in a transaction; commit it first, since "
            "each batch is a transaction of its own"
        )
