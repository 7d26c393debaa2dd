"""Snapshot files of the memory backend: what is in them, and what damage does."""

from __future__ import annotations

import errno
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import numpy as np
import pytest

from tsengine.backends.memory import MemoryEngine, snapshot_file
from tsengine.errors import (
    CorruptionError,
    FormatVersionError,
    StorageError,
    StorageFullError,
    StoreOptionError,
    StorePathError,
)
from tsengine.model import GroupedBatch, Labels, ProducerMark, WriteReceipt

CPU = Labels("cpu", host="ü")
COUNT = Labels("count")
EVENT = Labels("event")
BARE = Labels("bare")


@pytest.fixture
def engine() -> Iterator[MemoryEngine]:
    """An empty store with options of its own and a clock that stands still."""
    with MemoryEngine(duplicate_policy="first", integers="int", clock_ns=lambda: 77) as opened:
        yield opened


def names_in(folder: Path) -> list[str]:
    """Give what is in a folder, sorted."""
    return sorted(entry.name for entry in folder.iterdir())


def fill(engine: MemoryEngine) -> WriteReceipt:
    """Store something of each kind, a series without rows, and a producer's mark."""
    engine.write_series(CPU, [1, 2, 3], [0.5, -0.0, float("nan")])
    engine.write([(COUNT, 5, 2**62), (EVENT, 6, {"who": [1, None]}), (EVENT, 7, b"raw")])
    engine.write([(BARE, 1, 1.0)])
    engine.delete(BARE, 1, 2)
    engine.write_to_buffer((CPU, 9, 1.0))
    return engine.flush_buffer(ProducerMark("gateway", 3, 1))


def contents(engine: MemoryEngine) -> list[object]:
    """Give what two stores must have in common; reprs, because NaN is not equal to itself."""
    rows = [
        (batch.labels, batch.timestamps.tolist(), repr(batch.values.tolist()), batch.values.dtype)
        for batch in engine.query()
    ]
    return [rows, list(engine.series()), engine.high_water("gateway"), engine.stats().last_write_ns]


def written(path: Path) -> bytes:
    """Write a small snapshot of everything and give its bytes."""
    with MemoryEngine(integers="int", clock_ns=lambda: 77) as engine:
        fill(engine)
        engine.snapshot(str(path))
    return path.read_bytes()


def test_a_snapshot_opens_with_all_that_was_there(engine: MemoryEngine, tmp_path: Path) -> None:
    """Rows bit for bit, kinds, empty series, marks, options and the last write come back."""
    receipt = fill(engine)
    path = str(tmp_path / "store")
    engine.snapshot(path)
    with MemoryEngine(path) as restored:
        assert contents(restored) == contents(engine)
        assert restored.options == engine.options
        restored.write_to_buffer((CPU, 9, 1.0))
        assert restored.flush_buffer(ProducerMark("gateway", 3, 1)) == receipt
        assert contents(restored) == contents(engine)
        restored.check()
    assert names_in(tmp_path) == ["store"]


def test_refused_rows_of_a_receipt_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receipt of a producer's last batch is whole, however many rows it names."""
    monkeypatch.setattr(snapshot_file, "_FRAME_ROWS", 8)
    with MemoryEngine(max_points_per_series=3) as engine:
        for moment in range(1, 31):
            engine.write_to_buffer((CPU, moment, 1.0))
        receipt = engine.flush_buffer(ProducerMark("gateway", 1))
        assert receipt.refused == 27
        engine.snapshot(str(tmp_path / "store"))
    with MemoryEngine(str(tmp_path / "store")) as restored:
        for moment in range(1, 31):
            restored.write_to_buffer((CPU, moment, 1.0))
        assert restored.flush_buffer(ProducerMark("gateway", 1)) == receipt


@pytest.mark.parametrize("frame_rows", [1, 7, 1_000])
def test_long_series_go_on_from_frame_to_frame(
    engine: MemoryEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frame_rows: int
) -> None:
    """Frames end anywhere: between series, inside them, and after objects of many bytes."""
    monkeypatch.setattr(snapshot_file, "_FRAME_ROWS", frame_rows)
    monkeypatch.setattr(snapshot_file, "_FRAME_BYTES", 2_000)
    for number in range(9):
        engine.write_series(
            Labels("m", n=str(number)), np.arange(number * 7) + 1, [0.5] * number * 7
        )
    engine.write([(EVENT, moment, "x" * 500) for moment in range(1, 20)])
    engine.snapshot(str(tmp_path / "store"))
    with MemoryEngine(str(tmp_path / "store")) as restored:
        assert contents(restored) == contents(engine)
        restored.check()


