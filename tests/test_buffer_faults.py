"""What becomes of points whose commit fails: retried, halved, bisected, rejected, never lost."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.recorder import AT_ONCE, A, B, C, Recorder, failing, points, run_threads
from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.memory import MemoryEngine
from tsengine.buffer import WriteBuffer
from tsengine.buffering.acknowledgement import Acknowledgement
from tsengine.engine import Engine
from tsengine.errors import (
    BatchTooLargeError,
    InvalidDataError,
    NotOpenError,
    ReadOnlyError,
    RejectedPointsError,
    StorageError,
    StorageFullError,
    UnsavedPointsError,
)
from tsengine.model import DataPoint, Labels, PointLike, ProducerMark, Value, WriteReceipt
from tsengine.retry import RetryPolicy
from tsengine.testing.faults import Fault, FaultyHandler, When

QUICK = RetryPolicy(max_retries=3, backoff_min=0.0, backoff_max=0.0, min_batch_size=1)
"""As patient as by default, without pauses."""

SERIES = [Labels("load", host=str(number)) for number in range(4)]


class Chaos(Recorder):
    """A recorder that fails by plan, with errors of all classes, before or after the effect.

    Attributes:
        plan: what each flush meets; then all goes well.
        bad: whether a point can never be stored.
        size_max: more points are too large.
        names_offenders: whether errors of bad points carry their indices.
    """

    def __init__(
        self,
        plan: Iterable[str] = (),
        *,
        bad: Callable[[DataPoint], bool] = lambda point: False,
        size_max: int = 10**9,
        names_offenders: bool = False,
    ) -> None:
        super().__init__()
        self.plan: Iterator[str] = iter(plan)
        self.bad = bad
        self.size_max = size_max
        self.names_offenders = names_offenders
        self.sizes: list[int] = []
        self.lost_replies = 0

    def flush_buffer(self, mark: ProducerMark | None = None) -> WriteReceipt:
        """Commit, or fail as planned."""
        rows = [point for batch in self.staged for one in batch.groups() for point in one.points()]
        outcome = next(self.plan, "ok")
        known = mark is not None and self.high_water(mark.producer)
        if known and mark and (known.sequence, known.piece) >= (mark.sequence, mark.piece):
            outcome = outcome if outcome == "transient" else "ok"  # as a store that looks first
        else:
            self.sizes.append(len(rows))
            bad = [row for row, point in enumerate(rows) if self.bad(point)]
            if bad and outcome in ("ok", "after", "liar"):
                self.discard_buffer()
                raise InvalidDataError("bad", indices=bad if self.names_offenders else ())
            if len(rows) > self.size_max and outcome in ("ok", "after", "liar"):
                self.discard_buffer()
                raise BatchTooLargeError(f"{len(rows)} are too many")
        if outcome == "transient":
            self.discard_buffer()
            raise StorageError("transient")
        if outcome == "fatal":
            self.discard_buffer()
            raise ReadOnlyError("fatal")
        receipt = super().flush_buffer(mark)
        if outcome == "after":
            self.lost_replies += 1
            raise StorageError("the reply is lost")
        if outcome == "liar":
            self.lost_replies += 1
            raise InvalidDataError("stored, and said not to be")
        return receipt


# ---------------------------------------------------------------- the property of all


OUTCOMES = ["ok", "ok", "ok", "transient", "after", "liar", "fatal"]


@given(
    plan=st.lists(st.sampled_from(OUTCOMES), max_size=40),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["write", "write", "many", "series", "submit", "flush"]),
            st.integers(0, 3),
            st.integers(1, 9),
        ),
        max_size=40,
    ),
    bad_of=st.integers(2, 30),
    size_max=st.integers(1, 12),
    points_max=st.integers(1, 12),
    named=st.booleans(),
    handed=st.booleans(),
    background=st.booleans(),
    retries=st.integers(0, 3),
    least=st.integers(1, 6),
)
@settings(max_examples=150)
def test_what_went_in_is_accounted_for(
    plan: list[str],
    steps: list[tuple[str, int, int]],
    bad_of: int,
    size_max: int,
    points_max: int,
    named: bool,
    handed: bool,
    background: bool,
    retries: int,
    least: int,
) -> None:
    """Stored, pending, rejected and raised points are together what went in, each once, in order.

    Under faults of all classes, before and after the effect, and errors that lie; in the writing
    thread and in the background; with a handler for rejected points and without.
    """
    account = Account(bad_of)
    chaos = Chaos(plan, bad=account.is_bad, size_max=size_max, names_offenders=named)
    policy = RetryPolicy(
        max_retries=retries, backoff_min=0.0, backoff_max=0.0, min_batch_size=least
    )
    buffer = WriteBuffer(
        chaos,
        points_max=points_max,
        age_max=None,
        background=background,
        retry=policy,
        on_reject=account.reject if handed else None,
    )
    for way, series, count in steps:
        account.do(buffer, way, SERIES[series], count)
    account.end(buffer)
    account.check(chaos)


class Account:
    """What went into a buffer, and what came out otherwise than into the store."""

    def __init__(self, bad_of: int) -> None:
        self._bad_of = bad_of
        self._moments = dict.fromkeys(SERIES, 0)
        self.went_in: list[DataPoint] = []
        self.rejected: list[DataPoint] = []
        self.raised: list[DataPoint] = []
        self.pending: list[DataPoint] = []
        self.unsaved = 0
        self.futures: list[tuple[DataPoint, Future[WriteReceipt]]] = []

    def is_bad(self, point: DataPoint) -> bool:
        """Whether the store takes this point never."""
        return point.timestamp % self._bad_of == 0

    def reject(self, points: list[DataPoint], error: Exception) -> None:
        """Take rejected points, as `on_reject`."""
        assert isinstance(error, (InvalidDataError, BatchTooLargeError))
        self.rejected += points

    def do(self, buffer: WriteBuffer, way: str, labels: Labels, count: int) -> None:
        """Write somehow; what raises has taken nothing, and is done again until it is taken."""
        first = self._moments[labels] + 1
        count = count if way in ("many", "series") else 1
        some = [DataPoint(labels, first + row, float(first + row)) for row in range(count)]
        for _ in range(60):
            try:
                if way == "flush":
                    buffer.flush()
                    return
                if way == "submit":
                    self.futures.append((some[0], buffer.submit(some[0])))
                elif way == "write":
                    buffer.write(some[0])
                elif way == "many":
                    buffer.write_many(some)
                else:
                    buffer.write_series(
                        labels, range(first, first + count), [p.value for p in some]
                    )
            except RejectedPointsError as error:
                self.raised += error.points
            except (StorageError, ReadOnlyError, InvalidDataError):
                pass
            else:
                self.went_in += some
                self._moments[labels] = first + count - 1
                return
        raise AssertionError("it never succeeds")

    def end(self, buffer: WriteBuffer) -> None:
        """Close, and take back what could not be stored."""
        try:
            buffer.close()
        except UnsavedPointsError as error:
            self.pending, self.unsaved = buffer.take_pending(), error.count
        assert (buffer.pending, len(self.pending)) == (0, self.unsaved)

    def check(self, store: Recorder) -> None:
        """Compare with what is stored."""
        stored = Counter(store.stored)
        assert set(stored.values()) <= {1}, "a point is stored twice"
        told = {point for point, future in self.futures if _is_rejected(future)}
        out = [*self.rejected, *self.raised, *told]
        assert len(set(out)) == len(out), "a point is handed out twice"
        assert not stored.keys() & set(out), "a stored point is handed out"
        held = set(self.pending) - stored.keys() - set(out)
        assert Counter([*stored, *out, *held]) == Counter(self.went_in)
        # An unknown outcome at the end, or a rejected point that nobody had heard of.
        assert all(self.is_bad(point) or point in held or point in stored for point in self.pending)
        for point, future in self.futures:
            assert future.done()
            if future.exception() is None:
                assert point in stored
        for labels in SERIES:
            moments = [point.timestamp for point in store.of(labels)]
            assert moments == sorted(moments), "a series is out of order"


def _is_rejected(future: Future[WriteReceipt]) -> bool:
    return isinstance(future.exception(timeout=30), (InvalidDataError, RejectedPointsError))


@pytest.mark.parametrize("flaw", ["forgets", "doubles", "disorders"])
def test_the_account_catches_planted_bugs(flaw: str) -> None:
    """A store that loses, repeats or turns round what was committed fails the property above."""

    class Flawed(Chaos):
        def flush_buffer(self, mark: ProducerMark | None = None) -> WriteReceipt:
            receipt = super().flush_buffer(mark)
            if flaw == "forgets":
                self.stored.pop()
            elif flaw == "doubles":
                self.stored.append(self.stored[-1])
            else:
                self.stored.reverse()
            return receipt

    account = Account(7)
    flawed = Flawed(bad=account.is_bad)
    buffer = WriteBuffer(flawed, points_max=4, retry=QUICK, on_reject=account.reject)
    for _ in range(9):
        account.do(buffer, "write", SERIES[0], 1)
    account.end(buffer)
    with pytest.raises(AssertionError):
        account.check(flawed)


@pytest.mark.parametrize("scheme", ["memory", "lmdb"])
@given(
    faults=st.lists(
        st.tuples(st.integers(1, 12), st.integers(1, 3), st.sampled_from(When)), max_size=6
    ),
    series=st.lists(st.integers(0, 3), max_size=60),
    points_max=st.integers(1, 12),
    background=st.booleans(),
)
@settings(max_examples=25)
def test_sums_count_each_point_once(
    tmp_path_factory: pytest.TempPathFactory,
    scheme: str,
    faults: list[tuple[int, int, When]],
    series: list[int],
    points_max: int,
    background: bool,
) -> None:
    """Under policy `sum` ones add up to the writes, through failures known and unknown."""
    path = str(tmp_path_factory.mktemp("store") / "store") if scheme == "lmdb" else ""
    engine: Engine = (LmdbEngine if scheme == "lmdb" else MemoryEngine)(
        path, duplicate_policy="sum"
    )
    with engine:
        handler = FaultyHandler(
            engine,
            *(Fault("flush_buffer", at=at, times=times, when=when) for at, times, when in faults),
        )
        patient = RetryPolicy(max_retries=20, backoff_min=0.0, backoff_max=0.0)
        buffer = WriteBuffer(
            handler, points_max=points_max, background=background, producer="sums", retry=patient
        )
        for number in series:
            buffer.write((SERIES[number], 1, 1.0))
        buffer.close()
        found = {batch.labels: batch.values.tolist() for batch in engine.query()}
        counts = Counter(SERIES[number] for number in series)
        assert found == {labels: [float(count)] for labels, count in counts.items()}
        assert buffer.metrics.points == len(series)


# ------------------------------------------------------------------ classes of errors


def test_transient_errors_are_retried_unchanged() -> None:
    """A transient failure is retried with the same points under the same mark, so many times."""
    recorder = Recorder()
    recorder.before = failing(3)
    buffer = WriteBuffer(recorder, retry=QUICK)
    buffer.write_many(points(5))
    assert buffer.flush() == WriteReceipt(5, 5)
    assert recorder.marks == [ProducerMark(buffer.producer, 1)] * 4
    assert (buffer.metrics.retries, buffer.metrics.failures) == (3, 3)
    recorder.before = failing(4)
    buffer.write_many(points(5, B))
    with pytest.raises(StorageError):
        buffer.flush()
    assert buffer.pending == 5
    buffer.close()
    assert recorder.stored == [*points(5), *points(5, B)]


def test_no_attempt_begins_after_the_deadline() -> None:
    """A pause that would end after the deadline is not begun: the error is raised instead."""
    now = [0.0]

    def slow() -> None:
        now[0] += 10.0
        raise StorageError("slow")

    recorder = Recorder()
    recorder.before = slow
    policy = RetryPolicy(max_retries=100, deadline=35.0, backoff_min=0.0)
    buffer = WriteBuffer(recorder, age_max=None, retry=policy, clock=lambda: now[0])
    buffer.write((A, 1, 1.0))
    with pytest.raises(StorageError):
        buffer.flush()
    assert len(recorder.marks) == 4
    recorder.before = failing(0)
    buffer.close()


def test_fatal_errors_are_raised_at_once() -> None:
    """A closed handler is neither retried nor taken for a reason to reject points."""
    engine = MemoryEngine().open()
    rejected: list[DataPoint] = []
    buffer = WriteBuffer(engine, retry=QUICK, on_reject=lambda some, error: rejected.extend(some))
    buffer.write_many(points(5))
    engine.close()
    with pytest.raises(NotOpenError):
        buffer.flush()
    with pytest.raises(UnsavedPointsError) as caught:
        buffer.close()
    assert (caught.value.count, buffer.metrics.retries, rejected) == (5, 0, [])
    assert buffer.take_pending() == points(5)


def test_too_large_batches_are_halved_and_the_size_remembered() -> None:
    """Batches are halved until they fit, later ones begin so small, and grow again."""
    chaos = Chaos(size_max=100)
    policy = RetryPolicy(max_retries=0, min_batch_size=10)
    buffer = WriteBuffer(chaos, points_max=800, age_max=None, retry=policy)
    some = points(1_000)
    buffer.write_series(A, range(1, 1_001), [point.value for point in some])
    buffer.flush()
    assert chaos.sizes[:4] == [800, 400, 200, 100]
    assert max(chaos.sizes[4:]) <= 200
    assert chaos.stored == some
    chaos.size_max = 10**9
    later = points(8_000, B)
    for point in later:
        buffer.write(point)
    buffer.close()
    assert 800 in chaos.sizes[1:]
    assert chaos.stored == [*some, *later]


def test_the_least_size_is_reached_and_retried() -> None:
    """A batch is halved down to `min_batch_size` exactly, and at that size tried again."""
    chaos = Chaos(size_max=99)
    policy = RetryPolicy(max_retries=2, backoff_min=0.0, min_batch_size=100)
    rejected: list[DataPoint] = []
    buffer = WriteBuffer(
        chaos, age_max=None, retry=policy, on_reject=lambda some, error: rejected.extend(some)
    )
    buffer.write_many(points(400))
    buffer.flush()
    # Given up at that size, it is divided further, to find out what is too large by itself.
    assert chaos.sizes[:7] == [400, 200, 100, 100, 100, 50, 50]
    assert rejected == []
    assert chaos.stored == points(400)
    buffer.close()


def test_a_point_too_large_by_itself_is_rejected() -> None:
    """Of a batch that is too large for one point's sake that point alone is rejected."""

    class Heavy(Chaos):
        def flush_buffer(self, mark: ProducerMark | None = None) -> WriteReceipt:
            rows = [p for batch in self.staged for one in batch.groups() for p in one.points()]
            if any(point.value == 70.0 for point in rows):
                self.discard_buffer()
                raise BatchTooLargeError("one of these")
            return super().flush_buffer(mark)

    heavy = Heavy()
    policy = RetryPolicy(max_retries=1, backoff_min=0.0, min_batch_size=16)
    buffer = WriteBuffer(heavy, age_max=None, retry=policy)
    buffer.write_many(points(100))
    with pytest.raises(RejectedPointsError) as caught:
        buffer.flush()
    assert caught.value.points == [points(100)[70]]
    assert heavy.stored == points(70) + points(100)[71:]
    buffer.close()


