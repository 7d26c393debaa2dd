"""Stores of tests: a path, as the kit has one, becomes a schema of the shared server."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import psycopg
from psycopg import sql

from tests.postgres.shared import shared_cluster
from tsengine.backends.postgres import PostgresEngine

_made: set[str] = set()


def schema_of(path: Path) -> str:
    """Give the schema that stands for a path."""
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    return f"{path.name[:40]} {digest}"


def make_postgres(path: Path, **options: object) -> PostgresEngine:
    """Make an engine over the schema of a path; a file there becomes a table of somebody else's."""
    schema = schema_of(path)
    if schema not in _made:
        _made.add(schema)
        if path.is_file():
            with admin().transaction():
                admin().execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
                alien = sql.Identifier(schema, "alien")
                admin().execute(sql.SQL("CREATE TABLE {} (a integer)").format(alien))
    location = shared_cluster().local_url().removeprefix("postgresql://")
    location, _, query = location.partition("?")
    parameters = dict(pair.split("=") for pair in query.split("&"))
    parameters["host"] = str(shared_cluster().folder)
    return PostgresEngine(location, **{"schema": schema, **parameters, **options})  # type: ignore[arg-type]  # clock_ns is among the options


def drop_stores() -> None:
    """Drop the schemas that were made, so that the server stays small."""
    while _made:
        name = sql.Identifier(_made.pop())
        admin().execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(name))


@functools.cache
def admin() -> psycopg.Connection[tuple[object, ...]]:
    """Give a connection of the superuser to the shared server, in autocommit mode."""
    connection = psycopg.connect(shared_cluster().local_url(), autocommit=True)
    connection.execute("SET client_min_messages = warning; SET lock_timeout = '20s'")
    return connection
