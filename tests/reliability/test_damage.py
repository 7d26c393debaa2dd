"""Whatever becomes of a store's files, an answer is right or a typed error, and nobody dies."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import msgpack
import numpy as np
import pytest

from tests.reliability.damage import (
    Damage,
    flips,
    header_damages,
    key_flips,
    make_store,
    mutations,
    run_damages,
    summary,
)
from tsengine import CorruptionError, FormatVersionError, Labels
from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.lmdb.layout import RETIRED, pack_u64, seal
from tsengine.backends.lmdb.runs import Retired
from tsengine.backends.memory import MemoryEngine
from tsengine.model import unpack_object

FLIPS = 250
MUTATIONS = 120
"""Of each, what CI tries; `torture` goes on for as long as it is given."""

BLOCKS_VICTIM = Path(__file__).with_name("blocks_victim.py")
GROWN_MAX = 256 << 20


def run_blocks(seed: int, count: int, fault: str = "") -> dict[str, object]:
    """Tamper with blocks in a process of its own."""
    ended = subprocess.run(
        [sys.executable, str(BLOCKS_VICTIM), str(seed), str(count), fault],
        capture_output=True,
        text=True,
        timeout=110,
        check=True,
    )
    told: dict[str, object] = json.loads(ended.stdout)
    return told


def test_flipped_bits_are_told_or_harmless(tmp_path: Path) -> None:
    """With any bit flipped, check() tells or all reads are right; reads alone are never wrong."""
    store = make_store(tmp_path, is_dense=True)
    damages = [*flips(store, FLIPS), *key_flips(store)]
    tally = run_damages(store, damages, tmp_path / "work")
    assert not tally.broken, summary(tally.broken)
    assert tally.told > FLIPS / 4
    assert tally.right
    print(tally.figures())  # noqa: T201  # seen with -s and in failures


def test_mutated_files_are_told_or_harmless(tmp_path: Path) -> None:
    """Files cut off, overwritten or with pages in other places are told, and never believed."""
    store = make_store(tmp_path)
    damages = [*mutations(store, MUTATIONS, seed=3), *list(header_damages(store))[::3]]
    tally = run_damages(store, damages, tmp_path / "work")
    assert not tally.broken, summary(tally.broken)
    assert tally.told > MUTATIONS / 4
    print(tally.figures())  # noqa: T201  # seen with -s and in failures


@pytest.mark.parametrize(
    ("fault", "damages"),
    [
        ("blocks unverified", partial(flips, count=60)),
        ("rows unverified", partial(flips, count=60)),
        ("places unverified", key_flips),
        ("structure unverified", header_damages),
    ],
)
def test_a_reader_that_believes_is_caught(
    tmp_path: Path, fault: str, damages: Callable[[Path], Iterable[Damage]]
) -> None:
    """The harness sees it where one of the checks is left out."""
    store = make_store(tmp_path, is_dense=True)
    tally = run_damages(store, list(damages(store)), tmp_path / "work", fault=fault)
    assert tally.broken


def test_tampered_blocks_are_refused_or_decode() -> None:
    """10,000 blocks tampered with behind right checksums: CorruptionError, in bounded memory."""
    told = run_blocks(1, 10_000)
    assert told["broken"] == []
    assert int(str(told["refused"])) > 3_000
    assert int(str(told["grown"])) < GROWN_MAX


@pytest.mark.parametrize("fault", ["undecodable untyped", "uncapped"])
def test_a_decoder_that_believes_is_caught(fault: str) -> None:
    """The harness sees errors that are not ours, and memory that a header asks for."""
    assert run_blocks(1, 1_000, fault)["broken"]


def test_a_damaged_block_names_itself_and_leaves_other_series_alone(tmp_path: Path) -> None:
    """The error names run, series and labels; series of other blocks read as before."""
    one, two = Labels("cpu", host="one"), Labels("cpu", host="two")
    path = tmp_path / "store"
    with LmdbEngine(str(path), merging="manual", block_points=64) as engine:
        for labels, seed in ((one, 1), (two, 2)):
            values = np.random.default_rng(seed).random(64).tolist()
            engine.write((labels, 1_000 + row, value) for row, value in enumerate(values))
    data = (path / "data.mdb").read_bytes()
    some = np.random.default_rng(1).random(64)[10:20].tobytes()
    assert some in data
    (path / "data.mdb").write_bytes(data.replace(some, some[:-1] + b"x"))
    with pytest.raises(CorruptionError, match='host="one"'):
        LmdbEngine(str(path)).check()
    with LmdbEngine(str(path), read_only=True) as engine:
        with pytest.raises(CorruptionError, match=r'block of run \d+, .*cpu\{host="one"\}'):
            engine.query(one)
        assert engine.query(two).rows == 64


def test_bombs_in_rows_are_refused() -> None:
    """Rows of millions of empty containers behind right checksums are refused in little memory."""
    key = pack_u64(1)
    for bomb in (
        msgpack.packb([{}] * 1_000_000),
        msgpack.packb([[[{}] * 1_000] * 1_000, 1]),
        b"\xdd\x7f\xff\xff\xff" + b"\x80" * 100,
        b"\x91" * 100_000 + b"\x80",
        msgpack.packb([msgpack.ExtType(5, b"x" * 100), 1]),
    ):
        with pytest.raises(CorruptionError):
            Retired.unpack(1, seal(RETIRED, key, bomb))


def test_bombs_in_objects_are_refused() -> None:
    """An object larger or deeper than any that is written is refused."""
    for bomb in (
        b"\xdd\x00\x98\x96\x80" + b"\x80" * 10_000_000,
        b"\x91" * 60_000 + b"\xc0",
        b"\xc1",
    ):
        with pytest.raises(CorruptionError):
            unpack_object(bomb)


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A snapshot of a memory store with every kind of value."""
    with MemoryEngine() as engine:
        for row in range(1, 20):
            engine.write([(Labels("a", x=str(row % 3)), row, 1.5 * row)])
            engine.write([(Labels("o"), row, {"at": [row]})])
        engine.snapshot(str(tmp_path / "intact"))
    return tmp_path / "intact"


