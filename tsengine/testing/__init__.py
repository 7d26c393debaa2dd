"""The kit that proves that every backend means the same thing by the same call.

    reference.py      ReferenceModel, the independent oracle
    strategies.py     Hypothesis strategies, biased to where things break
    conformance/      EngineConformance, a suite to subclass
    state_machine.py  state_machine(engine), engine and buffer beside the model
    operations.py     what a store is asked to do, as data
    agreement.py      Lockstep, several engines or options, equal reads
    faults.py         FaultyHandler, calls that fail by countdown
    compare.py        comparing answers with what is expected

A backend's whole test module:

    from tsengine.testing import EngineConformance, state_machine

    class TestMyEngine(EngineConformance):
        engine_type = MyEngine

    TestMyEngineMachine = state_machine(MyEngine).TestCase

It needs pytest and Hypothesis: pip install 'tsengine[testing]'.
"""

from __future__ import annotations

# ruff: noqa: E402  # asserts are set up before the modules that have them are imported
from tsengine.errors import MissingDependencyError

try:
    import hypothesis as _hypothesis  # noqa: F401  # only whether it is there
    import pytest
except ImportError as error:
    raise MissingDependencyError(
        "tsengine.testing needs pytest and Hypothesis: pip install 'tsengine[testing]'"
    ) from error

# Before the modules are imported, so that a failing assert of theirs shows its values.
pytest.register_assert_rewrite(
    "tsengine.testing.agreement",
    "tsengine.testing.compare",
    "tsengine.testing.conformance",
    "tsengine.testing.state_machine",
)

from tsengine.testing.agreement import Lockstep, Target
from tsengine.testing.compare import (
    assert_aggregate,
    assert_range,
    assert_rows,
    assert_same,
    rows_of,
)
from tsengine.testing.conformance import EngineConformance, requires, run_suite
from tsengine.testing.faults import Fault, FaultyHandler, When
from tsengine.testing.operations import operations
from tsengine.testing.reference import Column, FloatSum, ReferenceModel, agrees
from tsengine.testing.state_machine import EngineMachine, state_machine

__all__ = [
    "Column",
    "EngineConformance",
    "EngineMachine",
    "Fault",
    "FaultyHandler",
    "FloatSum",
    "Lockstep",
    "ReferenceModel",
    "Target",
    "When",
    "agrees",
    "assert_aggregate",
    "assert_range",
    "assert_rows",
    "assert_same",
    "operations",
    "requires",
    "rows_of",
    "run_suite",
    "state_machine",
]
