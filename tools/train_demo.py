"""Train the demo network and write the files of onnxprune/demo/.

usage: python tools/train_demo.py [--out FOLDER]

Needs torch and scikit-learn; takes about a minute on one core. The data is scikit-learn's
handwritten digits (1,797 images of 8 x 8 pixels; E. Alpaydin and C. Kaynak, UCI, CC BY 4.0), split
by a fixed permutation into disjoint parts: training, calibration (no labels) and evaluation. The
same versions on the same type of processor give the same files.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

CALIBRATION, EVALUATION = 256, 500  # images; the rest trains
EPOCHS, BATCH, PEAK_LR, LABEL_SMOOTHING = 40, 32, 3e-3, 0.05
OPSET = 17
SEED = 0
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def conv(
    inputs: int, outputs: int, size: int, groups: int = 1, active: bool = True
) -> nn.Sequential:
    """Return convolution, BatchNorm and ReLU, padded to keep the image size."""
    layers = [
        nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *[nn.ReLU()] * active)


class Residual(nn.Module):
    """ReLU of x + body(x), which couples the body's output channels to its input's."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the shape of x."""
        return torch.relu(x + self.body(x))


class Branches(nn.Module):
    """Parallel branches, concatenated along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the channels of all branches, in order."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def inverted(width: int, inner: int) -> Residual:
    """Return an inverted residual block: 1x1 up, depthwise 3x3, 1x1 down."""
    return Residual(
        conv(width, inner, 1),
        conv(inner, inner, 3, groups=inner),
        conv(inner, width, 1, active=False),
    )


def network() -> nn.Sequential:
    """Return the network, (n, 1, 8, 8) -> (n, 10).

    It has residual blocks, a concatenation and depthwise convolutions.
    """
    return nn.Sequential(
        conv(1, 32, 3),
        Residual(conv(32, 32, 3), conv(32, 32, 3, active=False)),
        Residual(conv(32, 32, 3), conv(32, 32, 3, active=False)),
        Branches(conv(32, 16, 1), conv(32, 32, 3), nn.Sequential(conv(32, 16, 1), conv(16, 16, 3))),
        nn.MaxPool2d(2),
        inverted(64, 128),
        inverted(64, 128),
        conv(64, 96, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, len(CLASSES)),
    )


def splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return images float32 (n, 1, 8, 8) in [0, 1] and labels int64 (n,) by name of the split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(SEED).permutation(len(images))
    parts = np.split(order, [EVALUATION, EVALUATION + CALIBRATION])
    names = ("evaluation", "calibration", "training")
    return {name: (images[p], labels[p]) for name, p in zip(names, parts, strict=True)}


def shift(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift a batch by up to one pixel."""
    down, right = (int(torch.randint(0, 3, (), generator=generator)) for _ in range(2))
    height, width = images.shape[2:]
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    return padded[:, :, down : down + height, right : right + width]


def train(images: np.ndarray, labels: np.ndarray) -> nn.Module:
    """Return the trained network, in evaluation mode."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model, x, y = network(), torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LR, total_steps=EPOCHS * (len(x) // BATCH)
    )
    loss_of = nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTHING)
    for _ in range(EPOCHS):
        order = torch.randperm(len(x), generator=generator)
        for batch in order[: len(x) // BATCH * BATCH].split(BATCH):
            optimizer.zero_grad()
            loss_of(model(shift(x[batch], generator)), y[batch]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def export(model: nn.Module, path: Path) -> None:
    """Write the model: BatchNormalization folded, dynamic batch, class names in the metadata."""
    with warnings.catch_warnings():
        # of the older exporter; the newer one has an opset of its own and keeps BatchNormalization
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model,
            (torch.zeros(1, 1, 8, 8),),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
        )
    written = onnx.load(path)
    onnx.helper.set_model_props(
        written,
        {
            "names": json.dumps(dict(enumerate(CLASSES))),
            "data": "scikit-learn digits, CC BY 4.0",
            "license": "Apache-2.0",
        },
    )
    onnx.checker.check_model(written, full_check=True)
    onnx.save(written, path)


def accuracy(path: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images that onnxruntime classifies correctly."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return float((session.run(None, {"images": images})[0].argmax(1) == labels).mean())


def main() -> None:
    """Train, export, and print the accuracy of the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parents[1] / "onnxprune" / "demo"
    )
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    parts = splits()
    export(train(*parts["training"]), out / "digits.onnx")
    np.savez_compressed(out / "digits_calibration.npz", images=parts["calibration"][0])
    np.savez_compressed(
        out / "digits_evaluation.npz", images=parts["evaluation"][0], labels=parts["evaluation"][1]
    )
    size_bytes = sum(file.stat().st_size for file in out.glob("digits*"))
    top1 = accuracy(out / "digits.onnx", *parts["evaluation"])
    print(f"top-1 {top1:.4f} on {EVALUATION} evaluation images; {size_bytes} bytes in {out}")


if __name__ == "__main__":
    main()
