from __future__ import annotations

from pathlib import Path

from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.memory import MemoryEngine
from tsengine.buffered import BufferedEngine
from tsengine.engine import Engine
from tsengine.testing import EngineConformance


class TestBufferedMemory(EngineConformance):
    engine_type = MemoryEngine  # what is behind decides what can be asked for

    def make_engine(self, path: Path, **options: object) -> Engine:
        """Make a memory engine with a buffer in front."""
        return BufferedEngine(MemoryEngine(**options))  # type: ignore[arg-type]  # clock_ns is among the options

    def open_snapshot(self, path: Path) -> Engine:
        """Make an engine over a snapshot file."""
        return BufferedEngine(MemoryEngine(str(path)))


class TestBufferedLmdb(EngineConformance):
    engine_type = LmdbEngine

    def make_engine(self, path: Path, **options: object) -> Engine:
        """Make an LMDB engine with a buffer in front, which has nothing to commit by age."""
        return BufferedEngine(LmdbEngine(str(path), **options), age_max=None)  # type: ignore[arg-type]  # clock_ns is among the options


class TestBufferedTwice(EngineConformance):
    engine_type = MemoryEngine

    def make_engine(self, path: Path, **options: object) -> Engine:
        """Make a memory engine with two buffers in front of each other."""
        return BufferedEngine(BufferedEngine(MemoryEngine(**options)), background=True)  # type: ignore[arg-type]  # clock_ns is among the options

    def open_snapshot(self, path: Path) -> Engine:
        """Make an engine over a snapshot file."""
        return BufferedEngine(BufferedEngine(MemoryEngine(str(path))))
