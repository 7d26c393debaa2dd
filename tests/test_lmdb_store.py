"""The LMDB store: files, sharing, merging, sweeping, growth; what the shared kit cannot see."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import lmdb
import numpy as np
import pytest

from tsengine.backends.lmdb import LmdbEngine, environment, garbage, merge, upkeep
from tsengine.backends.lmdb.layout import KIND_SHIFT, pack_u64
from tsengine.buffer import WriteBuffer
from tsengine.engine import Engine
from tsengine.errors import (
    CorruptionError,
    FormatVersionError,
    LifecycleError,
    ReadOnlyError,
    SnapshotExpiredError,
    StorageError,
    StoreInUseError,
    StoreOptionError,
    StorePathError,
    UnknownOptionError,
)
from tsengine.model import GroupedBatch, Labels, ProducerMark, ValueKind

A = Labels("a", host="1")
SERIES = [Labels("m", host=str(number)) for number in range(20)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A path where a store may be made."""
    return tmp_path / "store"


@pytest.fixture
def small_merges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merges that are due after three commits, however small, in steps of a few rows."""
    monkeypatch.setattr(merge, "TAIL_ROWS_MAX", 0)
    monkeypatch.setattr(merge, "SMALL_ROWS", 0)
    monkeypatch.setattr(merge, "RUNS_DUE", 3)
    monkeypatch.setattr(merge, "RUNS_MERGED", 2)
    monkeypatch.setattr(merge, "STEP_ROWS", 16)
    monkeypatch.setattr(merge, "OWN_BLOCKS_FROM", 5)


def commits(engine: Engine, count: int, *, rows: int = 3) -> None:
    """Make commits of a few rows in each series, in order of time."""
    for commit in range(count):
        engine.write(
            (labels, 1 + commit * rows + row, float(commit))
            for labels in SERIES
            for row in range(rows)
        )


def rows_of(engine: Engine) -> dict[Labels, list[tuple[int, float]]]:
    """Give everything that a query answers."""
    return {
        batch.labels: list(zip(batch.timestamps.tolist(), batch.values.tolist(), strict=True))
        for batch in engine.query()
    }


def stored_runs(engine: LmdbEngine) -> set[int]:
    """Give the numbers of the runs that have blocks in the file."""
    table = engine._store.environment.tables["blocks"]
    with engine._store.environment.read() as transaction:
        return {int.from_bytes(key[:8], "big") for key, _ in transaction.cursor(table)}


# Small commits.


@pytest.mark.parametrize("policy", ["last", "first", "sum"])
def test_small_commits_leave_few_runs_and_little_behind(path: Path, policy: str) -> None:
    """Commits of a point each are folded as they come, in the order in which they came."""
    with LmdbEngine(str(path), merging="manual", duplicate_policy=policy) as engine:
        expected: dict[tuple[Labels, int], float] = {}
        for number in range(700):
            key = SERIES[number % 7], 1 + number * 7 % 50
            value = float(number)
            engine.write([(*key, value)])
            if policy == "sum":
                value += expected.get(key, 0.0)
            elif policy == "first":
                value = expected.get(key, value)
            expected[key] = value
        details = engine.stats().details
        assert int(str(details["runs"])) <= 10
        assert int(str(details["runs_to_sweep"])) <= 20
        found = {
            (labels, timestamp): value
            for labels, rows in rows_of(engine).items()
            for timestamp, value in rows
        }
        assert found == expected
        engine.check()
    with LmdbEngine(str(path), merging="manual") as engine:
        engine.write([(SERIES[0], 1_000, 1.0)])
        assert engine.count() == len(expected) + 1
        engine.compact()
        assert stored_runs(engine) == {run.number for run in engine._store.manifest.runs}


def test_a_delete_parts_small_commits(path: Path) -> None:
    """Rows of a small run that a delete hides are not taken into the next commit."""
    with LmdbEngine(str(path), merging="manual") as engine:
        for timestamp in range(1, 6):
            engine.write([(A, timestamp, 1.0), (SERIES[0], timestamp, 1.0)])
        engine.delete(A, 2, 4)
        engine.write([(A, 3, 2.0), (SERIES[0], 9, 2.0)])
        engine.write([(A, 8, 2.0)])
        assert rows_of(engine)[A] == [(1, 1.0), (3, 2.0), (4, 1.0), (5, 1.0), (8, 2.0)]
        engine.delete(A)
        engine.write([(A, 8, 3.0)])
        assert rows_of(engine)[A] == [(8, 3.0)]
        engine.check()


def test_a_scan_keeps_its_moment_through_small_commits(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small runs that a scan still reads stay until it ends, and go with the next commits."""
    monkeypatch.setattr("tsengine.backends.lmdb.engine.SHORT_SERIES", 0)  # a step a series
    with LmdbEngine(str(path), merging="background") as engine:
        engine.write((labels, 1, 1.0) for labels in SERIES)
        engine.write((labels, 2, 2.0) for labels in SERIES)
        scan = engine.scan()
        next(scan)
        for timestamp in range(3, 1_003):
            engine.write([(SERIES[timestamp % 20], timestamp, 1.0)])
        assert [batch.timestamps.tolist() for batch in scan] == [[1, 2]] * 19
        for timestamp in range(2_000, 2_200):
            engine.write([(SERIES[0], timestamp, 1.0)])
        assert int(str(engine.stats().details["runs_to_sweep"])) <= 20
        assert engine.count() == 2 * 20 + 1_200
        engine.check()


