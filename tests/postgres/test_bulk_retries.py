from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.postgres.cluster import Cluster
from tests.postgres.tables import connected, refusing, table
from tsengine.backends.postgres import bulk_upsert, upserting
from tsengine.errors import (
    BatchTooLargeError,
    BulkUpsertCancelledError,
    BulkUpsertError,
    ContentionError,
    ServerTimeoutError,
)
from tsengine.metrics import BulkUpsertReport
from tsengine.retry import REGROW_AFTER, RetryPolicy

Connection = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def connection(cluster: Cluster) -> Iterator[Connection]:
    """A connection of the superuser, to look behind the back of what is tested."""
    with connected(cluster) as made:
        yield made


@pytest.fixture
def name(connection: Connection) -> Iterator[str]:
    """A table with the columns k, its key, and v."""
    with table(connection, "k int PRIMARY KEY, v int") as made:
        yield made


def attempts(connection: Connection, sequence: str) -> int:
    """How many statements the server has seen."""
    row = connection.execute(f"SELECT last_value, is_called FROM {sequence}").fetchone()
    assert row is not None
    return int(row[0]) + 1 if row[1] else 0


def upsert(cluster: Cluster, name: str, count: int, **options: Any) -> BulkUpsertReport:
    """Upsert so many rows, by the policy that is the default but for its pauses."""
    policy = RetryPolicy(**({"deadline": None, "backoff_min": 0.001} | options.pop("policy", {})))
    rows = ((k, k) for k in range(count))
    return bulk_upsert(
        cluster.local_url(),
        name,
        rows,
        columns=["k", "v"],
        key=["k"],
        policy=policy,
        **options,
    )


def test_a_batch_that_is_too_large_is_halved_and_the_size_remembered(
    cluster: Cluster, connection: Connection, name: str
) -> None:
    """What is refused for its size goes in halves; later batches begin so, and then grow again."""
    sizes: list[int] = []
    with refusing(connection, name, "rows > 700", "54000") as sequence:
        report = upsert(
            cluster, name, 20_000, progress=lambda told: sizes.append(told.submitted - sum(sizes))
        )
        assert report.inserted == 20_000
        assert max(sizes) == 625
        # 5000, 2500, 1250; then one in nine is tried larger.
        assert report.retries == 3 + (len(sizes) - 1) // REGROW_AFTER
        assert attempts(connection, sequence) == len(sizes) + report.retries
        connection.execute(f"DROP TRIGGER refuse ON {name}")
    connection.execute(f"TRUNCATE {name}")
    with refusing(connection, name, "rows > 700 AND attempt < 10", "54000"):
        assert upsert(cluster, name, 100_000).batch_size == 5_000


def test_the_least_size_is_reached_and_retried(
    cluster: Cluster, connection: Connection, name: str
) -> None:
    """Sizes go down to `min_batch_size` itself, which is then retried `max_retries` times."""
    with refusing(connection, name, "rows >= 500", "54000") as sequence:
        with pytest.raises(BulkUpsertError) as caught:
            upsert(cluster, name, 5_000)
        assert isinstance(caught.value.__cause__, BatchTooLargeError)
        # 5000, 2500, 1250, 625, 500, and three retries of that.
        assert attempts(connection, sequence) == 5 + 3
        assert caught.value.report == BulkUpsertReport(retries=7, batch_size=500)
    connection.execute(f"DROP TRIGGER IF EXISTS refuse ON {name}")
    with refusing(connection, name, "attempt < 5 + 2", "54000"):
        assert upsert(cluster, name, 5_000).inserted == 5_000


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_retries_are_counted_without_the_first_attempt(
    cluster: Cluster, connection: Connection, name: str, retries: int
) -> None:
    """What time heals is tried once and `max_retries` times again, at the same size."""
    policy = {"max_retries": retries, "batch_size": 100}
    with refusing(connection, name, "true", "40001") as sequence:
        with pytest.raises(BulkUpsertError, match="40001") as caught:
            upsert(cluster, name, 1_000, policy=policy)
        assert isinstance(caught.value.__cause__, ContentionError)
        assert attempts(connection, sequence) == 1 + retries
        assert caught.value.report == BulkUpsertReport(retries=retries, batch_size=100)
    with refusing(connection, name, f"attempt < {retries}", "40P01") as sequence:
        report = upsert(cluster, name, 1_000, policy=policy)
        assert (report.inserted, report.retries) == (1_000, retries)


