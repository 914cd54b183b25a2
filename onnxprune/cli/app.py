"""The list of verbs; each is imported when it is called."""

from __future__ import annotations

import importlib

import click

from onnxprune import RENAMED_OPTIONS, __version__

# verb -> (module, one line of help)
VERBS = {
    "optimize": ("optimize", "Make a model smaller and faster: the whole job in one command."),
    "demo": ("optimize", "The whole job on a small trained network that comes with onnxprune."),
    "inspect": ("inspect", "What can be cut, what cannot, and why."),
    "plan": ("plan", "Decide which channels go, and write the decision down."),
    "cut": ("plan", "Do what a plan says."),
    "verify": ("plan", "Check a cut model against its masked original."),
    "bench": ("bench", "Time models side by side."),
    "sensitivity": ("sensitivity", "What cutting each group alone costs and saves."),
    "select": ("sensitivity", "Choose groups and rates from sensitivities."),
    "subnet": ("subnet", "Turn plans into fix_subnet.json and back."),
    "compare": ("compare", "Two models on the same labels, class by class, beside what they cost."),
    "tune": ("tune", "Fine-tune the weights with torch; the graph stays."),
    "sparsify": ("sparsify", "Zeros inside the weights, and what they are worth."),
    "rewrite": ("tune", "Replace activations that an accelerator lacks."),
    "handoff": (
        "handoff",
        "Write a bundle for a Jetson, an FPGA flow or an NPU: runs there, reports back.",
    ),
    "report": ("report", "Show the report of a run."),
    "rules": ("lists", "Operators that are understood, one line each."),
    "criteria": ("lists", "Ways to score channels, one line each."),
    "engines": ("lists", "Engines to measure on, whether they are here, how to install them."),
    "doctor": ("doctor", "What is installed on this machine, and what does not go together."),
}


class Verbs(click.Group):
    """A group whose commands are imported only when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        return getattr(importlib.import_module(f"onnxprune.cli.{VERBS[cmd_name][0]}"), cmd_name)  # type: ignore[no-any-return]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from onnxprune.errors import unknown

        if args and args[0] not in VERBS and not args[0].startswith("-"):
            raise unknown("verb", args[0], VERBS)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])


@click.command(
    cls=Verbs,
    invoke_without_command=True,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 120,
        "token_normalize_func": lambda name: RENAMED_OPTIONS.get(name, name),
    },
)
@click.version_option(__version__, prog_name="onnxprune")
@click.pass_context
def app(ctx: click.Context) -> None:
    """Structured pruning of ONNX models: fewer channels, the same graph, measured where it runs.

    Start with: onnxprune optimize model.onnx --data images/  (or: onnxprune demo)
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
