"""Devices: figures with evidence, widths that follow them, and warnings."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from engine_nets import residual

from onnxprune.cli.app import app
from onnxprune.cli.handoff import find_target
from onnxprune.deploy import TARGETS
from onnxprune.engines import ENGINES
from onnxprune.engines.base import PRECISIONS
from onnxprune.engines.devices import DEVICES, get_device
from onnxprune.errors import UsageError
from onnxprune.run.adapter import channel_multiple, follows_engine
from onnxprune.run.device_warnings import device_warnings
from onnxprune.run.recipe import Recipe
from onnxprune.sparsify.report import sparsity
from onnxprune.sparsify.tensor_cores import pattern_warnings
from onnxprune.sparsify.weights import SparsifySettings, sparsify


@pytest.mark.parametrize("name", DEVICES)
def test_every_figure_has_evidence_and_agrees_with_the_engine(name: str) -> None:
    device = get_device(name)
    assert device.name == name and device.precision in device.multiples
    assert set(device.multiples) <= set(PRECISIONS)
    assert all(m.channels > 1 and len(m.evidence) > 8 for m in device.multiples.values())
    assert device.handoff in ("", *TARGETS) and device.engine in ("", *ENGINES)
    # a computed engine has one multiple for all precisions
    if device.engine.startswith(("ethos", "dpu")):
        assert ENGINES.get(device.engine).channel_multiple("int8") == device.channel_multiple("f32")


@pytest.mark.parametrize(
    ("options", "multiple"),
    [
        ({"device": "jetson-orin-nano", "precision": "f16"}, 8),
        ({"device": "jetson-orin-nano", "precision": "int8"}, 32),
        # of the precision that the device computes in
        ({"device": "ethos-u55"}, 16),
        # before the engine of the target
        ({"device": "dpu-b1152", "target": "latency.systolic16=1.5x"}, 12),
        ({"device": "dpu-b1152", "round_to": 4}, 4),
    ],
)
def test_widths_follow_the_device(options: dict[str, object], multiple: int) -> None:
    recipe = Recipe(**options)
    assert channel_multiple(recipe) == multiple
    assert follows_engine(recipe) == ("round_to" not in options)


def test_warnings_name_operators_and_the_absence_of_a_block() -> None:
    model = residual(8)
    (text,) = device_warnings(model, Recipe(device="dpu-b4096"))
    assert "AMD DPUCZDX8G B4096" in text and "handoff --to vitis-ai" in text
    assert not list(device_warnings(model, Recipe(device="jetson-orin-nano")))
    (text,) = device_warnings(model, Recipe(device="jetson-agx-orin-dla"))
    assert "to the GPU: Flatten (1 node), Gemm" in text
    (text,) = device_warnings(model, Recipe(round_to="auto", engine="openvino"))
    assert "keeps any width: openvino computes no blocks" in text
    with pytest.raises(UsageError, match="unknown device .*did you mean 'rpi5'"):
        Recipe(device="rpi")


def test_commands_know_devices() -> None:
    shown = CliRunner().invoke(app, ["devices"])
    assert (
        shown.exit_code == 0 and "rknn-rk3588" in shown.output and "measured here" in shown.output
    )
    assert find_target("jetson-agx-orin-dla") == ("jetson", {"dla": "0"})
    assert find_target("vela") == ("vela", {})
    with pytest.raises(UsageError, match="no bundle for Hailo-8"):
        find_target("hailo8")


def test_patterns_that_will_not_pay() -> None:
    settings = SparsifySettings(scope="2:4", method="magnitude", ops=("Conv",), refit=False)
    model = sparsify(residual(16), settings, None).model
    rows = sparsity(model).tensors
    (text,) = pattern_warnings(model, rows, "2:4", get_device("jetson-orin-nano"))
    # the first layer, of three channels, has no pattern
    assert "2 of 2 layers with the pattern have fewer than 256" in text and "3849" in text
    (text,) = pattern_warnings(model, rows, "2:4", get_device("jetson-xavier"))
    assert "has no sparse tensor cores" in text and "jetson-orin-nano" in text
    (text,) = pattern_warnings(model, rows, "1:8")
    assert "2:4 patterns only" in text
    wide = sparsify(residual(256, size=4), settings, None).model
    assert not list(pattern_warnings(wide, sparsity(wide).tensors, "2:4"))
