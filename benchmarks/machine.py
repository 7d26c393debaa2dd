"""The ground the figures stand on: one core, a real disk, and what else shapes them."""

from __future__ import annotations

import gc
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_FILE_SYSTEMS_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
_PACKAGES = ("tsengine", "lmdb", "numpy", "pcodec", "rocksdict", "duckdb", "pyarrow", "arcticdb")


class UnfitFolderError(RuntimeError):
    """Is raised when the folder for the stores is in memory, where no sync is real."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a reader of figures must know of the machine.

    Attributes:
        python: version and implementation.
        cores: cores of the machine.
        pinned: the core that everything ran on; None where that cannot be asked for.
        file_system: type of the file system the stores were on.
        load: processes that wanted a core before the run began, of the last minute.
        sync_ms: median of appending 4 KiB and `fdatasync`, milliseconds.
        loop_ns: one step of an empty `for` loop, nanoseconds.
        packages: versions of what took part.
    """

    python: str
    cores: int
    pinned: int | None
    file_system: str
    load: float
    sync_ms: float
    loop_ns: float
    packages: dict[str, str]


def pin(core: int | None) -> int | None:
    """Keep this process and its children to one core; the last one by default.

    Interrupts tend to land on the first core.

    Returns:
        The core, or None where the operating system does not offer it.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    chosen = max(os.sched_getaffinity(0)) if core is None else core
    os.sched_setaffinity(0, {chosen})
    return chosen


@contextmanager
def all_cores() -> Iterator[None]:
    """Let go of the one core for a while, for a peer on several threads."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def file_system(folder: Path) -> str:
    """Name the type of the file system a folder is on; "unknown" outside of Linux."""
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return "unknown"
    resolved = folder.resolve()
    best, found = -1, "unknown"
    for line in mounts.read_text(encoding="utf-8").splitlines():
        _, mount, kind, *_ = line.split(" ")
        mounted = Path(mount.encode().decode("unicode_escape"))  # spaces are written \040
        # A later line of equal depth was mounted over the earlier one.
        if resolved.is_relative_to(mounted) and len(mounted.parts) >= best:
            best, found = len(mounted.parts), kind
    return found


@contextmanager
def disk_folder(parent: Path | None) -> Iterator[Path]:
    """Make a folder for stores on a real disk and remove it in the end.

    Args:
        parent: where; by default `TMPDIR` where it is set, else the current folder.

    Raises:
        UnfitFolderError: it is on a file system in memory.
    """
    chosen = parent or Path(os.environ.get("TMPDIR") or Path.cwd())
    kind = file_system(chosen)
    if kind in _FILE_SYSTEMS_IN_MEMORY:
        raise UnfitFolderError(
            f"{str(chosen)!r} is on {kind}, where a sync costs nothing; name a folder on a "
            "disk with --folder or TMPDIR"
        )
    with tempfile.TemporaryDirectory(prefix="tsengine-benchmarks-", dir=chosen) as folder:
        yield Path(folder)


@contextmanager
def fresh_folder(parent: Path) -> Iterator[Path]:
    """Make a folder for one store and remove it, so that the disk never holds two."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def program_of(module: str) -> str:
    """Give a program that runs a module of ours as `python -m` does.

    With our own path, so that it imports the same tsengine. This folder is none of it where pytest
    runs, and another package installs one of the same name: so it is named by its place.
    """
    return (
        "import runpy, sys, types\n"
        f"sys.path[:] = {sys.path!r}\n"
        "sys.modules['benchmarks'] = ours = types.ModuleType('benchmarks')\n"
        f"ours.__path__ = [{str(Path(__file__).resolve().parent)!r}]\n"
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
    )


def ask_fresh_process(module: str, *arguments: str, question: str = "") -> Any:
    """Run a module of ours as a program and give the JSON that it prints.

    Args:
        module: its name, as in `python -m`.
        arguments: of the program.
        question: its standard input.
    """
    done = subprocess.run(
        [sys.executable, "-c", program_of(module), *arguments],
        check=True,
        input=question,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout)


def settle() -> None:
    """Pay for what came before, so that no clock runs over another's garbage or dirty pages."""
    gc.collect()
    os.sync()


def freeze() -> None:
    """Keep what is there, millions of prepared points, out of every garbage collection.

    A program that writes points does not hold a million of them; whoever holds them here
    would pay for walking over them inside the clocks.
    """
    gc.collect()
    gc.freeze()


def disk_bytes(folder: Path) -> int:
    """Count the bytes that the files of a folder take on the disk; holes take none."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def facts(folder: Path, pinned: int | None) -> Facts:
    """Measure and name what shapes the figures."""
    return Facts(
        python=f"{platform.python_implementation()} {platform.python_version()}",
        cores=os.cpu_count() or 1,
        pinned=pinned,
        file_system=file_system(folder),
        load=os.getloadavg()[0],
        sync_ms=_sync_seconds(folder) * 1e3,
        loop_ns=_loop_seconds() * 1e9,
        packages={name: found for name in _PACKAGES if (found := _version(name))},
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _sync_seconds(folder: Path) -> float:
    sync = getattr(os, "fdatasync", os.fsync)  # macOS has only the latter
    path = folder / "sync-probe"
    seconds = []
    with path.open("wb", buffering=0) as file:
        for _ in range(100):
            file.write(bytes(4096))
            started = time.perf_counter()
            sync(file.fileno())
            seconds.append(time.perf_counter() - started)
    path.unlink()
    return statistics.median(seconds)


def _loop_seconds() -> float:
    steps = 1_000_000
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(steps):
            pass
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds) / steps
