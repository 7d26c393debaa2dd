"""The oracle itself, against cases worked out by hand."""

from __future__ import annotations

import math
import struct
import subprocess
import sys

import pytest

from tsengine.errors import (
    DuplicatePointError,
    LabelsError,
    TimestampError,
    ValueKindError,
    ValueOverflowError,
)
from tsengine.model import Labels, ProducerMark, ValueKind, WriteReceipt
from tsengine.testing import Column, FloatSum, ReferenceModel, agrees
from tsengine.testing.reference import fold_writes, selects

A, B = Labels("cpu", host="a"), Labels("cpu", host="b", zone="eu")
NAN_42 = struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_0000_002A))[0]
NAN_43 = struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_0000_002B))[0]


def test_rows_come_by_series_id_and_time() -> None:
    """A query gives rows in order, whatever the order of writing."""
    model = ReferenceModel()
    assert model.write([(B, 5, 1.0), (A, 9, 2.0), (A, 3, 3.0)]) == WriteReceipt(3, 3)
    assert list(model.query().items()) == [(A, [(3, 3.0), (9, 2.0)]), (B, [(5, 1.0)])]
    assert model.earliest() == [(A, 3, 3.0), (B, 5, 1.0)]
    assert model.latest() == [(A, 9, 2.0), (B, 5, 1.0)]
    assert model.count() == 3
    assert model.label_names() == ["__name__", "host", "zone"]
    assert model.label_values("host") == ["a", "b"]


def test_ranges_are_half_open() -> None:
    """The start is in, the end is out, None is unbounded."""
    model = ReferenceModel()
    model.write([(A, moment, 0.0) for moment in (1, 2, 3, 2**63 - 1)])

    def times(start: int | None, end: int | None) -> list[int]:
        return [moment for moment, _ in model.query(A, start, end).get(A, [])]

    assert times(2, 3) == [2]
    assert times(2, 2) == []
    assert times(None, 2) == [1]
    assert times(3, None) == [3, 2**63 - 1]
    assert times(2**63 - 1, 2**63) == [2**63 - 1]


@pytest.mark.parametrize(
    ("policy", "writes", "stands"),
    [
        ("last", [1.0, 3.0, 2.0], 2.0),
        ("first", [1.0, 3.0, 2.0], 1.0),
        ("min", [2.0, 1.0, 3.0], 1.0),
        ("max", [2.0, 3.0, 1.0], 3.0),
        ("min", [0.0, -0.0], -0.0),
        ("min", [-0.0, 0.0], -0.0),
        ("max", [-0.0, 0.0], 0.0),
        ("max", [0.0, -0.0], 0.0),
        ("min", [math.nan, 5.0], 5.0),
        ("max", [5.0, math.nan], 5.0),
        ("max", [math.nan, -math.inf], -math.inf),
        ("min", [math.nan, math.inf], math.inf),
        ("min", [NAN_42, NAN_43], NAN_42),
        ("max", [NAN_43, NAN_42], NAN_43),
        ("sum", [-0.0], -0.0),
        ("sum", [NAN_42], NAN_42),
        ("sum", [5, -7, 2**62], 2**62 - 2),
        ("min", [2**53 + 1, 2**53], 2**53),
        ("max", [2**53, 2**53 + 1], 2**53 + 1),
        ("last", ["a", {"b": 1}], {"b": 1}),
        ("first", ["a", {"b": 1}], "a"),
    ],
)
def test_policies_fold_as_the_standard_says(
    policy: str, writes: list[object], stands: object
) -> None:
    """Each policy, by hand: bits, signs of zero and NaN payloads included."""
    assert agrees(stands, fold_writes(writes, policy))
    model = ReferenceModel(duplicate_policy=policy, integers="int")
    for value in writes:
        model.write([(A, 7, value)])
    assert agrees(stands, model.query()[A][0][1])


