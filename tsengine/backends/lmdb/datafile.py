"""Data file: what can be told of LMDB's file without LMDB, which a damaged one can kill.

LMDB maps its file and believes what it finds there: a page beyond the end is a SIGBUS, and
no `except` comes to that. So before LMDB gets a file, its two meta pages are read and held
against each other and against the file's size, which takes microseconds; and a whole file
can be verified, which takes about 0.7 s a gigabyte.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Final, NamedTuple

import lmdb.verify

from tsengine.errors import CorruptionError, FormatVersionError

_MAGIC: Final = 0xBEEFC0DE
_DATA_VERSION: Final = 1
_META: Final = struct.Struct("<QHHI IIQQ IHHQQQQQ IHHQQQQQ QQ")
"""A meta page of LMDB 0.9 on a 64-bit machine: page number, padding, flags, bounds; magic,
version, address, map size; twice padding, flags, depth, pages of branches, leaves and overflow,
entries, root, of the free list and of the table of tables; last page, transaction."""

_META_PAGE: Final = 0x08
_NO_PAGE: Final = (1 << 64) - 1
_PAGE_BYTES: Final = frozenset(1 << power for power in range(9, 16))
_PAGE: Final = struct.Struct("<QHH")
_BRANCH, _LEAF = 0x01, 0x02
_DEPTH_MAX: Final = 32
"""LMDB's own limit on the depth of a tree."""

READS: Final = 16
"""How often meta pages are read that do not fit together, where a writer may be at them."""


class _Tree(NamedTuple):
    """The root of a tree, as a meta page has it."""

    padding: int
    flags: int
    depth: int
    branches: int
    leaves: int
    overflows: int
    entries: int
    root: int


class _Meta(NamedTuple):
    """A meta page."""

    number: int
    flags: int
    magic: int
    version: int
    free: _Tree
    main: _Tree
    last_page: int
    transaction: int
    packed: bytes


def check_head(path: Path) -> int | None:
    """Check a data file as far as a few reads tell: whether LMDB can map it and find its roots.

    A file that is cut off is another matter: see `missing_bytes`.

    Args:
        path: the data file.

    Returns:
        The checksum of its meta pages, which every commit changes; None for a file that is
        not there or empty, which LMDB makes a new one.

    Raises:
        FormatVersionError: it is no file of LMDB 0.9, of this machine's kind.
        CorruptionError: it is damaged.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        for attempt in range(READS):
            try:
                return _check_head(file, path)
            except CorruptionError:
                # A writer may have been about to write one of them.
                if attempt == READS - 1:
                    raise
        return None
    finally:
        os.close(file)


def _check_head(file: int, path: Path) -> int | None:
    first = _read_meta(file, 0)
    if first is None:
        if not os.fstat(file).st_size:
            return None
        raise CorruptionError(f"{path} is too short to be a store: it was cut off")
    page_bytes = first.free.padding
    second = _read_meta(file, page_bytes) if page_bytes in _PAGE_BYTES else None
    if first.magic != _MAGIC and (second is None or second.magic != _MAGIC):
        raise FormatVersionError(f"{path} is no LMDB store, or of a machine unlike this one")
    if second is None:
        raise CorruptionError(f"{path} has no second meta page: it is damaged or cut off")
    if first.version == second.version != _DATA_VERSION:
        raise FormatVersionError(
            f"{path} is of data version {first.version} of LMDB, this one reads {_DATA_VERSION}"
        )
    metas = (first, second)
    for number, meta in enumerate(metas):
        if (
            (meta.number, meta.flags, meta.magic) != (number, _META_PAGE, _MAGIC)
            or meta.version != _DATA_VERSION
            or meta.free.padding != page_bytes
            # A commit writes the page that its number chooses.
            or (meta.transaction and meta.transaction % 2 != number)
        ):
            raise CorruptionError(f"meta page {number} of {path} is damaged")
    # What a commit wrote is synced before the next one writes its meta page, so the two are
    # always of neighbours.
    if abs(first.transaction - second.transaction) > 1:
        raise CorruptionError(
            f"the meta pages of {path} are of commits {first.transaction} and "
            f"{second.transaction}, which are no neighbours: one is damaged"
        )
    newest = max(metas, key=lambda meta: meta.transaction)
    for tree in (newest.free, newest.main):
        _check_root(file, path, tree, newest.last_page, page_bytes)
    return zlib.crc32(second.packed, zlib.crc32(first.packed))


def missing_bytes(path: Path) -> int:
    """Give by how much a checked data file ends before its last page; 0 for none.

    Mostly it is cut off then. But a page that a commit took at the end of the file, and needed no
    more when it was done, is free and was never written: LMDB leaves the file without it. Only the
    tree of free pages tells, as `verify_structure` looks at it.
    """
    with path.open("rb") as file:
        pages = [_read_meta(file.fileno(), 0)]
        if pages[0] is not None:
            pages.append(_read_meta(file.fileno(), pages[0].free.padding))
        metas = [meta for meta in pages if meta is not None]
        newest = max(metas, key=lambda meta: meta.transaction)
        # Looked at after the pages: a writer may have made the file longer in between.
        size = os.fstat(file.fileno()).st_size
        return max((newest.last_page + 1) * newest.free.padding - size, 0)


def fill_up(path: Path) -> None:
    """Make a data file as long as its last page says, so that the next look at it is short."""
    missing = missing_bytes(path)
    if missing:
        os.truncate(path, path.stat().st_size + missing)


def _check_root(file: int, path: Path, tree: _Tree, last_page: int, page_bytes: int) -> None:
    if tree.root == _NO_PAGE and not tree.depth and not tree.entries:
        return
    if 2 <= tree.root <= last_page and 0 < tree.depth <= _DEPTH_MAX:
        head = os.pread(file, _PAGE.size, tree.root * page_bytes)
        if len(head) == _PAGE.size:
            number, _, flags = _PAGE.unpack(head)
            if number == tree.root and flags == (_LEAF if tree.depth == 1 else _BRANCH):
                return
    raise CorruptionError(f"a root page of {path} is damaged")


def _read_meta(file: int, offset: int) -> _Meta | None:
    packed = os.pread(file, _META.size, offset)
    if len(packed) < _META.size:
        return None
    number, _, flags, _, magic, version, _, _, *rest = _META.unpack(packed)
    free, main = _Tree(*rest[:8]), _Tree(*rest[8:16])
    return _Meta(number, flags, magic, version, free, main, rest[16], rest[17], packed)


def verify_structure(path: Path) -> None:
    """Verify the pages of a data file at rest, without LMDB.

    Reads the live pages once: about 0.7 s a gigabyte. What the pages hold is not looked at.

    Raises:
        CorruptionError: names the first finding.
    """
    try:
        findings = lmdb.verify.verify(os.fspath(path))  # type: ignore[no-untyped-call]  # not typed yet
    except (lmdb.verify.VerifyError, struct.error, LookupError, RecursionError) as error:
        raise CorruptionError(f"{path}: {error}") from error
    if findings:
        more = f", and {len(findings) - 1} more findings" if len(findings) > 1 else ""
        raise CorruptionError(f"{path}: {findings[0]}{more}")
