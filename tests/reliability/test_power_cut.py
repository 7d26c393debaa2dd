"""A power cut takes nothing acknowledged at "commit", the last operation at most at "relaxed"."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.reliability import kills, power_cut
from tests.reliability.kills import CASES, SYNCS
from tests.reliability.power_cut import CannotCutError, Cutting, cutting, why_not

CUTS = 8
"""Random moments at each durability; `torture` goes on for as long as it may."""

RENAMING = ("open of a new store", "compact", "snapshot", "snapshot of memory")
"""Works that make files and give them names: there it matters what is synced before what."""


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder for the image and the journal; without root, or a loop device, there is none."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    return tmp_path


@pytest.mark.parametrize("durability", ["commit", "relaxed"])
def test_at_random_moments(outside: Path, durability: str) -> None:
    """Cut while it commits and merges, a store is a moment of its history, and goes on."""
    with cutting(outside, durability=durability) as at:
        chance = random.Random(1)
        for _ in range(CUTS):
            at.at_random(chance)
        assert durability == "relaxed" or not at.killing.figures.lost


@pytest.mark.parametrize("name", RENAMING)
def test_where_files_are_made_and_renamed(outside: Path, name: str) -> None:
    """Cut at syncs, renames and the like, stores and snapshots are there as a whole or not."""
    reason = kills.why_not()
    if reason:
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)

    with cutting(outside) as at:
        calls = at.killing.calls(CASES[name])
        rare = [kill for kill in calls if kill.syscall not in kills.WRITES]
        for kill in [kill for kill in rare if kill.syscall not in SYNCS] + rare[-3:]:
            at.at_call(name, kill)
        at.killing.end(name, CASES[name])


def test_without_fsync_losses_are_reported(outside: Path) -> None:
    """The planted fault: where fsync does nothing, the harness says that something was lost."""
    try:
        power_cut.eatmydata()
    except CannotCutError as error:
        pytest.fail(str(error)) if os.environ.get("CI") else pytest.skip(str(error))

    def cut_again_and_again(at: Cutting) -> None:
        chance = random.Random(1)
        for _ in range(CUTS):
            at.at_random(chance)

    with cutting(outside, synced=False) as at, pytest.raises(AssertionError, match="cut "):
        cut_again_and_again(at)