@pytest.mark.parametrize(
    ("terms", "accepted", "refused"),
    [
        ((0.1, 0.2), [0.30000000000000004, 0.3], [0.31, 0.1, math.nan]),
        ((1e16, 1.0, -1e16), [1.0, 0.0, 2.0], [20.0, -20.0]),
        ((math.inf, 1.0), [math.inf], [-math.inf, math.nan, 1.0]),
        ((math.inf, -math.inf), [math.nan], [math.inf, 0.0]),
        ((math.nan, 1.0), [math.nan], [1.0]),
        ((0.0, -0.0), [0.0, -0.0], [5e-324]),
        ((1.7e308, 1.7e308), [math.inf], [1.7e308, 0.0]),
        ((1.7e308, 1.7e308, -1.7e308), [1.7e308, math.inf], [0.0]),
        ((5e-324, 5e-324), [1e-323], [5e-324]),
    ],
)
def test_sums_accept_what_an_order_of_adding_gives(
    terms: tuple[float, ...], accepted: list[float], refused: list[object]
) -> None:
    """A sum within n·ε·Σ|v| is accepted, another is not, and neither is another type."""
    total = FloatSum(terms)
    assert all(map(total.accepts, accepted))
    assert not any(map(total.accepts, [*refused, 1, None, "0"]))


def test_equality_is_bit_for_bit() -> None:
    """Types, signs of zero and NaN payloads tell values apart, inside objects too."""
    assert agrees(NAN_42, NAN_42)
    assert not agrees(NAN_42, NAN_43)
    assert not agrees(0.0, -0.0)
    assert not agrees(1, 1.0)
    assert not agrees(True, 1)
    assert not agrees([1, 1.0], [1.0, 1])
    assert agrees({"a": [NAN_42, None]}, {"a": [NAN_42, None]})
    assert not agrees({"a": 0.0}, {"a": -0.0})
    assert not agrees({"a": 1}, {"b": 1})
    assert not agrees([1], [1, 2])
    assert not agrees("1", b"1")


@pytest.mark.parametrize(
    ("selection", "matches_a", "matches_b"),
    [
        (None, True, True),
        (A, True, False),
        ({}, True, True),
        ({"host": "a"}, True, False),
        ({"zone": ""}, True, False),
        ([("zone", "!=", "")], False, True),
        ([("host", "=~", "a|b")], True, True),
        ([("host", "=~", "A")], False, False),
        ([("host", "=~", ".")], True, True),
        ([("zone", "=~", "e")], False, False),
        ([("zone", "!~", "e.*")], True, False),
        ([("none", "=~", ".*")], True, True),
        ([("none", "=~", ".+")], False, False),
        ([("__name__", "=", "cpu"), ("host", "!=", "b")], True, False),
        (Labels("cpu"), False, False),
    ],
)
def test_selections_are_those_of_prometheus(
    selection: object, matches_a: bool, matches_b: bool
) -> None:
    """Matchers are anchored, an absent label is the empty text, Labels are one series."""
    assert selects(selection, A) is matches_a  # type: ignore[arg-type]  # of several types
    assert selects(selection, B) is matches_b  # type: ignore[arg-type]  # of several types


def test_kinds_are_fixed_and_freed() -> None:
    """The first commit fixes a kind; only a delete without bounds frees it."""
    model = ReferenceModel(integers="int")
    with pytest.raises(ValueKindError) as caught:
        model.write([(A, 1, 1.0), (A, 2, True), (B, 1, 2), (A, 3, 2**53 + 1)])
    assert caught.value.indices == (1, 3)
    assert model.series() == []
    model.write([(A, 1, 1.0), (A, 2, 3), (B, 1, 2)])
    assert (model.kind(A), model.kind(B)) == (ValueKind.FLOAT, ValueKind.INT)
    assert agrees(3.0, model.query()[A][1][1])
    assert model.delete(A, None, 100) == 1
    assert model.kind(A) is ValueKind.FLOAT
    assert model.delete(A) == 1
    assert model.kind(A) is None
    assert model.series() == [B]


