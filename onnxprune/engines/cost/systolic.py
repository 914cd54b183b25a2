"""Accelerators that are computed instead of run: weight-stationary systolic arrays and tiled dot-product arrays.

A figure from here is a model, not a measurement: only contractions are counted, everything between them is taken as fused,
and every operand crosses the memory bus once. It answers which widths such an array can use.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.engines.base import Compiled, EngineOptions, LayerTime, Source, open_model
from onnxprune.engines.cost.contractions import Contraction, contractions
from onnxprune.errors import UsageError, unknown
from onnxprune.ir.io import Model
from onnxprune.ir.runtime import Session


@dataclass(frozen=True)
class MacArray:
    """A multiply-accumulate array and the bus that feeds it.

    rows: parallel products of one sum (taps x input channels in a systolic array, input channels in a tiled one);
    columns: output channels in parallel; pixels: output positions in parallel (tiled arrays only);
    tiled: False = systolic, weight stationary; True = rows x columns x pixels products a cycle, tap by tap;
    clock_mhz; bandwidth_bytes: bytes a cycle to and from memory; weight_bits, activation_bits: operand widths;
    multiple: what kept channel counts should be a multiple of; deep: a tiled array either steps tap by tap through `deep` input channels,
    or through `rows` of them with the taps in groups of `tap_group`, whichever is less.
    """

    name: str
    rows: int
    columns: int
    pixels: int = 1
    tiled: bool = False
    clock_mhz: float = 1000.0
    bandwidth_bytes: float = 16.0
    weight_bits: int = 8
    activation_bits: int = 8
    multiple: int = 16
    deep: int = 0
    tap_group: int = 1

    def __post_init__(self) -> None:
        sizes = (
            self.rows,
            self.columns,
            self.pixels,
            self.multiple,
            self.weight_bits,
            self.activation_bits,
        )
        if min(sizes) < 1 or self.clock_mhz <= 0 or self.bandwidth_bytes <= 0:
            raise UsageError(
                "array-size",
                f"array {self.name!r}: rows, columns, pixels, bits, clock and bandwidth must be positive",
            )

    @property
    def peak_macs(self) -> int:
        """Multiply-accumulates a cycle with every cell busy."""
        return self.rows * self.columns * self.pixels


@dataclass(frozen=True)
class LayerEstimate:
    """One contraction on an array. Cycles of arithmetic and of memory overlap; the larger counts. intensity: MACs a byte."""

    name: str
    op: str
    output: str
    macs: int
    compute_cycles: int
    memory_cycles: int
    traffic_bytes: int
    utilization: float
    intensity: float

    @property
    def cycles(self) -> int:
        """max(compute, memory): the roofline."""
        return max(self.compute_cycles, self.memory_cycles)

    @property
    def bound(self) -> str:
        """Which roof is met: "compute" or "memory"."""
        return "memory" if self.memory_cycles > self.compute_cycles else "compute"


@dataclass(frozen=True)
class ArrayEstimate:
    """A whole graph on an array. skipped: nodes that multiply and are not in the sum."""

    array: MacArray
    layers: tuple[LayerEstimate, ...]
    skipped: tuple[str, ...] = ()

    @property
    def cycles(self) -> int:
        """Of one inference."""
        return sum(layer.cycles for layer in self.layers)

    @property
    def compute_cycles(self) -> int:
        """Without limits of memory."""
        return sum(layer.compute_cycles for layer in self.layers)

    @property
    def latency_ms(self) -> float:
        """Of one inference."""
        return self.cycles / self.array.clock_mhz / 1e3


def compute_cycles(array: MacArray, layer: Contraction) -> int:
    """Cycles of arithmetic of one layer.

    Systolic: ceil(k/R) * ceil(n/C) * (2R + C + m - 2) a product; each fold loads R rows of weights, streams m rows of inputs and
    drains R + C - 2 diagonals (SCALE-Sim, Samajdar et al. 2018, eq. 3 for weight stationary; the simulator itself reports one
    cycle less a layer). Groups run one after the other, so a depthwise layer keeps one column busy, as it does in Gemmini.
    Tiled: ceil(m/P) * taps * ceil(channels/R) * ceil(n/C), see `Array.deep`; a depthwise layer has no sum over channels and uses the C columns.
    """
    if not array.tiled:
        folds = math.ceil(layer.k / array.rows) * math.ceil(layer.n / array.columns)
        return layer.groups * folds * (2 * array.rows + array.columns + layer.m - 2)
    blocks = math.ceil(layer.m / array.pixels)
    taps = math.ceil(layer.taps / array.tap_group) * array.tap_group
    if layer.depthwise:
        return blocks * taps * math.ceil(layer.groups / array.columns)
    transposed = layer.op == "ConvTranspose"
    channels = layer.k if transposed else layer.k // layer.taps
    outputs = layer.n // layer.taps if transposed else layer.n
    steps = taps * math.ceil(channels / array.rows)
    if array.deep:
        steps = min(steps, layer.taps * math.ceil(channels / array.deep) * array.deep // array.rows)
    return layer.groups * blocks * steps * math.ceil(outputs / array.columns)


def estimate_layer(array: MacArray, layer: Contraction) -> LayerEstimate:
    """Arithmetic and memory of one layer; inputs, weights and outputs each cross the bus once."""
    bits = (
        layer.weight_size * array.weight_bits
        + (layer.input_size + layer.output_size) * array.activation_bits
    )
    traffic = math.ceil(bits / 8)
    compute, memory = compute_cycles(array, layer), math.ceil(traffic / array.bandwidth_bytes)
    used = layer.macs / (max(compute, memory, 1) * array.peak_macs)
    return LayerEstimate(
        layer.name,
        layer.op,
        layer.output,
        layer.macs,
        compute,
        memory,
        traffic,
        used,
        layer.macs / max(1, traffic),
    )


def estimate(
    model: Model, array: MacArray, shapes: Mapping[str, Sequence[int]] | None = None
) -> ArrayEstimate:
    """Cycles of every contraction of a graph; see `contractions` for `shapes` and errors."""
    found = contractions(model, shapes)
    return ArrayEstimate(
        array, tuple(estimate_layer(array, layer) for layer in found.layers), found.skipped
    )


def square_array(size: int) -> MacArray:
    """A size x size systolic array at 1 GHz with a 128-bit bus, Gemmini's default configuration at size 16."""
    return MacArray(f"systolic{size}", size, size, multiple=size)


