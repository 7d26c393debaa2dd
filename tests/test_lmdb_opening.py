"""Opening: a damaged file is told by an error before LMDB, which it could kill, gets it."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from tsengine import CorruptionError, FormatVersionError, Labels, NotOpenError, StoreInUseError
from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.lmdb import environment as environment_module
from tsengine.backends.lmdb.datafile import check_head, missing_bytes
from tsengine.backends.lmdb.files import WRITER_LOCK, Mark, boot, read_mark

PAGE = 4096
TRANSACTION = 16 + 24 + 2 * 48 + 8
"""Where a meta page has the number of its commit."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of a few hundred rows, closed."""
    store = tmp_path / "store"
    with LmdbEngine(str(store), merging="manual") as engine:
        for commit in range(1, 4):
            rows = range(1000 * commit, 1000 * commit + 100)
            engine.write((Labels(host=f"h{row % 7}"), row, 1.5) for row in rows)
    return store


def _edit(path: Path, change: Callable[[bytearray], None]) -> None:
    data = bytearray((path / "data.mdb").read_bytes())
    change(data)
    (path / "data.mdb").write_bytes(data)


def _newest(data: bytearray) -> int:
    """Offset of the meta page of the last commit."""
    numbers = [struct.unpack_from("<Q", data, at + TRANSACTION)[0] for at in (0, PAGE)]
    return PAGE if numbers[1] > numbers[0] else 0


