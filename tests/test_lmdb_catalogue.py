"""The catalogue of the LMDB backend: what is listed, found and forgotten, with rows of two."""

from __future__ import annotations

import random
import threading
from collections import UserDict, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from tsengine.backends.lmdb import LmdbEngine, catalogue, postings, series_rows
from tsengine.backends.lmdb.catalogue import Catalogue
from tsengine.backends.lmdb.environment import Environment, Table
from tsengine.backends.lmdb.layout import (
    KIND_SHIFT,
    NAMES,
    POSTINGS,
    SERIES,
    UNINDEXED,
    pack_u64,
    posting_key,
    seal,
    text_key,
)
from tsengine.backends.lmdb.postings import Postings
from tsengine.backends.lmdb.series_rows import SeriesRows
from tsengine.errors import CorruptionError
from tsengine.model import Labels, ValueKind
from tsengine.selectors import to_selector

FIRST = ValueKind.FLOAT << KIND_SHIFT
LONG_NAME = "n" * 200
LONG_VALUE = "v" * 400
UNIVERSE = [
    *(Labels("cpu", host=f"h{host}", core=f"{core}") for host in range(8) for core in range(3)),
    *(Labels("disk", host=f"h{host}", zone="z") for host in range(4)),
    *(Labels(zone="y", host=f"{LONG_VALUE}{host}") for host in range(3)),
    *(Labels({"odd name\n": f"{value}\\", LONG_NAME: value}) for value in "ab"),
    *(Labels("wide", a=LONG_VALUE + end, b=LONG_VALUE) for end in "xy"),
    Labels("é", host="ö"),
]
SELECTORS = [
    None,
    "cpu",
    "{}",
    '{host="h1"}',
    '{host=~"h[12]"}',
    '{host=~"h1|h2|none"}',
    '{host!="h1"}',
    '{zone=""}',
    '{zone!=""}',
    '{host!~"h.*"}',
    '{host=~"v+[01]"}',
    'cpu{core!="1",host=~"h.*"}',
    '{host="none"}',
    {LONG_NAME: "a"},
    {"b": LONG_VALUE},
    {"host": f"{LONG_VALUE}1"},
    *UNIVERSE[::7],
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A path where a store may be made."""
    return tmp_path / "store"


@pytest.fixture
def environment(path: Path) -> Iterator[Environment]:
    """The tables of an empty store."""
    with LmdbEngine(str(path), merging="manual") as engine:
        yield engine._store.environment


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every bound so small that a handful of series goes over it."""
    monkeypatch.setattr(catalogue, "INDEXED_AT_ONCE_MAX", 2)
    monkeypatch.setattr(catalogue, "SLICE_ROWS", 1)
    monkeypatch.setattr(catalogue, "SORTED_MAX", 4)
    monkeypatch.setattr(catalogue, "LABELS_MAX", 5)
    monkeypatch.setattr(catalogue, "NUMBERS_MAX", 9)
    monkeypatch.setattr(catalogue, "ROW_SERIES_MAX", 3)
    monkeypatch.setattr(series_rows, "ROW_SERIES_MAX", 3)
    monkeypatch.setattr(series_rows, "VERIFIED_MAX", 2)
    monkeypatch.setattr(postings, "ROW_NUMBERS_MAX", 2)


class IndexingStoppedError(Exception):
    """Stands for whatever ends a process between two slices."""


def stop_indexing(monkeypatch: pytest.MonkeyPatch, slices: int) -> None:
    """Let indexing fail after some slices, once."""
    left = [slices]

    def index(self: Catalogue) -> bool:
        left[0] -= 1
        if left[0] < 0:
            monkeypatch.setattr(Catalogue, "index", INDEX)
            raise IndexingStoppedError
        return INDEX(self)

    monkeypatch.setattr(Catalogue, "index", index)


INDEX = Catalogue.index


def unindexed_rows(engine: LmdbEngine) -> int:
    """Count the rows of series that are not in the searchable tables."""
    environment = engine._store.environment
    with environment.read() as transaction:
        return int(transaction.stat(environment.tables[UNINDEXED])["entries"])


def check_listing(engine: LmdbEngine, listed: set[Labels]) -> None:
    """Compare everything that the catalogue answers with a set, also where caches are cold."""
    engine.check()
    assert engine.stats().series == len(listed)
    store = engine._store
    cold = Catalogue(store.environment)
    for given in SELECTORS:
        selector = to_selector(given)
        expected = sorted(filter(selector.matches, listed), key=lambda labels: labels.id)
        assert list(engine.series(selector)) == expected
        with store.environment.read() as transaction:
            numbers = cold.resolve(transaction, selector).tolist()
            assert [cold.labels(transaction, number) for number in numbers] == expected
    assert engine.label_names() == sorted({name for labels in listed for name in labels})
    for name in ("host", "zone", LONG_NAME, "none"):
        values = {labels[name] for labels in listed if name in labels}
        assert engine.label_values(name) == sorted(values)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("seed", range(6))
def test_the_catalogue_is_a_set_of_labels(
    path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is registered, removed, left unindexed and reopened, listings are those of a set."""
    dice = random.Random(seed)
    listed: set[Labels] = set()
    kinds: dict[Labels, object] = {}
    engine = LmdbEngine(str(path), merging=dice.choice(["inline", "manual"])).open()
    try:
        for step in range(1, 30):
            act = dice.choice(["write", "write", "write", "remove", "reopen", "stop"])
            if act in ("write", "stop"):
                if act == "stop":
                    stop_indexing(monkeypatch, dice.randrange(3))
                some = dice.sample(UNIVERSE, dice.choice([1, 2, 3, 5, 20]))
                values = [kinds.setdefault(one, dice.choice([0.5, "text"])) for one in some]
                engine.write([(one, step, value) for one, value in zip(some, values, strict=True)])
                listed.update(some)
            elif act == "remove":
                monkeypatch.setattr(Catalogue, "index", INDEX)
                selector = to_selector(dice.choice(SELECTORS))
                gone = set(filter(selector.matches, listed))
                assert engine.delete(selector) == len(gone)
                listed -= gone
                for one in gone:
                    del kinds[one]
            else:
                engine.close()
                engine = LmdbEngine(str(path), merging="inline").open()
            check_listing(engine, listed)
    finally:
        engine.close()


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("slices", range(4))
def test_indexing_goes_on_where_it_was_cut_short(
    path: Path, slices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Series are listed by their commit, and indexed by the next one where it did not get to it."""
    stop_indexing(monkeypatch, slices)
    with LmdbEngine(str(path)) as engine:
        receipt = engine.write([(labels, 1, 0.5) for labels in UNIVERSE])
        assert receipt.accepted == len(UNIVERSE)
        assert "IndexingStopped" in str(engine.stats().details["upkeep_error"])
        left = unindexed_rows(engine)
        assert left == -(-len(UNIVERSE) // 3) - slices
        check_listing(engine, set(UNIVERSE))
    with LmdbEngine(str(path)) as engine:
        assert unindexed_rows(engine) == left
        check_listing(engine, set(UNIVERSE))
        engine.write([(labels, 2, 0.5) for labels in UNIVERSE])  # all are known
        assert unindexed_rows(engine) == 0
        check_listing(engine, set(UNIVERSE))


@pytest.mark.usefixtures("tiny")
def test_others_have_their_turn_between_slices(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While very many series are indexed another thread commits, old series and new ones."""
    turns: list[int] = []
    other = Labels("other")
    with LmdbEngine(str(path)) as engine:
        engine.write([(other, 1, 0.5)])

        def commit() -> None:
            count = len(turns)
            engine.write([(other, 2 + count, 0.5), (Labels("another", n=f"{count}"), 1, 0.5)])
            turns.append(count)

        def index(self: Catalogue) -> bool:
            thread = threading.Thread(target=commit)
            thread.start()
            thread.join(timeout=60)
            assert not thread.is_alive()
            return INDEX(self)

        monkeypatch.setattr(catalogue, "INDEXED_AT_ONCE_MAX", 4)
        monkeypatch.setattr(Catalogue, "index", index)
        engine.write([(labels, 1, 0.5) for labels in UNIVERSE])
        assert len(turns) > 3
        monkeypatch.setattr(Catalogue, "index", INDEX)
        assert unindexed_rows(engine) == 0
        engine.check()
        assert engine.stats().series == len(UNIVERSE) + 1 + len(turns)


@pytest.mark.parametrize("shared", [0, 20])
def test_series_of_several_kinds_are_indexed_together(
    path: Path, monkeypatch: pytest.MonkeyPatch, shared: int
) -> None:
    """A slice of series of two kinds, whose numbers lie far apart, is found by its labels."""
    monkeypatch.setattr(catalogue, "INDEXED_AT_ONCE_MAX", 2)
    floats = [Labels("m", id=str(place)) for place in range(5 + shared)]
    integers = [Labels("m", id=str(place), kind="int") for place in range(5 + shared)]
    with LmdbEngine(str(path), integers="int") as engine:
        engine.write([*((one, 1, 1.0) for one in floats), *((one, 1, 1) for one in integers)])
        assert engine.stats().details["upkeep_error"] is None
        assert set(engine.series("m")) == {*floats, *integers}
        assert set(engine.series('{id="3"}')) == {floats[3], integers[3]}
        engine.check()
        assert engine.delete('{kind="int"}') == len(integers)
        assert set(engine.series("m")) == set(floats)
        engine.check()


@pytest.mark.usefixtures("tiny")
def test_a_commit_looks_through_the_notes_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Series that are not indexed yet cost a commit no look at all notes for each of them."""
    stop_indexing(monkeypatch, 0)
    looks: list[str] = []

    class Tables(dict[str, Table]):
        def __getitem__(self, name: str) -> Table:
            looks.append(name)
            return super().__getitem__(name)

    with LmdbEngine(str(path)) as engine:
        engine.write([(labels, 1, 0.5) for labels in UNIVERSE])
        environment = engine._store.environment
        monkeypatch.setattr(environment, "tables", Tables(environment.tables))
        with environment.read() as transaction:
            for labels in UNIVERSE:
                cache = catalogue.NumberCache(-1)
                assert engine._store.catalogue.look_up(transaction, labels, cache) is not None
        assert looks.count(NAMES) == len(UNIVERSE)
        assert looks.count(UNINDEXED) == 1


def test_unindexed_series_are_found_while_another_thread_looks() -> None:
    """A thread that comes while another lists them by their labels misses no series."""
    found: list[int | None] = []

    class Rows(UserDict[bytes, Sequence[Labels]]):
        def __getitem__(self, key: bytes) -> Sequence[Labels]:
            if key == pack_u64(1) and not found:  # the other thread has come to the second row
                found.append(None)
                found.append(series.number(UNIVERSE[1]))
            return super().__getitem__(key)

    series = catalogue.Unindexed(Rows({pack_u64(place): [UNIVERSE[place]] for place in range(2)}))
    assert series.number(UNIVERSE[0]) == 0
    assert found == [None, 1]


@pytest.mark.usefixtures("tiny")
def test_removing_waits_for_indexing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delete of series that another thread is just indexing removes them from every table."""
    with LmdbEngine(str(path)) as engine:
        thread = threading.Thread(target=engine.delete, args=("cpu",))

        def index(self: Catalogue) -> bool:
            if thread.ident is None and threading.current_thread() is threading.main_thread():
                thread.start()
            return INDEX(self)

        monkeypatch.setattr(Catalogue, "index", index)
        engine.write([(labels, 1, 0.5) for labels in UNIVERSE])
        thread.join(timeout=60)
        assert not thread.is_alive()
        cpu = to_selector("cpu")
        check_listing(engine, {labels for labels in UNIVERSE if not cpu.matches(labels)})


@pytest.mark.usefixtures("tiny")
def test_postings_are_sets(environment: Environment) -> None:
    """Rows put, extended and taken from in any order hold what sets hold."""
    index = Postings(environment)
    dice = random.Random(7)
    labels = [posting_key("host", value) for value in ("a", "b", "ab", "b" * 400)]
    held: dict[bytes, set[int]] = {label: set() for label in labels}
    numbers = list(range(FIRST, FIRST + 400))
    dice.shuffle(numbers)
    for _ in range(150):
        having: defaultdict[bytes, list[int]] = defaultdict(list)
        if dice.random() < 0.6 and numbers:
            for _ in range(dice.choice([1, 3, 8])):
                if numbers:
                    having[dice.choice(labels)].append(numbers.pop())
            change = dice.choice([index.put, index.extend])
            for label, added in having.items():
                held[label].update(added)
        else:
            change = index.remove
            for label in labels:
                gone = dice.sample(sorted(held[label]), min(len(held[label]), dice.randrange(6)))
                if gone:
                    having[label] = gone
                    held[label].difference_update(gone)
        ordered = {label: sorted(some) for label, some in having.items()}
        environment.write(lambda transaction: change(transaction, ordered))  # noqa: B023
        with environment.read() as transaction:
            for label in labels:
                assert index.numbers(transaction, label).tolist() == sorted(held[label])
            everything = {label: some.tolist() for label, some in index.labels(transaction)}
            assert everything == {label: sorted(some) for label, some in held.items() if some}
    with pytest.raises(CorruptionError, match="index lacks"):
        environment.write(lambda transaction: index.remove(transaction, {labels[0]: [1]}))


@pytest.mark.usefixtures("tiny")
def test_series_rows_forget(environment: Environment) -> None:
    """Forgotten series are gone, those beside them in the row stay, and empty rows go."""
    rows = SeriesRows(environment)
    environment.write(lambda transaction: rows.put(transaction, FIRST, UNIVERSE))
    kept = dict(enumerate(UNIVERSE, FIRST))
    dice = random.Random(3)
    while kept:
        gone = sorted(dice.sample(sorted(kept), min(len(kept), 4)))
        unknown = FIRST + len(UNIVERSE) + 5
        array = np.array([*gone, unknown], np.int64)
        environment.write(lambda transaction: rows.forget(transaction, array))  # noqa: B023
        for number in gone:
            del kept[number]
        with environment.read() as transaction:
            numbers = range(FIRST - 1, FIRST + len(UNIVERSE) + 1)
            found = rows.labels(transaction, numbers)
            assert list(found) == [kept.get(number) for number in numbers]
    with environment.read() as transaction:
        assert transaction.stat(environment.tables[SERIES])["entries"] == 0


A, B = UNIVERSE[0], UNIVERSE[1]


@pytest.mark.parametrize(
    ("table", "key", "payload", "named"),
    [
        (POSTINGS, posting_key("host", "h0") + b"\0" + pack_u64(FIRST + 1), None, "index lacks 2"),
        (POSTINGS, posting_key("host", "h0") + b"\0" + pack_u64(FIRST + 1), bytes(4), "lacks 1"),
        (POSTINGS, posting_key("host", "h7") + b"\0" + pack_u64(FIRST + 1), bytes(4), "not have"),
        (POSTINGS, posting_key("core", "0") + b"\0" + pack_u64(FIRST + 9), bytes(4), "not have"),
        (POSTINGS, posting_key("host", "h0") + b"\0" + pack_u64(FIRST + 2), bytes(4), "twice"),
        (NAMES, text_key(A.id), None, "should be 2"),
        (NAMES, text_key(A.id), pack_u64(FIRST + 2), "another name"),
        (NAMES, text_key(A.id), pack_u64(FIRST + 7), "not in the catalogue"),
        (SERIES, pack_u64(FIRST + 1), None, "not in the catalogue"),
        (UNINDEXED, pack_u64(FIRST + 1), b"", "listed twice"),
    ],
)
def test_check_compares_names_labels_and_index(
    path: Path, table: str, key: bytes, payload: bytes | None, named: str
) -> None:
    """A row that is missing, wrong or too many, though its seal is right, fails check()."""
    with LmdbEngine(str(path), merging="manual") as engine:
        engine.write([(A, 1, 0.5), (B, 1, 0.5)])
        engine.check()
        environment = engine._store.environment
        db = environment.tables[table]
        if payload is None:
            assert environment.write(lambda transaction: transaction.delete(key, db=db))
        else:
            row = seal(table, key, payload)
            environment.write(lambda transaction: transaction.put(key, row, db=db))
    reopened = LmdbEngine(str(path), merging="manual")
    with reopened as engine, pytest.raises(CorruptionError, match=named):
        engine.check()
