from __future__ import annotations

import datetime
import decimal
import enum
import ipaddress
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from tests.postgres.cluster import Cluster
from tests.postgres.tables import connected, table
from tsengine.backends.postgres import bulk_upsert
from tsengine.errors import BulkUpsertError, DataRefusedError
from tsengine.retry import RetryPolicy

Connection = psycopg.Connection[Any]

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
MOMENTS = st.datetimes(datetime.datetime(1, 1, 2), datetime.datetime(9999, 12, 30))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | TEXT | st.floats(-1e9, 1e9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "int2": st.integers(-(2**15), 2**15 - 1),
    "int4": st.integers(-(2**31), 2**31 - 1),
    "int8": st.integers(-(2**63), 2**63 - 1),
    "float4": st.floats(width=32),
    "float8": st.floats() | st.integers(-(10**6), 10**6),
    "text": TEXT,
    "varchar(40)": TEXT,
    "char(10)": TEXT,
    "bytea": st.binary(max_size=20),
    "date": st.dates(datetime.date(1, 1, 1), datetime.date(9999, 12, 31)),
    "timestamp": MOMENTS,
    "timestamptz": MOMENTS.map(lambda moment: moment.replace(tzinfo=datetime.UTC)),
    "uuid": st.uuids(),
    "jsonb": JSON,
    "json": JSON,
    "numeric": st.decimals(allow_nan=False, allow_infinity=False, places=3),
    "numeric(8, 2)": st.decimals(-1000, 1000, places=3),
    "interval": st.timedeltas(datetime.timedelta(-9999), datetime.timedelta(9999)),
    "int4[]": st.lists(st.none() | st.integers(-(2**31), 2**31 - 1), max_size=4),
    "text[]": st.lists(st.none() | TEXT, max_size=3),
    "inet": st.ip_addresses().map(ipaddress.ip_address),
}


@pytest.fixture(scope="module")
def connection(cluster: Cluster) -> Iterator[Connection]:
    """A connection of the superuser, to look behind the back of what is tested."""
    with connected(cluster) as made:
        yield made


@pytest.mark.parametrize("sql_type", VALUES)
@settings(max_examples=15)  # of up to 20 values each; every one makes a table
@given(st.data())
def test_a_value_arrives_as_the_driver_would_write_it(
    connection: Connection, sql_type: str, data: st.DataObject
) -> None:
    """Of every type, NULL included, the stored value is to the bit what an INSERT stores."""
    values = data.draw(st.lists(st.none() | VALUES[sql_type], min_size=1, max_size=20))
    with table(connection, f"k int PRIMARY KEY, ours {sql_type}, theirs {sql_type}") as name:
        is_json = sql_type.startswith("json")
        for k, value in enumerate(values):
            plain = Jsonb(value) if is_json and value is not None else value
            connection.execute(f"INSERT INTO {name} VALUES (%s, NULL, %s)", [k, plain])
        rows = list(enumerate(values))
        bulk_upsert(connection, name, rows, columns=["k", "ours"], key=["k"])
        if sql_type == "json":  # its text is kept, and ours has no blanks
            same = "ours::jsonb IS NOT DISTINCT FROM theirs::jsonb"
        else:
            same = "ROW(ours)::record *= ROW(theirs)::record"
        found = connection.execute(
            f"SELECT ours::text, theirs::text FROM {name} WHERE NOT ({same})"
        )
        assert found.fetchall() == []


class Mood(enum.Enum):
    HAPPY = "happy"


