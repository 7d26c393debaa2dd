"""Tables: `write_table` stores what writing their points one by one would."""

from __future__ import annotations

import numpy as np
import pytest

from tsengine.engine import Capability, Engine
from tsengine.errors import (
    BatchShapeError,
    DuplicatePointError,
    InvalidDataError,
    LabelsError,
    PartialWriteError,
    TimestampError,
    ValueKindError,
)
from tsengine.model import Labels, WriteReceipt
from tsengine.testing.compare import Rows, assert_rows, rows_of
from tsengine.testing.conformance.base import A, B, C, ConformanceBase, requires
from tsengine.testing.strategies import SPECIAL_FLOATS, TIME_BASE

_T = TIME_BASE
_POLICIES = ("last", "first", "min", "max", "sum")


def _wide(seed: int) -> dict[str, object]:
    """Make a wide table of some series, times in any order, some twice, floats of all sorts."""
    chance = np.random.default_rng(seed)
    rows, columns = int(chance.integers(1, 40)), int(chance.integers(1, 6))
    table: dict[str, object] = {"timestamp": _T + chance.integers(0, 30, rows)}
    if seed % 2:  # as a recorder has them
        table["timestamp"] = _T + np.arange(rows)
    for column in range(columns):
        values = chance.choice(np.array(SPECIAL_FLOATS[:7]), rows)
        table[f'cpu{{host="{column}"}}'] = np.ma.array(
            values, mask=chance.random(rows) < 0.2 * (seed % 3)
        )
    return table


def _by_points(engine: Engine, table: dict[str, object]) -> None:
    times = np.asarray(table["timestamp"]).tolist()
    engine.write(
        (Labels("cpu", host=name[-3]), moment, value)
        for name, column in table.items()
        if name != "timestamp"
        for moment, value in zip(times, np.ma.asarray(column).tolist(), strict=True)
        if value is not None
    )


