"""The PostgreSQL backend proved by the kit that proves all of them."""

from __future__ import annotations

from pathlib import Path

from tests.postgres.stores import drop_stores, make_postgres
from tsengine.backends.postgres import PostgresEngine
from tsengine.engine import Engine
from tsengine.testing import EngineConformance


class TestPostgres(EngineConformance):
    engine_type = PostgresEngine

    def make_engine(self, path: Path, **options: object) -> Engine:
        """Make an engine over the schema that stands for a path."""
        return make_postgres(path, **options)

    def end(self) -> None:
        """Drop what the test made."""
        super().end()
        drop_stores()
