from __future__ import annotations

import contextlib
import os
import random
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import tsengine
from tests.postgres.cluster import Cluster
from tests.postgres.proxy import Fault, Proxy
from tests.postgres.shared import require_server
from tests.postgres.tables import connected
from tests.reliability.disk import CannotMountError, mounted
from tsengine.backends.postgres import PostgresEngine
from tsengine.errors import (
    AccessDeniedError,
    FormatVersionError,
    ServerConnectionError,
    ServerTimeoutError,
    StorageFullError,
    UnsupportedError,
)
from tsengine.model import Labels
from tsengine.retry import RetryPolicy

NO_TLS = {"sslmode": "disable", "gssencmode": "disable"}
POLICY = RetryPolicy(max_retries=30, backoff_min=0.01, backoff_max=0.2, deadline=None)
"""Patient enough for what these tests do."""

START = 1_700_000_000 * 10**9


@pytest.fixture(scope="module")
def durable() -> Iterator[Cluster]:
    """A server of these tests alone, whose commits reach the disk, and which they may kill."""
    require_server()
    with Cluster(fsync=True) as cluster:
        yield cluster


@pytest.fixture
def proxy(durable: Cluster) -> Iterator[Proxy]:
    """A proxy in front of the server."""
    with Proxy(durable.port) as made:
        yield made


@pytest.fixture
def schema(durable: Cluster) -> Iterator[str]:
    """The name of a schema that is not there yet, and is dropped afterwards."""
    yield "faults"
    with connected(durable) as connection:
        connection.execute("DROP SCHEMA IF EXISTS faults CASCADE")


def opened(url: str, schema: str, **options: Any) -> PostgresEngine:
    """Open a store whose repeated points add up, so that a batch stored twice is seen."""
    engine = tsengine.open(url, schema=schema, duplicate_policy="sum", **options)
    assert isinstance(engine, PostgresEngine)
    return engine


def sums(cluster: Cluster, schema: str) -> dict[tuple[str, int], float]:
    """Give what is stored, as a DBA reads it."""
    with connected(cluster) as connection:
        rows = connection.execute(
            f"SELECT labels ->> 'series', time_ns, value FROM {schema}.readings"
        ).fetchall()
    return {(name, time): value for name, time, value in rows}


Points = list[tuple[Labels, int, object]]
SERIES = [Labels({"series": str(number)}) for number in range(10)]


def points(batches: int, size: int) -> Points:
    """Give points of ten series, each at a moment of its own, of value 1."""
    return [(SERIES[number % 10], START + number, 1.0) for number in range(batches * size)]


def wanted(given: Points) -> dict[tuple[str, int], object]:
    """Give what is stored once all points are, each once."""
    return {(labels["series"], time): value for labels, time, value in given}


@pytest.mark.parametrize(
    "fault", ["cut before commit", "cut after commit", "swallow and cut", "swallow commit"]
)
def test_a_batch_whose_commit_is_lost_is_stored_once(
    durable: Cluster, proxy: Proxy, schema: str, fault: Fault
) -> None:
    """Whatever became of the COMMIT, the buffer's next attempt stores what is missing, once."""
    given = points(6, 50)
    engine = opened(
        durable.url(port=proxy.port, **NO_TLS), schema, statement_timeout=1.0, lock_timeout=1.0
    )
    engine.write(given[:50])
    done = threading.Event()

    def heal() -> None:
        while not done.wait(0.001):
            if proxy.faults:
                proxy.fault = ""

    healer = threading.Thread(target=heal)
    healer.start()
    try:
        with tsengine.WriteBuffer(engine, points_max=50, age_max=None, retry=POLICY) as buffer:
            for number, point in enumerate(given[50:]):
                if number == 70:
                    proxy.fault = fault
                buffer.write(point)
    finally:
        done.set()
        healer.join()
    engine.close()
    assert proxy.faults >= 1
    assert sums(durable, schema) == wanted(given)


