"""A call that runs out of memory has happened or not, and the next one works."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability.memory_errors import run

pytest.importorskip("_testcapi", reason="this Python was built without _testcapi")

pytestmark = pytest.mark.timeout(600)  # children have a timeout of their own

SAMPLE = [1, 3, 8, 21, 47, 109, 233, 498]


@pytest.mark.parametrize("scheme", ["lmdb", "memory"])
def test_nothing_is_lost_or_half_done_without_memory(tmp_path: Path, scheme: str) -> None:
    """Each operation survives a failing allocation, whichever of a sample it is."""
    outcomes = run(scheme, tmp_path, SAMPLE, ways=["one"])
    assert outcomes["MemoryError"] > 50, outcomes
    assert outcomes["ok"] > 10, outcomes
    if scheme == "lmdb":
        assert not outcomes["torn"], outcomes


@pytest.mark.parametrize("fault", ["takes first", "holds lock"])
def test_the_harness_sees_faults(tmp_path: Path, fault: str) -> None:
    """A buffer that takes points and then raises is caught, and a lock that is not given back."""
    with pytest.raises(AssertionError, match=r"broken|hang"):
        run(
            "memory",
            tmp_path,
            range(1, 150),
            operations=["buffer_write_many", "count"],
            ways=["one"],
            fault=fault,
        )
