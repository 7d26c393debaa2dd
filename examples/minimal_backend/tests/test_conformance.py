"""The backend proved by the kit that proves tsengine's own."""

from __future__ import annotations

from tsengine_minimal import MinimalEngine

from tsengine.testing import EngineConformance


class TestMinimal(EngineConformance):
    engine_type = MinimalEngine