def test_objects_are_normalised() -> None:
    """Tuples become lists, bytes-like bytes; keys must be text and None is no value."""
    model = ReferenceModel()
    model.write([(A, 1, (1, (2,))), (A, 2, {"a": bytearray(b"x")})])
    assert model.query()[A] == [(1, [1, [2]]), (2, {"a": b"x"})]
    for bad in (None, {1: 2}, 2**70, {"a": 2**64}, object(), {1}):
        with pytest.raises(ValueKindError):
            model.write([(A, 3, bad)])


def test_bad_points_are_all_named() -> None:
    """The error is of the first offender's type and names all."""
    model = ReferenceModel(min_timestamp=5)
    bad = [(A, 5, 1.0), (A, 4, 1.0), (Labels(), 9, 1.0), (A, True, 1.0), (A, 2**63, 1.0)]
    with pytest.raises(TimestampError) as caught:
        model.write(bad)
    assert caught.value.indices == (1, 2, 3, 4)
    with pytest.raises(LabelsError) as caught_labels:
        model.write(bad[2:])
    assert caught_labels.value.indices == (0, 1, 2)
    assert model.count() == 0


def test_columns_are_judged_by_their_dtype() -> None:
    """A float column suits no int series; an integer column a float series where exact."""
    model = ReferenceModel()
    model.write_columns([Column(A, [1, 2], [2**60 + 1, 7], ValueKind.INT)])
    with pytest.raises(ValueKindError) as caught:
        model.write_columns(
            [
                Column(B, [1], [1.0], ValueKind.FLOAT),
                Column(A, [1, 2], [1.0, 2.0], ValueKind.FLOAT),
            ]
        )
    assert caught.value.indices == (1, 2)
    model.write([(B, 1, 1.5)])
    with pytest.raises(ValueKindError) as caught:
        model.write_columns([Column(B, [2, 3], [2**53, 2**53 + 1], ValueKind.INT)])
    assert caught.value.indices == (1,)
    model.write_columns([Column(B, [2], [2**53], ValueKind.INT)])
    assert model.query()[B] == [(1, 1.5), (2, 2.0**53)]


def test_policy_error_names_every_second_write() -> None:
    """What is taken, by the store or earlier in the call, is named; nothing is stored."""
    model = ReferenceModel(duplicate_policy="error")
    model.write([(A, 1, 1.0)])
    with pytest.raises(DuplicatePointError) as caught:
        model.write([(A, 2, 1.0), (A, 1, 1.0), (B, 1, 1.0), (A, 2, 1.0)])
    assert caught.value.indices == (1, 3)
    assert model.count() == 1


def test_integer_sums_overflow_at_the_write() -> None:
    """The rows of each sum that does not fit are named; the sum in between may be larger."""
    model = ReferenceModel(duplicate_policy="sum", integers="int")
    model.write([(A, 1, 2**63 - 1)])
    with pytest.raises(ValueOverflowError) as caught:
        model.write([(B, 1, 1), (A, 1, 1)])
    assert caught.value.indices == (1,)
    model.write([(A, 1, 1), (A, 1, -5)])
    assert model.query()[A] == [(1, 2**63 - 5)]


def test_deletes_are_events() -> None:
    """What is written after a delete is a first write."""
    model = ReferenceModel(duplicate_policy="sum")
    model.write([(A, 1, 5.0), (A, 2, 5.0)])
    model.write([(A, 1, 5.0)])
    assert model.delete(A, 1, 2) == 1
    model.write([(A, 1, 1.0)])
    assert model.query()[A] == [(1, 1.0), (2, 5.0)]
    assert model.delete(None, 3, 3) == 0
    assert model.delete({"host": "b"}) == 0


def test_rings_keep_the_newest_of_a_set() -> None:
    """The newest N of stored and incoming; overwriting evicts nothing; too old is refused."""
    model = ReferenceModel(max_points_per_series=3)
    assert model.write([(A, m, 0.0) for m in (5, 1, 4, 2, 3)]) == WriteReceipt(
        5, 3, 2, 0, {"cap": 2}, (1, 3)
    )
    assert model.write([(A, 3, 9.0), (A, 3, 8.0)]) == WriteReceipt(2, 2)
    assert model.write([(A, 3, 7.0), (A, 6, 1.0)]) == WriteReceipt(2, 1, 1, 1, {"cap": 1}, (0,))
    assert model.query()[A] == [(4, 0.0), (5, 0.0), (6, 1.0)]


