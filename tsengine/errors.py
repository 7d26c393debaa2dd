"""Everything tsengine raises, on one page.

    TsEngineError
    ├── InvalidDataError (ValueError)      points cannot be stored; nothing of the call was
    │   ├── LabelsError                    labels are empty, not text, too long or hold a NUL
    │   ├── TimestampError                 not an integer, out of bounds, naive
    │   ├── ValueKindError                 a value of another kind than its series
    │   ├── ValueOverflowError             an int64 sum would overflow
    │   ├── DuplicatePointError            policy `error` and the point is there already
    │   ├── BatchShapeError                arrays of unequal length, wrong dtype or dimension
    │   └── DataRefusedError               a server does not take it: a constraint, a type, a range
    ├── InvalidQueryError (ValueError)
    │   ├── SelectorError                  a selector that does not parse
    │   ├── RangeError                     a range whose start lies after its end
    │   └── AggregationError               a function, window, grouping or fill that makes no sense
    ├── ConfigurationError
    │   ├── UnknownBackendError            a URL whose scheme no backend answers
    │   ├── UnknownOptionError             an option the backend does not know, or a bad value
    │   ├── StoreOptionError               other options than the store was created with
    │   ├── UnsupportedError               the backend does not declare this capability
    │   └── MissingDependencyError (ImportError)   names the `pip install` line that helps
    ├── RejectedPointsError                points of a buffer or a copy that cannot be stored
    ├── PartialWriteError                  of a table only the first rows were stored
    ├── CopyError                          a copy stopped: on which side, and what had landed
    │   ├── SourceChangedError             a copy is resumed from a source that is another one
    │   ├── CopyTimeoutError (WaitTimeoutError)   it took longer than `timeout`
    │   └── CopyCancelledError (CancelledError)   `cancel` was set
    ├── BulkUpsertError                    rows written to a table stopped: what had landed
    │   └── BulkUpsertCancelledError (CancelledError)   `cancel` was set
    ├── RollupError                        a rollup stopped, or left results out
    │   ├── RollupTimeoutError (WaitTimeoutError)   it took longer than `timeout`
    │   └── RollupCancelledError (CancelledError)   `cancel` was set
    ├── DifferenceError                    two stores do not hold the same
    ├── FormatError (ValueError)           not what its format says, or not in its power
    ├── FileAccessError (OSError)          a file of an import or export cannot be read or written
    ├── TooManyRejectsError                more rows of a file are bad than the caller allows
    ├── LifecycleError
    │   ├── NotOpenError                   used before open or after close
    │   ├── ReadOnlyError                  a write to a store opened with `read_only=True`
    │   ├── ForkedError                    an engine used in a forked child
    │   └── UnsavedPointsError             closed while points were staged or pending
    ├── WaitError
    │   ├── WaitTimeoutError (TimeoutError)
    │   ├── CancelledError
    │   └── BufferFullError                the point was not taken
    └── StorageError (OSError)
        ├── StorePathError                 a path that cannot hold a store: a file, no permission
        ├── StoreInUseError                another process writes to the store
        │   └── StoreInUseTimeoutError (WaitTimeoutError)   it still did after `timeout`
        ├── StorageFullError               the disk is full
        ├── ServerConnectionError          no server, or the connection to it was lost
        │   └── ServerTimeoutError (WaitTimeoutError)   it did not answer in time
        ├── ContentionError                a deadlock, a lock, or a transaction beside this one
        ├── AccessDeniedError              a wrong password, or a right that is missing
        ├── SchemaError                    a table, column, type or setting is not what it must be
        ├── BatchTooLargeError             more at once than the backend takes
        ├── FormatVersionError             a store of a newer or foreign format
        ├── CorruptionError                stored bytes fail their checksum
        └── SnapshotExpiredError           a reader outlived `snapshot_age_max`

An `InvalidDataError` carries `indices`: the positions, in the order the caller gave the
points, of every offender it knows of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # for signatures alone: these stand above this module
    from tsengine.metrics import BulkUpsertReport
    from tsengine.model import DataPoint, WriteReceipt
    from tsengine.pipeline.progress import CopyReport
    from tsengine.pipeline.verifying import Difference
    from tsengine.rollups.report import RollupReport


class TsEngineError(Exception):
    """The root: `except TsEngineError` catches all that tsengine raises on purpose."""


# Data


class InvalidDataError(TsEngineError, ValueError):
    """Is raised when points cannot be stored; nothing of the call was stored.

    Attributes:
        indices: positions of the offenders in the caller's order; empty when the
            call had one point only, or none that could be counted.
    """

    def __init__(self, message: str, *, indices: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.indices: tuple[int, ...] = tuple(int(index) for index in indices)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the indices, so that a worker process can report them."""
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(
    cls: type[TsEngineError], args: tuple[object, ...], state: dict[str, object]
) -> TsEngineError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class LabelsError(InvalidDataError):
    """Is raised when labels are empty, not text, too long, or hold a NUL or a lone surrogate."""


