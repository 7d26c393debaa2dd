"""Marks: the rows that tell how far each producer has got, and what its last commit answered."""

from __future__ import annotations

import msgpack
import numpy as np

from tsengine.backends.lmdb.layout import PRODUCERS, seal, unpack_row, unseal
from tsengine.errors import CorruptionError
from tsengine.model import ProducerMark, WriteReceipt


def pack_mark(key: bytes, mark: ProducerMark, receipt: WriteReceipt) -> bytes:
    """Give the row of a mark and the receipt of its commit."""
    counts = receipt.submitted, receipt.accepted, receipt.refused, receipt.evicted
    indices = np.array(receipt.indices, np.int64).tobytes()
    row = msgpack.packb([*mark, [*counts, dict(receipt.reasons), indices]])
    return seal(PRODUCERS, key, row)


def unpack_mark(key: bytes, row: bytes | memoryview) -> tuple[ProducerMark, WriteReceipt]:
    """Read a row.

    Raises:
        CorruptionError: it is damaged.
    """
    plain = unseal(PRODUCERS, key, row)
    try:
        name, sequence, piece, receipt = unpack_row(plain)
        submitted, accepted, refused, evicted, reasons, packed = receipt
        indices = tuple(np.frombuffer(packed, np.int64).tolist())
    except (ValueError, TypeError) as error:
        raise CorruptionError(f"the mark of the producer of key {key!r} is damaged") from error
    return (
        ProducerMark(name, sequence, piece),
        WriteReceipt(submitted, accepted, refused, evicted, reasons, indices),
    )