def test_the_total_cap_takes_the_oldest_of_all() -> None:
    """Globally oldest first, of equal times the smaller series ID."""
    model = ReferenceModel(max_points=2)
    model.write([(A, 5, 0.0), (B, 5, 0.0)])
    assert model.write([(B, 6, 0.0)]) == WriteReceipt(1, 1, evicted=1)
    assert model.query() == {B: [(5, 0.0), (6, 0.0)]}
    assert model.series() == [A, B]
    assert model.write([(A, 5, 0.0)]) == WriteReceipt(1, 0, 1, 0, {"cap": 1}, (0,))


def test_retention_filters_and_never_goes_back() -> None:
    """What is older than now − retention is refused and unseen, though the clock falls."""
    now = [1_000]
    model = ReferenceModel(retention=100, clock_ns=lambda: now[0])
    assert model.write([(A, 899, 1.0), (A, 900, 1.0), (A, 1_000, 1.0)]) == WriteReceipt(
        3, 2, 1, 0, {"retention": 1}, (0,)
    )
    assert model.count() == 2
    now[0] = 1_001
    assert model.count() == 1
    now[0] = 1
    assert model.count() == 1
    assert model.write([(A, 900, 1.0)]).refused == 1
    assert model.series() == [A]


def test_expired_rows_take_no_room() -> None:
    """Rows that expired are gone before a cap counts, and are not evicted."""
    now = [1_000]
    model = ReferenceModel(retention=100, max_points_per_series=2, clock_ns=lambda: now[0])
    model.write([(A, 950, 1.0), (A, 960, 1.0)])
    now[0] = 1_055
    assert model.write([(A, 1_000, 1.0)]) == WriteReceipt(1, 1)
    assert model.query()[A] == [(960, 1.0), (1_000, 1.0)]


def test_future_max_is_measured_by_the_clock() -> None:
    """Points further ahead than future_max are invalid."""
    model = ReferenceModel(future_max=10, clock_ns=lambda: 100)
    model.write([(A, 110, 1.0)])
    with pytest.raises(TimestampError):
        model.write([(A, 111, 1.0)])


def test_marks_make_repetition_a_no_op() -> None:
    """A mark not above the highest stores nothing; the last one's receipt is given again."""
    model = ReferenceModel(duplicate_policy="sum", max_points_per_series=1)
    mark = ProducerMark("p", 1)
    receipt = model.write([(A, 5, 1.0), (A, 4, 1.0)], mark=mark)
    assert receipt == WriteReceipt(2, 1, 1, 0, {"cap": 1}, (1,))
    assert model.write([(A, 5, 1.0), (A, 4, 1.0)], mark=mark) == receipt
    model.write([(A, 5, 1.0)], mark=ProducerMark("p", 1, 1))
    model.write([(A, 5, 1.0)], mark=mark)
    model.write([(A, 5, 1.0)], mark=ProducerMark("q", 1))
    total = model.query()[A][0][1]
    assert isinstance(total, FloatSum)
    assert total.accepts(3.0)
    assert model.high_water("p") == ProducerMark("p", 1, 1)
    model.forget_producer("p")
    assert model.high_water("p") is None


@pytest.mark.parametrize("module", ["reference", "reference_aggregates"])
def test_the_oracle_imports_model_and_errors_alone(module: str) -> None:
    """The oracle's two modules name nothing else of the package but tsengine.model and errors."""
    program = (
        f"import ast, pathlib, tsengine.testing.{module} as r;"
        "tree = ast.parse(pathlib.Path(r.__file__).read_text());"
        "names = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)];"
        "own = 'tsengine.testing.reference_aggregates';"
        "print(sorted(n for n in names if n.startswith('tsengine') and n != own))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "['tsengine.errors', 'tsengine.model']"