class TimestampError(InvalidDataError):
    """Is raised when a timestamp is no integer, lies outside the store's bounds, or is naive."""


class ValueKindError(InvalidDataError):
    """Is raised when a value does not fit the kind of its series, or no kind at all."""


class ValueOverflowError(InvalidDataError):
    """Is raised when the policy `sum` would take an int64 series out of int64."""


class DuplicatePointError(InvalidDataError):
    """Is raised under the policy `error` when a point's series and timestamp are taken."""


class BatchShapeError(InvalidDataError):
    """Is raised when the columns of a batch do not fit together or have a wrong dtype."""


class DataRefusedError(InvalidDataError):
    """Is raised when a server refuses data: by a constraint, a trigger, a type or a range."""


class RejectedPointsError(TsEngineError):
    """Is raised when points that were taken turned out to be such as cannot be stored.

    The other points of their batch are stored. Those rejected are in nobody's hands any more
    but this error's: they stay what the application makes of them. No InvalidDataError: that
    would say that the points of the present call are bad.

    Attributes:
        rejections: the rejected points and what is wrong with them, by error.
    """

    def __init__(
        self, message: str, *, rejections: Sequence[tuple[Sequence[DataPoint], Exception]]
    ) -> None:
        super().__init__(message)
        self.rejections = tuple((list(points), error) for points, error in rejections)

    @property
    def points(self) -> list[DataPoint]:
        """All rejected points."""
        return [point for points, _ in self.rejections for point in points]

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the points."""
        return _rebuild, (type(self), self.args, self.__dict__)


# Queries


class InvalidQueryError(TsEngineError, ValueError):
    """Is raised when a question cannot be answered as asked."""


class SelectorError(InvalidQueryError):
    """Is raised when a selector does not parse.

    Attributes:
        text: the selector as given.
        position: index into `text` of what was not understood.
    """

    def __init__(self, message: str, *, text: str = "", position: int = 0) -> None:
        super().__init__(message)
        self.text = text
        self.position = position

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with text and position."""
        return _rebuild, (type(self), self.args, self.__dict__)


class RangeError(InvalidQueryError):
    """Is raised when a range starts after its end, or a bound is no timestamp."""


class AggregationError(InvalidQueryError):
    """Is raised when an aggregation makes no sense as asked, or for the values it meets."""


# Configuration


class ConfigurationError(TsEngineError):
    """Is raised when an engine cannot be set up as asked."""


class UnknownBackendError(ConfigurationError, ValueError):
    """Is raised when no backend answers a URL; lists those that are known."""


class UnknownOptionError(ConfigurationError, ValueError):
    """Is raised when an option is unknown or its value makes no sense; lists what would do."""


class StoreOptionError(ConfigurationError):
    """Is raised when a store is opened with other options than it was created with."""


class UnsupportedError(ConfigurationError):
    """Is raised when a backend is asked for a capability that it does not declare."""


class MissingDependencyError(ConfigurationError, ImportError):
    """Is raised when an optional package is missing; names the `pip install` line."""


