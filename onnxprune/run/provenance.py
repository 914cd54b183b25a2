"""Provenance of a result: versions of Python and libraries, hashes of model and data."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from onnxprune.analysis.groups import Analysis
from onnxprune.data.dataset import Data
from onnxprune.report.data import Provenance

_LIBRARIES = ("onnxprune", "numpy", "scipy", "onnx", "onnxruntime")


def collect_provenance(analysis: Analysis, data: Data) -> Provenance:
    """Return what the result of a run depends on besides its recipe."""
    return Provenance(_collect_versions(), analysis.digest, data.fingerprint())


def _collect_versions() -> dict[str, str]:
    """Return name -> version of Python and the libraries, "" for one without metadata."""
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = ""
    return versions
