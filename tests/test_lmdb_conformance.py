from __future__ import annotations

from tsengine.backends.lmdb import LmdbEngine
from tsengine.testing import EngineConformance


class TestLmdb(EngineConformance):
    engine_type = LmdbEngine
