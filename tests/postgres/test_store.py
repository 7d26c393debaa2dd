"""A store in a schema of its own: made, found, refused, checked, and read by anybody's SQL."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql

import tsengine
from tests.postgres.cluster import Cluster
from tests.postgres.stores import admin, drop_stores, make_postgres, schema_of
from tsengine.backends.postgres import PostgresEngine, aggregating, schema
from tsengine.errors import (
    CorruptionError,
    FormatVersionError,
    StoreOptionError,
    StorePathError,
    UnknownOptionError,
    UnsupportedError,
)
from tsengine.model import INT64_MAX, INT64_MIN, GroupedBatch, Labels

pytestmark = pytest.mark.usefixtures("stores")

A = Labels("cpu", host="a")
B = Labels("cpu", host="b")


def rows(path: Path, query: str, *parameters: object) -> list[tuple[object, ...]]:
    """Ask the schema of a path as a user of SQL would."""
    with admin().transaction():
        name = sql.Identifier(schema_of(path))
        admin().execute(sql.SQL("SET LOCAL search_path = {}").format(name))
        return admin().execute(query.encode(), parameters).fetchall()


def change(path: Path, statement: str) -> None:
    """Change the schema of a path behind the engine's back."""
    with admin().transaction():
        name = sql.Identifier(schema_of(path))
        admin().execute(sql.SQL("SET LOCAL search_path = {}").format(name))
        admin().execute(statement.encode())


def test_a_url_opens_a_store(cluster: Cluster) -> None:
    """tsengine.open takes both schemes, parameters of libpq, and the option `schema`."""
    for scheme in ("postgresql", "postgres"):
        url = cluster.url(schema="by url", connect_timeout=5, sslmode="prefer")
        with tsengine.open(url.replace("postgresql", scheme, 1).replace("+", "%20")) as engine:
            engine.write([(A, 1, 1.0)])
            assert engine.count() == 1
    admin().execute('DROP SCHEMA "by url" CASCADE')


def test_no_secret_is_shown(cluster: Cluster) -> None:
    """The password of a URL is in no repr and in no message."""
    with tsengine.open(cluster.url(schema="secret")) as engine:
        assert cluster.password not in repr(engine)
        assert cluster.password not in engine.location
        assert cluster.password not in repr(vars(engine))
        with pytest.raises(StoreOptionError) as caught:
            tsengine.open(cluster.url(schema="secret", duplicate_policy="max"))
        assert cluster.password not in str(caught.value)
    admin().execute("DROP SCHEMA secret CASCADE")


@settings(max_examples=15)
@given(
    name=st.one_of(
        st.sampled_from(
            ['"', "a.b", "x; DROP TABLE store", "%s", "Ünïcode ✓", "select", "'", "\\"]
        ),
        st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=15),
    ).filter(lambda name: not name.startswith("pg_"))
)
def test_any_name_of_a_schema_is_quoted(name: str) -> None:
    """A schema may have any name of up to 63 bytes: it is quoted everywhere."""
    path = Path("any")
    with make_postgres(path, schema=name, partition_width="10ns", clock_ns=lambda: 20) as engine:
        engine.write([(A, 21, 1.0), (A, 5, 2.0)])
        engine.delete(A, 5, 6)
        assert engine.query(A)[0].timestamps.tolist() == [21]
        engine.check()
    admin().execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))


@pytest.mark.parametrize("name", ["", "x" * 64, "é" * 32, "pg_mine", "a\0b", "\ud800", 5, None])
def test_bad_names_of_schemas_are_refused(name: object) -> None:
    """What PostgreSQL would cut, or not take, is refused before it is asked."""
    with pytest.raises(UnknownOptionError, match="schema"):
        PostgresEngine("", schema=name)


def test_a_schema_that_is_empty_is_used(tmp_path: Path) -> None:
    """A schema that somebody made for the store is taken as it is."""
    name = sql.Identifier(schema_of(tmp_path))
    admin().execute(sql.SQL("CREATE SCHEMA {}").format(name))
    with make_postgres(tmp_path) as engine:
        assert engine.count() == 0


def test_a_newer_store_is_refused_untouched(tmp_path: Path) -> None:
    """A store of a later version gives FormatVersionError, which names both, and stays as it is."""
    make_postgres(tmp_path).open().close()
    change(tmp_path, "UPDATE store SET version = 9; ALTER TABLE writes RENAME TO renamed")
    before = rows(tmp_path, "SELECT * FROM store")
    for read_only in (True, False):
        with pytest.raises(FormatVersionError, match=r"version 9.* 1"):
            make_postgres(tmp_path, read_only=read_only).open()
    assert rows(tmp_path, "SELECT * FROM store") == before


