"""Session: a connection on which no wait is without end.

The driver sends and receives through `Connection.wait`. Here that watches a deadline and an
event besides the socket: when time is up or the caller gives up, the connection is closed, and
the call raises. That holds for whatever the network and the server do, a black hole included;
the server's own timeouts, which leave the connection in order, come first.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable
from typing import Final, Self, TypeVar

import psycopg
from psycopg import pq
from psycopg.abc import PQGen
from psycopg.rows import TupleRow, tuple_row
from psycopg.waiting import Ready, Wait

from tsengine.backends.postgres.binary import register
from tsengine.backends.postgres.location import Location
from tsengine.backends.postgres.sqlstates import translate, without_secrets
from tsengine.errors import (
    CancelledError,
    ServerTimeoutError,
    UnknownOptionError,
    UnsupportedError,
)

T = TypeVar("T")

POLL_SECONDS: Final = 0.05
"""Between two looks at the caller's event: as `tsengine.waiting`."""

_IDLE_SECONDS: Final = 1.0
"""Between two looks where there is no event."""

VERSION_MIN: Final = 150_000
"""The oldest server that the tests run on."""

_WANTED: Final = {
    pq.PollingStatus.READING: Wait.R,
    pq.PollingStatus.WRITING: Wait.W,
}


class Watch:
    """When a wait ends: at a moment, or when the caller sets an event.

    Args:
        timeout: seconds from now; None or infinity for no bound.
        cancel: ends the wait when it is set.
        clock: seconds, monotonic.
    """

    __slots__ = ("_cancel", "_clock", "_end", "_timeout")

    def __init__(
        self,
        timeout: float | None,
        cancel: threading.Event | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout = float("inf") if timeout is None else timeout
        self._cancel = cancel
        self._clock = clock
        self._end = clock() + self._timeout

    def check(self) -> None:
        """Raise where the wait is to end.

        Raises:
            CancelledError: the event is set.
            ServerTimeoutError: time is up.
        """
        if self._cancel is not None and self._cancel.is_set():
            raise CancelledError("cancelled by the caller while it waited for the server")
        if self._clock() >= self._end:
            raise ServerTimeoutError(f"the server did not answer within {self._timeout:g} seconds")

    def within(self, timeout: float | None) -> Watch:
        """Give a watch that ends so many seconds from now too, and with this one."""
        shorter = self.left if timeout is None else min(timeout, self.left)
        return Watch(shorter, self._cancel, clock=self._clock)

    @property
    def left(self) -> float:
        """Seconds that are left, at least 0; infinity without end."""
        return max(self._end - self._clock(), 0.0)

    def wait_for(self, fileno: int, wanted: Wait) -> int:
        """Wait for a socket, but no longer than until the next look at the event.

        Returns:
            What it is ready for, bits of the driver's `Ready`; 0 where it is not.
        """
        longest = _IDLE_SECONDS if self._cancel is None else POLL_SECONDS
        poll = select.poll()
        reads = select.POLLIN if wanted & Wait.R else 0
        writes = select.POLLOUT if wanted & Wait.W else 0
        poll.register(fileno, reads | writes)
        ready = 0
        # +1: a poll of 0 ms would spin through the last millisecond.
        for _, events in poll.poll(int(min(longest, self.left) * 1_000) + 1):
            broken = events & ~(select.POLLIN | select.POLLOUT)
            if reads and (events & select.POLLIN or broken):
                ready |= Ready.R
            if writes and (events & select.POLLOUT or broken):
                ready |= Ready.W
        return ready


FOREVER: Final = Watch(None)
"""Waits as long as it takes: for what does not wait for the server."""


class Session(psycopg.Connection[TupleRow]):
    """A connection whose every wait is watched.

    It is in autocommit mode and prepares nothing, so that a pooler may give each transaction
    another server connection.

    Attributes:
        watch: ends the waits of the present call; whoever borrows the session sets it. A wait
            that it ends, as any interrupt, closes the connection: the server notices by
            `client_connection_check_interval`, and rolls back.
        opened: the first row of what the statements that opened its transaction answered.
    """

    watch: Watch = FOREVER
    opened: TupleRow | None = None

    @classmethod
    def establish(cls, location: Location, watch: Watch) -> Self:
        """Connect.

        Args:
            location: where to.
            watch: ends the attempt; `connect_timeout` of the location does so too.

        Raises:
            ServerConnectionError: there is no server, or it does not take us now.
            ServerTimeoutError: it does not answer. (Name servers are asked by libpq, which
                takes as long as the system's resolver lets it.)
            AccessDeniedError: a wrong password, or no right to connect.
            UnsupportedError: the server is too old.
            CancelledError: the caller gave up.
        """
        try:
            info = location.conninfo()
        except psycopg.Error as error:
            raise UnknownOptionError(
                f"the parameters for {location} make no sense: {without_secrets(str(error))}"
            ) from None
        pgconn = _connected(location, info, watch.within(location.timeout))
        version = pgconn.server_version
        if version < VERSION_MIN:
            pgconn.finish()
            raise UnsupportedError(
                f"{location} is PostgreSQL {_shown(version)}; at least {_shown(VERSION_MIN)} is "
                "needed"
            )
        session = cls(pgconn, tuple_row)
        use_settings(session)
        return session

    def wait(self, gen: PQGen[T], interval: float = 0.0, timeout: float | None = None) -> T:
        """Do what the driver waits for, until the watch ends it; then close the connection.

        Raises:
            WaitError: the watch ended it.
        """
        watch = self.watch
        try:
            wanted = next(gen)
            fileno = self.pgconn.socket
            while True:
                ready = watch.wait_for(fileno, wanted)
                watch.check()
                wanted = gen.send(ready)
        except StopIteration as stop:
            result: T = stop.value
            return result
        except psycopg.Error:
            raise
        except BaseException:
            # An interrupt too: what the server still sends would be taken for the next answer.
            self.pgconn.finish()
            raise

    @property
    def is_fresh(self) -> bool:
        """Whether nothing came from the server while the session was idle.

        What comes then is a farewell, or the end of the stream; it costs no round trip to see.
        """
        if self.pgconn.status != pq.ConnStatus.OK:
            return False
        poll = select.poll()
        poll.register(self.pgconn.socket, select.POLLIN)
        return not poll.poll(0)


def use_settings(session: Session) -> None:
    """Have a session prepare nothing, begin nothing by itself, and take arrays of numpy's."""
    session.prepare_threshold = None
    session.autocommit = True
    register(session)


def _connected(location: Location, info: str, watch: Watch) -> pq.abc.PGconn:
    """Connect through libpq, which tries the hosts one after the other."""
    doing = f"connecting to {location}"
    pgconn = pq.PGconn.connect_start(info.encode())
    try:
        status = pq.PollingStatus.WRITING
        while pgconn.status != pq.ConnStatus.BAD and status != pq.PollingStatus.OK:
            status = pq.PollingStatus(pgconn.connect_poll())
            wanted = _WANTED.get(status)
            while wanted is not None and not watch.wait_for(pgconn.socket, wanted):
                watch.check()
        if status != pq.PollingStatus.OK:
            error = psycopg.OperationalError(pgconn.get_error_message("utf-8"), pgconn=pgconn)
            raise translate(error, doing, connecting=True) from error
    except ServerTimeoutError as error:
        pgconn.finish()
        raise ServerTimeoutError(f"{doing} failed: {error}") from None
    except BaseException:
        pgconn.finish()
        raise
    pgconn.nonblocking = 1
    return pgconn


def _shown(version: int) -> str:
    return f"{version // 10_000}.{version % 10_000}" if version >= 100_000 else f"9 ({version})"
