"""Frozen dataclasses that can also be read by key, as their JSON is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

R = TypeVar("R", bound="ReportRecord")


@dataclass(frozen=True, eq=False)
class ReportRecord(Mapping[str, Any]):
    """Base of the parts of a report.

    `part.name` and `part["name"]` are the same value. A part whose fields all have their defaults
    is empty: it was not measured, and its JSON is {}.
    """

    def __post_init__(self) -> None:
        """Convert what JSON holds: mappings to records, lists to tuples."""
        for item in fields(self):
            value = getattr(self, item.name)
            # lists of plain values become tuples, so that a record cannot be changed
            convert = item.metadata.get("convert", tuple if isinstance(value, list) else None)
            if convert is not None:
                # frozen dataclasses refuse assignment even here
                object.__setattr__(self, item.name, convert(value))

    def __getitem__(self, key: str) -> Any:
        """Return a field by name; KeyError if JSON does not have it."""
        # a field that JSON leaves out must be missing in both forms
        if key not in set(self):
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the fields that JSON has."""
        if not fields(self) or all(map(self._has_default, fields(self))):
            return
        for item in fields(self):
            if not (item.metadata.get("omitted") and self._has_default(item)):
                yield item.name

    def __len__(self) -> int:
        """Return the number of fields that JSON has."""
        return sum(1 for _ in self)

    def to_json(self) -> dict[str, Any]:
        """Return plain data, in the order of the fields."""
        return {name: to_json(getattr(self, name)) for name in self}

    @classmethod
    def from_json(cls: type[R], data: Mapping[str, Any]) -> R:
        """Return the record in plain data, unknown keys ignored; TypeError if it does not fit."""
        if not isinstance(data, Mapping):
            raise TypeError(f"{data!r} is not a table")
        # unknown keys may come from a newer version that reads the same format
        return cls(**{item.name: data[item.name] for item in fields(cls) if item.name in data})

    def _has_default(self, item: Any) -> bool:
        """Return whether a field has its default."""
        if item.default_factory is not MISSING:
            return bool(getattr(self, item.name) == item.default_factory())
        return bool(item.default is not MISSING and getattr(self, item.name) == item.default)


def to_json(value: Any) -> Any:
    """Return records, mappings and sequences as plain data."""
    if isinstance(value, ReportRecord):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: to_json(entry) for key, entry in value.items()}
    # texts are sequences too
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [to_json(entry) for entry in value]
    return value


def omitted(default: Any) -> Any:
    """Return a field that JSON leaves out if it has its default."""
    return field(default=default, metadata={"omitted": True})


def required(kind: type[R]) -> Any:
    """Return a field that holds one record, without a default."""
    return field(metadata={"convert": _make_converter(kind)})


def one(kind: type[R]) -> Any:
    """Return a field that holds one record, the empty one by default."""
    return field(default_factory=kind, metadata={"convert": _make_converter(kind)})


def optional(kind: type[R]) -> Any:
    """Return a field that holds one record, and that JSON leaves out if it is empty."""
    metadata = {"convert": _make_converter(kind), "omitted": True}
    return field(default_factory=kind, metadata=metadata)


def many(kind: type[ReportRecord]) -> Any:
    """Return a field that holds a tuple of records."""
    convert = _make_converter(kind)
    return field(default=(), metadata={"convert": lambda values: tuple(convert(v) for v in values)})


def named(kind: type[ReportRecord]) -> Any:
    """Return a field that holds a mapping name -> record."""
    convert = _make_converter(kind)

    def convert_all(values: Mapping[str, Any]) -> dict[str, ReportRecord]:
        return {name: convert(value) for name, value in values.items()}

    return field(default_factory=dict, metadata={"convert": convert_all})


def _make_converter(kind: type[R]) -> Callable[[Any], R]:
    """Return the conversion of plain data to a record; records are returned unchanged."""

    def convert(value: Any) -> R:
        return value if isinstance(value, kind) else kind.from_json(value)

    return convert
