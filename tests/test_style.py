"""Style of the code: ruff and mypy are clean, lines and functions short, exceptions explained."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("onnxprune", "benchmarks", "docs", "examples", "tests", "tools")
SCRIPTS = ("tools/hunt", "tools/prove", "tools/quickstart", "tools/replay", "tools/test")
SHORT_FUNCTIONS_IN = ("onnxprune", "benchmarks", "tools")
LINE_PERCENTILE, LINE_LENGTH = 95, 95
MODULE_LINES = 450
FUNCTION_LINES = 60
TYPE_IGNORES = 40

IGNORE = re.compile(r"# type: ignore")
IGNORE_WITH_REASON = re.compile(r"# type: ignore\[[\w, -]+\]  # \w")
FORMATTER_SWITCH = re.compile(r"#\s*(fmt|yapf|black):\s*(skip|off)")
# what looks like a path of this repository, or a page in capitals: README.md, docs/zoo.md
CITED_PAGE = re.compile(r"(?<![\w./-])(?:docs/[\w./-]+|[A-Z_]+)\.md\b")
CITED_FILE = re.compile(
    r"(?<![\w./-])(?:\.ci|benchmarks|examples|tests|tools)/[\w./-]*\w(?!\w*[*{<])"
)
CITED_MODULE = re.compile(r"python -m ((?:onnxprune|benchmarks|tests|tools)(?:\.[a-z_]+)*)")
FOREIGN_PAGES = {"SUPPORTED_OPS.md"}  # of Vela, which lists the operators that it supports


def python_files(*folders: str) -> list[Path]:
    """Return the Python files below folders, and the scripts without an extension in tools."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    if "tools" in folders:
        paths += [ROOT / script for script in SCRIPTS]
    return paths


def texts() -> Iterator[tuple[str, str]]:
    """Yield (path below the root, text) of every source file and document."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("*.cfg"), *ROOT.glob("*.toml")]
    pages += (ROOT / "docs").rglob("*.md")
    for path in sorted({*python_files(*FOLDERS), *pages} - {Path(__file__).resolve()}):
        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def numbered_lines(*folders: str) -> Iterator[tuple[str, str]]:
    """Yield ("path:line", line) of every line of the Python files below folders."""
    for path in python_files(*folders):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            yield f"{path.relative_to(ROOT)}:{number}", line


def run_module(*arguments: str) -> None:
    """Run `python -m arguments` in the root; fail with its output if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_no_fault() -> None:
    pytest.importorskip("ruff")
    run_module("ruff", "check", "--no-cache", ".")


def test_ruff_would_format_nothing() -> None:
    pytest.importorskip("ruff")
    run_module("ruff", "format", "--check", "--no-cache", ".")


def test_ruff_reads_every_script() -> None:
    """A script without an extension is read only if pyproject.toml names it."""
    shebang = "#!/usr/bin/env python3"
    files = [p for p in (ROOT / "tools").iterdir() if p.is_file() and not p.suffix]
    scripts = {f"tools/{p.name}" for p in files if p.read_text().startswith(shebang)}
    assert scripts == set(SCRIPTS)
    config = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f'"{script}"' in config for script in scripts)


@pytest.mark.slow
def test_mypy_finds_no_fault() -> None:
    pytest.importorskip("mypy")
    run_module("mypy", "--config-file=setup.cfg", f"--cache-dir={os.devnull}")


def test_lines_are_short() -> None:
    lengths = [len(line) for _, line in numbered_lines("onnxprune")]
    assert np.percentile(lengths, LINE_PERCENTILE) <= LINE_LENGTH


def test_modules_are_short() -> None:
    counts = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in python_files(*FOLDERS)
    }
    assert {name: n for name, n in counts.items() if n > MODULE_LINES} == {}


def test_functions_are_short() -> None:
    long = {}
    for path in python_files(*SHORT_FUNCTIONS_IN):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1
                if lines > FUNCTION_LINES:
                    long[f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"] = lines
    assert long == {}


def test_type_ignores_are_few_and_say_why() -> None:
    ignores = [(at, line) for at, line in numbered_lines("onnxprune") if IGNORE.search(line)]
    assert len(ignores) <= TYPE_IGNORES
    assert [at for at, line in ignores if not IGNORE_WITH_REASON.search(line)] == []


def test_formatter_is_never_switched_off() -> None:
    lines = numbered_lines(*FOLDERS)
    here = Path(__file__).name
    assert [at for at, line in lines if FORMATTER_SWITCH.search(line) and here not in at] == []


def test_cited_files_exist() -> None:
    """A page, a path of the repository, or the module of a command that a text names."""
    missing = []
    for name, text in texts():
        paths = {*CITED_PAGE.findall(text), *CITED_FILE.findall(text)} - FOREIGN_PAGES
        missing += [f"{name}: {path}" for path in paths if not (ROOT / path).exists()]
    assert missing == []


def test_cited_modules_exist() -> None:
    missing = []
    for name, text in texts():
        for module in set(CITED_MODULE.findall(text)):
            path = ROOT / module.replace(".", "/")
            if not path.is_dir() and not path.with_suffix(".py").exists():
                missing.append(f"{name}: python -m {module}")
    assert missing == []
