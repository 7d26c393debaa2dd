from __future__ import annotations

import datetime
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg import sql

from tests.postgres.cluster import Cluster
from tests.postgres.tables import connected, table
from tsengine.backends.postgres import Database, bulk_upsert
from tsengine.backends.postgres.location import libpq_options, parse_url
from tsengine.errors import (
    BatchShapeError,
    BulkUpsertCancelledError,
    BulkUpsertError,
    DataRefusedError,
    LifecycleError,
    SchemaError,
    UnknownOptionError,
)
from tsengine.metrics import BulkUpsertReport
from tsengine.retry import RetryPolicy

Connection = psycopg.Connection[Any]
MOMENT = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
ROWS = st.lists(st.tuples(st.integers(0, 12), st.sampled_from([0.0, -0.0, 1.0, None])), max_size=40)


@pytest.fixture(scope="module")
def connection(cluster: Cluster) -> Iterator[Connection]:
    """A connection of the superuser, to look behind the back of what is tested."""
    with connected(cluster) as made:
        yield made


def policy(batch_size: int = 5_000, **options: Any) -> RetryPolicy:
    """Give a policy whose pauses are short."""
    return RetryPolicy(
        **({"deadline": None, "batch_size": batch_size, "backoff_min": 0.001} | options)
    )


def bits(value: float | None) -> str:
    """Tell −0 from 0."""
    return repr(value)


@given(ROWS, ROWS, st.integers(1, 15), st.sampled_from(["update", "ignore"]))
@pytest.mark.parametrize("partitions", ["", "PARTITION BY LIST (k)"])
def test_rows_and_counts_are_those_of_a_dictionary(
    connection: Connection,
    partitions: str,
    before: list[tuple[int, float | None]],
    rows: list[tuple[int, float | None]],
    batch_size: int,
    on_conflict: Any,
) -> None:
    """Whatever the rows, the table holds what a dict would, and each row is counted once."""
    there: dict[int, float | None] = {}
    for key, value in before:
        there.setdefault(key, value)
    name = "as_dictionary"
    connection.execute(f"DROP TABLE IF EXISTS {name}")
    connection.execute(f"CREATE TABLE {name} (k int PRIMARY KEY, v float8) {partitions}")
    if partitions:
        connection.execute(f"CREATE TABLE {name}_d PARTITION OF {name} DEFAULT")
    for key, value in there.items():
        connection.execute(f"INSERT INTO {name} VALUES (%s, %s)", [key, value])

    counts = {"inserted": 0, "updated": 0, "unchanged": 0, "folded": 0}
    for at in range(0, len(rows), batch_size):
        batch: dict[int, float | None] = {}
        for key, value in rows[at : at + batch_size]:
            if on_conflict == "update":
                counts["folded"] += key in batch
                batch[key] = value
            else:
                counts["unchanged"] += key in batch
                batch.setdefault(key, value)
        for key, value in batch.items():
            if key not in there:
                counts["inserted"] += 1
            elif on_conflict == "ignore" or bits(there[key]) == bits(value):
                counts["unchanged"] += 1
                continue
            else:
                counts["updated"] += 1
            there[key] = value

    report = bulk_upsert(
        connection,
        name,
        rows,
        columns=["k", "v"],
        key=["k"],
        on_conflict=on_conflict,
        policy=policy(batch_size),
    )
    assert {what: getattr(report, what) for what in counts} == counts
    assert report.submitted == len(rows)
    assert report.retries == report.unknown == 0
    found = dict(connection.execute(f"SELECT k, v FROM {name}").fetchall())
    assert {key: bits(value) for key, value in found.items()} == {
        key: bits(value) for key, value in there.items()
    }


def test_what_is_there_to_the_bit_is_not_rewritten(connection: Connection) -> None:
    """A repeated upsert leaves every row version where it is, and takes no lock on it."""
    with table(connection, "k int PRIMARY KEY, n numeric, j json, f float8, t text[]") as name:
        rows = [(k, "1.50", {"a": [k]}, float("nan"), ["x", None]) for k in range(100)]
        told: dict[str, Any] = {"columns": ["k", "n", "j", "f", "t"], "key": ["k"]}
        bulk_upsert(connection, name, rows, **told)
        versions = connection.execute(f"SELECT ctid, xmin, xmax, k FROM {name}").fetchall()
        assert bulk_upsert(connection, name, rows, **told).unchanged == 100
        assert connection.execute(f"SELECT ctid, xmin, xmax, k FROM {name}").fetchall() == versions
        changed = [(k, "1.5", {"a": [k]}, float("nan"), ["x", None]) for k in range(100)]
        assert bulk_upsert(connection, name, changed, **told).updated == 100