# Merging.


def test_merges_that_are_owed_are_told(path: Path) -> None:
    """Eight small runs of a level owe one merge, sixteen two; compaction leaves none owed."""
    with LmdbEngine(str(path), merging="manual") as engine:
        owed = []
        for number in range(16):
            times = np.arange(2_000) + 1 + number * 2_000  # too many to be taken into a commit
            engine.write_series(A, times, np.ones(2_000))
            owed.append(engine.stats().details["merges_owed"])
        assert owed == [0] * 7 + [1] * 8 + [2]
        engine.compact()
        assert engine.stats().details["merges_owed"] == 0


@pytest.mark.usefixtures("small_merges")
@pytest.mark.parametrize("block_points", [1, 4, 16_384])
def test_merging_changes_no_answer(tmp_path: Path, block_points: int) -> None:
    """A store that merges after every commit reads as one that never does."""
    with (
        LmdbEngine(str(tmp_path / "merged"), merging="inline", block_points=block_points) as merged,
        LmdbEngine(str(tmp_path / "never"), merging="manual") as never,
    ):
        for engine in (merged, never):
            commits(engine, 20)
            engine.write([(SERIES[3], 7, -1.0), (SERIES[3], 4, -2.0)])
            engine.delete(SERIES[5], 10, 20)
            commits(engine, 4)
        assert len(merged.stats().details["runs_by_level"]) > 2  # type: ignore[arg-type]  # a dict
        assert never.stats().details["runs"] == 25
        assert rows_of(merged) == rows_of(never)
        merged.check()
        never.check()


@pytest.fixture
def little_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage that is rewritten from ten rows on."""
    monkeypatch.setattr(garbage, "GARBAGE_ROWS_MIN", 10)


def stored_rows(engine: LmdbEngine) -> int:
    """Count the rows in the file, garbage included."""
    return sum(run.rows for run in engine._store.manifest.runs)


@pytest.mark.usefixtures("little_garbage")
def test_deletes_alone_make_a_run_be_rewritten(path: Path) -> None:
    """What deletes hide of a run that nothing is merged with does not stay in the file."""
    with LmdbEngine(str(path), merging="inline", block_points=50) as engine:
        commits(engine, 10, rows=20)
        engine.compact()
        assert stored_rows(engine) == 10 * 20 * len(SERIES)
        for labels in SERIES[:5]:
            engine.delete(labels, 1, 21)
        assert stored_rows(engine) == 10 * 20 * len(SERIES)  # too little to care
        for labels in SERIES[:10]:
            engine.delete(labels, 1, 181)
        assert engine.count() == 200 * 20 - 10 * 180
        assert stored_rows(engine) <= 1.5 * engine.count()
        expected = rows_of(engine)
        engine.delete(SERIES[0])
        del expected[SERIES[0]]
        assert rows_of(engine) == expected
        engine.check()


@pytest.mark.usefixtures("little_garbage", "small_merges")
def test_values_written_over_and_over_do_not_pile_up(path: Path) -> None:
    """Rows that later ones replaced long ago do not stay, one for each level of merging."""
    with LmdbEngine(str(path), merging="inline", block_points=50) as engine:
        engine.write((labels, 5_000, 0.0) for labels in SERIES)
        for commit in range(60):
            engine.write((labels, 1 + row, float(commit)) for labels in SERIES for row in range(10))
            live = engine.count()
            assert stored_rows(engine) <= 1.5 * live + 3 * 200 + 10  # and what waits for a merge
        assert {value for rows in rows_of(engine).values() for _, value in rows} == {0.0, 59.0}
        engine.check()


@pytest.mark.usefixtures("little_garbage")
def test_runs_that_are_half_expired_are_rewritten(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that retention hides leave the file without a merge of their level being due."""
    monkeypatch.setattr(merge, "TAIL_ROWS_MAX", 0)
    now = [1_000]
    with LmdbEngine(
        str(path), merging="inline", retention=timedelta(microseconds=1), clock_ns=lambda: now[0]
    ) as engine:
        commits(engine, 1, rows=999)
        engine.compact()
        assert stored_rows(engine) == 999 * len(SERIES)
        for until in range(1_100, 1_900, 100):
            now[0] = until
            engine.write([(A, until, 1.0)])
            assert stored_rows(engine) <= 1.5 * engine.count() + 10
        engine.check()


