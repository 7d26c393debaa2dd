"""A rollup killed at any moment is completed by the next run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability.forking import Template
from tests.reliability.rollups import VICTIM, Rollups

LIVES = 12


@pytest.fixture(scope="module")
def template() -> Iterator[Template]:
    """A victim's template."""
    with Template(VICTIM) as started:
        yield started


def test_a_rollup_killed_at_random_is_completed_by_the_next(
    template: Template, tmp_path: Path
) -> None:
    """Whatever a kill leaves, one run makes it what the source gives, and a second nothing."""
    rollups = Rollups(template, tmp_path, seed=1)
    for _ in range(LIVES):
        rollups.life()
    while not rollups.progress.runs:
        rollups.life()


def test_the_harness_catches_a_mark_before_its_results(template: Template, tmp_path: Path) -> None:
    """The planted fault: a run that says it is done before it is."""
    rollups = Rollups(template, tmp_path, seed=1, fault="hasty")

    def live_on() -> None:
        for _ in range(5 * LIVES):
            rollups.life()

    with pytest.raises(AssertionError, match="differs at"):
        live_on()
