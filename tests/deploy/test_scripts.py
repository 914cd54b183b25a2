"""Run scripts of bundles work on old Pythons without packages."""

from __future__ import annotations

import ast
import sys
from importlib import resources

import pytest

OLDEST = (3, 8)  # JetPack 5
SCRIPTS = sorted(
    p.name for p in resources.files("onnxprune.deploy.scripts").iterdir() if p.name.endswith(".py")
)
OWN = {"agent", "common", "jetson_arrays", "jetson_python", "layer_times"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_old_python_and_import_the_standard_library(name: str) -> None:
    source = resources.files("onnxprune.deploy.scripts").joinpath(name).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=OLDEST)
    imported = {
        a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names
    }
    imported |= {
        str(n.module).split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)
    }
    assert imported <= sys.stdlib_module_names | OWN, (
        "vendors' packages come by common.module, which says how to get them"
    )
    newer = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute)
        and n.attr in ("removeprefix", "removesuffix", "is_relative_to", "hardlink_to")
    ]
    assert not newer
    if name != "__init__.py":
        assert "from __future__ import annotations" in source
