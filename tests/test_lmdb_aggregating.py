"""Aggregating by headers and blocks: whatever the runs look like, the answer is that of a scan."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsengine.aggregation import aggregate_batches, aggregation
from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.lmdb.layout import BLOCKS
from tsengine.backends.lmdb.planning import make_plan
from tsengine.errors import CorruptionError
from tsengine.model import INT64_MIN, RANGE_END_MAX, Labels
from tsengine.result import QueryResult
from tsengine.selectors import to_selector
from tsengine.testing.compare import rows_of

SERIES = [Labels("long", host=host, zone=zone) for host, zone in zip("abcd", "xxyy", strict=True)]
SHORT = [Labels("short", number=str(number)) for number in range(20)]
STEP = 10**9
LENGTH = 3_000
START = 1_700_000_000 * STEP

PUSHED_DOWN = (
    "count", "sum", "mean", "min", "max", "range", "first", "last", "stddev", "variance",
)  # fmt: skip


def by_scan(
    engine: LmdbEngine,
    start: int | None,
    end: int | None,
    selector: Labels | None = None,
    **asked: Any,
) -> QueryResult:
    """Aggregate what the scan of the store gives."""
    first = INT64_MIN if start is None else start
    last = RANGE_END_MAX if end is None else end
    return aggregate_batches(
        engine.scan(selector, start, end), aggregation(**asked, start=first, end=last)
    )


def assert_alike(
    engine: LmdbEngine,
    start: int | None,
    end: int | None,
    selector: Labels | None = None,
    **asked: Any,
) -> None:
    """Check that blocks give what a scan gives: exactly, or as near as adding in another order."""
    found = rows_of(engine.aggregate(selector, start, end, **asked))
    expected = rows_of(by_scan(engine, start, end, selector, **asked))
    assert list(found) == list(expected)
    for labels, rows in expected.items():
        assert [moment for moment, _ in found[labels]] == [moment for moment, _ in rows]
        values = [value for _, value in found[labels]]
        np.testing.assert_allclose(
            np.array(values, float), np.array([value for _, value in rows], float), rtol=1e-9
        )


def write_long(engine: LmdbEngine, *, irregular: bool = False) -> None:
    """Write series that fill blocks of their own, one of integers, with NaN and gaps in time."""
    generator = np.random.default_rng(7)
    for place, labels in enumerate(SERIES):
        times = START + np.arange(LENGTH) * STEP
        if irregular or place == 1:
            times += np.sort(generator.integers(0, STEP, LENGTH))
        values = generator.normal(100, 5, LENGTH)
        values[generator.integers(0, LENGTH, 20)] = math.nan
        if place == 3:
            engine.write_series(labels, times, generator.integers(-(2**62), 2**62, LENGTH) // 4_000)
        else:
            engine.write_series(labels, times, values)


questions = st.fixed_dictionaries(
    {
        "functions": st.one_of(
            st.just(PUSHED_DOWN),
            st.lists(st.sampled_from(PUSHED_DOWN), min_size=1, max_size=3, unique=True),
        ),
        "every": st.sampled_from((None, "7s", "100s", "1000s", "1h", "1w")),
        "group_by": st.sampled_from((None, [], ["zone"], ["__name__"])),
        "selector": st.sampled_from((None, None, None, *SERIES)),
    }
)
offsets = st.one_of(st.none(), st.integers(-5, LENGTH + 5))


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[str, int, int, int]]:
    """Draw late points, newer ones, deletes and merges."""
    kinds = st.sampled_from(
        ("late", "late", "newer", "short", "delete", "remove", "compact", "open")
    )
    one = st.tuples(kinds, st.integers(0, 3), st.integers(0, LENGTH), st.integers(1, 400))
    return draw(st.lists(one, max_size=6))


def change(engine: LmdbEngine, kind: str, which: int, first: int, count: int) -> None:
    """Make one change, of floats and integers alike."""
    labels = SERIES[which]
    times = START + (first + np.arange(count)) * STEP
    if kind == "newer":
        times += LENGTH * STEP
    if kind in ("late", "newer"):
        engine.write_series(labels, times, np.arange(count) if which == 3 else np.arange(count) / 7)
    elif kind == "short":
        engine.write([(name, int(times[0]) + place, 1.5) for place, name in enumerate(SHORT)])
    elif kind == "delete":
        engine.delete(labels, int(times[0]), int(times[-1]))
    elif kind == "remove":
        engine.delete(labels)
    elif kind == "compact":
        engine.compact()


@settings(max_examples=60)
@given(
    steps=changes(),
    asked=st.lists(questions, min_size=3, max_size=6),
    bounds=st.tuples(offsets, offsets),
    irregular=st.booleans(),
    merging=st.sampled_from(("manual", "inline")),
)
def test_blocks_answer_as_a_scan_does(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[str, int, int, int]],
    asked: list[dict[str, Any]],
    bounds: tuple[int | None, int | None],
    irregular: bool,
    merging: str,
) -> None:
    """Late runs, deletes, removals, merges and edges of range change nothing in how it adds up."""
    path = str(tmp_path_factory.mktemp("store") / "store")
    options: dict[str, Any] = {"merging": merging, "block_points": 256, "integers": "int"}
    engine = LmdbEngine(path, **options).open()
    write_long(engine, irregular=irregular)
    engine.compact()
    for step in steps:
        if step[0] == "open":  # what was written last is in memory no more
            engine.close()
            engine = LmdbEngine(path, **options).open()
        else:
            change(engine, *step)
    ends = [None if bound is None else START + bound * STEP + 17 for bound in bounds]
    if None not in ends:
        ends.sort()
    within = START + 300 * STEP, START + 400 * STEP
    for question in asked:
        assert_alike(engine, None, None, **question)
        assert_alike(engine, *within, **question)
        assert_alike(engine, ends[0], ends[1], **question)
    engine.close()


@pytest.fixture
def engine(tmp_path: Path) -> Any:
    """Give a merged store of long series that is open and has verified no block yet."""
    options: dict[str, Any] = {"merging": "manual", "block_points": 256, "integers": "int"}
    with LmdbEngine(str(tmp_path / "store"), **options) as first:
        write_long(first)
        first.compact()
    with LmdbEngine(str(tmp_path / "store"), **options) as opened:
        yield opened


def blocks_read(engine: LmdbEngine) -> int:
    """Count the blocks whose rows were read, and so verified, since the store was opened."""
    return len(engine._store.reader._verified)


def test_headers_answer_without_a_look_at_rows(engine: LmdbEngine) -> None:
    """Whole blocks inside one window are answered from their headers alone."""
    functions = ["count", "sum", "mean", "min", "max", "range", "first", "last"]
    for group_by in ([], ["zone"], None):
        engine.aggregate(functions=functions[:6], group_by=group_by)
        engine.aggregate('{zone="x"}', functions=functions, group_by=group_by, every="1w")
    assert blocks_read(engine) == 0
    engine.aggregate(functions=functions, every="700s", group_by=[])
    assert 0 < blocks_read(engine) <= 5 * len(SERIES)  # those that a window cuts


def test_variances_read_rows(engine: LmdbEngine) -> None:
    """What headers do not say is read."""
    engine.aggregate(functions=["stddev"], group_by=[])
    assert blocks_read(engine) == len(SERIES) * -(-LENGTH // 256)


def test_headers_do_not_answer_where_others_have_rows(engine: LmdbEngine) -> None:
    """A late point and a delete take out the blocks that they touch, and no other."""

    def unclean() -> int:
        store = engine._store
        asked = aggregation(["sum"], INT64_MIN, RANGE_END_MAX)
        with store.environment.read() as transaction:
            numbers = engine._resolve(transaction, to_selector(None))
            plan = make_plan(store, transaction, asked, numbers, lambda: numbers, INT64_MIN)
        return sum(int((~part.is_clean).sum()) for part in plan.parts)

    assert unclean() == 0
    engine.delete(SERIES[0], START + 10 * STEP, START + 20 * STEP)
    assert unclean() == 1
    engine.write([(SERIES[2], START + 1_000 * STEP + 1, 5.0)])
    # It is in memory and told by its box alone: series and time of its run.
    assert unclean() == 2
    assert_alike(engine, None, None, functions=PUSHED_DOWN, group_by=[])


def test_a_lost_block_is_told(engine: LmdbEngine) -> None:
    """Where a block is missing, headers do not add up without it."""
    environment = engine._store.environment

    def lose(transaction: Any) -> None:
        cursor = transaction.cursor(environment.tables[BLOCKS])
        assert cursor.first()
        assert cursor.next()
        cursor.delete()

    environment.write(lose)
    with pytest.raises(CorruptionError, match="lost a block"):
        engine.aggregate(functions=["sum"], group_by=[])


def test_a_damaged_header_is_told(engine: LmdbEngine) -> None:
    """A header that fails its checksum answers nothing."""
    environment = engine._store.environment

    def damage(transaction: Any) -> None:
        cursor = transaction.cursor(environment.tables[BLOCKS])
        assert cursor.first()
        key, block = bytes(cursor.key()), bytearray(cursor.value())
        block[112] ^= 1  # of the sum
        transaction.put(key, bytes(block), db=environment.tables[BLOCKS])

    environment.write(damage)
    with pytest.raises(CorruptionError, match="damaged header"):
        engine.aggregate(functions=["sum"], group_by=[])


def test_an_aggregation_is_one_moment(engine: LmdbEngine) -> None:
    """Groups and rows are those of one snapshot, read only and elsewhere too."""
    path = engine.location
    with LmdbEngine(path, read_only=True) as reader:
        before = rows_of(reader.aggregate(functions=["sum", "count"], group_by=["zone"]))
        engine.delete(SERIES[0])
        engine.write([(SHORT[0], START, 1.0)])
        engine.compact()
        after = rows_of(reader.aggregate(functions=["count"], group_by=["zone"]))
    assert before[Labels(zone="x", __function__="count")][0][1] == 2 * LENGTH
    assert {labels: rows[0][1] for labels, rows in after.items()} == {
        Labels(zone="x"): LENGTH,
        Labels(zone="y"): 2 * LENGTH,
        Labels(): 1,
    }


def test_edges_of_many_series_are_those_of_each(tmp_path: Path) -> None:
    """latest() and earliest() of many series are those of one at a time, in every state."""
    generator = np.random.default_rng(23)
    names = [Labels("many", number=str(number)) for number in range(90)]
    now = START + 50 * STEP
    options: dict[str, Any] = {"integers": "int", "block_points": 64, "clock_ns": lambda: now}
    path = str(tmp_path / "store")
    engine = LmdbEngine(path, merging="manual", retention="45s", **options).open()
    for turn in range(30):
        which = generator.integers(0, 90, 40).tolist()
        moments = (START + generator.integers(0, 60, 40) * STEP).tolist()
        values: list[object] = [
            "text" if place % 9 == 8 else place if place % 9 == 7 else place / 7 for place in which
        ]
        names_of = [names[place] for place in which]
        engine.write(list(zip(names_of, moments, values, strict=True)))
        if turn % 7 == 3:
            engine.delete(names[turn], START + 10 * STEP, START + 55 * STEP)
        if turn % 11 == 6:
            engine.compact()
        if turn % 9 == 5:
            engine.close()
            engine = LmdbEngine(path, merging="manual", **options).open()
        now += STEP
        for read in (engine.latest, engine.earliest):
            one_by_one = [point for labels in engine.series() for point in read(labels)]
            assert read() == one_by_one
    engine.close()
