"""Structured pruning of ONNX models.

import onnxprune

result = onnxprune.optimize("model.onnx", "small.onnx", target="macs=50%", data="images/")
"""

from __future__ import annotations

import importlib
from typing import Any

from onnxprune import moved

__version__ = "0.1.0"

# public name -> its module, imported when the name is first used to keep the import fast
_PUBLIC = {
    "optimize": "onnxprune.run.pipeline",
    "Recipe": "onnxprune.run.recipe",
    "Target": "onnxprune.run.target",
    "Event": "onnxprune.events",
    "Report": "onnxprune.report.data",
    "Model": "onnxprune.ir.io",
    "load": "onnxprune.ir.io",
    "save": "onnxprune.ir.io",
    "analyze": "onnxprune.analysis.walk",
    "cut": "onnxprune.surgery.cut",
    "verify": "onnxprune.surgery.verify",
    "Plan": "onnxprune.types",
    "Group": "onnxprune.types",
    "Site": "onnxprune.types",
    "Frozen": "onnxprune.types",
    "Cost": "onnxprune.types",
    "open_data": "onnxprune.data.dataset",
    "OnnxpruneError": "onnxprune.errors",
}
__all__ = ["__version__"]
__all__ += list(_PUBLIC)
# old name -> name, accepted for one release: options (keys, flags, keywords) and public names
RENAMED_OPTIONS = {"labelled": "labeled"}
_RENAMED = {"analyse": "analyze"}

moved.install()


def __getattr__(name: str) -> Any:
    """Import a public name."""
    name = _RENAMED.get(name, name)
    if name not in _PUBLIC:
        raise AttributeError(f"module 'onnxprune' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
