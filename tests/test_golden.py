"""Golden stores: what earlier versions wrote is read bit for bit, and goes on being written to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import lmdb
import pytest

from tests.golden.make import CPU, FOLDER, GOLDEN, NOW_NS, clock, contents, lmdb_folder, memory_file
from tsengine import DataPoint, FormatVersionError
from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.memory import MemoryEngine
from tsengine.engine import Engine

LMDB_STORES = sorted(FOLDER.glob("lmdb-v*/*"))
SNAPSHOTS = sorted(FOLDER.glob("memory-v*/*.snapshot"))


def _expected(folder: Path) -> dict[str, object]:
    told: dict[str, object] = json.loads((folder / "contents.json").read_text(encoding="utf-8"))
    return told


def _goes_on(engine: Engine, expected: dict[str, object]) -> None:
    """Write to a store, and see that nothing but that has changed."""
    label, at = CPU[0], NOW_NS + 1
    value = engine.latest(label)[0].value
    engine.write([DataPoint(label, at, value)])
    engine.compact()
    assert engine.query(label, at).rows == 1
    engine.delete(label, at, at + 1)
    assert contents(engine) == expected
    engine.check()


def test_this_version_of_the_formats_has_golden_stores() -> None:
    """A format version that was raised has stores of its own, committed with it."""
    assert {lmdb_folder(name) for name in GOLDEN} <= set(LMDB_STORES)
    assert memory_file() in SNAPSHOTS


@pytest.mark.parametrize(
    "folder", LMDB_STORES, ids=lambda folder: f"{folder.parent.name}-{folder.name}"
)
def test_a_store_of_an_earlier_version_reads_and_goes_on(folder: Path, tmp_path: Path) -> None:
    """A golden LMDB store passes check(), holds what it held, and takes further points."""
    expected = _expected(folder)
    store = tmp_path / "store"
    store.mkdir()
    shutil.copy(folder / "data.mdb", store)
    LmdbEngine(str(store), clock_ns=clock).check()
    with LmdbEngine(str(store), clock_ns=clock, read_only=True) as engine:
        assert contents(engine) == expected
    with LmdbEngine(str(store), clock_ns=clock) as engine:
        assert contents(engine) == expected
        _goes_on(engine, expected)


@pytest.mark.parametrize("file", SNAPSHOTS, ids=lambda file: file.parent.name)
def test_a_snapshot_of_an_earlier_version_reads_and_goes_on(file: Path, tmp_path: Path) -> None:
    """A golden snapshot of the memory backend holds what it held, and takes further points."""
    expected = _expected(file.parent)
    copy = tmp_path / "snapshot"
    shutil.copy(file, copy)
    with MemoryEngine(str(copy), clock_ns=clock) as engine:
        assert contents(engine) == expected
        _goes_on(engine, expected)


def test_both_backends_hold_the_same() -> None:
    """The golden stores of both backends came from the same operations and hold the same."""
    assert _expected(lmdb_folder("everything")) == _expected(memory_file().parent)


def test_a_newer_lmdb_format_is_refused_untouched(tmp_path: Path) -> None:
    """A store of a newer format gives FormatVersionError and keeps its bytes."""
    shutil.copy(lmdb_folder("integers") / "data.mdb", tmp_path)
    with lmdb.open(str(tmp_path), max_dbs=16) as raw, raw.begin(write=True) as transaction:
        transaction.put(b"format", b"2000", db=raw.open_db(b"meta", transaction))
    before = (tmp_path / "data.mdb").read_bytes()
    for engine in (LmdbEngine(str(tmp_path)), LmdbEngine(str(tmp_path), read_only=True)):
        with pytest.raises(FormatVersionError, match="2000"):
            engine.check()
        with pytest.raises(FormatVersionError, match="2000"):
            engine.open()
    assert (tmp_path / "data.mdb").read_bytes() == before


def test_a_newer_snapshot_format_is_refused(tmp_path: Path) -> None:
    """A snapshot file of a newer format gives FormatVersionError."""
    data = bytearray(memory_file().read_bytes())
    data[16:20] = (2000).to_bytes(4, "little")
    (tmp_path / "newer").write_bytes(data)
    with pytest.raises(FormatVersionError, match="2000"):
        MemoryEngine(str(tmp_path / "newer")).open()
