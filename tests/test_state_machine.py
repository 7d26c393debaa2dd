"""Each backend, with a buffer over it, beside the reference model."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.memory import MemoryEngine
from tsengine.engine import Engine
from tsengine.testing import state_machine

pytestmark = pytest.mark.timeout(600)  # a failure is shrunk for up to five minutes


def make_memory(path: Path, **options: object) -> Engine:
    """Over nothing, or over the snapshot that stands at `path`."""
    return MemoryEngine(str(path) if path.exists() else "", **options)  # type: ignore[arg-type]  # clock_ns is among the options


TestMemoryMachine = state_machine(MemoryEngine, make_engine=make_memory).TestCase
TestMemoryMachine.settings = settings(max_examples=100, stateful_step_count=30)

LMDB_OPTIONS: dict[str, st.SearchStrategy[object]] = {
    "merging": st.sampled_from(("inline", "manual", "background")),
    "block_points": st.sampled_from((8, 64, 16_384)),
}
"""Options that change no answer."""

TestLmdbMachine = state_machine(LmdbEngine, engine_options=LMDB_OPTIONS).TestCase
TestLmdbMachine.settings = settings(max_examples=60, stateful_step_count=30)
