"""The wheel is complete, versions agree, and the commands of the README work."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import onnxprune
from onnxprune import demo

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("tools/quickstart", "tools/test")
README_LINES = 120
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")


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


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, set[str]]:
    """Return the wheel and the source archive of a copy of the checkout, and its tracked files."""
    pytest.importorskip("build")
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("package")
    ask = ["git", "ls-files"]
    listed = subprocess.run(ask, cwd=ROOT, check=True, capture_output=True, text=True)
    tracked = {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    # a copy, so that the build leaves nothing in the checkout
    for name in tracked:
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run(
        [*build, str(folder / "source")], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    (source,) = folder.glob("*.tar.gz")
    return wheel, source, tracked


@pytest.mark.slow
def test_wheel_has_every_file_of_the_package(distributions: tuple[Path, Path, set[str]]) -> None:
    wheel, _, tracked = distributions
    with zipfile.ZipFile(wheel) as file:
        inside = {name for name in file.namelist() if ".dist-info/" not in name}
    assert inside == {name for name in tracked if name.startswith("onnxprune/")}


@pytest.mark.slow
def test_source_archive_has_every_file(distributions: tuple[Path, Path, set[str]]) -> None:
    """The wheel is built from it, and its readers find documentation, tests and tools."""
    _, source, tracked = distributions
    with tarfile.open(source) as file:
        inside = {name.partition("/")[2] for name in file.getnames()}
    assert tracked - inside - {".git-blame-ignore-revs"} == set()


@pytest.mark.slow
def test_package_index_accepts_the_metadata(distributions: tuple[Path, Path, set[str]]) -> None:
    """The long description renders, and nothing in it needs the files of a checkout."""
    pytest.importorskip("twine")
    wheel, source, _ = distributions
    check = [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(source)]
    done = subprocess.run(check, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(wheel) as file:
        (name,) = [n for n in file.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(file.read(name))
    description = str(metadata.get_payload())
    assert description.startswith("# onnxprune") and "pip install" in description
    assert re.findall(r"\]\((?!https?:|#)|<!--", description) == []
    assert metadata["License-Expression"] == "Apache-2.0"
    classifiers = metadata.get_all("Classifier")
    assert "Typing :: Typed" in classifiers
    assert [c for c in classifiers if c.endswith(tuple(VERSIONS))] == [
        f"Programming Language :: Python :: {version}" for version in VERSIONS
    ]


def interpreter(version: str) -> str:
    """Return the path of a Python; skip if this machine has none of that version."""
    installed = Path.home().glob(f".pyenv/versions/{version}.*/bin/python")
    # of pyenv, a launcher on PATH may exist for versions that are not active
    for path in [*map(str, installed), shutil.which(f"python{version}")]:
        ask = [path, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
        if path and subprocess.run(ask, capture_output=True, text=True).stdout.strip() == version:
            return path
    pytest.skip(f"no Python {version}")


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.10", "3.13"])
def test_wheel_runs_outside_the_repository(
    version: str, distributions: tuple[Path, Path, set[str]], tmp_path: Path
) -> None:
    """In a new environment: the package and what it requires, nothing else."""
    wheel, *_ = distributions
    run([interpreter(version), "-m", "venv", str(tmp_path / "env")], tmp_path)
    binaries = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin")
    pip = [str(binaries / "python"), "-m", "pip", "install", "--quiet"]
    # modules that the run does not import need no compilation
    run([*pip, "--disable-pip-version-check", "--no-compile", str(wheel)], tmp_path)
    program = str(binaries / "onnxprune")
    assert onnxprune.__version__ in run([program, "--version"], tmp_path)
    run([program, "demo", "--export", "digits"], tmp_path)
    command = ["optimize", "digits/model.onnx", "--data", "digits/images", "--engine", "none"]
    shown = run([program, *command, "-o", "small.onnx", "--samples", "64", "--fast"], tmp_path)
    assert "cost     target met: macs=50%" in shown
    assert (tmp_path / "small.run" / "report.html").stat().st_size > 10_000


def run(command: list[str], folder: Path) -> str:
    """Run a command in a folder, without the settings of this environment; return its output."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


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


def test_readme_names_the_commands_of_a_checkout() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\$ \./(tools/\w+)", text, re.MULTILINE) == ["tools/quickstart", *COMMANDS]
    assert all(os.access(ROOT / command, os.X_OK) for command in (*COMMANDS, ".ci/run"))
    assert "exec ./tools/test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_readme_is_short_and_begins_with_three_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < README_LINES
    commands = re.findall(r"^\$ (\w+ \w+)", text, re.MULTILINE)
    assert commands[:4] == [
        "pip install",
        "onnxprune inspect",
        "onnxprune optimize",
        "onnxprune bench",
    ]
    (table,) = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert table.count("\n") == 2 + 5


def test_results_of_the_readme_are_those_of_the_benchmarks() -> None:
    """Every figure of its table is in one row of the table of methods."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    benchmarks = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    lines = [_figures(row) for row in benchmarks.splitlines() if row.count("|") == 9]
    measured = [figures for figures in lines if figures]
    rows = [_figures(row) for row in readme.splitlines() if re.match(r"\|.*0\.\d{4}", row)]
    assert len(rows) == 5
    for row in rows:
        assert any(row[0] == m[0] and set(row) <= set(m) and row[-1] == m[-1] for m in measured), (
            row
        )


def _figures(row: str) -> list[str]:
    """Return the figures of four decimals in a line, in order."""
    return re.findall(r"\d\.\d{4}", row)


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
@pytest.mark.parametrize("models", [["model.onnx"], []])
def test_quickstart_prunes_a_model_or_the_demo(models: list[str], tmp_path: Path) -> None:
    """Uses the environment of the tests, in which tools/test has installed everything."""
    if sys.prefix == sys.base_prefix:
        pytest.skip("no virtual environment is active: quickstart would create one")
    model = tmp_path / "model.onnx"
    model.write_bytes(demo.files().model.read_bytes())
    (tmp_path / "onnxprune").mkdir()  # as next to a checkout of that name
    options = ["--samples", "64"] if models else []
    command = [sys.executable, str(ROOT / "tools" / "quickstart"), *models, *options]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pruned = tmp_path / "model.pruned.onnx"
    if not models:
        pruned = ROOT / "build" / "demo" / "digits.pruned.onnx"
    assert 0 < pruned.stat().st_size < model.stat().st_size
    # an own model is not kept waiting for the demo
    assert ("-m onnxprune demo" in done.stderr) == (not models)
