from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.postgres.cluster import Cluster
from tests.postgres.proxy import Fault, Proxy
from tests.postgres.shared import require_server
from tests.postgres.tables import connected
from tests.reliability.disk import CannotMountError, mounted
from tsengine.backends.postgres import Database, bulk_upsert
from tsengine.backends.postgres.bulk import _Call
from tsengine.backends.postgres.lending import Transactions
from tsengine.backends.postgres.location import libpq_options, parse_url
from tsengine.backends.postgres.upserting import LIFE, Landed, Upsert
from tsengine.errors import (
    AccessDeniedError,
    BulkUpsertCancelledError,
    BulkUpsertError,
    ServerConnectionError,
    ServerTimeoutError,
    StorageFullError,
    UnknownOptionError,
    UnsupportedError,
)
from tsengine.metrics import BulkUpsertReport
from tsengine.retry import RetryPolicy

Connection = psycopg.Connection[Any]
NO_TLS = {"sslmode": "disable", "gssencmode": "disable"}


@pytest.fixture(scope="module")
def durable() -> Iterator[Cluster]:
    """A server of these tests alone, whose commits reach the disk, and which they may kill."""
    require_server()
    with Cluster(fsync=True) as cluster:
        yield cluster


@pytest.fixture
def connection(durable: Cluster) -> Iterator[Connection]:
    """A connection of the superuser, past the proxy."""
    with connected(durable) as made:
        yield made


@pytest.fixture
def name(durable: Cluster) -> Iterator[str]:
    """A table with the columns k, its key, and v; it is dropped by whoever the server is then."""
    with connected(durable) as made:
        made.execute("DROP TABLE IF EXISTS faulty; CREATE TABLE faulty (k int PRIMARY KEY, v text)")
    yield "faulty"
    with connected(durable) as made:
        made.execute("DROP TABLE faulty")


@pytest.fixture
def proxy(durable: Cluster) -> Iterator[Proxy]:
    """A proxy in front of the server."""
    with Proxy(durable.port) as made:
        yield made


def rows(count: int) -> Iterator[tuple[int, str]]:
    """Give so many rows of about 1 kB."""
    return ((k, f"{k:01000}") for k in range(count))


def upsert(target: Any, name: str, given: Any, **options: Any) -> BulkUpsertReport:
    """Upsert in batches of 100, by a policy whose pauses are short."""
    policy: dict[str, Any] = {
        "deadline": None,
        "backoff_min": 0.01,
        "batch_size": 100,
        "min_batch_size": 100,
    }
    policy |= options.pop("policy", {})
    return bulk_upsert(
        target, name, given, columns=["k", "v"], key=["k"], policy=RetryPolicy(**policy), **options
    )


def count(connection: Connection, name: str) -> int:
    """Count the rows of a table."""
    row = connection.execute(f"SELECT count(*) FROM {name}").fetchone()
    assert row is not None
    return int(row[0])


