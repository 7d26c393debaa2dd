"""Files of an LMDB store: who may read them, what is refused in their place, how they are known."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tsengine.backends.lmdb import LmdbEngine, environment, files
from tsengine.backends.memory import MemoryEngine
from tsengine.errors import StorageError, StoreOptionError, StorePathError
from tsengine.model import Labels

A = Labels("a", host="1")

FILES = ["data.mdb", "lock.mdb", "writer.lock", "readers.lock", "reserve"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A path where a store may be made."""
    return tmp_path / "store"


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """What the process takes from the modes of files that it makes."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """Give the mode of a folder and all in it, by path from there."""
    return {
        str(file.relative_to(folder)): stat.S_IMODE(file.stat().st_mode)
        for file in [folder, *folder.rglob("*")]
    }


@pytest.mark.usefixtures("umask")
def test_nobody_else_may_read_what_is_made(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directories are 0700 and files 0600 whatever the umask, snapshots and passing ones too."""
    seen: dict[str, int] = {}
    copy = environment.Environment._copy_to_scratch

    def copy_and_look(self: environment.Environment) -> None:
        copy(self)
        seen.update(modes(path))

    monkeypatch.setattr(environment.Environment, "_copy_to_scratch", copy_and_look)
    with LmdbEngine(str(path)) as engine:
        engine.write([(A, 1, 1.0)])
        engine.compact()
        engine.snapshot(str(tmp_path / "snapshot"))
    with LmdbEngine(str(tmp_path / "snapshot"), read_only=True) as engine:
        assert engine.count() == 1
    assert set(seen) == {".", *FILES, "compacting", "compacting/data.mdb"}
    assert set(modes(path)) == {".", *FILES}
    for found in (seen, modes(path), modes(tmp_path / "snapshot")):
        for name, mode in found.items():
            assert mode == (0o700 if name in {".", "compacting"} else 0o600), name
    with MemoryEngine() as memory:
        memory.write([(A, 1, 1.0)])
        memory.snapshot(str(tmp_path / "memory"))
    assert stat.S_IMODE((tmp_path / "memory").stat().st_mode) == 0o600


def test_a_directory_that_is_there_keeps_its_mode(path: Path) -> None:
    """A directory that somebody else made is theirs: its mode stays, the files are 0600."""
    path.mkdir()
    path.chmod(0o755)
    with LmdbEngine(str(path)) as engine:
        engine.compact()
    assert modes(path) == {".": 0o755, **dict.fromkeys(FILES, 0o600)}


def _link(place: Path) -> None:
    place.symlink_to(place.parent.parent / "elsewhere")


def _pipe(place: Path) -> None:
    os.mkfifo(place)


def _socket(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(place))


def _directory(place: Path) -> None:
    place.mkdir()


def _file(place: Path) -> None:
    place.write_text("precious")


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("make", [_link, _pipe, _socket, _directory])
@pytest.mark.parametrize("name", FILES)
def test_what_poses_as_a_file_of_the_store_is_refused(
    path: Path, name: str, make: Callable[[Path], None], read_only: bool
) -> None:
    """A link, a pipe, a socket or a directory by the name of a file is refused, and stays."""
    LmdbEngine(str(path)).open().close()
    LmdbEngine(str(path), read_only=True).open().close()
    (path / name).unlink(missing_ok=True)
    make(path / name)
    with pytest.raises(StorePathError, match=name):
        LmdbEngine(str(path), read_only=read_only).open()
    assert not (path.parent / "elsewhere").exists()
    assert os.path.lexists(path / name)


@pytest.mark.parametrize("make", [_link, _pipe, _file])
def test_what_poses_as_the_scratch_folder_is_refused(
    path: Path, make: Callable[[Path], None]
) -> None:
    """What stands in the place of the folder for compacting is refused, and stays."""
    LmdbEngine(str(path)).open().close()
    make(path / "compacting")
    with pytest.raises(StorePathError, match="compacting"):
        LmdbEngine(str(path)).open()
    assert os.path.lexists(path / "compacting")


