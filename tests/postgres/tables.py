"""Tables for tests of `bulk_upsert`, and how they are looked at behind its back."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import psycopg

from tests.postgres.cluster import Cluster

_numbers = itertools.count()


@contextlib.contextmanager
def connected(cluster: Cluster) -> Iterator[psycopg.Connection[Any]]:
    """Connect to a cluster as its superuser, in autocommit mode."""
    with psycopg.connect(cluster.local_url(), autocommit=True) as connection:
        yield connection


@contextlib.contextmanager
def table(connection: psycopg.Connection[Any], columns: str) -> Iterator[str]:
    """Make a table with a name of its own, and drop it."""
    name = f"t{next(_numbers)}"
    connection.execute(f"CREATE TABLE {name} ({columns})")
    try:
        yield name
    finally:
        connection.execute(f"DROP TABLE {name} CASCADE")


@contextlib.contextmanager
def refusing(
    connection: psycopg.Connection[Any], name: str, condition: str, sqlstate: str
) -> Iterator[str]:
    """Have a table's inserts fail with a SQLSTATE, as a server would, where a condition holds.

    Args:
        connection: of the superuser.
        name: of the table.
        condition: over `rows`, how many the statement inserted, and `attempt`, how many
            statements came before it, rolled back or not.
        sqlstate: of the error.

    Yields:
        The name of a sequence that has counted the attempts.
    """
    attempts = f"{name}_attempts"
    connection.execute(f"CREATE SEQUENCE {attempts} MINVALUE 0 START 0")
    connection.execute(f"""
        CREATE FUNCTION {name}_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            rows int := (SELECT count(*) FROM new_rows);
            attempt int := nextval('{attempts}');
        BEGIN
            IF {condition} THEN
                RAISE EXCEPTION 'refused % rows', rows USING ERRCODE = '{sqlstate}';
            END IF;
            RETURN NULL;
        END $$""")
    connection.execute(f"""
        CREATE TRIGGER refuse AFTER INSERT ON {name} REFERENCING NEW TABLE AS new_rows
        FOR EACH STATEMENT EXECUTE FUNCTION {name}_refuse()""")
    try:
        yield attempts
    finally:
        connection.execute(f"DROP SEQUENCE {attempts}")
        connection.execute(f"DROP FUNCTION {name}_refuse() CASCADE")
