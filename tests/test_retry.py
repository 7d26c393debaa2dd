from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsengine import errors
from tsengine.errors import (
    BatchTooLargeError,
    CorruptionError,
    DuplicatePointError,
    NotOpenError,
    ReadOnlyError,
    StorageError,
    StorageFullError,
    StorePathError,
    TsEngineError,
    UnknownOptionError,
    WaitTimeoutError,
)
from tsengine.retry import REGROW_AFTER, BatchSize, ErrorClass, RetryPolicy, classify


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DuplicatePointError("x"), ErrorClass.PERMANENT),
        (BatchTooLargeError("x"), ErrorClass.TOO_LARGE),
        (StorageError("x"), ErrorClass.TRANSIENT),
        (StorageFullError("x"), ErrorClass.TRANSIENT),
        (WaitTimeoutError("x"), ErrorClass.TRANSIENT),
        (ConnectionResetError("x"), ErrorClass.TRANSIENT),
        (StorePathError("x"), ErrorClass.FATAL),
        (CorruptionError("x"), ErrorClass.FATAL),
        (NotOpenError("x"), ErrorClass.FATAL),
        (ReadOnlyError("x"), ErrorClass.FATAL),
        (ZeroDivisionError("x"), ErrorClass.FATAL),
        (MemoryError("x"), ErrorClass.FATAL),
    ],
)
def test_errors_have_a_class(error: Exception, expected: ErrorClass) -> None:
    """What time heals is transient, what points are to blame for permanent, the rest fatal."""
    assert classify(error) is expected


def test_only_errors_about_points_reject_points() -> None:
    """No error that is not about data is ever taken for one that condemns points."""
    for name in errors.__dict__:
        kind = errors.__dict__[name]
        if isinstance(kind, type) and issubclass(kind, TsEngineError):
            error = kind.__new__(kind, "x")
            is_data = issubclass(kind, errors.InvalidDataError)
            assert (classify(error) is ErrorClass.PERMANENT) == is_data


@given(
    st.integers(0, 200),
    st.floats(0, 10),
    st.floats(0, 100),
    st.floats(0, 1),
)
def test_pauses_grow_within_bounds(
    retry: int, backoff_min: float, backoff_max: float, jitter: float
) -> None:
    """A pause is at most `backoff_max`, grows with each retry, and is jittered by a half."""
    policy = RetryPolicy(backoff_min=backoff_min, backoff_max=backoff_max, jitter=lambda: jitter)
    longest = RetryPolicy(backoff_min=backoff_min, backoff_max=backoff_max, jitter=lambda: 1.0)
    pause, full = policy.pause(retry), longest.pause(retry)
    assert 0 <= pause <= backoff_max
    assert full / 2 <= pause <= full
    assert full <= longest.pause(retry + 1) <= 2 * full or full == 0


@pytest.mark.parametrize(
    "options",
    [
        {"max_retries": -1},
        {"max_retries": 1.0},
        {"max_retries": True},
        {"min_batch_size": 0},
        {"deadline": -1.0},
        {"deadline": "soon"},
        {"backoff_min": float("nan")},
        {"backoff_max": None},
        {"backoff_max": float("inf")},
    ],
)
def test_a_policy_that_makes_no_sense_raises(options: dict[str, Any]) -> None:
    """A number out of its range is named, with what would be right."""
    (name,) = options
    with pytest.raises(UnknownOptionError, match=name):
        RetryPolicy(**options)


@given(
    st.integers(1, 100_000),
    st.integers(1, 10_000),
    st.lists(st.tuples(st.booleans(), st.integers(1, 100_000)), max_size=60),
)
def test_a_size_stays_within_its_bounds(
    most: int, least: int, steps: list[tuple[bool, int]]
) -> None:
    """A size is never above `most`, and below `least` only where `most` is."""
    size = BatchSize(most, least)
    for is_refused, points in steps:
        if is_refused:
            refused = min(points, size.points)
            assert size.shrink(refused) == size.points
            assert size.points < refused or size.points == min(least, most)
        else:
            size.grow(min(points, size.points))
        assert min(least, most) <= size.points <= most


@given(st.integers(1, 17), st.integers(1, 1_000))
def test_a_size_reaches_its_least_and_regrows(doublings: int, least: int) -> None:
    """Refused again and again a size comes down to `least` exactly; stored again, to `most`."""
    most = least << doublings
    size = BatchSize(most, least)
    for _ in range(doublings):
        assert size.points > least
        size.shrink(size.points)
    assert size.points == least
    for _ in range(doublings * REGROW_AFTER):
        size.grow(size.points)
    assert size.points == most


def test_small_commits_do_not_regrow_a_size() -> None:
    """Only commits as large as is allowed tell that larger ones may be."""
    size = BatchSize(1_000, 10)
    size.shrink(1_000)
    for _ in range(10 * REGROW_AFTER):
        size.grow(499)
    assert size.points == 500
