"""A pipeline killed at any moment has lost nothing acknowledged, and left no hole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability.forking import Template
from tests.reliability.pipelines import VICTIM, Pipeline

LIVES = 12


@pytest.fixture(scope="module")
def template() -> Iterator[Template]:
    """A victim's template."""
    with Template(VICTIM) as started:
        yield started


def test_life_after_life_nothing_acknowledged_is_lost(template: Template, tmp_path: Path) -> None:
    """Killed at random, with merges, deletes and compactions, each series is without holes."""
    pipeline = Pipeline(template, tmp_path, seed=1)
    for _ in range(LIVES):
        pipeline.life()
    assert pipeline.acknowledged > 0


def test_the_harness_catches_what_is_acknowledged_too_early(
    template: Template, tmp_path: Path
) -> None:
    """The planted fault: threads that acknowledge before they flush."""
    pipeline = Pipeline(template, tmp_path, seed=1, fault="early")

    def live_on() -> None:
        for _ in range(5 * LIVES):
            pipeline.life()

    with pytest.raises(AssertionError, match="acknowledged"):
        live_on()