def test_an_older_store_is_migrated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store is brought to the present version at open, by one of those who open it."""
    with make_postgres(tmp_path) as engine:
        engine.write([(A, 1, 1.0)])
    added = "ALTER TABLE series ADD COLUMN note text"
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, added))
    with pytest.raises(FormatVersionError, match="read_only"):
        make_postgres(tmp_path, read_only=True).open()
    together([lambda: make_postgres(tmp_path).open().close()] * 4)
    assert rows(tmp_path, "SELECT version FROM store") == [(2,)]
    with make_postgres(tmp_path) as engine:
        assert engine.count() == 1
        assert rows(tmp_path, "SELECT note FROM series") == [(None,)]


def test_a_migration_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration is done as a whole or not at all."""
    make_postgres(tmp_path).open().close()
    broken = "ALTER TABLE series ADD COLUMN note text; SELECT 1 / 0"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, broken))
        with pytest.raises(tsengine.TsEngineError, match="zero"):
            make_postgres(tmp_path).open()
    with make_postgres(tmp_path) as engine:
        engine.check()


def test_many_create_one_store(tmp_path: Path) -> None:
    """Those who open a store at once all get the one that the first of them made."""
    together([lambda: make_postgres(tmp_path).open().close()] * 6)
    with make_postgres(tmp_path) as engine:
        assert engine.count() == 0


def test_partition_width_belongs_to_the_store(tmp_path: Path) -> None:
    """A store opened with another width of partitions than it was created with is refused."""
    make_postgres(tmp_path, partition_width="1h").open().close()
    make_postgres(tmp_path).open().close()
    make_postgres(tmp_path, partition_width="60m").open().close()
    with pytest.raises(StoreOptionError, match="partition_width"):
        make_postgres(tmp_path, partition_width="2h").open()


def test_a_database_of_another_encoding_is_refused(cluster: Cluster) -> None:
    """Labels are any text: a database that does not hold UTF-8 is refused."""
    admin().execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    try:
        with pytest.raises(UnsupportedError, match="LATIN1"):
            tsengine.open(cluster.url("latin"))
    finally:
        admin().execute("DROP DATABASE latin WITH (FORCE)")


def test_points_are_plain_rows(tmp_path: Path) -> None:
    """The view shows labels, a time of SQL, nanoseconds and the value in its column."""
    with make_postgres(tmp_path) as engine:
        moment = tsengine.timestamp("2026-01-02T03:04:05.678901234Z")
        engine.write([(A, moment, 1.5)])
        engine.write_series(B, [moment], np.array([7]))
        engine.write([(Labels("event"), moment, {"a": 1})])
        for extreme in (INT64_MAX, 1):
            engine.write([(A, extreme, 2.0)])
    found = rows(
        tmp_path,
        "SELECT series, labels ->> 'host', time AT TIME ZONE 'UTC', time_ns, value, integer, object"
        " FROM readings WHERE time_ns = %s ORDER BY series",
        moment,
    )
    assert [(row[0], row[1], str(row[2]), row[3]) for row in found] == [
        ('cpu{host="a"}', "a", "2026-01-02 03:04:05.678901", moment),
        ('cpu{host="b"}', "b", "2026-01-02 03:04:05.678901", moment),
        ("event", None, "2026-01-02 03:04:05.678901", moment),
    ]
    assert [row[4:6] for row in found] == [(1.5, None), (None, 7), (None, None)]
    assert len(rows(tmp_path, "SELECT time FROM readings WHERE extract(year FROM time) > 0")) == 5


def test_the_whole_range_of_time_is_stored(tmp_path: Path) -> None:
    """Timestamps at both ends of int64 are stored, in the default partition."""
    with make_postgres(tmp_path, min_timestamp=INT64_MIN) as engine:
        engine.write([(A, INT64_MIN, 1.0), (A, INT64_MAX, 2.0), (A, 0, 3.0)])
        assert engine.query(A)[0].timestamps.tolist() == [INT64_MIN, 0, INT64_MAX]
    assert rows(tmp_path, "SELECT count(*) FROM points_rest") == [(3,)]


