"""Roles with no more rights than they need: the SQL of the design page does what it says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from psycopg import errors, sql

import tsengine
from tests.postgres.cluster import Cluster
from tests.postgres.stores import admin
from tsengine.engine import Engine
from tsengine.errors import AccessDeniedError, ReadOnlyError
from tsengine.model import Labels, ProducerMark

PAGE = Path(__file__).parents[2] / "docs" / "design" / "postgres.md"
A = Labels("cpu", host="a")
HOUR = 3_600 * 10**9


@pytest.fixture
def roles(cluster: Cluster) -> Iterator[dict[str, str]]:
    """Make a store and the roles of the page; give URLs by role."""
    with tsengine.open(cluster.url(), partition_width="1h", retention="24h") as engine:
        engine.write([(A, engine.rules.clock_ns(), 1.0)])
    [script] = re.findall(r"^```sql\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    admin().execute(script.encode())
    for role in ("reader", "writer"):
        admin().execute(
            sql.SQL("CREATE ROLE {0} LOGIN PASSWORD 'word' IN ROLE {1}").format(
                sql.Identifier(f"a {role}"), sql.Identifier(f"tsengine_{role}")
            )
        )
    yield {role: cluster.url(user=f"a {role}", password="word") for role in ("reader", "writer")}
    admin().execute("DROP SCHEMA tsengine CASCADE")
    for name in ("a reader", "a writer", "tsengine_writer", "tsengine_reader"):
        admin().execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def reads(engine: Engine) -> None:
    """Make every read."""
    engine.query()
    engine.latest('cpu{host=~"a|b"}')
    engine.count()
    engine.aggregate(functions=["max", "mean"], every="1h")
    engine.label_values("host")
    engine.high_water("p")
    engine.stats()
    engine.check()


def test_a_writer_can_do_all_that_an_engine_does(roles: dict[str, str]) -> None:
    """The writer writes by both ways, makes and drops partitions, deletes, and keeps marks."""
    clock = [tsengine.timestamp("2030-01-01T00:00:00Z")]
    with tsengine.open(roles["writer"], clock_ns=lambda: clock[0]) as engine:
        engine.write([(A, clock[0], 1.0), (Labels("new"), clock[0], 2.0)])
        engine.write_series(A, clock[0] - np.arange(30_000), np.ones(30_000))
        engine.write_to_buffer((A, clock[0] + 1, 1.0))
        engine.flush_buffer(ProducerMark("p", 1))
        partition = f"tsengine.points_{clock[0] // HOUR}"
        assert admin().execute("SELECT to_regclass(%s)", (partition,)).fetchone() != (None,)
        reads(engine)
        engine.delete(A, clock[0] - 10, clock[0])
        engine.delete("new")
        engine.forget_producer("p")
        clock[0] += 100 * HOUR
        engine.compact()
        assert admin().execute("SELECT to_regclass(%s)", (partition,)).fetchone() == (None,)


def test_a_reader_can_read_and_nothing_else(roles: dict[str, str]) -> None:
    """The reader makes every read; each write is refused, by us or by the server."""
    with tsengine.open(roles["reader"], read_only=True) as engine:
        reads(engine)
        with pytest.raises(ReadOnlyError):
            engine.delete()
    with tsengine.open(roles["reader"]) as engine:
        for write in (
            lambda: engine.write([(A, engine.rules.clock_ns(), 2.0)]),
            lambda: engine.delete(A, 1, 2),
            lambda: engine.delete(A),
            lambda: engine.forget_producer("p"),
        ):
            with pytest.raises(AccessDeniedError):
                write()
        assert engine.count() == 1


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        ("writer", "CREATE TABLE tsengine.mine (a integer)"),
        ("writer", "DROP TABLE tsengine.points_rest"),
        ("writer", "ALTER TABLE tsengine.points ADD COLUMN mine integer"),
        ("writer", "UPDATE tsengine.store SET version = 5"),
        ("writer", "UPDATE tsengine.series SET kind = 2"),
        ("writer", "TRUNCATE tsengine.points"),
        ("reader", "SELECT tsengine.make_partitions('{1}')"),
        ("reader", "SELECT tsengine.drop_expired(1)"),
        ("reader", "INSERT INTO tsengine.points (series, time, value) VALUES (1, 1, 1)"),
    ],
)
def test_rights_end_where_the_page_says(roles: dict[str, str], role: str, statement: str) -> None:
    """Neither role may change tables, nor the reader call what makes and drops partitions."""
    with admin().transaction():
        admin().execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(f"tsengine_{role}")))
        with pytest.raises(errors.InsufficientPrivilege), admin().transaction():
            admin().execute(statement.encode())


def test_privileged_functions_look_nowhere_else(roles: dict[str, str]) -> None:
    """A writer's own tables and functions are not those that privileged functions use."""
    with admin().transaction():
        admin().execute("SET LOCAL ROLE tsengine_writer")
        admin().execute("CREATE TEMPORARY TABLE store (partition_width bigint, options jsonb)")
        admin().execute("""INSERT INTO pg_temp.store VALUES (1, '{"retention": 1}')""")
        admin().execute("SET LOCAL search_path = pg_temp, tsengine")
        made = admin().execute("SELECT tsengine.make_partitions('{7}')").fetchone()
        assert made == (1,)
        admin().execute("RESET ROLE")
        bound = (
            admin()
            .execute(
                "SELECT pg_get_expr(relpartbound, oid) FROM pg_class"
                " WHERE oid = 'tsengine.points_7'::regclass"
            )
            .fetchone()
        )
        assert bound == (f"FOR VALUES FROM ('{7 * HOUR}') TO ('{8 * HOUR}')",)
        admin().execute("DROP TABLE pg_temp.store")


def test_a_user_without_rights_is_told(roles: dict[str, str], cluster: Cluster) -> None:
    """Who may not use the schema, or not create one, gets AccessDeniedError at open."""
    admin().execute("CREATE ROLE nobody_here LOGIN PASSWORD 'word'")
    try:
        for schema in ("tsengine", "another"):
            url = cluster.url(user="nobody_here", password="word", schema=schema)
            with pytest.raises(AccessDeniedError):
                tsengine.open(url)
    finally:
        admin().execute("DROP ROLE nobody_here")