@pytest.mark.parametrize("names_offenders", [True, False])
def test_bad_points_are_rejected_and_good_ones_stored(names_offenders: bool) -> None:
    """Each bad point goes to `on_reject` once with its error, whether or not that names it."""
    chaos = Chaos(
        bad=lambda point: point.value in (3.0, 4.0, 77.0), names_offenders=names_offenders
    )
    handed: list[tuple[list[DataPoint], Exception]] = []
    buffer = WriteBuffer(
        chaos, age_max=None, retry=QUICK, on_reject=lambda some, error: handed.append((some, error))
    )
    buffer.write_many(points(100))
    buffer.write_series(B, [1, 2], np.array([3, 5]))
    receipt = buffer.flush()
    bad = [points(100)[3], points(100)[4], points(100)[77], DataPoint(B, 1, 3)]
    assert sorted((p for some, _ in handed for p in some), key=repr) == sorted(bad, key=repr)
    for some, error in handed:
        assert isinstance(error, InvalidDataError)
        assert error.indices == tuple(range(len(some)))
    assert receipt == WriteReceipt(98, 98)
    assert buffer.metrics.rejected == 4
    assert chaos.of(A) == [point for point in points(100) if point not in bad]
    assert len(chaos.sizes) == 2 if names_offenders else len(chaos.sizes) > 8
    buffer.close()


