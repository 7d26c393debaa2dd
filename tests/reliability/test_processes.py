"""One writer and several readers in processes of their own, with kills and stops."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability.processes import Run


def test_every_read_is_a_moment_of_the_history(tmp_path: Path) -> None:
    """Readers see whole commits and lose none, whoever is killed or stopped meanwhile."""
    run = Run(tmp_path, seed=1)
    run.drive(operations=2_500, seconds=10, least=100)
    run.check_end()


def test_readers_that_come_while_files_are_swapped_see_the_new_one(tmp_path: Path) -> None:
    """Readers that open and close during compactions never go on reading the file swapped away."""
    run = Run(tmp_path, seed=3, manner="churn")
    run.drive(operations=1_000, seconds=4, least=30)
    run.check_end()


@pytest.mark.parametrize("fault", ["stale", "torn", "early"])
def test_a_planted_fault_is_seen(tmp_path: Path, fault: str) -> None:
    """A stale manifest, a read of two moments and an early acknowledgement are found out."""
    run = Run(tmp_path, seed=2, manner=fault)
    # With a stale manifest a reader may meet the loss of a block before it meets the history.
    with pytest.raises(AssertionError, match=r"saw no moment|CorruptionError"):
        run.drive(operations=1_000_000, seconds=20)