@pytest.mark.usefixtures("little_garbage")
def test_many_deletes_do_not_pile_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However little each hides, deletes are applied before there are very many of them."""
    monkeypatch.setattr(garbage, "DELETES_DUE", 8)
    with LmdbEngine(str(path), merging="inline") as engine:
        commits(engine, 3, rows=400)
        for timestamp in range(1, 41):
            engine.delete(SERIES[3], timestamp, timestamp + 1)
            assert int(str(engine.stats().details["deletes"])) <= 8
        assert rows_of(engine)[SERIES[3]][0] == (41, 0.0)
        assert engine.count() == 3 * 400 * len(SERIES) - 40
        engine.check()


@pytest.mark.usefixtures("small_merges")
def test_background_merging_keeps_up_and_ends_with_close(path: Path) -> None:
    """Merges run beside commits, leave few runs, and close() waits for the thread."""
    with LmdbEngine(str(path)) as engine:
        commits(engine, 40)
        expected = rows_of(engine)
    with LmdbEngine(str(path), merging="inline") as engine:
        engine.write([(A, 1, 1.0)])
        assert int(str(engine.stats().details["runs"])) < 15
        assert {labels: rows for labels, rows in rows_of(engine).items() if labels is not A} == (
            expected
        )
        assert engine.stats().details["upkeep_error"] is None
        engine.check()


@pytest.mark.usefixtures("small_merges")
def test_writers_wait_for_merging(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing faster than merging goes leaves a bounded number of runs, and little to sweep."""
    monkeypatch.setattr(merge, "TAIL_ROWS_MAX", 0)
    monkeypatch.setattr(upkeep, "RUNS_HELD_BACK", 18)
    monkeypatch.setattr(upkeep, "HOLD_BACK_SECONDS", 60.0)
    step = upkeep.Upkeep._step

    def slowly(self: upkeep.Upkeep) -> None:
        wrote.wait(1)  # a step takes as long as a commit at least
        wrote.clear()
        step(self)

    wrote = threading.Event()
    monkeypatch.setattr(upkeep.Upkeep, "_step", slowly)
    with LmdbEngine(str(path), merging="background") as engine:
        for number in range(100):
            engine.write([(A, 1 + number, 1.0)])
            wrote.set()
            details = engine.stats().details
            assert max(details["runs_by_level"].values()) <= 30  # type: ignore[attr-defined]  # a dict
            assert int(str(details["runs_to_sweep"])) <= 40
        assert engine.count() == 100