def test_columns_are_touched_preserved_or_overwritten_as_asked(connection: Connection) -> None:
    """A normal run sets `updated_at` where something changes; a migration keeps the rows' own."""
    columns = "k int PRIMARY KEY, a int, b int, created_at timestamptz, updated_at timestamptz"
    with table(connection, columns) as name:

        def upsert(rows: list[dict[str, object]], **options: Any) -> BulkUpsertReport:
            return bulk_upsert(connection, name, rows, key=["k"], **options)

        def found() -> tuple[Any, ...]:
            row = connection.execute(
                f"SELECT a, b, created_at::text, updated_at::text, updated_at = now() FROM {name}"
            ).fetchone()
            assert row is not None
            return tuple(row)

        connection.execute("SET timezone = 'UTC'")
        old = "2001-02-03 04:05:06+00"
        moment = datetime.datetime.fromisoformat(old)
        row = {"k": 1, "a": 1, "b": 1, "created_at": moment, "updated_at": moment}
        upsert([row])  # a migration
        assert found()[:4] == (1, 1, old, old)
        normal = {"touch": ["updated_at"], "preserve": ["created_at"]}
        later = row | {"created_at": moment.replace(year=2002), "updated_at": None}
        assert upsert([later], **normal).unchanged == 1
        assert found()[:4] == (1, 1, old, old)
        assert upsert([later | {"a": 2}], **normal).updated == 1
        assert found()[:3] == (2, 1, old)
        assert found()[3] > "2020"
        assert upsert([later | {"a": 3, "b": 3}], update=["b"]).updated == 1
        assert found()[:2] == (2, 3)
        assert upsert([later | {"a": 9, "b": 3}], update=["b"]).unchanged == 1


def test_a_conflict_ends_a_call_that_asked_for_that(connection: Connection) -> None:
    """Under `error` the batches before the conflict are stored, its own is not, and all is told."""
    with table(connection, "k int PRIMARY KEY, v int") as name:
        connection.execute(f"INSERT INTO {name} VALUES (25, 0)")
        with pytest.raises(BulkUpsertError, match="23505") as caught:
            bulk_upsert(
                connection,
                name,
                [(k, k) for k in range(40)],
                columns=["k", "v"],
                key=["k"],
                on_conflict="error",
                policy=policy(10),
            )
        report = caught.value.report
        assert isinstance(caught.value.__cause__, DataRefusedError)
        assert (report.submitted, report.inserted, report.batches) == (20, 20, 2)
        assert connection.execute(f"SELECT count(*) FROM {name}").fetchone() == (21,)
        repeated = [(50, 1), (50, 2)]
        with pytest.raises(BulkUpsertError, match="23505"):
            bulk_upsert(
                connection,
                name,
                repeated,
                columns=["k", "v"],
                key=["k"],
                on_conflict="error",
            )


NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1
).filter(lambda text: len(text.encode()) <= 63)


@given(st.lists(NAMES, min_size=4, max_size=4, unique=True))
@example(["given", "there", "s1", "s0"])
@example(["sent", "nth", "%s", "%(x)b"])
def test_names_may_have_any_characters(connection: Connection, names: list[str]) -> None:
    """Names of schemas, tables and columns are never read as SQL."""
    schema, name, key, value = names
    made = [sql.Identifier(part) for part in (schema, name, key, value)]
    connection.execute(sql.SQL("CREATE SCHEMA {}").format(made[0]))
    try:
        connection.execute(sql.SQL("CREATE TABLE {}.{} ({} int PRIMARY KEY, {} int)").format(*made))
        for number in (1, 2):
            rows = [{key: 1, value: number}]
            bulk_upsert(connection, (schema, name), rows, key=[key])
        table_ = sql.SQL("SELECT * FROM {}.{}").format(*made[:2])
        assert connection.execute(table_).fetchall() == [(1, 2)]
    finally:
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(made[0]))


