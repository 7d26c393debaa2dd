"""The example runs, on the installed package, against the server of the tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.postgres.cluster import Cluster
from tests.postgres.tables import connected

EXAMPLE = Path(__file__).parents[2] / "examples" / "bulk_upsert.py"


def test_the_example_ends_consistent(cluster: Cluster) -> None:
    """Both tables hold what they should, the last word says so, and nothing is left behind."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE), cluster.url(), "--rows", "6000"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert ended.stdout.split()[-1] == "consistent"
    assert ended.stderr == ""
    assert cluster.password not in ended.stdout
    with connected(cluster) as connection:
        left = "SELECT count(*) FROM pg_namespace WHERE nspname = 'tsengine_example'"
        assert connection.execute(left).fetchone() == (0,)
