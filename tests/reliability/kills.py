"""Kills: a store is killed (kill -9) at every system call that changes files.

A first run of a work under `strace` lists its calls; then it is run once for each, and killed as
it enters that call. What is left is examined as `victim.examine` describes: 0 acknowledged
operations lost, the one under way there as a whole or not at all, nothing of it left to sweep.
"""

from __future__ import annotations

import ctypes
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from tests.reliability.forking import Ended, Template
from tests.reliability.history import Journal

VICTIM: Final = Path(__file__).with_name("victim.py")

WRITES: Final = (
    "write",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "writev",
    "sendfile",
    "copy_file_range",
)
SYNCS: Final = ("fdatasync", "fsync", "msync", "sync_file_range")
OTHERS: Final = (
    *("openat", "open", "creat", "mkdir", "mkdirat", "rmdir", "unlink", "unlinkat"),
    *("rename", "renameat", "renameat2", "link", "linkat", "symlinkat"),
    *("truncate", "ftruncate", "fallocate", "chmod", "fchmod", "fchmodat"),
)
CALLS: Final = (*WRITES, *SYNCS, *OTHERS)
"""What changes files. The maps of LMDB are written through `pwrite`, never through memory."""

_CALL: Final = re.compile(r"^(\d+) +(\w+)\((.*)$")


class Kill(NamedTuple):
    """Where to kill: at the call `syscall` for the `ordinal`-th time; `text` is how it looked."""

    syscall: str
    ordinal: int
    text: str


@dataclass(frozen=True, slots=True)
class Case:
    """A work to be killed.

    Attributes:
        work: its name in `victim.WORKS`.
        count: operations in the store that it begins with; 0 for no store.
        until: the last operation that it does, 0 for none.
        torn: whether it begins with a merge and a compaction cut short.
        target: whether it writes a snapshot.
        ballast: whether the store is so large that a copy takes several writes.
    """

    work: str
    count: int
    until: int = 0
    torn: bool = False
    target: bool = False
    ballast: bool = False

    @property
    def in_memory(self) -> bool:
        """Whether the store is one in memory, and a file is what the work writes."""
        return self.work.startswith("memory")


CASES: Final = {
    "open of a new store": Case("create", 0, 1),
    "open": Case("open", 10, torn=True),
    "flush": Case("flush", 10, 14),
    "small commits and new series": Case("flush", 14, 18),
    "late and large batches": Case("flush", 19, 22),
    "bulk": Case("bulk", 10, 13),
    "merge": Case("merging", 16, 22),
    "merge after a merge cut short": Case("merging", 10, 11, torn=True),
    "delete": Case("merging", 10, 13),
    "compact": Case("compact", 16, torn=True, ballast=True),
    "snapshot": Case("snapshot", 16, target=True, ballast=True),
    "snapshot of memory": Case("memory_snapshot", 16, target=True),
    "close": Case("close", 3),
}


def why_not() -> str:
    """Say why processes cannot be traced here; empty where they can."""
    strace = shutil.which("strace")
    if strace is None:
        return "strace is not installed; on Debian and Ubuntu: apt install strace"
    tried = subprocess.run(
        [strace, "-o", "/dev/null", "true"], capture_output=True, text=True, timeout=30, check=False
    )
    return f"strace cannot trace here: {tried.stderr.strip()}" if tried.returncode else ""


@dataclass
class Figures:
    """What was seen.

    Attributes:
        kills: by case.
        in_flight: how many operations under way at a kill were there as a whole afterwards.
        lost: how many acknowledged operations were not, which durability "relaxed" allows.
    """

    kills: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    lost: int = 0


