"""Every command in README.md and docs/ runs and prints what the page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from documents import absent, blocks, commands

from onnxprune.demo.export import write_files

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ROOT_PAGES = sorted(ROOT.glob("*.md"))
COMMAND_LIMIT_S = 900
FEW = {"calibration.npz": 32, "evaluation.npz": 128}  # samples, as many images as calibration
EXPORT = re.compile(r"onnxprune demo --export (\S+)")


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """Return a folder with the files that pages assume: those of `onnxprune demo --export .`."""
    pytest.importorskip("PIL")
    write_files(tmp_path)
    return tmp_path


def keep_few_samples(folder: Path) -> None:
    """Remove most samples of the demo in a folder, so that runs take less time."""
    for name, count in FEW.items():
        arrays = {key: value[:count] for key, value in np.load(folder / name).items()}
        np.savez(folder / name, **arrays)
    for image in sorted((folder / "images").iterdir())[FEW["calibration.npz"] :]:
        image.unlink()


def bash(text: str, folder: Path) -> tuple[int, str]:
    """Run a command line in a folder; return its status and output."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    installed = str(folder / "installed")  # packages that a page installs, without a network
    pip = {
        "PIP_TARGET": installed,
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PYTHONPATH": installed,
    }
    done = subprocess.run(
        ["bash", "-c", text],
        cwd=folder,
        env={**os.environ, **pip, "PATH": path, "COLUMNS": "160"},
        text=True,
        timeout=COMMAND_LIMIT_S,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
@pytest.mark.parametrize(
    "samples", ["few samples", pytest.param("all samples", marks=pytest.mark.exhaustive)]
)
def test_commands_of_the_page_print_what_it_shows(page: Path, samples: str, desk: Path) -> None:
    few = samples == "few samples"
    if few:
        keep_few_samples(desk)
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.note == "not run":
            assert block.value, f"{where}: say why it is not run"
        elif block.note == "file":
            (desk / block.value).parent.mkdir(parents=True, exist_ok=True)
            (desk / block.value).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            (desk / "block.py").write_text(block.text, encoding="utf-8")
            status, printed = bash(f"{sys.executable} block.py", desk)
            assert status == 0, f"{where}:\n{printed}"
        elif block.language == "console":
            listed = commands(block)
            for command in listed:
                status, printed = bash(command.text, desk)
                exported = EXPORT.search(command.text)
                if few and exported:
                    keep_few_samples(desk / exported[1])
                expected = int(block.value) if block.note == "exit" and command is listed[-1] else 0
                assert status == expected, (
                    f"{where}: {command.text}\nends with {status}:\n{printed}"
                )
                assert not absent(command.shown, printed), (
                    f"{where}: {command.text}\nprints:\n{printed}"
                )


def test_generated_sections_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "generate_docs.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nrun: python tools/generate_docs.py"


def test_operators_of_tuning_are_read_from_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of operators is generated without torch."""
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from generate_docs import tuning_operators

    from onnxprune.tune.ops import supported

    assert sorted(tuning_operators()) == supported()


@pytest.mark.slow
def test_site_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    build = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-d",
        str(tmp_path / "trees"),
        str(ROOT / "docs"),
        str(tmp_path / "site"),
    ]
    done = subprocess.run(build, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "reference.html").is_file()


def test_relative_links_have_a_target() -> None:
    dead = [
        f"{page.name}: {target}"
        for page in {*PAGES, *ROOT_PAGES}
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert not dead
