from __future__ import annotations

import dataclasses
import gc
import re
import sys
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from tsengine.backends.memory import MemoryEngine
from tsengine.buffer import WriteBuffer
from tsengine.errors import (
    BufferFullError,
    ConfigurationError,
    MissingDependencyError,
    RejectedPointsError,
    StorageError,
    UnknownOptionError,
)
from tsengine.metrics import CAUSES, BufferMetrics, Histogram
from tsengine.model import Labels
from tsengine.prometheus import COUNTERS, BufferCollector
from tsengine.retry import RetryPolicy
from tsengine.testing import Fault, FaultyHandler
from tsengine.testing.conformance.isolation import together
from tsengine.testing.conformance.lifecycle import in_a_child

A = Labels("cpu", host="a")

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def engine() -> Iterator[MemoryEngine]:
    """Give an engine that refuses a second point at one time, and one too old for its ring."""
    with MemoryEngine(duplicate_policy="error", max_points_per_series=50) as engine:
        yield engine


def scraped(collector: BufferCollector) -> Samples:
    """Give what a server reads: the text of a registry, parsed."""
    registry = CollectorRegistry()
    registry.register(collector)
    samples: Samples = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in samples, f"{key} comes twice"
            samples[key] = sample.value
    return samples


def expected(metrics: BufferMetrics, pending: int, **labels: str) -> Samples:
    """Give what should be read of one buffer."""
    samples: Samples = {}

    def put(name: str, value: float, **more: str) -> None:
        samples[f"tsengine_buffer_{name}", frozenset({**labels, **more}.items())] = value

    def put_histogram(name: str, histogram: Histogram) -> None:
        for index, bound in enumerate([*histogram.bounds, float("inf")]):
            text = "+Inf" if bound == float("inf") else str(float(bound))
            put(f"{name}_bucket", sum(histogram.counts[: index + 1]), le=text)
        put(f"{name}_count", histogram.count)
        put(f"{name}_sum", histogram.total)

    for name in (
        *("points", "refused", "rejected", "batches", "failures", "retries", "splits"),
        *("waits", "wait_seconds", "full"),
    ):
        put(f"{name}_total", getattr(metrics, name))
    for cause in ("size", "age", "submit", "flush", "close"):
        put("flushes_total", metrics.flushes.get(cause, 0), cause=cause)
    put("pending", pending)
    put_histogram("commit_seconds", metrics.latency)
    put_histogram("batch_points", metrics.sizes)
    return samples


def busy_buffer(engine: MemoryEngine, producer: str | None = "ingest") -> WriteBuffer:
    """Make a buffer to which everything has happened that is counted."""
    ticks = iter(range(10_000))
    buffer = WriteBuffer(
        FaultyHandler(engine, Fault("flush_buffer", at=2), Fault("flush_buffer", at=7, times=99)),
        points_max=40,
        pending_max=60,
        age_max=None,
        on_full="raise",
        producer=producer,
        retry=RetryPolicy(max_retries=1, backoff_min=0.0),
        clock=lambda: next(ticks) * 0.003,
    )
    buffer.write_many([(A, moment, 1.0) for moment in range(101, 141)])  # by size
    buffer.write_many([(A, moment, 1.0) for moment in range(141, 171)])
    buffer.flush()  # fails, and is tried again
    buffer.write_many([(A, 1, 1.0), (A, 2, 1.0)])  # too old for the ring
    buffer.submit((A, 171, 1.0)).result(timeout=60)
    buffer.write_many([(A, 172, 1.0), (A, 172, 2.0)])
    with pytest.raises(RejectedPointsError):
        buffer.flush()
    for moment in range(200, 260):
        try:
            buffer.write((A, moment, 1.0))
        except StorageError:
            continue
    return buffer


def test_what_is_scraped_is_what_was_counted(engine: MemoryEngine) -> None:
    """Every attribute of the metrics is read from the text of a registry as it is."""
    buffer = busy_buffer(engine)
    metrics = buffer.metrics
    assert all(
        (metrics.points, metrics.refused, metrics.batches, metrics.failures, metrics.retries)
    )
    assert metrics.rejected == 1
    assert {cause for cause, count in metrics.flushes.items() if count} == {
        "size",
        "flush",
        "submit",
    }
    assert buffer.pending > 0
    metrics.waits, metrics.wait_seconds, metrics.full = 3, 0.75, 2  # a race to bring about
    found = scraped(BufferCollector(buffer))
    assert found == expected(metrics, buffer.pending, producer="ingest")
    buffer.take_pending()
    buffer.close()


