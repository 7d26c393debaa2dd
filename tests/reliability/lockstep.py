"""Lockstep: the same random operations on every backend, beside the reference model.

Options are random, those of the store and those that must not matter; stores are compacted,
closed and opened again in between; merges are small, so that there are some. And the kit's
state machine, with a buffer over each backend.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from tsengine import Engine, Labels, ValueKind
from tsengine.backends.lmdb import LmdbEngine, merge
from tsengine.backends.memory import MemoryEngine
from tsengine.model import INT64_MAX
from tsengine.testing import Lockstep, Target, operations, state_machine
from tsengine.testing.operations import Operation, Write, WriteColumns

NUMBERS: Final = (
    (Labels("cpu", host="a"), ValueKind.FLOAT),
    (Labels("cpu", host="b", zone="eu"), ValueKind.FLOAT),
    (Labels("requests", zone="eu"), ValueKind.INT),
    (Labels({"__name__": 'odd "name"', "x": "y" * 600}), ValueKind.FLOAT),
)
OBJECTS: Final = ((Labels("event", host="a"), ValueKind.OBJECT), *NUMBERS[1:3])
POLICIES: Final = ("last", "first", "min", "max", "sum", "error")

MERGING: Final = st.sampled_from(("inline", "background", "manual"))
BLOCK_POINTS: Final = st.sampled_from((1, 8, 64, 16_384))

EXAMPLES: Final = 5
"""Examples between two looks at the clock."""

_QUIETLY: Final = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    deadline=None,
    database=None,
    derandomize=False,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


def memory(path: Path, **options: Any) -> Engine:
    """Make a memory engine, over the snapshot that stands at `path` if there is one."""
    return MemoryEngine(str(path) if path.exists() else "", **options)


def lmdb(path: Path, **options: Any) -> Engine:
    """Make an LMDB engine."""
    return LmdbEngine(str(path), **options)


@st.composite
def targets(draw: st.DrawFn, *, buffered: bool) -> dict[str, Target]:
    """Draw a target of each backend and some more of LMDB, with options that must not matter."""
    points = st.sampled_from((None, 1, 3, 4_096) if buffered else (None,))
    drawn = {"memory": Target(memory, buffer_points=draw(points))}
    for number in range(draw(st.integers(1, 3))):
        options = {"merging": draw(MERGING), "block_points": draw(BLOCK_POINTS)}
        drawn[f"lmdb-{number}"] = Target(lmdb, options, draw(points), draw(st.booleans()))
    return drawn


@st.composite
def stores(draw: st.DrawFn) -> tuple[list[Operation], str, dict[str, Target]]:
    """Draw operations, a duplicate policy and the targets."""
    kinds, policies = draw(st.sampled_from(((NUMBERS, POLICIES), (OBJECTS, ("last", "first")))))
    policy = draw(st.sampled_from(policies))
    parts = draw(st.lists(operations(kinds), min_size=3, max_size=6))
    steps = [step for part in parts for step in part]
    never_refused = policy != "error" and _cannot_overflow(steps, policy)
    return steps, policy, draw(targets(buffered=never_refused))


def _cannot_overflow(steps: Sequence[Operation], policy: str) -> bool:
    """Whether no batch is refused, however a buffer cuts them: no sum overflows."""
    written: list[object] = []
    for step in steps:
        if isinstance(step, Write):
            written += [value for _, _, value in step.points]
        elif isinstance(step, WriteColumns):
            written += [value for column in step.columns for value in column.values]
    total = sum(abs(value) for value in written if type(value) is int)
    return policy != "sum" or total <= INT64_MAX


@contextmanager
def small_merges() -> Iterator[None]:
    """Merges that are due after three commits, in steps of a few rows."""
    with mock.patch.multiple(merge, RUNS_DUE=3, RUNS_MERGED=2, STEP_ROWS=16, OWN_BLOCKS_FROM=5):
        yield


def run(number: int, *, more: Mapping[str, Target] | None = None) -> int:
    """Try some stores that a number chooses; gives how many operations they were.

    Args:
        number: the same gives the same stores.
        more: targets beside those that are drawn.

    Raises:
        AssertionError: a target differs from the model; a note names it.
    """
    count = 0

    @seed(number)
    @_QUIETLY
    @given(store=stores())
    def agree(store: tuple[list[Operation], str, dict[str, Target]]) -> None:
        nonlocal count
        steps, policy, drawn = store
        both = {**drawn, **(more or {})}
        with (
            tempfile.TemporaryDirectory() as folder,
            Lockstep(both, Path(folder), duplicate_policy=policy, integers="int") as lockstep,
        ):
            lockstep.run(steps)
        count += len(steps)

    with small_merges():
        agree()
    return count


def run_machines(number: int) -> None:
    """Try the kit's state machine on both backends, as a number chooses.

    Raises:
        AssertionError: an engine differs from the model.
    """
    machines = (
        state_machine(MemoryEngine, make_engine=memory),
        state_machine(
            LmdbEngine, engine_options={"merging": MERGING, "block_points": BLOCK_POINTS}
        ),
    )
    with small_merges():
        for machine in machines:
            run_state_machine_as_test(seed(number)(machine), settings=_QUIETLY)


def torture(seed: int, seconds: float, folder: Path) -> dict[str, object]:
    """Try stores for a while; give how many, and how many operations they were."""
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    rounds = steps = 0
    while rounds == 0 or time.monotonic() < end:
        number = chance.randrange(1 << 32)
        try:
            steps += run(number)
            run_machines(number)
        except Exception as error:
            error.add_note(f"torture seed {seed}, number {number}")
            raise
        rounds += 1
    return {"stores": EXAMPLES * rounds, "operations": steps, "machines": 2 * EXAMPLES * rounds}