def test_the_file_is_read_at_open_and_never_written(tmp_path: Path) -> None:
    """Writing to a restored engine and closing it leaves the file alone."""
    before = written(tmp_path / "store")
    with MemoryEngine(str(tmp_path / "store")) as engine:
        engine.write([(CPU, 100, 1.0)])
    assert (tmp_path / "store").read_bytes() == before


def test_caps_cut_what_a_snapshot_has_beyond_them(engine: MemoryEngine, tmp_path: Path) -> None:
    """Caps are of an engine, not of the file, and hold from the start."""
    engine.write_series(CPU, np.arange(10) + 1, np.zeros(10))
    engine.write_series(EVENT, np.arange(10) + 6, np.zeros(10))
    path = str(tmp_path / "store")
    engine.snapshot(path)
    with MemoryEngine(path, max_points_per_series=4, max_points=6) as restored:
        assert restored.stats().points == 6
        assert [batch.timestamps.tolist() for batch in restored.query()] == [
            [9, 10],
            [12, 13, 14, 15],
        ]


def test_expired_rows_are_not_written(tmp_path: Path) -> None:
    """A snapshot holds what reads see at its time."""
    now = 100
    path = str(tmp_path / "store")
    with MemoryEngine(retention="50ns", clock_ns=lambda: now) as engine:
        engine.write_series(CPU, [60, 90], [1.0, 2.0])
        now = 120
        engine.snapshot(path)
    with MemoryEngine(path, clock_ns=lambda: 100) as restored:
        assert restored.options.retention == 50
        assert restored.count() == 1


def test_other_options_than_stored_are_refused(tmp_path: Path) -> None:
    """Options given must be those of the file; those not given are taken from it."""
    written(tmp_path / "store")
    path = str(tmp_path / "store")
    for options in ({"duplicate_policy": "min"}, {"retention": "5m"}, {"integers": "float"}):
        with pytest.raises(StoreOptionError, match=next(iter(options))):
            MemoryEngine(path, **options).open()  # type: ignore[arg-type]  # none is clock_ns
    with MemoryEngine(path, integers="int", duplicate_policy="last", read_only=True) as engine:
        assert engine.count() == 7


def test_a_path_in_use_is_refused(engine: MemoryEngine, tmp_path: Path) -> None:
    """No snapshot writes over anything, a dangling link included."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link", "."):
        with pytest.raises(StorePathError, match="exists"):
            engine.snapshot(str(tmp_path / name))
    for name in ("missing/store", "nul\0"):
        with pytest.raises(StorePathError):
            engine.snapshot(str(tmp_path / name))
    assert (tmp_path / "file").read_text() == "mine"
    assert names_in(tmp_path) == ["file", "link"]


def test_a_path_taken_meanwhile_is_refused(
    engine: MemoryEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that appears while the snapshot is written keeps its name."""
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        (tmp_path / "store").write_text("mine")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    with pytest.raises(StorePathError, match="exists"):
        engine.snapshot(str(tmp_path / "store"))
    assert (tmp_path / "store").read_text() == "mine"
    assert names_in(tmp_path) == ["store"]