def test_rows_come_from_whatever_the_caller_has(cluster: Cluster, connection: Connection) -> None:
    """Mappings, sequences and Arrow go over a URL, a database, a connection or a pool alike."""
    columns = "k int8 PRIMARY KEY, t text, at timestamptz, j jsonb"
    arrow = pa.table(
        {
            "k": pa.array([1, 2], pa.int32()),
            "t": pa.array(["x", None]).dictionary_encode(),
            "at": pa.array([10**18, None], pa.timestamp("ns", "UTC")),
            "j": pa.array(['{"a": [1]}', "null"]),
        }
    )
    mappings = [
        row | {"j": value}
        for row, value in zip(arrow.to_pylist(), [{"a": [1]}, b"null"], strict=True)
    ]
    sequences = [tuple(row.values()) for row in mappings]
    database = Database(parse_url(cluster.local_url(), libpq_options()), pool_size=1)

    class Pool:
        def connection(self) -> Any:
            return connected(cluster)

    wanted = [(1, "x", 10**9, {"a": [1]}), (2, None, None, None)]
    targets: list[Any] = [cluster.url(), database, connection, Pool()]
    for target in targets:
        for rows in (mappings, sequences, iter(mappings), arrow, arrow.to_reader()):
            with table(connection, columns) as name:
                options: dict[str, Any] = (
                    {"columns": list(arrow.column_names)} if rows is sequences else {}
                )
                report = bulk_upsert(target, name, rows, key=["k"], **options)
                assert report.inserted == 2
                found = connection.execute(
                    f"SELECT k, t, extract(epoch FROM at)::int8, j FROM {name} ORDER BY k"
                ).fetchall()
                assert found == wanted
    database.close()


def test_a_connection_is_given_back_as_it_was(cluster: Cluster, connection: Connection) -> None:
    """Nothing is left on the caller's connection: no setting, no table, no transaction."""
    notices: list[str] = []
    with psycopg.connect(cluster.url()) as mine, table(connection, "k int PRIMARY KEY") as name:
        mine.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
        settings = "SELECT name, setting FROM pg_settings ORDER BY name"
        before = mine.execute(settings).fetchall()
        mine.commit()
        for rows in ([[1]], [["x"]], [[1], [1]]):
            options: Any = {"on_conflict": "error"} if len(rows) == 2 else {}
            try:
                bulk_upsert(mine, name, rows, columns=["k"], key=["k"], **options)
            except BulkUpsertError:
                pass
            assert mine.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
            assert mine.execute(settings).fetchall() == before
            temporary = "SELECT count(*) FROM pg_class WHERE relpersistence = 't'"
            assert mine.execute(temporary).fetchone() == (0,)
            mine.commit()
        mine.execute("DO $$ BEGIN RAISE NOTICE 'heard'; END $$")
        assert notices == ["heard"]
        with pytest.raises(LifecycleError, match="in a transaction"):
            bulk_upsert(mine, name, [[1]], columns=["k"], key=["k"])
        assert not mine.closed


def test_rows_are_taken_as_they_are_needed(connection: Connection) -> None:
    """An endless iterable is taken batch by batch; the one being taken is not stored yet."""
    taken = 0
    cancel = threading.Event()

    def endless() -> Iterator[tuple[int]]:
        nonlocal taken
        while True:
            taken += 1
            yield (taken,)

    def watch(report: BulkUpsertReport) -> None:
        assert taken == report.submitted
        if report.submitted >= 100:
            cancel.set()

    with table(connection, "k int PRIMARY KEY") as name:
        with pytest.raises(BulkUpsertCancelledError) as caught:
            bulk_upsert(
                connection,
                name,
                endless(),
                columns=["k"],
                key=["k"],
                policy=policy(10),
                cancel=cancel,
                progress=watch,
            )
        assert caught.value.report.inserted == 100
        assert caught.value.report.unknown == 0
        assert connection.execute(f"SELECT count(*) FROM {name}").fetchone() == (100,)


