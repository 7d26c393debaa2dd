"""Several writers and readers on one store: nothing is lost, and nobody is in another's way."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

import tsengine
from tests.postgres import shuffled_writer
from tests.postgres.cluster import Cluster
from tests.postgres.shuffled_writer import WRITERS, batches
from tests.postgres.stores import admin, make_postgres, schema_of
from tsengine.backends.postgres import writing
from tsengine.errors import DuplicatePointError, ValueKindError, ValueOverflowError
from tsengine.model import Labels, ProducerMark
from tsengine.selectors import to_selector

pytestmark = pytest.mark.usefixtures("stores")


@pytest.mark.parametrize("policy", ["last", "max", "sum"])
def test_writers_with_shuffled_keys_never_deadlock(
    cluster: Cluster, tmp_path: Path, policy: str
) -> None:
    """Four processes write the same keys in any order, by both ways, for 75 rounds; none fails."""
    environment = {**os.environ, "PYTHONPATH": str(Path(tsengine.__file__).parents[1])}
    with make_postgres(tmp_path, duplicate_policy=policy) as engine:
        command = [sys.executable, shuffled_writer.__file__, cluster.url(), schema_of(tmp_path)]
        writers = [
            subprocess.Popen([*command, str(number)], env=environment, stderr=subprocess.PIPE)
            for number in range(WRITERS)
        ]
        assert [one.communicate(timeout=100)[1] for one in writers] == [b""] * WRITERS
        engine.check()
        if policy != "max":
            return
        written: dict[tuple[Labels, int], float] = {}
        for writer in range(WRITERS):
            for batch in batches(writer):
                for labels, moment, value in chain.from_iterable(
                    group.points() for group in batch.groups()
                ):
                    key = labels, moment
                    written[key] = max(written.get(key, 0.0), float(str(value)))
        found = {
            (labels, moment): value
            for batch in engine.query()
            for labels, moment, value in batch.points()
        }
        assert found == written


def test_a_series_removed_elsewhere_is_listed_anew(tmp_path: Path) -> None:
    """What one process removes, another that remembers it lists again, of any kind."""
    labels = Labels("cpu")
    with make_postgres(tmp_path) as one, make_postgres(tmp_path) as other:
        one.write([(labels, 1, 1.0)])
        other.write([(labels, 2, 2.0)])
        other.delete(labels)
        one.write([(labels, 3, 3.0)])
        assert one.query(labels)[0].values.tolist() == [3.0]
        assert other.query(labels)[0].values.tolist() == [3.0]
        other.delete(labels)
        one.write([(labels, 4, "text")])
        with pytest.raises(ValueKindError):
            other.write([(labels, 5, 5.0)])
        assert other.series_kind(labels) == 3
        other.delete(labels)
        one.write_series(labels, [1], np.array([7]))
        other.write([(labels, 5, 5)])
        one.check()


def test_rows_of_others_are_no_new_rows(tmp_path: Path) -> None:
    """A commit that takes its rows for new ones and is wrong folds them as the policy says."""
    labels = Labels("cpu")
    with make_postgres(tmp_path, duplicate_policy="sum") as one, make_postgres(tmp_path) as other:
        one.write([(labels, 1, 1.0)])
        other.write_series(labels, np.arange(1, 11), np.ones(10))
        one.write_series(labels, np.arange(2, 12), np.ones(10))
        one.write([(labels, 12, 1.0)])
        assert other.query()[0].values.tolist() == [2.0] * 10 + [1.0, 1.0]


def test_marks_of_one_producer_take_turns(tmp_path: Path) -> None:
    """A batch repeated by another process under its mark is stored once."""
    labels = Labels("cpu")
    with make_postgres(tmp_path, duplicate_policy="sum") as one, make_postgres(tmp_path) as other:
        for engine in (one, other, one):
            engine.write_to_buffer((labels, 1, 1.0))
            assert engine.flush_buffer(ProducerMark("p", 2**70, 3)).accepted == 1
        assert other.high_water("p") == ProducerMark("p", 2**70, 3)
        assert one.query()[0].values.tolist() == [1.0]


def test_every_offender_is_named_across_kinds(tmp_path: Path) -> None:
    """A commit with sums that overflow in one kind names them, and stores nothing of the other."""
    ints = Labels("ints")
    with make_postgres(tmp_path, duplicate_policy="sum", integers="int") as engine:
        engine.write_series(ints, [1, 2, 3], np.array([2**62, 5, -(2**63)]))
        with pytest.raises(ValueOverflowError) as caught:
            engine.write([(Labels("f"), 1, 0.5), (ints, 1, 2**62), (ints, 2, 1), (ints, 3, -1)])
        assert caught.value.indices == (1, 3)
        assert engine.count() == 3
        engine.write([(ints, 3, 2**62), (ints, 3, 2**62), (Labels("f"), 1, 0.5)])
        assert engine.query(ints)[0].values.tolist() == [2**62, 5, 0]
        engine.write([(ints, 4, -(2**62)), (ints, 4, -(2**62)), (ints, 4, 1)])
        assert engine.latest(ints)[0].value == -(2**63) + 1


def test_duplicates_are_named_whatever_is_stored(tmp_path: Path) -> None:
    """Under `error` the second of a batch and those stored are named, by both ways to write."""
    labels = Labels("cpu")
    with make_postgres(tmp_path, duplicate_policy="error") as engine:
        engine.write_series(labels, [5], [1.0])
        with pytest.raises(DuplicatePointError) as caught:
            engine.write_series(labels, [1, 5, 2, 1], [1.0, 2.0, 3.0, 4.0])
        assert caught.value.indices == (1, 3)
        many = np.arange(1, writing.UNNEST_ROWS_MAX + 10)
        with pytest.raises(DuplicatePointError) as caught:
            engine.write_series(labels, many, many.astype(float))
        assert caught.value.indices == (4,)
        assert engine.count() == 1


def test_a_scan_sees_its_moment(tmp_path: Path) -> None:
    """A scan in one process sees nothing of what others write, delete or remove meanwhile."""
    names = [Labels("many", number=f"{number:04}") for number in range(600)]
    with make_postgres(tmp_path) as one, make_postgres(tmp_path) as other:
        one.write([(labels, 1, 1.0) for labels in names])
        scan = one.scan()
        first = next(scan)
        other.write([(labels, 2, 2.0) for labels in names])
        other.delete(to_selector('many{number=~".*[05]"}'))
        found = [first, *scan]
        assert [batch.labels for batch in found] == names
        assert {batch.values.tolist()[0] for batch in found} == {1.0}
        assert one.count() == 2 * 480


def test_a_reading_process_holds_few_sessions(tmp_path: Path) -> None:
    """Scans that are left half done give their sessions back, and the pool is bounded."""
    with make_postgres(tmp_path, pool_size=3, application_name="few") as engine:
        engine.write_series(Labels("cpu"), np.arange(1, 20_001), np.ones(20_000))
        for _ in range(10):
            next(engine.scan())
        scans = [engine.scan() for _ in range(2)]
        for scan in scans:
            next(scan)
        assert engine.count() == 20_000
        assert 0 < sessions("few") <= 3
        for scan in scans:
            assert sum(map(len, scan)) == 20_000 - 4_096
    while sessions("few"):
        pass  # until the server has noticed


def sessions(name: str) -> int:
    """Count the sessions of an application on the server."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
    row = admin().execute(query, (name,)).fetchone()
    assert row is not None
    return int(str(row[0]))
