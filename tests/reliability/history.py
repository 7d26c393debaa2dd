"""History: what is done to a store that is killed, and what may be left of it then.

The history of a store is a function of numbers: operation n is always the same write or delete,
so `expected(n)` says what a store holds after the first n of them, without having been there.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from tsengine.engine import Engine
from tsengine.model import Labels, ProducerMark, Value

STRIDE: Final = 1_000
"""Nanoseconds between operations."""

PRODUCER: Final = "victim"
MANY_ROWS: Final = 400
CPU_A: Final = Labels("cpu", host="a")
CPU_B: Final = Labels("cpu", host="b")
REQUESTS: Final = Labels("requests", host="a")
EVENTS: Final = Labels("events")

BALLAST: Final = Labels("ballast")
"""Makes a store so large that its copy takes several writes; no part of its history."""

BALLAST_ROWS: Final = 1 << 16


def points(number: int) -> list[tuple[Labels, int, Value]]:
    """Give the points of a write: series of three kinds, and now and then new and late ones."""
    start = number * STRIDE
    rows = MANY_ROWS if number % 9 == 3 else 3
    made: list[tuple[Labels, int, Value]] = [
        (CPU_A, start + row, number + row / 1024) for row in range(rows)
    ]
    for row in range(3):
        made.append((CPU_B, start + row, -float(number)))
        made.append((REQUESTS, start + row, number))
        made.append((EVENTS, start + row, {"number": number, "row": row}))
    if number % 4 == 0:
        made.append((_new_series(number), start, float(number)))
    if number % 5 == 0 and number > 5:
        made.append((CPU_A, start - 3 * STRIDE, float(-number)))  # late, over an older point
    return made


def deletion(number: int) -> tuple[Labels, int | None, int | None] | None:
    """Give what operation `number` deletes: rows of a range, or series; None for a write."""
    if number % 13 == 12:
        return _new_series((number - 4) // 4 * 4), None, None
    if number % 7 == 6:
        return CPU_B, (number - 4) * STRIDE, (number - 2) * STRIDE
    return None


def _new_series(number: int) -> Labels:
    return Labels("new", number=str(number))


def perform(engine: Engine, number: int) -> None:
    """Do operation `number`."""
    gone = deletion(number)
    if gone is not None:
        engine.delete(*gone)
        return
    for point in points(number):
        engine.write_to_buffer(point)
    engine.flush_buffer(ProducerMark(PRODUCER, number))


@dataclass
class Contents:
    """What a store holds.

    Attributes:
        rows: by series, time and value.
        listed: IDs of the series that are listed, also those without rows.
        mark: sequence of the producer's mark, 0 for none.
    """

    rows: dict[str, dict[int, Value]] = field(default_factory=dict)
    listed: set[str] = field(default_factory=set)
    mark: int = 0


def expected(count: int) -> Contents:
    """Say what a store holds after the operations 1 to `count`."""
    contents = Contents()
    for number in range(1, count + 1):
        gone = deletion(number)
        if gone is None:
            for labels, timestamp, value in points(number):
                contents.rows.setdefault(labels.id, {})[timestamp] = value
                contents.listed.add(labels.id)
            contents.mark = number
            continue
        labels, start, end = gone
        if start is None or end is None:
            contents.rows.pop(labels.id, None)
            contents.listed.discard(labels.id)
        elif labels.id in contents.rows:
            kept = {t: v for t, v in contents.rows[labels.id].items() if not start <= t < end}
            contents.rows[labels.id] = kept
    contents.rows = {series: rows for series, rows in contents.rows.items() if rows}
    return contents


def contents_of(engine: Engine) -> Contents:
    """Read everything."""
    mark = engine.high_water(PRODUCER)
    return Contents(
        {
            batch.labels.id: dict(
                zip(batch.timestamps.tolist(), batch.values.tolist(), strict=True)
            )
            for batch in engine.query()
            if batch.labels != BALLAST
        },
        {labels.id for labels in engine.series() if labels != BALLAST},
        0 if mark is None else mark.sequence,
    )


def survivors(engine: Engine, allowed: range) -> int:
    """Give the number of operations that a store holds the outcome of.

    Raises:
        AssertionError: it is no moment of its history that may be.
    """
    held = contents_of(engine)
    for count in reversed(allowed):
        if held == expected(count):
            return count
    told = f"acknowledged {allowed.start}, begun {allowed.stop - 1}, mark {held.mark}"
    raise AssertionError(f"{told}; {'; '.join(differences(held, expected(allowed.start)))}")


def differences(held: Contents, wanted: Contents) -> Iterator[str]:
    """Say what differs, a line a series."""
    for series in sorted(held.rows.keys() | wanted.rows.keys()):
        mine, theirs = held.rows.get(series, {}), wanted.rows.get(series, {})
        if mine != theirs:
            lost = sorted(theirs.keys() - mine.keys())
            more = sorted(mine.keys() - theirs.keys())
            other = sorted(t for t in mine.keys() & theirs.keys() if mine[t] != theirs[t])
            yield f"{series}: lost {lost[:9]}, more {more[:9]}, changed {other[:9]}"
    if held.listed != wanted.listed:
        yield f"listed otherwise: {sorted(held.listed ^ wanted.listed)}"
    if held.mark != wanted.mark:
        yield f"mark {held.mark} for {wanted.mark}"


class Told(ctypes.Structure):
    """What a victim tells: numbers in a file mapped into its memory and the harness's.

    To tell is to write to memory that outlives the victim. It costs no system call, so that
    what is killed is the store and never the telling.
    """

    @classmethod
    def at(cls, path: str | Path) -> Self:
        """Map a file, which is made where missing."""
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(file, ctypes.sizeof(cls))
            return cls.from_buffer(mmap.mmap(file, ctypes.sizeof(cls)))
        finally:
            os.close(file)

    def clear(self) -> None:
        """Begin anew."""
        ctypes.memset(ctypes.addressof(self), 0, ctypes.sizeof(self))


class Journal(Told):
    """What a victim tells of its history.

    Attributes:
        began: the last operation that was begun.
        acknowledged: the last one that returned.
        opened: whether opening returned.
        done: whether the work ended by itself.
    """

    began: int
    acknowledged: int
    opened: bool
    done: bool

    _fields_ = (
        ("began", ctypes.c_uint64),
        ("acknowledged", ctypes.c_uint64),
        ("opened", ctypes.c_bool),
        ("done", ctypes.c_bool),
    )
