"""Labels: the identity of a series."""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import ItemsView, Iterator, Mapping
from typing import Final, NoReturn, final

from tsengine.errors import LabelsError

METRIC_NAME: Final = "__name__"
"""The label that holds the metric name, as in Prometheus."""

LABELS_BYTES_MAX: Final = 8_192
"""Most UTF-8 bytes of a series ID. Room for 128 labels of 64 bytes; keeps a catalogue row
within a few pages and a hostile label from filling memory."""

_BARE_METRIC: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\Z")
_BARE_LABEL: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*\Z")
_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


@final
class Labels(Mapping[str, str]):
    """Immutable mapping of label name to label value: what tells series apart.

        Labels("cpu_usage", host="web-1", region="eu")
        Labels({"__name__": "cpu_usage", "host": "web-1"})

    Equal labels are one object for as long as anybody holds it (weak interning), so hash
    and equality are those of the object and cost what a pointer costs. Pickling and
    copying give that same object back. A `Labels` equals no plain mapping.

    Names and values are non-empty text without NUL or lone surrogates; the series ID is
    at most `LABELS_BYTES_MAX` bytes of UTF-8. `Labels()` exists for results of grouping
    only and no store takes it.

    Attributes:
        id: the series ID, canonical text such as `cpu_usage{host="web-1",region="eu"}`:
            the metric name, then labels by name. Names that are no bare words are quoted
            as in Prometheus 3. It parses as a selector matching at least this series.
        texts: name, value, name, value, … sorted by name: what a backend stores.

    Thread-safety: any number of threads.
    """

    __slots__ = ("__weakref__", "id", "texts")

    id: str
    texts: tuple[str, ...]

    def __new__(cls, first: str | Mapping[str, str] | None = None, /, **labels: str) -> Labels:
        """Give the one object with these labels.

        Args:
            first: the metric name, or a mapping of label name to value.
            labels: further labels.

        Raises:
            LabelsError: a name or value is empty, not text, holds a NUL or a lone
                surrogate, is given twice, or the whole is too long.
        """
        if first is None:
            named: Mapping[str, str] = labels
        elif isinstance(first, str):
            if METRIC_NAME in labels:
                raise LabelsError(
                    f"metric name given twice, as {first!r} and as "
                    f"{METRIC_NAME}={labels[METRIC_NAME]!r}; give it once"
                )
            labels[METRIC_NAME] = first
            named = labels
        elif isinstance(first, Mapping):
            named = {**first, **labels}
            if len(named) != len(first) + len(labels):
                raise LabelsError(f"label given twice: {first!r} and {labels!r}; give it once")
        else:
            raise LabelsError(
                f"labels are a metric name (text) or a mapping of text, not {first!r} "
                f"of type {type(first).__name__}"
            )
        for name, value in named.items():
            check_label_text(name, "name", named)
            check_label_text(value, f"value of {name!r}", named)
        return cls.of_sorted(tuple(text for name in sorted(named) for text in (name, named[name])))

    @classmethod
    def of_sorted(cls, flat: tuple[str, ...]) -> Labels:
        """Give the object of these `texts`, for backends: they are valid and sorted by name.

        Raises:
            LabelsError: the whole is too long.
        """
        series_id = _series_id(flat)
        known = _interned.get(series_id)
        if known is not None:
            return known
        if len(series_id) > LABELS_BYTES_MAX // 4:
            size = len(series_id.encode())
            if size > LABELS_BYTES_MAX:
                raise LabelsError(
                    f"labels of {size} bytes are too long, at most {LABELS_BYTES_MAX}: "
                    f"{series_id[:80]!r}…"
                )
        with _intern_lock:
            known = _interned.get(series_id)
            if known is None:
                known = object.__new__(cls)
                object.__setattr__(known, "id", series_id)
                object.__setattr__(known, "texts", flat)
                _interned[series_id] = known
            return known

    # Identity is equality, because equal labels are one object: the C functions of `object`.
    __hash__ = object.__hash__
    __eq__ = object.__eq__
    __ne__ = object.__ne__

    def __getitem__(self, name: str) -> str:
        """Give the value of a label; KeyError where it is absent."""
        flat = self.texts
        for position in range(0, len(flat), 2):
            if flat[position] == name:
                return flat[position + 1]
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the label names, sorted."""
        return iter(self.texts[::2])

    def items(self) -> ItemsView[str, str]:
        """Give the pairs, sorted by name; at C speed, where `Mapping` would look each up."""
        return dict(zip(self.texts[::2], self.texts[1::2], strict=True)).items()

    def __len__(self) -> int:
        """Count the labels."""
        return len(self.texts) // 2

    @property
    def name(self) -> str | None:
        """The metric name, or None."""
        return self.get(METRIC_NAME)

    def __repr__(self) -> str:
        return f"Labels({self.id!r})"

    def __str__(self) -> str:
        return self.id

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"Labels are immutable; cannot set {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"Labels are immutable; cannot delete {name!r}")

    def __copy__(self) -> Labels:
        return self

    def __deepcopy__(self, memo: object) -> Labels:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by content; loading interns."""
        return Labels, (dict(self.items()),)


_interned: weakref.WeakValueDictionary[str, Labels] = weakref.WeakValueDictionary()
_intern_lock = threading.Lock()
"""Guards the step from "not interned" to "interned", so that two threads get one object."""


def check_label_text(text: object, what: str, named: Mapping[str, str] | None = None) -> None:
    """Check what is to be a label name or value.

    Args:
        text: the name or value.
        what: how a message calls it.
        named: the labels it belongs to, for a message.

    Raises:
        LabelsError: it is not text, empty, or holds a NUL or a lone surrogate.
    """
    if not isinstance(text, str):
        raise LabelsError(f"label {what} must be text, not {text!r} of type {type(text).__name__}")
    if not text:
        where = "" if named is None else f" in {dict(named)!r}; leave the label out"
        raise LabelsError(f"label {what} is empty{where}")
    if "\0" in text:
        raise LabelsError(f"label {what} holds a NUL character: {text[:80]!r}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise LabelsError(
                f"label {what} holds a lone surrogate at {error.start}: {text[:80]!r}"
            ) from None


def _quote(text: str) -> str:
    return '"' + text.translate(_ESCAPES) + '"'


def _series_id(flat: tuple[str, ...]) -> str:
    head = ""
    parts: list[str] = []
    for position in range(0, len(flat), 2):
        name, value = flat[position], flat[position + 1]
        if name == METRIC_NAME:
            if _BARE_METRIC.match(value):
                head = value
            else:
                parts.insert(0, _quote(value))
        elif _BARE_LABEL.match(name):
            parts.append(f"{name}={_quote(value)}")
        else:
            parts.append(f"{_quote(name)}={_quote(value)}")
    if head and not parts:
        return head
    return head + "{" + ",".join(parts) + "}"
