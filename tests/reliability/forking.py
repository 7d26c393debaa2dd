"""Forking: the harness's end of `template.py`, and what a victim tells without a syscall."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

PATIENCE_SECONDS: Final = 100.0
"""After this long without an answer the template is killed: a hang fails, it does not hang."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a piece of work ended.

    Attributes:
        status: 0, or minus the signal that killed the child.
        result: what the work returned.
        error: the traceback of what it raised.
    """

    status: int
    result: Any = None
    error: str | None = None


class Template:
    """A running `template.py` for one file of works; a context manager.

    Args:
        victim: the file, a module beside this one.
        environment: variables besides those of this process.
    """

    def __init__(self, victim: Path, environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("template.py")), str(victim)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()  # and with it its child
        self._process.communicate()

    def start(self, work: str, **arguments: object) -> int:
        """Have a child begin a work that calls `ready`; gives its process ID when it waits."""
        self._send({"work": work, "arguments": arguments})
        answer = self._receive()
        if "ready" not in answer:
            raise AssertionError(f"{work} did not get ready: {answer.get('error', answer)}")
        return int(answer["ready"])

    def go(self) -> None:
        """Let the child that waits go on."""
        self._send("go")

    def go_on(self) -> Ended | None:
        """Let the child go on until it calls `ready` again; gives how it ended if it did."""
        self.go()
        answer = self._receive()
        return None if "ready" in answer else self._ended(answer)

    def end(self) -> Ended:
        """Wait for the end of the child."""
        return self._ended({})

    def _ended(self, told: dict[str, Any]) -> Ended:
        while "status" not in told:
            told.update(self._receive())
        return Ended(**told)

    def run(self, work: str, **arguments: object) -> Any:
        """Have a child do a work that does not call `ready`; gives its result.

        Raises:
            AssertionError: it raised, or was killed.
        """
        self._send({"work": work, "arguments": arguments})
        ended = self.end()
        if ended.error is not None:
            raise AssertionError(f"{work}({arguments}) raised\n{ended.error}")
        if ended.status:
            raise AssertionError(f"{work}({arguments}) ended with status {ended.status}")
        return ended.result

    def _send(self, request: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        watchdog = threading.Timer(PATIENCE_SECONDS, self._process.kill)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            raise AssertionError(f"no answer within {PATIENCE_SECONDS} s, or the template died")
        answer: dict[str, Any] = json.loads(line)
        return answer
