"""RollupReport: what a rollup has done, while it goes on and in the end."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RollupReport:
    """What a rollup did. A result is one function of one window of a series or group.

    Attributes:
        producer: the name of its mark in the target.
        start: the first window that was looked at; None where there was none.
        end: the end of the last one.
        results: how many the source gave: the sum of the next five, and of those kept that differ.
        written: stored where there was none.
        redone: stored in the place of another one, as points came late or were deleted.
        unchanged: found as they were to be.
        refused: kept out by a cap or the retention of the target, or before its `min_timestamp`.
        rejected: of another kind than their series in the target.
        kept: stored results that differ from what the source gives, or that it gives nothing
            for, and that were left as they are, since it may have lost what they were made of.
        removed: stored results that were deleted, as their points were.
        series: distinct series of results that the source gave.
        seconds: how long it took.
    """

    producer: str
    start: int | None = None
    end: int | None = None
    results: int = 0
    written: int = 0
    redone: int = 0
    unchanged: int = 0
    refused: int = 0
    rejected: int = 0
    kept: int = 0
    removed: int = 0
    series: int = 0
    seconds: float = 0.0
