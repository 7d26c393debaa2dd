"""Each backend, with a buffer over it, beside the reference model."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.memory import MemoryEngine
from tsengine.buffered import BufferedEngine
from tsengine.engine import Engine
from tsengine.testing import EngineMachine, assert_same, state_machine
from tsengine.testing.agreement import EngineFactory
from tsengine.testing.operations import Write, write_to_model

pytestmark = pytest.mark.timeout(600)  # a failure is shrunk for up to five minutes


def make_memory(path: Path, **options: object) -> Engine:
    """Over nothing, or over the snapshot that stands at `path`."""
    return MemoryEngine(str(path) if path.exists() else "", **options)  # type: ignore[arg-type]  # clock_ns is among the options


TestMemoryMachine = state_machine(MemoryEngine, make_engine=make_memory).TestCase
TestMemoryMachine.settings = settings(max_examples=100, stateful_step_count=30)


def make_lmdb(path: Path, **options: object) -> Engine:
    """Over the store at `path`."""
    return LmdbEngine(str(path), **options)  # type: ignore[arg-type]  # clock_ns is among the options


LMDB_OPTIONS: dict[str, st.SearchStrategy[object]] = {
    "merging": st.sampled_from(("inline", "manual", "background")),
    "block_points": st.sampled_from((8, 64, 16_384)),
}
"""Options that change no answer."""

TestLmdbMachine = state_machine(LmdbEngine, engine_options=LMDB_OPTIONS).TestCase
TestLmdbMachine.settings = settings(max_examples=60, stateful_step_count=30)


class BufferedMachine(EngineMachine):
    """A BufferedEngine: what is written to its buffer, the next call to the engine sees."""

    def open(self) -> None:
        """Open the store, whose buffer is that of the engine."""
        super().open()
        self.buffer.close()
        assert isinstance(self.engine, BufferedEngine)
        self.buffer = self.engine.buffer

    @property
    def opened(self) -> Engine:
        """The engine, about to be asked: the model takes in what it is going to flush."""
        if isinstance(write_to_model(self.model, Write(tuple(self.pending))), tuple):
            self._flush()  # the model has taken nothing, and the engine would raise
        self.pending = []
        return super().opened

    @rule(data=st.data(), many=st.booleans())
    def write_to_buffer_and_read(self, data: st.DataObject, many: bool) -> None:
        """Write to the buffer and ask at once, which other rules do only now and then."""
        self.write_to_buffer(data, many)
        assert_same(self.opened, self.model)


def make_buffered(make: EngineFactory) -> EngineFactory:
    """Put a buffer in front of what is made, which commits when it is told to."""

    def made(path: Path, **options: object) -> Engine:
        return BufferedEngine(make(path, **options), points_max=100_000, age_max=None)

    return made


class BufferedMemoryMachine(BufferedMachine):
    """Memory, with a buffer in front."""

    engine_type = MemoryEngine
    make = staticmethod(make_buffered(make_memory))


class BufferedLmdbMachine(BufferedMachine):
    """LMDB, with a buffer in front."""

    engine_type = LmdbEngine
    make = staticmethod(make_buffered(make_lmdb))
    engine_options = LMDB_OPTIONS


TestBufferedMemoryMachine = BufferedMemoryMachine.TestCase
TestBufferedMemoryMachine.settings = settings(max_examples=60, stateful_step_count=30)
TestBufferedLmdbMachine = BufferedLmdbMachine.TestCase
TestBufferedLmdbMachine.settings = settings(max_examples=20, stateful_step_count=30)
