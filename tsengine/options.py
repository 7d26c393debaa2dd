"""Options: what they are called, and how text or Python values become settings.

Each converter takes the value as a caller or a URL gives it, and returns the setting or
raises UnknownOptionError naming the value and what would do.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from tsengine.duplicates import DuplicatePolicy
from tsengine.errors import InvalidDataError, StoreOptionError, UnknownOptionError
from tsengine.model import INT64_MAX, INT64_MIN, PointRules, ValueKind, duration, timestamp

Converter: TypeAlias = Callable[[object], object]


SECONDS_MAX = 1e9
"""Most seconds of a setting: thirty years, which fit int64 nanoseconds."""


def boolean(value: object) -> bool:
    """Convert True, False, or the text true, false, 1, 0."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "1", "false", "0"):
        return value.lower() in ("true", "1")
    raise UnknownOptionError(f"{value!r} is no boolean; give true or false")


def positive_integer(value: object) -> int:
    """Convert an integer of at least 1, or its text."""
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnknownOptionError(f"{value!r} is no positive integer")
    return value


def seconds(value: object) -> float:
    """Convert a non-negative number of seconds, or its text."""
    try:
        number = float(value) if isinstance(value, (str, int, float)) else -1.0
    except ValueError:
        number = -1.0
    if isinstance(value, bool) or not 0 <= number <= SECONDS_MAX:
        raise UnknownOptionError(f"{value!r} is no number of seconds from 0 to {SECONDS_MAX:.0f}")
    return number


def at_most(bound: int, convert: Callable[[object], int]) -> Callable[[object], int]:
    """Make a converter with an upper bound."""

    def convert_bounded(value: object) -> int:
        number = convert(value)
        if number > bound:
            raise UnknownOptionError(f"{value!r} is too large, at most {bound}")
        return number

    return convert_bounded


def choice(*known: str) -> Callable[[object], str]:
    """Make a converter that takes one of the words given."""

    def convert(value: object) -> str:
        if value not in known:
            raise UnknownOptionError(f"{value!r} is none of {', '.join(known)}")
        return str(value)

    return convert


def optional(convert: Converter) -> Converter:
    """Make a converter that lets None through."""
    return lambda value: None if value is None else convert(value)


def _timestamp(value: object) -> int:
    if isinstance(value, str) and value.lstrip("-").isdecimal():
        value = int(value)
    try:
        moment = timestamp(value)  # type: ignore[arg-type]  # it says itself what it does not take
    except InvalidDataError as error:
        raise UnknownOptionError(str(error)) from None
    if not INT64_MIN <= moment <= INT64_MAX:
        raise UnknownOptionError(f"{value!r} is beyond int64")
    return moment


def nanoseconds(value: object) -> int:
    """Convert a duration on the axis of time: `timedelta`, or text with a unit."""
    return duration(value)  # type: ignore[arg-type]  # it says itself what it does not take


def _integers(value: object) -> ValueKind:
    return ValueKind[choice("float", "int")(value).upper()]


def convert_options(
    given: Mapping[str, object], known: Mapping[str, Converter]
) -> dict[str, object]:
    """Convert all options of a constructor or a URL.

    Raises:
        UnknownOptionError: a name is unknown (lists the known) or a value makes no sense.
    """
    converted = {}
    for name, value in given.items():
        if name not in known:
            raise UnknownOptionError(
                f"unknown option {name!r}; known are {', '.join(sorted(known))}"
            )
        try:
            converted[name] = known[name](value)
        except UnknownOptionError as error:
            raise UnknownOptionError(f"option {name}: {error}") from None
    return converted


STORE_OPTIONS: Mapping[str, Converter] = {
    "duplicate_policy": lambda value: DuplicatePolicy(
        choice(*(policy.value for policy in DuplicatePolicy))(value)
    ),
    "retention": optional(nanoseconds),
    "min_timestamp": _timestamp,
    "future_max": optional(nanoseconds),
    "integers": _integers,
    "read_only": boolean,
}
"""The options that every backend has."""


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """The options that belong to a store: persisted when it is created.

    Attributes:
        duplicate_policy: what a later write at one series and timestamp does.
        retention: nanoseconds after which points are no longer read; None keeps all.
        min_timestamp: earliest valid timestamp, nanoseconds.
        future_max: nanoseconds that a timestamp may lie ahead of the clock; None for any.
        integers: the kind that an integer scalar opens.
    """

    duplicate_policy: DuplicatePolicy = DuplicatePolicy.LAST
    retention: int | None = None
    min_timestamp: int = 1
    future_max: int | None = None
    integers: ValueKind = ValueKind.FLOAT

    def rules(self, clock_ns: Callable[[], int] = time.time_ns) -> PointRules:
        """Give the rules for points that follow from these options."""
        return PointRules(self.min_timestamp, self.future_max, self.integers, clock_ns)

    def check_agreement(self, wanted: StoreOptions, given: Collection[str], store: object) -> None:
        """Check that a store of these options is what somebody who opens it asked for.

        Args:
            wanted: the options of who opens it.
            given: names of those among them that were given and are not just defaults.
            store: how the message names the store.

        Raises:
            StoreOptionError: one that was given differs; names both values.
        """
        have, want = self.to_dict(), wanted.to_dict()
        for name in sorted(given):
            if have[name] != want[name]:
                raise StoreOptionError(
                    f"{store} was created with {name}={have[name]!r}, not {want[name]!r}; open it "
                    "with that or without the option"
                )

    def to_dict(self) -> dict[str, str | int | None]:
        """Give the options as plain values, to be stored."""
        plain: dict[str, str | int | None] = dataclasses.asdict(self)
        plain["duplicate_policy"] = self.duplicate_policy.value
        plain["integers"] = self.integers.name.lower()
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, str | int | None]) -> StoreOptions:
        """Read back what `to_dict` gave."""
        retention, future_max = plain["retention"], plain["future_max"]
        return cls(
            duplicate_policy=DuplicatePolicy(str(plain["duplicate_policy"])),
            retention=None if retention is None else int(retention),
            min_timestamp=int(plain["min_timestamp"] or 0),
            future_max=None if future_max is None else int(future_max),
            integers=ValueKind[str(plain["integers"]).upper()],
        )
