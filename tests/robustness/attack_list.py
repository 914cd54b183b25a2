"""Registry of attacks: functions that write small files and return arguments of onnxprune."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from onnxprune import demo

FLAGS = ["--criterion=l2", "--repair=none", "--engine=none", "--round-to=1"]
MODEL = demo.files().model
OUTPUT = "out.onnx"

Build = Callable[[Path], list[str]]
ATTACKS: dict[str, Build] = {}


def attack(what: str) -> Callable[[Build], Build]:
    """Register a function that writes files into a folder and returns arguments of onnxprune."""

    def register(build: Build) -> Build:
        ATTACKS[what] = build
        return build

    return register


def optimize(model: str | Path, *more: str) -> list[str]:
    return ["optimize", str(model), "-o", OUTPUT, *FLAGS, *more]


def optimize_with_data(data: str) -> list[str]:
    """Return a run on the demo model that reads all of its data."""
    command = ["optimize", str(MODEL), "-o", OUTPUT, f"--data={data}"]
    return [*command, "--criterion=activation_mean", "--repair=bias", "--engine=none"]
