"""The wheel is complete, versions agree, and the two commands of the README work."""

from __future__ import annotations

import ast
import configparser
import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import onnxprune
from onnxprune import demo

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("tools/quickstart", "tools/test")


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    """Return setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_versions_agree(setup: configparser.ConfigParser) -> None:
    """setup.cfg and CITATION.cff have that of the package, and the changelog has an entry."""
    assert setup["metadata"]["version"] == "attr: onnxprune.__version__"
    assert f"## {onnxprune.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert f"version: {onnxprune.__version__}" in citation


def test_license_is_apache() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text


@pytest.mark.slow
def test_wheel_has_every_file_of_the_package(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="68")
    source = tmp_path / "source"
    ask = ["git", "ls-files", "onnxprune", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"]
    tracked = subprocess.run(ask, cwd=ROOT, check=True, capture_output=True, text=True)
    # a copy, so that the build leaves nothing in the checkout
    for name in tracked.stdout.splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    build += ["--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        inside = {name for name in file.namelist() if ".dist-info/" not in name}
    assert inside == {name for name in tracked.stdout.splitlines() if name.startswith("onnxprune/")}


def test_extras_in_errors_are_declared(setup: configparser.ConfigParser) -> None:
    named = set()
    for path in (ROOT / "onnxprune").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "id", "") == "MissingExtraError"
                and isinstance(node.args[1], ast.Constant)
            ):
                named.add(node.args[1].value)
    assert named <= set(setup["options.extras_require"]), "declare the extra in setup.cfg"


def test_readme_begins_with_the_two_commands() -> None:
    top = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## ")[0]
    assert re.findall(r"^\$ \./(tools/\w+)", top, re.MULTILINE) == ["tools/quickstart", *COMMANDS]
    assert all(os.access(ROOT / command, os.X_OK) for command in (*COMMANDS, ".ci/run"))
    assert "exec ./tools/test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_show_help_without_installing(command: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / command), "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0 and f"usage: {command}" in done.stdout and not done.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_is_left_to_the_running_command() -> None:
    # jobs in the background ignore SIGINT
    accept = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    command = accept + (
        "import time\ntry: print('ready', flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt: time.sleep(0.5); print('run again to resume'); sys.exit(130)"
    )
    code = accept + f"import environment; environment.run([sys.executable, '-c', {command!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT / "tools",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as runs:
        assert runs.stdout is not None and runs.stdout.readline() == "ready\n"
        os.killpg(runs.pid, signal.SIGINT)
        stdout, stderr = runs.communicate(timeout=60)
    assert (runs.returncode, stdout) == (130, "run again to resume\n")
    assert "Traceback" not in stderr and "failed" not in stderr


@pytest.mark.slow
def test_quickstart_prunes_the_demo_and_a_model(tmp_path: Path) -> None:
    """Uses the environment of the tests, in which tools/test has installed everything."""
    if sys.prefix == sys.base_prefix:
        pytest.skip("no virtual environment is active: quickstart would create one")
    model = tmp_path / "model.onnx"
    model.write_bytes(demo.files().model.read_bytes())
    (tmp_path / "onnxprune").mkdir()  # as next to a checkout of that name
    command = [sys.executable, str(ROOT / "tools" / "quickstart"), "model.onnx", "--samples", "64"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 0 < (tmp_path / "model.pruned.onnx").stat().st_size < model.stat().st_size