def _told(path: Path) -> object:
    """Say what a snapshot holds, or None where it is refused."""
    try:
        with MemoryEngine(str(path)) as engine:
            return [
                (batch.labels.id, batch.timestamps.tolist(), batch.values.tolist())
                for batch in engine.query()
            ]
    except (CorruptionError, FormatVersionError):
        return None


def test_flipped_bits_of_a_snapshot_are_refused(snapshot: Path, tmp_path: Path) -> None:
    """A single flipped bit of a snapshot file of the memory backend, wherever, is refused."""
    whole = snapshot.read_bytes()
    assert _told(snapshot) is not None
    for bit in range(0, 8 * len(whole), 7):  # all bits of a byte, by and by
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "damaged").write_bytes(damaged)
        assert _told(tmp_path / "damaged") is None


def test_mutated_snapshots_are_refused(snapshot: Path, tmp_path: Path) -> None:
    """Snapshots cut off, or with stretches lost, doubled or overwritten, are refused."""
    whole = snapshot.read_bytes()
    chosen = random.Random(1)
    for _ in range(300):
        first, second = sorted(chosen.randrange(len(whole)) for _ in range(2))
        noise = os.urandom(8)
        damaged = chosen.choice(
            [
                whole[:first],
                whole[:first] + whole[second + 1 :],
                whole[: second + 1] + whole[first:],
                whole[:first] + noise + whole[first + 8 :],
            ]
        )
        (tmp_path / "damaged").write_bytes(damaged)
        assert damaged == whole or _told(tmp_path / "damaged") is None


def test_bombs_in_a_snapshot_are_refused(snapshot: Path, tmp_path: Path) -> None:
    """Frames of millions of empty containers behind right checksums are refused."""
    whole = snapshot.read_bytes()
    for payload in (
        msgpack.packb(["store", 0, [{}] * 5_000_000, None]),
        msgpack.packb(["store", 0, {}, [[]] * 5_000_000]),
        msgpack.packb(["series", 0, 1, [{"a": "b"}] * 1_000_000, b"", b"", b""]),
    ):
        frame = len(payload).to_bytes(4, "little") + zlib.crc32(payload).to_bytes(4, "little")
        (tmp_path / "bomb").write_bytes(whole[:20] + frame + payload)
        assert _told(tmp_path / "bomb") is None
