"""Rolling up: aggregates of a store, kept as series of their own, and kept true."""

from __future__ import annotations

import hashlib
import threading
import time
import weakref
from collections.abc import Callable, Sequence

from tsengine.aggregation import Aggregation, aggregation
from tsengine.duplicates import DuplicatePolicy
from tsengine.engine import Engine
from tsengine.errors import (
    AggregationError,
    ConfigurationError,
    UnknownOptionError,
    UnsupportedError,
)
from tsengine.model import (
    DurationLike,
    TimestampLike,
    check_producer,
    duration,
    timestamp_range,
)
from tsengine.retry import RetryPolicy
from tsengine.rollups.renewing import OnRollup, Renewing
from tsengine.rollups.report import RollupReport
from tsengine.rollups.rolled import Rolled
from tsengine.rollups.spans import Known, Task, caps_of
from tsengine.rollups.storing import Deadline, Storing
from tsengine.selectors import Selector, SelectorLike, to_selector
from tsengine.waiting import Patience


def rollup(
    source: Engine,
    target: Engine,
    every: DurationLike,
    functions: Sequence[str],
    selector: SelectorLike = None,
    start: TimestampLike | None = None,
    end: TimestampLike | None = None,
    *,
    group_by: Sequence[str] | None = None,
    origin: TimestampLike | None = None,
    name: str | None = None,
    of: DurationLike | None = None,
    lookback: DurationLike | None = None,
    follow_deletes: bool = False,
    producer: str | None = None,
    progress: OnRollup | None = None,
    retry: RetryPolicy | None = None,
    timeout: float | None = None,
    cancel: threading.Event | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> RollupReport:
    """Keep aggregates of a store as series, so that raw points need not be kept so long.

        rollup(engine, archive, "5m", ["mean", "max"], "cpu_usage")
        archive.query('cpu_usage:5m{__function__="mean"}')

    Afterwards the target has, of each whole window that has ended, what `source.aggregate` gives
    for it: run again, it adds windows that have ended since, and redoes those whose points were
    changed. What is stored already is compared and not written, so that a run after which
    nothing came writes nothing. It may be killed at any moment, and be run again.

    A result is at the start of its window, in the series of its points, or of its group, with the
    length of the window behind the metric name and the function in the label `__function__`:
    `cpu_usage:5m{__function__="mean",host="a"}`. Where windows do not begin with the epoch that is
    told as well, `:1d_6h`, and by which labels series are merged, `:5m_by_region`, `:5m_all`.
    Series with a label `__function__` are never read as raw points, so that source and target may
    be one store.

    Windows that retention does not show whole any more are never touched: results of them stay.
    Nor are, unless `follow_deletes` is set, results of windows that have no points any more, and
    the first window of a series of which that is so of earlier ones: the source may have lost
    points to a cap, or to a delete of old ones. With `group_by` that is seen when the whole group
    lost them; give `start` as well where old points of some are deleted.

    Args:
        source: an engine, open.
        target: an engine, open, whose duplicate policy is `last`; may be the source.
        every: length of the windows.
        functions: as in `Engine.aggregate`.
        selector: which series of the source.
        start: windows that begin before are left as they are.
        end: likewise those that end behind; the clock of the source where not given.
        group_by: as in `Engine.aggregate`.
        origin: as in `Engine.aggregate`.
        name: metric name of merged results, before the length. Needed where `group_by` does not
            have `__name__`, or where rollups of two selectors merge by the same labels: nothing
            else would tell those apart.
        of: reads the results of the rollup of this length, of single series, with the same
            selector and origin, instead of points. For count, sum, min, max, first and last, which
            come out as those of the points would. Windows have to be made of whole ones of it.
        lookback: only looks at windows from so long before the end of what was rolled up,
            so that a run does not read what is older. Later changes of that go unseen, and so do
            new series with old points. Without it all that the source still has is read, but by a
            further run in one process only where LMDB, on both sides, says that it has changed.
        follow_deletes: whether results go when all their points have gone. For sources that lose
            points by retention alone, or by deletes that results are to follow.
        producer: name of the mark by which the target knows how far it is rolled up; made of
            the arguments that say what results are where not given.
        progress: is called with what has been done, after each span of windows.
        retry: when a failed commit is tried again, and how its results are divided.
        timeout: seconds that all of it may take; None for as long as it takes. What is under
            way is not interrupted: a span of at most 2²⁰ results.
        cancel: stops the rollup when it is set.
        clock: seconds, monotonic; injected by tests.

    Returns:
        What was done.

    Raises:
        AggregationError: a function, `every`, `group_by`, `origin`, `name` or `of` makes no sense,
            or they do not go together.
        InvalidQueryError: a bad selector or range.
        UnknownOptionError: another argument makes no sense.
        ConfigurationError: the target cannot be written to again, as its policy is not `last`; or
            the source has a cap, which does not go with `follow_deletes` and `group_by`; or these
            are given both, for merged results do not tell what they were made of.
        UnsupportedError: `lookback` was given and the target keeps no marks.
        RollupError: reading, writing or `progress` failed, which is its cause; or the target has a
            result's series with another kind: then all other results are stored.
        RollupTimeoutError: `timeout` is over.
        RollupCancelledError: `cancel` was set.
    """
    first, last = timestamp_range(start, end)
    resolved = to_selector(selector)
    asked = aggregation(functions, first, last, every=every, group_by=group_by, origin=origin)
    if asked.every is None:
        raise AggregationError("every=None has no windows; give every='5m' or the like")
    Patience(timeout, None)  # judges it
    _check_stores(source, target, follow_deletes=follow_deletes, merges=group_by is not None)
    names = [function.name for function in asked.functions]
    length_read = None if of is None else _length("of", of)
    rolled = Rolled(
        resolved,
        names,
        asked.every,
        origin=asked.phase,
        group_by=group_by,
        name=name,
        of=length_read,
    )
    identity = _identity(resolved, asked, name, length_read)
    if producer is None:
        producer = identity
    check_producer(producer)
    length_back = None if lookback is None else _length("lookback", lookback)
    if length_back is not None and not target.marks_producers:
        raise UnsupportedError(
            f"{target!r} keeps no producer marks, so that it is not known what to look back from; "
            "without lookback all is read"
        )
    source.retained_from()  # raises where one is not open
    target.retained_from()
    deadline = Deadline(timeout, cancel, clock)
    task = Task(
        source=source,
        target=target,
        rolled=rolled,
        every=asked.every,
        origin=asked.phase,
        start=first,
        end=last,
        lookback=length_back,
        follows_deletes=follow_deletes,
    )
    policy = RetryPolicy() if retry is None else retry
    storing = Storing(target, policy, deadline, producer, clock)
    with _lock:
        all_known = _known.setdefault(source, weakref.WeakKeyDictionary()).setdefault(target, {})
    key = (identity, follow_deletes)
    renewing = Renewing(task, storing, deadline, producer, progress, all_known.get(key))
    report = renewing.run()
    if renewing.known is not None:
        all_known[key] = renewing.known
    return report


_known: weakref.WeakKeyDictionary[
    Engine, weakref.WeakKeyDictionary[Engine, dict[tuple[str, bool], Known]]
] = weakref.WeakKeyDictionary()
"""What earlier runs know, for as long as both engines are there."""

_lock = threading.Lock()
"""Guards the keys of `_known`."""


def _length(option: str, given: DurationLike) -> int:
    try:
        return duration(given)
    except UnknownOptionError as error:
        raise UnknownOptionError(f"{option}: {error}") from None


def _check_stores(source: Engine, target: Engine, *, follow_deletes: bool, merges: bool) -> None:
    policy = target.options.duplicate_policy
    if policy is not DuplicatePolicy.LAST:
        raise ConfigurationError(
            f"{target!r} has the duplicate policy {policy.value!r}, under which a result cannot be "
            "stored again when points come late; a target of rollups needs 'last'"
        )
    if follow_deletes and merges:
        raise ConfigurationError(
            "follow_deletes does not go with group_by: a merged result does not tell which series "
            "it was made of, and so not whether it is of this rollup"
        )
    caps = caps_of(source)
    if caps and (follow_deletes or merges):
        what = "follow_deletes" if follow_deletes else "group_by"
        raise ConfigurationError(
            f"{source!r} has the cap {caps[0]}: what it evicts would look like deleted with "
            f"{what}; roll up without that"
        )


def _identity(selector: Selector, asked: Aggregation, name: str | None, of: int | None) -> str:
    """Give a name that is the same for the same results."""
    told = (
        str(selector),
        selector.exact is not None,
        sorted(function.name for function in asked.functions),
        asked.every,
        asked.phase,
        asked.group_by,
        name,
        of,
    )
    return f"rollup-{hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()}"
