"""Options that only command `tune` has, in one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
PRECISIONS = {"f32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class TuneOption:
    """One option that only this command has.

    Attributes
    ----------
    flag : str
        Its spelling; the name of the value is derived from it.
    help : str
        One sentence.
    default : object
        False makes it a switch, () an option that may be repeated.
    metavar : str or None
        Placeholder in the help.
    type : object
        Type that click converts the text to; by default that of `default`.
    """

    flag: str
    help: str
    default: Any = None
    metavar: str | None = None
    type: Any = None

    @property
    def name(self) -> str:
        """Name of the value."""
        return self.flag.removeprefix("--").replace("-", "_")

    def add_to(self, command: F) -> F:
        """Declare the option on a command."""
        if self.default is False:
            return click.option(self.flag, is_flag=True, help=self.help)(command)
        return click.option(
            self.flag,
            default=self.default,
            show_default=self.default not in (None, ()),
            multiple=self.default == (),
            metavar=self.metavar,
            type=self.type,
            help=self.help,
        )(command)


_COUNT, _AT_LEAST_ONE, _PATH = click.IntRange(0), click.IntRange(1), click.Path()
OPTIONS = (
    TuneOption(
        "--teacher",
        "Unpruned model; every loss except ce and task compares with it.",
        metavar="MODEL",
        type=_PATH,
    ),
    TuneOption(
        "--loss",
        "Sum of ce, kd, dist, output, feature and task, with weights: ce+0.5*dist.",
        "kd",
        "TERMS",
    ),
    TuneOption(
        "--task-loss",
        "Function of the term task: (outputs, labels), torch tensors by name -> mean loss.",
        metavar="MODULE:FUNCTION",
    ),
    TuneOption(
        "--validate",
        "Samples that select the best weights; by default a tenth of --data.",
        metavar="PATH",
        type=_PATH,
    ),
    TuneOption("--epochs", "Passes over the data.", 10, "N", _AT_LEAST_ONE),
    TuneOption("--steps", "Optimizer steps, instead of --epochs; 0 = by epochs.", 0, "N", _COUNT),
    TuneOption(
        "--lr",
        "Peak learning rate; by default 1e-3, or 1e-4 if the normalization is folded.",
        metavar="X",
        type=float,
    ),
    TuneOption("--force-lr", "Allow more than 1e-4 if the normalization is folded.", False),
    TuneOption("--optimizer", "adamw or sgd.", "adamw", "NAME"),
    TuneOption(
        "--batchnorm",
        "keep, frozen (keep statistics), or insert: add BatchNormalization while tuning.",
        "keep",
        "HOW",
    ),
    TuneOption(
        "--augment",
        "none, flip or flip-shift; by default flip with --flip, else none.",
        metavar="HOW",
    ),
    TuneOption("--ema", "Decay of the averaged weights; 0 = no average.", 0.99, "X"),
    TuneOption(
        "--mixed",
        "Precision of the forward and backward passes.",
        "f32",
        type=click.Choice(list(PRECISIONS)),
    ),
    TuneOption("--temperature", "Softmax temperature of kd and dist.", 4.0, "X"),
    TuneOption(
        "--feature",
        "Inner tensor that the loss feature compares; repeat for several.",
        (),
        "TENSOR",
    ),
    TuneOption("--limit-s", "Stop after S seconds and keep the best; 0 = no limit.", 0.0, "S"),
    TuneOption("--device", "cpu or cuda.", "cpu"),
    TuneOption(
        "--checkpoint",
        "Progress file; the same command resumes from it. By default OUT with .checkpoint.",
        metavar="FILE",
        type=_PATH,
    ),
    TuneOption("--keep-zeros", "Keep the zeros of a sparse model at zero.", False),
    TuneOption(
        "--surgery", "Dynamic network surgery: prune and splice weights while tuning.", False
    ),
    TuneOption(
        "--c-rate",
        "--surgery: the threshold is the mean of |w| plus X standard deviations.",
        3.0,
        "X",
    ),
    TuneOption(
        "--surgery-steps",
        "--surgery: masks change during the first N steps only.",
        10000,
        "N",
        _AT_LEAST_ONE,
    ),
    TuneOption("--interval", "--target: steps between two cuts.", 25, "N", _AT_LEAST_ONE),
    TuneOption("--cut-step", "--target: channels per cut; 0 = a fiftieth of all.", 0, "N", _COUNT),
    TuneOption(
        "--lr-ratio",
        "--target: factor on the learning rate while channels are removed.",
        1.0,
        "X",
    ),
    TuneOption(
        "--normalization",
        "--target: cost that divides the importance: none, flops, act or latency.",
        "flops",
        "NAME",
    ),
    TuneOption(
        "--plan",
        "--target: file for the plan, which lists the kept channels.",
        metavar="FILE",
        type=_PATH,
    ),
)


def add_options(command: F) -> F:
    """Declare OPTIONS on a command, in their order."""
    # decorators apply from the last to the first
    for option in reversed(OPTIONS):
        command = option.add_to(command)
    return command
