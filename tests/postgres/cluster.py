"""Cluster: a private PostgreSQL server for tests and benchmarks.

It listens on loopback and on a socket in its own folder, on a port below 32768, as a user that
is not root, and nothing of it outlives the process that started it: the kernel tells the
server when that dies, and what it leaves on disk the next one removes.

    with Cluster() as cluster:
        psycopg.connect(cluster.url())

The programs are those in the folder TSENGINE_POSTGRES_BIN where that is set, else Debian's of
the highest version, else those on the path.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote, urlencode

_PR_SET_PDEATHSIG: Final = 1
_PREFIX: Final = "tsengine-postgres-"
_START_SECONDS: Final = 60.0
"""A start takes a fraction of a second, and recovery after a kill little more."""

_COMMON: Final = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "60",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "max_locks_per_transaction": "256",  # many partitions are dropped in one transaction
    "log_min_messages": "warning",
    "dynamic_shared_memory_type": "mmap",  # in its own folder: what a kill leaves goes with it
    "autovacuum_naptime": "5s",
    "timezone": "Asia/Kathmandu",  # an odd one: nothing may depend on it
    "jit": "off",
}
_FAST: Final = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
"""For tests that kill no server: a commit costs no write to the disk."""


class ClusterError(RuntimeError):
    """Is raised when there is no server to be had, or it does not start."""


def binaries() -> Path:
    """Give the folder of the server's programs.

    Raises:
        ClusterError: no server is installed.
    """
    named = os.environ.get("TSENGINE_POSTGRES_BIN")
    if named:
        candidates = [Path(named)]
    else:
        debian = Path("/usr/lib/postgresql").glob("*/bin")
        candidates = sorted(debian, key=lambda path: -float(path.parent.name))
        found = shutil.which("postgres")
        candidates += [Path(found).resolve().parent] if found else []
    for folder in candidates:
        if all((folder / program).exists() for program in ("initdb", "postgres")):
            return folder
    raise ClusterError(
        "no PostgreSQL server is installed: apt-get install postgresql, or name the folder of "
        "its programs in TSENGINE_POSTGRES_BIN"
    )


class Cluster:
    """A server with a folder of its own; `with` starts it, and removes it at the end.

    Start it in the main thread: the kernel ends the server when the thread that started it ends.

    Args:
        fsync: whether commits reach the disk, for tests that kill the server and for figures.
        settings: settings of the server, over the common ones.
        parent: where its folder is made; by default where temporary files are.

    Attributes:
        folder: holds data, socket and log; belongs to the user whom the server runs as.
        port: on 127.0.0.1.
        user: the name of the superuser; connections over the socket need no password.
        password: the superuser's, for connections over TCP.
    """

    user: Final = "tsengine_admin"

    def __init__(
        self,
        *,
        fsync: bool = False,
        settings: Mapping[str, str] | None = None,
        parent: Path | None = None,
    ) -> None:
        self._parent = parent
        self.settings = _COMMON | ({} if fsync else _FAST) | dict(settings or {})
        self.password = secrets.token_hex(12)
        self.port = 0
        self._uid: int | None = None
        self._gid: int | None = None
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.create()
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    # Life.

    def create(self) -> None:
        """Make the folder and the files of an empty server."""
        _sweep()
        self._bin = binaries()
        self._uid, self._gid = _server_user()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=self._parent))
        self.data = self.folder / "data"
        word = self.folder / "password"
        word.write_text(self.password)
        if self._uid is not None and self._gid is not None:
            for path in (self.folder, word):
                os.chown(path, self._uid, self._gid)
        arguments = [
            "--pgdata", str(self.data), "--username", self.user, "--pwfile", str(word),
            "--auth-local", "trust", "--auth-host", "scram-sha-256",
            "--encoding", "UTF8", "--no-locale", "--no-sync",
        ]  # fmt: skip
        made = self._run("initdb", *arguments)
        word.unlink()
        if made.returncode:
            raise ClusterError(f"initdb failed: {made.stderr}")

    def start(self) -> None:
        """Start the server, and wait until it takes connections."""
        assert self._server is None, "the server is running"
        for _ in range(10):
            self.port = self.port or _free_port()
            if self._started():
                return
            self.port = 0  # somebody else was faster to take it
        raise ClusterError(f"the server does not start: {self.log()[-2_000:]}")

    def stop(self, *, mode: str = "fast") -> None:
        """Stop the server: `fast` ends sessions, `smart` waits for them, `immediate` recovers."""
        if self._server is not None:
            signals = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
            self._server.send_signal(signals[mode])
            self._server.wait(60)
            self._server = None

    def kill(self) -> None:
        """End all processes of the server by SIGKILL, as a power cut or the kernel would."""
        assert self._server is not None, "the server is not running"
        postmaster = self._server.pid
        os.kill(postmaster, signal.SIGSTOP)  # so that it starts no other
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        for pid in (postmaster, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._server.wait(60)
        self._server = None

    def restart(self) -> None:
        """Start the server again on its port, after `stop` or `kill`; a running one is stopped."""
        self.stop()
        self.start()

    def remove(self) -> None:
        """Stop the server and remove its files; harmless where there are none."""
        self.stop(mode="immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    # Where it is.

    def url(
        self,
        database: str = "postgres",
        *,
        user: str | None = None,
        password: str | None = None,
        port: int | None = None,
        **parameters: object,
    ) -> str:
        """Give a URL of the server over TCP: by default of the superuser.

        Args:
            database: its name.
            user: who connects.
            password: of that user.
            port: another one, as of a proxy.
            parameters: what stands behind the question mark.
        """
        who = quote(user or self.user, safe="")
        word = quote(self.password if password is None else password, safe="")
        tail = f"?{urlencode(parameters)}" if parameters else ""
        return f"postgresql://{who}:{word}@127.0.0.1:{port or self.port}/{database}{tail}"

    def local_url(self, database: str = "postgres", **parameters: object) -> str:
        """Give a URL of the server over its socket, of the superuser, without a password."""
        query = urlencode({"host": str(self.folder), "port": self.port, **parameters})
        return f"postgresql://{self.user}@/{database}?{query}"

    def log(self) -> str:
        """Give what the server has logged."""
        log = self.folder / "log"
        return log.read_text(errors="replace") if log.exists() else ""

    # Inside.

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._bin / program, *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=_environment(),
            check=False,
            timeout=_START_SECONDS,
            user=self._uid,
            group=self._gid,
            extra_groups=None if self._uid is None else (),  # not those of root
        )

    def _started(self) -> bool:
        settings = {
            **self.settings,
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        libc = ctypes.CDLL(None)
        parent = os.getpid()

        def follow_the_parent() -> None:
            # After the user has changed, which would undo it. The server's answer to SIGQUIT is
            # to end all of its processes at once.
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)
            if os.getppid() != parent:  # it is gone already
                os._exit(1)

        with (self.folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [self._bin / "postgres", "-D", str(self.data), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=_environment(),
                preexec_fn=follow_the_parent,  # noqa: PLW1509  # it takes no lock of Python's
                user=self._uid,
                group=self._gid,
                extra_groups=None if self._uid is None else (),
            )
        deadline = time.monotonic() + _START_SECONDS
        while self._server.poll() is None:
            if self._is_ready():
                return True
            if time.monotonic() > deadline:
                self.stop(mode="immediate")
                return False
            time.sleep(0.01)
        self._server = None
        return False

    def _is_ready(self) -> bool:
        # The last line of this file says when connections are taken; the first whose it is.
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        assert self._server is not None
        return len(lines) >= 8 and int(lines[0]) == self._server.pid and lines[7].strip() == "ready"


def _server_user() -> tuple[int, int] | tuple[None, None]:
    """Give user and group that a server of root's runs as; None where we are not root."""
    if os.geteuid():
        return None, None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            found = pwd.getpwnam(name)
            return found.pw_uid, found.pw_gid
    raise ClusterError("neither a user postgres nor a user nobody is there to run the server")


def _environment() -> dict[str, str]:
    """Give an environment without settings of somebody else's server."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PG") and name != "TMPDIR"
    }


def _free_port() -> int:
    """Choose a port that nobody listens on, below those that the kernel gives to clients."""
    chooser = random.SystemRandom()
    for _ in range(100):
        port = chooser.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ClusterError("no port from 20000 to 32000 is free")


def _sweep() -> None:
    """Remove what clusters of processes that were killed have left on disk."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)
