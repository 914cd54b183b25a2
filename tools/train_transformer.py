#!/usr/bin/env python3
"""Train the transformer of docs/notebooks on handwritten digits, and export it to ONNX.

Needs torch and scikit-learn; takes about a minute. The file is committed, so that the notebook
needs neither.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from sklearn.datasets import load_digits

OUT = Path(__file__).resolve().parents[1] / "docs" / "notebooks" / "transformer.onnx"
WIDTH, HEADS, LAYERS, EPOCHS = 32, 4, 2, 60


class Transformer(torch.nn.Module):
    """Patches of 2x2 pixels as tokens, a learned position each, encoder layers, mean, head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(1, WIDTH, 2, 2)
        self.position = torch.nn.Parameter(torch.randn(1, 16, WIDTH) * 0.02)
        self.layers = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(
                WIDTH,
                HEADS,
                4 * WIDTH,
                dropout=0.1,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(LAYERS)
        )
        self.head = torch.nn.Linear(WIDTH, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.position
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens.mean(1))


def main() -> None:
    """Train, print the accuracy on the labeled digits of the demo, and export."""
    import numpy as np

    from onnxprune import demo

    digits = load_digits()
    images = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    held_out = np.load(demo.files().evaluation)
    known = {image.tobytes() for image in held_out["images"]}
    # the demo's labeled digits are left for the accuracy
    used = [i for i, image in enumerate(images.numpy()) if image.tobytes() not in known]
    images, labels = images[used], labels[used]
    torch.manual_seed(0)
    network = Transformer()
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, EPOCHS * (-(-len(images) // 64))
    )
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        logits = network(torch.tensor(held_out["images"]))
    accuracy = (logits.argmax(1).numpy() == held_out["labels"]).mean()
    print(f"{len(images)} digits for training; top1 {accuracy:.3f} on {len(logits)} others")
    dynamic = {"images": {0: "batch"}, "logits": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (images[:1],),
            str(OUT),
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes=dynamic,
            dynamo=False,
        )


if __name__ == "__main__":
    main()