def test_whatever_the_network_does_each_point_is_stored_once(
    durable: Cluster, proxy: Proxy, schema: str
) -> None:
    """Connections cut at random, of four writers, lose no acknowledged point and double none."""
    engine = opened(durable.url(port=proxy.port, **NO_TLS), schema)
    given = points(80, 50)
    engine.write(given[:10])
    chooser = random.Random(6)
    done = threading.Event()

    def harm() -> None:
        while not done.wait(chooser.uniform(0.005, 0.08)):
            proxy.cut()

    harmer = threading.Thread(target=harm)
    harmer.start()

    def write(part: int) -> None:
        buffer = tsengine.WriteBuffer(engine, points_max=50, age_max=None, retry=POLICY)
        for point in given[10:][part::4]:
            is_taken = False
            while not is_taken:
                # The first point of a series asks the server; where that fails it is not taken.
                with contextlib.suppress(ServerConnectionError):
                    buffer.write(point)
                    is_taken = True
        buffer.close()

    try:
        with ThreadPoolExecutor(4) as pool:
            for call in [pool.submit(write, part) for part in range(4)]:
                call.result(100)
    finally:
        done.set()
        harmer.join()
    engine.close()
    assert sums(durable, schema) == wanted(given)


def test_a_server_that_is_killed_keeps_what_it_acknowledged(
    durable: Cluster, proxy: Proxy, schema: str
) -> None:
    """After SIGKILL in the middle of a COPY and a restart no acknowledged point is missing.

    Batches are large, so that they go by COPY. What was not acknowledged is sent again by the
    buffer, and stored once.
    """
    given = points(3, 30_000)
    engine = opened(durable.url(port=proxy.port, **NO_TLS), schema)
    engine.write(given[:30_000])
    struck = threading.Event()

    def strike() -> None:
        durable.kill()
        struck.set()

    def write() -> None:
        retry = RetryPolicy(max_retries=300, backoff_min=0.1, backoff_max=0.5, deadline=None)
        buffer = tsengine.WriteBuffer(engine, points_max=30_000, age_max=None, retry=retry)
        for point in given[30_000:]:
            buffer.write(point)
        buffer.close()

    proxy.after(1_500_000, strike)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(write)
        assert struck.wait(60)
        durable.start()
        call.result(100)
    engine.close()
    assert sums(durable, schema) == wanted(given)


def test_a_flush_that_fails_leaves_no_part_of_it(
    durable: Cluster, proxy: Proxy, schema: str
) -> None:
    """Wherever in a flush the connection is cut, all of it is stored or nothing."""
    engine = opened(durable.url(port=proxy.port, **NO_TLS), schema)
    engine.write(points(1, 10))
    failures = 0
    for turn in range(1, 25):
        given: Points = [(SERIES[0], START + turn * 10_000 + n, 1.0) for n in range(300)]
        proxy.after(int(turn**2 * 40), proxy.cut)
        try:
            engine.write(given)
        except ServerConnectionError:
            failures += 1
        proxy.after(0, None)
        first, last = START + turn * 10_000, START + turn * 10_000 + 300
        found = [time for _, time in sums(durable, schema) if first <= time < last]
        assert len(found) in (0, 300)
    assert failures
    engine.close()


def test_a_black_hole_ends_in_bounded_time(durable: Cluster, proxy: Proxy, schema: str) -> None:
    """Reads, writes and an open of a server that says nothing any more raise in time."""
    url = durable.url(port=proxy.port, connect_timeout=1, **NO_TLS)
    engine = opened(url, schema, statement_timeout=0.3)
    engine.write(points(1, 10))
    proxy.fault = "black hole"
    with pytest.raises(ServerTimeoutError):
        engine.write(points(1, 10))
    with pytest.raises(ServerTimeoutError):
        engine.count()
    with pytest.raises(ServerTimeoutError):
        opened(url, schema)
    proxy.fault = ""
    assert engine.count() == 10
    engine.close()


def test_a_lost_connection_is_replaced_for_the_next_call(
    durable: Cluster, proxy: Proxy, schema: str
) -> None:
    """Sessions that were terminated or cut while idle are not noticed by whoever comes next."""
    engine = opened(durable.url(port=proxy.port, **NO_TLS), schema)
    engine.write(points(1, 10))
    for _ in range(3):
        proxy.cut()
        assert engine.count() == 10
        with connected(durable) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'tsengine'"
            )
        assert engine.write([(SERIES[0], START, 0.0)]).accepted == 1
    engine.close()


