"""What the conformance kit cannot see of the memory backend: how it works inside."""

from __future__ import annotations

import gc
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pytest

from tsengine.backends.memory import MemoryEngine, catalogue, ranges, ring, total_cap
from tsengine.backends.memory.catalogue import Catalogue
from tsengine.backends.memory.ring import Pool, Rings
from tsengine.errors import CorruptionError, StorageError
from tsengine.model import (
    GroupedBatch,
    Int64Array,
    Labels,
    SeriesBatch,
    ValueArray,
    ValueKind,
)
from tsengine.selectors import Selector, to_selector

START = 1_700_000_000_000_000_000
HOSTS = [Labels("cpu", host=f"web-{number:03}") for number in range(200)]


@pytest.fixture
def engine() -> Iterator[MemoryEngine]:
    """An empty store, checked when the test is done."""
    with MemoryEngine() as opened:
        yield opened
        opened.check()


def tick(
    series: Sequence[Labels], moments: Sequence[int], values: Sequence[float] | None = None
) -> GroupedBatch:
    """Make a batch with one row for each series."""
    column = np.array(moments if values is None else values, np.float64)
    return GroupedBatch(
        list(series), np.arange(len(series) + 1), np.array(moments, np.int64), column
    )


def rows_of(batches: Iterable[SeriesBatch]) -> list[tuple[Labels, int, object]]:
    """Give all rows as plain tuples."""
    points = (point for one in batches for point in one.points())
    return [(point.labels, point.timestamp, point.value) for point in points]


def rings_of(engine: MemoryEngine, kind: ValueKind = ValueKind.FLOAT) -> Rings:
    """Give the columns behind an engine."""
    return engine._store.rings[kind]


class MovedRows:
    """Counts the rows that a pool copies within itself or to another pool."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        move = ranges.move

        def counting(
            source: tuple[Int64Array, ValueArray],
            from_: Int64Array,
            target: tuple[Int64Array, ValueArray],
            to: Int64Array,
            lengths: Int64Array,
        ) -> None:
            self.count += int(lengths.sum())
            move(source, from_, target, to, lengths)

        monkeypatch.setattr(ring, "move", counting)


# Growth


@pytest.mark.parametrize("series", [1, 40])
def test_appending_moves_a_row_a_bounded_number_of_times(
    monkeypatch: pytest.MonkeyPatch, series: int
) -> None:
    """In-order appends cost amortised O(1): rows are copied in, and moved about once more."""
    moved = MovedRows(monkeypatch)
    with MemoryEngine() as engine:
        commits = 2_000
        for moment in range(1, commits + 1):
            engine.write_batch(tick(HOSTS[:series], [moment] * series))
        assert engine.count() == commits * series
        assert moved.count <= 4 * commits * series


def test_a_full_ring_slides_in_room_in_proportion_to_its_cap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A capped series evicts with O(1) rows moved for each, and its pool stops growing."""
    moved = MovedRows(monkeypatch)
    with MemoryEngine(max_points_per_series=100) as engine:
        for moment in range(1, 3_001):
            engine.write_batch(tick(HOSTS[:10], [moment] * 10))
        assert moved.count <= 4 * 30_000
        assert rings_of(engine).used <= 10 * 200
        assert len(rings_of(engine).pool.timestamps) <= 10 * 500


