"""Wide runs: series that share their timestamps, written raw, read and merged as all others."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsengine import Labels
from tsengine.backends.lmdb import LmdbEngine, environment, merge
from tsengine.backends.lmdb.blocks import SharedTimes, decode, encode_shared, read_header, verify
from tsengine.backends.lmdb.layout import BLOCKS, KIND_SHIFT
from tsengine.backends.lmdb.wide import WideBlocks
from tsengine.backends.memory import MemoryEngine
from tsengine.errors import CorruptionError, DuplicatePointError, ValueKindError
from tsengine.model import INT64_MAX, INT64_MIN, Int64Array, ValueKind, WideBatch
from tsengine.testing.compare import assert_points, assert_rows, rows_of

_T = 1_700_000_000_000_000_000
_FLOATS = st.integers(INT64_MIN, INT64_MAX)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have small batches written as large ones are."""
    monkeypatch.setattr(merge, "BULK_ROWS", 32)
    monkeypatch.setattr("tsengine.backends.lmdb.engine.OWN_BLOCKS_FROM", 4)


def _table(chance: np.random.Generator, step: int) -> dict[str, Any]:
    """Make a wide table of some series, regular in time or not, beside what was written before."""
    rows, first = int(chance.integers(1, 60)), int(chance.integers(0, 200))
    times = np.arange(first, first + rows)
    if chance.random() < 0.5:
        times = np.sort(chance.choice(260, rows, replace=False))
    if chance.random() < 0.3:
        chance.shuffle(times)
    count = int(chance.integers(1, 12))
    values = chance.integers(-99, 99, (count, rows)) / 2  # which add up exactly in any order
    values[chance.random((count, rows)) < 0.1] = np.nan
    names = chance.permutation(14)[:count]
    columns = {f'cpu{{n="{n}"}}': row for n, row in zip(names, values + step, strict=True)}
    return {"timestamp": _T + times, **columns}


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    policy=st.sampled_from(["last", "first", "min", "max", "sum"]),
    merging=st.sampled_from(["manual", "inline"]),
    block_points=st.sampled_from([8, 20, 16_384]),
)
def test_a_store_of_wide_runs_answers_as_any(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    policy: str,
    merging: str,
    block_points: int,
) -> None:
    """Beside other writes, deletes, merges and reopening, every read is that of memory."""
    chance = np.random.default_rng(seed)
    path = tmp_path_factory.mktemp("wide") / "store"
    options: dict[str, Any] = {"merging": merging, "block_points": block_points}
    engine = LmdbEngine(str(path), duplicate_policy=policy, **options).open()
    try:
        with MemoryEngine(duplicate_policy=policy) as model:
            for step in range(5):
                table = _table(chance, step)
                assert engine.write_table(table) == model.write_table(table)
                what = chance.integers(5)
                if what == 0:
                    points = [(Labels("cpu", n=str(n)), _T + 100 + n, float(n)) for n in range(9)]
                    engine.write(points)
                    model.write(points)
                elif what == 1:
                    bounds = None, _T + int(chance.integers(1, 260)), _T + 200
                    if bounds[1] < bounds[2]:
                        assert engine.delete(*bounds) == model.delete(*bounds)
                elif what == 2:
                    assert engine.delete('cpu{n=~"1.*"}') == model.delete('cpu{n=~"1.*"}')
                elif what == 3:
                    engine.compact()
                else:
                    engine.close()
                    engine = LmdbEngine(str(path), **options).open()
            _assert_same(engine, model)
            engine.check()
            engine.compact()
            _assert_same(engine, model)
    finally:
        engine.close()


def _assert_same(engine: LmdbEngine, model: MemoryEngine) -> None:
    expected = rows_of(model.query())
    assert_rows(rows_of(engine.query()), expected)
    assert_rows(rows_of(engine.scan(), joined=False), expected)
    assert_rows(
        rows_of(engine.query(None, _T + 50, _T + 90)), rows_of(model.query(None, _T + 50, _T + 90))
    )
    assert engine.count() == model.count()
    assert_points(engine.latest(), model.latest())
    assert_points(engine.earliest(), model.earliest())
    functions = ["count", "min", "max", "first", "last", "sum"]
    for every in (None, "7ns", "64ns"):
        asked: dict[str, Any] = {"functions": functions, "every": every}
        found, wanted = engine.aggregate(**asked), model.aggregate(**asked)
        assert found.labels == wanted.labels
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one.timestamps, other.timestamps)
            np.testing.assert_allclose(one.values, other.values, rtol=1e-9, atol=1e-9)