def test_what_a_caller_raises_says_what_had_landed(connection: Connection) -> None:
    """An error of the rows' iterable, or of `progress`, is the cause of one that has the report."""

    def failing() -> Iterator[tuple[int]]:
        yield from ((k,) for k in range(20))
        raise OSError("the source is gone")

    def fail(report: BulkUpsertReport) -> None:
        raise ZeroDivisionError

    with table(connection, "k int PRIMARY KEY") as name:
        told: dict[str, Any] = {"columns": ["k"], "key": ["k"], "policy": policy(10)}
        with pytest.raises(BulkUpsertError, match="the source is gone") as caught:
            bulk_upsert(connection, name, failing(), **told)
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.report.inserted == 20
        with pytest.raises(BulkUpsertError) as caught:
            bulk_upsert(connection, name, [(k,) for k in range(30)], progress=fail, **told)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert caught.value.report.submitted == 10


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([(1, 2)], {"columns": ["k"]}, "row 1 has 2 values"),
        ([(1,), [1, 2]], {"columns": ["k"]}, "row 2 has 2 values"),
        ([(1,)], {}, "need columns="),
        (["x"], {"columns": ["k"]}, "is a str"),
        ([{"k": 1}, {"v": 1}], {}, "row 2 has no column 'k'"),
        ([{"k": 1}, {"k": 1, "v": 1}], {}, "row 2 has an unexpected column 'v'"),
        ([{}], {}, "no columns"),
        ([(1,)], {"columns": []}, "empty"),
        (pa.table({"v": [1]}), {"columns": ["k"]}, "'k' 0 times"),
    ],
)
def test_rows_that_do_not_fit_are_named(
    connection: Connection, rows: Any, options: dict[str, Any], message: str
) -> None:
    """A row with other columns than the first is named by its position among all."""
    with table(connection, "k int PRIMARY KEY, v int") as name:
        good: list[Any] = [rows[0]] if isinstance(rows, list) and len(rows) > 1 else []
        shift = message.replace("row 1", "row 0")
        given = good + rows if good else rows
        with pytest.raises(BulkUpsertError, match=shift) as caught:
            bulk_upsert(connection, name, given, key=["k"], policy=policy(1), **options)
        assert isinstance(caught.value.__cause__, BatchShapeError)
        assert caught.value.report.submitted == (2 if good else 0)


@pytest.mark.parametrize(
    "options",
    [
        {"key": []},
        {"key": "k"},
        {"key": ["x"]},
        {"key": ["k", "k"]},
        {"columns": "kv"},
        {"columns": ["k", "k"]},
        {"on_conflict": "overwrite"},
        {"on_conflict": "ignore", "update": ["v"]},
        {"on_conflict": "error", "preserve": ["v"]},
        {"update": ["k"]},
        {"update": ["v"], "preserve": ["v"]},
        {"touch": ["k"]},
        {"touch": "v"},
        {"update": ["x"]},
        {"table": ""},
        {"table": "x" * 64},
        {"table": "\ud800"},
        {"table": ("a", "b", "c")},
        {"target": 5},
        {"target": "mysql://host/db"},
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    connection: Connection, options: dict[str, Any]
) -> None:
    """A wrong argument is refused before anything is done."""
    told: dict[str, Any] = {
        "target": connection,
        "table": "t",
        "columns": ["k", "v"],
        "key": ["k"],
    } | options
    with pytest.raises(UnknownOptionError):
        bulk_upsert(rows=[(1, 2)], **told)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nowhere", {}, "no table 'nowhere'"),
        ("public.nowhere", {}, r"give \(schema, name\)"),
        (("nowhere", "x"), {}, "no table"),
        ("pg_class", {}, "no column 'k'; it has"),
        ("without_key", {}, "no unique index on just k"),
        ("with_key", {"touch": ["x"]}, "42703"),
    ],
)
def test_a_table_that_is_not_as_needed_is_told(
    connection: Connection, name: Any, options: dict[str, Any], message: str
) -> None:
    """A missing table, column or unique index is an error that is not retried."""
    connection.execute("CREATE TABLE IF NOT EXISTS with_key (k int PRIMARY KEY)")
    connection.execute("""
        CREATE TABLE IF NOT EXISTS without_key (
            k int, v int, UNIQUE (k, v), UNIQUE (k) DEFERRABLE
        );
        CREATE UNIQUE INDEX IF NOT EXISTS partial ON without_key (k) WHERE v > 0;
        CREATE UNIQUE INDEX IF NOT EXISTS of_an_expression ON without_key ((k + 1));
        CREATE INDEX IF NOT EXISTS not_unique ON without_key (k)
    """)
    with pytest.raises(BulkUpsertError, match=message) as caught:
        bulk_upsert(connection, name, [{"k": 1}], key=["k"], **options)
    assert isinstance(caught.value.__cause__, SchemaError)
    assert caught.value.report.retries == 0


