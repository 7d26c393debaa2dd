"""Damage: bits flipped and bytes lost in the files of a store.

Promised is: an answer is right or a typed error, whatever a file has become. `check()` on an
engine that is not open yet never dies of a file, and where it says nothing the damage lies
in what nobody reads. Opening a file that was not checked may die of LMDB where its own pages
are damaged; `check()` would have told, and such deaths are counted.
"""

from __future__ import annotations

import json
import random
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import lmdb

from tsengine import Labels, ProducerMark
from tsengine.backends.lmdb import LmdbEngine

VICTIM = Path(__file__).with_name("damage_victim.py")
PAGE = 4096

Damage: TypeAlias = tuple[list[tuple[int, str]], int | None]
"""What to write where, as hexadecimal text, and the length that the file is cut to."""


@dataclass(slots=True)
class Tally:
    """What came of damaged stores.

    Attributes:
        damages: how many.
        told: of how many `check()` told.
        right: how many had right answers only.
        refused: how many had some answer refused by a typed error.
        unseen: damages of many bytes for which reading left out something and did not see it;
            `check()` told. Never one of a single bit, and never a wrong value.
        killed: damages that killed a process that had not checked, and by which signal.
        broken: broken promises, in words.
    """

    damages: int = 0
    told: int = 0
    right: int = 0
    refused: int = 0
    unseen: int = 0
    killed: list[tuple[Damage, int]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def figures(self) -> dict[str, object]:
        """Give the counts by name."""
        return {
            "damages": self.damages,
            "told by check": self.told,
            "right": self.right,
            "refused": self.refused,
            "something left out without check": self.unseen,
            "killed without check": len(self.killed),
            "broken promises": len(self.broken),
        }


def make_store(folder: Path, *, is_dense: bool = False) -> Path:
    """Make a small closed store that has something in every table.

    A merged run with blocks of one series and of many, raw runs, all kinds of values, labels
    too long for a key, deletes that hide rows, removed series that wait for their sweep, marks.

    Args:
        folder: where.
        is_dense: whether the file is a copy without free pages.
    """
    store = folder / "store"
    many = [Labels({"__name__": "cpu", "host": f"h{number}"}) for number in range(12)]
    odd = Labels({"__name__": "cpu", "host": "h1", "note": "n" * 400})
    long = Labels({"host": "h2", "path": "/".join(["folder"] * 90)})
    gone = Labels({"host": "h3", "job": "gone"})
    folder.mkdir(exist_ok=True)
    with LmdbEngine(str(store), merging="manual", block_points=60) as engine:
        for commit in range(1, 5):
            for place, labels in enumerate(many):
                rows = range(1_000 * commit, 1_000 * commit + (90 if place == 4 else 8))
                engine.write((labels, row, row / 7 + place) for row in rows)
            engine.write((odd, 1_000 * commit + row, {"a": [row, "x"]}) for row in range(9))
            engine.write((long, 1_000 * commit + row, f"text {row}") for row in range(9))
            engine.write([(gone, commit, 1.5)])
            if commit == 2:
                engine.delete('{host="h5"}', 1_000, 1_004)
                engine.compact()
        engine.delete('{host="h6"}', 3_000, 3_004)
        engine.delete('{job="gone"}')
        for producer in ("agent", "p" * 600):
            engine.write_to_buffer((many[0], 9_000 + len(producer), 2.5))
            engine.flush_buffer(ProducerMark(producer, 7, 0))
        if is_dense:
            engine.snapshot(str(folder / "dense"))
    return folder / "dense" if is_dense else store


def run_damages(store: Path, damages: Sequence[Damage], work: Path, *, fault: str = "") -> Tally:
    """Damage copies of a store, check them, read them, and say what came of it.

    Args:
        store: made by `make_store`.
        damages: what to do to its data file, each to the intact one.
        work: a folder that the victim may fill.
        fault: a planted mistake, one that the victim knows.
    """
    (work / "store").mkdir(mode=0o700, parents=True)
    job = {"folder": str(store), "work": str(work / "store"), "damages": damages, "fault": fault}
    ended = subprocess.run(
        [sys.executable, str(VICTIM)],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=True,
        timeout=60 + len(damages),
    )
    tally = Tally(len(damages))
    results = [json.loads(line) for line in ended.stdout.splitlines()]
    seen = [result["index"] for result in results]
    assert seen == list(range(len(damages))), (len(damages), seen, ended.stderr)
    for result in results:
        _judge(damages[result["index"]], result, tally)
    return tally


def _is_flip(damage: Damage) -> bool:
    changes, length = damage
    return length is None and len(changes) == 1 and len(changes[0][1]) == 2  # one byte


def _named(damage: Damage) -> str:
    """Tell a damage in a line."""
    changes, length = damage
    told = [f"{offset}: {packed[:32]} ({len(packed) // 2} bytes)" for offset, packed in changes]
    return f"{told}, length {length}"


def _judge(damage: Damage, result: dict[str, Any], tally: Tally) -> None:
    told = result.get("told", "")
    tally.told += bool(told)
    signal = result.get("killed")
    if signal is not None:
        if result["phase"] == "check":
            tally.broken.append(f"{_named(damage)}: check() died of signal {signal}")
        elif not told:
            tally.broken.append(
                f"{_named(damage)}: reading died of {signal}, and check() said nothing"
            )
        else:
            tally.killed.append((damage, signal))
        return
    if result["wrong"]:
        tally.broken.append(
            f"{_named(damage)}: wrong is {result['wrong'][:4]}; check() said {told!r}"
        )
    elif result["refused"]:
        tally.refused += 1
        if not told:
            tally.broken.append(
                f"{_named(damage)}: {result['messages'][:2]}, and check() said nothing"
            )
    else:
        tally.right += 1


def flips(store: Path, count: int | None = None, *, seed: int = 0) -> Iterator[Damage]:
    """Give single flipped bits: all of them, or an evenly spread sample."""
    data = (store / "data.mdb").read_bytes()
    bits = 8 * len(data)
    step = 1 if count is None else max(bits // count, 1)
    chosen = random.Random(seed)
    for start in range(0, bits, step):
        bit = min(start + chosen.randrange(step), bits - 1)
        yield [(bit // 8, f"{data[bit // 8] ^ 1 << bit % 8:02x}")], None


def key_flips(store: Path, *, seed: int = 0) -> Iterator[Damage]:
    """Give for each block two single flipped bits of its key."""
    data = (store / "data.mdb").read_bytes()
    with lmdb.open(str(store), readonly=True, lock=False, max_dbs=16) as raw, raw.begin() as read:
        keys = list(read.cursor(raw.open_db(b"blocks", read, create=False)).iternext(values=False))
    chosen = random.Random(seed)
    for key in keys:
        for match in re.finditer(re.escape(key), data):
            bit = 8 * match.start() + chosen.randrange(8 * len(key))
            yield [(bit // 8, f"{data[bit // 8] ^ 1 << bit % 8:02x}")], None


def header_damages(store: Path) -> Iterator[Damage]:
    """Give for each page a header that says something else of its kind or of its bounds."""
    pages = (store / "data.mdb").stat().st_size // PAGE
    for page in range(2, pages):
        for offset, packed in ((10, "0100"), (12, "f00f"), (14, "0000"), (8, "ffff0200ffff")):
            yield [(PAGE * page + offset, packed)], None


def mutations(store: Path, count: int, *, seed: int) -> Iterator[Damage]:
    """Give files that are cut off, overwritten in places, or of pages that changed places."""
    data = (store / "data.mdb").read_bytes()
    pages = len(data) // PAGE
    chosen = random.Random(seed)
    for _ in range(count):
        kind = chosen.randrange(6)
        at = chosen.randrange(len(data))
        if kind == 0:
            yield [], at
        elif kind == 1:  # a sector that was never written
            yield [(at // 512 * 512, bytes(512).hex())], None
        elif kind == 2:
            noise = chosen.randbytes(chosen.randrange(1, 64))[: len(data) - at]
            yield [(at, noise.hex())], None
        elif kind == 3:  # a page that went to another place
            source, target = (PAGE * chosen.randrange(pages) for _ in range(2))
            yield [(target, data[source : source + PAGE].hex())], None
        elif kind == 4:  # several bits
            places = sorted(chosen.sample(range(len(data)), 5))
            flipped = [(place, data[place] ^ 1 << chosen.randrange(8)) for place in places]
            yield [(place, f"{byte:02x}") for place, byte in flipped], None
        else:  # an integer that says something extreme
            at = at // 8 * 8
            number = chosen.choice([0, 1, (1 << 63) - 1, (1 << 64) - 1, 1 << 40, len(data)])
            yield [(at, struct.pack("<Q", number).hex())], None


def torture(seed: int, seconds: float, folder: Path) -> dict[str, object]:
    """Flip bits and mutate files at random for about so many seconds.

    Raises:
        AssertionError: a promise was broken; names the seed and the damages.
    """
    stores = make_store(folder / "loose"), make_store(folder / "dense", is_dense=True)
    total = Tally()
    started = time.monotonic()
    chosen = random.Random(seed)
    turn = 0
    while time.monotonic() - started < seconds:
        turn += 1
        some = chosen.randrange(1 << 32)
        store = stores[turn % 2]
        damages = [
            *mutations(store, 100, seed=some),
            *flips(store, 300, seed=some),
            *key_flips(store, seed=some),
        ]
        tally = run_damages(store, damages, folder / f"work{turn}")
        total.damages += tally.damages
        total.told += tally.told
        total.right += tally.right
        total.refused += tally.refused
        total.unseen += tally.unseen
        total.killed += tally.killed
        total.broken += tally.broken
        assert not total.broken, f"seed {seed}: {summary(total.broken)}"
    return total.figures()


def summary(broken: Iterable[str]) -> str:
    """Give the first few of what broke, as lines."""
    return "\n".join(list(broken)[:10])
