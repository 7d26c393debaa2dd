"""Ctrl-C loses nothing, stores nothing twice, and leaves nothing that hangs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability.interrupts import run


def test_interrupts_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    """Hundreds of interrupts in writes, flushes, reads and compactions change no answer."""
    counted = run(1, tmp_path, 3.0)
    assert counted["interrupts"] > 20, counted
    assert counted["buffered"] > 20, counted


def test_the_harness_sees_a_loss(tmp_path: Path) -> None:
    """A buffer that forgets its points when a flush is interrupted is caught."""
    with pytest.raises(AssertionError, match="are lost"):
        run(1, tmp_path, 3.0, "loses")
