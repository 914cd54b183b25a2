"""Command line: exit codes, one line per error, data on stdout and messages on stderr."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxprune import demo
from onnxprune.cli import INTERRUPTED, run
from onnxprune.cli.app import COMMANDS, app
from onnxprune.errors import OnnxpruneError, TargetError, VerificationError
from onnxprune.run.recipe import OPTIONS

MODEL = str(demo.files().model)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_json_and_debug(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert (
        out.startswith(f"Usage: onnxprune {command}")
        and "--json" in out
        and "--debug" in out
        and not err
    )


def test_optimize_has_every_option_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    run(["optimize", "--help-all"])
    out = capsys.readouterr().out
    assert not [name for name in OPTIONS if f"--{name.replace('_', '-')}" not in out]


def test_optimize_without_a_model_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["optimize"]) == 0
    assert "onnxprune optimize model.onnx --data" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (
            ["optimise"],
            2,
            "error[unknown-verb]: unknown command 'optimise'; did you mean 'optimize'?",
        ),
        (["optimize", "--samples", "3"], 2, "argument MODEL is missing"),
        (["optimize", "m.onnx", "--round_to", "3"], 2, "No such option"),
        (["optimize", "m.onnx", "--target", "mac=3"], 2, "did you mean 'macs'?"),
        (["optimize", "m.onnx", "--criterion", "l3"], 2, "unknown criterion 'l3'"),
        (["optimize", "m.onnx", "--recipe", "nowhere.toml"], 2, "cannot read recipe nowhere.toml"),
        (["inspect"], 2, "Missing argument 'MODEL'"),
        (
            ["inspect", "nowhere.onnx"],
            1,
            "error[model-unreadable]: cannot read nowhere.onnx: No such file or directory",
        ),
        (
            ["verify", "a.onnx", "b.onnx", "--plan", "nowhere.json"],
            2,
            "cannot read plan nowhere.json",
        ),
        (["report", "nowhere"], 2, "cannot read report nowhere"),
    ],
)
def test_usage_error_is_one_line_on_stderr(
    argv: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(argv) == code
    out, err = capsys.readouterr()
    assert says in err and err.startswith("error[") and "Traceback" not in err and not out


def no_space() -> OSError:
    return OSError(28, "No space left on device", "out.onnx")


@pytest.mark.parametrize(
    ("problem", "code", "says"),
    [
        (OnnxpruneError("x", "so it is"), 1, "error[x]: so it is\n"),
        (TargetError("t", "62% is the least"), 3, "error[t]"),
        (VerificationError("v", "differs"), 4, "error[v]"),
        (
            KeyboardInterrupt("stopped in stage score"),
            INTERRUPTED,
            "error[interrupted]: stopped in stage score\n",
        ),
        (no_space(), 1, "error[system]: out.onnx: No space left on device\n"),
        (MemoryError(), 1, "error[out-of-memory]"),
        (
            ZeroDivisionError("division by zero"),
            1,
            "error[internal]: ZeroDivisionError: division by zero\n  this is a bug",
        ),
    ],
)
def test_every_exception_is_one_line_and_an_exit_code(
    problem: BaseException,
    code: int,
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(**_: object) -> None:
        raise problem

    monkeypatch.setattr(app, "main", fail)
    assert run(["inspect"]) == code
    err = capsys.readouterr().err
    assert err.startswith(says) and "Traceback" not in err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "nowhere.onnx", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["rules", "criteria", "engines", "devices", "doctor"])
def test_lists_print_json_and_nothing_else_on_stdout(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_option_leaves_stdout_empty_for_json(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([command, "--json", "--nosuch"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error[usage]: No such option '--nosuch'")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["inspect", MODEL, "--why", "zzzz"], 2),
        (["optimize", MODEL, "--target", "macs=0.1%", "--criterion=l2"], 3),
        (["optimize", MODEL, "--data", "nowhere"], 1),
        (["bench", MODEL, "--engine", "nowhere"], 2),
        (["compare", MODEL, MODEL, "--labeled", "nowhere"], 1),
        (["report", "nowhere"], 2),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else str(value),
)
def test_errors_behind_the_options_leave_stdout_empty_for_json(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*arguments, "--json"]) == code
    out, err = capsys.readouterr()
    assert out == "" and "error[" in err
