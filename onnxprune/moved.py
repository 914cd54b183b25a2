"""Old import paths and names of what plug-ins import, accepted with a warning for one release."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULES = {
    "allocate": "allocators",
    "allocate.base": "allocators.base",
    "calibrate": "data",
    "calibrate.data": "data.dataset",
    "calibrate.inputs": "data.inputs",
    "calibrate.sources": "data.sources",
    "evaluate": "metrics",
    "evaluate.base": "metrics.base",
    "evaluate.data": "data.labeled",
    "evaluate.user": "metrics.user",
    "model": "ir",
    "model.io": "ir.io",
    "model.runtime": "ir.runtime",
    "pipeline": "run.pipeline",
    "recipe": "run.recipe",
    "saliency": "criteria",
    "saliency.base": "criteria.base",
}


class _MovedLoader(Loader):
    """Loader that gives an old module name the module that replaced it."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Import the module behind the old name and warn about it."""
        new = f"{__package__}.{MODULES[spec.name.partition('.')[2]]}"
        warnings.warn(f"{spec.name} is now {new}", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the module's own spec, which the import system has replaced."""
        if module.__spec__ is not None and module.__spec__.loader is self:
            module.__spec__ = module.__spec__.loader_state


def find_spec(fullname: str) -> ModuleSpec | None:
    """Return the spec of an old module name, None for any other name."""
    name = fullname.partition(".")[2]
    return ModuleSpec(fullname, _MovedLoader(), is_package=True) if name in MODULES else None


def old_names(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's `__getattr__` that resolves old names with a DeprecationWarning.

    Assign it only `if not TYPE_CHECKING`, or type checkers accept every name of the module.

    Parameters
    ----------
    module
        The module's `__name__`.
    names
        Old name -> "name" in the same module or "package.module:name". The module is imported when
        the name is read, so that it may be in a higher layer.
    """

    def resolve(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        place, _, new = names[name].rpartition(":")
        place = place or module
        warnings.warn(f"{module}.{name} is now {place}.{new}", DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(place), new)

    return resolve
