"""Checking: what the tables of a store must be, and constraints do not hold."""

from __future__ import annotations

from typing import Final

from tsengine.backends.postgres.catalogue import labels_from_json
from tsengine.backends.postgres.session import Session
from tsengine.errors import CorruptionError

# A foreign key would cost each row a look at its series, and a check half a microsecond.
_POINTS: Final = """
SELECT p.series, p.time, p.tableoid::regclass::text, s.id IS NULL
FROM points p LEFT JOIN series s ON s.id = p.series
WHERE s.id IS NULL OR num_nonnulls(p.value, p.integer, p.object) <> 1
    OR num_nonnulls(CASE s.kind WHEN 1 THEN p.value END, CASE s.kind WHEN 2 THEN p.integer END,
        CASE s.kind WHEN 3 THEN p.object END) <> 1
LIMIT 1
"""
_SERIES: Final = """
SELECT id, series, labels::text, digest = sha256(convert_to(series, 'UTF8'))
FROM series WHERE id > %s ORDER BY id LIMIT %s
"""

_CHUNK: Final = 4_096
"""Series that are looked at together."""


def check_store(session: Session) -> None:
    """Look for series and points that are not as they must be, in a transaction.

    Raises:
        CorruptionError: names the first one found.
    """
    number = -1
    while rows := session.execute(_SERIES, (number, _CHUNK)).fetchall():
        for number, name, text, is_digest in rows:
            if not is_digest or labels_from_json(text).id != name:
                raise CorruptionError(
                    f"series {number}: name, labels and digest of {name[:200]!r} do not agree"
                )
    row = session.execute(_POINTS).fetchone()
    if row is not None:
        series, time, table, is_orphan = row
        wrong = "its series is not listed" if is_orphan else "its value is not in the right column"
        raise CorruptionError(f"the point of series {series} at {time} in {table}: {wrong}")