def _open_in_child(path: Path) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys\nfrom tsengine.backends.lmdb import LmdbEngine\n"
        "print(sum(map(len, LmdbEngine(sys.argv[1]).open().query())))"
    )
    return subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("left", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("has_mark", [True, False])
def test_a_file_cut_short_is_an_error(path: Path, left: float, has_mark: bool) -> None:
    """A truncated file raises CorruptionError, where LMDB would die by SIGBUS."""
    size = (path / "data.mdb").stat().st_size
    os.truncate(path / "data.mdb", max(int(size * left), 1))
    if not has_mark:
        (path / WRITER_LOCK).unlink()
    ended = _open_in_child(path)
    assert ended.returncode == 1, ended
    assert "tsengine.errors.CorruptionError" in ended.stderr


READ_ONLY = (
    "import sys\nfrom tsengine.backends.lmdb import LmdbEngine\n"
    "print(LmdbEngine(sys.argv[1], read_only=True).open().count())"
)


@pytest.mark.parametrize("end", ["closed", "killed"])
def test_pages_that_were_never_needed_are_not_missed(path: Path, end: str) -> None:
    """A file that ends before free pages, which LMDB never wrote, is whole."""
    program = (
        "import os, sys\nfrom pathlib import Path\n"
        "from tsengine.backends.lmdb import LmdbEngine\n"
        "from tsengine.backends.lmdb.datafile import missing_bytes\n"
        "path = Path(sys.argv[1])\n"
        "engine = LmdbEngine(str(path)).open()\n"
        "table = engine._store.environment.tables['blocks']\n"
        "def work(transaction):\n"
        "    keys = [bytes([255] * 23 + [key]) for key in range(40)]\n"
        "    for key in keys:\n"
        "        transaction.put(key, bytes(3_000), db=table)\n"
        "    for key in keys:\n"
        "        transaction.delete(key, db=table)\n"
        "engine._store.environment.write(work)\n"
        "assert missing_bytes(path / 'data.mdb')\n"
        f"import subprocess\nread = {READ_ONLY!r}\n"
        "print(subprocess.check_output([sys.executable, '-c', read, str(path)], text=True))\n"
        f"if {end!r} == 'killed':\n"
        "    sys.stdout.flush()\n"
        "    os.kill(os.getpid(), 9)\n"
        "engine.close()\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.stdout.split() == ["300"], child.stderr  # a reader beside the writer
    assert bool(missing_bytes(path / "data.mdb")) == (end == "killed")
    with LmdbEngine(str(path), read_only=True) as engine:
        assert engine.count() == 300
    with LmdbEngine(str(path)) as engine:
        assert engine.count() == 300
        engine.check()
    assert not missing_bytes(path / "data.mdb")


def test_an_emptied_file_is_no_new_store(path: Path) -> None:
    """A data file that lost all its bytes raises CorruptionError and is not made anew."""
    os.truncate(path / "data.mdb", 0)
    with pytest.raises(CorruptionError, match="as it was closed"):
        LmdbEngine(str(path)).open()
    assert (path / "data.mdb").stat().st_size == 0


def test_no_flipped_bit_of_the_meta_pages_passes(path: Path) -> None:
    """Each flipped bit of a meta page of a closed store raises before LMDB opens it."""
    whole = (path / "data.mdb").read_bytes()
    for page in (0, PAGE):
        for bit in range(8 * 152):
            damaged = bytearray(whole)
            damaged[page + bit // 8] ^= 1 << bit % 8
            (path / "data.mdb").write_bytes(damaged)
            with pytest.raises((CorruptionError, FormatVersionError)):
                LmdbEngine(str(path), read_only=True).open()


def test_a_commit_that_is_gone_is_missed(path: Path) -> None:
    """A meta page with another commit's number raises, since an older state would be read."""
    (path / WRITER_LOCK).unlink()

    def rename(data: bytearray) -> None:
        at = _newest(data) + TRANSACTION
        (number,) = struct.unpack_from("<Q", data, at)
        struct.pack_into("<Q", data, at, number - 4)

    _edit(path, rename)
    with pytest.raises(CorruptionError, match="no neighbours"):
        LmdbEngine(str(path)).open()


@pytest.mark.parametrize("content", [b"x", b"not a store\n" * 1000, bytes(20_000)])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """What LMDB did not write is a typed error, and stays as it is."""
    (tmp_path / "data.mdb").write_bytes(content)
    with pytest.raises((CorruptionError, FormatVersionError)):
        LmdbEngine(str(tmp_path)).open()
    assert (tmp_path / "data.mdb").read_bytes() == content


def test_foreign_tables_stay_alone(tmp_path: Path) -> None:
    """Data of another LMDB user is refused, and nothing is added to it."""
    with lmdb.open(str(tmp_path), max_dbs=2) as raw, raw.begin(write=True) as transaction:
        transaction.put(b"a", b"b", db=raw.open_db(b"theirs", transaction))
    before = (tmp_path / "data.mdb").read_bytes()
    with pytest.raises(FormatVersionError, match="no tsengine store"):
        LmdbEngine(str(tmp_path)).open()
    assert (tmp_path / "data.mdb").read_bytes() == before


@pytest.mark.parametrize("lost", [b"blocks", b"meta", b"retired"])
def test_a_lost_table_is_not_made_anew(path: Path, lost: bytes) -> None:
    """A table that is gone raises CorruptionError instead of coming back empty."""
    with lmdb.open(str(path), max_dbs=16) as raw, raw.begin(write=True) as transaction:
        transaction.drop(raw.open_db(lost, transaction))
    (path / WRITER_LOCK).unlink()
    with pytest.raises(CorruptionError, match=lost.decode()):
        LmdbEngine(str(path)).open()


def test_a_lost_format_version_does_not_make_a_new_store(path: Path) -> None:
    """A store without its format row raises CorruptionError and keeps its options."""
    with lmdb.open(str(path), max_dbs=16) as raw, raw.begin(write=True) as transaction:
        transaction.delete(b"format", db=raw.open_db(b"meta", transaction))
    (path / WRITER_LOCK).unlink()
    with pytest.raises(CorruptionError, match="format"):
        LmdbEngine(str(path)).open()


def test_an_open_store_says_so_and_a_closed_one_too(path: Path) -> None:
    """The writer's lock file tells whether the store was closed, and survives damage."""
    mark = read_mark(path)
    assert mark == Mark(True, boot(), check_head(path / "data.mdb") or 0)
    with LmdbEngine(str(path)):
        assert read_mark(path) == Mark(False, boot(), 0)
    line = (path / WRITER_LOCK).read_bytes()
    for bit in range(8 * len(line)):
        damaged = bytearray(line)
        damaged[bit // 8] ^= 1 << bit % 8
        (path / WRITER_LOCK).write_bytes(damaged)
        assert read_mark(path) is None


@pytest.mark.parametrize(
    ("mark", "verified"),
    [
        (Mark(False, boot(), 0), 0),  # killed: the page cache still has everything
        (Mark(False, "0" * 36, 0), 1),  # cut off from power, or moved from elsewhere
        (Mark(False, "unknown", 0), 1),
        (None, 1),
    ],
)
@pytest.mark.parametrize("read_only", [False, True])
def test_a_store_that_may_be_torn_is_verified(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mark: Mark | None,
    verified: int,
    read_only: bool,
) -> None:
    """A store not closed is verified where the machine was started anew, and only there."""
    seen: list[Path] = []
    monkeypatch.setattr(environment_module, "verify_structure", seen.append)
    if mark is None:
        (path / WRITER_LOCK).unlink()
    else:
        (path / WRITER_LOCK).write_bytes(mark.pack())
    with LmdbEngine(str(path), read_only=read_only) as engine:
        assert sum(map(len, engine.query())) == 300
    assert len(seen) == verified


def test_check_before_opening_verifies_and_writes_nothing(path: Path) -> None:
    """check() on a new engine reads everything, writes nothing, and the engine can still open."""
    before = (path / "data.mdb").read_bytes(), (path / WRITER_LOCK).read_bytes()
    engine = LmdbEngine(str(path))
    engine.check()
    assert before == ((path / "data.mdb").read_bytes(), (path / WRITER_LOCK).read_bytes())
    with engine:
        engine.check()
        assert sum(map(len, engine.query())) == 300
    with pytest.raises(NotOpenError):
        engine.check()


def test_check_before_opening_finds_a_damaged_page(path: Path) -> None:
    """A page that says it is another one is told by check() on a new engine."""

    def swap(data: bytearray) -> None:
        for page in range(2, len(data) // PAGE):
            struct.pack_into("<Q", data, page * PAGE, 1 << 40)

    _edit(path, swap)
    with pytest.raises(CorruptionError):
        LmdbEngine(str(path)).check()


def test_check_of_no_store_makes_none(tmp_path: Path) -> None:
    """check() where there is no store raises and leaves no file behind."""
    with pytest.raises(NotOpenError, match="no store"):
        LmdbEngine(str(tmp_path / "none")).check()
    assert not (tmp_path / "none").exists()


def test_check_before_opening_beside_a_writer_is_refused(path: Path) -> None:
    """Beside another process that writes, a new engine cannot be checked, and says so."""
    program = (
        "import sys\nfrom tsengine.backends.lmdb import LmdbEngine\n"
        "engine = LmdbEngine(sys.argv[1]).open()\nprint(flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline()
        with pytest.raises(StoreInUseError, match="another process"):
            LmdbEngine(str(path)).check()
        with LmdbEngine(str(path), read_only=True) as engine:
            engine.check()
        writer.communicate(timeout=60)


def test_a_snapshot_is_a_closed_store(path: Path, tmp_path: Path) -> None:
    """A snapshot carries the mark of a closed store, so it opens without a look at all of it."""
    with LmdbEngine(str(path)) as engine:
        engine.snapshot(str(tmp_path / "copy"))
    mark = read_mark(tmp_path / "copy")
    assert mark is not None
    assert mark.is_closed
    with LmdbEngine(str(tmp_path / "copy")) as copy:
        assert sum(map(len, copy.query())) == 300
