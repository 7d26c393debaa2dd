"""Promise 6: disks that fail or are full cost no acknowledged point, and work goes on after."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability import disk
from tests.reliability.disk import CALLS, Failing, Failure
from tests.reliability.forking import Template
from tests.reliability.kills import why_not


@pytest.fixture(scope="module")
def template() -> Iterator[Template]:
    """A warmed process that forks the victims."""
    with Template(disk.VICTIM) as running:
        yield running


@pytest.fixture(scope="module")
def traceable() -> None:
    """What needs strace is skipped aloud where there is none that works."""
    reason = why_not()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def failing(template: Template, tmp_path: Path, traceable: None) -> Failing:
    """A harness in an empty folder."""
    return Failing(template, tmp_path)


def test_a_life_goes_on_after_every_failure(failing: Failing) -> None:
    """Failures all over a life raise typed errors and lose nothing; each step succeeds at last."""
    failures = sum(failing.live(failure) for failure in disk.spread(3))
    assert failures > 50
    assert failing.figures.full > 20


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("call", ["fdatasync", "pwrite64", "fsync,pwrite64"])
def test_a_burst_of_failures_is_survived(failing: Failing, call: str, error: str) -> None:
    """Several failures in a row, also of what recovery itself does, are no worse than one."""
    assert failing.live(Failure("live", error, "13..17", call)) > 0


def test_a_disk_that_fails_for_good_is_survived_once_it_is_mended(failing: Failing) -> None:
    """While nothing succeeds but reading a buffer keeps its points; once mended all goes on."""
    for failure in disk.lasting(6, until=24):
        assert failing.live(failure) > 0, failure


def test_merging_in_the_background_survives_failures(failing: Failing) -> None:
    """What fails in the thread is told by stats() and tried again, and nothing is lost."""
    for first in (2, 7):
        failing.live(Failure("live", "EIO", f"{first}+{disk.STRIDE}", merging="background"))


@pytest.mark.parametrize("error", disk.ERRORS)
def test_snapshots_of_memory_are_whole_or_not_there(failing: Failing, error: str) -> None:
    """A snapshot file that could not be written leaves nothing; one that was opens."""
    met = [
        failing.live(Failure("memory", error, when, call))
        for call in ("write", "fsync", "linkat,rename,link")
        for when in ("1", "2", "1+")
    ]
    assert sum(met) >= 6


@pytest.mark.parametrize("fault", ["drops", "panics", "raw"])
def test_planted_faults_are_caught(
    template: Template, tmp_path: Path, traceable: None, fault: str
) -> None:
    """A buffer that lets go of points, a panic that stays, an untyped error: each is found."""
    failing = Failing(template, tmp_path, fault)
    with pytest.raises(AssertionError, match="Failure"):  # noqa: PT012  # which call it is may vary
        for first in range(1, 9):
            failing.live(Failure("live", "EIO", f"{first}+{disk.STRIDE}"))


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_full_disk_is_survived(template: Template, tmp_path: Path, kind: str) -> None:
    """On a disk full to the last byte reading goes on, and a buffer keeps what it cannot store."""
    try:
        with disk.mounted(kind, tmp_path) as place:
            seen = disk.meet_full_disk(template, "fill", place)
    except disk.CannotMountError as error:
        pytest.skip(f"cannot mount {kind}: {error}")
    assert seen["full"] == seen["failures"] >= 4


@pytest.mark.parametrize("merging", ["inline", "background", "manual"])
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_room_can_be_made_inside_a_full_store(
    template: Template, tmp_path: Path, kind: str, merging: str
) -> None:
    """On a disk that is full and stays so deletes succeed, and what they free is written again."""
    try:
        with disk.mounted(kind, tmp_path) as place:
            seen = disk.meet_full_disk(template, "free", place, merging)
    except disk.CannotMountError as error:
        pytest.skip(f"cannot mount {kind}: {error}")
    assert seen["commits"] > 8


def test_a_store_without_a_reserve_is_caught(template: Template, tmp_path: Path) -> None:
    """Without the room that is kept for it a delete on a full disk fails, and that is seen."""
    try:
        with (
            disk.mounted("tmpfs", tmp_path) as place,
            pytest.raises(AssertionError, match="StorageFullError"),
        ):
            disk.meet_full_disk(template, "free", place, fault="poor")
    except disk.CannotMountError as error:
        pytest.skip(f"cannot mount tmpfs: {error}")


def test_what_fails_is_what_changes_files() -> None:
    """The calls that the kills end are those that the disk refuses here, but for removing."""
    assert {"pwrite64", "fdatasync", "fsync", "write", "ftruncate", "fallocate"} <= set(CALLS)