def test_a_bad_series_costs_few_commits() -> None:
    """A series that fails for good is isolated as a whole, not point by point among others."""
    chaos = Chaos(bad=lambda point: point.labels is B)
    rejected: list[DataPoint] = []
    buffer = WriteBuffer(
        chaos, age_max=None, retry=QUICK, on_reject=lambda some, error: rejected.extend(some)
    )
    for moment in range(1, 33):
        for number in range(32):
            buffer.write((Labels("other", number=str(number)), moment, 1.0))
        buffer.write((B, moment, 1.0))
    buffer.flush()
    assert [point.timestamp for point in rejected] == list(range(1, 33))
    assert len(chaos.stored) == 32 * 32
    assert len(chaos.sizes) < 100
    buffer.close()


def test_a_handler_of_rejected_points_that_raises_is_heard() -> None:
    """What `on_reject` raises reaches the caller; points are given once, the rest is stored."""
    chaos = Chaos(bad=lambda point: point.value == 2.0)
    given_: list[DataPoint] = []

    def refuse(some: list[DataPoint], error: Exception) -> None:
        given_.extend(some)
        raise RuntimeError("no place for them")

    buffer = WriteBuffer(chaos, points_max=4, age_max=None, retry=QUICK, on_reject=refuse)
    for point in points(4):
        buffer.write(point)  # fills it: its error goes to the next
    with pytest.raises(RuntimeError) as caught:
        buffer.write((B, 1, 0.0))
    assert "on_reject" in str(caught.value.__notes__)
    buffer.write((B, 1, 2.0))
    with pytest.raises(RuntimeError):
        buffer.flush()
    buffer.write((B, 2, 2.0))
    with pytest.raises(RuntimeError):
        buffer.close()
    assert buffer.pending == 0
    assert given_ == [points(3)[2], (B, 1, 2.0), (B, 2, 2.0)]
    assert chaos.stored == [points(4)[0], points(4)[1], points(4)[3]]


