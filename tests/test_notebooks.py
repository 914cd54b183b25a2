"""Notebooks of the documentation run from top to bottom, and are stored without outputs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
# an own executor: cells need no kernel, and what a notebook shows is called like a kernel does
RUNNER = """
import ast, json, sys
for path in sys.argv[1:]:
    names = {}
    for number, cell in enumerate(json.load(open(path, encoding="utf-8"))["cells"]):
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        shown = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"{path} cell {number}", "exec"), names)
        if shown is not None:
            last = ast.Expression(shown.value)
            value = eval(compile(last, f"{path} cell {number}", "eval"), names)
            print(repr(value), len(getattr(value, "_repr_html_", str)()))
"""


def test_notebooks_run_and_beat_their_controls(tmp_path: Path) -> None:
    shutil.copytree(NOTEBOOKS, tmp_path, dirs_exist_ok=True)
    names = sorted(path.name for path in tmp_path.glob("*.ipynb"))
    assert names == ["cnn.ipynb", "transformer.ipynb"]
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, *names],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # the comparison with random channels, an assertion of both notebooks, has run
    assert done.stdout.count("random channels 1") == 2
    for name in names:
        assert (tmp_path / f"{Path(name).stem}.small.run" / "report.html").is_file()


def test_notebooks_are_stored_without_outputs_and_linked() -> None:
    index = (NOTEBOOKS.parent / "index.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS.glob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
        ids = [cell["id"] for cell in notebook["cells"]]
        assert len(set(ids)) == len(ids)
        for cell in notebook["cells"]:
            assert not cell.get("outputs") and cell.get("execution_count") is None
        assert f"notebooks/{path.name}" in index