def test_writers_wait_for_nothing_where_nothing_is_due(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many runs that need not be merged, as those with a delete each, keep no writer waiting."""
    monkeypatch.setattr(upkeep, "RUNS_HELD_BACK", 4)
    monkeypatch.setattr(upkeep, "HOLD_BACK_SECONDS", 5.0)
    with LmdbEngine(str(path), merging="background") as engine:
        stepped = engine._shared.upkeep._stepped
        wait_for = stepped.wait_for

        def in_time(predicate: Callable[[], bool], seconds: float) -> bool:
            held_back.append(wait_for(predicate, seconds))
            return held_back[-1]

        held_back: list[bool] = []
        monkeypatch.setattr(stepped, "wait_for", in_time)
        for number in range(10, 100, 10):
            engine.write((A, number + row, 1.0) for row in range(3))
            engine.delete(A, number + 1, number + 2)
        assert engine.stats().details["runs_by_level"] == {0: 9}
        assert held_back == [True] * 5


def test_a_scan_reads_its_moment_through_merges_and_deletes(path: Path) -> None:
    """A scan begun before merges, sweeps, deletes and compaction gives what was there."""
    with LmdbEngine(str(path), merging="inline") as engine:
        commits(engine, 7)
        expected = rows_of(engine)
        scan = engine.scan()
        got = [next(scan)]
        engine.delete(SERIES[2])
        engine.delete(None, 1, 5)
        commits(engine, 9)
        engine.compact()
        got += scan
        read: dict[Labels, list[tuple[int, float]]] = {}
        for batch in got:
            rows = zip(batch.timestamps.tolist(), batch.values.tolist(), strict=True)
            read.setdefault(batch.labels, []).extend(rows)
        assert read == expected


def test_merged_runs_are_swept_and_their_space_used_again(path: Path) -> None:
    """Writing the same span again and again with compaction leaves a file of one span."""
    with LmdbEngine(str(path), merging="manual") as engine:
        commits(engine, 3, rows=100)
        engine.compact()
        once = engine.stats().bytes
        for _ in range(5):
            commits(engine, 3, rows=100)
            report = engine.compact()
            assert report.reason == ""
        assert engine.stats().bytes <= 1.5 * once
        assert engine.stats().details["runs_to_sweep"] == 0


def test_a_merge_cut_short_is_swept_at_the_next_open(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of a run that never got into the manifest are gone after reopening."""
    monkeypatch.setattr(merge, "STEP_ROWS", 16)
    monkeypatch.setattr(merge, "TAIL_ROWS_MAX", 0)
    engine = LmdbEngine(str(path), merging="manual", block_points=16).open()
    commits(engine, 4, rows=50)
    expected = rows_of(engine)
    worker = engine._shared.upkeep  # the crash is made where only the backend can
    worker._begin(lambda manifest: manifest.runs)
    for _ in range(5):
        worker._step()
    unfinished = worker._merges[0].number
    engine.close()
    with LmdbEngine(str(path)) as engine:
        engine.compact()
        assert rows_of(engine) == expected
        assert unfinished not in stored_runs(engine)


def test_late_points_in_many_runs_are_folded(path: Path) -> None:
    """Late rows in unmerged runs land at their time, the newest write standing."""
    with LmdbEngine(str(path), merging="manual") as engine:
        engine.write_series(A, np.arange(10, 1010, 10), np.zeros(100))
        for late in range(1, 17):
            engine.write_series(A, np.array([5 + 10 * late, 500]), np.full(2, float(late)))
        (batch,) = engine.query(A)
        assert len(batch) == 116
        assert (np.diff(batch.timestamps) > 0).all()
        assert batch.values[batch.timestamps == 500].tolist() == [16.0]


def test_a_large_batch_is_packed_at_once(path: Path) -> None:
    """A batch beyond the bulk size lands in packed blocks and reads back exactly."""
    rows = 6_000
    labels = [Labels("bulk", host=str(number)) for number in range(100)]
    timestamps = np.tile(np.arange(1, rows + 1) * 10, len(labels))
    values = np.round(np.random.default_rng(1).normal(size=len(timestamps)).cumsum(), 2)
    offsets = np.arange(len(labels) + 1) * rows
    with LmdbEngine(str(path), merging="manual") as engine:
        engine.write_batch(GroupedBatch(labels, offsets, timestamps, values))
        assert 0 not in engine.stats().details["runs_by_level"]  # type: ignore[operator]  # a dict
        assert engine.stats().bytes < 8 * len(values)
        by_labels = {batch.labels: batch for batch in engine.query()}
        for number, series in enumerate(labels):
            rows_here = slice(number * rows, (number + 1) * rows)
            assert by_labels[series].values.tolist() == values[rows_here].tolist()
        part = engine.query(labels[7], 100, 300)[0]
        assert part.timestamps.tolist() == list(range(100, 300, 10))


def test_a_long_series_is_scanned_in_pieces(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan holds a bounded number of rows of a long series and loses none."""
    monkeypatch.setattr("tsengine.backends.lmdb.engine.SCAN_ROWS", 1_000)
    with LmdbEngine(str(path), merging="manual", block_points=100) as engine:
        engine.write_series(A, np.arange(1, 20_001), np.arange(20_000.0))
        engine.write_series(A, np.arange(5_000, 5_010), np.full(10, -1.0))
        engine.compact()
        pieces = list(engine.scan(A))
        assert len(pieces) > 10
        assert max(map(len, pieces)) <= 2_000
        assert np.concatenate([piece.timestamps for piece in pieces]).tolist() == list(
            range(1, 20_001)
        )
        assert engine.count(A) == 20_000


# Files.


def test_modes_keep_others_out(path: Path) -> None:
    """The directory is 0700 and its files 0600."""
    with LmdbEngine(str(path)) as engine:
        engine.write([(A, 1, 1.0)])
        engine.compact()
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o600}


def test_a_file_is_no_store(tmp_path: Path) -> None:
    """A path that is a file is refused, and the file stays as it is."""
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(StorePathError, match="is a file"):
        LmdbEngine(str(file)).open()
    assert file.read_text() == "precious"


def test_a_directory_of_other_files_is_refused(tmp_path: Path) -> None:
    """A directory with other files is refused, and nothing is added to it."""
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(StorePathError, match="other files"):
        LmdbEngine(str(tmp_path)).open()
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    """A path whose parent is missing is refused with what to do."""
    with pytest.raises(StorePathError, match="make the parent first"):
        LmdbEngine(str(tmp_path / "no" / "store")).open()


def test_symbolic_links_inside_are_refused(path: Path, tmp_path: Path) -> None:
    """A data file that is a symbolic link is refused."""
    path.mkdir()
    (path / "data.mdb").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorePathError, match="symbolic link"):
        LmdbEngine(str(path)).open()


def test_reading_needs_a_store(path: Path) -> None:
    """read_only of a path without a store is refused and makes nothing."""
    with pytest.raises(StorePathError, match="does not exist"):
        LmdbEngine(str(path), read_only=True).open()
    assert not path.exists()


def test_a_newer_format_is_refused_untouched(path: Path) -> None:
    """A store of a newer format gives FormatVersionError and keeps its bytes."""
    LmdbEngine(str(path)).open().close()
    with lmdb.open(str(path), max_dbs=16) as raw, raw.begin(write=True) as transaction:
        transaction.put(b"format", b"999", db=raw.open_db(b"meta", transaction))
    (path / "writer.lock").unlink()  # which says how the file was left
    before = (path / "data.mdb").read_bytes()
    with pytest.raises(FormatVersionError, match="999"):
        LmdbEngine(str(path)).open()
    assert (path / "data.mdb").read_bytes() == before


def test_foreign_data_is_refused(path: Path) -> None:
    """A data file that LMDB does not know is refused with its path."""
    path.mkdir()
    (path / "data.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(FormatVersionError, match="no LMDB store"):
        LmdbEngine(str(path)).open()


def test_other_options_are_refused(path: Path) -> None:
    """A store opens with its own options or none, and refuses others by name."""
    LmdbEngine(str(path), duplicate_policy="sum").open().close()
    with pytest.raises(StoreOptionError, match="duplicate_policy='sum', not 'min'"):
        LmdbEngine(str(path), duplicate_policy="min").open()
    with LmdbEngine(str(path)) as engine:
        engine.write([(A, 1, 1.0), (A, 1, 2.0)])
        assert engine.latest() == [(A, 1, 3.0)]


def test_a_flipped_byte_is_named_and_never_read(path: Path) -> None:
    """A damaged block raises CorruptionError naming it; other series still read."""
    with LmdbEngine(str(path), merging="manual", block_points=4) as engine:
        engine.write_series(A, np.arange(1, 5), np.arange(4) + 0.125)
        engine.write_series(SERIES[0], np.arange(1, 5), np.arange(4) + 0.25)
    data = path / "data.mdb"
    whole = data.read_bytes()
    right = np.float64(2.125).tobytes()
    data.write_bytes(whole.replace(right, b"\xff" + right[1:]))  # also in pages now free
    with LmdbEngine(str(path)) as engine:
        with pytest.raises(CorruptionError, match="fails its checksum"):
            engine.query(A)
        with pytest.raises(CorruptionError, match="fails its checksum"):
            engine.check()
        assert engine.query(SERIES[0])[0].values.tolist() == [0.25, 1.25, 2.25, 3.25]


def test_the_map_grows_by_itself(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that outgrows its map goes on, under open scans, and keeps everything."""
    monkeypatch.setattr(environment, "MAP_BYTES", 1 << 18)
    with LmdbEngine(str(path), merging="manual") as engine:
        engine.write_series(A, np.arange(1, 1_001), np.arange(1_000.0))
        scan = engine.scan()
        first = next(scan)
        for series in SERIES:
            engine.write_series(series, np.arange(1, 5_001), np.arange(5_000.0))
        assert len(first) + sum(map(len, scan)) == 1_000
        assert engine.count() == 1_000 + 20 * 5_000
        engine.check()


# Sharing and other processes.


def test_engines_of_one_process_share_the_store(path: Path, tmp_path: Path) -> None:
    """Two engines on one path, even by another name, read each other's commits at once."""
    link = tmp_path / "link"
    with LmdbEngine(str(path)) as one:
        link.symlink_to(path)
        with LmdbEngine(str(link)) as two:
            one.write([(A, 1, 1.0)])
            two.write([(A, 2, 2.0)])
            assert one.query(A)[0].timestamps.tolist() == [1, 2]
        assert one.query(A)[0].timestamps.tolist() == [1, 2]
        with LmdbEngine(str(path), read_only=True) as reader:
            assert reader.count() == 2
            with pytest.raises(ReadOnlyError):
                reader.write([(A, 3, 3.0)])


def test_a_second_writing_process_is_refused(path: Path) -> None:
    """Another process that opens for writing gets StoreInUseError, and may read."""
    code = (
        "import sys\n"
        "from tsengine.backends.lmdb import LmdbEngine\n"
        "from tsengine.errors import StoreInUseError\n"
        "try:\n"
        "    LmdbEngine(sys.argv[1]).open()\n"
        "except StoreInUseError as error:\n"
        "    print(error)\n"
        "with LmdbEngine(sys.argv[1], read_only=True) as engine:\n"
        "    print(engine.count())\n"
    )
    with LmdbEngine(str(path)) as engine:
        engine.write([(A, 1, 1.0)])
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
        )
    refused, count = done.stdout.splitlines()
    assert "open for writing in another process" in refused
    assert count == "1"
    with pytest.raises(StoreInUseError), _held_elsewhere(path):
        LmdbEngine(str(path)).open()


def test_a_forked_child_reads_anew_and_holds_no_lock(path: Path) -> None:
    """A child can open the store for reading, and its life does not keep the lock."""
    engine = LmdbEngine(str(path)).open()
    engine.write([(A, 1, 1.0)])
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # no assertion here could reach the test: the exit status tells
        os.close(writing)
        with contextlib.suppress(BaseException):
            engine.query(A)
            os._exit(1)  # the parent's engine must raise
        with LmdbEngine(str(path), read_only=True) as mine:
            count = mine.count()
        os.read(reading, 1)
        os._exit(0 if count in (1, 2) else 2)
    os.close(reading)
    engine.write([(A, 2, 2.0)])
    engine.close()
    with LmdbEngine(str(path)) as engine:
        engine.check()
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_reader_elsewhere_sees_every_acknowledged_commit(path: Path) -> None:
    """A reading process sees each commit once it was acknowledged, through merges."""
    with LmdbEngine(str(path), merging="inline") as engine:
        engine.write([(A, 1, 1.0)])
        with _reader(path) as ask:
            for commit in range(2, 30):
                engine.write([(A, commit, 1.0)])
                assert ask("count") == str(commit)


def test_runs_stay_for_a_reader_elsewhere_until_their_age(path: Path) -> None:
    """A scan in another process goes on over merged runs, and is told when they are gone."""
    now = [1_000_000_000]
    with LmdbEngine(
        str(path), merging="manual", snapshot_age_max=60, clock_ns=lambda: now[0]
    ) as engine:
        commits(engine, 3, rows=800)  # so many that a scan takes a step a series
        with _reader(path) as ask:
            assert ask("begin") == "a batch"
            engine.compact()
            assert ask("next") == "a batch"
            assert engine.stats().details["runs_to_sweep"] == 3
            now[0] += 61_000_000_000
            engine.compact()
            assert engine.stats().details["runs_to_sweep"] == 0
            assert ask("next") == SnapshotExpiredError.__name__
            assert ask("count") == str(3 * 800 * len(SERIES))


class _held_elsewhere:  # noqa: N801  # reads as a statement
    """Keeps a store open for writing in another process."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        code = (
            "import sys\n"
            "from tsengine.backends.lmdb import LmdbEngine\n"
            "LmdbEngine(sys.argv[1]).open()\n"
            "print('open', flush=True)\n"
            "sys.stdin.read()\n"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, str(self._path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


READER = """
import sys
from tsengine.backends.lmdb import LmdbEngine
from tsengine.errors import SnapshotExpiredError

with LmdbEngine(sys.argv[1], read_only=True) as engine:
    scan = iter(())
    for question in sys.stdin:
        try:
            if question == "count\\n":
                print(engine.count(), flush=True)
                continue
            if question == "begin\\n":
                scan = engine.scan()
            next(scan)
            print("a batch", flush=True)
        except SnapshotExpiredError as error:
            print(type(error).__name__, flush=True)
"""


class _reader:  # noqa: N801  # reads as a statement
    """A reading process that answers one question after the other."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", READER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> _reader:
        return self

    def __call__(self, question: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)
        assert self._process.returncode == 0


@pytest.mark.parametrize("opens", ["here", "elsewhere"])
def test_readers_go_on_while_a_compaction_copies(
    path: Path, monkeypatch: pytest.MonkeyPatch, opens: str
) -> None:
    """While the smaller file is written the store can be read; a new reader elsewhere keeps it."""
    with LmdbEngine(str(path), merging="manual") as engine, contextlib.ExitStack() as readers:
        commits(engine, 5)
        expected = rows_of(engine)
        copy = environment.Environment._copy_to_scratch
        counted: list[str] = []

        def copy_slowly(self: environment.Environment) -> None:
            copy(self)
            if opens == "here":
                counted.append(str(engine.count()))
            else:
                counted.append(readers.enter_context(_reader(path))("count"))

        monkeypatch.setattr(environment.Environment, "_copy_to_scratch", copy_slowly)
        report = engine.compact()
        assert counted == [str(engine.count())]
        assert report.reason == ("" if opens == "here" else "another process is reading the store")
        engine.write([(A, 1, 1.0)])
        assert rows_of(engine) == {**expected, A: [(1, 1.0)]}
        assert not (path / "compacting").exists()


# Commits of unknown outcome.


@pytest.mark.parametrize("happens", [True, False])
def test_a_commit_of_unknown_outcome_can_be_repeated(
    path: Path, monkeypatch: pytest.MonkeyPatch, happens: bool
) -> None:
    """After a commit that fails, whether it happened or not, its repetition stores it once."""
    with LmdbEngine(str(path), merging="manual", duplicate_policy="sum") as engine:
        engine.write([(A, 1, 1.0)])
        mark = ProducerMark("probe", 1)
        environment_ = engine._store.environment
        write = environment_.write

        def fails(work: Callable[[lmdb.Transaction], object], **_: object) -> object:
            if happens:
                write(work)
            raise StorageError("the outcome is unknown")

        for labels in (A, SERIES[1]):
            engine.write_to_buffer((labels, 1, 2.0))
        with monkeypatch.context() as patched:
            patched.setattr(environment_, "write", fails)
            with pytest.raises(StorageError, match="unknown"):
                engine.flush_buffer(mark)
        engine.write([(SERIES[2], 5, 5.0)])
        for labels in (A, SERIES[1]):
            engine.write_to_buffer((labels, 1, 2.0))
        assert engine.flush_buffer(mark).accepted == 2
        expected = {A: [(1, 3.0)], SERIES[1]: [(1, 2.0)], SERIES[2]: [(5, 5.0)]}
        assert rows_of(engine) == expected
        engine.check()
    with LmdbEngine(str(path)) as engine:
        assert rows_of(engine) == expected


def test_readers_never_take_the_writer_back(path: Path) -> None:
    """Readers beside a writer that merges see no commit undone, and none is lost."""
    sys.setswitchinterval(1e-5)
    try:
        with LmdbEngine(str(path)) as engine:
            stop = threading.Event()
            seen: list[int] = []

            def read() -> None:
                while not stop.is_set():
                    seen.append(engine.count(A))

            readers = [threading.Thread(target=read) for _ in range(3)]
            for reader in readers:
                reader.start()
            for commit in range(1, 201):
                engine.write([(A, commit, 1.0)])
            stop.set()
            for reader in readers:
                reader.join()
            assert engine.count(A) == 200
            engine.check()
        with LmdbEngine(str(path)) as engine:
            assert engine.count(A) == 200
    finally:
        sys.setswitchinterval(0.005)


# What was found by review.


def test_many_series_under_one_label_survive_compaction_and_snapshot(
    path: Path, tmp_path: Path
) -> None:
    """A label that thousands of series share is indexed, copied and read back."""
    wide = [Labels("wide", host=str(number), zone="z") for number in range(3_000)]
    with LmdbEngine(str(path), merging="manual") as engine:
        engine.write((labels, 1, float(row)) for row, labels in enumerate(wide))
        assert engine.compact().reason == ""
        engine.snapshot(str(tmp_path / "copy"))
        assert engine.delete('wide{host=~"1.*"}') == 1_111
        engine.compact()
        engine.check()
        assert len(engine.query('{zone="z"}')) == 3_000 - 1_111
    with LmdbEngine(str(tmp_path / "copy"), read_only=True) as engine:
        assert len(engine.query({"zone": "z"})) == 3_000
        engine.check()


def test_compaction_leaves_no_deletes(path: Path) -> None:
    """Deletes that merging has applied leave the manifest, and nothing is merged again."""
    with LmdbEngine(str(path), merging="manual") as engine:
        commits(engine, 3)
        engine.delete(SERIES[1], 2, 5)
        engine.delete(SERIES[2])
        expected = rows_of(engine)
        engine.compact()
        assert engine.stats().details["deletes"] == 0
        assert engine.stats().points_exact
        (run,) = engine._store.manifest.runs
        engine.compact()
        assert engine._store.manifest.runs == (run,)
        assert rows_of(engine) == expected


@pytest.mark.usefixtures("small_merges")
def test_a_delete_during_a_merge_hides_what_the_merge_writes(path: Path) -> None:
    """A delete that is committed while a merge is under way hides the rows of its result."""
    with LmdbEngine(str(path), merging="manual") as engine:
        commits(engine, 4, rows=20)
        worker = engine._shared.upkeep
        worker._begin(lambda manifest: manifest.runs)
        worker._step()
        engine.delete(SERIES[3], 10, 60)
        engine.delete(SERIES[4])
        expected = rows_of(engine)
        while worker._merges:
            worker._step()
        assert rows_of(engine) == expected
        engine.write([(SERIES[3], 11, 1.0)])
        assert engine.count(SERIES[3], 10, 60) == 1
        engine.check()


def test_reading_goes_on_after_a_commit_of_unknown_outcome(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that only reads after such a commit reads what the file holds."""
    with LmdbEngine(str(path), merging="manual") as engine:
        environment_ = engine._store.environment
        write = environment_.write

        def interrupted(work: Callable[[lmdb.Transaction], object], **_: object) -> object:
            write(work)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(environment_, "write", interrupted)
            with pytest.raises(KeyboardInterrupt):
                engine.write([(A, 1, 1.0)])
        assert engine.count() == 1
        assert rows_of(engine) == {A: [(1, 1.0)]}


def test_check_sees_a_damaged_index(path: Path) -> None:
    """An index that lost an entry fails check(), though queries without it still read."""
    with LmdbEngine(str(path), merging="manual") as engine:
        engine.write([(A, 1, 1.0)])
        environment_ = engine._store.environment
        table = environment_.tables["postings"]
        row = b"=host\0=1\0" + pack_u64((ValueKind.FLOAT << KIND_SHIFT) + 1)
        assert environment_.write(lambda transaction: transaction.delete(row, db=table))
        with pytest.raises(CorruptionError, match="index lacks 1 label"):
            engine.check()


def test_a_damaged_table_leaves_no_lock(path: Path) -> None:
    """A store that fails to open is not left open: the next try fails the same way."""
    LmdbEngine(str(path)).open().close()
    with lmdb.open(str(path), max_dbs=16) as raw, raw.begin(write=True) as transaction:
        transaction.put(bytes(8), b"\xc1", db=raw.open_db(b"retired", transaction))
    (path / "writer.lock").unlink()  # which says how the file was left
    for _ in range(2):
        with pytest.raises(CorruptionError, match="'retired'"):
            LmdbEngine(str(path)).open()


def test_a_buffer_leaves_alone_what_its_thread_staged(path: Path) -> None:
    """A buffer refuses to commit beside points staged on the engine, and loses none."""
    with LmdbEngine(str(path)) as engine, WriteBuffer(engine) as buffer:
        buffer.write((A, 1, 1.0))
        engine.write_to_buffer((A, 2, 2.0))
        with pytest.raises(LifecycleError, match="1 points staged"):
            buffer.flush()
        assert engine.flush_buffer().accepted == 1
        assert buffer.flush().accepted == 1


def test_large_objects_survive_merging(path: Path) -> None:
    """Objects whose block would be too large to be read are cut into more blocks."""
    large = ["x" * 60_000 for _ in range(1_500)]
    with LmdbEngine(str(path), merging="manual") as engine:
        engine.write((A, row + 1, f"{row}{text}") for row, text in enumerate(large))
        engine.compact()
        engine.check()
        (batch,) = engine.query(A)
        assert [text[:4] for text in batch.values.tolist()[:3]] == ["0xxx", "1xxx", "2xxx"]
        assert len(batch) == 1_500


def test_blocks_are_never_too_long_to_be_read(path: Path) -> None:
    """block_points beyond what a reader accepts is refused."""
    with pytest.raises(UnknownOptionError, match="at most 1048576"):
        LmdbEngine(str(path), block_points=1 << 21)


@pytest.mark.parametrize("where", ["inline", "compact"])
def test_an_interrupted_merge_loses_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A merge that an interrupt ends in the middle never goes on; its rows stay."""
    monkeypatch.setattr(merge, "STEP_ROWS", 64)
    monkeypatch.setattr(merge, "RUNS_DUE", 8)
    monkeypatch.setattr(merge, "TAIL_ROWS_MAX", 0)
    monkeypatch.setattr(merge, "SMALL_ROWS", 0)
    merging = "inline" if where == "inline" else "manual"
    with LmdbEngine(str(path), merging=merging, block_points=16) as engine:
        put, calls = upkeep.Upkeep._put, [0]

        def interrupted(
            self: upkeep.Upkeep, transaction: lmdb.Transaction, blocks: list[tuple[bytes, bytes]]
        ) -> None:
            calls[0] += 1
            if calls[0] == 2:
                raise KeyboardInterrupt
            put(self, transaction, blocks)

        monkeypatch.setattr(upkeep.Upkeep, "_put", interrupted)
        for commit in range(12):
            with contextlib.suppress(KeyboardInterrupt):
                engine.write(
                    (labels, 1 + commit * 20 + row, 1.0) for labels in SERIES for row in range(20)
                )
            if where == "compact" and commit == 6:
                with pytest.raises(KeyboardInterrupt):
                    engine.compact()
        assert calls[0] >= 2  # the interrupt came
        assert engine.count() == 12 * 20 * len(SERIES)
        engine.compact()
        engine.check()
        assert engine.count() == 12 * 20 * len(SERIES)
        assert engine.stats().details["runs_to_sweep"] == 0


def test_a_long_series_among_short_ones_is_scanned_in_pieces(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One long series among many short ones does not come whole."""
    monkeypatch.setattr("tsengine.backends.lmdb.engine.SCAN_ROWS", 1_000)
    with LmdbEngine(str(path), merging="manual", block_points=100) as engine:
        engine.write_series(SERIES[7], np.arange(1, 20_001), np.arange(20_000.0))
        engine.write((Labels("short", n=str(number)), 1, 1.0) for number in range(2_000))
        engine.compact()
        pieces = list(engine.scan())
        assert max(map(len, pieces)) <= 4_000
        assert sum(map(len, pieces)) == 22_000
        ids = [piece.labels.id for piece in pieces]
        assert ids == sorted(ids)


def test_listing_goes_on_while_series_are_removed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing that began before a delete lists what there was."""
    monkeypatch.setattr("tsengine.backends.lmdb.engine.SCAN_ROWS", 5)
    with LmdbEngine(str(path), merging="inline") as engine:
        commits(engine, 1)
        listing = engine.series()
        first = next(listing)
        engine.delete()
        engine.compact()
        assert sorted([first, *listing], key=str) == sorted(SERIES, key=str)
        assert list(engine.series()) == []


@pytest.mark.usefixtures("small_merges")
def test_a_merge_that_fails_is_told_until_it_is_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing merge fails no write, stays in stats(), and succeeds after the next commit."""
    with LmdbEngine(str(path), merging="inline") as engine:
        worker = engine._shared.upkeep

        def fails(self: merge.Merge) -> None:
            raise StorageError("no")

        with monkeypatch.context() as patched:
            patched.setattr(merge.Merge, "step", fails)
            commits(engine, 4)
            assert "no" in str(engine.stats().details["upkeep_error"])
            worker._guard(worker._work_off)
            assert "no" in str(engine.stats().details["upkeep_error"])
        engine.write([(A, 1, 1.0)])
        assert engine.stats().details["upkeep_error"] is None
        assert engine.stats().details["runs_to_sweep"] == 0
        assert engine.count() == 4 * 3 * len(SERIES) + 1
        engine.check()
