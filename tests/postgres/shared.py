"""The server that the tests of a worker share, started when the first of them asks for it."""

from __future__ import annotations

import atexit
import functools
import os

import pytest

from tests.postgres.cluster import Cluster, ClusterError, binaries


@functools.cache
def shared_cluster() -> Cluster:
    """Give the server of this process, without fsync; it ends with the process.

    Nobody stops or kills it: a test of that starts one of its own.
    """
    require_server()
    cluster = Cluster()
    cluster.__enter__()
    atexit.register(cluster.remove)
    return cluster


def require_server() -> None:
    """Skip where no server is installed, aloud; in CI that is a failure."""
    try:
        binaries()
    except ClusterError as error:
        pytest.fail(str(error)) if os.environ.get("CI") else pytest.skip(str(error))