class Killing:
    """A harness at work in a folder of its own.

    Args:
        template: of `victim.py`.
        folder: empty; on a file system of any kind, since a kill loses nothing of what the
            kernel has been given.
        disk: where stores and snapshots are, by default a folder in that folder.
        cut: called after a kill, before what is left is examined.
        durability: of the stores; "relaxed" may lose the last operation.
        fault: a bug planted in the victim.
    """

    def __init__(
        self,
        template: Template,
        folder: Path,
        *,
        disk: Path | None = None,
        cut: Callable[[], None] | None = None,
        durability: str = "commit",
        fault: str | None = None,
    ) -> None:
        self.template = template
        self.figures = Figures()
        self.journal = Journal.at(folder / "journal")
        self._folder = folder
        self._disk = folder / "disk" if disk is None else disk
        self._disk.mkdir(exist_ok=True)
        self._cut = cut
        self._durability = durability
        self._fault = fault

    def calls(self, case: Case) -> list[Kill]:
        """Run a work to its end and list the calls that changed files."""
        log = self._folder / "strace.log"
        ended = self.run(case, ["-e", f"trace={_any_of(CALLS)}", "-o", str(log)])
        if ended.status or ended.error:
            raise AssertionError(f"{case} failed by itself: {ended}")
        return parse(log.read_text().splitlines())

    def kill(self, name: str, case: Case, kill: Kill) -> None:
        """Run a work, kill it there, and examine what is left.

        Raises:
            AssertionError: a promise is broken.
        """
        syscall, ordinal, text = kill
        inject = f"inject={syscall}:signal=KILL:when={ordinal}"
        ended = self.run(
            case, ["-e", f"trace={syscall}", "-e", inject, "-o", str(self._folder / "strace.log")]
        )
        place = f"{name}: killed at {syscall} number {ordinal}: {text}"
        if self.journal.done or ended.status != -signal.SIGKILL:
            raise AssertionError(f"{place}: was not killed there: {ended}")
        self.examine(place, case)
        self.figures.kills[name] += 1

    def end(self, name: str, case: Case) -> None:
        """Run a work to its end, let it end without closing, and examine what is left."""
        ended = self.run(case)
        if ended.status or ended.error or not self.journal.done:
            raise AssertionError(f"{name} failed by itself: {ended}")
        self.examine(f"{name}: ended", case)

    def examine(self, place: str, case: Case) -> None:
        """Have `victim.examine` look at what is left."""
        if self._cut is not None:
            self._cut()
        try:
            seen = self.template.run("examine", **self.arguments(case))
        except AssertionError as error:
            raise AssertionError(f"{place}\n{error}") from error
        self.figures.in_flight += seen["survived"] > seen["acknowledged"]
        self.figures.lost += max(seen["acknowledged"] - seen["survived"], 0)

    def arguments(self, case: Case) -> dict[str, object]:
        """Give the arguments of a work and of its examination."""
        return {
            "store": str(self._disk / "store"),
            "journal": str(self._folder / "journal"),
            "until": case.until,
            "new": not case.count,
            "target": str(self._disk / "target") if case.target else None,
            "in_memory": case.in_memory,
            "ballast": case.ballast,
            "durability": self._durability,
            "lost_max": 1 if self._durability == "relaxed" else 0,
            "fault": self._fault,
        }

    def run(self, case: Case, strace: Sequence[str] | None = None) -> Ended:
        """Run a work to its end, traced where arguments for strace are given."""
        self.set_up(case)
        pid = self.template.start(case.work, **self.arguments(case))
        if strace is None:
            self.template.go()
            return self.template.end()
        tracer = subprocess.Popen(
            ["strace", "-f", "-s", "64", "-e", "signal=none", *strace, "-p", str(pid)],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert tracer.stderr is not None
            # Said when the child is about to be stopped: it makes no call that is not counted.
            line = tracer.stderr.readline()
            if "attached" not in line:
                raise AssertionError(f"strace could not attach: {line}")
            self.template.go()
            ended = self.template.end()
            tracer.communicate(timeout=30)
        finally:
            tracer.kill()
            tracer.wait()
        return ended

    def set_up(self, case: Case) -> None:
        """Put the store there that a case begins with, and nothing else."""
        for left in self._disk.iterdir():
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()
        if case.count and not case.in_memory:
            shutil.copytree(self._base(case), self._disk / "store")
        if self._cut is not None:
            sync_disk(self._disk)
        self.journal.clear()
        self.journal.began = self.journal.acknowledged = case.count
        self.journal.opened = bool(case.count)

    def _base(self, case: Case) -> Path:
        base = self._folder / f"base-{case.count}-{case.torn}-{case.ballast}"
        if not base.exists():
            self.template.run(
                "prepare",
                store=str(base),
                count=case.count,
                torn=case.torn,
                ballast=case.ballast,
            )
        return base


def sync_disk(folder: Path) -> None:
    """Write everything of the file system that holds a folder to its disk."""
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(directory):
            raise OSError(ctypes.get_errno(), f"syncfs({folder})")
    finally:
        os.close(directory)


def parse(lines: Iterable[str]) -> list[Kill]:
    """Read what strace wrote; opening that makes no file is counted and left out."""
    threads: dict[tuple[str, str], int] = {}
    kills: dict[tuple[str, int], Kill] = {}
    for line in lines:
        found = _CALL.match(line)
        if found is None:  # the second half of a call, or how a thread ended
            continue
        thread, syscall, text = found.groups()
        ordinal = threads[thread, syscall] = threads.get((thread, syscall), 0) + 1
        if not syscall.startswith("open") or "O_CREAT" in text:
            # strace counts by thread; the first to come there is the one that is killed.
            kills.setdefault((syscall, ordinal), Kill(syscall, ordinal, text[:120]))
    return list(kills.values())


def sample(kills: Sequence[Kill], spread: int) -> list[Kill]:
    """Choose all kills of rare kinds, and so many of writes and syncs, evenly spread."""
    rare = [kill for kill in kills if kill.syscall in OTHERS or kill.syscall == "fsync"]
    common = [kill for kill in kills if kill not in rare]
    step = max(len(common) / spread, 1)
    return rare + [common[int(place * step)] for place in range(min(spread, len(common)))]


def torture(seed: int, seconds: float, folder: Path) -> dict[str, object]:
    """Kill every case at every call, in random order, as far as the time goes."""
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    with Template(VICTIM) as template:
        killing = Killing(template, folder)
        every = [(name, case, kill) for name, case in CASES.items() for kill in killing.calls(case)]
        chance.shuffle(every)
        for name, case, kill in every:
            if time.monotonic() > end:
                break
            try:
                killing.kill(name, case, kill)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {error}") from error
    done: Mapping[str, int] = killing.figures.kills
    return {
        "calls": len(every),
        "kills": sum(done.values()),
        "kills_by_case": dict(done),
        "unacknowledged_found_whole": killing.figures.in_flight,
        "acknowledged_lost": 0,
        "stores_broken": 0,
    }


def _any_of(calls: Iterable[str]) -> str:
    return ",".join(f"?{call}" for call in calls)  # with `?`: not every machine has them all
