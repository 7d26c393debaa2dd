"""A store killed at any call that changes files has lost nothing that was acknowledged."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability.forking import Template
from tests.reliability.kills import CASES, VICTIM, Case, Kill, Killing, parse, sample, why_not

SPREAD = 12
"""Writes and syncs of a case that CI kills at; `torture` kills at all of them."""


@pytest.fixture(scope="module")
def template() -> Iterator[Template]:
    """A victim's template; without tracing there is none, which in CI is a failure."""
    reason = why_not()
    if reason and os.environ.get("CI"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    with Template(VICTIM) as started:
        yield started


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is one: what the kernel was given a kill does not lose."""
    memory = Path("/dev/shm")
    made = tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None)
    yield Path(made)
    shutil.rmtree(made)


@pytest.mark.parametrize("name", CASES)
def test_a_kill_loses_nothing_acknowledged(template: Template, folder: Path, name: str) -> None:
    """Killed at a call that changes files, a store is a moment of its history, and goes on."""
    killing = Killing(template, folder)
    case = CASES[name]
    kills = sample(killing.calls(case), SPREAD)
    assert kills
    for kill in kills:
        killing.kill(name, case, kill)
    killing.end(name, case)


@pytest.mark.parametrize(
    ("fault", "case", "complaint"),
    [
        ("early", Case("flush", 10, 14), "lost"),
        ("apart", Case("flush", 10, 14), "mark"),
        ("unlisted", Case("merging", 16, 19), "nothing lists it"),
    ],
)
def test_the_harness_catches(
    template: Template, folder: Path, fault: str, case: Case, complaint: str
) -> None:
    """Acknowledged too early, marks in a commit of their own, unlisted merges: all are seen."""
    killing = Killing(template, folder, fault=fault)
    kills = killing.calls(case)

    def kill_everywhere() -> None:
        for kill in kills:
            killing.kill(fault, case, kill)

    with pytest.raises(AssertionError, match=complaint):
        kill_everywhere()


def test_calls_are_counted_as_strace_counts_them() -> None:
    """Ordinals go by thread and call; opening that makes nothing is counted, and not killed."""
    assert parse(
        [
            '7 openat(AT_FDCWD, "x", O_RDONLY) = 3',
            '7 openat(AT_FDCWD, "y", O_RDWR|O_CREAT, 0600) = 4',
            '7 pwrite64(4, "a" <unfinished ...>',
            '8 write(5, "b", 1) = 1',
            "7 <... pwrite64 resumed>) = 1",
            '7 pwrite64(4, "c", 1) = 1',
            "7 +++ exited with 0 +++",
        ]
    ) == [
        Kill("openat", 2, 'AT_FDCWD, "y", O_RDWR|O_CREAT, 0600) = 4'),
        Kill("pwrite64", 1, '4, "a" <unfinished ...>'),
        Kill("write", 1, '5, "b", 1) = 1'),
        Kill("pwrite64", 2, '4, "c", 1) = 1'),
    ]
