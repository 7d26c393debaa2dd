"""The backend proved by the kit that proves tsengine's own."""

from __future__ import annotations

from tsengine_sqlite import SqliteEngine

from tsengine.testing import EngineConformance


class TestSqlite(EngineConformance):
    engine_type = SqliteEngine
