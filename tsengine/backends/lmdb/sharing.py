"""Sharing: one open store per path and process, whatever the number of engines.

LMDB must not be opened twice in one process: its file locks are the process's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from tsengine.backends.lmdb.files import open_directory
from tsengine.backends.lmdb.store import Settings, Store
from tsengine.backends.lmdb.upkeep import Upkeep
from tsengine.errors import StoreOptionError
from tsengine.options import StoreOptions

_Identity: TypeAlias = tuple[int, int]


@dataclass(slots=True)
class Shared:
    """A store, its upkeep, and how many engines of this process use it.

    Attributes:
        store: the open store.
        upkeep: its upkeep.
        directory: a descriptor of its directory. While that is open no other directory can
            have the same device and inode, by which stores are known here.
        users: how many engines.
    """

    store: Store
    upkeep: Upkeep
    directory: int
    users: int = 1


_open_stores: dict[_Identity, Shared] = {}
_changing: dict[_Identity, object] = {}
"""Stores that some thread is opening or closing, and what it knows that by; others wait for it."""
_changed = threading.Condition()
"""Guards both: LMDB must not be opened twice in one process. Held for moments only: to open a
large store, and to close one that is being compacted, take longer."""


def acquire(
    path: Path,
    settings: Settings,
    options: StoreOptions,
    given: frozenset[str],
    clock_ns: Callable[[], int],
    *,
    verify: bool = False,
) -> Shared:
    """Open a store, or share the one that this process has open already.

    The arguments are those of `Store`; a store that is open already is not verified again.

    Raises:
        StorageError: it cannot be opened.
        StoreOptionError: it is open here with other settings or options.
    """
    directory = open_directory(path, read_only=settings.read_only)
    found = os.fstat(directory)
    identity = found.st_dev, found.st_ino
    opened: Shared | None = None
    change = object()
    try:
        with _changed:
            _changed.wait_for(lambda: identity not in _changing)
            shared = _open_stores.get(identity)
            if shared is not None:
                _check_same(shared.store, settings, options, given)
                shared.users += 1
                return shared
            _changing[identity] = change
        store = Store(path, settings, options, given, clock_ns, verify=verify)
        try:
            opened = Shared(store, Upkeep(store), directory)
        except BaseException:
            store.close()
            raise
        _open_stores[identity] = opened
        return opened
    finally:
        _end(identity, change)
        if opened is None:
            os.close(directory)


def release(shared: Shared) -> None:
    """Give a store back; the last one closes it, before anybody can open it again."""
    change = object()
    with _changed:
        shared.users -= 1
        if shared.users:
            return
        identity = next(key for key, one in _open_stores.items() if one is shared)
        _changing[identity] = change
    try:
        try:
            shared.upkeep.close()
        finally:
            shared.store.close()
    finally:
        del _open_stores[identity]
        os.close(shared.directory)
        _end(identity, change)


def _end(identity: _Identity, change: object) -> None:
    """End a change, where it had begun: an interrupt may come between any two steps."""
    with _changed:
        if _changing.get(identity) is change:
            del _changing[identity]
            _changed.notify_all()


def _let_go_of_parents() -> None:
    """In a forked child: the stores are the parent's, and so are the locks."""
    global _changed  # noqa: PLW0603  # another thread may have held it at the fork
    _changed = threading.Condition()
    _changing.clear()
    for shared in _open_stores.values():
        shared.store.environment.abandon()
        os.close(shared.directory)
    _open_stores.clear()


os.register_at_fork(after_in_child=_let_go_of_parents)


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
