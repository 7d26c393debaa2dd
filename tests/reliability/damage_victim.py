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
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import lmdb.verify
import numpy as np

from tsengine import CorruptionError, FormatVersionError
from tsengine.backends.lmdb import LmdbEngine, catalogue, marks, reading, runs, store, sweeping
from tsengine.backends.lmdb.files import WRITER_LOCK, Mark, boot
from tsengine.engine import Engine
from tsengine.model import SeriesBatch
from tsengine.selectors import SelectorLike

BATCH = 200
SECONDS_MAX = 30
BYTES_MAX = 1 << 30

TYPED = (CorruptionError, FormatVersionError)


Question: TypeAlias = tuple[str, Callable[[Engine], object]]


def questions(engine: Engine) -> Iterator[Question]:
    """Give what is asked of an intact store, by name; names of one series begin with `= `."""
    listed = list(engine.series())
    for labels in listed:
        yield f"= {labels.id}", partial(_rows, labels)
        yield f"= {labels.id} early", partial(_rows, labels, start=1, end=2_000)
    names = engine.label_names()
    yield "series", partial(_listed, None)
    yield "label names", lambda asked: asked.label_names()
    for name in names:
        yield f"values of {name}", partial(_values, name)
        value = engine.label_values(name)[0]
        chosen = {name: value}
        yield f"with {name}", partial(_rows, chosen)
        yield f"listed with {name}", partial(_listed, chosen)
    yield "all", lambda asked: _digest(asked.scan())
    yield "some", partial(_rows, '{host=~"h[1-3]"}', start=500, end=3_500)
    yield "others", partial(_rows, '{host!="h1"}', start=1_500)
    yield "latest", lambda asked: repr(asked.latest())
    yield "earliest", lambda asked: repr(asked.earliest())
    yield "count", lambda asked: asked.count()
    for producer in ("agent", "other", "p" * 600):
        yield f"mark {producer}", partial(_mark, producer)
    yield "stats", lambda asked: [asked.stats().series, asked.stats().points]


def _rows(
    selector: SelectorLike, engine: Engine, *, start: int | None = None, end: int | None = None
) -> object:
    return _digest(engine.query(selector, start, end))


def _listed(selector: SelectorLike, engine: Engine) -> object:
    return [labels.id for labels in engine.series(selector)]


def _values(name: str, engine: Engine) -> object:
    return engine.label_values(name)


def _mark(producer: str, engine: Engine) -> object:
    return repr(engine.high_water(producer))


def _digest(batches: Iterable[SeriesBatch]) -> object:
    """Tell columns by a checksum, bit for bit."""
    told = []
    for batch in batches:
        values = np.asarray(batch.values)
        raw = repr(values.tolist()).encode() if values.dtype == object else values.tobytes()
        told.append([batch.labels.id, len(batch), zlib.crc32(batch.timestamps.tobytes() + raw)])
    return told


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
        tell(index=index, phase="done", told=told, **self._read(is_writer=index % 3 == 0))

    def _lay_out(self, data: bytearray, index: int) -> None:
        for name in ("lock.mdb", "data.mdb"):
            (self.work / name).unlink(missing_ok=True)
        (self.work / "data.mdb").write_bytes(data)
        # Every second one as a killed process leaves it: there the meta pages have no witness.
        line = self.closed if index % 2 else Mark(False, boot(), 0).pack()
        (self.work / WRITER_LOCK).write_bytes(line)

    def _read(self, *, is_writer: bool) -> dict[str, list[str]]:
        wrong: list[str] = []
        missing: list[str] = []
        refused: list[str] = []
        messages: set[str] = set()
        engine = LmdbEngine(str(self.work), read_only=not is_writer, merging="manual")
        try:
            with engine:
                for name, ask in self.asked:
                    try:
                        answer = ask(engine)
                        if answer != self.truth[name]:
                            (missing if _is_less(answer, self.truth[name]) else wrong).append(name)
                    except TYPED as error:
                        refused.append(name)
                        messages.add(str(error))
        except TYPED as error:
            refused.append("open")
            messages.add(str(error))
        return {
            "wrong": wrong,
            "missing": missing,
            "refused": refused,
            "messages": sorted(messages),
        }


def _is_less(answer: object, truth: object) -> bool:
    """Whether an answer leaves something out and has nothing that is not so."""
    if isinstance(answer, list) and isinstance(truth, list):
        return all(item in truth for item in answer)
    return answer == "None" or (
        isinstance(answer, int) and isinstance(truth, int) and answer < truth
    )


def _plant(fault: str) -> None:
    """Make a mistake that the harness must see."""
    if fault == "blocks unverified":
        vars(reading)["verify"] = lambda key, block, header: None
    elif fault == "rows unverified":
        for module in (runs, store, catalogue, marks, sweeping):
            vars(module)["unseal"] = lambda table, key, value: bytes(value[4:])
    elif fault == "places unverified":
        reading.BlockReader._walk = _walk_blindly  # type: ignore[method-assign]  # planted
    elif fault == "structure unverified":
        vars(lmdb.verify)["verify"] = lambda path: []


def _walk_blindly(
    self: reading.BlockReader, cursor: lmdb.Cursor, run: runs.Run, found: bool, start: bytes
) -> Iterator[bytes]:
    while found and cursor.key()[:8] == start[:8]:
        yield bytes(cursor.key())
        found = cursor.next()


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
        if not last or last["phase"] == "done":  # it died before it told of the next one
            last = {"index": last.get("index", index - 1) + 1, "phase": "check"}
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
        # Ends a child that hangs, which then counts as killed. By the time that it computes:
        # machines stop and go on.
        signal.setitimer(signal.ITIMER_PROF, SECONDS_MAX)
        try:
            victim.run(index, tell)
        except BaseException as error:  # noqa: BLE001  # whatever it is, the harness is to know
            wrong = ["".join(traceback.format_exception(error)[-6:])]
            found = {"wrong": wrong, "missing": [], "refused": [], "messages": []}
            tell(index=index, phase="done", told="", **found)
    os._exit(0)


if __name__ == "__main__":
    main()
