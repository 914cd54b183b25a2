"""Memo of intermediate results that several stages need for the same model, data and settings."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Kind(Generic[T]):
    """Kind of a memoized result of type T; two kinds are equal only if they are the same object.

    Attributes
    ----------
    name
        For debugging.
    """

    name: str


@dataclass(frozen=True)
class Scope:
    """Everything that statistics of a context depend on; results of unequal scopes never mix.

    Attributes
    ----------
    model
        Digest of the canonical model.
    options
        Options of the analysis, which decide its groups.
    data
        Fingerprint of the calibration data; "" without data.
    seed, batch_size, threads, flip
        As in `Context`. Threads change the order of sums in onnxruntime.
    """

    model: str
    options: str
    data: str
    seed: int
    batch_size: int
    threads: int
    flip: bool


@dataclass(frozen=True)
class _Key:
    kind: Kind[Any]
    scope: Scope
    arguments: tuple[Hashable, ...]


@dataclass
class Memo:
    """Results by kind, scope and arguments, kept in memory as long as the memo lives."""

    _results: dict[_Key, object] = field(default_factory=dict, repr=False)

    def get(self, kind: Kind[T], scope: Scope, compute: Callable[[], T], *arguments: Hashable) -> T:
        """Return the result under this key; compute and store it on the first call.

        Parameters
        ----------
        arguments
            What else the result depends on.
        """
        key = _Key(kind, scope, arguments)
        # a stored result may itself be None or empty
        if key not in self._results:
            self._results[key] = compute()
        return cast("T", self._results[key])
