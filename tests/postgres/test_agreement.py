"""PostgreSQL beside the reference model, memory and LMDB: same operations, equal answers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.postgres.stores import drop_stores, make_postgres
from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.memory import MemoryEngine
from tsengine.backends.postgres import PostgresEngine, packing, reading, writing
from tsengine.engine import Engine
from tsengine.model import Labels, ValueKind
from tsengine.testing import EngineMachine, Lockstep, Target, operations
from tsengine.testing.operations import Delete, Operation, Write
from tsengine.testing.strategies import Selected

pytestmark = pytest.mark.timeout(600)  # a failure is shrunk for up to five minutes

NUMBERS = [
    (Labels("cpu", host="a"), ValueKind.FLOAT),
    (Labels("cpu", host="b", zone="eu"), ValueKind.FLOAT),
    (Labels("requests", zone="eu"), ValueKind.INT),
    (Labels({"__name__": 'odd "name"', "x": "y" * 600}), ValueKind.FLOAT),
]
OBJECTS = [(Labels("event", host="a"), ValueKind.OBJECT), *NUMBERS[1:3]]
POLICIES = ("last", "first", "min", "max", "sum", "error")


def memory(path: Path, **options: object) -> Engine:
    """Make a memory engine."""
    return MemoryEngine(**options)  # type: ignore[arg-type]  # of the kit


def lmdb(path: Path, **options: object) -> Engine:
    """Make an LMDB engine."""
    return LmdbEngine(str(path), **options)  # type: ignore[arg-type]  # of the kit


BACKENDS = {
    "memory": Target(memory),
    "lmdb": Target(lmdb, {"merging": "inline"}),
    "postgres": Target(make_postgres),
    "postgres, buffer of 3": Target(make_postgres, buffer_points=3),
    "postgres, narrow partitions": Target(make_postgres, {"partition_width": "10ns"}),
}

runs = st.one_of(
    st.tuples(operations(NUMBERS), st.sampled_from(POLICIES)),
    st.tuples(operations(OBJECTS), st.sampled_from(("last", "first", "error"))),
)


@pytest.fixture(autouse=True)
def _dropped() -> Iterator[None]:
    yield
    drop_stores()


@settings(max_examples=40)
@given(run=runs, copies=st.booleans())
def test_backends_agree(run: tuple[list[Operation], str], copies: bool) -> None:
    """Memory, LMDB and PostgreSQL answer alike, receipts and errors too, by either way to write."""
    steps, policy = run
    targets = {name: BACKENDS[name] for name in ("memory", "lmdb", "postgres")}
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        if copies:
            patch.setattr(writing, "UNNEST_ROWS_MAX", 0)
        with Lockstep(targets, Path(folder), duplicate_policy=policy, integers="int") as lockstep:
            lockstep.run(steps)
    drop_stores()


@pytest.mark.parametrize("policy", POLICIES[:-1])
def test_many_commits_agree(policy: str, tmp_path: Path) -> None:
    """Overlapping commits, with deletes between, read the same however they are stored."""
    generator = np.random.default_rng(17)
    names = [Labels("many", number=str(number)) for number in range(7)]
    steps: list[Operation] = []
    for turn in range(25):
        count = int(generator.integers(1, 16))
        rows = zip(
            generator.integers(0, len(names), count).tolist(),
            generator.integers(1, 200, count).tolist(),
            generator.choice([-0.0, 0.0, 1.5, -7.25, float("nan"), float("inf")], count).tolist(),
            strict=True,
        )
        steps.append(Write(tuple((names[which], time, value) for which, time, value in rows)))
        if turn % 9 == 8:
            start = int(generator.integers(1, 150))
            which = names[int(generator.integers(0, len(names)))]
            steps.append(Delete(Selected(which, which), start, start + 40))
    with Lockstep(BACKENDS, tmp_path, duplicate_policy=policy) as lockstep:
        lockstep.run(steps)


class Machine(EngineMachine):
    """PostgreSQL and a buffer over it, beside the model."""

    engine_type = PostgresEngine
    make = staticmethod(make_postgres)
    engine_options: ClassVar = {"partition_width": st.sampled_from(("7d", "10ns", "1h"))}

    def teardown(self) -> None:
        """Drop the store."""
        super().teardown()
        drop_stores()


TestPostgresMachine = Machine.TestCase
TestPostgresMachine.settings = settings(max_examples=25, stateful_step_count=25)


class SmallMachine(Machine):
    """The same where everything comes in pieces: pages, statements, copies of a few rows."""

    def __init__(self) -> None:
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(reading, "_NUMBERS", reading._Pages(2, 2, 3))
        self._patch.setattr(reading, "_OBJECTS", reading._Pages(2, 1, 2))
        self._patch.setattr(reading, "_SHORT_TOGETHER", 3)
        self._patch.setattr(reading, "_EDGES", 2)
        self._patch.setattr(writing, "UNNEST_ROWS_MAX", 2)
        self._patch.setattr(packing, "COPY_ROWS", 2)
        super().__init__()

    def teardown(self) -> None:
        """Drop the store, and go back to pieces of the usual size."""
        try:
            super().teardown()
        finally:
            self._patch.undo()


TestSmallMachine = SmallMachine.TestCase
TestSmallMachine.settings = settings(max_examples=12, stateful_step_count=25)
