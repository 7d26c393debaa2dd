"""A copy killed at any moment is resumed without losing or repeating a point."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability.copies import VICTIM, Copies
from tests.reliability.forking import Template

LIVES = 12


@pytest.fixture(scope="module")
def template() -> Iterator[Template]:
    """A victim's template."""
    with Template(VICTIM) as started:
        yield started


def test_a_copy_killed_at_random_is_resumed_exactly(template: Template, tmp_path: Path) -> None:
    """After each kill a beginning of the source is there, each point once; copies get done."""
    copies = Copies(template, tmp_path, seed=1)
    for _ in range(LIVES):
        copies.life()
    while not copies.progress.copies:
        copies.life()


def test_the_harness_catches_a_copy_that_forgets(template: Template, tmp_path: Path) -> None:
    """The planted fault: a copy that begins anew in each life."""
    copies = Copies(template, tmp_path, seed=1, fault="forgetful")

    def live_on() -> None:
        for _ in range(5 * LIVES):
            copies.life()

    with pytest.raises(AssertionError, match=r"not the beginning|DifferenceError|marked as"):
        live_on()
