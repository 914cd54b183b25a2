"""Structured pruning of ONNX models.

import onnxprune

result = onnxprune.optimize("model.onnx", "small.onnx", target="macs=50%", data="images/")
"""

from __future__ import annotations

import importlib
import sys

# the module typing takes longer to import than all else before the command line handles signals
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from onnxprune.analysis.groups import Analysis as Analysis
    from onnxprune.analysis.walk import analyze as analyze
    from onnxprune.data.dataset import Data as Data
    from onnxprune.data.dataset import open_data as open_data
    from onnxprune.errors import OnnxpruneError as OnnxpruneError
    from onnxprune.events import Event as Event
    from onnxprune.ir.convert import from_graphsurgeon as from_graphsurgeon
    from onnxprune.ir.convert import from_onnx_ir as from_onnx_ir
    from onnxprune.ir.convert import to_graphsurgeon as to_graphsurgeon
    from onnxprune.ir.convert import to_onnx_ir as to_onnx_ir
    from onnxprune.ir.convert import to_proto as to_proto
    from onnxprune.ir.io import Model as Model
    from onnxprune.ir.io import load as load
    from onnxprune.ir.io import save as save
    from onnxprune.ir.parts import extract as extract
    from onnxprune.ir.parts import join as join
    from onnxprune.report.data import Report as Report
    from onnxprune.run.pipeline import optimize as optimize
    from onnxprune.run.recipe import Recipe as Recipe
    from onnxprune.run.results import Result as Result
    from onnxprune.run.target import Target as Target
    from onnxprune.surgery.cut import cut as cut
    from onnxprune.surgery.verify import verify as verify
    from onnxprune.types import Cost as Cost
    from onnxprune.types import Frozen as Frozen
    from onnxprune.types import Group as Group
    from onnxprune.types import Plan as Plan
    from onnxprune.types import Site as Site

__version__ = "0.2.0"

# public name -> its module, imported when the name is first used to keep the import fast
_PUBLIC = {
    "optimize": "onnxprune.run.pipeline",
    "Result": "onnxprune.run.results",
    "Recipe": "onnxprune.run.recipe",
    "Target": "onnxprune.run.target",
    "Event": "onnxprune.events",
    "Report": "onnxprune.report.data",
    "Model": "onnxprune.ir.io",
    "load": "onnxprune.ir.io",
    "save": "onnxprune.ir.io",
    "extract": "onnxprune.ir.parts",
    "join": "onnxprune.ir.parts",
    "to_proto": "onnxprune.ir.convert",
    "to_graphsurgeon": "onnxprune.ir.convert",
    "from_graphsurgeon": "onnxprune.ir.convert",
    "to_onnx_ir": "onnxprune.ir.convert",
    "from_onnx_ir": "onnxprune.ir.convert",
    "analyze": "onnxprune.analysis.walk",
    "Analysis": "onnxprune.analysis.groups",
    "cut": "onnxprune.surgery.cut",
    "verify": "onnxprune.surgery.verify",
    "Plan": "onnxprune.types",
    "Group": "onnxprune.types",
    "Site": "onnxprune.types",
    "Frozen": "onnxprune.types",
    "Cost": "onnxprune.types",
    "Data": "onnxprune.data.dataset",
    "open_data": "onnxprune.data.dataset",
    "OnnxpruneError": "onnxprune.errors",
}
__all__ = ["__version__"]
__all__ += list(_PUBLIC)
# old name -> name, accepted for one release: options (keys, flags, keywords) and public names
RENAMED_OPTIONS = {"labelled": "labeled"}
_RENAMED = {"analyse": "analyze"}
# first parts of the old module names that onnxprune.moved lists
_MOVED = frozenset(("allocate", "calibrate", "evaluate", "model", "pipeline", "recipe", "saliency"))


class _MovedFinder:
    """Import hook for old module names; their table is imported with the first of them."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> Any:
        """Return a spec for an old name of ours, None for any other module."""
        package, _, name = fullname.partition(".")
        if package != __name__ or name.partition(".")[0] not in _MOVED:
            return None
        from onnxprune.moved import find_spec

        return find_spec(fullname)


# It has to be the first hook: the search path of a new package would also find the submodules of
# the old name, and load them a second time.
if not any(type(finder).__name__ == _MovedFinder.__name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, _MovedFinder())


# type checkers would take every name for one of the module
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a public name."""
        name = _RENAMED.get(name, name)
        if name not in _PUBLIC:
            raise AttributeError(f"module 'onnxprune' has no attribute {name!r}")
        return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