def test_late_points_are_merged_once_for_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of many late points moves the rows behind the earliest of them once."""
    with MemoryEngine() as engine:
        engine.write_series(HOSTS[0], np.arange(0, 20_000, 2) + START, np.zeros(10_000))
        engine.write_series(HOSTS[0], [START + 20_000], [0.0])  # makes room
        moved = MovedRows(monkeypatch)
        late = np.arange(10_001, 20_000, 4) + START
        engine.write_series(HOSTS[0], late, np.ones(len(late)))
        assert moved.count <= 5_000 + len(late) + 1
        assert engine.count() == 10_001 + len(late)


def test_room_comes_back_when_most_rows_go(engine: MemoryEngine) -> None:
    """Deleting most of a store shrinks it without being asked; `compact` leaves no room at all."""
    for number in range(4):
        moments = np.arange(50_000) + START + number * 50_000
        engine.write_series(HOSTS[number % 2], moments, np.zeros(50_000))
    before = engine.stats().bytes
    engine.delete(HOSTS[0])
    engine.delete(HOSTS[1], None, START + 190_000)
    assert engine.count() == 10_000
    assert engine.stats().bytes < before / 5
    report = engine.compact()
    assert report.bytes_after == engine.stats().bytes
    assert rings_of(engine).used == engine.count()


def test_expired_rows_leave_the_memory_of_series_nobody_touches() -> None:
    """Retention drops rows of all series as writes go on, not only of those written."""
    now = START
    with MemoryEngine(retention="1h", clock_ns=lambda: now) as engine:
        for number in range(10):
            engine.write_series(HOSTS[number], np.arange(1_000) + START, np.zeros(1_000))
        now += 2 * 3_600_000_000_000
        engine.write([(HOSTS[99], now, 1.0)])
        assert rings_of(engine).points == 1
        assert len(list(engine.series())) == 11


# Reading while writing


def test_results_share_no_memory_with_the_store(engine: MemoryEngine) -> None:
    """What a read gives can be changed without the store noticing, objects included."""
    events = Labels("event")
    engine.write_series(HOSTS[0], [START, START + 1], [1.0, 2.0])
    engine.write([(events, START, {"who": ["a"]})])
    pool = rings_of(engine).pool
    for batches in (engine.query(), list(engine.scan())):
        for batch in batches:
            assert not np.shares_memory(batch.timestamps, pool.timestamps)
            assert not np.shares_memory(batch.values, pool.values)
            batch.timestamps[:] = 7
            batch.values[:] = 7
    (point,) = engine.latest(events)
    assert isinstance(point.value, dict)
    point.value["who"] = "b"
    assert rows_of(engine.query()) == [
        (HOSTS[0], START, 1.0),
        (HOSTS[0], START + 1, 2.0),
        (events, START, {"who": ["a"]}),
    ]


def overwrite(engine: MemoryEngine) -> None:
    """Write over rows that are there."""
    for number in range(20):
        engine.write_series(HOSTS[number], np.arange(50) + START, np.full(50, -1.0))


def merge_late(engine: MemoryEngine) -> None:
    """Write rows between those that are there."""
    for number in range(20):
        engine.write([(HOSTS[number], START + 10 * row - 5, -1.0) for row in range(1, 40)])


def append(engine: MemoryEngine) -> None:
    """Write rows behind all, until regions and pools have to grow."""
    for moment in range(300):
        engine.write_batch(tick(HOSTS[:20], [START + 1_000_000 + moment] * 20))


def delete_inside(engine: MemoryEngine) -> None:
    """Delete rows from the middle, then write more."""
    engine.delete(None, START + 100, START + 300)
    append(engine)


def delete_end(engine: MemoryEngine) -> None:
    """Delete the newest rows, then write where they lay."""
    engine.delete(None, START + 100)
    append(engine)


def replace_series(engine: MemoryEngine) -> None:
    """Remove all series, and let others take their slots."""
    engine.delete()
    for number in range(30, 60):
        engine.write_series(HOSTS[number], np.arange(50) + START, np.full(50, -1.0))


def compact(engine: MemoryEngine) -> None:
    """Delete the oldest rows, then write the pool anew."""
    engine.delete(None, None, START + 300)
    engine.compact()
    append(engine)


@pytest.mark.parametrize(
    "change",
    [overwrite, merge_late, append, delete_inside, delete_end, replace_series, compact],
)
def test_a_scan_sees_its_snapshot_whatever_is_written(
    engine: MemoryEngine, change: Callable[[MemoryEngine], None]
) -> None:
    """Nothing changes in place what a running scan may still look at."""
    for number in range(20):
        engine.write_series(HOSTS[number], np.arange(50) * 10 + START, np.arange(50.0))
    engine.write_series(HOSTS[0], [START + 1_000], [1.0])  # room behind some of the windows
    engine.write([(Labels("event"), START, "a"), (Labels("event"), START + 5, "b")])
    expected = rows_of(engine.query())
    scan = engine.scan()
    first = next(scan)
    change(engine)
    change(engine)
    assert rows_of([first]) + rows_of(scan) == expected
    engine.check()


def test_finished_and_forgotten_scans_let_go(engine: MemoryEngine) -> None:
    """Pins end with a scan, however it ends: through, closed, or dropped."""
    engine.write_batch(tick(HOSTS[:5], [START] * 5))
    pool = rings_of(engine).pool
    through, closed, dropped = engine.scan(), engine.scan(), engine.scan()
    for scan in (through, closed, dropped):
        next(scan)
    assert len(pool.pins) == 3
    list(through)
    closed.close()  # type: ignore[attr-defined]  # a generator, as for all iterators here
    del scan, dropped
    gc.collect()
    assert not pool.pins


def test_late_points_are_merged_in_place_only_without_readers(engine: MemoryEngine) -> None:
    """A window that a reader looks at moves; one that nobody looks at stays where it is."""
    engine.write_series(HOSTS[0], [START, START + 10], [0.0, 1.0])
    engine.write_series(HOSTS[0], [START + 20], [2.0])  # makes room
    rings = rings_of(engine)
    slot = engine._store.catalogue.slot(HOSTS[0])
    place = rings.pool, int(rings.lo[slot])
    engine.write([(HOSTS[0], START + 5, 0.5)])
    assert (rings.pool, int(rings.lo[slot])) == place
    scan = engine.scan()
    next(scan)
    engine.write([(HOSTS[0], START + 6, 0.6)])
    assert (rings.pool, int(rings.lo[slot])) != place


# Caps


@pytest.mark.parametrize("few", [0, 10**9], ids=["by heap", "by time"])
def test_both_ways_to_the_oldest_rows_agree_with_sorting(
    monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    """The total cap keeps the newest rows, of one time those of the greatest series IDs."""
    monkeypatch.setattr(total_cap, "_FEW", few)
    chance = random.Random(1)
    for _ in range(60):
        cap = chance.choice([1, 5, 40])
        kept: set[tuple[int, str]] = set()
        with MemoryEngine(max_points=cap) as engine:
            for _ in range(chance.randrange(1, 12)):
                count = chance.choice([1, 3, 60])
                points = [
                    (chance.choice(HOSTS[:9]), chance.randrange(1, 40), 1.0) for _ in range(count)
                ]
                given = {(moment, labels.id) for labels, moment, _ in points}
                before, kept = kept, set(sorted(kept | given)[-cap:])
                receipt = engine.write(points)
                assert receipt.evicted == len(before - kept)
                assert receipt.indices == tuple(
                    index
                    for index, (labels, moment, _) in enumerate(points)
                    if (moment, labels.id) not in kept
                )
                stored = {(moment, labels.id) for labels, moment, _ in rows_of(engine.query())}
                assert stored == kept
                engine.check()


def test_single_points_into_a_full_store_look_at_no_other_series(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing scans for the oldest row: once known, the next is found from the heap."""
    with MemoryEngine(max_points=len(HOSTS)) as engine:
        engine.write_batch(tick(HOSTS, range(1, len(HOSTS) + 1)))
        engine.write([(HOSTS[0], 1_000, 0.0)])

        def scanned(rings: Rings) -> Int64Array:
            raise AssertionError("all series were looked at")

        monkeypatch.setattr(Rings, "filled", scanned)
        for moment in range(1_001, 1_101):
            receipt = engine.write([(HOSTS[moment % 7], moment, 0.0)])
            assert receipt.evicted == 1
        assert engine.count() == len(HOSTS)