def test_no_rows_are_no_work(connection: Connection) -> None:
    """Nothing to do is done, whatever form it has."""
    with table(connection, "k int PRIMARY KEY") as name:
        nothing: list[Any] = [[], iter(()), pa.table({"k": pa.array([], pa.int32())})]
        for rows in nothing:
            assert bulk_upsert(connection, name, rows, key=["k"]).submitted == 0


@pytest.mark.parametrize("on_conflict", ["update", "ignore"])
def test_writers_of_the_same_keys_do_not_deadlock(
    cluster: Cluster, connection: Connection, on_conflict: Any
) -> None:
    """Writers with overlapping keys in any order wait for each other, and need no retry."""
    with table(connection, "k int PRIMARY KEY, v int") as name:
        reports: list[BulkUpsertReport] = []

        def write(writer: int) -> None:
            chooser = random.Random(writer)
            for turn in range(10):
                rows = [(k, writer * 100 + turn) for k in chooser.sample(range(400), 300)]
                reports.append(
                    bulk_upsert(
                        cluster.local_url(),
                        name,
                        rows,
                        columns=["k", "v"],
                        key=["k"],
                        on_conflict=on_conflict,
                        policy=policy(max_retries=0),
                    )
                )

        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(reports) == 40
        assert sum(report.inserted for report in reports) == 400
        assert sum(report.submitted for report in reports) == 40 * 300


@pytest.mark.parametrize(
    ("column", "same"),
    [
        ("text COLLATE caseless", ["A", "a"]),
        ("numeric(10, 2)", [Decimal("1.001"), Decimal("1.004")]),
        ("timestamptz(0)", [MOMENT, MOMENT + datetime.timedelta(milliseconds=300)]),
        ("interval(0)", [datetime.timedelta(seconds=1), datetime.timedelta(seconds=1.2)]),
    ],
)
@pytest.mark.parametrize("partitions", ["", "PARTITION BY HASH (k)"])
def test_keys_are_equal_where_their_column_says_so(
    connection: Connection, column: str, same: list[object], partitions: str
) -> None:
    """Keys that are one by the column's collation, or once it has rounded them, are folded."""
    if "caseless" in column:
        try:
            connection.execute(
                "CREATE COLLATION IF NOT EXISTS caseless"
                " (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
            )
        except psycopg.errors.FeatureNotSupported as error:  # Debian's servers, as in CI, have it
            pytest.skip(f"this server has no such collations: {error}")
    with table(connection, f"k {column} PRIMARY KEY, v numeric(4, 1)", partitions) as name:

        def counts(*values: str) -> tuple[int, int, int, int]:
            rows = [{"k": key, "v": Decimal(one)} for key, one in zip(same, values, strict=False)]
            report = bulk_upsert(connection, name, rows, key=["k"])
            return report.inserted, report.updated, report.unchanged, report.folded

        assert counts("1.21", "1.23") == (1, 0, 0, 1)
        assert counts("1.24") == (0, 0, 1, 0)
        assert counts("1.21", "2.51") == (0, 1, 0, 1)


def test_a_partition_made_while_a_row_of_it_waits_ends_no_call(
    cluster: Cluster, connection: Connection
) -> None:
    """Rows on their way to the default partition as the right one comes go to the right one."""
    connection.execute("CREATE TABLE parted (k int PRIMARY KEY) PARTITION BY RANGE (k)")
    connection.execute("CREATE TABLE parted_rest PARTITION OF parted DEFAULT")
    with psycopg.connect(cluster.local_url()) as other, ThreadPoolExecutor(1) as pool:
        # Attaching locks the default partition alone.
        other.execute("CREATE TABLE parted_5 (LIKE parted INCLUDING ALL)")
        other.execute("ALTER TABLE parted ATTACH PARTITION parted_5 FOR VALUES FROM (5) TO (6)")
        told: dict[str, Any] = {
            "key": ["k"],
            "on_conflict": "error",
        }  # which looks at no partition before
        call = pool.submit(bulk_upsert, cluster.url(), "parted", [{"k": 5}], **told)
        waits = "SELECT FROM pg_locks WHERE NOT granted"
        while not call.done() and not connection.execute(waits).rowcount:
            pass
        other.commit()
        assert call.result().inserted == 1
    assert connection.execute("SELECT count(*) FROM parted_5").fetchone() == (1,)
    connection.execute("DROP TABLE parted")
