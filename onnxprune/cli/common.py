"""Flags that mean the same in every verb, made from the table of options."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from onnxprune.run.recipe import OPTIONS, Option, Recipe, read_data_only

F = TypeVar("F", bound=Callable[..., Any])


def model_argument(name: str = "model", required: bool = True) -> Callable[[F], F]:
    """The path of an ONNX file."""
    return click.argument(name, required=required, type=click.Path())


def output_options(help: str) -> Callable[[F], F]:
    """-o and --overwrite."""

    def add(verb: F) -> F:
        verb = click.option("--overwrite", is_flag=True, help="Replace an existing output.")(verb)
        return click.option("-o", "--output", type=click.Path(), metavar="OUT", help=help)(verb)

    return add


def shared(verb: F) -> F:
    """--json and --debug."""
    verb = click.option(
        "--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."
    )(verb)
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")(verb)


def recipe_options(*stages: str, without: tuple[str, ...] = ()) -> Callable[[F], F]:
    """--recipe and the flags of all options of these stages (all stages where none is named), but for those that the verb has no use for."""

    def add(verb: F) -> F:
        for name, option in reversed(list(OPTIONS.items())):
            if name not in without and (not stages or option.stage in stages):
                verb = _flag(name, option)(verb)
        return click.option(
            "--recipe",
            "recipe_file",
            type=click.Path(),
            metavar="FILE",
            help="Options from a TOML file; flags win over it.",
        )(verb)

    return add


def recipe_from(path: str | None, values: Mapping[str, Any]) -> Recipe:
    """The recipe of a command: the file's values, and over them the flags that were given."""
    given = {n: v for n, v in values.items() if v is not None and v != ()}
    return Recipe.of({**(read_data_only(path, given) if path else {}), **given})


def emit(value: Any) -> None:
    """Print one JSON value on stdout."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))


def say(text: str) -> None:
    """Talk: one line on stderr."""
    print(text, file=sys.stderr, flush=True)


def _flag(name: str, option: Option) -> Callable[[F], F]:
    default = getattr(Recipe, name, None)
    shown = (
        ", ".join(map(str, default))
        if isinstance(default, tuple)
        else f"{default:.4g}"
        if isinstance(default, float)
        else default
    )
    note = f"  [default: {shown}]" if shown not in (None, "") and shown is not False else ""
    spelled = "--" + name.replace("_", "-")
    if option.kind == "flag":
        both = spelled if default is False else f"{spelled}/--no-{spelled[2:]}"
        return click.option(both, name, is_flag=True, default=None, help=option.help)
    return click.option(
        spelled,
        name,
        default=None,
        metavar=option.metavar,
        multiple=option.kind == "list",
        help=option.help + note,
    )