def test_what_was_noted_about_the_oldest_rows_stays_bounded() -> None:
    """The heap of the total cap holds a few entries a series, however long one writes."""
    with MemoryEngine(max_points=300) as engine:
        for moment in range(1, 3_000):
            engine.write([(HOSTS[moment % 200], 10_000 - moment, 0.0), (HOSTS[0], 9_000, 0.0)])
            cap = engine._store.total_cap
            assert cap is not None
            assert len(cap._heap or ()) <= 2 * len(HOSTS) + total_cap._FEW


# Failing


def test_a_commit_without_memory_leaves_the_store_as_it_was(
    engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MemoryError while room is made is nobody's loss: nothing changed, the next call works."""
    engine.write([(HOSTS[0], START, 1.0), (HOSTS[1], START, 1.0)])
    expected = rows_of(engine.query())

    def full(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(Pool, "__init__", full)
        with pytest.raises(MemoryError):
            engine.write_batch(tick(HOSTS, [START + 1] * len(HOSTS)))
    engine.check()
    assert rows_of(engine.query()) == expected
    assert len(list(engine.series())) == 2
    engine.write_batch(tick(HOSTS, [START + 1] * len(HOSTS)))
    assert engine.count() == len(HOSTS) + 2


def test_an_interrupted_change_is_never_taken_for_the_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C in the middle of a change closes the engine to use instead of showing half."""
    engine = MemoryEngine().open()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Rings, "replace_tails", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.write([(HOSTS[0], START, 1.0)])
    with pytest.raises(StorageError, match="interrupted"):
        engine.query()
    engine.close()


def test_check_finds_damage(engine: MemoryEngine) -> None:
    """`check` raises where columns, counters or the catalogue contradict each other."""
    engine.write_batch(tick(HOSTS[:3], [START] * 3))
    rings = rings_of(engine)
    rings.points += 1
    with pytest.raises(CorruptionError):
        engine.check()
    rings.points -= 1
    rings.pool.timestamps[0] += 1
    with pytest.raises(CorruptionError):
        engine.check()
    rings.pool.timestamps[0] -= 1
    held = engine._store.catalogue._holders["host"].pop("web-001")
    with pytest.raises(CorruptionError):
        engine.check()
    engine._store.catalogue._holders["host"]["web-001"] = held


# The parts


def test_selectors_resolve_as_matching_each_series_would() -> None:
    """The index gives what `Selector.matches` gives over all series, by series ID."""
    chance = random.Random(2)
    series = list(
        {
            Labels({name: chance.choice("abc") for name in chance.sample("xyz", 2)} | {"n": str(i)})
            for i in range(60)
        }
    )
    book = Catalogue()
    book.add(series, book.new_slots(len(series)), ValueKind.FLOAT)
    gone = chance.sample(series, 20)
    book.remove(book.slots(gone))
    left = sorted(set(series) - set(gone), key=lambda labels: labels.id)
    matchers = [
        f"{name}{operator}'{value}'"
        for name in ("x", "y", "none", "n")
        for operator in ("=", "!=", "=~", "!~")
        for value in ("", "a", "a|b", "a.*|", ".+", "7")
    ]
    texts = [f"{{{one}}}" for one in matchers]
    texts += [f"{{{a}, {b}}}" for a, b in itertools.product(matchers, matchers)]
    for text in texts:
        selector = to_selector(text)
        expected = [labels for labels in left if selector.matches(labels)]
        assert book.labels_of(book.resolve(selector)) == expected, text
    book.verify()


def test_selectors_that_need_a_label_do_not_list_all_series(
    engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equality and regular expressions cost what they select, not what the store holds."""
    engine.write_batch(tick(HOSTS, [START] * len(HOSTS)))

    def listed(*_: object) -> Int64Array:
        raise AssertionError("all series were listed")

    monkeypatch.setattr(Catalogue, "ordered", listed)
    monkeypatch.setattr(Selector, "matches", listed)
    assert engine.count('cpu{host="web-007"}') == 1
    assert engine.count({"host": "web-008"}) == 1
    assert engine.count('{host=~"web-01.", host!="web-011"}') == 9
    assert engine.count('{host=~"web-1[0-9]+", host=~".*5"}') == 10


def test_slots_are_found_alike_in_runs_and_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparing lists finds the slots that looking up each series finds."""
    chance = random.Random(3)
    book = Catalogue()
    book.add(HOSTS, book.new_slots(len(HOSTS)), ValueKind.FLOAT)
    book.remove(book.slots(HOSTS[50:53]))
    for minimum in (1, 3, 64):
        monkeypatch.setattr(catalogue, "_RUN_MIN", minimum)
        for _ in range(100):
            first, last = sorted(chance.sample(range(200), 2))
            asked = HOSTS[last:] + HOSTS[:first] + chance.sample(HOSTS, chance.randrange(20))
            expected = [book.slot(labels) for labels in asked]
            assert book.slots(asked).tolist() == expected
            assert book.slots(tuple(asked)).tolist() == expected


@pytest.mark.parametrize("one_by_one", [0, 10**9])
def test_bisecting_many_ranges_is_bisecting_each(
    monkeypatch: pytest.MonkeyPatch, one_by_one: int
) -> None:
    """`lower_bounds` gives for each range what `searchsorted` gives."""
    monkeypatch.setattr(ranges, "_BISECTED_ONE_BY_ONE", one_by_one)
    chance = np.random.default_rng(4)
    for _ in range(200):
        column = chance.integers(-9, 9, 50)
        cuts = np.sort(chance.integers(0, 51, 8))
        first, last = cuts[:-1], cuts[1:]
        for a, b in zip(first.tolist(), last.tolist(), strict=True):
            column[a:b].sort()
        sought = chance.integers(-10, 10, len(first))
        expected = [
            a + int(np.searchsorted(column[a:b], one))
            for a, b, one in zip(first.tolist(), last.tolist(), sought.tolist(), strict=True)
        ]
        assert ranges.lower_bounds(column, first, last, sought).tolist() == expected


@pytest.mark.parametrize(("run", "piece"), [(300, 1 << 20), (1, 1 << 20), (10**9, 5), (10**9, 1)])
@pytest.mark.parametrize("slices", [2, 10**9])
def test_all_ways_to_move_rows_move_the_same(
    monkeypatch: pytest.MonkeyPatch, run: int, piece: int, slices: int
) -> None:
    """Regular runs, slices and index arrays copy what a loop over the ranges copies."""
    monkeypatch.setattr(ranges, "_ROWS_OF_RUN", run)
    monkeypatch.setattr(ranges, "_ROWS_OF_SLICE", slices)
    monkeypatch.setattr(ranges, "_PIECE_ROWS", piece)
    chance = np.random.default_rng(5)
    source = np.arange(300), chance.random(300)
    for _ in range(100):
        count = int(chance.integers(1, 12))
        lengths = chance.integers(0, 9, count) if chance.random() < 0.5 else np.full(count, 4)
        gaps = (
            chance.integers(0, 9, (2, count)) if chance.random() < 0.5 else np.full((2, count), 3)
        )
        from_, to = np.cumsum(gaps + lengths, axis=1) - lengths
        expected = np.full(300, -1), np.full(300, np.nan)
        target = expected[0].copy(), expected[1].copy()
        for a, b, length in zip(from_.tolist(), to.tolist(), lengths.tolist(), strict=True):
            for column, copied in zip(source, expected, strict=True):
                copied[b : b + length] = column[a : a + length]
        ranges.move(source, from_, target, to, lengths)
        for copied, column in zip(expected, target, strict=True):
            assert np.array_equal(copied, column, equal_nan=True)