# Life of an engine or a buffer


class LifecycleError(TsEngineError):
    """Is raised when an engine or a buffer is not in a state to do what is asked."""


class NotOpenError(LifecycleError):
    """Is raised when an engine or buffer is used before it is opened or after it is closed."""


class ReadOnlyError(LifecycleError):
    """Is raised when a store opened with `read_only=True` is asked to change."""


class ForkedError(LifecycleError):
    """Is raised when an engine that was opened before a fork is used in the child."""


class UnsavedPointsError(LifecycleError):
    """Is raised by `close()` when points were neither stored nor taken back.

    Attributes:
        count: how many.
    """

    def __init__(self, message: str, *, count: int) -> None:
        super().__init__(message)
        self.count = count

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the count."""
        return _rebuild, (type(self), self.args, self.__dict__)


# Waiting


class WaitError(TsEngineError):
    """Is raised when a wait ends without what it waited for."""


class WaitTimeoutError(WaitError, TimeoutError):
    """Is raised when `timeout` seconds have passed."""


class CancelledError(WaitError):
    """Is raised when the `cancel` event was set."""


class BufferFullError(WaitError):
    """Is raised when a bounded buffer has no room; the point was not taken."""


# Storage


class StorageError(TsEngineError, OSError):
    """Is raised when the storage below does not do its part."""


class StorePathError(StorageError):
    """Is raised when a path cannot hold a store: a file, no permission, a missing parent."""


class StoreInUseError(StorageError):
    """Is raised when another process has the store open for writing."""


class StoreInUseTimeoutError(StoreInUseError, WaitTimeoutError):
    """Is raised when another process still had the store open after `timeout` seconds."""


class StorageFullError(StorageError):
    """Is raised when the disk is full; nothing of the call was stored."""


class ServerConnectionError(StorageError):
    """Is raised when a server cannot be reached, or the connection to it was lost.

    Attributes:
        commit_unknown: whether it was lost while a commit was on its way: what was written may
            be stored or not. Where it is false, nothing of the transaction is stored.
    """

    def __init__(self, message: str, *, commit_unknown: bool = False) -> None:
        super().__init__(message)
        self.commit_unknown = commit_unknown

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with what is known of the commit."""
        return _rebuild, (type(self), self.args, self.__dict__)


class ContentionError(StorageError):
    """Is raised when others were in the way: a deadlock, a lock, a serialization failure."""


class ServerTimeoutError(ServerConnectionError, WaitTimeoutError):
    """Is raised when a server did not answer, or finish a statement, in the time it was given."""


class AccessDeniedError(StorageError):
    """Is raised when a server does not let a user in, or does not let it do this."""


class SchemaError(StorageError):
    """Is raised when a table, a column, a type or a setting of a database is not as needed."""


class BatchTooLargeError(StorageError):
    """Is raised when a commit is larger than the backend takes; smaller ones may be stored."""


class FormatVersionError(StorageError):
    """Is raised when a store was written in a format that this version does not read."""


class CorruptionError(StorageError):
    """Is raised when stored bytes fail their checksum or their structure; names the place."""


class SnapshotExpiredError(StorageError):
    """Is raised when a read outlived `snapshot_age_max` and its data was given back."""


# Pipelines


