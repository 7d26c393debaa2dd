"""Absence: whether a row is missing because it was never there.

A row whose key was damaged is found no more, and to say that there is none would be a wrong answer.
But a search in sorted keys of which one is out of order ends right beside that one: all others
still lead there. So where nothing was found, the rows on both sides of the gap are verified.
The same tells of a damaged branch page that led to the wrong leaf.
"""

from __future__ import annotations

import lmdb

from tsengine.backends.lmdb.environment import Table
from tsengine.backends.lmdb.layout import unseal
from tsengine.errors import CorruptionError


def check_absent(transaction: lmdb.Transaction, table: Table, name: str, key: bytes) -> None:
    """Check that no row of a table was lost where one of a key was not found: some 3 µs.

    Args:
        transaction: the one that did not find it.
        table: where it was looked for.
        name: of the table, whose rows have seals.
        key: what was looked for.

    Raises:
        CorruptionError: the rows beside the gap are damaged or out of order.
    """
    cursor = transaction.cursor(table)
    if cursor.set_range(key):
        behind, value = cursor.item()
        unseal(name, behind, value)
        is_sorted = bytes(behind) > key
        more = cursor.prev()
    else:
        is_sorted, more = True, cursor.last()
    if more:
        before, value = cursor.item()
        unseal(name, before, value)
        is_sorted = is_sorted and bytes(before) < key
    if not is_sorted:
        raise CorruptionError(f"keys are out of order in table {name!r} beside {key!r}")
