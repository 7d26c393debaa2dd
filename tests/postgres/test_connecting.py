from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

import tsengine
from tests.postgres.cluster import Cluster
from tests.postgres.pooler import pooled
from tests.postgres.proxy import Proxy
from tests.postgres.tables import connected, table
from tsengine.backends.postgres import Database, bulk_upsert
from tsengine.backends.postgres.location import Location, libpq_options, parse_url
from tsengine.errors import (
    CancelledError,
    ContentionError,
    DataRefusedError,
    ForkedError,
    NotOpenError,
    ServerConnectionError,
    ServerTimeoutError,
    UnknownOptionError,
)
from tsengine.model import Labels

Connection = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def connection(cluster: Cluster) -> Iterator[Connection]:
    """A connection of the superuser, to look behind the back of what is tested."""
    with connected(cluster) as made:
        yield made


@pytest.fixture
def database(cluster: Cluster) -> Iterator[Database]:
    """A database with at most two sessions."""
    made = Database(located(cluster.local_url()), pool_size=2)
    yield made
    made.close()


def located(url: str) -> Location:
    """Parse a URL with all that libpq knows."""
    return parse_url(url, libpq_options())


def test_a_transaction_is_committed_or_rolled_back(
    database: Database, connection: Connection
) -> None:
    """At the end of its block it is stored, and after an error nothing of it; the error passes."""

    def insert(*keys: int, failing: Exception | None = None) -> None:
        with database.transaction() as session:
            for key in keys:
                session.execute(f"INSERT INTO {name} VALUES ({key})")
            if failing is not None:
                raise failing

    def swallow() -> None:
        with database.transaction() as session, contextlib.suppress(psycopg.Error):
            session.execute(f"INSERT INTO {name} VALUES (1)")

    with table(connection, "k int PRIMARY KEY") as name:
        insert(1)
        with pytest.raises(ZeroDivisionError):
            insert(2, failing=ZeroDivisionError())
        with pytest.raises(DataRefusedError):
            insert(3, 1)
        with pytest.raises(ContentionError, match="ROLLBACK"):
            swallow()
        assert connection.execute(f"SELECT k FROM {name}").fetchall() == [(1,)]


def test_there_are_no_more_sessions_than_allowed(cluster: Cluster, connection: Connection) -> None:
    """Threads wait for a session; who waits too long is told, who gives up is let go."""
    name = "test_bounded"
    location = located(cluster.local_url(application_name=name))
    database = Database(location, pool_size=2, statement_timeout=30)
    counted = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'"
    most: list[int] = []

    def work(_: int) -> None:
        with database.transaction() as session:
            session.execute("SELECT pg_sleep(0.001)")
            row = connection.execute(counted).fetchone()
            assert row is not None
            most.append(row[0])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(60)))
    assert len(most) == 60
    assert max(most) <= 2
    cancel = threading.Event()
    with database.session(), database.session():
        with (
            pytest.raises(ServerTimeoutError, match="pool_size"),
            database.session(timeout=0.02),
        ):
            raise AssertionError
        timer = threading.Timer(0.05, cancel.set)
        timer.start()
        with pytest.raises(CancelledError), database.session(cancel=cancel):
            raise AssertionError
        timer.join()
    database.close()
    database.close()
    with pytest.raises(NotOpenError), database.session():
        raise AssertionError


def test_statements_end_in_time_and_leave_the_session_in_order(database: Database) -> None:
    """The server ends a statement that takes too long; the session goes on with the next."""
    with database.session() as session:
        backend = session.info.backend_pid
    for _ in range(2):
        with (
            pytest.raises(ServerTimeoutError, match="57014") as caught,
            database.transaction(timeout=0.05) as session,
        ):
            session.execute("SELECT pg_sleep(60)")
        assert not caught.value.commit_unknown
        assert not session.closed
    with database.session() as session:
        assert session.info.backend_pid == backend


def test_a_statement_can_be_cancelled(database: Database, connection: Connection) -> None:
    """`cancel` ends a statement under way, and the server, left alone, ends it too."""
    cancel = threading.Event()
    timer = threading.Timer(0.1, cancel.set)
    timer.start()
    with pytest.raises(CancelledError), database.transaction(cancel=cancel) as session:
        session.execute("SELECT pg_sleep(600) -- test_cancelled")
    timer.join()
    there = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE query LIKE '%test_cancelled' AND pid <> pg_backend_pid() AND state = 'active'"
    )
    while connection.execute(there).fetchone() != (0,):
        pass
    cancel.clear()
    timer = threading.Timer(0.1, cancel.set)
    timer.start()
    with database.session(cancel=cancel) as session:
        with pytest.raises(CancelledError):
            session.execute("SELECT pg_sleep(600)")
        assert session.closed  # what the server still sends is no answer to the next statement
    timer.join()
    with database.transaction() as session:
        session.execute("SELECT 1")


