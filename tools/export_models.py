"""Export public architectures with random weights to ONNX, for benchmarks/coverage.py.

    python tools/export_models.py FOLDER timm:resnet18 tv:densenet121 yolo:yolov8n
    python tools/export_models.py FOLDER --list models.txt [--keep-batchnorm] [--dynamo]

models.txt has one SOURCE:NAME per line. Sources are timm, tv (torchvision) and yolo (a model file
of ultralytics): pip install torch torchvision timm ultralytics onnx onnxscript. Model NAME of
SOURCE becomes FOLDER/SOURCE_NAME.onnx. Each is exported in a process of its own; the exit code is 1
if one fails.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

TIMEOUT_S = 600
MISSING_OPERATORS = 64  # more than torchvision has
OPSET = {False: 17, True: 18}  # by exporter; 18 is the least that the dynamo exporter writes
SIDE = {"yolo": 320}


def load_torchvision() -> Any:
    """Import torchvision even if its compiled operators do not match the installed torch.

    Classifiers need none of these operators: each one that the import misses is declared without a
    body, and the import is tried again.

    Returns
    -------
    The library of the declarations, to keep alive while torchvision is used.
    """
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for _ in range(MISSING_OPERATORS):
        try:
            import torchvision  # noqa: F401

            return library
        except RuntimeError as problem:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(problem))
            if missing is None:
                raise
            library.define(f"{missing.group(1)}(Tensor x) -> Tensor")
            for module in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
                del sys.modules[module]
    return library


def build(source: str, name: str) -> tuple[Any, tuple[int, ...]]:
    """Return the module in evaluation mode and the shape of its input."""
    if source == "timm":
        import timm

        timm.layers.set_exportable(True)
        module = timm.create_model(name, pretrained=False)
        shape = tuple(module.default_cfg.get("input_size", (3, 224, 224)))
    elif source == "tv":
        import torchvision

        options = {}
        if name in ("googlenet", "inception_v3"):
            options = {"init_weights": False, "aux_logits": False}
        module, shape = torchvision.models.get_model(name, weights=None, **options), (3, 224, 224)
    elif source == "yolo":
        from ultralytics import YOLO

        module, shape = YOLO(f"{name}.yaml", verbose=False).model, (3, SIDE["yolo"], SIDE["yolo"])
        for part in module.modules():
            if hasattr(part, "export"):
                part.export = True
    else:
        raise SystemExit(f"unknown source {source!r}: timm, tv or yolo")
    return module.eval(), (1, *shape)


def perturb(module: Any) -> None:
    """Make all weights and statistics different, so that confused channels change the output."""
    import torch

    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.state_dict(keep_vars=False).items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=rng)
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=rng) + 0.5)
            else:
                # vectors, such as biases of zero, need an absolute part
                scale = 0.05 * tensor.abs().mean() + (0.02 if tensor.ndim < 2 else 0.0)
                tensor.add_(scale * noise)


def export(source: str, name: str, path: Path, keep_batchnorm: bool, dynamo: bool) -> None:
    """Export one model."""
    import torch

    torch.manual_seed(0)
    operators = load_torchvision()
    module, shape = build(source, name)
    perturb(module)
    options: dict[str, Any] = {
        "opset_version": OPSET[dynamo],
        "dynamo": dynamo,
        "input_names": ["images"],
    }
    if dynamo:
        options |= {"external_data": False, "optimize": True}
    elif keep_batchnorm:
        options |= {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE}
    torch.onnx.export(module, (torch.randn(shape),), str(path), **options)
    del operators


def main() -> int:
    """Export the models that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="*", metavar="SOURCE:NAME")
    parser.add_argument("--list", type=Path, help="file with one SOURCE:NAME per line")
    parser.add_argument("--keep-batchnorm", action="store_true")
    parser.add_argument("--dynamo", action="store_true", help="torch's newer exporter")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in this process
    options = parser.parse_args()
    models = list(options.models)
    if options.list:
        models += options.list.read_text(encoding="utf-8").split()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.here:
        source, _, name = models[0].partition(":")
        path = options.folder / f"{source}_{name}.onnx"
        export(source, name, path, options.keep_batchnorm, options.dynamo)
        return 0
    flags = {"--keep-batchnorm": options.keep_batchnorm, "--dynamo": options.dynamo}
    set_flags = [flag for flag, is_set in flags.items() if is_set]
    failed = 0
    for model in models:
        problem = export_apart(model, options.folder, set_flags)
        failed += bool(problem)
        print(f"{model}: {problem or 'ok'}", flush=True)
    return int(failed > 0)


def export_apart(model: str, folder: Path, flags: list[str]) -> str:
    """Export a model in a process of its own; return the last line of its error, or ""."""
    command = [sys.executable, __file__, str(folder), model, "--here", *flags]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return f"takes more than {TIMEOUT_S} s"
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or ["no message"])[-1]


if __name__ == "__main__":
    sys.exit(main())