def test_a_wait_for_room_is_counted() -> None:
    """A write that is refused for want of room is seen, by the buffer's own count."""
    stall = threading.Event()
    with MemoryEngine() as engine:
        handler = FaultyHandler(engine, Fault("flush_buffer", error=None, stall=stall))
        with WriteBuffer(
            handler, points_max=1, pending_max=1, age_max=None, background=True, full_timeout=0.0
        ) as buffer:
            buffer.write((A, 1, 1.0))
            with pytest.raises(BufferFullError):
                buffer.write((A, 2, 1.0))
            found = scraped(BufferCollector(buffer))
            unnamed = frozenset({("producer", "")})
            assert found["tsengine_buffer_waits_total", unnamed] == 1
            assert found["tsengine_buffer_full_total", unnamed] == 1
            assert found["tsengine_buffer_pending", unnamed] == 1
            stall.set()


def test_every_attribute_is_exported() -> None:
    """Whatever is counted in `BufferMetrics` has a place among the metrics of Prometheus."""
    others = {"flushes", "sizes", "latency"}
    assert {field.name for field in dataclasses.fields(BufferMetrics)} == COUNTERS.keys() | others


def test_causes_are_those_of_buffers(engine: MemoryEngine) -> None:
    """A batch is due by one of the causes that are shown from the start."""
    buffer = busy_buffer(engine, producer=None)
    buffer.take_pending()
    buffer.close()
    assert buffer.metrics.flushes.keys() == set(CAUSES)


def test_the_text_of_openmetrics_parses_too(engine: MemoryEngine) -> None:
    """The newer format, whose rules are stricter, takes what is collected."""
    buffer = busy_buffer(engine)
    registry = CollectorRegistry()
    registry.register(BufferCollector(buffer))
    text = openmetrics.generate_latest(registry).decode()  # type: ignore[no-untyped-call]  # no types there
    families = {family.name for family in parse_openmetrics(text)}  # type: ignore[no-untyped-call]  # no types there
    assert {"tsengine_buffer_points", "tsengine_buffer_commit_seconds"} <= families
    buffer.take_pending()
    buffer.close()


def test_what_is_described_is_what_is_collected(engine: MemoryEngine) -> None:
    """describe() gives the metrics of collect() without samples; a second collector clashes."""
    with WriteBuffer(engine) as buffer:
        collector = BufferCollector(buffer)
        described, collected = list(collector.describe()), list(collector.collect())
        assert [(one.name, one.type) for one in described] == [
            (one.name, one.type) for one in collected
        ]
        assert not any(one.samples for one in described)
        assert all(one.samples and one.documentation for one in collected)
        registry = CollectorRegistry()
        registry.register(collector)
        with pytest.raises(ValueError, match="Duplicated"):
            registry.register(BufferCollector())


def names_in(samples: Samples) -> set[str]:
    """Give the producers there are."""
    return {dict(labels)["producer"] for _, labels in samples}


def test_a_random_name_is_no_label(engine: MemoryEngine) -> None:
    """A producer's name is shown where somebody gave it; buffers without are one time series."""
    with (
        WriteBuffer(engine) as first,
        WriteBuffer(engine) as second,
        WriteBuffer(engine, producer='odd "name"\n\\') as named,
        WriteBuffer(engine) as third,
    ):
        collector = BufferCollector(first, second, named)
        collector.add(third, name="imports")
        for number, buffer in enumerate((first, second, named, third)):
            buffer.write((A, number + 1, 1.0))
            buffer.flush()
        first.write((A, 7, 1.0))
        second.write((A, 8, 1.0))
        found = scraped(collector)
        assert names_in(found) == {"", 'odd "name"\n\\', "imports"}
        points = {
            dict(labels)["producer"]: value
            for (name, labels), value in found.items()
            if name == "tsengine_buffer_points_total"
        }
        assert points == {"": 2, 'odd "name"\n\\': 1, "imports": 1}
        assert found["tsengine_buffer_pending", frozenset({("producer", "")})] == 2


def test_labels_are_put_to_all(engine: MemoryEngine) -> None:
    """Labels of the collector are those of every sample."""
    with WriteBuffer(engine, producer="p") as buffer:
        buffer.write((A, 1, 1.0))
        buffer.flush()
        found = scraped(BufferCollector(buffer, labels={"store": "metrics"}))
        assert found == expected(buffer.metrics, 0, producer="p", store="metrics")


