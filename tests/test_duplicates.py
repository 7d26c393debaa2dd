"""The fold over columns, against the oracle that folds one value after the other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsengine.duplicates import (
    DuplicatePolicy,
    check_policy_kind,
    distinct_starts,
    fold,
    fold_values,
)
from tsengine.errors import DuplicatePointError, ValueKindError, ValueOverflowError
from tsengine.model import INT64_MAX, INT64_MIN, ValueArray, ValueKind
from tsengine.testing import agrees
from tsengine.testing.reference import fold_writes
from tsengine.testing.strategies import SPECIAL_FLOATS, floats, integers, objects

FOLDING = [policy for policy in DuplicatePolicy if policy is not DuplicatePolicy.ERROR]


def grouped(rows: list[tuple[int, object]]) -> dict[int, list[object]]:
    """Give the writes of each timestamp, oldest first."""
    writes: dict[int, list[object]] = {}
    for moment, value in rows:
        writes.setdefault(moment, []).append(value)
    return writes


def rows_of(values: st.SearchStrategy[object]) -> st.SearchStrategy[list[tuple[int, object]]]:
    """Rows sorted by time, equal times often, of equal ones the newest last."""
    one = st.tuples(st.integers(1, 5), values)
    return st.lists(one, max_size=12).map(lambda rows: sorted(rows, key=lambda row: row[0]))


def column(values: list[object], kind: ValueKind) -> ValueArray:
    """Give values as a column of their kind."""
    array = np.empty(len(values), kind.dtype)
    for index, value in enumerate(values):
        array[index] = value
    return array


def check_fold(rows: list[tuple[int, object]], kind: ValueKind, policy: DuplicatePolicy) -> None:
    """Compare `fold` with the oracle, and see that it leaves its input alone."""
    times = np.array([moment for moment, _ in rows], np.int64)
    values = column([value for _, value in rows], kind)
    before = values.copy()
    found_times, found_values = fold(times, values, policy)
    expected = grouped(rows)
    assert found_times.tolist() == sorted(expected)
    assert found_values.dtype == kind.dtype
    for moment, value in zip(found_times.tolist(), found_values.tolist(), strict=True):
        assert agrees(fold_writes(expected[moment], policy.value), value)
    assert values.tobytes() == before.tobytes()


@pytest.mark.parametrize("policy", FOLDING)
@given(rows=rows_of(floats()))
def test_floats_fold_as_the_oracle_says(
    policy: DuplicatePolicy, rows: list[tuple[int, object]]
) -> None:
    """Every policy over any floats: payloads, signs of zero, infinities, overflow."""
    check_fold(rows, ValueKind.FLOAT, policy)


@pytest.mark.parametrize("policy", FOLDING)
@given(rows=rows_of(integers()))
def test_integers_fold_as_the_oracle_says(
    policy: DuplicatePolicy, rows: list[tuple[int, object]]
) -> None:
    """Every policy over any integers; a sum that overflows raises with all rows of its key."""
    sums: dict[int, int] = {}
    for moment, value in rows:
        assert isinstance(value, int)
        sums[moment] = sums.get(moment, 0) + value
    over = {m for m, total in sums.items() if not INT64_MIN <= total <= INT64_MAX}
    if policy is DuplicatePolicy.SUM and over:
        with pytest.raises(ValueOverflowError) as caught:
            check_fold(rows, ValueKind.INT, policy)
        wrong = tuple(index for index, (moment, _) in enumerate(rows) if moment in over)
        assert caught.value.indices == wrong
    else:
        check_fold(rows, ValueKind.INT, policy)


@pytest.mark.parametrize("policy", [DuplicatePolicy.LAST, DuplicatePolicy.FIRST])
@given(rows=rows_of(objects()))
def test_objects_fold_as_the_oracle_says(
    policy: DuplicatePolicy, rows: list[tuple[int, object]]
) -> None:
    """First and last over any objects."""
    check_fold(rows, ValueKind.OBJECT, policy)


@given(rows=rows_of(floats()))
def test_error_names_each_second_row(rows: list[tuple[int, object]]) -> None:
    """Under `error` equal rows raise, and all but the first of each are named."""
    times = np.array([moment for moment, _ in rows], np.int64)
    values = column([value for _, value in rows], ValueKind.FLOAT)
    repeated = tuple(i for i in range(1, len(rows)) if rows[i][0] == rows[i - 1][0])
    if repeated:
        with pytest.raises(DuplicatePointError) as caught:
            fold(times, values, DuplicatePolicy.ERROR)
        assert caught.value.indices == repeated
    else:
        assert fold(times, values, DuplicatePolicy.ERROR) == (times, values)


@pytest.mark.parametrize("policy", list(DuplicatePolicy))
def test_distinct_rows_are_not_copied(policy: DuplicatePolicy) -> None:
    """Where nothing is equal the inputs themselves come back."""
    times, values = np.array([1, 2, 5]), np.array([1.0, -0.0, math.nan])
    folded = fold(times, values, policy)
    assert folded[0] is times
    assert folded[1] is values
    empty = fold(times[:0], values[:0], policy)
    assert len(empty[0]) == len(empty[1]) == 0


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), max_size=10).map(sorted),
)
def test_starts_are_where_keys_begin(rows: list[tuple[int, int]]) -> None:
    """distinct_starts finds the first row of each (group, timestamp), None if all are alone."""
    groups = np.array([group for group, _ in rows], np.int64)
    times = np.array([moment for _, moment in rows], np.int64)
    firsts = [i for i in range(len(rows)) if i == 0 or rows[i] != rows[i - 1]]
    starts = distinct_starts(times, groups)
    assert (starts is None) is (len(firsts) == len(rows))
    if starts is not None:
        assert starts.tolist() == firsts


@given(
    parts=st.lists(st.lists(floats(), min_size=1, max_size=5), min_size=2, max_size=5),
    policy=st.sampled_from(FOLDING),
)
def test_folding_in_steps_is_folding_at_once(
    parts: list[list[float]], policy: DuplicatePolicy
) -> None:
    """Folding what was folded before, as merges do, comes to the same."""
    whole = [value for part in parts for value in part]
    zero = np.zeros(1, np.int64)
    steps = np.array([fold_values(zero, np.array(part), policy)[0] for part in parts])
    found = float(fold_values(zero, steps, policy)[0])
    assert agrees(fold_writes(whole, policy.value), found)


def test_specials_against_each_other() -> None:
    """The least and the greatest of each pair of special floats are those of IEEE 754-2019."""
    for left in SPECIAL_FLOATS:
        for right in SPECIAL_FLOATS:
            for policy in (DuplicatePolicy.MIN, DuplicatePolicy.MAX):
                found = fold_values(np.zeros(1, np.int64), np.array([left, right]), policy)
                assert agrees(fold_writes([left, right], policy.value), float(found[0]))


@pytest.mark.parametrize("policy", list(DuplicatePolicy))
def test_objects_suit_no_numeric_policy(policy: DuplicatePolicy) -> None:
    """min, max and sum refuse the object kind by name; all else suits all."""
    numeric = policy in (DuplicatePolicy.MIN, DuplicatePolicy.MAX, DuplicatePolicy.SUM)
    check_policy_kind(policy, ValueKind.FLOAT)
    check_policy_kind(policy, ValueKind.INT)
    if numeric:
        with pytest.raises(ValueKindError, match=policy.value):
            check_policy_kind(policy, ValueKind.OBJECT)
    else:
        check_policy_kind(policy, ValueKind.OBJECT)