@pytest.mark.parametrize("sqlstate", ["23514", "42501", "XX001", "22000"])
def test_what_no_retry_heals_is_not_retried(
    cluster: Cluster, connection: Connection, name: str, sqlstate: str
) -> None:
    """Errors of data, rights and damage end the call at once, and say what had landed."""
    with refusing(connection, name, "attempt = 3", sqlstate) as sequence:
        with pytest.raises(BulkUpsertError, match=sqlstate) as caught:
            upsert(cluster, name, 1_000, policy={"batch_size": 100})
        assert attempts(connection, sequence) == 4
        assert caught.value.report.inserted == 300
        assert connection.execute(f"SELECT count(*) FROM {name}").fetchone() == (300,)


def test_an_attempt_takes_no_longer_than_its_timeout(
    cluster: Cluster, connection: Connection, name: str
) -> None:
    """A statement that waits is ended by the server, tried again smaller, and given up in time."""
    connection.execute(f"INSERT INTO {name} VALUES (5, 0)")
    with psycopg.connect(cluster.local_url()) as other:
        other.execute(f"UPDATE {name} SET v = 1")
        with pytest.raises(BulkUpsertError) as caught:
            upsert(
                cluster,
                name,
                20,
                policy={
                    "timeout": 0.2,
                    "max_retries": 2,
                    "batch_size": 16,
                    "min_batch_size": 8,
                },
            )
        assert isinstance(caught.value.__cause__, (ServerTimeoutError, ContentionError))
        assert caught.value.report == BulkUpsertReport(retries=3, batch_size=8)
        other.rollback()
    assert upsert(cluster, name, 20).submitted == 20


def test_a_call_that_waits_can_be_cancelled(
    cluster: Cluster, connection: Connection, name: str
) -> None:
    """`cancel` ends a wait for a lock, and a pause; nothing of the batch is stored."""
    connection.execute(f"INSERT INTO {name} VALUES (5, 0)")
    cancel = threading.Event()
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
        f"AND query LIKE '%{name}%' AND pid <> pg_backend_pid()"
    )
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            upsert(cluster, name, 20, cancel=cancel)
        except BulkUpsertCancelledError as error:
            failures.append(error)

    with psycopg.connect(cluster.local_url()) as other:
        other.execute(f"UPDATE {name} SET v = 1")
        thread = threading.Thread(target=wait)
        thread.start()
        while connection.execute(waiting).fetchone() == (0,):
            pass
        cancel.set()
        thread.join(30)
        assert not thread.is_alive()
        other.rollback()
    assert len(failures) == 1
    assert connection.execute(f"SELECT k, v FROM {name}").fetchall() == [(5, 0)]
    connection.execute(f"TRUNCATE {name}")
    cancel.clear()
    with refusing(connection, name, "true", "40001"):
        timer = threading.Timer(0.05, cancel.set)
        timer.start()
        with pytest.raises(BulkUpsertCancelledError):
            upsert(cluster, name, 5, cancel=cancel, policy={"backoff_min": 60, "backoff_max": 60})
        timer.join()


def test_batches_leave_the_server_to_others(cluster: Cluster, name: str) -> None:
    """Between two batches `throttle_interval` passes, and after the last one nothing waits."""
    cancel = threading.Event()
    with pytest.raises(BulkUpsertCancelledError) as caught:
        upsert(
            cluster,
            name,
            20,
            cancel=cancel,
            policy={"batch_size": 10, "throttle_interval": 600.0},
            progress=lambda _: threading.Timer(0.1, cancel.set).start(),
        )
    assert caught.value.report.inserted == 10
    options = {"batch_size": 20, "throttle_interval": 600.0}
    assert upsert(cluster, name, 20, policy=options).submitted == 20


def test_a_batch_of_too_many_bytes_is_not_even_sent(
    cluster: Cluster, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is larger than is sent at once is halved here, as what the server refuses is."""
    monkeypatch.setattr(upserting, "BYTES_MAX", 4_100)  # 16 bytes a row, and 40 for two arrays
    report = upsert(cluster, name, 1_000, policy={"batch_size": 1_000, "min_batch_size": 10})
    assert report.inserted == 1_000
    assert report.retries == 2
    assert report.batch_size == 250
    with pytest.raises(BulkUpsertError) as caught:
        upsert(cluster, name, 1_000, policy={"batch_size": 1_000})
    assert isinstance(caught.value.__cause__, BatchTooLargeError)
