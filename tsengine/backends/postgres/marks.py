"""Marks: how far each producer has got, in the transaction of its points."""

from __future__ import annotations

import hashlib
from typing import Final

import msgpack
import numpy as np

from tsengine.backends.postgres.session import Session
from tsengine.errors import CorruptionError
from tsengine.model import ProducerMark, WriteReceipt

_CLAIM: Final = """
INSERT INTO producers (digest, producer, sequence, piece, receipt) VALUES (%s, %s, %s, %s, %s)
ON CONFLICT (digest) DO UPDATE
SET sequence = excluded.sequence, piece = excluded.piece, receipt = excluded.receipt
WHERE (producers.sequence, producers.piece) < (excluded.sequence, excluded.piece)
"""
_FIND: Final = "SELECT producer, sequence, piece, receipt FROM producers WHERE digest = %s"
_FORGET: Final = "DELETE FROM producers WHERE digest = %s"


def claim(session: Session, mark: ProducerMark, receipt: WriteReceipt) -> WriteReceipt | None:
    """Store a mark with the receipt of its commit, before the points.

    Commits of one producer take turns from here on.

    Returns:
        None where the points are to be stored; where the mark is not above the highest, the
        receipt to answer with: nothing is to be stored then.
    """
    claimed = session.execute(_CLAIM, (_digest(mark.producer), *mark, _pack(receipt)))
    if claimed.rowcount:
        return None
    known = find(session, mark.producer)
    if known is not None and known[0] == mark and known[1].submitted == receipt.submitted:
        return known[1]
    return WriteReceipt(receipt.submitted, receipt.submitted)


def find(session: Session, producer: str) -> tuple[ProducerMark, WriteReceipt] | None:
    """Give the highest mark of a producer, and the receipt of its commit.

    Raises:
        CorruptionError: the row is damaged.
    """
    row = session.execute(_FIND, (_digest(producer),)).fetchone()
    if row is None:
        return None
    name, sequence, piece, packed = row
    return ProducerMark(name, int(sequence), int(piece)), _unpack(name, packed)


def forget(session: Session, producer: str) -> None:
    """Drop the mark of a producer."""
    session.execute(_FORGET, (_digest(producer),))


def _digest(producer: str) -> bytes:
    # A name may be too long for an index.
    return hashlib.sha256(producer.encode()).digest()


def _pack(receipt: WriteReceipt) -> bytes:
    counts = receipt.submitted, receipt.accepted, receipt.refused, receipt.evicted
    indices = np.array(receipt.indices, "<i8").tobytes()
    packed: bytes = msgpack.packb([*counts, dict(receipt.reasons), indices])
    return packed


def _unpack(producer: str, packed: bytes) -> WriteReceipt:
    try:
        *counts, reasons, indices = msgpack.unpackb(packed)
        submitted, accepted, refused, evicted = counts
        rows = tuple(np.frombuffer(indices, "<i8").tolist())
    except (ValueError, TypeError) as error:
        raise CorruptionError(f"the mark of producer {producer!r} is damaged") from error
    return WriteReceipt(submitted, accepted, refused, evicted, reasons, rows)
