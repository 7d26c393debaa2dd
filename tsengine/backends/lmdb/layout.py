"""Layout: the tables of a store and the encoding of their keys; see docs/design/lmdb_layout.md.

Integers in keys are big-endian, so that LMDB's order of bytes is the order of numbers;
signed ones have their sign bit flipped for the same reason.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import Any, Final

from tsengine.errors import CorruptionError
from tsengine.model import unpack_bounded

FORMAT_VERSION: Final = 1
"""Raised whenever a store written by this code could be misread by older code."""

META: Final = "meta"
BLOCKS: Final = "blocks"
RUNS: Final = "runs"
DELETES: Final = "deletes"
RETIRED: Final = "retired"
SERIES: Final = "series"
UNINDEXED: Final = "unindexed"
NAMES: Final = "names"
POSTINGS: Final = "postings"
PRODUCERS: Final = "producers"

TABLES: Final = (
    META,
    BLOCKS,
    RUNS,
    DELETES,
    RETIRED,
    SERIES,
    NAMES,
    POSTINGS,
    UNINDEXED,
    PRODUCERS,
)

SEAL_BYTES: Final = 4
"""Bytes of the checksum in front of a row's payload."""

SEAL_SEEDS: Final = {name: zlib.crc32(name.encode()) for name in TABLES}
"""What the checksum of a row of each table goes on from: `seal` on a hot path may be written
out as `crc32(payload, crc32(key, SEAL_SEEDS[table]))`, which saves the call."""

KEY_BYTES_MAX: Final = 500
"""Longest key used; LMDB's keys end at 511 bytes. Longer texts are hashed."""

KIND_SHIFT: Final = 56
"""A series number carries its value kind in its top byte, so that a run sorts by kind and
a block holds one kind."""

REMOVED_SERIES: Final = 1 << 63
"""Set in the number of a retired row that speaks of removed series instead of a run."""

_SIGN: Final = 1 << 63
_U64: Final = struct.Struct(">Q")
_BLOCK_KEY: Final = struct.Struct(">QQQ")
BLOCK_KEY_BYTES: Final = _BLOCK_KEY.size

pack_u64 = _U64.pack


def unpack_u64(key: bytes | memoryview) -> int:
    """Read the number that `pack_u64` wrote.

    Raises:
        CorruptionError: it has another length.
    """
    try:
        number: int = _U64.unpack(key)[0]
    except struct.error as error:
        raise CorruptionError(f"{bytes(key)!r} stands where a number should") from error
    return number


def seal(table: str, key: bytes, payload: bytes) -> bytes:
    """Give the value of a row: a checksum over table, key and payload, then the payload.

    Every row has one but those of `blocks`, which have their own, and the format version,
    which any version reads.
    About 0.3 µs.
    """
    checksum = zlib.crc32(payload, zlib.crc32(key, SEAL_SEEDS[table]))
    return checksum.to_bytes(SEAL_BYTES, "little") + payload


def unseal(table: str, key: bytes | memoryview, value: bytes | memoryview) -> bytes:
    """Give the payload that `seal` was given.

    Raises:
        CorruptionError: the checksum is another; names table and key.
    """
    payload = bytes(value[SEAL_BYTES:])
    checksum = zlib.crc32(payload, zlib.crc32(key, SEAL_SEEDS[table]))
    if value[:SEAL_BYTES] != checksum.to_bytes(SEAL_BYTES, "little"):
        raise CorruptionError(f"the row of key {bytes(key)!r} in table {table!r} is damaged")
    return payload


def unpack_row(payload: bytes) -> Any:
    """Undo MessagePack in a row of the small tables.

    Raises:
        ValueError: it is none, or larger than any such row.
    """
    return unpack_bounded(payload, containers=16, items=64)


def block_key(run: int, series: int, timestamp: int) -> bytes:
    """Key of the block of a run that begins with a row: sorts by run, series, time."""
    return _BLOCK_KEY.pack(run, series, timestamp + _SIGN)


def split_block_key(key: bytes | memoryview) -> tuple[int, int, int]:
    """Give `(run, series, timestamp)` of a block's first row.

    Raises:
        CorruptionError: it is no key of a block.
    """
    try:
        run, series, biased = _BLOCK_KEY.unpack(key)
    except struct.error as error:
        raise CorruptionError(f"{bytes(key)!r} stands where the key of a block should") from error
    return run, series, biased - _SIGN


def text_key(text: str) -> bytes:
    """Key for a text of any length: itself where it is short, else head and hash.

    Hashed keys are verified against what they lead to, so a collision costs a miss that is
    seen, never a wrong answer.
    """
    key = b"=" + text.encode()
    if len(key) <= KEY_BYTES_MAX:
        return key
    return b"#" + hashlib.blake2b(key[1:], digest_size=32).digest()


def posting_key(name: str, value: str) -> bytes:
    """What the keys of the series that have a label begin with.

    That is the name, NUL, then the value as `text_key` has it. Neither can hold
    a NUL. A name too long for a key is hashed likewise.
    """
    return posting_prefix(name) + text_key_tail(value)


def posting_prefix(name: str) -> bytes:
    """What the keys of all values of a label begin with."""
    encoded = name.encode()
    if len(encoded) <= _NAME_BYTES_MAX:
        return b"=" + encoded + b"\0"
    return b"#" + hashlib.blake2b(encoded, digest_size=32).digest() + b"\0"


def text_key_tail(value: str) -> bytes:
    """Key part for a label value behind a label name."""
    encoded = value.encode()
    if len(encoded) <= _VALUE_BYTES_MAX:
        return b"=" + encoded
    return b"#" + hashlib.blake2b(encoded, digest_size=32).digest()


_NAME_BYTES_MAX: Final = 120
_VALUE_BYTES_MAX: Final = 360