def _dpu(name: str, pixels: int, channels: int) -> MacArray:
    """A DPUCZDX8G at 300 MHz on a 64-bit DDR4-2400 memory (19.2 GB/s). Parallelism: AMD PG338, table of architectures."""
    return MacArray(name, channels, channels, pixels, True, 300.0, 64.0, multiple=channels)


def _ethos(
    name: str, pixels: int, columns: int, clock_mhz: float, bandwidth_bytes: float
) -> MacArray:
    """An Ethos-U: 8 input channels a product, 32 deep or taps by fours. Blocks and bus widths are those of Vela's default configurations.

    Convolutions of ResNet-8 (CIFAR) on the U55-128: 122,880 cycles here, 145,350 by Vela 5.2.0; at half the width 36,864 and 48,574. Vela adds elementwise layers (an Add of
    16,384 elements takes 24,576 cycles) and the decoding of weights, which are not modeled.
    """
    return MacArray(
        name, 8, columns, pixels, True, clock_mhz, bandwidth_bytes, deep=32, tap_group=4
    )


PRESETS: Mapping[str, MacArray] = {
    array.name: array
    for array in (
        square_array(8),
        square_array(16),
        square_array(32),
        MacArray("gemmini", 16, 16),
        _dpu("dpu-b512", 4, 8),
        _dpu("dpu-b800", 4, 10),
        _dpu("dpu-b1024", 8, 8),
        _dpu("dpu-b1152", 4, 12),
        _dpu("dpu-b1600", 8, 10),
        _dpu("dpu-b2304", 8, 12),
        _dpu("dpu-b3136", 8, 14),
        _dpu("dpu-b4096", 8, 16),
        _ethos("ethos-u55-32", 1, 4, 500.0, 8.0),
        _ethos("ethos-u55-64", 1, 8, 500.0, 8.0),
        _ethos("ethos-u55-128", 2, 8, 500.0, 8.0),
        _ethos("ethos-u55-256", 4, 8, 500.0, 8.0),
        _ethos("ethos-u65-256", 4, 8, 1000.0, 16.0),
        _ethos("ethos-u65-512", 4, 16, 1000.0, 16.0),
    )
}


