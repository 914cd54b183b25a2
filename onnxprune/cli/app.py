"""Table of commands; the module of each is imported when it is called."""

from __future__ import annotations

import importlib

import click

from onnxprune import RENAMED_OPTIONS, __version__

# command -> (module, one line of help)
COMMANDS = {
    "optimize": ("optimize", "Prune a model: make it smaller and faster in one command."),
    "demo": ("optimize", "Prune a small trained network that ships with onnxprune."),
    "inspect": ("inspect", "Show what can be pruned, what cannot, and why."),
    "plan": ("plan", "Decide which channels to remove, and write the plan as JSON."),
    "cut": ("plan", "Apply a plan to a model."),
    "verify": ("plan", "Check a pruned model against its masked original."),
    "bench": ("bench", "Measure the latency of models, interleaved."),
    "sensitivity": ("sensitivity", "Prune each group alone; measure its cost and savings."),
    "select": ("sensitivity", "Choose groups and ratios from measured sensitivities."),
    "subnet": ("subnet", "Convert plans to fix_subnet.json and back."),
    "compare": ("compare", "Compare two models on labeled inputs: metrics, classes, costs."),
    "tune": ("tune", "Fine-tune the weights with torch; the graph does not change."),
    "sparsify": ("sparsify", "Set weights to zero, and measure the effect."),
    "quantize": ("quantize", "Convert a float model to int8 or float16, and compare both."),
    "rewrite": ("rewrite", "Replace activations that an accelerator does not support."),
    "extract": ("extract", "Cut a part out of a model, between tensors by name."),
    "join": ("extract", "Put a pruned part back into the model that it is from."),
    "handoff": ("handoff", "Write a deployment bundle for a Jetson, an FPGA flow or an NPU."),
    "report": ("report", "Show the report of a run."),
    "rules": ("lists", "List the supported operators."),
    "criteria": (
        "lists",
        "List criteria, allocators, repairs, methods, metrics, decoders, data and labels.",
    ),
    "engines": ("lists", "List engines, whether each is available, and how to install it."),
    "devices": ("lists", "List devices with the evidence for each figure."),
    "agent": ("agent", "Show the runtimes of a machine that is reached by ssh."),
    "doctor": ("doctor", "Check this machine: versions, extras, engines, memory."),
}
# other names of commands
ALIASES = {
    "prune": "optimize",
    "compress": "optimize",
    "slim": "optimize",
    "analyze": "inspect",
    "analyse": "inspect",
    "info": "inspect",
    "benchmark": "bench",
    "evaluate": "compare",
    "finetune": "tune",
    "fine-tune": "tune",
    "export": "handoff",
    "train": "tune",
}
# former and other names of options
OPTION_NAMES = {
    **RENAMED_OPTIONS,
    **dict.fromkeys(("calib", "calibration", "dataset"), "data"),
    "labels": "labeled",
    "input-shape": "shape",
}
# what other tools do
HINTS = {
    "convert": "export the model by its framework, e.g. torch.onnx.export",
}


def _is_other_kind(word: str) -> bool:
    """Return whether a word is the file of another framework, which `optimize` explains."""
    _, dot, suffix = word.rpartition(".")
    if not dot:
        return False
    from onnxprune.ir.file_kinds import KINDS

    return f".{suffix.lower()}" in KINDS


class Commands(click.Group):
    """Group of commands that are imported when they are called, which keeps the start fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"onnxprune.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return name, command and remaining arguments; UsageError for an unknown command."""
        from onnxprune.errors import UsageError, unknown

        first = args[0] if args else ""
        # the most frequent command may be omitted
        if first.lower().endswith(".onnx") or _is_other_kind(first):
            args = ["optimize", *args]
        elif first in ALIASES:
            args = [ALIASES[first], *args[1:]]
        elif first and first not in COMMANDS and not first.startswith("-"):
            if first.lower() in HINTS:
                hint = HINTS[first.lower()]
                raise UsageError(code="unknown-verb", message=f"unknown command {first!r}; {hint}")
            # the code is documented, and older than the word "command"
            raise unknown("command", first, COMMANDS, code="unknown-verb")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands in the order of the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(
    cls=Commands,
    invoke_without_command=True,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 120,
        # former spellings of options remain valid
        "token_normalize_func": lambda name: OPTION_NAMES.get(name, name),
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
