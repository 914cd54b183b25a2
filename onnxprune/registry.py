"""One mechanism for everything that can be extended: built-ins by module path, plug-ins by entry point."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from onnxprune.errors import OnnxpruneError, unknown


@dataclass(frozen=True)
class Registry:
    """Names and the objects behind them; nothing is imported before it is asked for.

    Parameters
    ----------
    kind
        What the entries are, in the singular: "criterion".
    group
        Entry-point group of plug-ins: "onnxprune.criteria".
    builtin
        name -> (where, one line of description), where `where` is "package.module:attribute".
    """

    kind: str
    group: str
    builtin: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @cached_property
    def plugins(self) -> Mapping[str, EntryPoint]:
        """Entry points of installed plug-ins; a built-in name cannot be taken over."""
        return {e.name: e for e in entry_points(group=self.group) if e.name not in self.builtin}

    def __iter__(self) -> Iterator[str]:
        yield from self.builtin
        yield from self.plugins

    def __contains__(self, name: object) -> bool:
        return name in self.builtin or name in self.plugins

    def get(self, name: str) -> Any:
        """The object of that name.

        Raises
        ------
        UsageError
            No such name; the nearest one is named.
        OnnxpruneError
            The plug-in is there and fails to import.
        """
        if name in self.builtin:
            module, _, attribute = self.builtin[name][0].partition(":")
            return getattr(importlib.import_module(module), attribute)
        if name not in self.plugins:
            raise unknown(self.kind, name, self)
        try:
            return self.plugins[name].load()
        except (Exception, SystemExit) as problem:
            raise OnnxpruneError(
                "plugin-broken",
                f"{self.kind} {name!r} is a plug-in that fails to import: {problem!r}",
            ) from problem

    def rows(self) -> list[tuple[str, str]]:
        """(name, one line of description) of everything, a broken plug-in with its error."""
        found = [(name, text) for name, (_, text) in self.builtin.items()]
        for name in self.plugins:
            try:
                doc = (self.get(name).__doc__ or "").strip().splitlines()
                found.append((name, doc[0] if doc else f"plug-in {self.plugins[name].value}"))
            except OnnxpruneError as problem:
                found.append((name, f"broken: {problem.message}"))
        return found
