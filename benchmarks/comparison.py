"""Rounds in which contestants take turns, and lines of a table made from them."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Contestant = Callable[[], float]
"""Sets up, runs its clock, cleans up; gives what is compared (a rate or seconds)."""


@dataclass(frozen=True, slots=True)
class Line:
    """One comparison of a figure.

    Attributes:
        figure: number of the figure.
        what: what was measured.
        unit: of both sides.
        ours: one value per round.
        peer: with whom we compare; empty where the bar is absolute.
        theirs: one value per round, beside ours; empty where the bar is absolute.
        bar: what is asked of the ratio, or of our own value where there is no peer;
            None where the line only informs.
        higher_is_better: whether the bar is a least or a most.
        note: said below the table.
    """

    figure: int
    what: str
    unit: str
    ours: Sequence[float]
    peer: str = ""
    theirs: Sequence[float] = ()
    bar: float | None = None
    higher_is_better: bool = True
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """Ours by theirs, round by round: what drifts hits both sides of a round."""
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def judged(self) -> float:
        """What the bar is held against: the median ratio, or our median."""
        return statistics.median(self.ratios if self.theirs else self.ours)

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None where there is none."""
        if self.bar is None:
            return None
        return self.judged >= self.bar if self.higher_is_better else self.judged <= self.bar


def take_turns(
    contestants: Mapping[str, Contestant], *, rounds: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """Run each contestant once a round, in rotating order.

    The warm-up round is not counted: it pays for memory touched for the first time, which
    on virtual machines costs ten times what it costs later.

    Returns:
        Per contestant one value per round.
    """
    names = list(contestants)
    results: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-1 if warm_up else 0, rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            value = contestants[name]()
            say(f"  {'warm-up' if turn < 0 else f'round {turn + 1}'}: {name}: {value:,.4g}")
            if turn >= 0:
                results[name].append(value)
    return results


def say(text: str) -> None:
    """Tell how far the run is; not on standard output, which is for the table."""
    print(text, file=sys.stderr, flush=True)


def table(lines: Sequence[Line]) -> str:
    """Lay lines out as plain text, columns aligned, notes below."""
    head = ("fig", "what", "ours", "peer", "theirs", "ratio (range)", "asked", "")
    body = [_cells(line) for line in lines]
    widths = [max(len(row[column]) for row in [head, *body]) for column in range(len(head))]
    right = {2, 4, 5, 6}
    rendered = [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, tuple("-" * width for width in widths), *body]
    ]
    notes = list(dict.fromkeys(f"{line.figure}: {line.note}" for line in lines if line.note))
    return "\n".join([*rendered, *([""] if notes else []), *notes])


def _cells(line: Line) -> tuple[str, ...]:
    ratio = _ratio(line) if line.theirs else ""
    asked = verdict = ""
    if line.bar is not None:
        sign = "≥" if line.higher_is_better else "≤"
        asked = f"{sign} {line.bar:g}×" if line.theirs else f"{sign} {line.bar:,g} {line.unit}"
        verdict = "met" if line.met else "MISSED"
    theirs = _amount(statistics.median(line.theirs), line.unit) if line.theirs else ""
    ours = _amount(statistics.median(line.ours), line.unit)
    return (str(line.figure), line.what, ours, line.peer, theirs, ratio, asked, verdict)


def _ratio(line: Line) -> str:
    ratios = line.ratios
    middle = f"{line.judged:.2f}×"
    if len(ratios) == 1:
        return middle
    return f"{middle} ({min(ratios):.2f}–{max(ratios):.2f})"


def _amount(value: float, unit: str) -> str:
    if unit.endswith("/s") and value >= 1e6:
        return f"{value / 1e6:.2f} M {unit}"
    if value >= 1000:
        return f"{value:,.0f} {unit}"
    return f"{value:.3g} {unit}"
