"""What all tests share: profiles of Hypothesis, quick collections of garbage, a server.

The profile `ci` tries the same examples each time, `long` ever new ones. HYPOTHESIS_PROFILE=long
chooses the second; TSENGINE_EXAMPLES says how many it tries.
"""

from __future__ import annotations

import gc
import os

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.postgres.cluster import Cluster
from tests.postgres.shared import shared_cluster
from tsengine.testing.conformance import pytest_terminal_summary  # noqa: F401  # a hook

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],  # explaining takes minutes
    suppress_health_check=_SLOW,
)
settings.register_profile(
    "long",
    deadline=None,
    max_examples=int(os.environ.get("TSENGINE_EXAMPLES", "5000")),
    stateful_step_count=60,
    print_blob=True,
    suppress_health_check=_SLOW,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_collection_finish() -> None:
    """Leave what has been imported out of the collections that tests ask for: 0.3 s each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The PostgreSQL server that the tests of this process share: fast, and never stopped."""
    return shared_cluster()
