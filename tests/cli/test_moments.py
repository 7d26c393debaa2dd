"""Times of the command line: absolute ones as `tsengine.timestamp`, others from one now."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tsengine
from tsengine.cli.moments import moment
from tsengine.cli.texts import timestamp_text
from tsengine.errors import TsEngineError
from tsengine.model import INT64_MAX, INT64_MIN

NOW = 1_800_000_000 * 10**9


@given(timestamp=st.integers(INT64_MIN, INT64_MAX))
def test_a_time_that_is_printed_is_taken_again(timestamp: int) -> None:
    """Every int64 has a text in UTC with nine digits that is its own, and reads back as itself."""
    text = timestamp_text(timestamp)
    assert len(text) == len("2026-01-01T00:00:00.000000000Z")
    assert moment(text, NOW) == timestamp
    assert moment(str(timestamp), NOW) == timestamp


@given(seconds=st.integers(1, 10**9), sign=st.sampled_from("+-"), word=st.sampled_from(["", "now"]))
def test_a_relative_time_is_that_far_from_now(seconds: int, sign: str, word: str) -> None:
    """`-90s`, `now-90s`, `+90s`: what a duration says, before or behind now."""
    away = seconds * 10**9 * (1 if sign == "+" else -1)
    assert moment(f"{word}{sign}{seconds}s", NOW) == NOW + away


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", NOW),
        ("-1h30m", NOW - 5_400 * 10**9),
        ("2026-01-31", tsengine.timestamp("2026-01-31T00:00:00Z")),
        ("2026-01-31T12:00:00+02:00", tsengine.timestamp("2026-01-31T10:00:00Z")),
        ("-5", -5),
    ],
)
def test_what_times_may_look_like(text: str, expected: int) -> None:
    """The forms that the help names, an integer being nanoseconds."""
    assert moment(text, NOW) == expected


@pytest.mark.parametrize(
    "text", ["", "yesterday", "1h", "now-", "now 1h", "-1y", "2026-01-31T12:00:00", "9" * 30]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    """A naive time, a bare number of hours, an unknown unit: an error that says so."""
    with pytest.raises(TsEngineError):
        moment(text, NOW)


def test_the_ends_of_int64_are_printed() -> None:
    """The first int64, which numpy takes for no time, has its text as well."""
    assert timestamp_text(INT64_MIN) == "1677-09-21T00:12:43.145224192Z"