@pytest.mark.parametrize("name", ["lock.mdb", "writer.lock", "readers.lock"])
def test_a_link_made_while_opening_is_not_followed(
    path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock file that becomes a link after the directory was looked at is refused all the same."""
    # Not data.mdb, which LMDB opens by itself: only who owns the directory could make that link.
    path.mkdir()
    monkeypatch.setattr("tsengine.backends.lmdb.files._check_entry", lambda entry: None)
    _link(path / name)

    def use() -> None:
        with LmdbEngine(str(path)) as engine:
            engine.compact()

    with pytest.raises(StorePathError):
        use()
    assert not (path.parent / "elsewhere").exists()


def test_a_link_to_nothing_is_no_store(path: Path, tmp_path: Path) -> None:
    """A path that is a link to nothing is refused, and nothing is made where it leads."""
    path.symlink_to(tmp_path / "elsewhere")
    for read_only in (False, True):
        with pytest.raises(StorePathError, match="symbolic link to nothing"):
            LmdbEngine(str(path), read_only=read_only).open()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("read_only", [False, True])
def test_data_with_another_name_is_refused(path: Path, tmp_path: Path, read_only: bool) -> None:
    """A data file with a hard link could be open by way of another directory, with other locks."""
    LmdbEngine(str(path)).open().close()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data.mdb").hardlink_to(path / "data.mdb")
    for name in ("store", "other"):
        with pytest.raises(StorePathError, match="another name"):
            LmdbEngine(str(tmp_path / name), read_only=read_only).open()
    (tmp_path / "other" / "data.mdb").unlink()
    LmdbEngine(str(path), read_only=read_only).open().close()


@pytest.mark.parametrize("location", ["x" * 300, "a\x00b", "no/such/parent"], ids=ascii)
def test_a_path_that_cannot_be_is_refused(tmp_path: Path, location: str) -> None:
    """A path that is too long, holds a NUL or has no parent gives StorePathError."""
    with pytest.raises(StorePathError):
        LmdbEngine(f"{tmp_path}/{location}").open()


def test_a_path_may_be_any_bytes(tmp_path: Path) -> None:
    """A path that is no UTF-8, as Python passes it, holds a store as well."""
    location = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")
    with LmdbEngine(location) as engine:
        engine.write([(A, 1, 1.0)])
        engine.compact()
        engine.snapshot(location + "-copy")
    with LmdbEngine(location + "-copy", read_only=True) as engine:
        assert engine.count() == 1


def test_no_label_gets_into_a_file_name(path: Path) -> None:
    """Whatever labels are, the files of a store are the same."""
    with LmdbEngine(str(path)) as engine:
        names = ["../../etc/passwd", "/tmp/x", "a\nb", "con", ".", "..", "~", "é" * 200, "%2e"]
        engine.write((Labels(name, **{"../k": name}), 1, 1.0) for name in names)
        engine.compact()
        assert engine.label_values("../k") == sorted(names)
    assert set(modes(path.parent)) == {".", "store", *(f"store/{name}" for name in FILES)}


# How open stores are known.


@pytest.mark.parametrize("again", ["symlink", "relative", "dots", "slash", "symlink of the parent"])
def test_a_store_is_known_by_any_path(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    """A second open by another path to the same directory shares the store that is open."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "parent").symlink_to(tmp_path)
    location = {
        "symlink": "link",
        "relative": "store",
        "dots": f"{path}/../store/.",
        "slash": f"{path}//",
        "symlink of the parent": f"{tmp_path}/parent/store",
    }[again]
    with LmdbEngine(str(path)) as one, LmdbEngine(location) as two:
        assert one._store is two._store
        two.write([(A, 1, 1.0)])
        assert one.count() == 1
        with pytest.raises(StoreOptionError, match="durability"):
            LmdbEngine(location, durability="relaxed").open()


def test_a_store_removed_and_made_anew_is_another(path: Path, tmp_path: Path) -> None:
    """An engine whose directory was removed does not share its ghost with who opens a new one."""
    with LmdbEngine(str(path)) as ghost:
        ghost.write([(A, 1, 1.0)])
        for _ in range(3):  # a file system may give a free inode to the next directory
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
            path.mkdir()
            with LmdbEngine(str(path)) as engine:
                assert engine.count() == 0
                engine.write([(A, 2, 2.0)])
            with LmdbEngine(str(path)) as engine:
                assert engine.count() == 1


def test_a_store_that_was_moved_leaves_alone_what_came_in_its_place(
    path: Path, tmp_path: Path
) -> None:
    """A store moved while open goes on there, and does nothing to the next one of its path."""
    moved = tmp_path / "moved"
    with LmdbEngine(str(path)) as engine:
        engine.write([(A, 1, 1.0)])
        path.rename(moved)
        with LmdbEngine(str(path)) as other:
            other.write([(A, stamp, 2.0) for stamp in range(2, 10)])
        before = (path / "data.mdb").read_bytes()
        engine.write([(A, 20, 1.0)])
        with pytest.raises(StorageError, match="was moved or removed"):
            engine.compact()
        assert (path / "data.mdb").read_bytes() == before
    assert (path / "data.mdb").read_bytes() == before
    with LmdbEngine(str(path)) as other:
        assert other.count() == 8
        other.check()
    with LmdbEngine(str(moved)) as engine:  # was not marked as closed with the other's mark
        assert engine.count() == 2
        engine.check()


def test_what_is_written_to_a_removed_store_is_refused(path: Path) -> None:
    """After its directory was removed a store acknowledges nothing, and says why."""
    with LmdbEngine(str(path)) as engine:
        engine.write([(A, 1, 1.0)])
        shutil.rmtree(path)
        with pytest.raises(StorageError, match="was removed while"):
            engine.write([(A, 2, 1.0)])
        for call in (engine.compact, engine.stats):
            with pytest.raises(StorageError):
                call()
    assert not path.exists()


@pytest.mark.parametrize("file", ["writer.lock", "readers.lock"])
def test_a_removed_lock_lets_nothing_be_overwritten(path: Path, file: str) -> None:
    """Where a lock file was removed, what it kept apart stays apart."""
    with LmdbEngine(str(path)) as engine:
        engine.write([(A, 1, 1.0)])
        (path / file).unlink()
        if file == "writer.lock":  # another process could write by now
            with pytest.raises(StorageError, match="was removed while"):
                engine.write([(A, 2, 1.0)])
        else:  # other processes could read by now, unseen
            assert engine.compact().reason
            engine.write([(A, 2, 1.0)])
        assert engine.latest() == [(A, 1 if file == "writer.lock" else 2, 1.0)]


def test_threads_open_and_close_one_store(path: Path) -> None:
    """Threads that open and close one path at will never have it open twice, nor lose a write."""

    def work(number: int) -> None:
        for step in range(8):
            with LmdbEngine(str(path)) as engine:
                engine.write([(Labels("m", thread=str(number)), 1 + step, 1.0)])

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(work, number) for number in range(6)]:
            done.result(timeout=100)
    with LmdbEngine(str(path)) as engine:
        assert engine.count() == 6 * 8
        engine.check()


