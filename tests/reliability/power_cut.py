"""Power cuts: an ext4 file system that forgets, at any moment, what it was not told to sync.

    python -m tests.reliability.power_cut [--seconds 60] [--seed 1] [--eatmydata]

A store lives in an ext4 image, mounted by way of a loop device. `EXT4_IOC_SHUTDOWN` without
flushing the journal ends that file system as a power cut would: what fsync wrote is in the image,
what only the page cache had is gone. It is mounted again, which replays the journal, and the store
is examined as after a kill (`kills.py`). What was acknowledged stands outside.

Two kinds of moments: as a work enters the k-th call that changes files, for all works of
`kills.CASES`; and at random while a victim commits and merges. At durability "commit" nothing
acknowledged may be lost; at "relaxed" the last operation, and never the store.

Needs root, a loop device and mkfs.ext4. With --eatmydata fsync does nothing: losses must be
reported then, and the exit status is not 0.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes.util
import fcntl
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

if __name__ == "__main__":  # where the tests stand is not always on the path, and stands last on it
    sys.path.append(str(Path(__file__).parents[2]))

from tests.reliability import kills
from tests.reliability.forking import Template
from tests.reliability.kills import CASES, VICTIM, Case, Killing

EXT4_IOC_SHUTDOWN: Final = 0x8004587D
NO_LOG_FLUSH: Final = 2
"""The journal as it is on disk: with the other flags it would be written first."""

DISK_BYTES: Final = 64 << 20
LONG: Final = Case("merging", 10, 70)
"""What is cut at random moments: sixty operations with merges after each."""


class CannotCutError(Exception):
    """Power cuts cannot be made here; says why."""


class Disk:
    """A mounted ext4 image; a context manager that unmounts and removes it.

    Args:
        folder: where the image and the mount point are made.

    Raises:
        CannotCutError: on entering, where this needs rights or programs that are missing.
    """

    def __init__(self, folder: Path) -> None:
        self._image = folder / "disk.ext4"
        self._mount_point = folder / "mounted"
        self.stores = self._mount_point / "stores"

    def __enter__(self) -> Self:
        if os.geteuid():
            raise CannotCutError("needs root, to mount a file system")
        with self._image.open("wb") as image:
            image.truncate(DISK_BYTES)
        self._mount_point.mkdir()
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        mkfs = shutil.which("mkfs.ext4", path=path)
        if mkfs is None:
            raise CannotCutError(
                "mkfs.ext4 is missing; on Debian and Ubuntu: apt install e2fsprogs"
            )
        _run([mkfs, "-q", "-F", str(self._image)])
        self._mount()
        self.stores.mkdir()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._unmount()
        except CannotCutError:  # busy; or a cut had failed before it was mounted again
            with contextlib.suppress(CannotCutError):
                _run(["umount", "--lazy", str(self._mount_point)])
        self._image.unlink()

    def shut_down(self) -> None:
        """Cut the power: from now on every write and sync fails, and nothing more is kept."""
        directory = os.open(self._mount_point, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(directory, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(directory)

    def come_back(self) -> None:
        """Mount what the image holds."""
        self._unmount()
        self._mount()

    def cut(self) -> None:
        """Cut the power and come back."""
        self.shut_down()
        self.come_back()

    def _mount(self) -> None:
        _run(["mount", "-o", "loop", str(self._image), str(self._mount_point)])

    def _unmount(self) -> None:
        _run(["umount", str(self._mount_point)])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise CannotCutError(f"{command[0]} failed: {done.stderr.strip()}")


class Cutting:
    """Cuts the power of victims.

    Args:
        template: of `victim.py`.
        folder: for the journal and what stores begin from.
        disk: what is cut.
        durability: of the stores.
    """

    def __init__(self, template: Template, folder: Path, disk: Disk, durability: str) -> None:
        folder.mkdir()
        self.durability = durability
        self.killing = Killing(
            template, folder, disk=disk.stores, cut=disk.cut, durability=durability
        )
        self._disk = disk

    def at_call(self, name: str, kill: kills.Kill) -> None:
        """Cut as a work enters a call.

        The kill stops the victim there, and what it had not synced is lost milliseconds later.
        """
        self.killing.kill(name, CASES[name], kill)

    def at_random(self, chance: random.Random) -> None:
        """Cut at some moment of a victim's work."""
        killing = self.killing
        case = LONG if chance.random() < 0.7 else CASES[chance.choice(sorted(CASES))]
        killing.set_up(case)
        pid = killing.template.start(case.work, **killing.arguments(case))
        first = chance.randint(case.count, max(case.until - 1, case.count))
        delay = chance.uniform(0, 0.02)
        killing.template.go()
        end = time.monotonic() + 30
        while killing.journal.acknowledged < first and time.monotonic() < end:
            pass  # not sleeping: microseconds count
        end = time.monotonic() + delay
        while time.monotonic() < end:
            pass
        self._disk.shut_down()
        with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
            os.kill(pid, signal.SIGKILL)
        killing.template.end()
        killing.examine(f"{case.work}: cut {delay * 1000:.1f} ms after operation {first}", case)