@pytest.mark.parametrize("background", [True, False])
def test_a_handler_of_rejected_points_may_write(background: bool) -> None:
    """`on_reject` may mend a point and write it to the same buffer, full as it may be."""
    chaos = Chaos(bad=lambda point: point.value == 2.0)
    holder: list[WriteBuffer] = []

    def mend(some: list[DataPoint], error: Exception) -> None:
        for point in some:
            holder[0].write(point._replace(value=2.5))
        holder[0].flush()

    buffer = WriteBuffer(
        chaos,
        points_max=2,
        pending_max=2,
        age_max=None,
        background=background,
        retry=QUICK,
        on_reject=mend,
    )
    holder.append(buffer)
    for row in range(40):
        buffer.write((A, row + 1, 2.0))
    buffer.flush()
    buffer.close()
    assert sorted(point.timestamp for point in chaos.stored) == list(range(1, 41))
    assert {point.value for point in chaos.stored} == {2.5}


def test_rejected_points_of_a_commit_by_size_are_in_the_next_error() -> None:
    """Without `on_reject` the next write raises with the rejected points, and takes none."""
    chaos = Chaos(bad=lambda point: point.value == 2.0)
    buffer = WriteBuffer(chaos, points_max=4, age_max=None, retry=QUICK)
    for point in points(4):
        buffer.write(point)
    assert buffer.pending == 1  # in nobody's hands yet
    with pytest.raises(RejectedPointsError) as caught:
        buffer.write((B, 1, 0.0))
    assert caught.value.points == [points(3)[2]]
    assert buffer.pending == 0
    buffer.write((B, 1, 2.0))
    with pytest.raises(UnsavedPointsError) as unsaved:
        buffer.close()
    assert unsaved.value.count == 1
    assert isinstance(unsaved.value.__cause__, InvalidDataError)
    assert buffer.take_pending() == [(B, 1, 2.0)]
    assert chaos.of(B) == []


