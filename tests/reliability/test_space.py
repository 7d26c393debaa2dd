"""Space: the file stays within twice the live data; compact() gives back, or says why not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.reliability.space import Plan, Soak, compact_beside_readers
from tsengine.backends.lmdb import files


@pytest.mark.parametrize(
    "plan",
    [
        Plan(1, retention_commits=60, range_deletes=0.1, series_deletes=0.05),
        Plan(2, retention_commits=None, range_deletes=0.05, overwrites=0.2),
        Plan(3, retention_commits=60, range_deletes=0.1, scans=0.02),
    ],
    ids=["retention and deletes", "overwrites", "under scans"],
)
def test_the_file_stays_within_twice_the_live_data(plan: Plan, tmp_path: Path) -> None:
    """Merges, deletes and retention leave no more than that, beside what scans held."""
    assert len(Soak(plan, tmp_path).run()) > 5


def test_a_store_that_is_never_swept_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harness sees a file that grows because merged runs stay in it."""
    soak = Soak(Plan(1, retention_commits=60), tmp_path)
    monkeypatch.setattr(soak.engine._store.sweeper, "sweep", lambda: False)
    monkeypatch.setattr(soak.engine._store.sweeper, "take_tails", list)
    with pytest.raises(AssertionError, match="times the"):
        soak.run()


def test_compaction_loses_no_commit_and_says_when_it_could_not(tmp_path: Path) -> None:
    """Alone it gives space back; beside readers elsewhere it says so, and they miss nothing."""
    done = compact_beside_readers(1, tmp_path, 14)
    assert done.given_back
    assert done.refused
    assert done.reads


def test_a_compaction_under_readers_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harness sees a file that is swapped although another process has it open."""

    @contextmanager
    def nobody(lock: files.ReadersLock) -> Iterator[bool]:
        yield True

    monkeypatch.setattr(files.ReadersLock, "shut_out", nobody)
    with pytest.raises(AssertionError, match="compacted under an open reader"):
        compact_beside_readers(1, tmp_path, 14)