@contextlib.contextmanager
def changing(proxy: Proxy, then: Fault) -> Iterator[None]:
    """Change the fault of a proxy as soon as it has done the first one to a connection."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            if proxy.faults:
                proxy.fault = then

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def harmed(proxy: Proxy, fault: Fault) -> Iterator[tuple[int, str]]:
    """Give 500 rows, and have the COMMIT of the second batch of 100 go wrong."""
    for k, row in enumerate(rows(500)):
        if k == 150:
            proxy.fault = fault
        yield row


@pytest.mark.parametrize("on_conflict", ["update", "ignore", "error"])
@pytest.mark.parametrize(
    "fault", ["cut before commit", "cut after commit", "swallow and cut", "swallow commit"]
)
def test_a_commit_whose_connection_is_lost_counts_once(
    durable: Cluster,
    proxy: Proxy,
    connection: Connection,
    name: str,
    fault: Fault,
    on_conflict: Any,
) -> None:
    """Whether the commit landed or not, each row is stored once and counted as what it was."""
    url = durable.url(port=proxy.port, **NO_TLS)
    with changing(proxy, ""):
        report = upsert(
            url, name, harmed(proxy, fault), on_conflict=on_conflict, policy={"timeout": 4.0}
        )
    assert proxy.faults == 1
    retries = 0 if fault == "cut after commit" else 1
    assert report == BulkUpsertReport(500, 500, batches=5, retries=retries, batch_size=100)
    assert count(connection, name) == 500


@pytest.mark.parametrize("fault", ["cut before commit", "cut after commit"])
def test_a_commit_that_nobody_can_tell_of_ends_the_call(
    durable: Cluster, proxy: Proxy, connection: Connection, name: str, fault: Fault
) -> None:
    """Where the server cannot be asked any more the doubt is told, and nothing is tried again."""
    url = durable.url(port=proxy.port, connect_timeout=1, **NO_TLS)
    policy = {"timeout": 1.0, "backoff_max": 0.01}
    with changing(proxy, "black hole"), pytest.raises(BulkUpsertError, match="100 more") as caught:
        upsert(url, name, harmed(proxy, fault), policy=policy)
    report = caught.value.report
    assert report == BulkUpsertReport(200, 100, unknown=100, batches=1, batch_size=100)
    assert isinstance(caught.value.__cause__, ServerConnectionError)
    assert count(connection, name) == (200 if fault == "cut after commit" else 100)


def test_a_crash_without_a_restart_begins_another_life(durable: Cluster) -> None:
    """Where one process of the server is killed, numbers of transactions are not trusted after."""

    def life() -> str:
        with connected(durable) as made:
            row = made.execute(f"SELECT {LIFE}").fetchone()
            assert row is not None
            return str(row[0])

    before = life()
    assert life() == before
    with connected(durable) as other, psycopg.connect(durable.local_url()) as victim:
        os.kill(victim.info.backend_pid, signal.SIGKILL)
        with pytest.raises(psycopg.OperationalError):
            other.execute("SELECT pg_sleep(60)")
    for _ in range(600):
        try:
            after = life()
            break
        except psycopg.OperationalError:  # it recovers
            threading.Event().wait(0.1)
    else:
        pytest.fail("the server does not come back")
    assert after != before


def test_a_stranger_of_another_life_is_left_alone(durable: Cluster, connection: Connection) -> None:
    """A transaction that has the number of a lost one after a crash is not ended for it."""
    connection.execute("CREATE TABLE IF NOT EXISTS strangers (k int)")
    with psycopg.connect(durable.local_url()) as stranger:
        stranger.execute("INSERT INTO strangers VALUES (1)")
        row = stranger.execute("SELECT pg_current_xact_id()::text").fetchone()
        assert row is not None
        with closing(Transactions(durable.local_url())) as transactions:
            call = _Call(transactions, RetryPolicy(), None, None)
            call._upsert = Upsert("strangers", ("k",), ("k",), "update", (), ())
            lost = Landed(1, 0, 0, transaction=row[0], server="another life")
            assert call._outcome(lost) is False
        stranger.execute("SELECT 1")


def test_a_black_hole_ends_in_bounded_time(
    durable: Cluster, proxy: Proxy, connection: Connection, name: str
) -> None:
    """Where nothing comes back any more an attempt ends by the client's own deadline."""
    proxy.after(150_000, lambda: setattr(proxy, "fault", "black hole"))
    url = durable.url(port=proxy.port, connect_timeout=1, **NO_TLS)
    with pytest.raises(BulkUpsertError) as caught:
        upsert(url, name, rows(1_000), policy={"timeout": 0.5, "max_retries": 1})
    assert isinstance(caught.value.__cause__, ServerTimeoutError)
    assert caught.value.report.inserted == count(connection, name)
    assert caught.value.report.inserted in (0, 100)
    proxy.fault = ""
    assert upsert(url, name, rows(1_000)).inserted == 1_000 - caught.value.report.inserted


def test_a_black_hole_can_be_left_by_cancelling(
    durable: Cluster, proxy: Proxy, connection: Connection, name: str
) -> None:
    """`cancel` ends a wait for a server that does not answer, long before the deadline."""
    cancel = threading.Event()

    def vanish() -> None:
        proxy.fault = "black hole"
        threading.Timer(0.2, cancel.set).start()

    proxy.after(150_000, vanish)
    url = durable.url(port=proxy.port, **NO_TLS)
    with pytest.raises(BulkUpsertCancelledError):
        upsert(url, name, rows(1_000), cancel=cancel, policy={"timeout": 600.0})
    assert count(connection, name) in (0, 100)


