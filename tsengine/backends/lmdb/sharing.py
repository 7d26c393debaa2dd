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
    """A store, its upkeep, and which engines of this process use it.

    Attributes:
        store: the open store.
        upkeep: its upkeep.
        directory: a descriptor of its directory. While that is open no other directory can
            have the same device and inode, by which stores are known here.
        identity: these two.
        users: a token of each engine. None is left while it is closed, and where an interrupt
            has cut that short: whoever wants the store next ends it.
    """

    store: Store
    upkeep: Upkeep
    directory: int
    identity: _Identity
    users: set[object]


_open_stores: dict[_Identity, Shared] = {}
_changing: dict[_Identity, object] = {}
"""Stores that some thread is opening or closing, and what it knows that by; others wait for it."""
_changed_lock = threading.Lock()
_changed = threading.Condition(_changed_lock)
"""Guard both: LMDB must not be opened twice in one process. Held for moments only: to open a
large store, and to close one that is being compacted, take longer."""


def acquire(
    path: Path,
    settings: Settings,
    options: StoreOptions,
    given: frozenset[str],
    clock_ns: Callable[[], int],
    user: object,
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
        with _changed_lock:
            _wait_for_change_locked(identity)
            shared = _open_stores.get(identity)
            if shared is not None and shared.users:
                _check_same(shared.store, settings, options, given)
                shared.users.add(user)
                return shared
            _changing[identity] = change
        if shared is not None:
            _close(shared)
        store = Store(path, settings, options, given, clock_ns, verify=verify)
        try:
            opened = Shared(store, Upkeep(store), directory, identity, {user})
        except BaseException:
            store.close()
            raise
        _open_stores[identity] = opened
        return opened
    finally:
        _end(identity, change)
        if opened is None:
            os.close(directory)


def release(shared: Shared, user: object) -> None:
    """Give a store back; the last one closes it, before anybody can open it again.

    To be called again where it raised; a user that is gone is none.
    """
    change = object()
    try:
        with _changed_lock:
            shared.users.discard(user)
            _wait_for_change_locked(shared.identity)
            if shared.users or _open_stores.get(shared.identity) is not shared:
                return
            _changing[shared.identity] = change
        _close(shared)
    finally:
        _end(shared.identity, change)


def _close(shared: Shared) -> None:
    """Close a store that nobody uses, and that this thread is changing."""
    try:
        shared.upkeep.close()
    finally:
        shared.store.close()
    del _open_stores[shared.identity]
    os.close(shared.directory)


def _end(identity: _Identity, change: object) -> None:
    """End a change, where it had begun: an interrupt may come between any two steps."""
    if _changing.get(identity) is change:
        del _changing[identity]  # nobody else does; and before the lock, which may need memory
    with _changed_lock:
        _changed.notify_all()


def _wait_for_change_locked(identity: _Identity) -> None:
    # Mostly told; but one that was cut short ends without a word.
    while not _changed.wait_for(lambda: identity not in _changing, timeout=0.1):
        pass


def _let_go_of_parents() -> None:
    """In a forked child: the stores are the parent's, and so are the locks."""
    global _changed, _changed_lock  # noqa: PLW0603  # another thread may have held it at the fork
    _changed_lock = threading.Lock()
    _changed = threading.Condition(_changed_lock)
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
