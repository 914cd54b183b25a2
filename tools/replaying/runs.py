"""The list of runs: command lines of onnxprune over small files.

The commands use only flags and names that users see, so that they work whatever the modules inside
a checkout are called. Each run takes a few seconds.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

DEMO_INPUTS = "digits.onnx --data digits.npz"
OPTIMIZE_DEMO = f"optimize {DEMO_INPUTS} --engine none"


@dataclass(frozen=True)
class Run:
    """One row of the list.

    Attributes
    ----------
    about
        What is covered, for --list.
    files
        Names of the files that are copied into the working folder.
    commands
        Command lines of onnxprune, run one after the other in the working folder.
    modules
        Optional modules without which the run is skipped.
    """

    about: str
    files: tuple[str, ...]
    commands: tuple[str, ...]
    modules: tuple[str, ...] = ()


def find_missing_module(run: Run) -> str | None:
    """Name the first optional module of a run that is not installed."""
    return next((name for name in run.modules if importlib.util.find_spec(name) is None), None)


_DEMO = ("digits.onnx", "digits.npz")
_CRITERIA = (
    "reconstruction",
    "l1",
    "largest_l2",
    "activation_mean",
    "activation_variance",
    "apoz",
    "activation*weight",
    "taylor",
    "fisher",
    "random",
)
_ALLOCATORS = ("uniform", "threshold", "divergence", "layer-error", "knapsack")

# Name -> run.
RUNS: dict[str, Run] = {
    "demo": Run(
        "the demo with its defaults, a random control and a metric",
        (),
        ("demo -o out.onnx --engine none",),
    ),
    "demo-fast": Run(
        "the demo with --fast, weights in an external file",
        (),
        ("demo --fast --external-data -o out.onnx --engine none",),
    ),
    "candidates": Run(
        "a choice between candidates by labels, and the trade-off curve",
        (*_DEMO, "labelled.npz"),
        (f"{OPTIMIZE_DEMO} -o out.onnx --metric top1 --labelled labelled.npz --curve",),
    ),
    "max-divergence": Run(
        "the largest cut within a tolerance",
        _DEMO,
        (f"{OPTIMIZE_DEMO} -o out.onnx --max-divergence 0.1",),
    ),
    "pagcp": Run(
        "search method pagcp",
        _DEMO,
        (f"{OPTIMIZE_DEMO} -o out.onnx --target macs=80% --method pagcp",),
    ),
    "group-fisher": Run(
        "search method group-fisher, importance over MACs and over activations",
        _DEMO,
        (
            f"{OPTIMIZE_DEMO} -o out.onnx --target macs=70% --method group-fisher",
            f"{OPTIMIZE_DEMO} -o act.onnx --target macs=80% --method group-fisher"
            " --method-option normalization=act",
        ),
    ),
    "layer-selection": Run(
        "search method layer-selection",
        _DEMO,
        (
            f"{OPTIMIZE_DEMO} -o out.onnx --target macs=70% --method layer-selection"
            " --method-option rounds=6",
        ),
    ),
    "tuned-search": Run(
        "layer-selection with fine-tuning between the rounds",
        _DEMO,
        (
            f"{OPTIMIZE_DEMO} -o out.onnx --target macs=80% --method layer-selection"
            " --method-option rounds=3 --method-option tune=kd --method-option tune_epochs=1",
        ),
        modules=("torch",),
    ),
    "criteria": Run(
        "scores and plans by each criterion",
        _DEMO,
        # not the command plan, which keeps no scores
        tuple(
            f"{OPTIMIZE_DEMO} --target macs=60% --criterion {name} --allocate knapsack"
            f" --repair none -o {name.replace('*', '-')}.onnx"
            for name in _CRITERIA
        ),
    ),
    "allocators": Run(
        "plans by each allocator",
        _DEMO,
        tuple(
            f"plan {DEMO_INPUTS} --target macs=60%"
            f" --criterion reconstruction --allocate {name} -o {name}.json"
            for name in _ALLOCATORS
        ),
    ),
    "plan-cut": Run(
        "plan, cut and verify as three commands",
        _DEMO,
        (
            "plan digits.onnx --data digits.npz --target params=60% -o plan.json",
            "cut digits.onnx plan.json -o cut.onnx",
            "verify digits.onnx cut.onnx --plan plan.json --data digits.npz --json",
        ),
    ),
    "inspect": Run(
        "groups and frozen axes as JSON",
        ("digits.onnx",),
        ("inspect digits.onnx --json",),
    ),
    "sensitivity": Run(
        "a sensitivity sweep, the selection from it, and a subnet",
        _DEMO,
        (
            "sensitivity digits.onnx -o sweep.jsonl --data digits.npz --criterion l2"
            " --rates 0.25,0.5 --no-time",
            "select sweep.jsonl --json",
            "plan digits.onnx --target macs=60% --criterion l2 -o plan.json",
            "subnet digits.onnx plan.json -o subnet.json",
        ),
    ),
    "sparsify": Run(
        "zeros inside the weights, with data and by a pattern",
        _DEMO,
        (
            "sparsify digits.onnx -o sparse.onnx --amount 0.3 --data digits.npz --json",
            "sparsify digits.onnx -o pattern.onnx --scope 2:4 --method activation"
            " --data digits.npz --json",
        ),
    ),
    "tune": Run(
        "fine-tuning of a cut network",
        _DEMO,
        (
            "plan digits.onnx --target macs=50% -o plan.json",
            "cut digits.onnx plan.json -o cut.onnx",
            "tune cut.onnx -o tuned.onnx --teacher digits.onnx --data digits.npz --steps 12 --json",
        ),
        modules=("torch",),
    ),
    "tune-target": Run(
        "pruning while tuning",
        _DEMO,
        (
            "tune digits.onnx -o tuned.onnx --target macs=80% --interval 2 --steps 24"
            " --data digits.npz --plan plan.json --json",
        ),
        modules=("torch",),
    ),
    "systolic": Run(
        "a latency target on a modelled systolic array",
        _DEMO,
        (
            "optimize digits.onnx --data digits.npz -o out.onnx --engine systolic16"
            " --target latency.systolic16=1.5x",
        ),
    ),
    "handoff": Run(
        "bundles for hls4ml and Gemmini",
        _DEMO,
        (
            "optimize digits.onnx -o out.onnx --engine none",
            "handoff digits.onnx out.onnx --to hls4ml -o hls4ml --data digits.npz",
            "handoff digits.onnx out.onnx --to gemmini -o gemmini --data digits.npz",
        ),
    ),
    "quantized": Run(
        "an int8 network in QDQ form",
        ("int8.onnx", "digits.npz"),
        ("optimize int8.onnx --data digits.npz -o out.onnx --target macs=80% --engine none",),
    ),
    "blocks": Run(
        "whole branches of a residual network",
        ("residual.onnx", "residual.npz"),
        (
            "optimize residual.onnx --data residual.npz -o out.onnx --target macs=50%"
            " --freeze stem --blocks --engine none",
        ),
    ),
    "recurrent": Run(
        "two LSTM layers",
        ("recurrent.onnx", "recurrent.npz"),
        (
            "optimize recurrent.onnx --data recurrent.npz -o out.onnx --target params=60%"
            " --engine none",
        ),
    ),
    "transformer": Run(
        "attention, with the residual stream opened by --allow-mixing",
        ("transformer.onnx", "transformer.npz"),
        (
            "optimize transformer.onnx --data transformer.npz -o out.onnx --target params=60%"
            " --allow-mixing LayerNormalization --round-to 4 --engine none",
        ),
    ),
    "resnet20": Run(
        "a trained residual network: mirrored inputs, swaps, labels",
        ("resnet20.onnx", "cifar10.npz", "cifar10-labelled.npz"),
        (
            "optimize resnet20.onnx --data cifar10.npz -o out.onnx --samples 48 --flip --swaps 2"
            " --metric top1 --labelled cifar10-labelled.npz --candidate none --engine none",
        ),
    ),
    "batchnorm": Run(
        "a trained network with BatchNormalization and its repair",
        ("resnet20-bn.onnx", "cifar10.npz"),
        (
            "optimize resnet20-bn.onnx --data cifar10.npz -o out.onnx --samples 32"
            " --criterion bn_scale*l1 --repair batchnorm --engine none",
        ),
    ),
    "vit": Run(
        "a trained vision transformer",
        ("vit.onnx", "vit.npz"),
        ("optimize vit.onnx --data vit.npz -o out.onnx --samples 64 --engine none",),
    ),
    "mobilenet": Run(
        "a trained MobileNetV2, criterion l2, bias repair, a folder of images",
        ("mobilenet.onnx", "imagenet"),
        (
            "optimize mobilenet.onnx --data imagenet -o out.onnx --samples 8"
            " --scale 0.00784313725490196 --mean 1 --criterion l2 --repair bias --engine none",
        ),
        modules=("PIL",),
    ),
    "squeezenet": Run(
        "a trained SqueezeNet, images in BGR order",
        ("squeezenet.onnx", "imagenet"),
        (
            "optimize squeezenet.onnx --data imagenet -o out.onnx --samples 8 --target macs=70%"
            " --order bgr --scale 1 --mean 104,117,123 --criterion l2 --repair bias"
            " --engine none",
        ),
        modules=("PIL",),
    ),
    "yolo": Run(
        "a trained detector with channel shuffles and two heads",
        ("yolo.onnx", "coco"),
        (
            "optimize yolo.onnx --data coco -o out.onnx --samples 8 --target macs=70%"
            " --resize 352x352 --interp area --order bgr --engine none",
        ),
        modules=("PIL",),
    ),
}
