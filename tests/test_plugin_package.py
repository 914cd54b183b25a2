"""A package with one plug-in of each kind, installed by pip.

Each is listed and used in a run; broken ones are listed with their error and do not disturb others.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from graph_text import net

from onnxprune import demo

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tests" / "plugin"
MODEL, CALIBRATION, EVALUATION = demo.files()
FAST = ["--engine=none", "--round-to=1", "--samples=32"]
pytestmark = pytest.mark.slow
KINDS = (
    "rules",
    "criteria",
    "allocators",
    "methods",
    "repairs",
    "engines",
    "metrics",
    "data_sources",
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of a Python that has the package installed."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PACKAGE, folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    pip += ["--target", str(folder / "installed"), str(folder / "source")]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode and "setuptools" in done.stderr:
        pytest.skip("building needs setuptools")
    assert done.returncode == 0, done.stderr
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder / "installed"), str(ROOT)])}


def onnxprune(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "onnxprune", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_package_has_a_plugin_of_each_kind() -> None:
    setup = ConfigParser()
    setup.optionxform = str  # type: ignore[assignment]
    setup.read(PACKAGE / "setup.cfg")
    assert {f"onnxprune.{kind}" for kind in KINDS} == set(setup["options.entry_points"])


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("rules", {"com.microsoft::SampleOp"}),
        ("engines", {"example-session"}),
        (
            "criteria",
            {
                "example-widest",
                "example-largest-first",
                "example-halves",
                "example-nothing",
                "example-hits",
                "example-ramp",
            },
        ),
    ],
)
def test_plugins_are_listed_and_broken_ones_with_their_error(
    environment: dict[str, str], command: str, expected: set[str]
) -> None:
    done = onnxprune(environment, command, "--json")
    assert done.returncode == 0, done.stderr
    rows = [list(row.values()) for row in json.loads(done.stdout)]
    assert expected <= {cell for row in rows for cell in row}
    broken = [row for row in rows if "example-broken" in row]
    assert len(broken) == {"rules": 0, "engines": 1, "criteria": 6}[command]
    assert all("broken: " in " ".join(row) and "not_there" in " ".join(row) for row in broken)


def test_doctor_lists_plugins_and_their_errors(environment: dict[str, str]) -> None:
    done = onnxprune(environment, "doctor", "--json")
    plugins = json.loads(done.stdout)["plug-ins"]
    assert plugins["criterion example-widest"] == "onnxprune_example:widest"
    assert "No module named" in plugins["engine example-broken"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--criterion=example-widest", "--repair=none"],
        ["--criterion=l2", "--allocate=example-largest-first", "--repair=none"],
        ["--method=example-halves", "--repair=none"],
        ["--data=example-ramp", "--criterion=activation_mean", "--repair=example-nothing"],
    ],
    ids=lambda flags: flags[0],
)
def test_plugins_are_used_in_a_run(
    environment: dict[str, str], tmp_path: Path, flags: list[str]
) -> None:
    done = onnxprune(
        environment,
        "optimize",
        str(MODEL),
        "-o",
        str(tmp_path / "out.onnx"),
        *FAST,
        *flags,
        "--json",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["after"]["macs"] < report["before"]["macs"] and report["verification"]["ok"]


def test_engine_and_metric_are_used_in_a_run(environment: dict[str, str], tmp_path: Path) -> None:
    flags = [
        "--criterion=l2",
        "--repair=none",
        "--engine=example-session",
        "--seconds=0.2",
        "--metric=example-hits",
        f"--labeled={EVALUATION}",
        f"--data={CALIBRATION}",
    ]
    done = onnxprune(
        environment,
        "optimize",
        str(MODEL),
        "-o",
        str(tmp_path / "out.onnx"),
        "--samples=32",
        *flags,
        "--json",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (
        report["latency"]["example-session"]["before_ms"] > 0
        and report["quality"]["example-hits"]["before"] > 0.9
    )


def test_rule_of_a_plugin_opens_a_frozen_axis(environment: dict[str, str], tmp_path: Path) -> None:
    model = net(
        "float[2,4,6,6] x | float[8,4,1,1] w1, float[5,8,1,1] w2 | "
        "a = Conv(x, w1); b = com.microsoft.SampleOp(a); y = Conv(b, w2)"
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    for variables, groups in ((environment, 1), ({**environment, "PYTHONPATH": str(ROOT)}, 0)):
        done = onnxprune(variables, "inspect", str(path), "--json")
        assert len(json.loads(done.stdout)["groups"]) == groups, done.stderr
    done = onnxprune(
        environment,
        "optimize",
        str(path),
        "-o",
        str(tmp_path / "out.onnx"),
        *FAST,
        "--criterion=l2",
        "--repair=none",
        "--json",
    )
    assert done.returncode == 0 and json.loads(done.stdout)["verification"]["ok"], done.stderr


def test_broken_plugin_is_one_error_line(environment: dict[str, str], tmp_path: Path) -> None:
    done = onnxprune(
        environment,
        "optimize",
        str(MODEL),
        "-o",
        str(tmp_path / "out.onnx"),
        *FAST,
        "--criterion=example-broken",
    )
    assert (
        done.returncode == 1
        and "error[plugin-broken]: criterion 'example-broken' is a plug-in that fails to import"
        in done.stderr
    )
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


def test_contracts_are_checked_on_installed_plugins(environment: dict[str, str]) -> None:
    """The contract tests find each plug-in by its registry."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    selection = ["-k", "(example or SampleOp) and not broken", "-rA"]
    done = subprocess.run(
        [*command, str(ROOT / "tests" / "testing" / "test_contracts.py"), *selection],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    kinds = ("criterion", "allocator", "method", "repair", "engine", "metric", "rule_of_a_plugin")
    assert all(
        f"PASSED tests/testing/test_contracts.py::test_{kind}[" in done.stdout for kind in kinds
    )