def test_pieces_of_a_batch_that_failed_half_way_stay_settled() -> None:
    """Of a batch that was divided and then failed, only what is left is pending, or taken back."""
    chaos = Chaos([*["ok"] * 4, "fatal"], size_max=25)
    policy = RetryPolicy(max_retries=0, min_batch_size=25)
    buffer = WriteBuffer(chaos, points_max=100, age_max=None, retry=policy)
    buffer.write_many(points(60))
    buffer.write((B, 1, 1.0))
    with pytest.raises(ReadOnlyError):
        buffer.flush()
    landed = len(chaos.stored)
    assert 0 < landed < 61
    assert buffer.pending == 61 - landed
    assert buffer.committed.accepted == landed
    back = buffer.take_pending()
    assert [*chaos.stored, *back] == [*points(60), (B, 1, 1.0)]
    buffer.write((C, 1, 1.0))
    buffer.close()
    assert chaos.stored[-1] == (C, 1, 1.0)
    sequences = [(mark.sequence, mark.piece) for mark in chaos.marks if mark is not None]
    assert sequences == sorted(sequences)


@pytest.mark.parametrize("names_offenders", [True, False])
def test_an_error_that_lies_has_nothing_stored_twice(names_offenders: bool) -> None:
    """A commit that took effect and reported bad points is neither divided nor rejected."""
    chaos = Chaos(["liar"], names_offenders=names_offenders)
    buffer = WriteBuffer(chaos, age_max=None, retry=QUICK)
    buffer.write_many(points(8))
    assert buffer.flush().accepted == 8
    assert chaos.stored == points(8)
    assert buffer.metrics.rejected == 0
    buffer.close()