@pytest.mark.parametrize("bytes_sent", [30_000, 160_000, 333_333])
def test_a_server_that_is_killed_in_the_middle_of_a_batch_loses_nothing(
    durable: Cluster, proxy: Proxy, name: str, bytes_sent: int
) -> None:
    """After SIGKILL and a restart the batch is sent again; what was acknowledged is there."""
    struck = threading.Event()

    def strike() -> None:
        durable.kill()
        struck.set()

    proxy.after(bytes_sent, strike)
    url = durable.url(port=proxy.port, **NO_TLS)
    policy = {"max_retries": 8, "backoff_min": 0.1}
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(upsert, url, name, rows(600), policy=policy)
        assert struck.wait(60)
        durable.start()  # in the main thread, as a server ends with the thread that started it
        report = call.result(60)
    assert report.inserted == 600
    assert report.retries >= 1
    with connected(durable) as after:
        found = after.execute(f"SELECT k, v FROM {name} ORDER BY k").fetchall()
    assert found == list(rows(600))


def test_a_server_that_does_not_come_back_keeps_what_it_acknowledged(
    durable: Cluster, proxy: Proxy, name: str
) -> None:
    """The error says how many rows had landed, and just these are there after the restart."""
    proxy.after(250_000, durable.kill)
    with pytest.raises(BulkUpsertError) as caught:
        upsert(durable.url(port=proxy.port, **NO_TLS), name, rows(600))
    durable.start()
    assert isinstance(caught.value.__cause__, ServerConnectionError)
    assert caught.value.report.retries == 3
    with connected(durable) as after:
        assert count(after, name) == caught.value.report.inserted == 200


def test_a_session_that_is_terminated_is_replaced(
    durable: Cluster, connection: Connection, name: str
) -> None:
    """An administrator may end the session between batches or within one; the call goes on."""
    terminate = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'victim' AND pid <> pg_backend_pid()"
    )

    def given() -> Iterator[tuple[int, str]]:
        for k, row in enumerate(rows(1_000)):
            if k % 130 == 129:
                connection.execute(terminate)
            yield row

    url = durable.url(application_name="victim")
    assert upsert(url, name, given()).inserted == 1_000
    assert count(connection, name) == 1_000


def test_a_connection_of_the_callers_that_is_lost_ends_the_call(
    durable: Cluster, proxy: Proxy, connection: Connection, name: str
) -> None:
    """A single connection cannot be replaced: no retry is made, and the doubt is told."""
    mine = psycopg.connect(durable.url(port=proxy.port, **NO_TLS))
    with pytest.raises(BulkUpsertError, match="not known whether") as caught:
        upsert(mine, name, harmed(proxy, "cut after commit"))
    report = caught.value.report
    assert (report.submitted, report.inserted, report.unknown) == (200, 100, 100)
    assert report.retries == 0
    assert count(connection, name) == 200
    assert mine.closed


def test_a_full_disk_is_told_and_survived(durable: Cluster, connection: Connection) -> None:
    """Where the disk is full the error says so and what had landed; with room it goes on."""
    try:
        with mounted("tmpfs", durable.folder, 8) as place:
            folder = place / "space"
            folder.mkdir()
            _give_to_the_server(folder, durable)
            connection.execute(f"CREATE TABLESPACE small LOCATION '{folder}'")
            connection.execute("CREATE TABLE full_one (k int PRIMARY KEY, v text) TABLESPACE small")
            ballast = place / "ballast"
            ballast.write_bytes(bytes(4 << 20))
            with pytest.raises(BulkUpsertError) as caught:
                upsert(durable.url(), "full_one", rows(6_000))
            assert isinstance(caught.value.__cause__, StorageFullError)
            landed = caught.value.report.inserted
            assert caught.value.report.retries == 3
            assert landed == count(connection, "full_one")
            assert landed % 100 == 0
            ballast.unlink()
            assert upsert(durable.url(), "full_one", rows(landed + 500)).inserted == 500
            connection.execute("DROP TABLE full_one")
            connection.execute("DROP TABLESPACE small")
    except CannotMountError as error:
        pytest.skip(f"a full disk needs root: {error}")


def _give_to_the_server(folder: Path, cluster: Cluster) -> None:
    owner = cluster.folder.stat()
    os.chown(folder, owner.st_uid, owner.st_gid)


def test_a_lock_that_others_hold_is_waited_for_no_longer_than_allowed(
    durable: Cluster, connection: Connection, name: str
) -> None:
    """A lock that is not given in `lock_timeout` is contention, and is tried again."""
    database = Database(parse_url(durable.local_url(), libpq_options()), lock_timeout=0.05)
    with psycopg.connect(durable.local_url()) as other:
        other.execute(f"LOCK TABLE {name}")
        with pytest.raises(BulkUpsertError, match="55P03") as caught:
            upsert(database, name, rows(10))
        assert caught.value.report.retries == 3
    database.close()


