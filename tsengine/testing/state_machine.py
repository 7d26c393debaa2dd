"""The state machine: an engine and a buffer over it, beside the reference model.

    TestMyEngine = state_machine(MyEngine).TestCase

Hypothesis chooses options, series and steps; whatever the engine answers must be what the
model answers, and `check()` finds nothing at the end.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tsengine.buffer import WriteBuffer
from tsengine.engine import Capability, Engine
from tsengine.errors import InvalidDataError, RejectedPointsError, ValueOverflowError
from tsengine.model import INT64_MIN, Labels, ProducerMark, ValueKind
from tsengine.testing.agreement import EngineFactory
from tsengine.testing.compare import (
    assert_aggregate,
    assert_range,
    assert_same,
    assert_same_answers,
)
from tsengine.testing.operations import Write, WriteColumns, write_to_engine, write_to_model
from tsengine.testing.reference import ReferenceModel
from tsengine.testing.strategies import (
    TIME_BASE,
    Point,
    aggregations,
    bad_values,
    columns,
    label_sets,
    points,
    ranges,
    selectors,
)

_NUMERIC_POLICIES = ("min", "max", "sum")


def store_options(
    capabilities: frozenset[Capability], extra: Mapping[str, st.SearchStrategy[object]]
) -> st.SearchStrategy[dict[str, Any]]:
    """Options of a store that a backend declares; `retention` in nanoseconds."""
    optional: dict[str, st.SearchStrategy[Any]] = {
        "min_timestamp": st.sampled_from((INT64_MIN, 1, TIME_BASE)),
        "integers": st.sampled_from(("float", "int", "int")),
        **extra,
    }
    if Capability.CAP in capabilities:
        optional["max_points_per_series"] = st.integers(1, 4)
        optional["max_points"] = st.integers(1, 8)
    if Capability.RETENTION in capabilities:
        optional["retention"] = st.sampled_from((1, 10, 30, 3_600_000_000_000))
    policies = st.sampled_from(("last", "first", "min", "max", "sum", "error"))
    return st.fixed_dictionaries({"duplicate_policy": policies}, optional=optional)


class EngineMachine(RuleBasedStateMachine):
    """The rules; `state_machine` makes a subclass for one engine."""

    engine_type: ClassVar[type[Engine]]
    make: ClassVar[EngineFactory]
    engine_options: ClassVar[Mapping[str, st.SearchStrategy[object]]] = {}

    engine: Engine | None = None

    # What there is.

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        """Choose options and series; open an empty store."""
        capabilities = self.engine_type.capabilities
        self.options = data.draw(store_options(capabilities, self.engine_options), "options")
        model_options = {
            name: value for name, value in self.options.items() if name not in self.engine_options
        }
        self.now = TIME_BASE + 12
        self.model = ReferenceModel(**model_options, clock_ns=lambda: self.now)
        kinds = [ValueKind.FLOAT, ValueKind.FLOAT, ValueKind.INT, ValueKind.OBJECT]
        if self.options["duplicate_policy"] in _NUMERIC_POLICIES:
            kinds.pop()
        self.series: list[tuple[Labels, ValueKind]] = [
            (labels, data.draw(st.sampled_from(kinds)))
            for labels in data.draw(label_sets(), "series")
        ]
        self.names = [labels for labels, _ in self.series]
        self.earliest = self.model.min_timestamp
        # Made once: Hypothesis looks at each new strategy for longer than it draws from it.
        self.some_points = points(self.series, earliest=self.earliest)
        self.some_columns = columns(self.series, earliest=self.earliest)
        self.some_series = selectors(self.names)
        self.some_range = ranges(earliest=self.earliest)
        self.folder = tempfile.TemporaryDirectory()
        self.snapshots = 0
        self.mark = ProducerMark("producer", 0)
        self.pending: list[Point] = []
        self.open()

    def open(self) -> None:
        """Open the store, and a buffer over it."""
        options = dict(self.options)
        if "retention" in options:
            options["retention"] = f"{options['retention']}ns"
        make = type(self).make
        path = Path(self.folder.name) / "store"
        self.engine = make(path, clock_ns=lambda: self.now, **options).open()
        self.buffer = WriteBuffer(self.engine, points_max=100_000, age_max=None)

    @property
    def opened(self) -> Engine:
        """The engine."""
        assert self.engine is not None
        return self.engine

    def draw_points(self, data: st.DataObject) -> list[Point]:
        """Draw valid points; in a store of floats some of the int kind may be inexact."""
        return data.draw(self.some_points, "points")

    # Writing.

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        """Write points."""
        self._write(Write(tuple(self.draw_points(data))))

    @rule(data=st.data())
    def write_columns(self, data: st.DataObject) -> None:
        """Write columns."""
        self._write(WriteColumns(tuple(data.draw(self.some_columns, "columns"))))

    @rule(data=st.data())
    def write_bad(self, data: st.DataObject) -> None:
        """Write points of which some are bad: labels, time, kind or value."""
        some = self.draw_points(data)
        name, _ = self.series[0]
        bad = st.one_of(
            bad_values().map(lambda value: (name, TIME_BASE, value)),
            st.sampled_from(
                [
                    (name, self.earliest - 1, 1.0),
                    (name, 2**63, 1.0),
                    (name, True, 1.0),
                    (Labels(), TIME_BASE, 1.0),
                    (name, TIME_BASE, "text"),
                    (name, TIME_BASE, 1.5),
                ]
            ),
        )
        for point in data.draw(st.lists(bad, min_size=1, max_size=3), "bad"):
            some.insert(data.draw(st.integers(0, len(some))), point)
        self._write(Write(tuple(some)))

    def _write(self, operation: Write | WriteColumns) -> None:
        found = write_to_engine(self.opened, operation)
        expected = write_to_model(self.model, operation)
        assert found == expected, f"gave {found}, expected {expected}"

    @rule(data=st.data(), repeats=st.integers(0, 2), skips=st.integers(1, 2))
    @precondition(lambda self: self.engine_type.capabilities & {Capability.PRODUCER_MARKS})
    def flush_with_a_mark(self, data: st.DataObject, repeats: int, skips: int) -> None:
        """Stage points and flush them under a mark, some times over."""
        some = self.draw_points(data)
        if not some:
            return
        mark = next_mark(self.mark, skips)
        for _ in range(1 + repeats):
            try:
                for point in some:
                    self.opened.write_to_buffer(point)
                found: object = self.opened.flush_buffer(mark)
            except InvalidDataError as error:
                self.opened.discard_buffer()
                found = type(error)
            try:
                expected: object = self.model.write(some, mark=mark)
            except InvalidDataError as error:
                expected = type(error)
            assert found == expected, f"{mark} gave {found}, expected {expected}"
            if not isinstance(expected, type):
                self.mark = mark
            high_water = self.opened.high_water(mark.producer)
            assert high_water == self.model.high_water(mark.producer)

    # The buffer.

    @rule(data=st.data(), many=st.booleans())
    def write_to_buffer(self, data: st.DataObject, many: bool) -> None:
        """Write points to the buffer, which takes them or raises."""
        exact = self.options.get("integers") == "int"
        some = [
            point
            for point in self.draw_points(data)
            if exact or not isinstance(point[2], int) or isinstance(point[2], bool)
        ]
        if many:
            self.buffer.write_many(some)
        else:
            for point in some:
                self.buffer.write(point)
        self.pending += some

    @rule()
    def flush_buffer(self) -> None:
        """Flush the buffer, whose bad points are told, and whose good ones are stored."""
        self._flush()

    def _flush(self) -> None:
        """Flush: bad points are named, and the others are stored in one commit."""
        pending, self.pending = self.pending, []
        points, rejected = pending, list[Point]()
        while isinstance(outcome := write_to_model(self.model, Write(tuple(points))), tuple):
            error, indices = outcome
            if error is ValueOverflowError:  # which of the points is one too many, none can say
                taken = self.buffer.take_pending()
                assert [point[:2] for point in taken] == [point[:2] for point in pending]
                return
            rejected += [points[index] for index in indices]
            points = [point for index, point in enumerate(points) if index not in indices]
        if not rejected:
            assert self.buffer.flush() == outcome
            return
        with pytest.raises(RejectedPointsError) as caught:
            self.buffer.flush()
        assert [point[:2] for point in caught.value.points] == [point[:2] for point in rejected]
        assert self.buffer.pending == 0

    # Deleting.

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """Delete a range of some series."""
        selected = data.draw(self.some_series, "selector")
        start, end = data.draw(self.some_range, "range")
        found = self.opened.delete(selected.engine, start, end)
        expected = self.model.delete(selected.model, start, end)
        assert found == expected, f"touched {found} series, expected {expected}"

    # Reading.

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        """Read a range of some series."""
        selected = data.draw(self.some_series, "selector")
        start, end = data.draw(self.some_range, "range")
        assert_range(self.opened, self.model, selected, start, end)

    @rule(data=st.data())
    def aggregate(self, data: st.DataObject) -> None:
        """Aggregate a range of some series."""
        selected = data.draw(self.some_series, "selector")
        start, end = data.draw(self.some_range, "range")
        asked = data.draw(aggregations(), "asked")
        assert_aggregate(self.opened, self.model, selected, start, end, **asked)

    @rule()
    def read_all(self) -> None:
        """Compare every read."""
        assert_same(self.opened, self.model)

    # Time.

    @rule(step=st.sampled_from((0, 1, 5, 40)), back=st.booleans())
    @precondition(lambda self: "retention" in self.options)
    def let_time_pass(self, step: int, back: bool) -> None:
        """Move the clock on, look, and perhaps set it back."""
        self.now += step
        assert_range(self.opened, self.model)
        if back:
            before, self.now = self.now, self.now - 100
            assert_range(self.opened, self.model)
            self.now = before

    # Upkeep.

    @rule()
    def compact(self) -> None:
        """Compact; answers stay."""
        self.opened.compact()

    @rule()
    @precondition(lambda self: self.engine_type.capabilities & {Capability.PERSISTENCE})
    def reopen(self) -> None:
        """Close buffer and engine, and open again."""
        self._flush()
        self.buffer.close()
        self.opened.close()
        self.open()
        assert_same(self.opened, self.model)

    @rule()
    @precondition(lambda self: self.engine_type.capabilities & {Capability.SNAPSHOT_FILES})
    def snapshot(self) -> None:
        """Write a snapshot and compare it."""
        self.snapshots += 1
        path = Path(self.folder.name) / f"copy-{self.snapshots}"
        self.opened.snapshot(str(path))
        make = type(self).make
        with make(path, clock_ns=lambda: self.now) as copy:
            assert_same_answers(self.opened, copy)

    def teardown(self) -> None:
        """Compare and check once more, then close."""
        if self.engine is None:
            return
        note(f"options: {self.options}")
        try:
            if sys.exc_info()[0] is None:  # else that tells more than what follows from it
                assert_same(self.opened, self.model)
                self.opened.check()
        finally:
            self.buffer.take_pending()
            self.buffer.close()
            self.engine.close()
            self.folder.cleanup()


def next_mark(mark: ProducerMark, skips: int) -> ProducerMark:
    """Give a mark above this one: the next piece, or the next sequence."""
    if skips == 1:
        return mark._replace(piece=mark.piece + 1)
    return ProducerMark(mark.producer, mark.sequence + 1)


def state_machine(
    engine_type: type[Engine],
    *,
    make_engine: EngineFactory | None = None,
    engine_options: Mapping[str, st.SearchStrategy[object]] | None = None,
) -> type[EngineMachine]:
    """Make the machine for one engine.

    Args:
        engine_type: says the capabilities.
        make_engine: makes an engine, unopened, of a path and options; the type itself,
            called with the path as text, where not given.
        engine_options: options of this engine alone that must not matter, as strategies.
    """

    def make(path: Path, **options: object) -> Engine:
        return engine_type(str(path), **options)  # type: ignore[arg-type]  # clock_ns is among the options

    return type(
        f"{engine_type.__name__}Machine",
        (EngineMachine,),
        {
            "engine_type": engine_type,
            "make": staticmethod(make if make_engine is None else make_engine),
            "engine_options": dict(engine_options or {}),
        },
    )
