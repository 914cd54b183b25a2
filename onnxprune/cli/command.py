"""Command whose help begins with examples and lists its options by purpose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

# Purpose -> options, in the order of the help. Options that only experts need are listed by
# --help-all alone; those of one command stand before all others.
GROUPS = {
    "Goal": "target max_divergence ratio",
    "Data": "data samples labeled flip shape batch_axis batch_size",
    "Preprocessing": "preprocess resize crop mean std scale order layout",
    "Quality": "metric criterion repair fast candidate thorough curve control",
    "Widths": "device round_to floor max_fraction freeze blocks low_rank",
    "Measuring": "engine seconds precision bench_threads",
    "Quantization": "quantize quantize_form quantize_calibrate quantize_exclude",
    "Run": "output overwrite run_dir recipe_file seed threads external_data as_json quiet debug "
    "help help_all",
    "Expert": "allocate method method_option losses swaps allow_mixing grouped untie strict "
    "tolerance decoder class_offset interp post pin",
}
EXPERT = "Expert"
_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names.split()}
_ALL = "onnxprune.help_all"  # key of the flag in a context's meta


class Command(click.Command):
    """A command with examples and grouped options.

    Parameters
    ----------
    examples
        Command lines, which may end in a comment: "onnxprune cut m.onnx plan.json  # apply a plan".
    """

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.examples = tuple(examples)
        if any(isinstance(p, click.Option) and group_of(p) == EXPERT for p in self.params):
            self.params.append(
                click.Option(
                    ["--help-all"],
                    is_flag=True,
                    is_eager=True,
                    expose_value=False,
                    callback=_show_all,
                    help="Show the options for experts as well.",
                )
            )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words of a command line; --data takes all paths of data that follow it."""
        if "--data" in args and any("--data" in p.opts for p in self.params):
            args = _repeat_data(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as problem:
            if "unexpected extra argument" not in problem.message:
                raise
            has_data = any("--data" in p.opts for p in self.params)
            hint = "data are passed by --data PATH, " if has_data else ""
            text = f"{problem.message}; {hint}a path with spaces is quoted"
            raise click.UsageError(text, problem.ctx) from problem

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the description and the examples."""
        super().format_help_text(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                # a wrapped line could not be copied
                for line in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by group, those for experts only if asked for."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        sections |= {group: [] for group in GROUPS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections[group_of(parameter)].append(record)
        # most runs need none of them, and they would hide the others
        if not ctx.meta.get(_ALL):
            del sections[EXPERT]
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def _repeat_data(args: Sequence[str]) -> list[str]:
    """Return the words with --data before each path that follows its first one.

    A shell expands --data *.npz to such a list.
    """
    from onnxprune.data.sources import is_data_path

    words: list[str] = []
    taken = 0  # paths since the last --data
    for word in args:
        if word == "--data":
            taken = 1
        elif taken == 1:
            taken = 2
        elif taken == 2 and is_data_path(word):
            words.append("--data")
        else:
            taken = 0
        words.append(word)
    return words


def group_of(option: click.Option) -> str:
    """Return the section of the help that lists an option."""
    # click names the option by its flags
    name = "help" if "--help" in option.opts else str(option.name)
    return _GROUP_OF.get(name, "Options")


def command(*examples: str) -> Callable[[Callable[..., Any]], Command]:
    """Make a function a command with these examples."""
    return click.command(cls=Command, examples=examples)


def full_help(target: click.Command, name: str, width: int) -> str:
    """Return the help of a command with the options for experts."""
    context = click.Context(target, info_name=name, terminal_width=width, max_content_width=width)
    context.meta[_ALL] = True
    return target.get_help(context)


def _show_all(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Print the help with the options for experts, and end."""
    # shell completion parses a command line without acting on it
    if value and not ctx.resilient_parsing:
        ctx.meta[_ALL] = True
        click.echo(ctx.get_help())
        ctx.exit()
