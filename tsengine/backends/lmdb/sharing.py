"""Sharing: one open store per path and process, whatever the number of engines.

LMDB must not be opened twice in one process: its file locks are the process's.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tsengine.backends.lmdb.store import Settings, Store
from tsengine.backends.lmdb.upkeep import Upkeep
from tsengine.errors import StoreOptionError
from tsengine.options import StoreOptions


@dataclass(slots=True)
class Shared:
    """A store, its upkeep, and how many engines of this process use it."""

    store: Store
    upkeep: Upkeep
    users: int = 1


_open_stores: dict[tuple[int, int], Shared] = {}
_open_stores_lock = threading.Lock()
"""Guards `_open_stores`: LMDB must not be opened twice in one process."""


def acquire(
    path: Path,
    settings: Settings,
    options: StoreOptions,
    given: frozenset[str],
    clock_ns: Callable[[], int],
) -> Shared:
    """Open a store, or share the one that this process has open already.

    Raises:
        StoreOptionError: it is open here with other settings or options.
    """
    with _open_stores_lock:
        with contextlib.suppress(OSError):  # what is wrong with the path the store tells
            shared_here = _open_stores.get(_identity(path))
            if shared_here is not None:
                _check_same(shared_here.store, settings, options, given)
                shared_here.users += 1
                return shared_here
        store = Store(path, settings, options, given, clock_ns)
        try:
            opened = Shared(store, Upkeep(store))
            _open_stores[_identity(path)] = opened
        except BaseException:
            store.close()
            raise
        return opened


def release(shared: Shared) -> None:
    """Give a store back; the last one closes it, before anybody can open it again."""
    with _open_stores_lock:
        shared.users -= 1
        if not shared.users:
            shared.upkeep.close()
            shared.store.close()
            for key in [key for key, one in _open_stores.items() if one is shared]:
                del _open_stores[key]


def _let_go_of_parents() -> None:
    """In a forked child: the stores are the parent's, and so are the locks."""
    global _open_stores_lock  # noqa: PLW0603  # another thread may have held it at the fork
    _open_stores_lock = threading.Lock()
    for shared in _open_stores.values():
        shared.store.environment.abandon()
    _open_stores.clear()


os.register_at_fork(after_in_child=_let_go_of_parents)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _check_same(
    store: Store, settings: Settings, options: StoreOptions, given: frozenset[str]
) -> None:
    path = store.environment.path
    if store.settings.read_only and not settings.read_only:
        raise StoreOptionError(
            f"{path} is open with read_only=True in this process; close it before writing"
        )
    if not settings.read_only and replace(settings, read_only=False) != store.settings:
        raise StoreOptionError(
            f"{path} is open in this process with {store.settings}, not {settings}"
        )
    store.options.check_agreement(options, given, path)
