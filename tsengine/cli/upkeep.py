"""`tsengine check`, `compact` and `snapshot`: looking after a store."""

from __future__ import annotations

import click

from tsengine.cli.arguments import examples, quiet_option, store_argument, wait_option
from tsengine.cli.failures import note
from tsengine.cli.stores import check_store, open_for_change, open_for_reading
from tsengine.cli.texts import size_text


@click.command(epilog=examples("tsengine check lmdb://metrics"))
@store_argument
@quiet_option
def check(store: str, quiet: bool) -> None:
    """Read and verify everything, down to the bytes.

    It exits with 1 at the first damage, and names its place. Files of a store that nobody writes to
    are verified before LMDB maps them, so that a damaged one cannot do harm. Nothing is changed.
    """
    check_store(store)
    if not quiet:
        note("no damage was found")


@click.command(
    epilog=examples("tsengine compact lmdb://metrics", "tsengine compact lmdb://metrics --wait 60")
)
@store_argument
@wait_option
@quiet_option
def compact(store: str, wait: float, quiet: bool) -> None:
    """Merge what can be merged and give space back to the disk.

    It writes: no other process may have the store open for writing.
    """
    with open_for_change(store, timeout=wait) as engine:
        report = engine.compact()
    if not quiet:
        before, after = size_text(report.bytes_before), size_text(report.bytes_after)
        note(f"compacted: {before} before, {after} after")
    if report.reason:
        note(f"not all was given back: {report.reason}")


@click.command(epilog=examples("tsengine snapshot lmdb://metrics metrics-backup"))
@store_argument
@click.argument("path", type=click.Path())
@quiet_option
def snapshot(store: str, path: str, quiet: bool) -> None:
    """Write a consistent copy of a store, beside its writer.

    The copy at PATH is a store of its own, of the same backend. It is there as a whole or not at
    all, and nothing that exists is overwritten.
    """
    with open_for_reading(store) as engine:
        engine.snapshot(path)
    if not quiet:
        scheme = store.partition("://")[0]
        note(f"wrote {path}; it opens as {scheme}://{path}")