@pytest.mark.parametrize(
    "damage",
    [
        "INSERT INTO points (series, time, value) VALUES (999, 1, 1)",
        "UPDATE points SET integer = 1, value = NULL",
        "UPDATE points SET integer = 1",
        "UPDATE points SET value = NULL",
        'UPDATE series SET labels = \'{"host": "z"}\'',
        "UPDATE series SET series = 'other'",
        "UPDATE series SET labels = '[]'",
        "UPDATE series SET digest = '\\x00'",
        "UPDATE series SET kind = 3",
    ],
)
def test_what_others_spoil_is_found(tmp_path: Path, damage: str) -> None:
    """check() names what somebody changed in the tables so that they do not agree."""
    with make_postgres(tmp_path) as engine:
        engine.write([(A, 1, 1.0)])
        engine.check()
        change(tmp_path, damage)
        with pytest.raises(CorruptionError, match="series"):
            engine.check()


def test_unchanged_rows_are_not_written_again(tmp_path: Path) -> None:
    """A batch that repeats what is stored leaves each row where it is; one bit more moves it."""
    specials = np.array([0.0, -0.0, np.nan, 1.5, np.inf])
    times = np.arange(1, 6)
    with make_postgres(tmp_path) as engine:
        engine.write_series(A, times, specials)
        engine.write_series(B, times, np.arange(5))
        engine.write_series(Labels("event"), times, ["a", [1], True, {"b": 3}, b"c"])
        before = rows(tmp_path, "SELECT series, time, ctid, tableoid FROM points ORDER BY 1, 2")
        engine.write_series(A, times, specials)
        engine.write_series(B, times, np.arange(5))
        engine.write_series(Labels("event"), times, ["a", [1], True, {"b": 3}, b"c"])
        after = rows(tmp_path, "SELECT series, time, ctid, tableoid FROM points ORDER BY 1, 2")
        assert after == before
        other_nan = np.array([0x7FF8000000000001]).view(np.float64)
        engine.write_series(A, [1, 2, 3], [-0.0, 0.0, other_nan[0]])
        [batch] = engine.query(A)
        expected = np.array([-0.0, 0.0, other_nan[0], 1.5, np.inf])
        assert batch.values.tobytes() == expected.tobytes()
        after = rows(tmp_path, "SELECT series, time, ctid, tableoid FROM points ORDER BY 1, 2")
        assert [new == old for new, old in zip(after, before, strict=True)][:5] == [
            False, False, False, True, True,
        ]  # fmt: skip


@pytest.mark.parametrize("policy", ["last", "first", "min", "max", "sum", "error"])
def test_large_commits_are_copied(tmp_path: Path, policy: str) -> None:
    """A commit of 50,000 rows of three kinds is stored as small ones are, twice over too."""
    generator = np.random.default_rng(3)
    names = [Labels("many", number=str(number)) for number in range(100)]
    offsets = np.arange(101) * 500
    times = generator.permutation(np.arange(1, 50_001))
    floats = GroupedBatch(names, offsets, times, generator.random(50_000))
    integers = generator.integers(-(2**40), 2**40, 50_000)
    with make_postgres(tmp_path, duplicate_policy=policy) as engine:
        engine.write_batch(floats)
        engine.write_series(Labels("ints"), times, integers)
        if policy == "error":
            with pytest.raises(tsengine.DuplicatePointError) as caught:
                engine.write_batch(floats)
            assert len(caught.value.indices) == 50_000
        else:
            engine.write_batch(floats)
            engine.write_series(Labels("ints"), times, integers)
        twice = 2 if policy == "sum" else 1
        found = list(engine.query("many"))
        for batch in found:
            place = names.index(batch.labels)
            mine = slice(500 * place, 500 * place + 500)
            order = np.argsort(times[mine])
            assert batch.timestamps.tolist() == times[mine][order].tolist()
            assert batch.values.tolist() == (twice * floats.values[mine][order]).tolist()
        assert len(found) == 100
        [ints] = engine.query("ints")
        assert ints.values.tolist() == (twice * integers[np.argsort(times)]).tolist()


def test_float_sums_that_overflow_are_infinite(tmp_path: Path) -> None:
    """Where SQL refuses a float sum, ours is an infinity, as in C; halves of large ones add up."""
    large = 1.7976931348623157e308
    cases = [
        (large, large, np.inf),
        (-large, -large, -np.inf),
        (large, -large, 0.0),
        (large, 1e291, large + 1e291),
        (large / 2, large / 2, large),
        (large, 9.979201547673598e291, large),
        (large, 9.9792015476736e291, np.inf),
        (5e-324, 5e-324, 1e-323),
        (np.inf, -np.inf, np.nan),
        (np.inf, 1.0, np.inf),
        (np.nan, 1e300, np.nan),
        (1e300, np.nan, np.nan),
    ]
    with make_postgres(tmp_path, duplicate_policy="sum") as engine:
        times = np.arange(1, len(cases) + 1)
        engine.write_series(A, times, [first for first, _, _ in cases])
        engine.write_series(A, times, [second for _, second, _ in cases])
        [batch] = engine.query(A)
    with np.errstate(all="ignore"):
        expected = np.array([np.float64(first) + second for first, second, _ in cases])
    np.testing.assert_array_equal(batch.values, expected)
    np.testing.assert_array_equal(batch.values, [wanted for _, _, wanted in cases])


