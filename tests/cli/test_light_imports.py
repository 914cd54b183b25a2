"""What help texts import: a heavy library would delay each of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("numpy", "onnx", "onnxruntime", "jinja2", "rich")
SCRIPT = """
import sys
from onnxprune.cli import main
sys.argv[1:] = {arguments!r}
try:
    main()
except SystemExit:
    pass
print("loaded:", *sorted({heavy!r} & sys.modules.keys()))
"""


@pytest.mark.parametrize("arguments", [["--help"], ["optimize", "--help"], ["bench", "--help"]])
def test_help_imports_no_heavy_library(arguments: list[str]) -> None:
    script = SCRIPT.format(arguments=arguments, heavy=set(HEAVY))
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "loaded:"
    assert "Usage" in result.stdout
