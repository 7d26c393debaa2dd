"""Decodes blocks that were tampered with behind right checksums; what this finds would kill it.

Started as `blocks_victim.py SEED COUNT FAULT`; writes what it saw as a line of JSON.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import struct
import sys
import zlib

import numpy as np

from tsengine import CorruptionError
from tsengine.backends.lmdb import blocks
from tsengine.backends.lmdb.blocks import HEADER_BYTES, NumberPacker, decode, encode, read_header
from tsengine.backends.lmdb.columns import Columns
from tsengine.backends.lmdb.layout import KIND_SHIFT
from tsengine.model import ValueKind, pack_object

SECONDS_MAX = 30
BYTES_MAX = 1 << 30

SIZES = range(16, 48, 4)
"""Where a header has its counts and sizes."""

EXTREMES = (0, 1, 2, 7, 8, 255, 65_535, 1 << 20, (1 << 20) + 1, 1 << 31, (1 << 32) - 1)


def originals(chosen: random.Random) -> list[tuple[bytes, bytes]]:
    """Make blocks of every kind and encoding, of one series and of many."""
    made = []
    for kind in ValueKind:
        for counts in ([1], [40], [700], [1] * 30, [20] * 40, [300, 1, 2]):
            for is_regular in (True, False):
                for packer in (None, NumberPacker()):
                    columns = _columns(kind, counts, is_regular, chosen)
                    made.append(encode(7, kind, columns, place=3, packer=packer))
    return made


def _columns(
    kind: ValueKind, counts: list[int], is_regular: bool, chosen: random.Random
) -> Columns:
    rows = sum(counts)
    steps = [10 if is_regular else chosen.randrange(1, 1 << 30) for _ in range(rows)]
    if kind is ValueKind.OBJECT:
        values = np.empty(rows, object)
        values[:] = [pack_object({"at": row % 5, "what": "x" * (row % 20)}) for row in range(rows)]
    elif kind is ValueKind.INT:
        values = np.array([chosen.randrange(-(1 << 40), 1 << 40) for _ in range(rows)], np.int64)
    else:
        values = np.array([chosen.gauss(0, 1) for _ in range(rows)])
    return Columns(
        np.arange(len(counts)) + (kind << KIND_SHIFT) + 1,
        np.concatenate(([0], np.cumsum(counts))),
        np.cumsum(np.array(steps, np.int64)),
        values,
    )


def tamper(block: bytes, other: bytes, chosen: random.Random) -> bytes:
    """Change a block in one of the ways in which bytes go wrong, or are made wrong."""
    data = bytearray(block)
    kind = chosen.randrange(7)
    at = chosen.randrange(4, len(data))
    if kind == 0:
        for _ in range(chosen.randrange(1, 4)):
            bit = chosen.randrange(32, 8 * len(data))
            data[bit // 8] ^= 1 << bit % 8
    elif kind == 1:
        another = chosen.randrange(4, len(data))
        data[at], data[another] = data[another], data[at]
    elif kind == 2:
        del data[at:]
    elif kind == 3:  # the header of another block
        data[:HEADER_BYTES] = other[:HEADER_BYTES]
    elif kind == 4:
        struct.pack_into("<I", data, chosen.choice(SIZES), chosen.choice(EXTREMES))
    elif kind == 5:  # other encodings and another kind
        data[chosen.choice((9, 10, 11, 12))] = chosen.choice((0, 1, 2, 3, 255))
    elif len(data) > HEADER_BYTES:  # what columns say of themselves stands at their beginnings
        at = HEADER_BYTES + chosen.randrange(min(32, len(data) - HEADER_BYTES))
        noise = chosen.randbytes(chosen.randrange(1, 9))
        data[at : at + len(noise)] = noise
    return bytes(data)


def reseal(key: bytes, block: bytes) -> bytes:
    """Give a block checksums that are right."""
    if len(block) < HEADER_BYTES:
        return block
    body = zlib.crc32(block[HEADER_BYTES:]).to_bytes(4, "little")
    head = body + block[8:HEADER_BYTES]
    return zlib.crc32(head, zlib.crc32(key)).to_bytes(4, "little") + head + block[HEADER_BYTES:]


def main() -> None:
    """Tamper, decode, and tell."""
    seed, count, fault = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    if fault == "undecodable untyped":
        vars(blocks)["_UNDECODABLE"] = ()
    elif fault == "uncapped":
        vars(blocks)["ROWS_MAX"] = 1 << 40
    chosen = random.Random(seed)
    made = originals(chosen)
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES_MAX, BYTES_MAX))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    broken: list[str] = []
    for number in range(count):
        signal.setitimer(signal.ITIMER_PROF, SECONDS_MAX)  # ends it where it hangs
        key, block = chosen.choice(made)
        tampered = reseal(key, tamper(block, chosen.choice(made)[1], chosen))
        try:
            columns = decode(key, tampered, read_header(key, tampered))
        except CorruptionError as error:
            refused += 1
            if "run 7, series number" not in str(error):
                broken.append(f"{number}: the block is not named: {error}")
        except BaseException as error:  # noqa: BLE001  # whatever it is, the harness is to know
            broken.append(f"{number}: {type(error).__name__}: {error}")
        else:
            rows = columns.offsets[-1], len(columns.timestamps), len(columns.values)
            if len(set(map(int, rows))) != 1 or (np.diff(columns.offsets) < 1).any():
                broken.append(f"{number}: columns do not fit together: {rows}")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    told = {"blocks": count, "refused": refused, "grown": grown, "broken": broken[:20]}
    print(json.dumps(told))  # noqa: T201  # what the harness reads


if __name__ == "__main__":
    main()