def test_a_read_only_engine_writes_nothing(tmp_path: Path) -> None:
    """read_only=True works where the database itself allows no writing."""
    with make_postgres(tmp_path) as engine:
        engine.write([(A, 1, 1.0)])
    parameters = "-c default_transaction_read_only=on"
    with make_postgres(tmp_path, read_only=True, options=parameters) as engine:
        assert engine.count() == 1
        assert engine.latest() == [(A, 1, 1.0)]
        engine.check()


def test_a_schema_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """A schema with a table `store` that is not ours is refused too, and left as it was."""
    name = sql.Identifier(schema_of(tmp_path))
    admin().execute(sql.SQL("CREATE SCHEMA {0}; CREATE TABLE {0}.store (version int)").format(name))
    with pytest.raises(StorePathError, match="store"):
        make_postgres(tmp_path).open()
    assert rows(tmp_path, "SELECT count(*) FROM store") == [(0,)]
    drop_stores()


def together(works: list[Callable[[], object]]) -> None:
    """Run all at once; raise what one raised."""
    errors: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  # raised below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_large_objects_are_stored_and_read(tmp_path: Path) -> None:
    """Many objects of the largest size are stored by one commit, and read in bounded pages."""
    rows_of_objects = 700
    values = [f"{number:06}" + "x" * 64_000 for number in range(rows_of_objects)]
    with make_postgres(tmp_path) as engine:
        engine.write_series(Labels("log"), np.arange(1, rows_of_objects + 1), values)
        batches = list(engine.scan())
        assert [value for batch in batches for value in batch.values] == values
        assert max(map(len, batches)) <= 1_024
        assert engine.latest()[0].value == values[-1]
        [first, _] = engine.aggregate(functions=["first", "last"], every="500ns")
        assert first.values.tolist() == [values[0], values[499]]


def test_settings_of_a_role_change_nothing(tmp_path: Path) -> None:
    """Whatever a database or role sets by default, values and times come back to the bit."""
    odd = {
        "standard_conforming_strings": "off",
        "bytea_output": "escape",
        "extra_float_digits": "-15",
        "jit_above_cost": "0",
        "default_transaction_isolation": "serializable",
        "TimeZone": "Pacific/Apia",
        "IntervalStyle": "sql_standard",
        "enable_indexscan": "off",
        "search_path": "pg_temp",
    }
    options = " ".join(f"-c {name}={value}" for name, value in odd.items())
    special = np.array([0.1 + 0.2, -0.0, np.nan, 5e-324, np.inf])
    times = np.arange(INT64_MAX - 5, INT64_MAX)
    for policy in ("last", "min", "max"):
        path = tmp_path / policy
        with make_postgres(path, options=options, duplicate_policy=policy) as engine:
            engine.write_series(A, times, special)
            engine.write_series(A, times, -special)
            engine.check()
            expected = {
                "last": -special,
                "min": np.array([-(0.1 + 0.2), -0.0, np.nan, -5e-324, -np.inf]),
                "max": np.array([0.1 + 0.2, 0.0, np.nan, 5e-324, np.inf]),
            }[policy]
            found = engine.query(A)[0]
            assert found.timestamps.tolist() == times.tolist()
            assert found.values.tobytes() == expected.tobytes()
            if policy == "last":
                objects = ["a", b"\\\0\xff", True, {"k": 0.1}, [-0.0]]
                engine.write_series(Labels("event"), times, objects)
                assert repr(engine.query("event")[0].values.tolist()) == repr(objects)


def test_each_step_of_an_aggregation_has_its_own_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many statements the server is asked for it, none is cut short by those before."""
    monkeypatch.setattr(aggregating, "_TOGETHER", 1)
    renewed: list[object] = []
    with make_postgres(tmp_path) as engine:
        engine.write([(Labels("m", n=str(number)), 1, 1.0) for number in range(5)])
        renew = engine._renew
        monkeypatch.setattr(engine, "_renew", lambda session: renewed.append(renew(session)))
        assert len(engine.aggregate(functions=["max", "first"])) == 10
    assert len(renewed) >= 5 + 1 + 1