def test_sessions_that_were_lost_are_replaced(database: Database, connection: Connection) -> None:
    """Whoever comes next gets a new session, and no error, whether the loss showed or not."""
    for _ in range(3):
        with database.session() as one, database.session() as other:
            backends = [one.info.backend_pid, other.info.backend_pid]
        for backend in backends:
            connection.execute("SELECT pg_terminate_backend(%s, 10000)", [backend])
        with database.session() as session:
            assert session.info.backend_pid not in backends
            session.execute("SELECT 1")


def test_a_loss_within_a_transaction_is_told(database: Database, connection: Connection) -> None:
    """A session that is lost within the block is an error: what was done is not done again."""
    terminate = "SELECT pg_terminate_backend(%s, 10000)"

    def lose(*, before: bool) -> None:
        with database.transaction() as session:
            if before:
                connection.execute(terminate, [session.info.backend_pid])
            session.execute("SELECT 1")
            connection.execute(terminate, [session.info.backend_pid])

    with pytest.raises(ServerConnectionError) as caught:
        lose(before=True)
    assert not caught.value.commit_unknown
    with pytest.raises(ServerConnectionError) as caught:
        lose(before=False)
    assert caught.value.commit_unknown


def test_a_child_process_does_not_harm_the_sessions_of_its_parent(database: Database) -> None:
    """After a fork the child is refused, and its `close()` leaves the parent's sessions alone."""
    with database.session() as session:
        backend = session.info.backend_pid
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with database.session():
                pass
        except ForkedError:
            database.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with database.transaction() as session:
        session.execute("SELECT 1")
        assert session.info.backend_pid == backend


def test_a_server_that_does_not_answer_a_connection_is_given_up(cluster: Cluster) -> None:
    """Connecting ends by `connect_timeout`, by the call's own time, or by `cancel`."""
    cancel = threading.Event()
    with Proxy(cluster.port) as proxy:
        proxy.fault = "black hole"
        url = cluster.url(port=proxy.port, connect_timeout=1)
        database = Database(located(url))
        with pytest.raises(ServerTimeoutError, match="connecting"), database.session():
            raise AssertionError
        with pytest.raises(ServerTimeoutError), database.session(timeout=0.05):
            raise AssertionError
        timer = threading.Timer(0.05, cancel.set)
        timer.start()
        with pytest.raises(CancelledError), database.session(cancel=cancel, timeout=600):
            raise AssertionError
        timer.join()
        database.close()


def test_parameters_that_make_no_sense_are_told(cluster: Cluster) -> None:
    """What libpq does not take is an error of the options, and names no secret."""
    for parameter in ("sslmode", "target_session_attrs", "connect_timeout"):
        database = Database(located(f"{cluster.url()}?{parameter}=nonsense"))
        wrong = (UnknownOptionError, ServerConnectionError)
        with pytest.raises(wrong) as caught, database.session():
            raise AssertionError
        assert cluster.password not in str(caught.value)
        database.close()


def test_everything_works_behind_a_pooler(cluster: Cluster, connection: Connection) -> None:
    """Four writers share two server connections, by transaction, and leave nothing on them."""
    folder = cluster.folder / "pooler"
    folder.mkdir()
    with (
        pooled(cluster, folder, size=2) as port,
        table(connection, "k int PRIMARY KEY, v text") as name,
    ):
        url = cluster.url(port=port)
        engine = tsengine.open(url, schema="pooled")
        other = tsengine.open(url, schema="pooled")

        def work(part: int) -> None:
            for turn in range(20):
                number = part * 100 + turn
                points = [
                    (Labels({"part": str(part)}), number * 10_000 + n, 1.0) for n in range(1, 10)
                ]
                (engine if turn % 2 else other).write(points)
                rows = [(k, f"{number}") for k in range(turn, turn + 20)]
                bulk_upsert(url, name, rows, columns=["k", "v"], key=["k"])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        big = [(Labels({"part": "big"}), n, 1.0) for n in range(1, 30_001)]  # by COPY
        engine.write(big)
        assert engine.count() == 4 * 20 * 9 + 30_000
        assert connection.execute(f"SELECT count(*) FROM {name}").fetchone() == (39,)
        sources = "SELECT name, setting FROM pg_settings WHERE source = 'session' ORDER BY name"
        with psycopg.connect(url, prepare_threshold=None) as one:
            pass
        with psycopg.connect(url, prepare_threshold=None) as one:
            settings: dict[str, str] = dict(one.execute(sources).fetchall())
            assert not settings.keys() & {
                "statement_timeout",
                "lock_timeout",
                "search_path",
                "enable_hashjoin",
                "idle_in_transaction_session_timeout",
            }
            assert one.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)
            staged = "SELECT count(*) FROM pg_class WHERE relpersistence = 't'"
            assert one.execute(staged).fetchone() == (0,)
        engine.close()
        other.close()
    connection.execute("DROP SCHEMA pooled CASCADE")