class PartialWriteError(TsEngineError):
    """Is raised when a table fails behind rows that are stored; its cause is what failed.

    Attributes:
        receipt: of the points that are stored.
        rows: how many rows of the table they are, from the first on. Whether the commit that
            failed was stored all the same the cause tells, as after any write.
    """

    def __init__(self, message: str, *, receipt: WriteReceipt, rows: int) -> None:
        super().__init__(message)
        self.receipt = receipt
        self.rows = rows

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the receipt."""
        return _rebuild, (type(self), self.args, self.__dict__)


class CopyError(TsEngineError):
    """Is raised when a copy stops before the end of its source; its cause is what stopped it.

    Attributes:
        report: what had landed by then. A commit whose outcome is unknown counts only where the
            target could tell that it was stored.
        side: where it failed: reading the `"source"`, or because of its points; writing to the
            `"target"`; or in what the `"caller"` gave or asked for: a callback that raised,
            `cancel`, `timeout`.
        rejections: points that cannot be stored and that nobody was handed, with what is wrong
            with them, by error.
    """

    def __init__(
        self,
        message: str,
        *,
        report: CopyReport,
        side: Literal["source", "target", "caller"],
        rejections: Sequence[tuple[Sequence[DataPoint], Exception]] = (),
    ) -> None:
        super().__init__(message)
        self.report = report
        self.side = side
        self.rejections = tuple((list(points), error) for points, error in rejections)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the report."""
        return _rebuild, (type(self), self.args, self.__dict__)


class SourceChangedError(CopyError):
    """Is raised when a copy is to be resumed, and its source is not what it was.

    Nothing was copied: to go on would leave points out or store some twice.
    """


class CopyTimeoutError(CopyError, WaitTimeoutError):
    """Is raised when a copy took longer than `timeout`; a named one can be resumed."""


class CopyCancelledError(CopyError, CancelledError):
    """Is raised when `cancel` was set during a copy; a named one can be resumed."""


class BulkUpsertError(TsEngineError):
    """Is raised when a bulk upsert stops before the end of its rows; its cause is what stopped it.

    Attributes:
        report: what had landed by then. Rows of a batch whose commit was on its way, and whose
            outcome could not be learned, count as `unknown` there.
        indices: positions among all rows given of those that the cause blames; empty where it
            blames none.
    """

    def __init__(
        self, message: str, *, report: BulkUpsertReport, indices: Sequence[int] = ()
    ) -> None:
        super().__init__(message)
        self.report = report
        self.indices: tuple[int, ...] = tuple(int(index) for index in indices)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the report."""
        return _rebuild, (type(self), self.args, self.__dict__)


class BulkUpsertCancelledError(BulkUpsertError, CancelledError):
    """Is raised when `cancel` was set during a bulk upsert."""


class RollupError(TsEngineError):
    """Is raised when a rollup stops, or is done but for results that cannot be stored.

    Its cause is what stopped it, or what is wrong with the first of those results. Run again, it
    goes on, and looks at those again.

    Attributes:
        report: what had been done by then.
        side: where it failed, as in a CopyError; results that cannot be stored are a failure of
            the `"target"`.
        rejections: some of the results that cannot be stored, with what is wrong with them, by
            error. `report.rejected` counts all.
    """

    def __init__(
        self,
        message: str,
        *,
        report: RollupReport,
        side: Literal["source", "target", "caller"],
        rejections: Sequence[tuple[Sequence[DataPoint], Exception]] = (),
    ) -> None:
        super().__init__(message)
        self.report = report
        self.side = side
        self.rejections = tuple((list(points), error) for points, error in rejections)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the report."""
        return _rebuild, (type(self), self.args, self.__dict__)


class RollupTimeoutError(RollupError, WaitTimeoutError):
    """Is raised when a rollup took longer than `timeout`; run again, it goes on."""


class RollupCancelledError(RollupError, CancelledError):
    """Is raised when `cancel` was set during a rollup; run again, it goes on."""


class DifferenceError(TsEngineError):
    """Is raised when two stores that should hold the same do not.

    Attributes:
        difference: the first, by series ID, then time.
    """

    def __init__(self, message: str, *, difference: Difference) -> None:
        super().__init__(message)
        self.difference = difference

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the difference."""
        return _rebuild, (type(self), self.args, self.__dict__)


# Files


class FormatError(TsEngineError, ValueError):
    """Is raised when a file is not what its format says, or a format does not carry a value.

    Rows that are bad one by one are no error: they are counted and written aside.
    """


class FileAccessError(TsEngineError, OSError):
    """Is raised when a file of an import or export cannot be opened, read or written."""


class TooManyRejectsError(TsEngineError):
    """Is raised when more rows of a file are bad than the caller allows."""
