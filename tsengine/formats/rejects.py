"""Rejects: rows that cannot be read or stored, counted and written aside.

A reject is one line of JSON: `{"line": 12, "reason": "…", "row": "…"}`. `line` is null for points
that the store refused when they were on their way already; `row` is then the point. Those of an
import with a name have it as `import`, so that several may write to one file, one after the other.
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from tsengine.errors import FileAccessError, TooManyRejectsError

SHOWN_MAX: Final = 5
"""Rejects that are kept to be shown."""

ROW_MAX: Final = 4_096
"""Most characters of a row that are written aside: enough to see what it is."""


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that was not stored.

    Attributes:
        line: number of its line or row in the file, from 1; None where that is not known.
        reason: what is wrong with it.
        row: its text, or the beginning of it.
    """

    line: int | None
    reason: str
    row: str

    def __str__(self) -> str:
        where = "a point" if self.line is None else f"line {self.line}"
        return f"{where}: {self.reason}: {self.row[:80]!r}"


class Rejects:
    """Counts rejects, keeps the first, and writes all of them to a file.

    Args:
        path: where they are written; None for nowhere.
        rejects_max: how many there may be; None for any number.
        name: of the import; the file is gone on with then, and rejects that it has of an earlier
            run of the same name are not written again. None where the file is begun anew.

    Attributes:
        count: how many there were.
        first: the first of them.

    Thread-safety: `add` may be called by any thread.
    """

    def __init__(
        self,
        path: str | None = None,
        *,
        rejects_max: int | None = None,
        name: str | None = None,
    ) -> None:
        self._lock = threading.Lock()  # guards all below
        self._max = rejects_max
        self._name = name
        self._file: BinaryIO | None = None
        self._written_to = 0  # the last line of which the file has a reject of ours already
        self.count = 0
        self.first: list[Reject] = []
        if path is not None:
            try:
                if name is not None:
                    self._file = self._continued(path)
                else:
                    self._file = Path(path).open("wb")  # noqa: SIM115  # closed by `close`
            except OSError as error:
                raise FileAccessError(f"cannot write {path!r}: {error.strerror}") from error

    def add(self, line: int | None, reason: str, row: str | bytes) -> None:
        """Count a reject and write it.

        Raises:
            TooManyRejectsError: there are more now than there may be.
            FileAccessError: it cannot be written.
        """
        if isinstance(row, bytes):
            row = row[: 4 * ROW_MAX].decode("utf-8", "backslashreplace")
        reject = Reject(line, reason, row.rstrip("\r\n")[:ROW_MAX])
        with self._lock:
            self.count += 1
            if len(self.first) < SHOWN_MAX:
                self.first.append(reject)
            if self._file is not None and (line is None or line > self._written_to):
                told = {"line": line, "reason": reason, "row": reject.row}
                if self._name is not None:
                    told["import"] = self._name
                try:
                    self._file.write(json.dumps(told).encode() + b"\n")
                except OSError as error:
                    raise FileAccessError(f"cannot write rejects: {error.strerror}") from error
            if self._max is not None and self.count > self._max:
                raise TooManyRejectsError(
                    f"more than {self._max} rows cannot be stored; the last is {reject}"
                )

    def flush(self) -> None:
        """Have what was added outlive this process; done before points behind it are stored."""
        with self._lock:
            if self._file is not None and not self._file.closed:
                self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._file is not None:
                self._file.close()

    def _continued(self, path: str) -> BinaryIO:
        """Open the file of an earlier run behind its last whole line."""
        file: BinaryIO = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        whole = 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            try:
                told = json.loads(line)
                number = told["line"] if told["import"] == self._name else None
            except (ValueError, KeyError, TypeError):
                continue
            if isinstance(number, int):
                self._written_to = max(self._written_to, number)
        file.seek(whole)
        file.truncate()
        return file
