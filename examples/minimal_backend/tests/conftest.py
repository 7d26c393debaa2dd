"""Lists at the end what the kit deselected."""

from __future__ import annotations

from tsengine.testing.conformance import pytest_terminal_summary  # noqa: F401  # a hook
