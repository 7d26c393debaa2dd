"""tsengine: a pluggable time-series storage engine.

    import tsengine

    with tsengine.open("lmdb:///var/lib/app/metrics") as engine:
        with tsengine.WriteBuffer(engine) as buffer:
            cpu = tsengine.Labels("cpu_usage", host="web-1", region="eu")
            buffer.write(tsengine.DataPoint(cpu, 1_700_000_000_000_000_000, 0.42))
        engine.query('cpu_usage{region="eu"}').to_pandas()

The public names are those of `__all__`, and those of `tsengine.prometheus` and `tsengine.testing`.
"""

from tsengine import errors
from tsengine.buffer import WriteBuffer
from tsengine.buffered import BufferedEngine
from tsengine.duplicates import DuplicatePolicy
from tsengine.engine import (
    Capability,
    CompactReport,
    Engine,
    EngineStats,
    WriteBufferHandler,
)
from tsengine.errors import (
    AggregationError,
    BatchShapeError,
    BatchTooLargeError,
    BufferFullError,
    CancelledError,
    ConfigurationError,
    CopyCancelledError,
    CopyError,
    CopyTimeoutError,
    CorruptionError,
    DifferenceError,
    DuplicatePointError,
    ForkedError,
    FormatVersionError,
    InvalidDataError,
    InvalidQueryError,
    LabelsError,
    LifecycleError,
    MissingDependencyError,
    NotOpenError,
    PartialWriteError,
    RangeError,
    ReadOnlyError,
    RejectedPointsError,
    RollupCancelledError,
    RollupError,
    RollupTimeoutError,
    SelectorError,
    SnapshotExpiredError,
    SourceChangedError,
    StorageError,
    StorageFullError,
    StoreInUseError,
    StoreInUseTimeoutError,
    StoreOptionError,
    StorePathError,
    TimestampError,
    TsEngineError,
    UnknownBackendError,
    UnknownOptionError,
    UnsavedPointsError,
    UnsupportedError,
    ValueKindError,
    ValueOverflowError,
    WaitError,
    WaitTimeoutError,
)
from tsengine.model import (
    DataPoint,
    GroupedBatch,
    Labels,
    ProducerMark,
    SeriesBatch,
    ValueKind,
    WriteReceipt,
    duration,
    timestamp,
)
from tsengine.pipeline import (
    CopyReport,
    Difference,
    Progress,
    SeriesChecksum,
    VerifyReport,
    copy,
    verify,
)
from tsengine.registry import open
from tsengine.result import QueryResult
from tsengine.retry import ErrorClass, RetryPolicy
from tsengine.rollups import RollupReport, rollup
from tsengine.selectors import Matcher, MatchOperator, Selector

__version__ = "0.1.0"
"""That of the package; written here too, so that an import need not read its metadata."""

__all__ = [
    "AggregationError",
    "BatchShapeError",
    "BatchTooLargeError",
    "BufferFullError",
    "BufferedEngine",
    "CancelledError",
    "Capability",
    "CompactReport",
    "ConfigurationError",
    "CopyCancelledError",
    "CopyError",
    "CopyReport",
    "CopyTimeoutError",
    "CorruptionError",
    "DataPoint",
    "Difference",
    "DifferenceError",
    "DuplicatePointError",
    "DuplicatePolicy",
    "Engine",
    "EngineStats",
    "ErrorClass",
    "ForkedError",
    "FormatVersionError",
    "GroupedBatch",
    "InvalidDataError",
    "InvalidQueryError",
    "Labels",
    "LabelsError",
    "LifecycleError",
    "MatchOperator",
    "Matcher",
    "MissingDependencyError",
    "NotOpenError",
    "PartialWriteError",
    "ProducerMark",
    "Progress",
    "QueryResult",
    "RangeError",
    "ReadOnlyError",
    "RejectedPointsError",
    "RetryPolicy",
    "RollupCancelledError",
    "RollupError",
    "RollupReport",
    "RollupTimeoutError",
    "Selector",
    "SelectorError",
    "SeriesBatch",
    "SeriesChecksum",
    "SnapshotExpiredError",
    "SourceChangedError",
    "StorageError",
    "StorageFullError",
    "StoreInUseError",
    "StoreInUseTimeoutError",
    "StoreOptionError",
    "StorePathError",
    "TimestampError",
    "TsEngineError",
    "UnknownBackendError",
    "UnknownOptionError",
    "UnsavedPointsError",
    "UnsupportedError",
    "ValueKind",
    "ValueKindError",
    "ValueOverflowError",
    "VerifyReport",
    "WaitError",
    "WaitTimeoutError",
    "WriteBuffer",
    "WriteBufferHandler",
    "WriteReceipt",
    "__version__",
    "copy",
    "duration",
    "errors",
    "open",
    "rollup",
    "timestamp",
    "verify",
]
