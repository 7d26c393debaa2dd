"""Caps and retention: what is refused, what is evicted, what is no longer seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tsengine.engine import Capability, Engine
from tsengine.errors import DuplicatePointError, UnknownOptionError, ValueKindError
from tsengine.model import GroupedBatch, Labels, ProducerMark, WriteReceipt
from tsengine.testing.compare import assert_range, assert_rows, assert_same, rows_of
from tsengine.testing.conformance.base import A, B, C, ConformanceBase, requires
from tsengine.testing.reference import ReferenceModel
from tsengine.testing.strategies import TIME_BASE

_HOUR = 3_600_000_000_000
_T = TIME_BASE


def _write(engine: Engine, labels: Labels, *moments: int, value: float = 1.0) -> WriteReceipt:
    return engine.write([(labels, moment, value) for moment in moments])


def _times(engine: Engine, labels: Labels) -> list[int]:
    return [moment for moment, _ in rows_of(engine.query(labels)).get(labels, [])]


class CapConformance(ConformanceBase):
    """Caps per series and in total."""

    @requires(Capability.CAP)
    def test_a_ring_keeps_the_newest(self) -> None:
        """A full series gives its oldest points for newer ones, and the receipt counts them."""
        engine = self.open(max_points_per_series=3)
        assert _write(engine, A, 1, 2, 3) == WriteReceipt(3, 3)
        assert _write(engine, A, 4) == WriteReceipt(1, 1, evicted=1)
        assert _write(engine, A, 6, 5) == WriteReceipt(2, 2, evicted=2)
        assert _times(engine, A) == [4, 5, 6]
        assert _write(engine, B, 1, 2) == WriteReceipt(2, 2)
        assert engine.count() == 5

    @requires(Capability.CAP)
    def test_a_point_too_old_for_a_full_ring_is_refused(self) -> None:
        """What is older than all of a full series is refused by index; the rest is stored."""
        engine = self.open(max_points_per_series=3)
        _write(engine, A, 10, 20, 30)
        receipt = engine.write([(B, 1, 1.0), (A, 5, 1.0), (A, 25, 1.0), (A, 9, 1.0)])
        assert receipt == WriteReceipt(4, 2, 2, 1, {"cap": 2}, (1, 3))
        assert _times(engine, A) == [20, 25, 30]
        assert _times(engine, B) == [1]

    @requires(Capability.CAP)
    def test_overwriting_evicts_nothing(self) -> None:
        """A point at a timestamp that is stored takes no room of another."""
        engine = self.open(max_points_per_series=3)
        _write(engine, A, 10, 20, 30)
        assert _write(engine, A, 10, 20, 30, value=2.0) == WriteReceipt(3, 3)
        assert _write(engine, A, 10, 10, 10, value=3.0) == WriteReceipt(3, 3)
        assert rows_of(engine.query())[A] == [(10, 3.0), (20, 2.0), (30, 2.0)]

    @requires(Capability.CAP)
    def test_a_cap_takes_a_batch_as_a_set(self) -> None:
        """Of stored and incoming together the newest stay, in whatever order they came."""
        for times in ([1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [3, 5, 1, 4, 2], [5, 5, 1, 2, 4, 3]):
            engine = self.open(f"store-{times}", max_points_per_series=3)
            receipt = _write(engine, A, *times)
            refused = tuple(index for index, moment in enumerate(times) if moment < 3)
            accepted = len(times) - 2
            assert receipt == WriteReceipt(len(times), accepted, 2, 0, {"cap": 2}, refused)
            assert _times(engine, A) == [3, 4, 5]

    @requires(Capability.CAP)
    def test_an_overwrite_of_what_the_batch_pushes_out_is_refused(self) -> None:
        """A point at a stored timestamp that newer points of its batch push out is refused."""
        engine = self.open(max_points_per_series=3)
        _write(engine, A, 10, 20, 30)
        receipt = _write(engine, A, 10, 40, value=2.0)
        assert receipt == WriteReceipt(2, 1, 1, 1, {"cap": 1}, (0,))
        assert rows_of(engine.query())[A] == [(20, 1.0), (30, 1.0), (40, 2.0)]

    @requires(Capability.CAP)
    def test_indices_are_in_the_callers_order(self) -> None:
        """Refused positions count what the caller gave, over series, kinds and staging."""
        engine = self.open(max_points_per_series=1, integers="int")
        points = [(C, 5, "x"), (A, 9, 1.0), (B, 1, 5), (A, 8, 1.0), (C, 4, "y"), (B, 2, 6)]
        assert engine.write(points).indices == (2, 3, 4)
        for labels, moment, value in points:
            engine.write_to_buffer((labels, moment + 1, value))
        assert engine.flush_buffer().indices == (2, 3, 4)
        assert engine.write_series(A, [5, 100, 99], [1.0, 1.0, 1.0]).indices == (0, 2)
        offsets, times = np.array([0, 2, 4]), np.array([3, 200, 300, 2])
        batch = GroupedBatch([Labels("y"), Labels("x")], offsets, times, np.ones(4))
        assert engine.write_batch(batch).indices == (0, 3)

    @requires(Capability.CAP)
    def test_the_total_cap_takes_the_globally_oldest(self) -> None:
        """max_points evicts the oldest of all series, of equal ones by series ID."""
        engine = self.open(max_points=4)
        _write(engine, B, 10, 20)
        _write(engine, A, 10, 30)
        assert _write(engine, C, 40) == WriteReceipt(1, 1, evicted=1)
        assert (_times(engine, A), _times(engine, B)) == ([30], [10, 20])
        assert _write(engine, C, 50) == WriteReceipt(1, 1, evicted=1)
        assert _times(engine, B) == [20]
        assert _write(engine, C, 5) == WriteReceipt(1, 0, 1, 0, {"cap": 1}, (0,))
        assert _write(engine, A, 60, 70, 80, 90) == WriteReceipt(4, 4, evicted=4)
        assert list(rows_of(engine.query())) == [A]
        assert engine.stats().points == 4

    @requires(Capability.CAP)
    def test_both_caps_hold_together(self) -> None:
        """With both caps the ring of each series comes first, then the total."""
        options = {"max_points_per_series": 3, "max_points": 5}
        engine, model = self.open(**options), ReferenceModel(**options)  # type: ignore[arg-type]  # one mapping for both
        generator = np.random.default_rng(5)
        for turn in range(40):
            points = [
                ((A, B, C)[which], moment + turn // 4, float(turn))
                for which, moment in generator.integers([0, 1], [3, 9], (turn % 5 + 1, 2)).tolist()
            ]
            assert engine.write(points) == model.write(points)
            assert_same(engine, model)

    @requires(Capability.CAP)
    def test_eviction_leaves_the_series(self) -> None:
        """A series without rows left stays listed and keeps its kind."""
        engine = self.open(max_points=1)
        _write(engine, A, 1)
        _write(engine, B, 2)
        assert list(engine.series()) == [A, B]
        assert engine.stats().series == 2
        assert [point.labels for point in engine.latest()] == [B]
        with pytest.raises(ValueKindError):
            engine.write([(A, 5, "x")])

    @requires(Capability.CAP)
    def test_a_series_of_refused_points_is_not_listed(self) -> None:
        """A new series none of whose points are stored does not come to be."""
        engine = self.open(max_points=1)
        _write(engine, A, 10)
        assert _write(engine, B, 5).refused == 1
        assert list(engine.series()) == [A]
        engine.write([(B, 20, "x")])
        assert_rows(rows_of(engine.query()), {B: [(20, "x")]})

    @requires(Capability.CAP)
    def test_counters_are_exact_after_everything(self) -> None:
        """Evictions, overwrites, refusals and deletes leave exact counts."""
        engine = self.open(max_points_per_series=4, max_points=6)
        model = ReferenceModel(max_points_per_series=4, max_points=6)
        steps: list[tuple[Labels, list[int]]] = [
            (A, [1, 2, 3, 4, 5]),
            (B, [3, 3, 9, 1]),
            (A, [5, 5, 6]),
            (C, [100, 2]),
            (B, [50, 51, 52, 53, 54]),
        ]
        for labels, moments in steps:
            points = [(labels, moment, 1.0) for moment in moments]
            assert engine.write(points) == model.write(points)
            assert_same(engine, model)
            engine.delete(labels, 3, 6)
            model.delete(labels, 3, 6)
            assert_same(engine, model)
        engine.delete(B)
        model.delete(B)
        assert_same(engine, model)

    @requires(Capability.CAP)
    @pytest.mark.parametrize("policy", ["last", "first", "min", "max", "sum"])
    def test_policies_fold_under_a_cap(self, policy: str) -> None:
        """What a cap leaves is folded by the policy; what was evicted is not remembered."""
        engine = self.open(duplicate_policy=policy, max_points_per_series=2)
        model = ReferenceModel(duplicate_policy=policy, max_points_per_series=2)
        for moments in ([1, 2, 2], [2, 1], [3], [1, 2], [3, 2, 3], [4, 4, 1]):
            points = [(A, moment, float(index + 1)) for index, moment in enumerate(moments)]
            assert engine.write(points) == model.write(points)
            assert_range(engine, model)

    @requires(Capability.CAP)
    def test_room_is_free_again_after_a_delete(self) -> None:
        """Deleted points take no room, and older ones may come back."""
        engine = self.open(max_points_per_series=2, max_points=3)
        _write(engine, A, 10, 20)
        engine.delete(A, 10, 11)
        assert _write(engine, A, 5) == WriteReceipt(1, 1)
        assert _times(engine, A) == [5, 20]
        engine.delete(A)
        assert _write(engine, A, 1, 2) == WriteReceipt(2, 2)

    @requires(Capability.CAP)
    def test_duplicates_are_refused_before_the_cap(self) -> None:
        """Under `error` a taken point raises, and evicts nothing."""
        engine = self.open(duplicate_policy="error", max_points_per_series=2)
        _write(engine, A, 10, 20)
        with pytest.raises(DuplicatePointError) as caught:
            _write(engine, A, 30, 20)
        assert caught.value.indices == (1,)
        assert _times(engine, A) == [10, 20]

    @requires(Capability.CAP, Capability.PRODUCER_MARKS)
    def test_a_mark_is_kept_where_all_is_refused(self) -> None:
        """A batch of refused points is committed nevertheless, with its mark and receipt."""
        engine = self.open(max_points_per_series=1)
        _write(engine, A, 10)
        mark = ProducerMark("producer", 1)
        for _ in range(2):
            engine.write_to_buffer((A, 5, 1.0))
            assert engine.flush_buffer(mark) == WriteReceipt(1, 0, 1, 0, {"cap": 1}, (0,))
        assert engine.high_water("producer") == mark

    @requires(Capability.CAP)
    @pytest.mark.parametrize("value", [0, -1, True, 1.5, "many"])
    def test_a_cap_is_a_positive_integer(self, value: object) -> None:
        """Anything else is refused when the engine is made."""
        for name in ("max_points", "max_points_per_series"):
            with pytest.raises(UnknownOptionError, match=name):
                self.make_engine(self.path / "store", **{name: value})


class RetentionConformance(ConformanceBase):
    """Retention, a filter by age."""

    def _open_at(self, now: Sequence[int], **options: object) -> tuple[Engine, list[int]]:
        clock = list(now)
        return self.open(retention="1h", clock_ns=lambda: clock[0], **options), clock

    @requires(Capability.RETENTION)
    def test_expired_points_are_not_seen(self) -> None:
        """Every read leaves out what is older than now − retention, to the nanosecond."""
        engine, clock = self._open_at([_T])
        times = [_T - _HOUR, _T - _HOUR + 1, _T - 5, _T, _T + _HOUR]
        assert _write(engine, A, *times) == WriteReceipt(5, 5)
        _write(engine, B, _T - _HOUR)
        assert _times(engine, A) == times
        assert engine.count() == 6
        clock[0] += 1
        assert _times(engine, A) == times[1:]
        assert engine.count() == 4
        assert engine.count(A, _T - _HOUR, _T - 5) == 1
        assert [point.timestamp for point in engine.earliest()] == [times[1]]
        assert [point.labels for point in engine.latest()] == [A]
        assert sum(map(len, engine.scan())) == 4
        clock[0] += 10 * _HOUR
        assert engine.count() == 0
        assert engine.latest() == []

    @requires(Capability.RETENTION)
    def test_retained_from_is_where_reads_begin(self) -> None:
        """`retained_from` tells where every read begins, and does not move backwards either."""
        engine, clock = self._open_at([_T])
        _write(engine, A, _T - _HOUR, _T)
        for clock[0], begins in ((_T, _T), (_T + 1, _T + 1), (_T - _HOUR, _T + 1)):
            assert engine.retained_from() == begins - _HOUR
            assert engine.count() == (2 if begins == _T else 1)

    @requires(Capability.RETENTION)
    def test_expired_points_are_refused(self) -> None:
        """A point older than retention allows is refused by index; the rest is stored."""
        engine, _ = self._open_at([_T])
        points = [(A, _T, 1.0), (B, _T - _HOUR - 1, 1.0), (A, _T - _HOUR, 1.0), (A, 1, 1.0)]
        assert engine.write(points) == WriteReceipt(4, 2, 2, 0, {"retention": 2}, (1, 3))
        assert list(engine.series()) == [A]
        assert _times(engine, A) == [_T - _HOUR, _T]

    @requires(Capability.RETENTION)
    def test_now_never_moves_backwards(self) -> None:
        """When the clock is set back nothing comes back, and what was too old is so still."""
        engine, clock = self._open_at([_T])
        _write(engine, A, _T - _HOUR, _T)
        clock[0] = _T + 10
        assert _times(engine, A) == [_T]
        clock[0] = _T - 10 * _HOUR
        assert _times(engine, A) == [_T]
        assert engine.count() == 1
        assert _write(engine, A, _T - _HOUR + 9) == WriteReceipt(1, 0, 1, 0, {"retention": 1}, (0,))
        assert _write(engine, A, _T - _HOUR + 10) == WriteReceipt(1, 1)

    @requires(Capability.RETENTION)
    def test_expiry_leaves_the_series(self) -> None:
        """A series whose rows have all expired stays listed and keeps its kind."""
        engine, clock = self._open_at([_T])
        _write(engine, A, _T)
        clock[0] += 2 * _HOUR
        assert engine.count() == 0
        assert list(engine.series()) == [A]
        with pytest.raises(ValueKindError):
            engine.write([(A, clock[0], "x")])
        engine.compact()
        assert list(engine.series()) == [A]

    @requires(Capability.RETENTION)
    @pytest.mark.parametrize("policy", ["first", "min", "max", "sum", "last"])
    def test_policies_fold_under_retention(self, policy: str) -> None:
        """What retention lets through is folded by the policy, before and after compact()."""
        engine, clock = self._open_at([_T], duplicate_policy=policy)
        model = ReferenceModel(duplicate_policy=policy, retention=_HOUR, clock_ns=lambda: clock[0])
        for step in range(6):
            points = [
                (labels, _T + offset * _HOUR // 2, float(step - offset))
                for labels in (A, B)
                for offset in (-2, -1, 0, 1, 0)
            ]
            assert engine.write(points) == model.write(points)
            assert_range(engine, model)
            clock[0] += _HOUR // 3
            if step % 2:
                engine.compact()
            assert_range(engine, model)

    @requires(Capability.RETENTION)
    def test_a_scan_takes_its_now_once(self) -> None:
        """Rows that expire while a scan is under way are still given by it."""
        engine, clock = self._open_at([_T])
        for labels in (A, B, C):
            _write(engine, labels, _T - _HOUR, _T)
        scan = engine.scan()
        first = next(scan)
        clock[0] += 5
        rows = rows_of([first, *scan], joined=False)
        assert {len(of_series) for of_series in rows.values()} == {2}
        assert engine.count() == 3

    @requires(Capability.RETENTION, Capability.PERSISTENCE)
    def test_retention_belongs_to_the_store(self) -> None:
        """After reopening, given or not, retention is what it was."""
        engine, clock = self._open_at([_T])
        _write(engine, A, _T - 10, _T)
        engine.close()
        clock[0] += _HOUR
        engine = self.open(clock_ns=lambda: clock[0])
        assert engine.options.retention == _HOUR
        assert _times(engine, A) == [_T]

    @requires(Capability.RETENTION, Capability.CAP)
    def test_expired_points_take_no_room(self) -> None:
        """Expired rows are gone before a cap counts: they are not evicted, and evict nothing."""
        engine, clock = self._open_at([_T], max_points_per_series=2, max_points=3)
        _write(engine, A, _T - 1, _T)
        _write(engine, B, _T)
        clock[0] += _HOUR
        assert _write(engine, A, _T + 1) == WriteReceipt(1, 1)
        assert _write(engine, A, _T + 2) == WriteReceipt(1, 1, evicted=1)
        assert (_times(engine, A), _times(engine, B)) == ([_T + 1, _T + 2], [_T])

    @requires(Capability.RETENTION)
    @pytest.mark.parametrize("value", [0, 60, 1.5, "soon", "-5m", "0s", True])
    def test_retention_is_a_duration(self, value: object) -> None:
        """Bare numbers and other things are refused when the engine is made."""
        with pytest.raises(UnknownOptionError, match="retention"):
            self.make_engine(self.path / "store", retention=value)
