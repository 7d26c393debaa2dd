"""What LMDB tells of changes: every row that differs lies where it said that rows may differ."""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tsengine
from tsengine import Labels
from tsengine.backends.lmdb import LmdbEngine, merge
from tsengine.backends.memory import MemoryEngine

SERIES = [Labels("load", host=str(number)) for number in range(3)]

STEPS = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 2), st.integers(1, 300), st.integers(1, 30)),
    st.tuples(st.just("delete"), st.integers(0, 2), st.integers(1, 300), st.integers(1, 90)),
    st.tuples(st.just("remove"), st.integers(0, 2)),
    st.tuples(st.just("compact")),
    st.tuples(st.just("ask")),
)


def rows_of(engine: tsengine.Engine) -> dict[tuple[Labels, int], object]:
    """Give all rows."""
    return {
        (one, moment): value for batch in engine.scan() for one, moment, value in batch.points()
    }


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(STEPS, min_size=5, max_size=40), merging=st.sampled_from(["inline", "manual"])
)
def test_changes_cover_all_that_differs(steps: list[tuple[Any, ...]], merging: str) -> None:
    """Through writes, deletes, merges and sweeps, since each of all moments that were asked."""
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory() as folder,
        LmdbEngine(f"{folder}/store", block_points=8, merging=merging) as engine,
    ):
        patch.setattr(merge, "SMALL_ROWS", 0)
        patch.setattr(merge, "RUNS_DUE", 4)
        patch.setattr(merge, "RUNS_MERGED", 3)
        asked = [(engine.changed_since(None)[0], rows_of(engine))]
        for number, step in enumerate([*steps, ("ask",)]):
            match step:
                case ("write", series, start, count):
                    moments = range(start, start + count)
                    engine.write([(SERIES[series], one, float(number)) for one in moments])
                case ("delete", series, start, length):
                    engine.delete(SERIES[series], start, start + length)
                case ("remove", series):
                    engine.delete(SERIES[series])
                case ("compact",):
                    engine.compact()
                case _:
                    rows = rows_of(engine)
                    for earlier, were in asked:
                        _, ranges = engine.changed_since(earlier)
                        assert ranges is not None
                        for key in {*rows, *were}:
                            if rows.get(key) != were.get(key):
                                assert any(start <= key[1] < end for start, end in ranges), key
                    asked.append((engine.changed_since(None)[0], rows))
        assert engine.changed_since(asked[-1][0])[1] == []


def test_who_does_not_know_says_so() -> None:
    """By default nothing is known; a buffer in front is flushed, and what is behind asked."""
    with MemoryEngine() as memory:
        moment, ranges = memory.changed_since(None)
        assert ranges is None
        assert memory.changed_since(moment)[1] is None
    with (
        tempfile.TemporaryDirectory() as folder,
        tsengine.BufferedEngine(LmdbEngine(f"{folder}/store")) as buffered,
    ):
        moment, ranges = buffered.changed_since(None)
        assert ranges is None
        buffered.buffer.write((SERIES[0], 5, 1.0))
        assert buffered.changed_since(moment)[1] == [(5, 6)]


def test_a_rollup_of_lmdb_looks_where_something_changed() -> None:
    """A second run in a process reads what changed in source or target, and no more."""
    with tempfile.TemporaryDirectory() as folder:
        now = 10_000

        def run(**options: Any) -> tsengine.RollupReport:
            return tsengine.rollup(source, target, "100ns", ["count"], **options)

        with (
            LmdbEngine(f"{folder}/source", clock_ns=lambda: now, merging="manual") as source,
            LmdbEngine(f"{folder}/target", merging="manual") as target,
        ):
            source.write([(SERIES[0], moment, 1.0) for moment in range(1_000, 10_000, 10)])
            assert run().written == 90
            run()  # is told of what the first one wrote
            assert (run().results, run().start) == (0, None)
            source.write([(SERIES[0], 5_001, 1.0)])
            report = run()
            assert (report.start, report.end, report.redone) == (5_000, 5_100, 1)
            target.delete("load:100ns", 2_000, 2_200)
            assert run().written == 2
            source.write([(SERIES[0], 10_001, 1.0)])
            for _ in range(3):
                assert run().written == 0  # its window has not ended
            now = 10_200
            assert run().written == 1
            report = run(start=1_500)
            assert report.results < 90
            assert run().start == 1_000  # more than the run before had looked at


def test_a_window_that_was_kept_is_looked_at_again() -> None:
    """The first window of a series may be cut; when it is the first no more, it is redone."""
    with tempfile.TemporaryDirectory() as folder:
        now = 1_000

        def run() -> tsengine.RollupReport:
            return tsengine.rollup(source, target, "100ns", ["sum"])

        with (
            LmdbEngine(f"{folder}/source", clock_ns=lambda: now, merging="manual") as source,
            LmdbEngine(f"{folder}/target", merging="manual") as target,
        ):
            source.write([(SERIES[0], moment, 1.0) for moment in (205, 305, 315, 405)])
            run()
            source.delete(None, 1, 310)
            for _ in range(2):
                assert (run().kept, run().redone) == (1, 0)
            now = 150  # before all that is there
            run()
            now = 1_000
            source.write([(SERIES[0], 105, 1.0)])
            report = run()
            assert (report.written, report.redone) == (1, 1)
            assert [batch.values.tolist() for batch in target.query()] == [[1.0, 1.0, 1.0, 1.0]]
