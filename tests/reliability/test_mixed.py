"""Mixed: threads, readers elsewhere, full disks and kills at once lose nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability.mixed import Mixed, small_disk
from tests.reliability.mixed_victim import FORGETS_TO_FLUSH


def test_what_was_flushed_survives_everything_at_once(tmp_path: Path) -> None:
    """After each kill all that was flushed is there, without holes, and nothing deleted is."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with small_disk(disk) as can_fill:
        mixed = Mixed(disk, 1)
        for seconds in (1.0, 0.3):
            mixed.live(seconds, may_fill=can_fill)
    assert sum(mixed.ledger.flushed.values()) > 1_000
    assert mixed.reads


def test_a_promise_that_is_not_kept_is_found(tmp_path: Path) -> None:
    """A victim that tells of flushes it did not make is found out."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mixed = Mixed(disk, 1, FORGETS_TO_FLUSH)
    with pytest.raises(AssertionError, match="flushed points are lost"):
        mixed.live(0.3, may_fill=False)