def preset(name: str) -> MacArray:
    """The array of that name; UsageError names the nearest."""
    if name not in PRESETS:
        raise unknown("array", name, PRESETS)
    return PRESETS[name]


_NAME = re.compile(r"(?P<base>[a-z0-9-]+?)(-(?P<mhz>\d+)mhz)?(-(?P<bytes>\d+)b)?")
_SIZE = re.compile(r"systolic(\d+)(?:x(\d+))?")


def parse_array_name(name: str) -> ArrayEngine | None:
    """The array that a name spells out, None where it is no such name.

    A preset or `systolicROWSxCOLUMNS` (one number: a square one), then `-CLOCKmhz` and `-BYTESb`, the bytes a cycle of the bus, where they are to be other
    than the preset's, or than 1000 and 16.

    >>> described("systolic24x32-500mhz-8b").array.bandwidth_bytes
    8.0
    """
    parts = _NAME.fullmatch(name)
    if parts is None:
        return None
    array = PRESETS.get(parts["base"])
    if array is None and (size := _SIZE.fullmatch(parts["base"])):
        rows, columns = int(size[1]), int(size[2] or size[1])
        array = MacArray(name, rows, columns, multiple=max(columns, 1))
    if array is None:
        return None
    clock, bus = parts["mhz"], parts["bytes"]
    return ArrayEngine(
        replace(
            array,
            name=name,
            clock_mhz=float(clock or array.clock_mhz),
            bandwidth_bytes=float(bus or array.bandwidth_bytes),
        )
    )


class Modeled(Compiled):
    """A graph whose time on an array is computed. Outputs, where somebody asks for them, are onnxruntime's."""

    def __init__(self, model: Model, array: MacArray, options: EngineOptions) -> None:
        self.estimate = estimate(model, array, options.shapes)
        self.outputs = tuple(o.name for o in model.proto.graph.output)
        self._model = model
        self._session: Session | None = None

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        session = Session(self._model) if self._session is None else self._session
        self._session = session
        return session.run(feeds)

    def sample(self, feeds: Mapping[str, np.ndarray], count: int) -> list[float]:
        return [self.estimate.latency_ms] * count

    def profile(self, feeds: Mapping[str, np.ndarray], count: int) -> tuple[LayerTime, ...]:
        milliseconds = 1e3 * self.estimate.array.clock_mhz
        return tuple(
            LayerTime(
                e.name,
                f"{e.op} ({e.bound})",
                e.cycles / milliseconds,
                (e.name,),
                (e.output,),
                e.output,
            )
            for e in self.estimate.layers
        )


@dataclass(frozen=True)
class ArrayEngine:
    """An array behind the protocol of engines: nothing is run, the latency is that of `estimate`."""

    array: MacArray
    install: str = "part of onnxprune"

    @property
    def name(self) -> str:
        """That of the preset."""
        return self.array.name

    def available(self) -> str | None:
        """Always."""
        return None

    def version(self) -> str:
        """What the model was computed for."""
        a = self.array
        return f"model of {a.rows}x{a.columns}x{a.pixels} at {a.clock_mhz:g} MHz, {a.bandwidth_bytes:g} bytes a cycle"

    def compile(self, source: Source, options: EngineOptions) -> Modeled:
        """The estimate; ModelError where a shape is not known."""
        return Modeled(open_model(source), self.array, options)

    def limits(self) -> Mapping[str, str]:
        """What the figures leave out."""
        return {
            "model": "computed, not measured: contractions only, everything else taken as fused, operands cross the bus once"
        }

    def channel_multiple(self, dtype: str = "f32") -> int:
        """The array's columns, or what its vendor packs channels by."""
        return self.array.multiple


def __getattr__(name: str) -> ArrayEngine:
    """The engine of a preset as an attribute, for the registry: `dpu-b512` is DPU_B512."""
    key = name.lower().replace("_", "-")
    if name != name.upper() or key not in PRESETS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return ArrayEngine(PRESETS[key])
