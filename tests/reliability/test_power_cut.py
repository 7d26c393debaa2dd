"""A power cut takes nothing acknowledged at "commit", the last operation at most at "relaxed"."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reliability import kills, power_cut
from tests.reliability.kills import CASES, SYNCS
from tests.reliability.power_cut import CannotCutError, Cutting, cutting

CUTS = 8
"""Random moments at each durability; `torture` goes on for as long as it may."""

RENAMING = ("open of a new store", "compact", "snapshot", "snapshot of memory")
"""Works that make files and give them names: there it matters what is synced before what."""


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder for the image and the journal; without root there can be no power cut."""
    if os.geteuid():
        pytest.skip("needs root: a power cut is made by mounting a file system and ending it")
    return tmp_path


def cut(folder: Path, work: Callable[[Cutting], None], **settings: bool | str) -> None:
    """Set up, work, and take down; skip where a machine cannot do that, as in a container."""
    try:
        with cutting(folder, **settings) as at:  # type: ignore[arg-type]  # each of its own type
            work(at)
    except CannotCutError as error:
        pytest.skip(f"power cuts cannot be made here: {error}")


@pytest.mark.parametrize("durability", ["commit", "relaxed"])
def test_at_random_moments(outside: Path, durability: str) -> None:
    """Cut while it commits and merges, a store is a moment of its history, and goes on."""

    def work(at: Cutting) -> None:
        chance = random.Random(1)
        for _ in range(CUTS):
            at.at_random(chance)
        assert durability == "relaxed" or not at.killing.figures.lost

    cut(outside, work, durability=durability)


@pytest.mark.parametrize("name", RENAMING)
def test_where_files_are_made_and_renamed(outside: Path, name: str) -> None:
    """Cut at syncs, renames and the like, stores and snapshots are there as a whole or not."""
    reason = kills.why_not()
    if reason:
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)

    def work(at: Cutting) -> None:
        calls = at.killing.calls(CASES[name])
        rare = [kill for kill in calls if kill.syscall not in kills.WRITES]
        for kill in [kill for kill in rare if kill.syscall not in SYNCS] + rare[-3:]:
            at.at_call(name, kill)
        at.killing.end(name, CASES[name])

    cut(outside, work)


def test_without_fsync_losses_are_reported(outside: Path) -> None:
    """The planted fault: where fsync does nothing, the harness says that something was lost."""
    try:
        power_cut.eatmydata()
    except CannotCutError as error:
        pytest.fail(str(error)) if os.environ.get("CI") else pytest.skip(str(error))

    def work(at: Cutting) -> None:
        chance = random.Random(1)
        for _ in range(CUTS):
            at.at_random(chance)

    with pytest.raises(AssertionError, match=r"killed|cut|ended"):
        cut(outside, work, synced=False)