def _runs(engine: LmdbEngine) -> list[tuple[int, int]]:
    return [(run.level, run.rows) for run in engine._store.manifest.runs]


@pytest.mark.parametrize("merging", ["manual", "inline"])
def test_a_wide_run_is_packed_when_nothing_else_is_due(tmp_path: Path, merging: str) -> None:
    """It is written raw and packed by itself, once; a store that never merges leaves it so."""
    table = {"timestamp": _T + np.arange(500), **{f"s{n}": np.arange(500.0) for n in range(4)}}
    with LmdbEngine(str(tmp_path / "store"), merging=merging) as engine:
        engine.write_table(table)
        (run,) = engine._store.manifest.runs
        packed = merging == "inline"
        assert (run.level > 0, run.size < 8 * run.rows) == (packed, packed)
        number = run.number
        engine.write([(Labels("s0"), 1, 0.5)])
        assert engine._store.manifest.runs[0].number == number
        engine.compact()
        assert engine._store.manifest.runs[0].size < 8 * 2_000
        assert engine.count() == 2_001


def test_wide_runs_are_packed_one_after_the_other(tmp_path: Path) -> None:
    """While one is packed no other is begun, or all would be in the file twice."""
    with LmdbEngine(str(tmp_path / "store"), merging="manual") as engine:
        for _ in range(3):
            engine.write_table({"timestamp": _T + np.arange(2_000), "a": np.arange(2_000.0)})
        first, second, third = engine._store.manifest.runs
        assert merge.plan([first, second, third]) == [first]
        assert merge.plan([first, second, third], {first.number}) == []
        assert merge.plan([second, third]) == [second]
        assert engine.stats().details["merges_owed"] == 3


def test_shared_times_are_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Series hold the times as they were encoded for all: once for each cut of the rows."""
    made: list[SharedTimes] = []
    init = SharedTimes.__init__

    def counted(self: SharedTimes, timestamps: Int64Array) -> None:
        made.append(self)
        init(self, timestamps)

    monkeypatch.setattr(SharedTimes, "__init__", counted)
    times = np.sort(np.random.default_rng(1).choice(10**6, 100, replace=False))
    table = {"timestamp": _T + times, **{f"s{n}": np.arange(100.0) for n in range(50)}}
    with LmdbEngine(str(tmp_path / "store"), merging="manual", block_points=50) as engine:
        engine.write_table(table)
        assert len(made) == 2
        assert engine._store.manifest.runs[0].blocks == 100


@given(
    bits=st.lists(_FLOATS, min_size=1, max_size=40),
    regular=st.booleans(),
    data=st.data(),
)
def test_blocks_of_shared_times_come_back_or_are_seen_to_be_damaged(
    bits: list[int], regular: bool, data: st.DataObject
) -> None:
    """Rows are bit for bit those given; a flipped bit anywhere is told."""
    count = len(bits)
    values = np.array(bits, np.int64).view(np.float64)
    times = np.arange(5, 5 + 3 * count, 3)
    if not regular:
        drawn = data.draw(st.sets(_FLOATS, min_size=count, max_size=count))
        times = np.array(sorted(drawn), np.int64)
    series = 7 + (ValueKind.FLOAT << KIND_SHIFT)
    key, block = encode_shared(3, series, SharedTimes(times), values, place=2)
    header = read_header(key, block)
    verify(key, block, header)
    found = decode(key, block, header)
    assert (header.place, header.t_min, header.t_max) == (2, times[0], times[-1])
    assert found.series.tolist() == [series]
    assert found.timestamps.tolist() == times.tolist()
    assert found.values.tobytes() == values.tobytes()
    place = data.draw(st.integers(0, 8 * len(block) - 1))
    damaged = bytearray(block)
    damaged[place // 8] ^= 1 << place % 8
    with pytest.raises(CorruptionError):
        verify(key, bytes(damaged), read_header(key, bytes(damaged)))


@given(rows=st.integers(1, 50), count=st.integers(1, 5), block_points=st.integers(1, 60))
def test_a_wide_run_is_what_its_totals_say(rows: int, count: int, block_points: int) -> None:
    """The manifest is written from totals that no block was made for."""
    batch = WideBatch(
        [Labels(n=str(n)) for n in range(count)], np.arange(rows), np.zeros((count, rows))
    )
    blocks = WideBlocks(1, np.arange(5, 5 + count), batch, block_points)
    totals, made = blocks.totals(), list(blocks)
    assert made == list(blocks)  # as where a commit is tried again
    assert totals.blocks == len(made)
    assert totals.size == sum(len(key) + len(block) for key, block in made)
    headers = [read_header(key, block) for key, block in made]
    assert totals.rows == sum(header.rows for header in headers) == rows * count
    assert [header.place for header in headers] == list(range(len(made)))
    assert [key for key, _ in made] == sorted(key for key, _ in made)
    assert totals.t_min == min(header.t_min for header in headers)
    assert totals.t_max == max(header.t_max for header in headers)
    assert (totals.series_first, totals.series_last) == (5, 4 + count)


def test_a_wide_write_grows_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a commit that found the map full are made again, and all is there."""
    monkeypatch.setattr(environment, "MAP_BYTES", 1 << 20)
    table = {"timestamp": _T + np.arange(5_000), **{f"s{n}": np.arange(5e3) for n in range(100)}}
    with LmdbEngine(str(tmp_path / "store")) as engine:
        engine.write_table(table)
        engine.check()
        assert engine.count() == 500_000
        assert engine.latest("s99")[0].value == 4_999.0