SECRET = "s3cr3t word"


def everything_said(error: BaseException) -> str:
    """Give all the words of an error and of those behind it."""
    said = "".join(traceback.format_exception(error))
    behind: BaseException | None = error
    while behind is not None:
        said += repr(behind) + str(behind.args)
        behind = behind.__cause__ or behind.__context__
    return said


def test_a_wrong_password_is_refused_at_once_and_not_told(durable: Cluster, name: str) -> None:
    """Nobody who is not let in tries again; the password is in no message, chain or log."""
    url = durable.url(password=SECRET)
    with pytest.raises(BulkUpsertError) as caught:
        upsert(url, name, rows(1))
    assert isinstance(caught.value.__cause__, AccessDeniedError)
    assert caught.value.report.retries == 0
    assert SECRET not in everything_said(caught.value)
    database = Database(parse_url(url, libpq_options()))
    with pytest.raises(AccessDeniedError), database.transaction():
        pass
    assert SECRET not in repr(database)
    database.close()


def test_a_secret_is_not_told_whatever_fails(durable: Cluster, proxy: Proxy, name: str) -> None:
    """With the right password too, no error of a lost or refused connection repeats it."""
    through = durable.url(port=proxy.port, **NO_TLS)
    nowhere = durable.url("nowhere")
    odd = durable.url(sslmode="nonsense")
    for url in (through, nowhere, odd, durable.url(port=1)):
        proxy.after(1, proxy.cut)
        with pytest.raises((BulkUpsertError, UnknownOptionError)) as caught:
            upsert(url, name, rows(300), policy={"max_retries": 0})
        assert durable.password not in everything_said(caught.value)


@pytest.mark.parametrize("right", ["SELECT", "INSERT", "UPDATE"])
def test_a_right_that_is_missing_is_told(
    durable: Cluster, connection: Connection, name: str, right: str
) -> None:
    """Reading, inserting and updating are needed, and nothing else; without one it ends."""
    role = f"without_{right.lower()}"
    connection.execute(f"DROP DATABASE IF EXISTS {role}")
    connection.execute(f"DROP ROLE IF EXISTS {role}")
    connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    connection.execute(f"CREATE DATABASE {role}")
    connection.execute(f"REVOKE TEMP ON DATABASE {role} FROM public")
    with psycopg.connect(durable.local_url(role), autocommit=True) as inside:
        inside.execute("CREATE TABLE faulty (k int PRIMARY KEY, v text)")
        inside.execute(f"GRANT SELECT, INSERT, UPDATE ON faulty TO {role}")
        url = durable.url(role, user=role, password="x")
        assert upsert(url, name, rows(1)).inserted == 1
        inside.execute(f"REVOKE {right} ON faulty FROM {role}")
    with pytest.raises(BulkUpsertError, match="42501") as caught:
        upsert(url, name, rows(1))
    assert isinstance(caught.value.__cause__, AccessDeniedError)
    assert caught.value.report.retries == 0
    connection.execute(f"DROP DATABASE {role}")
    connection.execute(f"DROP ROLE {role}")


def test_a_server_that_is_too_old_is_refused(durable: Cluster, proxy: Proxy, name: str) -> None:
    """A server below the oldest version is refused as the connection is made.

    The proxy changes the version that the server tells; an old server itself is not run.
    """
    proxy.version = b"11"
    with pytest.raises(BulkUpsertError, match=r"is PostgreSQL 11\.\d+; at least 15") as caught:
        upsert(durable.url(port=proxy.port, **NO_TLS), name, rows(1))
    assert isinstance(caught.value.__cause__, UnsupportedError)


def test_whatever_the_network_does_each_row_is_there_once(
    durable: Cluster, proxy: Proxy, connection: Connection, name: str
) -> None:
    """Connections cut at random moments, again and again, lose and double nothing."""
    chooser = random.Random(5)
    done = threading.Event()

    def harm() -> None:
        while not done.wait(chooser.uniform(0.005, 0.1)):
            proxy.cut()

    harmer = threading.Thread(target=harm)
    harmer.start()
    try:
        report = upsert(
            durable.url(port=proxy.port, **NO_TLS),
            name,
            rows(3_000),
            on_conflict="error",  # a row that were sent twice would end the call
            policy={"max_retries": 50, "backoff_max": 0.05},
        )
    finally:
        done.set()
        harmer.join()
    assert (report.submitted, report.inserted) == (3_000, 3_000)
    assert count(connection, name) == 3_000
