"""Arguments and options shared by the commands, generated from the option table."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from onnxprune.run.option import Option
from onnxprune.run.recipe import OPTIONS, Recipe

F = TypeVar("F", bound=Callable[..., Any])
_QUIET = "onnxprune.quiet"  # key of the flag in a context's meta


def model_argument(name: str = "model", required: bool = True) -> Callable[[F], F]:
    """Add an argument for the path of an ONNX file."""
    return click.argument(name, required=required, type=click.Path())


def output_options(help: str) -> Callable[[F], F]:
    """Add -o and --overwrite."""

    def add(command: F) -> F:
        command = click.option("--overwrite", is_flag=True, help="Replace an existing output.")(
            command
        )
        return click.option("-o", "--output", type=click.Path(), metavar="OUT", help=help)(command)

    return add


def shared(command: F) -> F:
    """Add --json and --debug."""
    command = click.option(
        "--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."
    )(command)
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")(command)


def quiet_option(command: F) -> F:
    """Add -q, which silences `say` and the progress of the command."""

    def remember(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        context.meta[_QUIET] = value

    return click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=remember,
        help="Nothing on stderr but errors: no progress, no warnings.",
    )(command)


def is_quiet() -> bool:
    """Return whether the running command has -q."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_QUIET))


def recipe_options(
    *stages: str, without: tuple[str, ...] = (), also: tuple[str, ...] = ()
) -> Callable[[F], F]:
    """Add --recipe and the flags of all options of these stages.

    Parameters
    ----------
    stages
        Stages of a run whose options the command reads; all if none is given.
    without
        Options of these stages that the command does not read.
    also
        Options of other stages that it reads.
    """

    def add(command: F) -> F:
        # decorators apply from the last to the first, so the reversed table keeps its order
        for name, option in reversed(list(OPTIONS.items())):
            in_stages = not stages or option.stage in stages or name in also
            if in_stages and name not in without:
                command = _add_flag(name, option)(command)
        return click.option(
            "--recipe",
            "recipe_file",
            type=click.Path(),
            metavar="FILE",
            help="Options from a TOML file; flags override them.",
        )(command)

    return add


def ignored_options(*names: str) -> Callable[[F], F]:
    """Accept options that the command offered in the previous release but never read.

    They are hidden, and a warning says that they have no effect.
    """

    def warn(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        # the values that click passes for an option that is not given
        if value not in (None, False, ()):
            flag = parameter.opts[0]
            say(f"warning: {flag} has no effect on {context.info_name} and will be removed")

    def add(command: F) -> F:
        for name in names:
            option = OPTIONS[name]
            command = click.option(
                "--" + name.replace("_", "-"),
                f"ignored_{name}",
                is_flag=option.is_flag,
                default=None,
                multiple=option.repeatable,
                hidden=True,
                expose_value=False,
                callback=warn,
            )(command)
        return command

    return add


def recipe_from(path: str | None, values: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a command: the file's values, overridden by the given flags."""
    # absent flags must not override the recipe's values
    flags = {name: value for name, value in values.items() if value is not None and value != ()}
    if path is None:
        return Recipe.of(flags)
    from onnxprune.data.presets import expand_preset
    from onnxprune.run.recipe_file import read_data_only

    # a preset among the flags overrides the file's numbers
    return Recipe.of({**read_data_only(path, flags), **expand_preset(flags)})


def emit(value: Any) -> None:
    """Print one JSON value on stdout."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))


def say(text: str) -> None:
    """Print one line on stderr, unless the command is quiet."""
    from onnxprune.report.text import legible

    if not is_quiet():
        print(legible(text, sys.stderr), file=sys.stderr, flush=True)


def _add_flag(name: str, option: Option) -> Callable[[F], F]:
    """Add the flag of one option of the recipe."""
    # for the help only: to click the default is None, which marks a flag that is not given
    default = getattr(Recipe, name, None)
    flag = "--" + name.replace("_", "-")
    if option.is_flag:
        # a flag that is off by default needs no negation
        spelling = flag if default is False else f"{flag}/--no-{flag[2:]}"
        return click.option(spelling, name, is_flag=True, default=None, help=option.help)
    return click.option(
        flag,
        name,
        default=None,
        metavar=option.metavar,
        multiple=option.repeatable,
        help=option.help + _note_default(default),
    )


def _note_default(default: Any) -> str:
    """Return "  [default: X]", or "" if the default is not worth showing."""
    if isinstance(default, tuple):
        default = ", ".join(map(str, default))
    elif isinstance(default, float):
        default = f"{default:.4g}"
    if default is None or default is False or default == "":
        return ""
    return f"  [default: {default}]"
