"""Handlers, callbacks, signals and processes that do what they should not."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.recorder import AT_ONCE, A, B, Recorder, failing, points
from tests.test_windows import PATIENCE, Gate
from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.memory import MemoryEngine
from tsengine.buffer import WriteBuffer
from tsengine.errors import (
    BufferFullError,
    ConfigurationError,
    LifecycleError,
    StorageError,
    UnsavedPointsError,
)
from tsengine.model import DataPoint, ProducerMark, WriteReceipt
from tsengine.retry import RetryPolicy

ROOT = str(Path(__file__).parent.parent)
"""Behind all else on the path, so that what is tested is what is installed."""


@pytest.fixture
def recorder() -> Recorder:
    """A handler that keeps what it is given."""
    return Recorder()


def test_what_a_thread_staged_itself_is_left_alone() -> None:
    """A commit in a thread that has staged points on the engine raises, and discards nothing."""
    with MemoryEngine() as engine:
        buffer = WriteBuffer(engine, age_max=None)
        buffer.write((A, 1, 1.0))
        buffer.flush()
        engine.write_to_buffer((B, 1, 1.0))  # as many as the buffer staged last
        buffer.write((A, 2, 1.0))
        with pytest.raises(LifecycleError, match="staged"):
            buffer.flush()
        assert engine.flush_buffer() == WriteReceipt(1, 1)
        buffer.close()
        assert engine.count() == 3


def test_a_name_is_not_free_while_a_commit_hangs(recorder: Recorder) -> None:
    """A closed producer's name is taken until its last commit has ended: numbers never meet."""
    gate = Gate(recorder)
    first = WriteBuffer(recorder, producer="named")
    first.write((A, 1, 0.0))
    with pytest.raises(UnsavedPointsError):
        first.close(timeout=0.02)
    with pytest.raises(ConfigurationError, match="named"):
        WriteBuffer(recorder, producer="named")
    gate.open.set()
    assert first.take_pending(timeout=PATIENCE) == []
    second: WriteBuffer | None = None
    for _ in range(1_000):
        try:
            second = WriteBuffer(recorder, producer="named")
            break
        except ConfigurationError:
            threading.Event().wait(0.005)  # the thread is about to let it go
    assert second is not None
    second.write((A, 2, 1.0))
    second.close()
    assert recorder.stored == points(2)
    assert [mark and mark.sequence for mark in recorder.marks] == [1, 2]


def test_a_store_that_is_away_at_the_first_commit_is_waited_for(recorder: Recorder) -> None:
    """Where a producer's number cannot be read, that is retried, and futures are told."""
    asked: list[str] = []

    def away(producer: str) -> ProducerMark | None:
        asked.append(producer)
        raise StorageError("away")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "high_water", away)
        policy = RetryPolicy(max_retries=2, backoff_min=0.0, backoff_max=0.0)
        buffer = WriteBuffer(recorder, age_max=None, producer="named", retry=policy)
        future = buffer.submit((A, 1, 0.0))
        assert isinstance(future.exception(PATIENCE), StorageError)
        assert len(asked) == 3
    assert buffer.flush().accepted == 1
    buffer.close()


@pytest.mark.parametrize("age_max", [0.0, 0.001])
def test_a_store_that_is_gone_is_not_asked_all_the_time(recorder: Recorder, age_max: float) -> None:
    """However short `age_max` is, attempts of a failing store have the pauses of the policy."""
    recorder.before = failing(10**9)
    policy = RetryPolicy(max_retries=0, backoff_min=1.0, backoff_max=60.0)
    buffer = WriteBuffer(recorder, age_max=age_max, retry=policy)
    buffer.write((A, 1, 0.0))
    threading.Event().wait(0.3)
    assert len(recorder.marks) <= 2
    buffer.take_pending()
    recorder.before = failing(0)
    buffer.close()


def test_a_full_buffer_in_the_background_recovers(recorder: Recorder) -> None:
    """With `on_full="raise"` a write that finds no room has the failed commit tried again."""
    recorder.before = failing(1)
    buffer = WriteBuffer(
        recorder,
        points_max=2,
        pending_max=2,
        age_max=None,
        background=True,
        on_full="raise",
        retry=AT_ONCE,
    )
    taken = 0
    for _ in range(10_000):
        try:
            buffer.write((A, taken + 1, float(taken)))
            taken += 1
        except BufferFullError:
            threading.Event().wait(0.001)
        except StorageError:
            pass
        if taken == 6:
            break
    assert taken == 6
    buffer.close()
    assert recorder.stored == points(6)


