"""Streams of the command line: names never act, odd streams and names are no internal errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from graph_text import net

from onnxprune import demo
from onnxprune.cli import run
from onnxprune.errors import printable

HOSTILE = "c\x1b[2J\x1b]0;t\x07\u202eevil\nerror[fake]: x\r\x9b\ud800\U000e0041\x00"
FAST = ["--criterion=l2", "--repair=none", "--engine=none"]
HARMLESS = str(demo.files().model)


def hostile_model(path: Path) -> str:
    """Write a model whose names of nodes, tensors, inputs and operators try to act."""
    name = HOSTILE.replace("\ud800", "")  # protobuf holds UTF-8 only
    proto = net(
        "float[1,3,8,8] x | float[8,3,1,1] w1, float[4,8,1,1] w2 | a=Conv(x,w1); y=Conv(a,w2)"
    )
    graph = proto.graph
    for node in graph.node:
        node.name = f"{node.output[0]}{name}"
    graph.node[0].input[0] = graph.input[0].name = f"x{name}"
    graph.node[0].output[0] = graph.node[1].input[0] = f"a{name}"
    graph.node[0].input[1] = graph.initializer[0].name = f"w{name}"
    strange = graph.node.add(op_type=f"Op{name}", domain="d", input=[f"a{name}"], output=["z"])
    strange.name = name
    graph.output.add(name="z")
    proto.opset_import.add(domain="d", version=1)
    path.write_bytes(proto.SerializeToString())
    return str(path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "MODEL"],
        ["inspect", "MODEL", "--json"],
        ["inspect", "MODEL", "--why", f"a{HOSTILE}".replace("\ud800", "").replace("\x00", "")],
        ["plan", "MODEL"],
        ["optimize", "MODEL", "-o", "OUT", *FAST],
        ["bench", "MODEL"],
        ["rules", "--criterion", HOSTILE.replace("\x00", "")],
        [HOSTILE.replace("\x00", "")],
    ],
    ids=lambda a: " ".join(a[:3]).encode("ascii", "replace").decode()[:30],
)
def test_names_are_escaped_on_both_streams(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    model = hostile_model(tmp_path / "m.onnx")
    places = {"MODEL": model, "OUT": str(tmp_path / "out.onnx")}
    run([places.get(a, a) for a in arguments])
    for text in capfd.readouterr():
        assert all(line.isprintable() for line in text.split("\n")), repr(text)
        assert not any(line.startswith("error[fake]") for line in text.split("\n")), repr(text)


def test_json_holds_the_names_unchanged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", hostile_model(tmp_path / "m.onnx"), "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)["frozen"]
    assert f"w{HOSTILE}".replace("\ud800", "") in {row["tensor"] for row in rows}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("conv1/ä/层", "conv1/ä/层"),
        ("\x1b[2J", "\\u001b[2J"),
        ("a\nb", "a\\nb"),
        ("\u202e", "\\u202e"),
        ("\udcff", "\\udcff"),
        ("\U000e0041", "\\udb40\\udc41"),
    ],
)
def test_printable(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert json.loads(f'"{expected}"') == text


def command(*arguments: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "onnxprune", *arguments],
        capture_output="stdout" not in options,
        timeout=120,
        check=False,
        **options,  # type: ignore[call-overload]  # keywords of subprocess.run
    )


@pytest.mark.parametrize("closed", [1, 2])
def test_closed_stream_is_no_error(tmp_path: Path, closed: int) -> None:
    script = f'exec "$0" -m onnxprune inspect "$1" {closed}>&-'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, HARMLESS],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr and b"internal" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_stdout_is_one_sentence() -> None:
    with open("/dev/full", "wb") as full:
        done = command("inspect", HARMLESS, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.decode().startswith("error[system]") and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}])
def test_names_outside_of_the_locale_are_escaped(tmp_path: Path, locale: dict[str, str]) -> None:
    path = os.fsencode(tmp_path) + b"/\xffm\xc3\xa4.onnx"
    try:
        Path(os.fsdecode(path)).write_bytes(Path(HARMLESS).read_bytes())
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    environment = {**os.environ, **locale}
    for arguments in (
        ["inspect", path],
        ["optimize", path, *FAST, "--run-dir", tmp_path / "run"],
        ["inspect", path + b"x"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "onnxprune", *arguments],
            capture_output=True,
            env=environment,
            timeout=120,
            check=False,
        )
        assert b"internal" not in done.stderr and b"Traceback" not in done.stderr, done.stderr
        assert done.returncode == (arguments[1] != path), done.stderr


def test_user_code_that_exits_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("def feeds():\n    raise SystemExit(7)\n")
    done = command(
        "optimize",
        HARMLESS,
        "-o",
        str(tmp_path / "o.onnx"),
        "--data",
        f"{tmp_path / 'code.py'}:feeds",
    )
    assert done.returncode == 1 and b"SystemExit" in done.stderr
    assert b"Traceback" not in done.stderr
