"""Failing disks: each system call that writes or syncs is answered with ENOSPC or EIO.

`strace` makes the calls fail; `disk_victim` lives on and tries again. Failures are spread over a
life (every 37th call of a kind, beginning with the k-th), last for good, or are single.
"""

from __future__ import annotations

import contextlib
import os
import platform
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.reliability import kills
from tests.reliability.forking import Template

VICTIM: Final = Path(__file__).with_name("disk_victim.py")

CALLS: Final = (
    *("write", "writev", "pwrite64", "pwritev", "pwritev2"),
    *("fsync", "fdatasync", "msync", "sync_file_range"),
    *("ftruncate", "truncate", "fallocate"),
    *("mkdirat", "renameat2", "linkat", "fchmod", "fchmodat"),
    *(("mkdir", "rename", "renameat", "link", "chmod") if platform.machine() == "x86_64" else ()),
)
"""What a disk can refuse. Not those that remove: a store must be able to make room."""

ERRORS: Final = ("ENOSPC", "EIO", "EDQUOT")

STRIDE: Final = 37
"""Calls of a kind from one failure to the next: more than any step of a life makes, so that
what is tried again succeeds; and few enough that a life meets many."""


class CannotMountError(Exception):
    """A file system cannot be mounted here."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What fails in a life.

    Attributes:
        work: a name in `disk_victim.WORKS`.
        error: what the calls answer.
        when: which of them, in the words of strace.
        calls: their names, separated by commas.
        merging: how the store merges.
    """

    work: str
    error: str
    when: str
    calls: str = ",".join(CALLS)
    merging: str = "inline"


@dataclass
class Figures:
    """What was seen.

    Attributes:
        lives: by work.
        failures: errors that callers met.
        full: how many of them said that the disk is full.
    """

    lives: Counter[str] = field(default_factory=Counter)
    failures: int = 0
    full: int = 0


class Failing:
    """A harness at work in a folder of its own.

    Args:
        template: of `disk_victim.py`.
        folder: empty.
        fault: a bug planted in the victim.
    """

    def __init__(self, template: Template, folder: Path, fault: str | None = None) -> None:
        self._template = template
        self._folder = folder
        self._fault = fault
        self.figures = Figures()

    def live(self, failure: Failure) -> int:
        """Have a victim live through failures; gives how many errors its callers met.

        Raises:
            AssertionError: a promise is broken.
        """
        for name in ("life", "target"):
            shutil.rmtree(self._folder / name, ignore_errors=True)
            (self._folder / name).mkdir()
        pid = self._template.start(
            failure.work,
            store=str(self._folder / "life" / "store"),
            target=str(self._folder / "target"),
            merging=failure.merging,
            fault=self._fault,
        )
        inject = f"inject={failure.calls}:error={failure.error}:when={failure.when}"
        log = str(self._folder / "strace.log")
        with traced(pid, "-e", f"trace={failure.calls}", "-e", inject, "-o", log):
            ended = self._template.go_on()
        if ended is None:  # it wants to go on without failures
            self._template.go()
            ended = self._template.end()
        if ended.error or ended.status:
            raise AssertionError(f"{failure}: {ended.error or ended.status}")
        self.figures.lives[failure.work] += 1
        self.figures.failures += ended.result["failures"]
        self.figures.full += ended.result["full"]
        return int(ended.result["failures"])


@contextlib.contextmanager
def traced(pid: int, *options: str) -> Iterator[None]:
    """Have strace at a process and its threads; at the end it lets go of them.

    What the process does next is seen: it waits in a call that is not traced.
    """
    tracer = subprocess.Popen(
        ["strace", "-f", "-e", "signal=none", *options, "-p", str(pid)],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert tracer.stderr is not None
        line = tracer.stderr.readline()
        if "attached" not in line:
            raise AssertionError(f"strace could not attach: {line}")
        yield
        tracer.terminate()
        tracer.communicate(timeout=30)
    finally:
        tracer.kill()
        tracer.wait()


@contextlib.contextmanager
def mounted(kind: str, folder: Path, mebibytes: int = 24) -> Iterator[Path]:
    """Mount a small file system of its own, `tmpfs` or `ext4`; gives its folder.

    Raises:
        CannotMountError: this process may not mount, or there is no such file system here.
    """
    place = folder / kind
    place.mkdir()
    if kind == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(place)]
    else:
        image = folder / "image"
        with image.open("wb") as file:
            file.truncate(mebibytes << 20)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
        command = ["mount", "-o", "loop", str(image), str(place)]
    _run(*command)
    try:
        yield place
    finally:
        _run("umount", "--lazy", str(place))


def _run(*command: str) -> None:
    if os.geteuid():
        raise CannotMountError(f"needs root: {command[0]}")
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError as error:
        raise CannotMountError(f"{command[0]} is not installed") from error
    if ended.returncode:
        raise CannotMountError(f"{' '.join(command)}: {ended.stderr.strip()}")


def meet_full_disk(
    template: Template,
    work: str,
    place: Path,
    merging: str = "inline",
    fault: str | None = None,
) -> dict[str, int]:
    """Have a victim meet a full disk, on a file system of its own.

    Args:
        template: of `disk_victim.py`.
        work: `fill` or `free`.
        place: where the file system is mounted.
        merging: how the store merges.
        fault: a bug planted in the victim.

    Raises:
        AssertionError: a promise is broken.
    """
    (place / "target").mkdir()
    seen: dict[str, int] = template.run(
        work,
        store=str(place / "store"),
        target=str(place / "target"),
        merging=merging,
        fault=fault,
    )
    return seen


def spread(step: int) -> Iterator[Failure]:
    """Give failures spread over lives, so that in `STRIDE` of them each call fails once.

    Args:
        step: every so many-th of these lives is given.
    """
    for first in range(1, STRIDE + 1, step):
        yield Failure("live", ERRORS[first // step % 2], f"{first}+{STRIDE}")


def lasting(step: int, until: int) -> Iterator[Failure]:
    """Give disks that fail for good from a call on."""
    for first in range(1, until, step):
        yield Failure("last", ERRORS[first // step % 3], f"{first}+")
    yield Failure("close_full", "ENOSPC", "1+")
    yield Failure("close_full", "EIO", "1+")


def torture(seed: int, seconds: float, folder: Path) -> dict[str, object]:
    """Have victims live with failures of all kinds, at random, as long as there is time."""
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    with Template(VICTIM) as template:
        failing = Failing(template, folder)
        while time.monotonic() < end:
            failure = _any_failure(chance)
            try:
                failing.live(failure)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {error}") from error
    figures = failing.figures
    return {
        "lives": dict(figures.lives),
        "errors_met": figures.failures,
        "errors_of_a_full_disk": figures.full,
        "acknowledged_lost": 0,
        "stores_broken": 0,
    }


def why_not() -> str:
    """Say why calls cannot be made to fail here; empty where they can."""
    return kills.why_not()


def _any_failure(chance: random.Random) -> Failure:
    error = chance.choice(ERRORS)
    first = chance.randrange(1, 60)
    merging = chance.choice(["inline", "background", "manual"])
    calls = chance.choice([",".join(CALLS), *CALLS])
    kind = chance.randrange(5)
    if kind == 0:
        when = f"{first}+{STRIDE}"
    elif kind == 1:
        when = str(first)
    elif kind == 2:
        when = f"{first}..{first + chance.randrange(1, 9)}"
    elif kind == 3:
        return Failure("last", error, f"{chance.randrange(1, 30)}+", merging=merging)
    else:
        return Failure("memory", error, f"{chance.randrange(1, 9)}", calls)
    return Failure("live", error, when, calls, merging)