CALLS: dict[str, Callable[[WriteBuffer], object]] = {
    "flush": lambda buffer: buffer.flush(),
    "bounded flush": lambda buffer: buffer.flush(timeout=PATIENCE),
    "take_pending": lambda buffer: buffer.take_pending(),
    "close": lambda buffer: buffer.close(),
    "write": lambda buffer: buffer.write((B, 9, 1.0)),
    "submit": lambda buffer: buffer.submit((B, 9, 1.0)),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("background", [True, False])
def test_a_callback_of_a_future_may_call_anything(
    recorder: Recorder, call: str, background: bool
) -> None:
    """What a future's callback calls does not wait for itself, full as the buffer may be."""
    buffer = WriteBuffer(recorder, points_max=2, pending_max=2, age_max=None, background=background)
    ended = threading.Event()
    gate = Gate(recorder)
    future = buffer.submit((A, 1, 0.0))
    assert gate.stalled.wait(PATIENCE)

    def react(_: object) -> None:
        try:
            CALLS[call](buffer)
        finally:
            ended.set()

    future.add_done_callback(react)
    buffer.write((B, 1, 0.0))  # it is full now
    gate.open.set()
    assert ended.wait(PATIENCE)
    buffer.close(timeout=PATIENCE)
    assert recorder.of(A) == points(1)


@pytest.mark.parametrize("call", ["flush", "take_pending", "close", "write"])
def test_a_handler_that_calls_its_buffer_is_told(recorder: Recorder, call: str) -> None:
    """A commit that waits for itself raises, and its points stay."""
    buffer = WriteBuffer(recorder, points_max=1, pending_max=1, age_max=None, retry=AT_ONCE)
    raised: list[BaseException] = []

    def nested() -> None:
        try:
            CALLS[call](buffer)
        except LifecycleError as error:
            raised.append(error)
            raise

    recorder.before = nested
    buffer.write((A, 1, 0.0))
    assert raised
    recorder.before = failing(0)
    try:
        buffer.flush()
    except LifecycleError:
        pass  # closed by the handler
    back = buffer.take_pending()
    assert [*recorder.stored, *back] == points(1)


@pytest.mark.parametrize(
    "receipt", [None, WriteReceipt(7, 7), WriteReceipt(2, 1, 1, 0, {"cap": 1}, (99,)), 5]
)
def test_a_wrong_receipt_poisons_nothing(
    recorder: Recorder, receipt: object, caplog: pytest.LogCaptureFixture
) -> None:
    """An answer that cannot be is logged; the points are stored, and the buffer goes on."""

    class Odd(Recorder):
        def flush_buffer(self, mark: ProducerMark | None = None) -> WriteReceipt:
            super().flush_buffer(mark)
            return receipt  # type: ignore[return-value]  # what handlers of others may do

    odd = Odd()
    with WriteBuffer(odd, age_max=None) as buffer:
        buffer.write_many(points(2))
        assert buffer.flush() == WriteReceipt(2, 2)
        buffer.write((B, 1, 0.0))
        assert buffer.pending == 1
    assert odd.stored == [*points(2), (B, 1, 0.0)]
    assert "no receipt" in caplog.text


def test_an_exit_in_a_handler_ends_no_thread_of_others(recorder: Recorder) -> None:
    """SystemExit of a handler in the buffer's thread reaches the next write as StorageError."""
    failed = threading.Event()

    def leave() -> None:
        failed.set()
        raise SystemExit(3)

    recorder.before = leave
    buffer = WriteBuffer(recorder, age_max=0.001, retry=AT_ONCE)
    buffer.write((A, 1, 0.0))
    assert failed.wait(PATIENCE)
    recorder.before = failing(0)
    buffer.flush(timeout=PATIENCE)
    buffer.close()
    assert recorder.stored == points(1)


def test_a_handler_of_rejected_points_may_close(recorder: Recorder) -> None:
    """`on_reject` may close the buffer, also while it is being closed."""
    holder: list[WriteBuffer] = []
    rejected: list[DataPoint] = []

    def reject(some: list[DataPoint], error: Exception) -> None:
        rejected.extend(some)
        holder[0].close()

    with MemoryEngine("", duplicate_policy="error") as engine:
        engine.write([(A, 1, 1.0)])
        for _ in range(2):
            holder[:] = [WriteBuffer(engine, age_max=None, on_reject=reject)]
            holder[0].write((A, 1, 2.0))
            holder[0].close()
    assert rejected == [(A, 1, 2.0)] * 2


def test_a_handler_of_a_signal_may_close() -> None:
    """A signal whose handler closes the buffer loses no point, whatever it interrupts."""
    script = (
        f"""
import sys
sys.path.append({ROOT!r})
"""
        """
import signal
from tests.recorder import Recorder
from tsengine.buffer import WriteBuffer
from tsengine.errors import TsEngineError
from tsengine.model import Labels
A = Labels("a")
for delay in range(40):
    recorder = Recorder()
    buffer = WriteBuffer(recorder, points_max=50)
    signal.signal(signal.SIGALRM, lambda *_: close(buffer))
    def close(buffer):
        try:
            buffer.close()
        except TsEngineError:
            pass
    signal.setitimer(signal.ITIMER_REAL, 0.0005 + delay * 0.0001)
    taken = 0
    try:
        for _ in range(20_000):  # it may be refused, in the midst of a step
            buffer.write((A, taken + 1, 1.0))
            taken += 1
    except TsEngineError:
        pass
    buffer.close()
    stored = len(recorder.stored) + len(buffer.take_pending())
    assert taken <= stored <= taken + 1, (taken, stored)
print("ok")
"""
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.stdout, ended.returncode) == ("ok\n", 0), ended.stderr


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_process_of_multiprocessing_flushes_when_it_ends(tmp_path: Path, method: str) -> None:
    """Points that are pending when a worker's function returns are stored, however it began."""
    program = tmp_path / "program.py"
    program.write_text(
        f"""
import multiprocessing
from tsengine.backends.lmdb import LmdbEngine
from tsengine.buffer import WriteBuffer
from tsengine.model import Labels

def work():
    engine = LmdbEngine({str(tmp_path / "store")!r}).open()
    WriteBuffer(engine, age_max=None).write((Labels("a"), 1, 1.0))

if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    process = context.Process(target=work)
    process.start()
    process.join(60)
    print(process.exitcode)
"""
    )
    ended = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", str(program)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert (ended.stdout, ended.stderr) == ("0\n", "")
    with LmdbEngine(str(tmp_path / "store")) as engine:
        assert engine.count() == 1


def test_one_buffer_keeps_no_other_from_exit(tmp_path: Path) -> None:
    """At exit a handler that ends by SystemExit keeps no other buffer from being stored."""
    program = f"""
import sys
sys.path.append({ROOT!r})
from tests.recorder import Recorder, A
from tsengine.backends.lmdb import LmdbEngine
from tsengine.buffer import WriteBuffer
def leave():
    raise SystemExit(3)
buffers = []
for number in range(3):
    recorder = Recorder()
    recorder.before = leave
    buffers.append(WriteBuffer(recorder, age_max=None))
    buffers[-1].write((A, 1, 1.0))
engine = LmdbEngine({str(tmp_path / "store")!r}).open()
buffers.append(WriteBuffer(engine, age_max=None))
buffers[-1].write((A, 1, 1.0))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stderr.count("Python exits with 1 pending points") == 3
    with LmdbEngine(str(tmp_path / "store")) as engine:
        assert engine.count() == 1


def test_a_buffer_whose_points_were_all_rejected_is_let_go() -> None:
    """What was raised with the rejected points keeps no buffer alive."""
    script = """
import gc, weakref
from tsengine.backends.memory import MemoryEngine
from tsengine.buffer import WriteBuffer
from tsengine.errors import RejectedPointsError
from tsengine.model import Labels
engine = MemoryEngine("", duplicate_policy="error").open()
engine.write([(Labels("a"), 1, 1.0)])
buffer = WriteBuffer(engine, age_max=None)
buffer.write((Labels("a"), 1, 2.0))
try:
    buffer.flush()
except RejectedPointsError:
    pass
gone = weakref.ref(buffer)
del buffer
gc.collect()
print(gone())
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == "None\n"


def test_signals_are_as_they_were() -> None:
    """No buffer touches the handlers of signals."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with WriteBuffer(Recorder()) as buffer:
        buffer.write((A, 1, 1.0))
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
