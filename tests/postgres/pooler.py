"""Pooler: PgBouncer in front of a cluster, giving each transaction any server connection."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.postgres.cluster import Cluster
from tests.postgres.proxy import free_port


def require_pooler() -> str:
    """Skip where PgBouncer is not installed, aloud; in CI that is a failure."""
    program = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is not None:
        return program
    message = "PgBouncer is not installed: apt-get install pgbouncer"
    return pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)


@contextlib.contextmanager
def pooled(cluster: Cluster, folder: Path, *, size: int) -> Iterator[int]:
    """Run PgBouncer with so many server connections, pooled by transaction; gives its port."""
    program = require_pooler()
    owner = cluster.folder.stat()
    port = free_port()
    users = folder / "users"
    users.write_text(f'"{cluster.user}" "{cluster.password}"\n')
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n* = host={cluster.folder} port={cluster.port}\n[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = plain\nauth_file = {users}\npool_mode = transaction\n"
        f"default_pool_size = {size}\nlogfile = {folder / 'pgbouncer.log'}\n"
    )
    for path in (folder, users, settings):
        os.chown(path, owner.st_uid, owner.st_gid)
    am_root = os.geteuid() == 0
    process = subprocess.Popen(
        [program, str(settings)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        user=owner.st_uid if am_root else None,
        group=owner.st_gid if am_root else None,
        extra_groups=() if am_root else None,
    )
    try:
        while process.poll() is None:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(cluster.url(port=port), connect_timeout=5).close()
                break
        assert process.poll() is None, (folder / "pgbouncer.log").read_text()
        yield port
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