@contextlib.contextmanager
def cutting(folder: Path, *, durability: str = "commit", synced: bool = True) -> Iterator[Cutting]:
    """Set everything up, and take it down again.

    Args:
        folder: where a folder for all this is made, and removed afterwards.
        durability: of the stores.
        synced: whether fsync works; without, the harness has to report losses.

    Raises:
        CannotCutError: that cannot be done here.
    """
    environment = {} if synced else {"LD_PRELOAD": eatmydata()}
    with (
        tempfile.TemporaryDirectory(dir=folder) as made,
        Disk(Path(made)) as disk,
        Template(VICTIM, environment) as template,
    ):
        yield Cutting(template, Path(made) / "outside", disk, durability)


def eatmydata() -> str:
    """Give the library that makes fsync do nothing.

    Raises:
        CannotCutError: it is not installed.
    """
    found = ctypes.util.find_library("eatmydata")
    if found is None:
        raise CannotCutError("eatmydata is missing; on Debian and Ubuntu: apt install eatmydata")
    return found


def why_not() -> str:
    """Say why power cannot be cut here; empty where it can."""
    try:
        with tempfile.TemporaryDirectory() as folder, Disk(Path(folder)) as disk:
            disk.cut()
    except CannotCutError as error:
        return f"power cuts cannot be made here: {error}"
    return ""


def torture(seed: int, seconds: float, folder: Path, *, synced: bool = True) -> dict[str, object]:
    """Cut the power at calls and at random moments, at both durabilities, while the time lasts.

    Raises:
        CannotCutError: that cannot be done here.
    """
    figures: dict[str, object] = {}
    for durability, share in ("commit", 0.7), ("relaxed", 0.3):
        with cutting(folder, durability=durability, synced=synced) as at:
            figures[durability] = _torture(seed, seconds * share, at)
    return figures


def _torture(seed: int, seconds: float, at: Cutting) -> dict[str, object]:
    chance = random.Random(f"{seed} {at.durability}")
    end = time.monotonic() + seconds
    cuts: Counter[str] = Counter()
    reason = kills.why_not()
    calls = (
        []
        if reason
        else [(name, kill) for name, case in CASES.items() for kill in at.killing.calls(case)]
    )
    chance.shuffle(calls)
    while time.monotonic() < end:
        try:
            if calls and chance.random() < 0.5:
                at.at_call(*calls.pop())
                cuts["at calls"] += 1
            else:
                at.at_random(chance)
                cuts["at random moments"] += 1
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, durability {at.durability}: {error}") from error
    figures = at.killing.figures
    return {
        "cuts": sum(cuts.values()),
        **cuts,
        "unacknowledged_found_whole": figures.in_flight,
        "acknowledged_lost": figures.lost,
        "stores_broken": 0,
        **({"calls_skipped": reason} if reason else {}),
    }


def main() -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--eatmydata", action="store_true", help="plant the fault: no fsync")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            figures = torture(given.seed, given.seconds, Path(folder), synced=not given.eatmydata)
        except CannotCutError as error:
            sys.exit(f"power cuts cannot be made here: {error}")
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
