"""Stores: opened for reading or for writing, and never made by mistake.

No URL gets into a message here: its location may hold a password.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import tsengine
from tsengine.engine import Engine
from tsengine.errors import NotOpenError, StoreInUseError, StorePathError
from tsengine.registry import unopened


def open_for_reading(url: str) -> Engine:
    """Open a store that is there, beside any writer of it.

    Raises:
        StorePathError: there is none.
        TsEngineError: as `tsengine.open`.
    """
    _check_presence(url)
    return tsengine.open(url, read_only=True)


def open_for_change(url: str, *, timeout: float = 0.0) -> Engine:
    """Open a store that is there, as its only writer.

    Args:
        url: which store.
        timeout: seconds to wait for another process that has it.

    Raises:
        StorePathError: there is none.
        TsEngineError: as `tsengine.open`.
    """
    _check_presence(url)
    return tsengine.open(url, timeout=timeout)


def open_or_create(url: str, *, timeout: float = 0.0) -> Engine:
    """Open a store as its only writer; make it where there is none."""
    return tsengine.open(url, timeout=timeout)


def check_store(url: str) -> None:
    """Verify a store: before it is opened, where its backend can and nobody writes to it.

    Raises:
        CorruptionError: names the first place found damaged.
        StorePathError: there is no store.
        TsEngineError: as `tsengine.open`.
    """
    _check_presence(url)
    engine = unopened(url, read_only=True)
    try:
        engine.check()
    except (NotOpenError, StoreInUseError):  # it is checked when it is open, beside its writer
        with engine.open():
            engine.check()


def count_rows(
    engine: Engine, selector: str | None, start: int | None, end: int | None
) -> tuple[int, int]:
    """Count the series with rows in a range, and these rows; where it can be from headers."""
    counts = engine.aggregate(selector, start, end, functions=["count"])
    return len(counts), sum(int(batch.values[0]) for batch in counts)


def _check_presence(url: str) -> None:
    """Refuse a folder that is not there: to look must not make a store."""
    scheme, _, rest = url.partition("://")
    location = unquote(rest.partition("?")[0])
    if scheme == "lmdb" and location and not Path(location).exists():
        raise StorePathError(
            f"there is no store at {location}\n"
            "hint: it is named by a URL, lmdb:///absolute/path or lmdb://relative/path"
        )