def test_a_full_disk_keeps_what_it_acknowledged(durable: Cluster, schema: str) -> None:
    """Where the disk is full a write says so and stores nothing; with room the buffer goes on."""
    try:
        with mounted("tmpfs", durable.folder, 24) as place:
            _fill_and_go_on(durable, schema, place)
    except CannotMountError as error:
        pytest.skip(f"a full disk needs root: {error}")


def _fill_and_go_on(durable: Cluster, schema: str, place: Path) -> None:
    folder = place / "space"
    folder.mkdir()
    owner = durable.folder.stat()
    os.chown(folder, owner.st_uid, owner.st_gid)
    with connected(durable) as connection:
        connection.execute(f"CREATE TABLESPACE small LOCATION '{folder}'")
        connection.execute("CREATE DATABASE small TABLESPACE small")
    ballast = place / "ballast"
    engine = opened(durable.url("small"), schema)
    ballast.write_bytes(bytes(shutil.disk_usage(place).free - (2 << 20)))
    given = points(100, 1_000)
    stored = 0
    is_full = False
    while not is_full:
        try:
            engine.write(given[stored : stored + 1_000])
        except StorageFullError:
            is_full = True
        else:
            stored += 1_000
    assert 0 < stored < len(given)
    assert engine.count() == stored
    ballast.unlink()
    engine.write(given[stored : stored + 1_000])
    assert engine.count() == stored + 1_000
    engine.close()
    with connected(durable) as connection:
        connection.execute("DROP DATABASE small")
        connection.execute("DROP TABLESPACE small")


def test_who_may_not_come_in_is_told_so(durable: Cluster, schema: str) -> None:
    """A wrong password and a missing right are errors that are not retried and tell no secret."""
    with pytest.raises(AccessDeniedError) as caught:
        opened(durable.url(password="s3cr3t"), schema)
    assert "s3cr3t" not in str(caught.value) + repr(caught.value.__cause__)
    with connected(durable) as connection:
        connection.execute("DROP ROLE IF EXISTS nobody_here")
        connection.execute("CREATE ROLE nobody_here LOGIN PASSWORD 'x'")
    opened(durable.url(), schema).close()
    url = durable.url(user="nobody_here", password="x")
    with pytest.raises(AccessDeniedError):
        opened(url, schema)
    with pytest.raises(AccessDeniedError):
        opened(url, "another")
    with connected(durable) as connection:
        connection.execute("DROP ROLE nobody_here")


def test_a_store_of_a_newer_version_is_refused(durable: Cluster, schema: str) -> None:
    """A schema that a later tsengine has made is not touched, and is named as what it is."""
    opened(durable.url(), schema).close()
    with connected(durable) as connection:
        connection.execute(f"UPDATE {schema}.store SET version = version + 1")
    with pytest.raises(FormatVersionError):
        opened(durable.url(), schema)


def test_a_server_that_is_too_old_is_refused(durable: Cluster, proxy: Proxy, schema: str) -> None:
    """A server below the oldest version is refused as the store is opened.

    The proxy changes the version that the server tells; an old server itself is not run.
    """
    proxy.version = b"14"
    with pytest.raises(UnsupportedError, match=r"is PostgreSQL 14\.\d+; at least 15"):
        opened(durable.url(port=proxy.port, **NO_TLS), schema)


def test_no_message_of_an_engine_has_its_password(durable: Cluster, schema: str) -> None:
    """Neither the text of an engine nor of its errors repeats how it connects."""
    engine = opened(durable.url(sslpassword="s3cr3t"), schema)
    said = repr(engine) + str(engine.location) + str(vars(engine)["_location"])
    engine.close()
    with pytest.raises(tsengine.NotOpenError) as caught:
        engine.count()
    said += str(caught.value)
    for secret in (durable.password, "s3cr3t"):
        assert secret not in said