@pytest.mark.parametrize(
    ("sql_type", "bad"),
    [
        ("bool", 1),
        ("bool", "true"),
        ("int2", 2**15),
        ("int4", 2**31),
        ("int8", 2**63),
        ("int8", 1.5),
        ("int8", "1"),
        ("float8", "1"),
        ("text", 5),
        ("text", b"x"),
        ("text", "\ud800"),
        ("text", "a\0b"),
        ("varchar(2)", "abc"),
        ("bytea", "x"),
        ("bytea", 5),
        ("date", datetime.datetime(2020, 1, 1)),
        ("date", "2020-01-01"),
        ("timestamp", datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)),
        ("timestamptz", datetime.datetime(2020, 1, 1)),
        ("timestamptz", datetime.date(2020, 1, 1)),
        ("timestamptz", 5),
        ("uuid", "nonsense"),
        ("uuid", 5),
        ("jsonb", float("nan")),
        ("jsonb", {1, 2}),
        ("jsonb", b"{"),
        ("jsonb", "\0"),
        ("numeric", "x"),
        ("int4[]", ["x"]),
        ("inet", object()),
        ("int4 CHECK (v > 0)", -1),
        ("int4 NOT NULL", None),
    ],
)
def test_a_value_that_does_not_fit_is_refused(
    connection: Connection, sql_type: str, bad: Any
) -> None:
    """A value that a column cannot take is refused, not bent; nothing is stored or tried again."""
    good = {"bool": True, "text": "x", "bytea": b"x", "jsonb": 1, "numeric": 1}
    first = good.get(sql_type, {"int4": 1, "int8": 1, "int2": 1}.get(sql_type.split(maxsplit=1)[0]))
    with table(connection, f"k int PRIMARY KEY, v {sql_type}") as name:
        rows = [(0, first or 1) if "NULL" in sql_type else (0, first), (1, bad)]
        with pytest.raises(BulkUpsertError) as caught:
            bulk_upsert(connection, name, rows, columns=["k", "v"], key=["k"])
        assert isinstance(caught.value.__cause__, DataRefusedError)
        assert caught.value.report.retries == 0
        assert connection.execute(f"SELECT count(*) FROM {name}").fetchone() == (0,)


def test_bad_values_are_named_by_their_row(connection: Connection) -> None:
    """An error names the column, the value, and the rows among all that were given."""
    with table(connection, "k int PRIMARY KEY, v int8") as name:
        rows: list[tuple[int | None, Any]] = [(k, k) for k in range(20)]
        rows[13] = (13, "thirteen")
        rows[14] = (14, 1.5)
        told: dict[str, Any] = {
            "columns": ["k", "v"],
            "key": ["k"],
            "policy": RetryPolicy(batch_size=10),
        }
        with pytest.raises(
            BulkUpsertError, match="column 'v' of type bigint does not take 'thirteen'"
        ) as caught:
            bulk_upsert(connection, name, rows, **told)
        assert caught.value.indices == (13, 14)
        assert caught.value.report.inserted == 10
        with pytest.raises(BulkUpsertError, match="NULL is no key") as caught:
            bulk_upsert(connection, name, [*rows[:10], (None, 1)], **told)
        assert caught.value.indices == (10,)


def test_numbers_of_numpy_and_types_of_the_database_are_taken(connection: Connection) -> None:
    """Scalars of numpy go where Python's go; enums and domains are cast by the server."""
    connection.execute("DROP TYPE IF EXISTS mood CASCADE")
    connection.execute("CREATE TYPE mood AS ENUM ('sad', 'happy')")
    connection.execute("DROP DOMAIN IF EXISTS small CASCADE")
    connection.execute("CREATE DOMAIN small AS int CHECK (VALUE < 10)")
    columns = "k int PRIMARY KEY, a bool, b int8, c float8, d mood, e small, f uuid"
    with table(connection, columns) as name:
        identity = uuid.uuid4()
        row = (
            np.int32(1),
            np.bool_(True),
            np.int64(2),
            np.float32(0.5),
            "happy",
            decimal.Decimal(5),
            str(identity),
        )
        bulk_upsert(connection, name, [row], columns=list("kabcdef"), key=["k"])
        found = connection.execute(f"SELECT * FROM {name}").fetchone()
        assert found == (1, True, 2, 0.5, "happy", 5, identity)
        for bad in ("angry", Mood.HAPPY):
            with pytest.raises(BulkUpsertError):
                bulk_upsert(connection, name, [(2, bad)], columns=["k", "d"], key=["k"])
        with pytest.raises(BulkUpsertError, match="23514"):
            bulk_upsert(connection, name, [(2, 10)], columns=["k", "e"], key=["k"])