def test_a_wide_commit_that_fails_half_way_stores_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks are made inside of the transaction: what fails there takes all of it back."""
    table = {"timestamp": _T + np.arange(40), **{f"s{n}": np.arange(40.0) for n in range(4)}}
    with LmdbEngine(str(tmp_path / "store"), merging="manual") as engine:
        engine.write([(Labels("s1"), 1, 0.5)])
        whole = WideBlocks.__iter__

        def broken(self: WideBlocks) -> Iterator[tuple[bytes, bytes]]:
            yield from itertools.islice(whole(self), 2)
            raise MemoryError

        with monkeypatch.context() as patched:
            patched.setattr(WideBlocks, "__iter__", broken)
            with pytest.raises(MemoryError):
                engine.write_table(table)
        assert [labels.id for labels in engine.series()] == ["s1"]
        engine.check()
        engine.write_table(table)
        engine.check()
        assert engine.count() == 161


def test_a_block_of_a_wide_run_that_is_damaged_names_its_series(tmp_path: Path) -> None:
    """Other series of the run are read on."""
    table = {"timestamp": _T + np.arange(40), **{f"s{n}": np.arange(40.0) for n in range(4)}}
    with LmdbEngine(str(tmp_path / "store"), merging="manual") as engine:
        engine.write_table(table)
        files = engine._store.environment
        with files.read() as transaction:
            blocks = list(transaction.cursor(files.tables[BLOCKS]))
            key, block = blocks[2]
        broken = bytearray(block)
        broken[random.Random(1).randrange(200, len(block))] ^= 4
        files.write(
            lambda transaction: transaction.put(key, bytes(broken), db=files.tables[BLOCKS])
        )
    with LmdbEngine(str(tmp_path / "store"), merging="manual") as engine:
        assert len(engine.query("s1")) == 1
        for read in (lambda: engine.query("s2"), engine.query, engine.check, engine.compact):
            with pytest.raises(CorruptionError, match="s2"):
                read()


def test_series_of_another_kind_refuse_a_wide_batch(tmp_path: Path) -> None:
    """The error names the rows, and no series of the table is stored."""
    table = {"timestamp": _T + np.arange(40)[::-1], **{f"s{n}": np.zeros(40) for n in range(4)}}
    with LmdbEngine(str(tmp_path / "store")) as engine:
        engine.write([(Labels("s2"), 1, "text")])
        with pytest.raises(ValueKindError, match="s2") as caught:
            engine.write_table(table)
        assert caught.value.indices == tuple(range(40))
        assert engine.count() == 1
    with LmdbEngine(str(tmp_path / "other"), duplicate_policy="error") as engine:
        engine.write([(Labels("s2"), _T + 3, 0.5)])
        with pytest.raises(DuplicatePointError) as duplicates:
            engine.write_table(table)
        assert duplicates.value.indices == (36,)
        assert engine.count() == 1


def test_a_wide_batch_that_retention_cuts_holds_no_lock_beside_upkeep(tmp_path: Path) -> None:
    """Upkeep takes its own lock before that of commits: behind a commit the latter is free."""
    times = np.append(_T, time.time_ns() + np.arange(99))
    table = {"timestamp": times, **{f"s{n}": np.arange(100.0) for n in range(20)}}
    with LmdbEngine(str(tmp_path / "store"), merging="inline", retention="1h") as engine:
        writer = threading.Thread(target=engine.write_table, args=(table,))
        with engine._shared.upkeep._working:  # as while another thread merges
            writer.start()
            while not engine.count():
                time.sleep(0.001)
            is_free = engine._store.commit_lock.acquire(timeout=5)
            if is_free:
                engine._store.commit_lock.release()
        writer.join()
        assert is_free
        assert engine.count() == 1_980
