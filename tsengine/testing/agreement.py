"""Agreement: several engines, one sequence of operations, equal reads.

`Lockstep` drives any number of targets through the same operations beside the reference
model and compares each with it after each: receipts, errors with their indices, rows. A
target is an engine with its options, written to directly or through a buffer of a given
size: so the same test proves that backends agree, and that options that must not matter do
not.

    with Lockstep(targets, folder, duplicate_policy="max") as lockstep:
        lockstep.run(operations)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeAlias

from tsengine.buffer import WriteBuffer
from tsengine.buffered import BufferedEngine
from tsengine.engine import Capability, Engine
from tsengine.testing.compare import assert_aggregate, assert_range, assert_same
from tsengine.testing.operations import (
    Aggregate,
    Compact,
    Delete,
    Operation,
    Outcome,
    Read,
    Write,
    WriteColumns,
    write_to_engine,
    write_to_model,
)
from tsengine.testing.reference import ReferenceModel
from tsengine.testing.strategies import array_of

EngineFactory: TypeAlias = Callable[..., Engine]
"""Makes an unopened engine of `(path, **options)`."""


@dataclass(frozen=True)
class Target:
    """One way to store: an engine, its options, and how it is written to.

    Attributes:
        make_engine: makes the engine, unopened, of a path and options. Writes to a
            BufferedEngine go through its buffer, which nothing flushes but the engine itself.
        options: what this target alone is opened with, on top of what all share.
        buffer_points: `points_max` of the buffer that its writes go through; None writes
            directly, one commit a write. Not for a BufferedEngine.
        compacts: whether it is compacted after every write.
    """

    make_engine: EngineFactory
    options: Mapping[str, object] = field(default_factory=dict)
    buffer_points: int | None = None
    compacts: bool = False


class _Runner:
    """A target at work."""

    def __init__(self, target: Target, path: Path, options: Mapping[str, object]) -> None:
        self.target = target
        self.path = path
        self.options = {**options, **target.options}
        self.open()

    def open(self) -> None:
        self.engine = self.target.make_engine(self.path, **self.options).open()
        points_max = self.target.buffer_points
        self.buffer: WriteBuffer | None = None
        if isinstance(self.engine, BufferedEngine):
            self.buffer = self.engine.buffer
        elif points_max is not None:
            self.buffer = WriteBuffer(self.engine, points_max=points_max)

    def close(self) -> None:
        if self.buffer is not None:
            self.buffer.close()
        self.engine.close()

    def flush(self) -> None:
        if self.buffer is not None and not isinstance(self.engine, BufferedEngine):
            self.buffer.flush()

    def write(self, operation: Write | WriteColumns) -> Outcome | None:
        """Write; a buffer's outcome is not known before it flushes."""
        outcome: Outcome | None = None
        if self.buffer is None:
            outcome = write_to_engine(self.engine, operation)
        elif isinstance(operation, Write):
            for point in operation.points:
                self.buffer.write(point)
        else:
            for column in operation.columns:
                self.buffer.write_series(column.labels, list(column.timestamps), array_of(column))
        if self.target.compacts:
            self.flush()
            self.engine.compact()
        return outcome


class Lockstep:
    """Targets that do the same, beside the model.

    Where a target is buffered, give operations that no batch rejects: with a buffer it is
    the flush that is refused, and what else it held.

    Args:
        targets: by a name that failures are told with.
        folder: an empty folder for their stores.
        options: of the store, common to all; `retention` and `future_max` are not among
            them, since the model takes them in nanoseconds.
    """

    def __init__(self, targets: Mapping[str, Target], folder: Path, **options: object) -> None:
        self.model = ReferenceModel(**options)  # type: ignore[arg-type]  # the same words
        self._targets = targets
        self._folder = folder
        self._options = options
        self._runners: dict[str, _Runner] = {}

    def __enter__(self) -> Self:
        for name, target in self._targets.items():
            self._runners[name] = _Runner(target, self._folder / name, self._options)
        return self

    def __exit__(self, *_: object) -> None:
        for runner in self._runners.values():
            runner.close()

    def run(self, operations: Sequence[Operation]) -> None:
        """Do all operations, then compare everything.

        Raises:
            AssertionError: a target differs from the model; a note names the target.
        """
        for operation in operations:
            if isinstance(operation, (Write, WriteColumns)):
                expected = write_to_model(self.model, operation)
                self._each(lambda runner: self._write(runner, operation, expected))  # noqa: B023  # called at once
            elif isinstance(operation, Delete):
                series = self.model.delete(operation.selected.model, operation.start, operation.end)
                self._each(lambda runner: self._delete(runner, operation, series))  # noqa: B023  # called at once
            else:
                self._each(lambda runner: self._look(runner, operation))  # noqa: B023  # called at once
        self.compare()

    def compare(self) -> None:
        """Compare every read of every target with the model."""
        self._each(self._compare)

    def _compare(self, runner: _Runner) -> None:
        runner.flush()
        assert_same(runner.engine, self.model)
        runner.engine.check()

    def _each(self, do: Callable[[_Runner], object]) -> None:
        for name, runner in self._runners.items():
            try:
                do(runner)
            except Exception as error:
                error.add_note(f"target {name!r}")
                raise

    def _write(self, runner: _Runner, operation: Write | WriteColumns, expected: Outcome) -> None:
        outcome = runner.write(operation)
        if outcome is not None:
            assert outcome == expected, f"{operation} gave {outcome}, expected {expected}"

    def _delete(self, runner: _Runner, operation: Delete, series: int) -> None:
        runner.flush()
        found = runner.engine.delete(operation.selected.engine, operation.start, operation.end)
        assert found == series, f"{operation} touched {found} series, expected {series}"

    def _look(self, runner: _Runner, operation: Operation) -> None:
        runner.flush()
        if isinstance(operation, Read):
            assert_range(
                runner.engine, self.model, operation.selected, operation.start, operation.end
            )
        elif isinstance(operation, Aggregate):
            assert_aggregate(
                runner.engine,
                self.model,
                operation.selected,
                operation.start,
                operation.end,
                **dict(operation.asked),
            )
        elif isinstance(operation, Compact):
            runner.engine.compact()
        elif Capability.PERSISTENCE in runner.engine.capabilities:
            runner.close()
            runner.open()
