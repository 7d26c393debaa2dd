"""Files: what their names say, and streams of bytes that are read, compressed ones and pipes too.

What is read says how far it has got in the file, for a time that is left.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import select
import stat
import sys
import threading
import zlib
from pathlib import Path
from typing import BinaryIO, Final, Protocol, cast

from tsengine.errors import (
    CancelledError,
    FileAccessError,
    FormatError,
    MissingDependencyError,
    UnknownOptionError,
)
from tsengine.waiting import PAUSE_SECONDS_MAX

STANDARD: Final = "-"
"""The name of standard input and output."""

COMPRESSIONS: Final = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
"""How a file is compressed, by the end of its name."""

FORMATS: Final = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".lp": "line",
    ".line": "line",
    ".influx": "line",
}
"""What a file holds, by the end of its name before that of its compression."""

_MAGICS: Final = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PAR1": "parquet",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
}


_PIECE_BYTES: Final = 1 << 16
"""Bytes that are read at once: of a larger piece with damage in it nothing would be had."""


class Stream(Protocol):
    """What bytes are read from."""

    def read1(self, size: int, /) -> bytes:
        """Give at most so many bytes; none at the end."""

    def close(self) -> None:
        """Close it."""


def compression_of(path: str) -> str | None:
    """Give how a file of that name is compressed; None for not at all."""
    return COMPRESSIONS.get(Path(path).suffix.lower())


def format_of(path: str, given: str | None) -> str:
    """Give the format of a file: as given, or by its name.

    Raises:
        FormatError: the name does not tell.
    """
    if given is not None:
        if given not in FORMATS.values():
            known = ", ".join(sorted(set(FORMATS.values())))
            raise FormatError(f"format {given!r} is none of {known}")
        return given
    plain = Path(path).with_suffix("") if compression_of(path) else Path(path)
    named = FORMATS.get(plain.suffix.lower())
    if named is None:
        raise FormatError(
            f"the name {path!r} does not tell the format; give one of "
            f"{', '.join(sorted(set(FORMATS.values())))}"
        )
    return named


def separator_of(path: str) -> str:
    """Give what separates cells of CSV in a file of that name."""
    return "\t" if ".tsv" in map(str.lower, Path(path).suffixes) else ","


def check_separator(separator: str | None) -> None:
    """Check what is to separate cells of CSV; None is for the file's name to say.

    Raises:
        UnknownOptionError: it cannot.
    """
    if separator is not None and (
        len(separator) != 1 or not separator.isascii() or separator in '"\r\n\0'
    ):
        raise UnknownOptionError(
            f"cells are separated by one character of ASCII, not {separator!r}"
        )


class InputFile:
    """A file that is read from its beginning to its end.

    Args:
        path: its name, or `-` for standard input, which is not decompressed.
        what: the format it is said to have, for messages.

    Attributes:
        name: for messages.
        bytes_total: its size; None where it has none.
        failure: why there is no more to read, where that is not the end: it is damaged or ends
            too early (FormatError), or cannot be read (FileAccessError).

    Raises:
        FileAccessError: it cannot be opened.
        FormatError: it begins like something else than its name says.

    Thread-safety: `stop` may be called by any thread.
    """

    def __init__(self, path: str, what: str) -> None:
        self.name = "standard input" if path == STANDARD else path
        self._what = what
        self._compression = None if path == STANDARD else compression_of(path)
        self._raw: BinaryIO
        self.bytes_total: int | None = None
        self.failure: FormatError | FileAccessError | None = None
        try:
            if path == STANDARD:
                self._raw = _standard_input()
            else:
                self._raw = cast("BinaryIO", Path(path).open("rb", buffering=0))  # noqa: SIM115  # closed by `close`
                status = os.fstat(self._raw.fileno())
                self.bytes_total = status.st_size or None
        except FileAccessError:  # is an OSError as well
            raise
        except OSError as error:
            raise FileAccessError(f"cannot open {path!r}: {error.strerror}") from error
        self._is_standard = path == STANDARD
        try:
            self._counted = _Counted(self._raw)
            self._stream = self._decompressed()
        except BaseException:
            self.close()
            raise

    @property
    def bytes_read(self) -> int:
        """How many bytes of the file were read, compressed as they are."""
        return self._counted.position

    def read(self, size: int) -> bytes:
        """Give so many bytes, fewer only at the end, whatever pieces a pipe gives.

        What comes before damage is given like an end; then `failure` says that it is none.

        Raises:
            CancelledError: `stop` was called.
        """
        pieces: list[bytes] = []
        missing = size
        while missing and self.failure is None:
            try:
                piece = self._read_some(missing)
            except (FormatError, FileAccessError) as error:
                self.failure = error
                break
            if not piece:
                break
            pieces.append(piece)
            missing -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Close the file; standard input stays open."""
        if not self._is_standard:
            self._raw.close()

    def is_file(self, path: str) -> bool:
        """Whether that is the name of this very file, or of another one that leads to it."""
        try:
            ours, other = os.fstat(self._raw.fileno()), Path(path).stat()
        except OSError:  # it is in memory, or there is none of that name
            return False
        return stat.S_ISREG(ours.st_mode) and os.path.samestat(ours, other)

    def stop(self) -> None:
        """Have who reads, or waits for a pipe to give something, read no more."""
        self._counted.stopped.set()

    def _read_some(self, size: int) -> bytes:
        """Give some bytes.

        Raises:
            FormatError: they are damaged, or end too early.
            FileAccessError: they cannot be read.
        """
        try:
            return self._stream.read1(min(size, _PIECE_BYTES))
        except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, ValueError) as error:
            raise self._damaged(error) from error
        except OSError as error:
            if self._compression is not None and error.errno is None:
                raise self._damaged(error) from error
            raise FileAccessError(f"cannot read {self.name}: {error.strerror}") from error

    def _damaged(self, error: Exception) -> FormatError:
        return FormatError(
            f"{self.name} is damaged or cut short, as {self._compression or 'a file'}: {error}"
        )

    def _decompressed(self) -> Stream:
        counted = self._counted
        seems = next((what for magic, what in _MAGICS.items() if counted.starts(magic)), None)
        said = self._compression or self._what
        is_plain = self._compression is None and self._what not in _MAGICS.values()
        if counted.head and seems != (None if is_plain else said):
            raise FormatError(
                f"{self.name} holds no {said}, as its name or format says"
                + (f", but {seems}" if seems else "")
            )
        raw = cast("BinaryIO", counted)
        if self._compression == "gzip":
            return gzip.GzipFile(fileobj=raw)
        if self._compression == "bz2":
            return bz2.BZ2File(raw)
        if self._compression == "xz":
            return lzma.LZMAFile(raw)
        if self._compression == "zstd":
            return _zstd_input(raw)
        return counted


