"""Connecting: a bounded number of sessions with one database, and transactions on them.

    database = Database(Location.parse("user:password@host/name", {}))
    with database.transaction(timeout=30.0) as session:
        session.execute(…)            # committed at the end of the block, or rolled back

All that a transaction needs of its session is set inside it (`SET LOCAL`), and nothing is
prepared: it works behind a pooler that gives each transaction another server connection.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Final, Literal

import psycopg
from psycopg import pq

from tsengine.backends.postgres.location import Location
from tsengine.backends.postgres.session import FOREVER, Session, Watch
from tsengine.backends.postgres.sqlstates import translate
from tsengine.errors import (
    ContentionError,
    ForkedError,
    NotOpenError,
    ServerConnectionError,
    ServerTimeoutError,
)
from tsengine.options import SECONDS_MAX, Converter, positive_integer, seconds
from tsengine.waiting import Patience

CONNECTION_OPTIONS: Final[Mapping[str, Converter]] = {
    "pool_size": positive_integer,
    "statement_timeout": seconds,
    "lock_timeout": seconds,
}
"""The options of `Database`, by its arguments."""

GRACE_SECONDS: Final = 1.0
"""How much longer than the server the client waits: the server's own end of a statement leaves
the connection in order, and says that nothing is stored."""

_FAREWELL_SECONDS: Final = 2.0
"""What a ROLLBACK may take; then the connection is closed, which rolls back too."""

_PAUSE_SECONDS: Final = 5.0
"""How long a transaction that writes may leave the server without a word: its locks are in the way
of our next attempt where the network has swallowed its COMMIT."""

_HANGUP_CHECK_MS: Final = 1_000
"""How often a server that is busy looks whether we are still there."""

LOCK_SECONDS: Final = 10.0
"""How long a lock is waited for, where nobody says otherwise: longer than a deadlock takes to be
found (1 s), shorter than an attempt."""

Isolation = Literal["read committed", "repeatable read"]


class Database:
    """Sessions with one database: at most `pool_size`, made when needed, kept until closed.

    Args:
        location: where it is.
        pool_size: sessions at once, at most; who needs one more waits.
        statement_timeout: seconds that a transaction may take, where the caller says nothing.
        lock_timeout: seconds that it waits for a lock of others.

    Attributes:
        made: how many sessions were made. Where it is what it was, no server went away since.

    Thread-safety: all methods may be called by any thread; a session belongs to one thread.
    """

    def __init__(
        self,
        location: Location,
        *,
        pool_size: int = 8,
        statement_timeout: float = 30.0,
        lock_timeout: float = LOCK_SECONDS,
    ) -> None:
        self.location = location
        self._timeout = statement_timeout
        self._lock_timeout = lock_timeout
        self._size = pool_size
        self._idle: list[Session] = []
        self._lent = 0
        self.made = 0
        self._is_closed = False
        self._pid = os.getpid()
        self._changed = threading.Condition()  # guards _idle, _lent, made, _is_closed

    def __repr__(self) -> str:
        return f"<Database {self.location}>"

    def close(self) -> None:
        """Close the idle sessions; those lent out are closed as they come back. Idempotent."""
        with self._changed:
            self._is_closed = True
            idle, self._idle = self._idle, []
            self._changed.notify_all()
        end = Session.close if self._pid == os.getpid() else _abandon
        for session in idle:
            end(session)

    @contextmanager
    def session(
        self, *, timeout: float | None = None, cancel: threading.Event | None = None
    ) -> Generator[Session]:
        """Lend a session in autocommit mode, outside of a transaction.

        Args:
            timeout: seconds for all that is done with it, waiting for a free one and connecting
                included; None for `statement_timeout`.
            cancel: ends every wait when it is set.

        Raises:
            ServerTimeoutError: no session came free in time.
            CancelledError: the caller gave up.
            NotOpenError: the database is closed.
            ForkedError: it was made before a fork.
            TsEngineError: as `Session.establish`; and what the driver raises in the block,
                translated by SQLSTATE.
        """
        watch = Watch(self._timeout if timeout is None else timeout, cancel)
        session = self._borrow(watch, cancel)
        try:
            with translated(f"a statement on {self.location}"):
                yield session
        finally:
            self._give_back(session)

    @contextmanager
    def transaction(
        self,
        *,
        timeout: float | None = None,
        cancel: threading.Event | None = None,
        isolation: Isolation = "read committed",
        read_only: bool = False,
        doing: str = "a transaction",
        opening: str = "",
    ) -> Generator[Session]:
        """Begin a transaction; commit it at the end of the block, or roll it back on an error.

        A session that turns out to be lost as the transaction begins is replaced by a new one.

        Args:
            timeout: seconds for all of it; the server is told so too. None for
                `statement_timeout`, infinity for no bound.
            cancel: ends every wait when it is set.
            isolation: what it sees of others.
            read_only: whether it may not write.
            doing: for messages, such as "writing points".
            opening: statements without parameters that begin it, in the round trip of BEGIN; what
                the last of them answers is the session's `opened`.

        Raises:
            ServerConnectionError: the connection was lost; `commit_unknown` says whether while
                the commit was on its way.
            ServerTimeoutError: it took too long; `commit_unknown` likewise.
            CancelledError: the caller gave up; whether a commit that was on its way is stored
                is unknown then.
            TsEngineError: as `session`; errors of the block that are not the driver's pass.
        """
        allowed = self._timeout if timeout is None else timeout
        begin = begin_statement(
            timeout=allowed,
            lock_timeout=self._lock_timeout,
            isolation=isolation,
            read_only=read_only,
        )
        begin = f"{begin}; {opening}" if opening else begin
        doing = f"{doing} on {self.location}"
        watch = Watch(allowed + GRACE_SECONDS, cancel)
        session = self._borrow(watch, cancel)
        try:
            try:
                _begin(session, begin, doing)
            except ServerTimeoutError:
                raise
            except ServerConnectionError:
                session.close()
                self._close_idle()  # which were lost with it, as a rule
                session = self._established(watch)
                _begin(session, begin, doing)
            with transact(session, doing):
                yield session
        finally:
            self._give_back(session)

    # Inside.

    def _borrow(self, watch: Watch, cancel: threading.Event | None) -> Session:
        """Take an idle session, or make one where there may be one more."""
        if self._pid != os.getpid():
            raise ForkedError(f"{self!r} was made before a fork; make another in the child process")
        patience = Patience(min(watch.left, SECONDS_MAX), cancel)
        with self._changed:
            ready = patience.wait_for(
                self._changed, lambda: self._is_closed or self._lent < self._size
            )
            if self._is_closed:
                raise NotOpenError(f"{self!r} is closed")
            if not ready:
                raise ServerTimeoutError(
                    f"no session with {self.location} came free in time; all {self._size} of the "
                    "pool are in use, see pool_size"
                )
            self._lent += 1
            session = self._idle.pop() if self._idle else None
        try:
            if session is not None and not session.is_fresh:
                session.close()
                session = None
            session = session or self._established(watch)
        except BaseException:
            with self._changed:
                self._lent -= 1
                self._changed.notify()
            raise
        session.watch = watch
        return session

    def _established(self, watch: Watch) -> Session:
        session = Session.establish(self.location, watch)
        session.watch = watch
        with self._changed:
            self.made += 1
        return session

    def _give_back(self, session: Session) -> None:
        session.watch = FOREVER
        is_idle = session.info.transaction_status == pq.TransactionStatus.IDLE
        with self._changed:
            self._lent -= 1
            keeps = is_idle and not self._is_closed
            if keeps:
                self._idle.append(session)
            self._changed.notify()
        if not keeps:
            session.close()

    def _close_idle(self) -> None:
        with self._changed:
            idle, self._idle = self._idle, []
        for session in idle:
            session.close()


def begin_statement(
    *,
    timeout: float,
    lock_timeout: float,
    isolation: Isolation = "read committed",
    read_only: bool = False,
) -> str:
    """Give what begins a transaction: one round trip, and all settings end with it.

    Args:
        timeout: seconds for each statement, and of a transaction that only reads for each pause
            of ours between two.
        lock_timeout: seconds for each lock.
        isolation: what it sees of others.
        read_only: whether it may not write.
    """
    pause = timeout if read_only else min(timeout, _PAUSE_SECONDS)
    settings = {
        "statement_timeout": _milliseconds(timeout),
        "lock_timeout": _milliseconds(lock_timeout),
        "idle_in_transaction_session_timeout": _milliseconds(pause),
        "client_connection_check_interval": _HANGUP_CHECK_MS,
    }
    access = "READ ONLY" if read_only else "READ WRITE"
    return f"BEGIN ISOLATION LEVEL {isolation.upper()} {access}" + "".join(
        f"; SET LOCAL {name} = {value}" for name, value in settings.items()
    )


@contextmanager
def transact(session: Session, doing: str) -> Generator[None]:
    """Commit the transaction of a session at the end of the block, or roll it back on an error.

    Raises:
        TsEngineError: what the driver raised, translated.
    """
    try:
        with translated(doing):
            yield
    except BaseException:
        _roll_back(session)
        raise
    if session.closed:  # the block swallowed the error that told so
        raise ServerConnectionError(f"{doing} failed: the connection is closed")
    try:
        with translated(f"the commit of {doing}", committing=True):
            status = session.execute("COMMIT").statusmessage
    except BaseException:
        _roll_back(session)
        raise
    if status != "COMMIT":  # an error in the block was swallowed, and the server rolled back
        raise ContentionError(f"{doing} was rolled back by the server, which answered {status}")


@contextmanager
def translated(doing: str, *, committing: bool = False) -> Generator[None]:
    """Raise what the driver raises in the block as an error of tsengine."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error, doing, committing=committing) from error
    except ServerTimeoutError as error:
        if committing and not error.commit_unknown:
            raise ServerTimeoutError(f"{doing} failed: {error}", commit_unknown=True) from error
        raise


def _begin(session: Session, statement: str, doing: str) -> None:
    with translated(doing):
        cursor = session.execute(statement.encode())
        while cursor.nextset():
            pass
        session.opened = cursor.fetchone() if cursor.description else None


def _roll_back(session: Session) -> None:
    """Roll back, in bounded time; where that fails the connection is closed."""
    if session.closed:
        return
    session.watch = Watch(_FAREWELL_SECONDS)
    try:
        if session.info.transaction_status == pq.TransactionStatus.ACTIVE:
            session.close()  # in the middle of an answer
        else:
            session.execute("ROLLBACK")
    except (psycopg.Error, ServerTimeoutError):
        session.close()


def _abandon(session: Session) -> None:
    """Drop a session that the parent process has: to close it would end the parent's."""
    with contextlib.suppress(OSError):
        os.close(session.pgconn.socket)
    del session.pgconn  # the driver, which knows of forks, then closes nothing


def _milliseconds(duration: float) -> int:
    # 0 is no bound, and the server counts in an int32.
    if duration == float("inf"):
        return 0
    return max(1, min(round(duration * 1_000), 2**31 - 1))
