from __future__ import annotations

from pathlib import Path

from tsengine.backends.memory import MemoryEngine
from tsengine.engine import Engine
from tsengine.testing import EngineConformance


class TestMemory(EngineConformance):
    engine_type = MemoryEngine

    def make_engine(self, path: Path, **options: object) -> Engine:
        """Make an engine over nothing: this backend keeps no store at a path."""
        return MemoryEngine(**options)  # type: ignore[arg-type]  # clock_ns is among the options

    def open_snapshot(self, path: Path) -> Engine:
        """Make an engine over a snapshot file."""
        return MemoryEngine(str(path))
