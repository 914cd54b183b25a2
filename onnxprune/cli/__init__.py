"""Command line: commands, flags, exit codes. Data goes to stdout, messages to stderr."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from onnxprune.errors import OnnxpruneError

INTERRUPTED = 130  # what shells give a program that Ctrl-C ends
_BUG_HINT = "this is a bug in onnxprune or in a plug-in; run again with --debug for the traceback"


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run one command; returns the exit code.

    Every failure is one sentence on stderr, `error[code]: ...`; a traceback only with --debug.
    """
    from onnxprune.cli.app import app

    try:
        signal.signal(signal.SIGTERM, _terminated)
    except ValueError:  # not in the main thread: leave signals alone
        pass
    try:
        result = app.main(args=list(argv), prog_name="onnxprune", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.ClickException as problem:
        where = (
            problem.ctx.command_path
            if isinstance(problem, click.UsageError) and problem.ctx
            else "onnxprune"
        )
        return _say("usage", f"{problem.format_message()}\n  See: {where} --help", 2)
    except OnnxpruneError as problem:
        _debug(argv)
        return _say(problem.code, problem.message, problem.exit_code)
    except (KeyboardInterrupt, click.Abort) as problem:
        said = str(problem.__cause__ or problem)  # click turns the interruption into an Abort
        return _say("interrupted", said or "stopped; no output was written", INTERRUPTED)
    except BrokenPipeError:  # the reader of stdout left, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as problem:
        _debug(argv)
        return _say(
            "system", f"{problem.filename or 'input or output'}: {problem.strerror or problem}", 1
        )
    except MemoryError:
        _debug(argv)
        return _say(
            "out-of-memory", "not enough memory; use a smaller --batch-size or fewer --samples", 1
        )
    except Exception as problem:
        _debug(argv)
        first = next(iter(str(problem).strip().splitlines()), "")
        return _say("internal", f"{type(problem).__name__}: {first[:300]}\n  {_BUG_HINT}", 1)


def _say(code: str, message: str, exit_code: int) -> int:
    print(f"error[{code}]: {message}", file=sys.stderr, flush=True)
    return exit_code


def _debug(argv: Sequence[str]) -> None:
    if "--debug" in argv:
        traceback.print_exc()


def _terminated(*_: Any) -> NoReturn:
    raise KeyboardInterrupt
