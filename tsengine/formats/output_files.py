"""Files that are written: they get their name when they are whole, and never before."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from tsengine.errors import FileAccessError, MissingDependencyError, TsEngineError
from tsengine.formats.files import STANDARD, compression_of


class OutputFile:
    """A file that is written under another name and gets its own when it is whole.

    A pipe or a device, such as /dev/null or /dev/stdout, is written to as it is, and a symbolic
    link leads to the file that is replaced. A file that is replaced keeps its permissions.

    Args:
        path: its name, by which it is compressed; `-` for standard output.

    Attributes:
        stream: what is written to.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._temporary: Path | None = None
        self._raw: BinaryIO
        try:
            if path == STANDARD:
                self._raw = sys.stdout.buffer
            else:
                self._raw = self._opened(Path(path))
        except OSError as error:
            raise FileAccessError(f"cannot write {path!r}: {error.strerror}") from error
        try:
            self.stream = self._compressed()
        except BaseException:
            self.discard()
            raise

    def commit(self) -> None:
        """Write what is left, wait until it is on the disk, and give the file its name."""
        if self.stream is not self._raw:
            self.stream.close()
        self._raw.flush()
        if self._temporary is not None:
            os.fsync(self._raw.fileno())
            self._raw.close()
            self._temporary.replace(self._target)
            self._temporary = None
        elif self._path != STANDARD:
            self._raw.close()

    def discard(self) -> None:
        """Remove what was written; nothing of standard output can be taken back."""
        if self._path == STANDARD:
            return
        # What is left to be written may not fit the disk either. Compression goes first: that of
        # pyarrow complains when it finds the file below it closed.
        for one in (getattr(self, "stream", self._raw), self._raw):
            with suppress(OSError):
                one.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
            self._temporary = None

    def _opened(self, path: Path) -> BinaryIO:
        """Open what is written to; the caller closes it."""
        try:
            status = path.stat()
        except FileNotFoundError:
            status = None
        if status is not None and not stat.S_ISREG(status.st_mode):
            return path.open("wb")
        self._target = target = path.resolve()
        self._temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        raw = self._temporary.open("xb")
        if status is not None:
            os.fchmod(raw.fileno(), stat.S_IMODE(status.st_mode))
        return raw

    def _compressed(self) -> BinaryIO:
        compression = None if self._path == STANDARD else compression_of(self._path)
        raw = self._raw
        if compression == "gzip":
            return cast("BinaryIO", gzip.GzipFile("", "wb", fileobj=raw, mtime=0))
        if compression == "bz2":
            return cast("BinaryIO", bz2.BZ2File(raw, "wb"))
        if compression == "xz":
            return cast("BinaryIO", lzma.LZMAFile(raw, "wb"))
        if compression == "zstd":
            return _zstd_output(raw)
        return raw


@contextmanager
def written(path: str) -> Iterator[BinaryIO]:
    """Write a file: it is there, whole, when the block has ended, or not at all.

    Raises:
        FileAccessError: it cannot be written.
    """
    file = OutputFile(path)
    try:
        yield file.stream
        file.commit()
    except OSError as error:
        if isinstance(error, (TsEngineError, BrokenPipeError)):
            raise  # of the store, or nobody reads any more
        raise FileAccessError(f"cannot write {path!r}: {error.strerror}") from error
    finally:
        file.discard()


def _zstd_output(raw: BinaryIO) -> BinaryIO:
    try:
        import pyarrow as pa  # an optional package, imported when used
    except ImportError:
        raise MissingDependencyError(
            "files compressed by zstd are written through pyarrow: pip install 'tsengine[arrow]'"
        ) from None
    below = pa.PythonFile(_Unclosed(raw), mode="w")
    return cast("BinaryIO", pa.CompressedOutputStream(below, "zstd"))


class _Unclosed(io.RawIOBase):
    """A file that pyarrow may close, which leaves the one below open: that has to be synced."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw

    def writable(self) -> bool:
        return True

    def write(self, data: bytes, /) -> int:  # type: ignore[override]  # of any buffer
        return self._raw.write(data)
