"""Command line: commands, flags, exit codes. Data goes to stdout, messages to stderr."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from onnxprune.blas import limit_blas
from onnxprune.cli.signals import INTERRUPTED, ignore_signals, interruptible
from onnxprune.cli.streams import escaped_output
from onnxprune.errors import OnnxpruneError
from onnxprune.garbage import rare_collections

_BUG_HINT = "this is a bug in onnxprune or in a plug-in; run again with --debug for the traceback"


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, and exit with its code."""
    code = run(sys.argv[1:] if argv is None else argv)
    ignore_signals()
    # CPython ends by the signal if an interrupt has passed an exec of text, as dataclasses use it,
    # even if it was caught later; the next exec of text resets that
    exec("")
    sys.exit(code)


def run(argv: Sequence[str]) -> int:
    """Run one command, and return its exit code.

    Every failure is one sentence on stderr, `error[code]: ...`; --debug adds the traceback.
    """
    with escaped_output(), limit_blas(), rare_collections(), interruptible() as interrupts:
        try:
            return _run(argv)
        # KeyboardInterrupt and SystemExit as well: each ends as one message and an exit code
        except BaseException as problem:
            # libraries turn an interrupt into errors of their own
            if interrupts.count and not isinstance(problem, KeyboardInterrupt | click.Abort):
                _print_traceback(argv)
                problem = KeyboardInterrupt()
            return _report(problem, argv)


def _run(argv: Sequence[str]) -> int:
    """Run one command."""
    # here, so that an interrupt during the import is reported like any other
    from onnxprune.cli.app import app

    # click would otherwise print errors in a form of its own, and exit
    result = app.main(args=list(argv), prog_name="onnxprune", standalone_mode=False)
    # a pipe that is closed must fail here, where it is handled, and not when Python exits
    sys.stdout.flush()
    return result if isinstance(result, int) else 0


def _report(problem: BaseException, argv: Sequence[str]) -> int:
    """Print a failure, and return its exit code."""
    try:
        # raised again to select a branch by type, with the traceback for --debug
        raise problem
    except click.ClickException as problem:
        command = "onnxprune"
        if isinstance(problem, click.UsageError) and problem.ctx:
            command = problem.ctx.command_path
        return _say("usage", f"{problem.format_message()}\n  See: {command} --help", 2)
    except OnnxpruneError as problem:
        _print_traceback(argv)
        return _say(problem.code, problem.message, problem.exit_code)
    except (KeyboardInterrupt, click.Abort) as problem:
        message = str(problem.__cause__ or problem)  # click raises its Abort from ours
        return _say("interrupted", message or "stopped; no output was written", INTERRUPTED)
    # before OSError, of which it is a subclass
    except BrokenPipeError:  # what reads stdout has ended, such as `head`
        _discard_output()
        return 1
    except OSError as problem:
        _print_traceback(argv)
        try:
            sys.stdout.flush()
        except OSError:  # a full disk
            _discard_output()
        return _say(
            "system", f"{problem.filename or 'input or output'}: {problem.strerror or problem}", 1
        )
    except MemoryError:
        _print_traceback(argv)
        return _say(
            "out-of-memory", "not enough memory; use a smaller --batch-size or fewer --samples", 1
        )
    except SystemExit as problem:  # click raises none, because it is not the one to exit
        _print_traceback(argv)
        return _say(
            "user-code", f"user code or a plug-in ended the program (SystemExit {problem.code})", 1
        )
    except Exception as problem:
        _print_traceback(argv)
        # messages of libraries can fill pages; --debug shows all of them
        first = next(iter(str(problem).strip().splitlines()), "")
        return _say("internal", f"{type(problem).__name__}: {first[:300]}\n  {_BUG_HINT}", 1)


def _discard_output() -> None:
    """Send what stdout still holds to the null device.

    Python flushes stdout again when it exits, and a failure there would replace the exit code.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(code: str, message: str, exit_code: int) -> int:
    """Print an error, and return its exit code.

    Further lines of a message are indented; any other end of line is that of a name in it.
    """
    message = re.sub(r"\n(?!  )", r"\\n", message)
    print(f"error[{code}]: {message}", file=sys.stderr, flush=True)
    return exit_code


def _print_traceback(argv: Sequence[str]) -> None:
    """Print the traceback of the current exception if --debug is given."""
    if "--debug" in argv:
        import traceback

        traceback.print_exc()