@pytest.mark.parametrize("name", ["producer", "cause", "le", "", "a b", "1st", "é"])
def test_labels_that_cannot_be_are_refused(name: str) -> None:
    """A label that would hide one of these metrics' own, or is none to Prometheus, is an error."""
    with pytest.raises(UnknownOptionError, match=re.escape(repr(name))):
        BufferCollector(labels={name: "x"})


def test_a_buffer_is_counted_once(engine: MemoryEngine) -> None:
    """A second add of one buffer is refused, under another name too."""
    with WriteBuffer(engine) as buffer:
        collector = BufferCollector(buffer)
        with pytest.raises(ConfigurationError):
            collector.add(buffer, name="again")
        assert names_in(scraped(collector)) == {""}


def test_what_was_counted_outlives_its_buffer(engine: MemoryEngine) -> None:
    """A buffer is not kept alive; its counts stay, and take no more room for a thousand more."""
    collector = BufferCollector()
    for turn in range(1, 50):
        buffer = WriteBuffer(engine, age_max=None)
        collector.add(buffer)
        buffer.write((A, turn, 1.0))
        buffer.close()
        held = weakref.ref(buffer)
        del buffer
        gc.collect()
        assert held() is None
        found = scraped(collector)
        unnamed = frozenset({("producer", "")})
        assert found["tsengine_buffer_points_total", unnamed] == turn
        assert found["tsengine_buffer_batch_points_count", unnamed] == turn
        assert found["tsengine_buffer_pending", unnamed] == 0
        assert (
            found["tsengine_buffer_flushes_total", unnamed | frozenset({("cause", "close")})]
            == turn
        )
    assert sum(len(group.held) for group in collector._groups.values()) == 0


def test_buffers_that_nobody_scrapes_take_no_room(engine: MemoryEngine) -> None:
    """Buffers that come and go between two scrapes leave their counts alone."""
    collector = BufferCollector()
    for turn in range(1, 50):
        with WriteBuffer(engine, age_max=None) as buffer:
            collector.add(buffer)
            buffer.write((A, turn, 1.0))
        del buffer
        gc.collect()
    assert sum(len(group.held) for group in collector._groups.values()) <= 1
    found = scraped(collector)
    assert found["tsengine_buffer_points_total", frozenset({("producer", "")})] == 49


def test_a_closed_buffer_stays_counted(engine: MemoryEngine) -> None:
    """Closing a buffer that somebody holds changes nothing of what is shown."""
    buffer = WriteBuffer(engine, producer="p")
    collector = BufferCollector(buffer)
    buffer.write((A, 1, 1.0))
    buffer.close()
    assert scraped(collector) == expected(buffer.metrics, 0, producer="p")


def test_a_child_of_a_fork_counts_its_own(engine: MemoryEngine) -> None:
    """In a forked child a collector has none of the parent's buffers, even if one scraped then."""
    with WriteBuffer(engine) as buffer:
        collector = BufferCollector(buffer)
        collector._lock.acquire()

        def in_child() -> None:
            assert scraped(collector) == {}
            with MemoryEngine() as engine, WriteBuffer(engine, producer="child") as own:
                collector.add(own)
                assert scraped(collector) == expected(own.metrics, 0, producer="child")

        in_a_child(in_child)
        collector._lock.release()
        assert names_in(scraped(collector)) == {""}


def test_counters_only_grow_while_threads_write() -> None:
    """Scrapes beside writers, and beside buffers that come and go, see no counter fall."""
    done = threading.Event()
    collector = BufferCollector()
    with MemoryEngine() as engine:

        def work(number: int) -> Callable[[], None]:
            def run() -> None:
                try:
                    for turn in range(12):
                        with WriteBuffer(engine, points_max=3, age_max=None) as buffer:
                            collector.add(buffer)
                            for moment in range(1, 20):
                                buffer.write((A, 100 * turn + moment, float(number)))
                finally:
                    running.pop()
                    if not running:
                        done.set()

            return run

        running = [1, 2]

        def scrape() -> None:
            before: Samples = {}
            while not done.is_set():
                found = scraped(collector)
                for key, value in before.items():
                    if not key[0].endswith("pending"):
                        assert found[key] >= value, key
                before = found

        together(work(1), work(2), scrape)
    found = scraped(collector)
    assert found["tsengine_buffer_points_total", frozenset({("producer", "")})] == 2 * 12 * 19


def test_without_prometheus_client_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the package is missing the error names the line that brings it."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'tsengine\[metrics\]'"):
        BufferCollector()
