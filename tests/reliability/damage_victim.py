"""Opens and reads damaged copies of a store, and tells what came of it; killed by some of them.

Started by `damage.py` with a job as JSON on standard input; writes a line of JSON per damage.
Each batch of damages runs in a forked child, so that one that kills it costs a fork.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tsengine import CorruptionError, FormatVersionError
from tsengine.backends.lmdb import LmdbEngine, catalogue, datafile, reading, runs, store, upkeep
from tsengine.backends.lmdb.files import WRITER_LOCK, Mark, boot
from tsengine.engine import Engine
from tsengine.model import SeriesBatch

BATCH = 200
SECONDS_MAX = 30
BYTES_MAX = 1 << 30

TYPED = (CorruptionError, FormatVersionError)


def questions(engine: Engine) -> Iterator[tuple[str, Callable[[Engine], object]]]:
    """Give what is asked of an intact store, by name; names of one series begin with `= `."""
    listed = list(engine.series())
    for labels in listed:
        yield f"= {labels.id}", lambda asked, one=labels: _digest(asked.query(one))
        yield f"= {labels.id} early", lambda asked, one=labels: _digest(asked.query(one, 1, 2_000))
    names = engine.label_names()
    yield "series", lambda asked: [labels.id for labels in asked.series()]
    yield "label names", lambda asked: asked.label_names()
    for name in names:
        yield f"values of {name}", lambda asked, one=name: asked.label_values(one)
        value = engine.label_values(name)[0]
        chosen = {name: value}
        yield f"with {name[:20]}", lambda asked, one=chosen: _digest(asked.query(one))
        yield f"named {name[:20]}", lambda asked, one=chosen: [x.id for x in asked.series(one)]
    yield "all", lambda asked: _digest(asked.scan())
    yield "some", lambda asked: _digest(asked.query('{host=~"h[1-3]"}', 500, 3_500))
    yield "others", lambda asked: _digest(asked.query('{host!="h1"}', 1_500))
    yield "latest", lambda asked: repr(asked.latest())
    yield "earliest", lambda asked: repr(asked.earliest())
    yield "count", lambda asked: asked.count()
    for producer in ("agent", "other", "p" * 600):
        yield f"mark {producer[:9]}", lambda asked, one=producer: repr(asked.high_water(one))
    yield "stats", lambda asked: [asked.stats().series, asked.stats().points]


def _digest(batches: Any) -> object:
    """Tell columns by a checksum, bit for bit."""
    batch: SeriesBatch
    told = []
    for batch in batches:
        values = np.asarray(batch.values)
        raw = repr(values.tolist()).encode() if values.dtype == object else values.tobytes()
        told.append([batch.labels.id, len(batch), zlib.crc32(batch.timestamps.tobytes() + raw)])
    return told


def answers(engine: Engine) -> dict[str, object]:
    """Ask everything of an intact store."""
    return {name: ask(engine) for name, ask in questions(engine)}


class Victim:
    """One store, damaged again and again.

    Args:
        job: `folder` has the intact store, `work` is where it is damaged, `damages` are
            `[[[offset, hexadecimal bytes], …], length]`, `fault` is a planted one.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.work = Path(job["work"])
        self.damages = job["damages"]
        folder = Path(job["folder"])
        self.data = (folder / "data.mdb").read_bytes()
        self.closed = (folder / WRITER_LOCK).read_bytes()
        with LmdbEngine(str(folder), read_only=True) as engine:
            self.asked = list(questions(engine))
            self.truth = {name: ask(engine) for name, ask in self.asked}
        _plant(job["fault"])

    def run(self, index: int, tell: Callable[..., None]) -> None:
        """Damage the store, check it, read it."""
        changes, length = self.damages[index]
        data = bytearray(self.data)
        for offset, packed in changes:
            data[offset : offset + len(packed) // 2] = bytes.fromhex(packed)
        if length is not None:
            del data[length:]
        self._lay_out(data, index)
        tell(index=index, phase="check")
        try:
            LmdbEngine(str(self.work)).check()
        except TYPED as error:
            told = f"{type(error).__name__}: {error}"
        else:
            told = ""
        self._lay_out(data, index)
        tell(index=index, phase="read", told=told)
        wrong, refused, messages = self._read(is_writer=index % 3 == 0)
        tell(index=index, phase="done", told=told, wrong=wrong, refused=refused, messages=messages)

    def _lay_out(self, data: bytearray, index: int) -> None:
        for name in ("lock.mdb", "data.mdb"):
            (self.work / name).unlink(missing_ok=True)
        (self.work / "data.mdb").write_bytes(data)
        # Every second one as a killed process leaves it: there the meta pages have no witness.
        line = self.closed if index % 2 else Mark(False, boot(), 0).pack()
        (self.work / WRITER_LOCK).write_bytes(line)

    def _read(self, *, is_writer: bool) -> tuple[list[str], list[str], list[str]]:
        wrong, refused, messages = [], [], set()
        engine = LmdbEngine(str(self.work), read_only=not is_writer, merging="manual")
        try:
            with engine:
                for name, ask in self.asked:
                    try:
                        if ask(engine) != self.truth[name]:
                            wrong.append(name)
                    except TYPED as error:
                        refused.append(name)
                        messages.add(str(error))
        except TYPED as error:
            refused.append("open")
            messages.add(str(error))
        return wrong, refused, sorted(messages)


def _plant(fault: str) -> None:
    """Make a mistake that the harness must see."""
    if fault == "blocks unverified":
        reading.verify = lambda key, block, header: None
    elif fault == "rows unverified":
        for module in (runs, store, catalogue, upkeep):
            module.unseal = lambda table, key, value: bytes(value[4:])
    elif fault == "structure unverified":
        datafile.lmdb.verify.verify = lambda path: []


def main() -> None:
    """Run all damages, in children that some of them kill."""
    victim = Victim(json.load(sys.stdin))
    index = 0
    while index < len(victim.damages):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            _run_batch(victim, index, writer)
        os.close(writer)
        last: dict[str, Any] = {}
        with os.fdopen(reader) as lines:
            for line in lines:
                last = json.loads(line)
                if last["phase"] == "done":
                    print(line, end="", flush=True)  # noqa: T201  # what the harness reads
        _, status = os.waitpid(child, 0)
        if status == 0:
            index += BATCH
            continue
        last["killed"] = -os.waitstatus_to_exitcode(status)
        print(json.dumps(last), flush=True)  # noqa: T201  # what the harness reads
        index = last["index"] + 1


def _run_batch(victim: Victim, first: int, writer: int) -> None:
    """Run a batch in a forked child, which ends here."""
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES_MAX, BYTES_MAX))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def tell(**what: object) -> None:
        os.write(writer, json.dumps(what).encode() + b"\n")

    for index in range(first, min(first + BATCH, len(victim.damages))):
        signal.alarm(SECONDS_MAX)  # ends the child, which then counts as killed
        try:
            victim.run(index, tell)
        except BaseException as error:  # noqa: BLE001  # whatever it is, the harness is to know
            wrong = [f"{type(error).__name__}: {error}"]
            tell(index=index, phase="done", told="", wrong=wrong, refused=[], messages=[])
    os._exit(0)


if __name__ == "__main__":
    main()
