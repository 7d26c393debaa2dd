"""Progress: a bar with rate and time left on the terminal, and nothing anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Advance:
    """Takes how far the work is; this one shows nothing.

    Attributes:
        is_shown: whether anybody sees it: what costs time to find out is not asked for else.
    """

    is_shown = False

    def __call__(self, done: int, total: int | None, *, note: str = "") -> None:
        """Show it.

        Args:
            done: how much is done, from 0 on.
            total: of how much; None where nobody knows.
            note: what else is to be seen, such as a count of rejects.
        """


class _Bar(Advance):
    """Shows it on a bar."""

    is_shown = True

    def __init__(self, show: Callable[[int, int | None, str], None]) -> None:
        self._show = show

    def __call__(self, done: int, total: int | None, *, note: str = "") -> None:
        self._show(done, total, note)


@contextmanager
def progress(task: str, unit: str, *, quiet: bool = False) -> Iterator[Advance]:
    """Show a bar on stderr while the block runs, where stderr is a terminal.

    The bar goes when the block ends, so that a report stands in its place. Bytes are told in
    their units where `unit` is `"bytes"`. `NO_COLOR` and `TERM=dumb` are heeded.

    Args:
        task: one word or two of what is done.
        unit: what is counted, in the plural.
        quiet: show nothing.
    """
    if quiet or not sys.stderr.isatty():
        yield Advance()
        return
    from rich import console, filesize
    from rich import progress as bars

    def amount(count: float) -> str:
        return filesize.decimal(int(count)) if unit == "bytes" else f"{count:,.0f} {unit}"

    shown = bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TextColumn("{task.fields[state]}"),
        bars.TimeRemainingColumn(),
        console=console.Console(file=sys.stderr),
        transient=True,
    )
    with shown:
        number = shown.add_task(task, total=None, state="")

        def show(done: int, total: int | None, note: str) -> None:
            speed = shown.tasks[0].speed
            rate = f", {amount(speed)}/s" if speed else ""
            state = f"{amount(done)}{rate}{f', {note}' if note else ''}"
            shown.update(number, completed=done, total=total, state=state)

        yield _Bar(show)
