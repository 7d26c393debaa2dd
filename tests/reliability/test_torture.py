"""Torture: it runs, tells what it found, and no fault ends it or passes for a success."""

from __future__ import annotations

import importlib
import json
import os
import select
from pathlib import Path

import pytest

from tests.reliability import lockstep, planted
from tests.reliability.torture import BROKEN, TOPICS, main, run_topic
from tsengine import Engine, QueryResult
from tsengine.backends.memory import MemoryEngine
from tsengine.model import TimestampLike
from tsengine.selectors import SelectorLike
from tsengine.testing import Target


def test_a_short_run_is_clean(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A topic runs, its figures are JSON, and the exit code says that all is well."""
    arguments = ["--seed", "3", "--seconds", "0.1", "--topics", "lockstep"]
    assert main([*arguments, "--folder", str(tmp_path)]) == 0
    figures = json.loads(capfd.readouterr().out)
    assert figures["seed"] == 3
    assert figures[BROKEN] == []
    assert figures["topics"]["lockstep"]["operations"] > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("topic", TOPICS)
def test_every_topic_is_there(topic: str) -> None:
    """Each topic is a module with a long form of its own, and tests of its short one."""
    module = importlib.import_module(f"tests.reliability.{topic}")
    assert callable(module.torture)
    beside = {"lockstep": "test_torture.py"}.get(topic, f"test_{topic}.py")
    assert Path(__file__).with_name(beside).is_file()


def test_what_a_topic_tells_is_passed_on(tmp_path: Path) -> None:
    """A topic gets its seed, its share of the time and its folder; its figures come back."""
    figures = run_topic("planted", planted.PASSES, 0.25, tmp_path)
    assert figures == {"seconds": 0.25, "folder": True, "took_seconds": figures["took_seconds"]}


@pytest.mark.parametrize(
    ("seed", "told"), [(planted.BREAKS, "a promise is broken"), (planted.DIES, "died by SIGBUS")]
)
def test_a_broken_promise_is_told_with_its_seed(tmp_path: Path, seed: int, told: str) -> None:
    """An assertion that fails, and a signal, are both found and can be repeated."""
    broken = str(run_topic("planted", seed, 1.0, tmp_path)[BROKEN])
    assert told in broken
    assert f"seed {seed}" in broken


def test_what_a_topic_started_ends_with_it(tmp_path: Path) -> None:
    """A process that a topic left behind is killed."""
    child = run_topic("planted", planted.LEAVES_A_CHILD, 1.0, tmp_path)["child"]
    try:
        ended = os.pidfd_open(int(str(child)))
    except ProcessLookupError:
        return  # killed, and waited for by init
    try:
        assert select.select([ended], [], [], 60)[0], "it goes on"
    finally:
        os.close(ended)


class ForgetsTheLast(MemoryEngine):
    """Answers without the last series."""

    def query(
        self,
        selector: SelectorLike = None,
        start: TimestampLike | None = None,
        end: TimestampLike | None = None,
    ) -> QueryResult:
        """Give all but the last."""
        return QueryResult(list(super().query(selector, start, end))[:-1])


def test_lockstep_finds_a_wrong_answer() -> None:
    """A backend that leaves something out is found."""

    def make(path: Path, **options: object) -> Engine:
        return ForgetsTheLast(**options)  # type: ignore[arg-type]  # clock_ns is among them

    with pytest.raises(AssertionError):
        lockstep.run(1, more={"forgetful": Target(make)})