def test_a_full_disk_leaves_nothing_behind(
    engine: MemoryEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC is StorageFullError, and the unfinished file goes."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StorageFullError):
            engine.snapshot(str(tmp_path / "store"))
    assert names_in(tmp_path) == []
    engine.snapshot(str(tmp_path / "store"))


@pytest.mark.parametrize("path", ["missing", ".", "missing/store", "nul\0"])
def test_what_is_no_file_is_refused(tmp_path: Path, path: str) -> None:
    """A missing file, a folder: StorePathError that names it."""
    with pytest.raises(StorePathError, match="snapshot"):
        MemoryEngine(str(tmp_path / path)).open()


def test_snapshots_are_consistent_while_writers_go_on(tmp_path: Path) -> None:
    """All rows of a commit are in a snapshot, or none."""
    series = [Labels("m", n=str(number)) for number in range(30)]
    stop = threading.Event()
    with MemoryEngine() as engine:

        def write() -> None:
            moment = 10_000
            while not stop.is_set():
                moment += 1
                for late in (moment, 20_000 - moment):
                    engine.write_batch(
                        GroupedBatch(
                            series,
                            np.arange(len(series) + 1),
                            np.full(len(series), late),
                            np.full(len(series), float(late)),
                        )
                    )

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for number in range(10):
                engine.snapshot(str(tmp_path / str(number)))
        finally:
            stop.set()
            writer.join()
    for number in range(10):
        with MemoryEngine(str(tmp_path / str(number))) as restored:
            found = restored.query()
            assert len({tuple(batch.timestamps.tolist()) for batch in found}) <= 1
            assert all((batch.timestamps == batch.values).all() for batch in found)


# Damage


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    """No byte of a file can change without a typed error at open."""
    whole = written(tmp_path / "store")
    damaged = tmp_path / "damaged"
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        damaged.write_bytes(changed)
        error = FormatVersionError if position < 20 else CorruptionError
        with pytest.raises(error):
            MemoryEngine(str(damaged)).open()


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    """A file that ends early, or goes on, is damaged or none of ours."""
    whole = written(tmp_path / "store")
    damaged = tmp_path / "damaged"
    for length in range(len(whole)):
        damaged.write_bytes(whole[:length])
        error = FormatVersionError if length < 16 else CorruptionError
        with pytest.raises(error):
            MemoryEngine(str(damaged)).open()
    damaged.write_bytes(whole + b"\0")
    with pytest.raises(CorruptionError, match="follows the end"):
        MemoryEngine(str(damaged)).open()


def test_a_newer_format_is_named(tmp_path: Path) -> None:
    """A file of a later version says which, and which can be read."""
    whole = bytearray(written(tmp_path / "store"))
    whole[16:20] = struct.pack("<I", 2)
    (tmp_path / "newer").write_bytes(whole)
    with pytest.raises(FormatVersionError, match=r"format 2; .* reads 1"):
        MemoryEngine(str(tmp_path / "newer")).open()


def with_frames(path: Path, *frames: list[object]) -> str:
    """Write a file of frames whose checksums are right."""
    content = snapshot_file.MAGIC + struct.pack("<I", snapshot_file.VERSION)
    for number, (name, *items) in enumerate(frames):
        payload = msgpack.packb([name, number, *items])
        content += struct.pack("<II", len(payload), zlib.crc32(payload)) + payload
    path.write_bytes(content)
    return str(path)


def int64(*numbers: int) -> bytes:
    """Give a column as it stands in a file."""
    return np.array(numbers, "<i8").tobytes()


OPTIONS: dict[str, object] = {
    "duplicate_policy": "last",
    "retention": None,
    "min_timestamp": 1,
    "future_max": None,
    "integers": "float",
}
STORE: list[object] = ["store", OPTIONS, None]
LABELS = [{"a": "b"}]
SERIES: list[object] = ["series", 1, LABELS, int64(2), int64(1, 2), int64(0, 0)]
MARK: list[object] = ["mark", "p", 1, 0, 1, 1, 0, 0, {}]


def test_frames_made_by_hand_are_read(tmp_path: Path) -> None:
    """The frames that the next test damages are right as they are."""
    path = with_frames(tmp_path / "store", STORE, MARK, SERIES, ["end", 1, 2])
    with MemoryEngine(path) as engine:
        assert engine.count() == 2
        assert engine.high_water("p") == ProducerMark("p", 1)


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [["end", 0, 0]],
        [["store"], ["end", 0, 0]],
        [["store", 5, None], ["end", 0, 0]],
        [["store", {}, None], ["end", 0, 0]],
        [["store", {**OPTIONS, "duplicate_policy": "best"}, None], ["end", 0, 0]],
        [["store", {**OPTIONS, "retention": "long"}, None], ["end", 0, 0]],
        [["store", OPTIONS, "yesterday"], ["end", 0, 0]],
        [STORE, ["mark", 5, 1, 0, 1, 1, 0, 0, {}], ["end", 0, 0]],
        [STORE, ["mark", "p", "1", 0, 1, 1, 0, 0, {}], ["end", 0, 0]],
        [STORE, ["mark", "p", 1, 0], ["end", 0, 0]],
        [STORE, ["mark", "p", 1, 0, 3, 1, 2, 0, {}], ["indices", int64(1)], ["end", 0, 0]],
        [STORE, ["indices", int64(1)], ["end", 0, 0]],
        [STORE, ["end", 1, 0]],
        [STORE, SERIES, ["end", 1, 3]],
        [STORE, SERIES, MARK, ["end", 1, 2]],
        [STORE, SERIES, SERIES, ["end", 2, 4]],
        [STORE, ["series", 9, LABELS, int64(2), int64(1, 2), int64(0, 0)], ["end", 1, 2]],
        [STORE, ["series", 1, [{}], int64(2), int64(1, 2), int64(0, 0)], ["end", 1, 2]],
        [STORE, ["series", 1, [{"a": ""}], int64(2), int64(1, 2), int64(0, 0)], ["end", 1, 2]],
        [STORE, ["series", 1, [], int64(), int64(), int64()], ["end", 0, 0]],
        [STORE, ["series", 1, LABELS * 2, int64(1, 1), int64(1, 2), int64(0, 0)], ["end", 2, 2]],
        [STORE, ["series", 1, LABELS, int64(3), int64(1, 2), int64(0, 0)], ["end", 1, 2]],
        [STORE, ["series", 1, LABELS, int64(-1), int64(), int64()], ["end", 1, 0]],
        [STORE, ["series", 1, LABELS, int64(2), int64(2, 2), int64(0, 0)], ["end", 1, 2]],
        [STORE, ["series", 1, LABELS, int64(2), int64(1, 2), int64(0)], ["end", 1, 2]],
        [STORE, ["series", 1, LABELS, int64(2), int64(1, 2), b"0"], ["end", 1, 2]],
        [STORE, ["series", 1, LABELS, int64(2), int64(1, 2), [b"\1", b"\1"]], ["end", 1, 2]],
        [STORE, ["series", 3, LABELS, int64(2), int64(1, 2), int64(0, 0)], ["end", 1, 2]],
        [STORE, ["series", 3, LABELS, int64(2), int64(1, 2), [b"\1", 5]], ["end", 1, 2]],
        [
            STORE,
            SERIES,
            ["series", 1, [{"c": "d"}, *LABELS], int64(1, 1), int64(1, 3), int64(0, 0)],
            ["end", 3, 4],
        ],
        [
            STORE,
            SERIES,
            ["series", 1, [{"c": "d"}], int64(1), int64(1), int64(0)],
            ["series", 1, LABELS, int64(1), int64(3), int64(0)],
            ["end", 3, 4],
        ],
        [STORE, SERIES, ["series", 2, LABELS, int64(1), int64(3), int64(0)], ["end", 2, 3]],
    ],
)
def test_frames_that_make_no_sense_are_damage(tmp_path: Path, frames: list[list[object]]) -> None:
    """Right checksums do not make a store: every contradiction is a CorruptionError."""
    with pytest.raises(CorruptionError, match="store"):
        MemoryEngine(with_frames(tmp_path / "store", *frames)).open()


@pytest.mark.parametrize("declared", [1 << 20, snapshot_file.FRAME_BYTES_MAX + 1, 0xFFFF_FFFF])
def test_declared_sizes_are_checked_before_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, declared: int
) -> None:
    """No memory is taken for a length that the file cannot have."""
    path = Path(with_frames(tmp_path / "store"))
    path.write_bytes(path.read_bytes() + struct.pack("<II", declared, 0))

    def untouched(*_: object) -> Callable[..., object]:
        raise AssertionError("decoded")

    monkeypatch.setattr(msgpack, "unpackb", untouched)
    with pytest.raises(CorruptionError, match="declare"):
        MemoryEngine(str(path)).open()


def test_a_damaged_file_leaves_an_engine_that_is_not_open(tmp_path: Path) -> None:
    """After a failed open the engine is closed to use, and closing it is harmless."""
    whole = written(tmp_path / "store")
    (tmp_path / "damaged").write_bytes(whole[:-5])
    engine = MemoryEngine(str(tmp_path / "damaged"))
    with pytest.raises(StorageError):
        engine.open()
    engine.close()