class TableConformance(ConformanceBase):
    """What is written from tables."""

    @pytest.mark.parametrize("policy", _POLICIES)
    def test_a_wide_table_is_its_points(self, policy: str) -> None:
        """Whatever order, repetition and gaps its rows have, under any policy, again and again."""
        for seed in range(6):
            tables = self.open(f"tables-{policy}-{seed}", duplicate_policy=policy)
            points = self.open(f"points-{policy}-{seed}", duplicate_policy=policy)
            for step in range(3):
                table = _wide(10 * seed + step)
                receipt = tables.write_table(table)
                _by_points(points, table)
                assert receipt.accepted == receipt.submitted > 0
            assert_rows(rows_of(tables.query()), rows_of(points.query()))

    def test_parts_of_a_table_are_its_whole(self) -> None:
        """A table cut into commits of a few points stores the same."""
        whole, parts = self.open("whole"), self.open("parts")
        for seed in range(5):
            table = _wide(seed)
            assert whole.write_table(table) == parts.write_table(table, points_max=7)
        assert_rows(rows_of(parts.query()), rows_of(whole.query()))

    def test_a_long_table_is_its_points(self) -> None:
        """Labels stand in columns, and a null is no label."""
        engine = self.open()
        receipt = engine.write_table(
            {
                "__name__": ["cpu", "cpu", "memory", "cpu"],
                "host": ["a", "b", "a", "a"],
                "zone": [None, None, "eu", None],
                "timestamp": [_T, _T, _T, _T + 1],
                "value": np.arange(4.0),
            }
        )
        assert receipt == WriteReceipt(4, 4)
        expected = {A: [(_T, 0.0), (_T + 1, 3.0)], B: [(_T, 1.0)], C: [(_T, 2.0)]}
        assert_rows(rows_of(engine.query()), expected)

    def test_columns_are_what_is_said_of_them(self) -> None:
        """Time, labels and values are named, and labels shared by all are added."""
        engine = self.open()
        table = {"when": [_T, _T + 1], "room": ["x", "y"], "warm": [1.5, 2.5], "wet": [1, 2]}
        engine.write_table(
            table,
            time="when",
            labels=["room"],
            values={"warm": "temperature", "wet": {"of": "air"}},
            shared_labels={"site": "lab"},
        )
        engine.write_table(table, time="when", labels={"room": "place"}, values="warm")
        expected = {
            Labels("temperature", room="x", site="lab"): [(_T, 1.5)],
            Labels("temperature", room="y", site="lab"): [(_T + 1, 2.5)],
            Labels(of="air", room="x", site="lab"): [(_T, 1.0)],
            Labels(of="air", room="y", site="lab"): [(_T + 1, 2.0)],
            Labels("warm", place="x"): [(_T, 1.5)],
            Labels("warm", place="y"): [(_T + 1, 2.5)],
        }
        in_order = dict(sorted(expected.items(), key=lambda item: item[0].id))
        assert_rows(rows_of(engine.query()), in_order)

    def test_each_column_has_its_kind(self) -> None:
        """Floats, integers and objects stand beside each other in one table, and one commit."""
        engine = self.open()
        engine.write_table(
            {
                "timestamp": [_T, _T + 1],
                "floats": np.array([0.5, np.nan]),
                "integers": np.array([1, 2**62]),
                "texts": ["x", None],
                "lists": [[1], {"a": True}],
            }
        )
        expected: Rows = {
            Labels("floats"): [(_T, 0.5), (_T + 1, float("nan"))],
            Labels("integers"): [(_T, 1), (_T + 1, 2**62)],
            Labels("lists"): [(_T, [1]), (_T + 1, {"a": True})],
            Labels("texts"): [(_T, "x")],
        }
        assert_rows(rows_of(engine.query()), expected)

    def test_nan_is_skipped_where_that_is_asked_for(self) -> None:
        """A NaN is a value, unless the caller says that it means none."""
        engine = self.open()
        table = {"timestamp": [_T, _T + 1], "a": [1.0, float("nan")], "b": [float("nan"), 2.0]}
        assert engine.write_table(table, skip_nan=True) == WriteReceipt(2, 2)
        assert engine.write_table(table, values="a", labels=[], skip_nan=True).submitted == 1
        expected = {Labels("a"): [(_T, 1.0)], Labels("b"): [(_T + 1, 2.0)]}
        assert_rows(rows_of(engine.query()), expected)
        assert engine.write_table(table) == WriteReceipt(4, 4)
        assert engine.count() == 4

    @pytest.mark.parametrize(
        ("bad", "error", "rows"),
        [
            ({"timestamp": [_T, None, _T, None]}, TimestampError, (1, 3)),
            ({"timestamp": np.array([_T, _T, -1, 0])}, TimestampError, (2, 3)),
            (
                {"timestamp": ["2026", "x", "y", "2026-01-01T00:00:00"]},
                TimestampError,
                (0, 1, 2, 3),
            ),
            ({"x": ["text", 1.0, 2.0, 3.0]}, ValueKindError, (1, 2, 3)),
            ({"x": [1.0, object(), 2.0, object()]}, ValueKindError, (1, 3)),
            ({"cpu": np.array([1, 2, 3, 4])}, None, ()),
            ({"taken": np.arange(4.0)}, ValueKindError, (0, 1, 2, 3)),
        ],
    )
    def test_bad_columns_of_a_wide_table_are_named_by_row(
        self, bad: dict[str, object], error: type[InvalidDataError] | None, rows: tuple[int, ...]
    ) -> None:
        """The error names the rows, and nothing of the table is stored."""
        engine = self.open()
        engine.write([(Labels("taken"), 1, "text")])
        table = {"timestamp": np.arange(_T, _T + 4), "a": np.arange(4.0), **bad}
        if error is None:
            engine.write_table(table)
            return
        with pytest.raises(error) as caught:
            engine.write_table(table)
        assert caught.value.indices == rows
        assert engine.count() == 1

    @pytest.mark.parametrize(
        ("column", "given", "error", "rows"),
        [
            ("value", [1.0, None, None], ValueKindError, (1, 2)),
            ("timestamp", [_T, None, _T], TimestampError, (1,)),
            ("host", ["a", 5, "b"], LabelsError, (1,)),
            ("host", ["a", None, ""], LabelsError, (1, 2)),
        ],
    )
    def test_bad_rows_of_a_long_table_are_named(
        self, column: str, given: list[object], error: type[InvalidDataError], rows: tuple[int, ...]
    ) -> None:
        """A null value or time and labels that are none are told by row; nothing is stored."""
        engine = self.open()
        table = {"host": ["a", "b", "c"], "timestamp": [_T] * 3, "value": [1.0] * 3, column: given}
        with pytest.raises(error) as caught:
            engine.write_table(table)
        assert caught.value.indices == rows
        assert engine.count() == 0

    @pytest.mark.parametrize(
        "asked",
        [
            {"time": "when"},
            {"values": ["a", "missing"]},
            {"values": "missing"},
            {"labels": ["missing"]},
            {"values": ["a", "a"]},
            {"values": ["timestamp"]},
            {"values": {"a": "x", "b": "x"}},
            {"values": ["a"], "shared_labels": {"__name__": "x"}},
            {"labels": ["a"], "shared_labels": {"a": "x"}},
            {"labels": ["a", "b"]},
            {"labels": "a"},
        ],
    )
    def test_a_form_that_makes_no_sense_is_refused(self, asked: dict[str, object]) -> None:
        """Columns that are missing, or that serve two ends, are told of before any is stored."""
        engine = self.open()
        table = {"timestamp": [_T], "a": [1.0], "b": [2.0]}
        with pytest.raises(BatchShapeError):
            engine.write_table(table, **asked)  # type: ignore[arg-type]  # as asked
        for wrong in ({"timestamp": [1, 2], "a": [1.0]}, {1: [1]}, {"timestamp": [1], "a": 5}, 7):
            with pytest.raises(BatchShapeError):
                engine.write_table(wrong)
        assert engine.count() == 0

    def test_what_landed_is_told(self) -> None:
        """Where a later part fails the error says how many rows are stored, and they are."""
        engine = self.open()
        table = {"timestamp": [_T, _T + 1, _T + 2, 0], "a": [1.0] * 4, "b": [2.0] * 4}
        with pytest.raises(PartialWriteError) as caught:
            engine.write_table(table, points_max=4)
        assert (caught.value.rows, caught.value.receipt) == (2, WriteReceipt(4, 4))
        assert isinstance(caught.value.__cause__, TimestampError)
        assert caught.value.__cause__.indices == (3,)
        assert engine.count() == 4

    def test_a_table_without_rows_stores_nothing(self) -> None:
        """Nor does it list series."""
        engine = self.open()
        assert engine.write_table({"timestamp": [], "a": []}) == WriteReceipt(0, 0)
        assert engine.write_table({"timestamp": [], "value": [], "b": []}) == WriteReceipt(0, 0)
        gaps = {"timestamp": [_T], "a": [None], "b": [None]}
        assert engine.write_table(gaps) == WriteReceipt(0, 0)
        assert list(engine.series()) == []

    def test_a_policy_that_refuses_names_rows(self) -> None:
        """Under `error` a point that is there is told by the row of the table."""
        engine = self.open(duplicate_policy="error")
        engine.write([(Labels("b"), _T + 1, 0.0)])
        table = {"timestamp": [_T + 1, _T], "a": [1.0, 2.0], "b": [3.0, 4.0]}
        with pytest.raises(DuplicatePointError) as caught:
            engine.write_table(table)
        assert caught.value.indices == (0,)
        assert engine.count() == 1

    @requires(Capability.RETENTION)
    def test_cells_that_retention_refuses_are_told(self) -> None:
        """Receipts count cells row by row, as the caller's table has them."""
        engine = self.open(retention="1h", clock_ns=lambda: _T)
        table = {"timestamp": [_T, 5, _T - 1, 6], "a": np.arange(4.0), "b": np.arange(4.0)}
        receipt = engine.write_table(table)
        assert receipt == WriteReceipt(8, 4, 4, 0, {"retention": 4}, (2, 3, 6, 7))
        again = engine.write_table(table, points_max=2)
        assert again == receipt

    def test_arrays_of_a_table_are_not_kept(self) -> None:
        """Who overwrites a table after the call changes nothing that is stored."""
        engine = self.open()
        times, values = np.arange(_T, _T + 50), np.arange(50.0)
        engine.write_table({"timestamp": times, "a": values, "b": values})
        before = rows_of(engine.query())
        times[:], values[:] = 1, 0.0
        assert_rows(rows_of(engine.query()), before)
