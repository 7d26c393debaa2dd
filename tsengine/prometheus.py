"""What buffers count, for a registry of prometheus_client.

    from tsengine.prometheus import BufferCollector

    prometheus_client.REGISTRY.register(BufferCollector(buffer))

It needs prometheus_client: pip install 'tsengine[metrics]'.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Final

from tsengine.buffer import WriteBuffer
from tsengine.errors import ConfigurationError, MissingDependencyError, UnknownOptionError
from tsengine.metrics import BufferMetrics, Histogram

if TYPE_CHECKING:
    from prometheus_client import Metric

COUNTERS: Final[Mapping[str, str]] = {
    "points": "Points committed, refused ones included.",
    "refused": "Points committed that a cap or the retention kept out.",
    "rejected": "Points that cannot be stored.",
    "batches": "Commits that succeeded.",
    "failures": "Attempts to commit that failed.",
    "retries": "Attempts to commit after the first.",
    "splits": "Batches that were divided.",
    "waits": "Writes that waited for room.",
    "wait_seconds": "Seconds that writes waited for room.",
    "full": "Writes that were refused for want of room.",
}
"""Attributes of `BufferMetrics` that are numbers, and what Prometheus shows about them."""

_RESERVED: Final = ("producer", "cause", "le")


class BufferCollector:
    """A collector of prometheus_client over any number of buffers.

    A registry takes each metric once, and so one collector for all buffers; more are added
    while it is registered. The metrics are `tsengine_buffer_` and the attributes of
    `BufferMetrics`: counters, the gauge `pending`, and the histograms `commit_seconds` and
    `batch_points`.

    The label `producer` is the name given with the buffer, else the producer name that the
    buffer was made with. A buffer with neither has the empty one: its own name is random, and
    would be a new time series at each start. Buffers of one name are counted together.

    Buffers are held weakly. What a buffer has counted stays counted when it is gone, as a
    counter must not fall; it takes no memory but that of its name. In a forked child a
    collector is empty: the buffers are the parent's.

    Args:
        buffers: to begin with, named by their producers.
        labels: more labels of all metrics, the same for all buffers.

    Raises:
        MissingDependencyError: prometheus_client is not installed.
        UnknownOptionError: a label has a name that is used here, or is none.

    Thread-safety: any number of threads.
    """

    def __init__(self, *buffers: WriteBuffer, labels: Mapping[str, str] | None = None) -> None:
        try:
            import prometheus_client  # noqa: F401  # only whether it is there
        except ImportError as error:
            raise MissingDependencyError(
                "BufferCollector needs prometheus_client: pip install 'tsengine[metrics]'"
            ) from error
        self._labels = dict(labels or {})
        for name in self._labels:
            if name in _RESERVED or not (name.isascii() and name.isidentifier()):
                raise UnknownOptionError(
                    f"no label can be called {name!r}: ASCII letters, digits and underscores make "
                    f"one, and {', '.join(_RESERVED)} are those of these metrics"
                )
        self._begin()
        for buffer in buffers:
            self.add(buffer)

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()  # guards _groups and what is in them
        self._groups: dict[str, _Group] = {}

    def add(self, buffer: WriteBuffer, *, name: str | None = None) -> None:
        """Count a buffer from now on, with what it has counted so far.

        Args:
            buffer: open or closed.
            name: the label `producer`; one of few, that survive a restart.

        Raises:
            ConfigurationError: it is counted already.
        """
        if name is None:
            name = "" if buffer._forgets_producer else buffer.producer
        self._leave_the_parents()
        with self._lock:
            if any(held() is buffer for group in self._groups.values() for held, _ in group.held):
                raise ConfigurationError(f"{buffer!r} is counted by this collector already")
            group = self._groups.setdefault(name, _Group())
            group.let_go()
            group.held.append((weakref.ref(buffer), buffer.metrics))

    def describe(self) -> Iterable[Metric]:
        """Give the metrics without samples, so that a registry knows their names."""
        return self._families([])

    def collect(self) -> Iterable[Metric]:
        """Give the metrics as they are now."""
        self._leave_the_parents()
        with self._lock:
            shown = [(name, *group.total()) for name, group in self._groups.items()]
        return self._families(shown)

    def _leave_the_parents(self) -> None:
        if self._pid != os.getpid():  # a thread of the parent may have held the lock
            self._begin()

    def _families(self, shown: Sequence[tuple[str, BufferMetrics, int]]) -> list[Metric]:
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        names = [*self._labels, "producer"]
        known = list(self._labels.values())
        families: list[Metric] = []
        for attribute, text in COUNTERS.items():
            counter = CounterMetricFamily(f"tsengine_buffer_{attribute}", text, labels=names)
            for producer, metrics, _ in shown:
                counter.add_metric([*known, producer], getattr(metrics, attribute))
            families.append(counter)
        flushes = CounterMetricFamily(
            "tsengine_buffer_flushes", "Batches by what made them due.", labels=[*names, "cause"]
        )
        pending = GaugeMetricFamily(
            "tsengine_buffer_pending", "Points that are not committed yet.", labels=names
        )
        seconds = HistogramMetricFamily(
            "tsengine_buffer_commit_seconds",
            "Seconds of each attempt to commit, failed ones included.",
            labels=names,
        )
        sizes = HistogramMetricFamily(
            "tsengine_buffer_batch_points", "Points of each commit.", labels=names
        )
        for producer, metrics, points in shown:
            values = [*known, producer]
            for cause, count in metrics.flushes.items():
                flushes.add_metric([*values, cause], count)
            pending.add_metric(values, points)
            seconds.add_metric(values, _buckets(metrics.latency), metrics.latency.total)
            sizes.add_metric(values, _buckets(metrics.sizes), metrics.sizes.total)
        return [*families, flushes, pending, seconds, sizes]


class _Group:
    """The buffers of one name. Guarded by the collector's lock.

    Attributes:
        past: what buffers that are gone had counted.
        held: the others, and what they count.
    """

    __slots__ = ("held", "past")

    def __init__(self) -> None:
        self.past = BufferMetrics()
        self.held: list[tuple[weakref.ref[WriteBuffer], BufferMetrics]] = []

    def let_go(self) -> None:
        """Keep of buffers that are gone only what they counted."""
        alive = []
        for held, metrics in self.held:
            if held() is None:
                _add(self.past, metrics)
            else:
                alive.append((held, metrics))
        self.held = alive

    def total(self) -> tuple[BufferMetrics, int]:
        """Give what all have counted together, and what is pending."""
        self.let_go()
        total = BufferMetrics()
        _add(total, self.past)
        pending = 0
        for held, metrics in self.held:
            _add(total, metrics)
            buffer = held()
            pending += 0 if buffer is None else buffer.pending
        return total, pending


def _add(total: BufferMetrics, metrics: BufferMetrics) -> None:
    for field in fields(BufferMetrics):
        counted, more = getattr(total, field.name), getattr(metrics, field.name)
        if isinstance(counted, Histogram):
            counted.counts = [a + b for a, b in zip(counted.counts, more.counts, strict=True)]
            counted.total += more.total
        elif isinstance(counted, dict):
            for cause, count in more.copy().items():  # others may add to it meanwhile
                counted[cause] = counted.get(cause, 0) + count
        else:
            setattr(total, field.name, counted + more)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Give the counts as Prometheus has them: each with those of all smaller buckets."""
    bounds = [*(repr(float(bound)) for bound in histogram.bounds), "+Inf"]
    return list(zip(bounds, itertools.accumulate(histogram.counts), strict=True))
