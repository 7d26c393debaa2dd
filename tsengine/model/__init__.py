"""The words of the package: labels, points, batches, receipts, value kinds, time.

    absent.py    masked, NA and null elements of other libraries' columns
    labels.py    Labels, the identity of a series
    time.py      timestamps, durations, half-open ranges
    values.py    value kinds and what fits them
    batches.py   DataPoint, SeriesBatch, GroupedBatch, WideBatch, WriteReceipt, ProducerMark
    rules.py     PointRules: what makes a point valid in one store

Nothing here knows of an engine.
"""

from tsengine.model.batches import (
    PRODUCER_LENGTH_MAX,
    DataPoint,
    GroupedBatch,
    Int64Array,
    PointLike,
    ProducerMark,
    SeriesBatch,
    WideBatch,
    WriteReceipt,
    check_producer,
)
from tsengine.model.labels import LABELS_BYTES_MAX, METRIC_NAME, Labels, check_label_text
from tsengine.model.rules import ForwardClock, PointRules
from tsengine.model.time import (
    INT64_MAX,
    INT64_MIN,
    RANGE_END_MAX,
    DurationLike,
    TimestampLike,
    duration,
    duration_text,
    timestamp,
    timestamp_array,
    timestamp_range,
)
from tsengine.model.values import (
    OBJECT_BYTES_MAX,
    OBJECT_DEPTH_MAX,
    Value,
    ValueArray,
    ValueKind,
    fit_array,
    fit_value,
    kind_of_array,
    pack_object,
    unpack_bounded,
    unpack_object,
)

__all__ = [
    "INT64_MAX",
    "INT64_MIN",
    "LABELS_BYTES_MAX",
    "METRIC_NAME",
    "OBJECT_BYTES_MAX",
    "OBJECT_DEPTH_MAX",
    "PRODUCER_LENGTH_MAX",
    "RANGE_END_MAX",
    "DataPoint",
    "DurationLike",
    "ForwardClock",
    "GroupedBatch",
    "Int64Array",
    "Labels",
    "PointLike",
    "PointRules",
    "ProducerMark",
    "SeriesBatch",
    "TimestampLike",
    "Value",
    "ValueArray",
    "ValueKind",
    "WideBatch",
    "WriteReceipt",
    "check_label_text",
    "check_producer",
    "duration",
    "duration_text",
    "fit_array",
    "fit_value",
    "kind_of_array",
    "pack_object",
    "timestamp",
    "timestamp_array",
    "timestamp_range",
    "unpack_bounded",
    "unpack_object",
]