def test_where_no_number_can_be_read_nothing_is_divided() -> None:
    """Whether a failed commit was stored is asked first; where that fails, it is tried whole."""
    chaos = Chaos(["liar"])
    buffer = WriteBuffer(chaos, age_max=None, retry=AT_ONCE, producer="named")
    buffer.write_many(points(8))
    with pytest.MonkeyPatch.context() as patch:
        asked = iter([False, True, True, True])
        plain = chaos.high_water

        def high_water(producer: str) -> ProducerMark | None:
            if next(asked, False):
                raise StorageError("no answer")
            return plain(producer)

        patch.setattr(chaos, "high_water", high_water)
        with pytest.raises(StorageError, match="no answer"):
            buffer.flush()
    assert buffer.pending == 8
    assert buffer.flush().accepted == 8
    assert chaos.stored == points(8)
    buffer.close()


def test_a_disk_that_is_full_for_a_while_loses_nothing() -> None:
    """A full disk is retried, and what it takes to make room costs no point."""
    recorder = Recorder()
    recorder.before = failing(5, lambda: StorageFullError("full"))
    buffer = WriteBuffer(recorder, points_max=10, age_max=None, retry=QUICK)
    taken = 0
    for point in points(40):
        try:
            buffer.write(point)
            taken += 1
        except StorageFullError:
            pass
    buffer.close()
    assert len(recorder.stored) == taken >= 39


# ------------------------------------------------------------------------ threads


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_threads_under_faults(background: bool, seed: int) -> None:
    """Threads write, submit and flush while commits fail at random: all is accounted for."""
    chance = random.Random(seed)
    chaos = Chaos((chance.choice(OUTCOMES) for _ in range(400)), size_max=9)
    rejected: list[DataPoint] = []
    policy = RetryPolicy(max_retries=3, backoff_min=0.0, min_batch_size=2)
    buffer = WriteBuffer(
        chaos,
        points_max=16,
        pending_max=32,
        age_max=0.001,
        background=background,
        retry=policy,
        on_reject=lambda some, error: rejected.extend(some),
    )
    taken: list[list[PointLike]] = [[] for _ in range(4)]
    futures: list[Acknowledgement] = []

    def work(number: int) -> None:
        mine = random.Random(seed * 10 + number)
        moment = 1
        while moment < 150:
            point = (SERIES[number], moment, float(moment))
            try:
                if mine.random() < 0.1:
                    buffer.flush(timeout=30)
                    continue
                if mine.random() < 0.3:
                    futures.append(buffer.submit(point))
                else:
                    buffer.write(point)
            except (StorageError, ReadOnlyError):
                continue
            taken[number].append(point)
            moment += 1

    run_threads(work, 4)
    try:
        buffer.close()
        back: list[DataPoint] = []
    except UnsavedPointsError:
        back = buffer.take_pending()
    assert all(future.done() for future in futures)
    stored = set(chaos.stored)
    assert len(stored) == len(chaos.stored)
    assert not rejected
    assert stored | set(back) == {point for some in taken for point in some}
    for number in range(4):
        moments = [point.timestamp for point in chaos.of(SERIES[number])]
        assert moments == sorted(moments)
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if buffer.producer[:10] in name]


def test_values_of_rejected_points_are_as_given() -> None:
    """Rejected points come back with the values that would have been stored, of any kind."""
    some: list[tuple[Labels, Value]] = [(A, 1.5), (B, "text"), (C, {"key": [1]})]
    chaos = Chaos(bad=lambda point: True)
    handed: list[DataPoint] = []
    with WriteBuffer(
        chaos, age_max=None, retry=QUICK, on_reject=lambda points, error: handed.extend(points)
    ) as buffer:
        for labels, value in some:
            buffer.write((labels, 1, value))
    assert sorted(handed, key=repr) == sorted(
        (DataPoint(labels, 1, value) for labels, value in some), key=repr
    )
