"""Partitions: made ahead, none for outliers, dropped by retention, in nobody's way."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import psycopg
import pytest
from psycopg import sql

from tests.postgres.shared import shared_cluster
from tests.postgres.stores import admin, make_postgres, schema_of
from tsengine.backends.postgres import PostgresEngine, partitions
from tsengine.backends.postgres.partitions import AHEAD, PAST
from tsengine.model import Labels

pytestmark = pytest.mark.usefixtures("stores")

A = Labels("cpu", host="a")
HOUR = 3_600 * 10**9
NOW = 500_000 * HOUR + 5
"""In the sixth nanosecond of an hour."""


def partitions_of(path: Path) -> dict[str, int]:
    """Give the partitions of a store, by name without `points_`, and how many rows each has."""
    with admin().transaction():
        name = sql.Identifier(schema_of(path))
        admin().execute(sql.SQL("SET LOCAL search_path = {}").format(name))
        names = admin().execute(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
            " WHERE i.inhparent = 'points'::regclass"
        )
        return {
            str(name)[7:]: int(str(count))
            for (name,) in names.fetchall()
            for (count,) in admin().execute(
                sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(str(name)))
            )
        }


def hourly(path: Path, clock: list[int], **options: object) -> PostgresEngine:
    """Make a store with partitions of an hour."""
    return make_postgres(path, partition_width="1h", clock_ns=lambda: clock[0], **options)


def test_partitions_are_there_before_they_are_needed(tmp_path: Path) -> None:
    """A commit makes the partitions of its rows, the present one, and the next."""
    with hourly(tmp_path, [NOW]) as engine:
        assert partitions_of(tmp_path) == {"rest": 0}
        engine.write([(A, NOW - 3 * HOUR, 1.0), (A, NOW - 3 * HOUR - 6, 1.0)])
        assert partitions_of(tmp_path) == {
            "rest": 0, "499996": 1, "499997": 1, "500000": 0, "500001": 0
        }  # fmt: skip


def test_time_goes_on(tmp_path: Path) -> None:
    """As time goes by partitions are made ahead, however long the engine is open."""
    clock = [NOW]
    with hourly(tmp_path, clock) as engine:
        for hour in range(4):
            clock[0] = NOW + hour * HOUR
            engine.write([(A, clock[0], 1.0)])
        assert {f"{500_000 + hour}": 1 for hour in range(4)}.items() <= partitions_of(
            tmp_path
        ).items()
        assert partitions_of(tmp_path)["500004"] == 0


def test_outliers_get_none(tmp_path: Path) -> None:
    """Rows far from now go to the default partition, and make none."""
    with hourly(tmp_path, [NOW]) as engine:
        last = NOW // HOUR + AHEAD
        engine.write([(A, 1, 1.0), (A, 2**62, 1.0), (A, (last + 1) * HOUR, 1.0)])
        engine.write([(A, (last - AHEAD - PAST) * HOUR - 1, 1.0), (A, NOW, 1.0)])
        found = partitions_of(tmp_path)
        assert found == {"rest": 4, "500000": 1, "500001": 0}
        assert engine.count() == 5


def test_a_range_that_has_rows_elsewhere_gets_none(tmp_path: Path) -> None:
    """Where rows lie in the default partition already, later ones of that time join them."""
    clock = [NOW]
    with hourly(tmp_path, clock) as engine:
        future = (NOW // HOUR + 10) * HOUR
        engine.write([(A, future, 1.0)])
        clock[0] = future
        engine.write([(A, future + 1, 2.0), (A, future + HOUR, 3.0)])
        assert partitions_of(tmp_path)["rest"] == 2
        assert partitions_of(tmp_path)["500011"] == 1
        assert engine.query(A)[0].values.tolist() == [1.0, 2.0, 3.0]


def test_a_batch_over_much_time_makes_what_it_has_rows_in(tmp_path: Path) -> None:
    """A batch with gaps makes partitions for its rows, not for its gaps."""
    with hourly(tmp_path, [NOW]) as engine:
        hours = np.array([1, 50, 51, 100, 150]) * HOUR
        engine.write_series(A, NOW - hours, np.ones(5))
        assert len(partitions_of(tmp_path)) == 5 + 2 + 1
        assert partitions_of(tmp_path)["rest"] == 0


def test_reads_keep_no_partition_from_being_made(tmp_path: Path) -> None:
    """A scan under way does not stop commits; what cannot be made is left to a later one."""
    clock = [NOW]
    with hourly(tmp_path, clock) as engine:
        engine.write_series(A, NOW - np.arange(10_000), np.ones(10_000))
        scan = engine.scan()
        next(scan)
        clock[0] += 5 * HOUR
        engine.write([(A, clock[0], 2.0)])  # the default partition is being read
        assert engine.latest(A)[0].value == 2.0
        assert sum(map(len, scan)) == 10_000 - 4_096


def test_what_could_not_be_made_is_made_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while a commit tries again to make partitions that it could not."""
    monkeypatch.setattr(partitions, "_AGAIN_SECONDS", 0.0)
    clock = [NOW]
    with hourly(tmp_path, clock) as engine:
        engine.write([(A, NOW, 1.0)])
        table = sql.Identifier(schema_of(tmp_path), "points_rest")
        clock[0] += 5 * HOUR
        with psycopg.connect(admin().info.dsn, autocommit=False) as other:
            other.execute(sql.SQL("SELECT FROM {}").format(table))
            engine.write([(A, NOW + 1, 2.0)])
            assert "500006" not in partitions_of(tmp_path)
        engine.write([(A, NOW + 2, 2.0)])
        assert {"500005", "500006"} <= partitions_of(tmp_path).keys()