class _Counted(io.RawIOBase):
    """Counts what is read of a file, knows how it begins, and can be told to read no more."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._poll = _poll_of(raw)
        self.stopped = threading.Event()
        self.head = b""
        while len(self.head) < max(map(len, _MAGICS)):
            piece = self._some(max(map(len, _MAGICS)) - len(self.head))
            if not piece:
                break
            self.head += piece
        self._begin = self.head
        self.position = 0

    def starts(self, magic: bytes) -> bool:
        return self._begin.startswith(magic)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Give so many bytes, fewer only at the end: decompressors rely on it."""
        pieces: list[bytes] = []
        while size and (piece := self.read1(size if size > 0 else _PIECE_BYTES)):
            pieces.append(piece)
            size -= len(piece) if size > 0 else 0
        return b"".join(pieces)

    def read1(self, size: int, /) -> bytes:
        if self.head:
            piece, self.head = self.head[:size], self.head[size:]
        else:
            piece = self._some(size)
        self.position += len(piece)
        return piece

    def _some(self, size: int) -> bytes:
        """Wait for bytes, and give what is there.

        Raises:
            CancelledError: nobody wants them.
        """
        while not self.stopped.is_set():
            if self._poll is None or self._poll.poll(PAUSE_SECONDS_MAX * 1_000):
                piece: bytes | None = self._raw.read(size)
                if piece is not None:  # else it is a pipe that does not block, and was emptied
                    return piece
        raise CancelledError("nobody wants what is read")

    def readinto(self, buffer: bytearray, /) -> int:  # type: ignore[override]  # of any buffer
        piece = self.read1(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


def _standard_input() -> BinaryIO:
    """Give standard input without a buffer: who waits for one cannot be told to stop.

    Raises:
        FileAccessError: it is closed.
    """
    if sys.stdin is None:  # as by `<&-` of a shell
        raise FileAccessError("cannot read standard input: it is closed")
    buffer = sys.stdin.buffer
    return cast("BinaryIO", getattr(buffer, "raw", buffer))


def _poll_of(raw: BinaryIO) -> select.poll | None:
    """Give what waits for a pipe, a terminal or a socket; None for files, which never wait."""
    try:
        number = raw.fileno()
    except OSError:  # it is in memory
        return None
    if stat.S_ISREG(os.fstat(number).st_mode):
        return None
    poll = select.poll()
    poll.register(number, select.POLLIN)
    return poll


def _zstd_input(raw: BinaryIO) -> Stream:
    try:
        import pyarrow as pa  # an optional package, imported when used
    except ImportError:
        raise MissingDependencyError(
            "files compressed by zstd are read through pyarrow: pip install 'tsengine[arrow]'"
        ) from None
    stream: Stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
    return stream
