"""The conformance suite: one test for each sentence a caller may rely on.

    class TestMyEngine(EngineConformance):
        engine_type = MyEngine

runs all of it that `MyEngine.capabilities` declares; see `ConformanceBase`. A conftest that
imports `pytest_terminal_summary` from here has the rest listed at the end. A test that a
backend cannot pass is never overridden: mark it as a strict xfail with its reason.
"""

from __future__ import annotations

from tsengine.testing.conformance.aggregating import AggregateConformance
from tsengine.testing.conformance.bad_input import BadInputConformance
from tsengine.testing.conformance.base import (
    ConformanceBase,
    pytest_terminal_summary,
    requires,
    run_suite,
)
from tsengine.testing.conformance.deleting import DeleteConformance
from tsengine.testing.conformance.handler import HandlerConformance, MarkConformance
from tsengine.testing.conformance.hostile import HostileConformance
from tsengine.testing.conformance.isolation import AliasingConformance, ThreadConformance
from tsengine.testing.conformance.lifecycle import LifecycleConformance
from tsengine.testing.conformance.limits import CapConformance, RetentionConformance
from tsengine.testing.conformance.policies import PolicyConformance
from tsengine.testing.conformance.reading import ReadConformance
from tsengine.testing.conformance.tables import TableConformance
from tsengine.testing.conformance.writing import WritingConformance

__all__ = [
    "ConformanceBase",
    "EngineConformance",
    "pytest_terminal_summary",
    "requires",
    "run_suite",
]


class EngineConformance(
    WritingConformance,
    TableConformance,
    BadInputConformance,
    HostileConformance,
    PolicyConformance,
    DeleteConformance,
    ReadConformance,
    AggregateConformance,
    HandlerConformance,
    MarkConformance,
    LifecycleConformance,
    CapConformance,
    RetentionConformance,
    AliasingConformance,
    ThreadConformance,
):
    """All of the suite, to subclass."""
