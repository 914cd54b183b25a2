"""Registries of everything that plug-ins extend, by module path or entry point."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from onnxprune.errors import OnnxpruneError, unknown

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


@dataclass(frozen=True)
class Registry:
    """Mapping from names to objects, each imported when it is first requested.

    Parameters
    ----------
    kind
        What the entries are, in the singular: "criterion".
    group
        Entry-point group of plug-ins: "onnxprune.criteria".
    builtin
        Name -> ("package.module:attribute", one line of description).
    """

    kind: str
    group: str
    builtin: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @cached_property
    def plugins(self) -> Mapping[str, EntryPoint]:
        """Entry points of installed plug-ins; they cannot replace built-in names."""
        # help of a command without registries does not need it
        from importlib.metadata import entry_points

        return {e.name: e for e in entry_points(group=self.group) if e.name not in self.builtin}

    def __iter__(self) -> Iterator[str]:
        """Iterate over all names, built-in ones first."""
        yield from self.builtin
        yield from self.plugins

    def __contains__(self, name: object) -> bool:
        """Return whether a name is registered."""
        return name in self.builtin or name in self.plugins

    def get(self, name: str) -> Any:
        """Import and return the object of that name.

        Raises
        ------
        UsageError
            There is no such name; the message suggests the closest one.
        OnnxpruneError
            The plug-in fails to import.
        """
        if name in self.builtin:
            module, _, attribute = self.builtin[name][0].partition(":")
            return getattr(importlib.import_module(module), attribute)
        if name not in self.plugins:
            raise unknown(self.kind, name, self)
        try:
            return self.plugins[name].load()
        except (Exception, SystemExit) as problem:  # a plug-in may raise anything
            raise OnnxpruneError(
                "plugin-broken",
                f"{self.kind} {name!r} is a plug-in that fails to import: {problem!r}",
            ) from problem

    def rows(self) -> list[tuple[str, str]]:
        """Return (name, one line of description) of all entries.

        The description of a plug-in is the first line of its docstring, or its import error.
        """
        rows = [(name, text) for name, (_, text) in self.builtin.items()]
        for name in self.plugins:
            try:
                lines = (self.get(name).__doc__ or "").strip().splitlines()
                rows.append((name, lines[0] if lines else f"plug-in {self.plugins[name].value}"))
            except OnnxpruneError as problem:
                rows.append((name, f"broken: {problem.message}"))
        return rows