def test_retention_drops_partitions(tmp_path: Path) -> None:
    """What retention hides wholly is dropped as a table, outliers are deleted; the rest stays."""
    clock = [NOW]
    with hourly(tmp_path, clock, retention="10h") as engine:
        engine.write_series(A, NOW - np.arange(10) * HOUR, np.ones(10))
        engine.write([(Labels("far"), NOW + 40 * HOUR, 1.0)])
        assert len(partitions_of(tmp_path)) == 12
        clock[0] += 6 * HOUR
        engine.compact()
        assert engine.count() == 6
        kept = partitions_of(tmp_path)
        assert sum(kept.values()) == 6
        clock[0] += 60 * HOUR
        engine.write([(A, clock[0], 1.0)])
        assert sum(partitions_of(tmp_path).values()) == 1
        assert sorted(map(str, engine.series())) == ['cpu{host="a"}', "far"]


def test_a_right_that_is_missing_is_told_by_compact(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the server does not let this user drop what has expired, compact and the log say so."""
    clock = [NOW]
    with hourly(tmp_path, clock, retention="10h") as engine:
        engine.write_series(A, NOW - np.arange(10) * HOUR, np.ones(10))
        clock[0] += 60 * HOUR
        function = sql.Identifier(schema_of(tmp_path), "drop_expired")
        admin().execute(sql.SQL("DROP FUNCTION {}(bigint)").format(function))
        assert "what has expired is kept" in engine.compact().reason
    assert "stay as they are" in caplog.text


def test_retention_waits_for_nobody(tmp_path: Path) -> None:
    """A scan under way keeps expired partitions, and stops no commit; compact() says so."""
    clock = [NOW]
    with hourly(tmp_path, clock, retention="10h") as engine:
        engine.write_series(A, NOW - np.arange(10_000), np.ones(10_000))
        scan = engine.scan()
        rows = len(next(scan))
        clock[0] += 100 * HOUR
        engine.write([(A, clock[0], 2.0)])
        assert "what has expired is kept" in engine.compact().reason
        assert engine.count() == 1
        assert rows + sum(map(len, scan)) == 10_000
        engine.compact()
        assert sum(partitions_of(tmp_path).values()) == 1


@pytest.mark.parametrize(
    ("retention", "width"), [(None, 168), ("2000d", 168), ("80h", 10), ("3h", 1), ("1ns", 1)]
)
def test_partitions_fit_the_retention(tmp_path: Path, retention: str | None, width: int) -> None:
    """Where no width is given partitions are a week wide, or an eighth of a shorter retention."""
    with make_postgres(tmp_path, retention=retention, clock_ns=lambda: NOW):
        name = sql.Identifier(schema_of(tmp_path), "store")
        found = admin().execute(sql.SQL("SELECT partition_width FROM {}").format(name)).fetchone()
        assert found == (width * HOUR,)


def test_what_could_not_be_dropped_is_dropped_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a read is in the way of dropping, a later commit tries again."""
    monkeypatch.setattr(partitions, "_AGAIN_SECONDS", 0.0)
    clock = [NOW]
    with hourly(tmp_path, clock, retention="10h") as engine:
        engine.write([(A, NOW, 1.0)])
        clock[0] += 100 * HOUR
        table = sql.Identifier(schema_of(tmp_path), "points_500000")
        with psycopg.connect(admin().info.dsn, autocommit=False) as other:
            other.execute(sql.SQL("SELECT FROM {}").format(table))
            engine.write([(A, clock[0], 2.0)])
            assert "500000" in partitions_of(tmp_path)
        engine.write([(A, clock[0] + 1, 2.0)])
        assert "500000" not in partitions_of(tmp_path)


def test_a_row_that_comes_while_a_partition_is_made_fails_nobody(tmp_path: Path) -> None:
    """Another writer's row of the same time keeps a commit from making its partition, no more."""
    url = shared_cluster().local_url()
    with hourly(tmp_path, [NOW]) as engine, psycopg.connect(url) as other:
        points = sql.Identifier(schema_of(tmp_path), "points")
        other.execute(
            sql.SQL("INSERT INTO {} (series, time, value) VALUES (0, %s, 1)").format(points), (NOW,)
        )
        writer = threading.Thread(target=engine.write, args=([(A, NOW + 1, 1.0)],))
        writer.start()
        waits = "SELECT FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
        while writer.is_alive() and not admin().execute(waits).rowcount:
            pass
        other.commit()
        writer.join()
        assert engine.query(A)[0].timestamps.tolist() == [NOW + 1]


def test_a_partition_made_while_a_row_of_it_waits_fails_nobody(tmp_path: Path) -> None:
    """A commit that was on its way to the default partition as the right one came is repeated."""
    clock = [NOW]
    with hourly(tmp_path, clock) as engine, psycopg.connect(shared_cluster().local_url()) as other:
        engine.write([(A, NOW, 1.0)])
        schema = sql.Identifier(schema_of(tmp_path))
        late = NOW + 4 * HOUR  # too far ahead for a partition
        other.execute(sql.SQL("SET search_path = {}").format(schema))
        other.execute("SELECT make_partitions(ARRAY[500004])")
        writer = threading.Thread(target=engine.write, args=([(A, late, 2.0)],))
        writer.start()
        waits = "SELECT FROM pg_locks WHERE NOT granted AND mode = 'RowExclusiveLock'"
        while writer.is_alive() and not admin().execute(waits).rowcount:
            pass
        other.commit()
        writer.join()
        assert engine.latest(A)[0].timestamp == late
        assert partitions_of(tmp_path)["500004"] == 1
