"""Every backend, and every option that must not matter: same operations, equal reads."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.memory import MemoryEngine
from tsengine.buffered import BufferedEngine
from tsengine.engine import Engine
from tsengine.model import INT64_MAX, Labels, ValueKind
from tsengine.testing import Lockstep, Target, operations
from tsengine.testing.agreement import EngineFactory
from tsengine.testing.operations import Compact, Delete, Operation, Write, WriteColumns
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


def memory(path: Path, **options: Any) -> Engine:
    """Make a memory engine."""
    return MemoryEngine(**options)


def lmdb(path: Path, **options: Any) -> Engine:
    """Make an LMDB engine."""
    return LmdbEngine(str(path), **options)


def lmdb_with(
    *, buffer_points: int | None = None, compacts: bool = False, **options: object
) -> Target:
    """Make a target of LMDB with options of its own."""
    return Target(lmdb, options, buffer_points, compacts)


def buffered(make: EngineFactory, points_max: int, **options: object) -> Target:
    """Make a target whose engine flushes a buffer of its own before it answers."""
    return Target(
        lambda path, **given: BufferedEngine(make(path, **given), points_max=points_max), options
    )


BACKENDS = {"memory": Target(memory), "lmdb": lmdb_with(merging="inline")}

EQUIVALENT = {
    "memory, buffer of 1": Target(memory, buffer_points=1),
    "memory, buffer of 4096": Target(memory, buffer_points=4_096),
    "memory, buffer within": buffered(memory, 3),
    "lmdb, buffer of 1": lmdb_with(buffer_points=1, merging="inline"),
    "lmdb, buffer of 4096": lmdb_with(buffer_points=4_096, merging="background"),
    "lmdb, buffer within": buffered(lmdb, 4_096, merging="inline"),
    "lmdb, merged after every flush": lmdb_with(buffer_points=3, compacts=True, merging="inline"),
    "lmdb, never merged": lmdb_with(buffer_points=3, merging="manual"),
    "lmdb, blocks of 8": lmdb_with(compacts=True, block_points=8),
    "lmdb, blocks of 16,384": lmdb_with(compacts=True, block_points=16_384),
}

runs = st.one_of(
    st.tuples(operations(NUMBERS), st.sampled_from(POLICIES)),
    st.tuples(operations(OBJECTS), st.sampled_from(("last", "first", "error"))),
)


def never_rejected(steps: Sequence[Operation], policy: str) -> bool:
    """Whether no batch is refused, however the points are batched: no sum overflows."""
    if policy != "sum":
        return True
    written: list[object] = []
    for step in steps:
        if isinstance(step, Write):
            written += [value for _, _, value in step.points]
        elif isinstance(step, WriteColumns):
            written += [value for column in step.columns for value in column.values]
    total = sum(abs(value) for value in written if type(value) is int)
    return total <= INT64_MAX


@settings(max_examples=60)
@given(run=runs)
def test_backends_agree(run: tuple[list[Operation], str]) -> None:
    """Memory and LMDB give the model's receipts, errors with indices, and rows."""
    steps, policy = run
    with (
        tempfile.TemporaryDirectory() as folder,
        Lockstep(BACKENDS, Path(folder), duplicate_policy=policy, integers="int") as lockstep,
    ):
        lockstep.run(steps)


@settings(max_examples=25)
@given(run=runs.filter(lambda run: run[1] != "error" and never_rejected(*run)))
def test_options_that_must_not_matter_do_not(run: tuple[list[Operation], str]) -> None:
    """Buffers of 1 and of 4096, merging always and never, small and large blocks read alike."""
    steps, policy = run
    with (
        tempfile.TemporaryDirectory() as folder,
        Lockstep(EQUIVALENT, Path(folder), duplicate_policy=policy, integers="int") as lockstep,
    ):
        lockstep.run(steps)


@pytest.mark.parametrize("policy", POLICIES[:-1])
def test_many_commits_agree(policy: str, tmp_path: Path) -> None:
    """Forty overlapping commits, with deletes between, merge to the same everywhere."""
    generator = np.random.default_rng(17)
    names = [Labels("many", number=str(number)) for number in range(7)]
    steps: list[Operation] = []
    for turn in range(40):
        count = int(generator.integers(1, 16))
        rows = zip(
            generator.integers(0, len(names), count).tolist(),
            generator.integers(1, 200, count).tolist(),
            generator.integers(-50, 50, count).tolist(),
            strict=True,
        )
        steps.append(
            Write(tuple((names[which], time, float(value)) for which, time, value in rows))
        )
        if turn % 9 == 8:
            start = int(generator.integers(1, 150))
            which = names[int(generator.integers(0, len(names)))]
            steps.append(Delete(Selected(which, which), start, start + 40))
        if turn % 15 == 14:
            steps.append(Compact())
    with Lockstep({**BACKENDS, **EQUIVALENT}, tmp_path, duplicate_policy=policy) as lockstep:
        lockstep.run(steps)