def test_closing_one_store_keeps_no_other_waiting(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that closes during its compaction lets others open and close meanwhile."""
    copying, go_on = threading.Event(), threading.Event()
    copy = environment.Environment._copy_to_scratch

    def copy_slowly(self: environment.Environment) -> None:
        copying.set()
        assert go_on.wait(100)
        copy(self)

    monkeypatch.setattr(environment.Environment, "_copy_to_scratch", copy_slowly)
    engine = LmdbEngine(str(path)).open()
    engine.write([(A, 1, 1.0)])
    with ThreadPoolExecutor(3) as pool:
        compacting = pool.submit(engine.compact)
        assert copying.wait(100)
        closing = pool.submit(engine.close)
        with LmdbEngine(str(tmp_path / "other")) as other:
            other.write([(A, 1, 1.0)])
        reopening = pool.submit(lambda: LmdbEngine(str(path)).open())
        assert not closing.done()
        go_on.set()
        assert compacting.result(timeout=100).reason == ""
        closing.result(timeout=100)
        with reopening.result(timeout=100) as again:
            assert again.count() == 1


# Read-only media.


@contextlib.contextmanager
def mounted(*arguments: str) -> Iterator[None]:
    """Mount something on the last of the arguments, or skip the test."""
    if os.geteuid():
        pytest.skip("needs root: a file system is mounted read-only")
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", arguments[-1]], check=True)


def test_a_store_on_read_only_media_can_be_read(tmp_path: Path) -> None:
    """A file system that nobody can write needs no locks: stores and snapshots there are read."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=16m", "none", str(disk)):
        with LmdbEngine(str(disk / "store")) as engine:
            engine.write([(A, 1, 1.0)])
            engine.snapshot(str(disk / "snapshot"))
        (disk / "snapshot" / "lock.mdb").unlink(missing_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for name in ("store", "snapshot"):
            with LmdbEngine(str(disk / name), read_only=True) as engine:
                assert engine.count() == 1
                engine.check()
                engine.snapshot(str(tmp_path / f"copy of {name}"))
            with pytest.raises(StorePathError, match="Read-only"):
                LmdbEngine(str(disk / name)).open()


def test_a_mount_that_is_read_only_here_alone_is_refused(tmp_path: Path, path: Path) -> None:
    """Where a writer may come by another mount, a reader that cannot be seen is refused."""
    here = tmp_path / "here"
    here.mkdir()
    with LmdbEngine(str(path)) as engine:
        engine.write([(A, 1, 1.0)])
        with mounted("--bind", str(path), str(here)):
            subprocess.run(["mount", "-o", "remount,bind,ro", str(here)], check=True)
            with pytest.raises(StorePathError, match="Read-only"):
                files.HeldLock(here, read_only=True)
