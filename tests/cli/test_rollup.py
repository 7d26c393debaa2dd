"""`tsengine rollup` keeps what `tsengine.rollup` keeps, and goes on where it was."""

from __future__ import annotations

from pathlib import Path

import pytest

import tsengine
from tests.cli.program import invoke
from tsengine import Labels

ASKED = ("cpu_usage", "--every", "1h", "-F", "mean", "-F", "max", "--end", "2026-01-02")


@pytest.mark.parametrize("target", ["rollups", "metrics"])
def test_results_are_those_of_aggregate(folder: Path, target: str) -> None:
    """Into another store or the same: what aggregate gives is stored, and a late point mended."""
    source, into = f"lmdb://{folder}/metrics", f"lmdb://{folder}/{target}"
    first = invoke("rollup", source, into, *ASKED)
    assert first.exit_code == 0, first.stderr
    assert "144 written" in first.stderr
    assert "144 unchanged" in invoke("rollup", source, into, *ASKED).stderr
    late = Labels("cpu_usage", host="web-1", region="eu")
    with tsengine.open(source) as engine:
        engine.write([(late, tsengine.timestamp("2026-01-01T00:01:00Z"), 1_000.0)])
    again = invoke("rollup", source, into, *ASKED)
    assert "2 redone" in again.stderr
    with tsengine.open(source) as engine, tsengine.open(into) as kept:
        answer = engine.aggregate(
            "cpu_usage", end="2026-01-02T00:00:00Z", functions=["max"], every="1h"
        )
        for batch in answer:
            labels = {**batch.labels, "__name__": "cpu_usage:1h", "__function__": "max"}
            (stored,) = kept.query(Labels(labels))
            assert stored.timestamps.tolist() == batch.timestamps.tolist()
            assert stored.values.tolist() == batch.values.tolist()


def test_a_rollup_that_makes_no_sense_is_code_2(folder: Path) -> None:
    """Windows of no length, an unknown function, two ways to merge: said, and nothing stored."""
    source = f"lmdb://{folder}/metrics"
    for more in (
        ["--every", "0s", "-F", "mean"],
        ["--every", "1h", "-F", "average"],
        ["--every", "1h", "-F", "mean", "--merge", "--by", "host"],
        ["--every", "1h", "-F", "mean", "--merge"],
    ):
        ended = invoke("rollup", source, f"lmdb://{folder}/new", "cpu_usage", *more)
        assert ended.exit_code == 2, ended.stderr
        assert "Traceback" not in ended.stderr
