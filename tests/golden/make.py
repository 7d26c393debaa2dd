"""Makes the golden stores: what this version of the formats looks like on disk.

    python tests/golden/make.py

Each store is made by the operations below and read back; what was read goes into a JSON file
beside it, values as hexadecimal MessagePack, so bit for bit. The stores are committed once for
each version of a format and never made anew for it: they are what later versions have to read.
Run this after a format version was raised, and before it is released as often as it changes.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tsengine import DataPoint, Labels, ProducerMark
from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.lmdb.layout import FORMAT_VERSION
from tsengine.backends.memory import MemoryEngine
from tsengine.backends.memory.snapshot_file import VERSION
from tsengine.duplicates import DuplicatePolicy
from tsengine.engine import Capability, Engine
from tsengine.model import Value, pack_object

FOLDER = Path(__file__).parent
NOW_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000
RETENTION_SECONDS = 1_000
PRODUCERS = ("agent", "producer " * 80)

CPU = [Labels("cpu", host=f"host-{number}", region="eu") for number in range(8)]
LONG = Labels("request", path="/".join(["folder"] * 90), **{"label " * 30: "value"})
UNICODE = Labels({"__name__": "Größe", "ort": 'Zürich "West"\n', "空": "🙂"})
REMOVED = Labels("cpu", host="removed")

FLOATS = (
    *(0.1, -0.0, 5e-324, -1.7976931348623157e308, float("inf"), float("-inf")),
    struct.unpack("<d", bytes.fromhex("010000000000f87f"))[0],  # NaN with a payload
    *(number / 7 for number in range(60)),
)
INTS = (0, -1, 2**63 - 1, -(2**63), *range(10**15, 10**15 + 40))
NESTED: dict[str, object] = {"a": [1, 2.5, None, True], "b": {"c": b"bytes"}}
OBJECTS: tuple[Value, ...] = (
    "text",
    "",
    NESTED,
    [],
    {},
    True,
    *({"row": row, "what": "x" * row} for row in range(30)),
)


def clock() -> int:
    """Tell the time at which golden stores were made, and at which they are read."""
    return NOW_NS


def contents(engine: Engine) -> dict[str, object]:
    """Read everything that a store holds."""
    told: dict[str, object] = {
        "options": engine.options.to_dict(),
        "series": [
            [dict(batch.labels), batch.timestamps.tolist(), list(map(_hex, batch.values.tolist()))]
            for batch in engine.query()
        ],
        "listed": [labels.id for labels in engine.series()],
        "label names": engine.label_names(),
        "hosts": engine.label_values("host"),
        "latest": [
            [point.labels.id, point.timestamp, _hex(point.value)] for point in engine.latest()
        ],
        "some": [labels.id for labels in engine.series('{host=~"host-[1-3]"}')],
    }
    if Capability.PRODUCER_MARKS in engine.capabilities:
        told["marks"] = [engine.high_water(producer) for producer in PRODUCERS]
    # As it comes back from JSON.
    loaded: dict[str, object] = json.loads(json.dumps(told))
    return loaded


def _hex(value: object) -> str:
    return pack_object(value).hex()


def fill(engine: Engine) -> None:
    """Write something of everything, in several commits, with late rows and deletes."""
    start = NOW_NS - 500 * SECOND_NS

    def column(labels: Labels, values: tuple[Value, ...], first: int) -> Iterator[DataPoint]:
        for row, value in enumerate(values):
            yield DataPoint(labels, start + (first + row) * SECOND_NS, value)

    for part, labels in enumerate(CPU):
        engine.write(column(labels, FLOATS[: 67 - 5 * part], 0))
    engine.write([*column(LONG, OBJECTS, 0), *column(REMOVED, FLOATS[:3], 0)])
    engine.compact()  # what was written so far is one packed run
    engine.write([*column(UNICODE, OBJECTS[:3], 5)])
    engine.write(column(CPU[0], FLOATS[10:20], 55))  # late, and over rows that are there
    engine.write(DataPoint(CPU[1], start - (row % 7) * 1_003, float(row)) for row in range(20))
    engine.delete({"host": "host-2"}, start + 10 * SECOND_NS, start + 20 * SECOND_NS)
    engine.write(column(CPU[2], FLOATS[:5], 12))
    engine.delete({"host": "removed"})
    for place, producer in enumerate(PRODUCERS):
        engine.write_to_buffer(DataPoint(CPU[3], start + (300 + place) * SECOND_NS, 2.5))
        engine.flush_buffer(ProducerMark(producer, 2**40 + place, place))


def fill_integers(engine: Engine) -> None:
    """Write integers: in one packed run and a raw one."""
    start = NOW_NS - 500 * SECOND_NS
    for part in (INTS, INTS[:5]):
        engine.write(
            DataPoint(CPU[0], start + row * SECOND_NS, value) for row, value in enumerate(part)
        )
        if part is INTS:
            engine.compact()


def fill_duplicates(engine: Engine) -> None:
    """Write timestamps three times over three runs, which the policy folds when they are read."""
    start = NOW_NS - 500 * SECOND_NS
    step = 100 if engine.options.duplicate_policy is DuplicatePolicy.ERROR else 0
    for turn in range(3):
        for labels in CPU[:3]:
            engine.write(
                DataPoint(
                    labels, start + (step * turn + row) * SECOND_NS, (row * 7 + turn * 5) % 11.5
                )
                for row in range(30)
            )
        if not turn:
            engine.compact()


def fill_expiring(engine: Engine) -> None:
    """Write rows of which retention hides some at `NOW_NS`, as they were written before."""
    engine.write(
        DataPoint(CPU[0], NOW_NS - (RETENTION_SECONDS - row) * SECOND_NS + 1, float(row))
        for row in range(40)
    )


GOLDEN: dict[str, tuple[dict[str, Any], Callable[[Engine], None]]] = {
    "everything": ({"min_timestamp": -(2**62)}, fill),
    "integers": ({"integers": "int"}, fill_integers),
    "retention": ({"retention": f"{RETENTION_SECONDS}s"}, fill_expiring),
    **{
        f"policy-{policy.value}": ({"duplicate_policy": policy.value}, fill_duplicates)
        for policy in DuplicatePolicy
    },
}
"""By name: options of the store, and what fills it."""


def lmdb_folder(name: str) -> Path:
    """Give the folder of a golden LMDB store."""
    return FOLDER / f"lmdb-v{FORMAT_VERSION}" / name


def memory_file() -> Path:
    """Give the golden snapshot of a memory store."""
    return FOLDER / f"memory-v{VERSION}" / "everything.snapshot"


def main() -> None:
    """Make them all."""
    scratch = FOLDER / "scratch"
    for name, (options, fill_store) in GOLDEN.items():
        target = lmdb_folder(name)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        with LmdbEngine(str(scratch), clock_ns=clock, merging="manual", **options) as engine:
            fill_store(engine)
            told = contents(engine)
            engine.snapshot(str(FOLDER / "copy"))  # without free pages, so smaller
        shutil.move(FOLDER / "copy" / "data.mdb", target / "data.mdb")
        shutil.rmtree(FOLDER / "copy")
        shutil.rmtree(scratch)
        _write(target / "contents.json", told)
    memory_file().parent.mkdir(exist_ok=True)
    memory_file().unlink(missing_ok=True)
    options, fill_store = GOLDEN["everything"]
    with MemoryEngine(clock_ns=clock, **options) as engine:
        fill_store(engine)
        told = contents(engine)
        engine.snapshot(str(memory_file()))
    _write(memory_file().with_name("contents.json"), told)


def _write(path: Path, told: dict[str, object]) -> None:
    path.write_text(json.dumps(told, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
