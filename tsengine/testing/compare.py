"""Comparing what an engine answers with what the reference model expects.

Everything here raises AssertionError with the difference in words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tsengine.engine import Engine
from tsengine.errors import AggregationError
from tsengine.model import INT64_MAX, INT64_MIN, Labels, SeriesBatch, ValueKind
from tsengine.testing.reference import FloatSum, ReferenceModel, Row, agrees
from tsengine.testing.reference_aggregates import aggregate_rows
from tsengine.testing.strategies import Selected

Rows = dict[Labels, list[Row]]


def rows_of(batches: Iterable[SeriesBatch], *, joined: bool = True) -> Rows:
    """Read batches into rows, checking all that a result promises of its shape.

    Args:
        batches: of a query or a scan.
        joined: whether each series must come in one batch, as in a query.
    """
    rows: Rows = {}
    before: Labels | None = None
    for batch in batches:
        labels, timestamps, values = batch.labels, batch.timestamps, batch.values
        assert isinstance(batch, SeriesBatch), f"{batch!r} is no SeriesBatch"
        assert isinstance(labels, Labels), f"{labels!r} is no Labels"
        assert len(batch) == len(timestamps) == len(values), f"{labels.id}: lengths differ"
        assert len(batch) > 0, f"{labels.id}: a batch without rows"
        assert timestamps.dtype == np.int64, f"{labels.id}: timestamps of {timestamps.dtype}"
        assert values.dtype in [kind.dtype for kind in ValueKind], f"{labels.id}: {values.dtype}"
        if labels is before:
            assert not joined, f"{labels.id} comes in several batches"
        else:
            assert labels not in rows, f"{labels.id} comes again after another series"
            assert before is None or before.id < labels.id, f"{labels.id} after {before}"
        before = labels
        found = rows.setdefault(labels, [])
        found.extend(zip(timestamps.tolist(), values.tolist(), strict=True))
    for labels, found in rows.items():
        moments = [moment for moment, _ in found]
        assert moments == sorted(set(moments)), f"{labels.id}: timestamps do not increase: {found}"
    return rows


def assert_rows(
    found: Mapping[Labels, Sequence[Row]], expected: Mapping[Labels, Sequence[Row]]
) -> None:
    """Check that rows are those expected, values bit for bit, sums within their bound."""
    assert list(found) == list(expected), f"series {list(found)}, expected {list(expected)}"
    for labels, wanted in expected.items():
        rows = found[labels]
        moments, wanted_moments = [row[0] for row in rows], [row[0] for row in wanted]
        assert moments == wanted_moments, f"{labels.id}: times {moments}, expected {wanted_moments}"
        for (moment, value), (_, want) in zip(rows, wanted, strict=True):
            assert agrees(want, value), f"{labels.id} at {moment}: {value!r}, expected {want!r}"


def assert_points(
    found: Iterable[tuple[Labels, int, object]], expected: Iterable[tuple[Labels, int, object]]
) -> None:
    """Check that points, one per series, are those expected."""
    assert_rows(
        {labels: [(moment, value)] for labels, moment, value in found},
        {labels: [(moment, value)] for labels, moment, value in expected},
    )


def assert_range(
    engine: Engine,
    model: ReferenceModel,
    selected: Selected = Selected(None, None),  # noqa: B008  # frozen
    start: int | None = None,
    end: int | None = None,
) -> None:
    """Check query, scan and count of one selection and range."""
    wanted = model.query(selected.model, start, end)
    assert_rows(rows_of(engine.query(selected.engine, start, end)), wanted)
    assert_rows(rows_of(engine.scan(selected.engine, start, end), joined=False), wanted)
    assert engine.count(selected.engine, start, end) == sum(map(len, wanted.values()))


def assert_aggregate(
    engine: Engine,
    model: ReferenceModel,
    selected: Selected = Selected(None, None),  # noqa: B008  # frozen
    start: int | None = None,
    end: int | None = None,
    *,
    every: int | None = None,
    **asked: Any,
) -> None:
    """Check one aggregation, or that both refuse it.

    Args:
        engine: which.
        model: beside it.
        selected: which series.
        start: of the range.
        end: of the range.
        every: nanoseconds.
        asked: what `Engine.aggregate` and `aggregate_rows` take alike.
    """
    rows = model.query(selected.model, start, end)
    if any(isinstance(value, FloatSum) for found in rows.values() for _, value in found):
        # Such a sum has no one value: go on from what the engine read.
        rows = rows_of(engine.query(selected.engine, start, end))
    wanted: Rows | None
    try:
        wanted = aggregate_rows(rows, start=start, end=end, every=every, **asked)
    except AggregationError:
        wanted = None
    length = None if every is None else f"{every}ns"
    found: Rows | None
    try:
        found = rows_of(engine.aggregate(selected.engine, start, end, every=length, **asked))
    except AggregationError:
        found = None
    assert (found is None) == (wanted is None), f"{asked} gave {found}, expected {wanted}"
    if found is not None and wanted is not None:
        assert_rows(found, wanted)


def assert_same(engine: Engine, model: ReferenceModel) -> None:
    """Check every unbounded read, the listings and the statistics."""
    assert_range(engine, model)
    assert_points(engine.earliest(), model.earliest())
    assert_points(engine.latest(), model.latest())
    listed, wanted = list(engine.series()), model.series()
    assert listed == wanted, f"series() gives {listed}, expected {wanted}"
    assert engine.label_names() == model.label_names()
    for name in [*model.label_names(), "absent"]:
        assert engine.label_values(name) == model.label_values(name)
    stats, rows = engine.stats(), model.count()
    assert stats.series == len(wanted), f"stats say {stats.series} series, listed {len(wanted)}"
    if stats.points_exact and model.retention is None:
        assert stats.points == rows, f"stats say exactly {stats.points} points, there are {rows}"
    assert stats.points >= rows, f"stats say at most {stats.points} points, there are {rows}"
    assert stats.bytes >= 0


def assert_same_answers(first: Engine, second: Engine) -> None:
    """Check that two engines answer alike, as where one is the other, reopened."""
    assert_rows(rows_of(second.query()), rows_of(first.query()))
    assert list(second.series()) == list(first.series())
    assert_points(second.latest(), first.latest())
    assert_points(second.earliest(), first.earliest())
    assert second.options == first.options


WHOLE = (INT64_MIN, INT64_MAX + 1)
"""The widest range there is."""
