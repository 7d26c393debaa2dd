"""Plots: whatever numbers and times there are can be drawn."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tsengine import Labels, SeriesBatch
from tsengine.cli.plot import draw, line_of
from tsengine.model import INT64_MAX, INT64_MIN
from tsengine.testing import strategies


@st.composite
def series(draw: st.DrawFn) -> SeriesBatch:
    """A series as an aggregation gives it, at any times, of any floats or integers."""
    kind: Literal["f", "i"] = draw(st.sampled_from("fi"))
    times = draw(
        st.lists(st.integers(INT64_MIN + 1, INT64_MAX), min_size=1, max_size=5, unique=True)
    )
    elements = strategies.floats() if kind == "f" else strategies.integers()
    values = draw(arrays.arrays(f"{kind}8", len(times), elements=elements))
    return SeriesBatch(Labels("m", host="\x1b[31m"), np.array(sorted(times), np.int64), values)


@settings(max_examples=50)
@given(batches=st.lists(series(), min_size=1, max_size=3), has_braille=st.booleans())
def test_any_series_are_drawn(batches: list[SeriesBatch], has_braille: bool) -> None:
    """Each line of a drawing is as wide as was asked, NaN, infinities and ends of time or not."""
    lines = [line for line in map(line_of, batches) if len(line.values)]
    assume(lines)
    drawn = draw(lines, "title", 40, 5, has_colours=False, has_braille=has_braille)
    assert len(drawn.splitlines()) >= 8
    assert "\x1b" not in drawn


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e200])
def test_what_cannot_be_drawn_is_left_out(value: float) -> None:
    """NaN and infinities, and what makes one in the scales, are no part of a line."""
    batch = SeriesBatch(Labels("m"), np.array([1, 2]), np.array([value, 1.0]))
    line = line_of(batch)
    assert line.values.tolist() == [1.0]
    assert line.left_out == (0 if np.isnan(value) else 1)


def test_objects_are_left_out() -> None:
    """What is no number is counted, and no part of a line; `last` of objects gives such."""
    batch = SeriesBatch(Labels("m"), np.array([1, 2]), np.array(["up", None], object))
    line = line_of(batch)
    assert (len(line.timestamps), len(line.values), line.left_out) == (0, 0, 2)
