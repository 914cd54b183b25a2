"""Computed latency of accelerators: weight-stationary systolic and tiled dot-product arrays.

The figures come from an analytical model, not from a measurement: only contractions are counted,
all nodes between them are taken as fused, and every operand crosses the memory bus once. It answers
which widths such an array can use.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.engines.base import EngineOptions, LayerTime, Source, open_model
from onnxprune.engines.cost.computed import ComputedModel
from onnxprune.engines.cost.contractions import Contraction, contractions
from onnxprune.errors import UsageError, unknown
from onnxprune.ir.io import Model


@dataclass(frozen=True)
class MacArray:
    """A multiply-accumulate array and the bus that feeds it.

    Attributes
    ----------
    name
        Name of the engine.
    rows
        Parallel products of one sum: taps x input channels in a systolic array, input channels in
        a tiled one.
    columns
        Output channels in parallel.
    pixels
        Output positions in parallel (tiled arrays only).
    tiled
        False = systolic, weight stationary; True = rows x columns x pixels products per cycle, tap
        by tap.
    clock_mhz
        Clock frequency.
    bandwidth_bytes
        Bytes per cycle to and from memory.
    weight_bits, activation_bits
        Widths of the operands.
    multiple
        Multiple that kept channels should be of.
    deep, tap_group
        A tiled array steps either tap by tap through `deep` input channels, or through `rows` of
        them with taps in groups of `tap_group`, whichever takes fewer cycles; deep = 0: only the
        second.
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
        """Check the sizes."""
        sizes = {
            "rows": self.rows,
            "columns": self.columns,
            "pixels": self.pixels,
            "multiple": self.multiple,
            "weight_bits": self.weight_bits,
            "activation_bits": self.activation_bits,
            "clock_mhz": self.clock_mhz,
            "bandwidth_bytes": self.bandwidth_bytes,
        }
        # sizes come from names that users type, see parse_array_name
        for name, size in sizes.items():
            if size <= 0:
                raise UsageError(
                    "array-size", f"array {self.name!r}: {name} is {size:g}; it must be positive"
                )

    @property
    def peak_macs(self) -> int:
        """Multiply-accumulates per cycle with every cell busy."""
        return self.rows * self.columns * self.pixels


@dataclass(frozen=True)
class LayerEstimate:
    """One contraction on an array.

    Attributes
    ----------
    name, op, output, macs
        As in `Contraction`.
    compute_cycles, memory_cycles
        Cycles of arithmetic and of memory; they overlap, so that the larger counts.
    traffic_bytes
        Bytes that cross the bus.
    utilization
        Share of the peak multiply-accumulates.
    intensity
        Multiply-accumulates per byte.
    """

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
        """Cycles by the roofline model: max(compute, memory)."""
        return max(self.compute_cycles, self.memory_cycles)

    @property
    def bound(self) -> str:
        """Roof that limits the layer: "compute" or "memory"."""
        return "memory" if self.memory_cycles > self.compute_cycles else "compute"


@dataclass(frozen=True)
class ArrayEstimate:
    """A graph on an array.

    Attributes
    ----------
    array
        The array.
    layers
        Contractions in graph order.
    skipped
        Nodes that multiply and are not in the sum.
    """

    array: MacArray
    layers: tuple[LayerEstimate, ...]
    skipped: tuple[str, ...] = ()

    @property
    def cycles(self) -> int:
        """Cycles per inference."""
        return sum(layer.cycles for layer in self.layers)

    @property
    def compute_cycles(self) -> int:
        """Cycles per inference without the limit of memory."""
        return sum(layer.compute_cycles for layer in self.layers)

    @property
    def latency_ms(self) -> float:
        """Milliseconds per inference."""
        return self.cycles / self.array.clock_mhz / 1e3


def compute_cycles(array: MacArray, layer: Contraction) -> int:
    """Return the cycles of arithmetic of one layer.

    Systolic arrays take ceil(k/R) * ceil(n/C) * (2R + C + m - 2) per product: each fold loads R
    rows of weights, streams m rows of inputs and drains R + C - 2 diagonals (SCALE-Sim, Samajdar et
    al. 2018, eq. 3 for weight stationary; the simulator itself reports one cycle less per layer).
    Groups run one after another, so that a depthwise layer keeps one column busy, as in Gemmini.

    Tiled arrays take ceil(m/P) * taps * ceil(channels/R) * ceil(n/C), see `MacArray.deep`; a
    depthwise layer has no sum over channels and uses the C columns.
    """
    if not array.tiled:
        # a partly filled fold takes as long as a full one
        folds = math.ceil(layer.k / array.rows) * math.ceil(layer.n / array.columns)
        return layer.groups * folds * (2 * array.rows + array.columns + layer.m - 2)
    # a partly filled tile takes as long as a full one
    blocks = math.ceil(layer.m / array.pixels)
    taps = math.ceil(layer.taps / array.tap_group) * array.tap_group
    if layer.depthwise:
        return blocks * taps * math.ceil(layer.groups / array.columns)
    transposed = layer.op == "ConvTranspose"
    # a transposed convolution has its taps on the output side
    channels = layer.k if transposed else layer.k // layer.taps
    outputs = layer.n // layer.taps if transposed else layer.n
    steps = taps * math.ceil(channels / array.rows)
    if array.deep:
        # a step through `deep` channels takes deep / rows cycles
        steps = min(steps, layer.taps * math.ceil(channels / array.deep) * array.deep // array.rows)
    return layer.groups * blocks * steps * math.ceil(outputs / array.columns)


def estimate_layer(array: MacArray, layer: Contraction) -> LayerEstimate:
    """Return arithmetic and memory of one layer; every operand crosses the bus once."""
    activations = layer.input_size + layer.output_size
    # weights may be narrower than activations
    bits = layer.weight_size * array.weight_bits + activations * array.activation_bits
    traffic = math.ceil(bits / 8)
    # double buffering overlaps the two
    compute, memory = compute_cycles(array, layer), math.ceil(traffic / array.bandwidth_bytes)
    return LayerEstimate(
        layer.name,
        layer.op,
        layer.output,
        layer.macs,
        compute,
        memory,
        traffic,
        # of the larger of both: cycles that wait for memory count as idle
        utilization=layer.macs / (max(compute, memory, 1) * array.peak_macs),
        intensity=layer.macs / max(1, traffic),
    )


def estimate(
    model: Model, array: MacArray, shapes: Mapping[str, Sequence[int]] | None = None
) -> ArrayEstimate:
    """Return the cycles of every contraction; see `contractions` for `shapes` and errors."""
    # layers add up: one array runs them in turn
    graph = contractions(model, shapes)
    layers = tuple(estimate_layer(array, layer) for layer in graph.layers)
    return ArrayEstimate(array, layers, graph.skipped)


def square_array(size: int) -> MacArray:
    """Return a size x size systolic array at 1 GHz with a 128-bit bus.

    Size 16 is Gemmini's default configuration.
    """
    return MacArray(f"systolic{size}", size, size, multiple=size)


def _make_dpu(name: str, pixels: int, channels: int) -> MacArray:
    """Return a DPUCZDX8G at 300 MHz with a 64-bit DDR4-2400 memory (19.2 GB/s).

    Source of the parallelism: AMD PG338, table of architectures.
    """
    return MacArray(name, channels, channels, pixels, True, 300.0, 64.0, multiple=channels)


def _make_ethos(
    name: str, pixels: int, columns: int, clock_mhz: float, bandwidth_bytes: float
) -> MacArray:
    """Return an Ethos-U: 8 input channels per product, 32 deep or taps in groups of four.

    Block sizes and bus widths are those of Vela's default configurations. Convolutions of ResNet-8
    (CIFAR) on the U55-128 take 122,880 cycles here and 145,350 by Vela 5.2.0, at half the width
    36,864 and 48,574. Vela adds elementwise layers (an Add of 16,384 elements takes 24,576 cycles)
    and the decoding of weights, which are not modeled.
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
        _make_dpu("dpu-b512", 4, 8),
        _make_dpu("dpu-b800", 4, 10),
        _make_dpu("dpu-b1024", 8, 8),
        _make_dpu("dpu-b1152", 4, 12),
        _make_dpu("dpu-b1600", 8, 10),
        _make_dpu("dpu-b2304", 8, 12),
        _make_dpu("dpu-b3136", 8, 14),
        _make_dpu("dpu-b4096", 8, 16),
        _make_ethos("ethos-u55-32", 1, 4, 500.0, 8.0),
        _make_ethos("ethos-u55-64", 1, 8, 500.0, 8.0),
        _make_ethos("ethos-u55-128", 2, 8, 500.0, 8.0),
        _make_ethos("ethos-u55-256", 4, 8, 500.0, 8.0),
        _make_ethos("ethos-u65-256", 4, 8, 1000.0, 16.0),
        _make_ethos("ethos-u65-512", 4, 16, 1000.0, 16.0),
    )
}


def preset(name: str) -> MacArray:
    """Return the array of that name; UsageError with the nearest name if there is none."""
    if name not in PRESETS:
        raise unknown("array", name, PRESETS)
    return PRESETS[name]


# the base is lazy, so that clock and bytes are left to their own groups
_NAME = re.compile(r"(?P<base>[a-z0-9-]+?)(-(?P<mhz>\d+)mhz)?(-(?P<bytes>\d+)b)?")
_SIZE = re.compile(r"systolic(\d+)(?:x(\d+))?")


def parse_array_name(name: str) -> ArrayEngine | None:
    """Return the engine that a name describes, None for any other name.

    The name is a preset or `systolicROWSxCOLUMNS` (one number: a square array), then optionally
    `-CLOCKmhz` and `-BYTESb`, the bytes per cycle of the bus; the defaults are those of the preset,
    or 1000 and 16.

    >>> parse_array_name("systolic24x32-500mhz-8b").array.bandwidth_bytes
    8.0
    """
    parts = _NAME.fullmatch(name)
    if parts is None:
        return None
    # presets first: systolic16 is both a preset and a size
    array = PRESETS.get(parts["base"])
    size = _SIZE.fullmatch(parts["base"])
    if array is None and size is not None:
        rows, columns = int(size[1]), int(size[2] or size[1])
        array = MacArray(name, rows, columns, multiple=max(columns, 1))
    if array is None:
        return None
    # the engine keeps the name that was given, by which results are found
    clock = float(parts["mhz"] or array.clock_mhz)
    bandwidth = float(parts["bytes"] or array.bandwidth_bytes)
    return ArrayEngine(replace(array, name=name, clock_mhz=clock, bandwidth_bytes=bandwidth))


class ArrayModel(ComputedModel):
    """A graph whose time on an array is computed."""

    def __init__(self, model: Model, array: MacArray, options: EngineOptions) -> None:
        super().__init__(model)
        self.estimate = estimate(model, array, options.shapes)

    @property
    def latency_ms(self) -> float:
        """That of the estimate."""
        return self.estimate.latency_ms

    def profile(self, feeds: Mapping[str, np.ndarray], count: int) -> tuple[LayerTime, ...]:
        """Return the computed time per contraction."""
        cycles_per_ms = 1e3 * self.estimate.array.clock_mhz
        return tuple(
            LayerTime(
                layer.name,
                f"{layer.op} ({layer.bound})",
                # the larger of arithmetic and memory, so that layers sum to the latency
                layer.cycles / cycles_per_ms,
                (layer.name,),
                (layer.output,),
                layer.output,
            )
            for layer in self.estimate.layers
        )


@dataclass(frozen=True)
class ArrayEngine:
    """An array as an engine: nothing runs, the latency is that of `estimate`."""

    array: MacArray
    install: str = "part of onnxprune"

    @property
    def name(self) -> str:
        """Name of the array."""
        return self.array.name

    def available(self) -> str | None:
        """Return None: a computed engine is always available."""
        return None

    def version(self) -> str:
        """Return the sizes that the figures belong to."""
        a = self.array
        return (
            f"model of {a.rows}x{a.columns}x{a.pixels} at {a.clock_mhz:g} MHz, "
            f"{a.bandwidth_bytes:g} bytes per cycle"
        )

    def compile(self, source: Source, options: EngineOptions) -> ArrayModel:
        """Return the estimate; ModelError if a shape is not known."""
        return ArrayModel(open_model(source), self.array, options)

    def limits(self) -> Mapping[str, str]:
        """Return what the figures omit."""
        return {
            "model": (
                "computed, not measured: contractions only, all other nodes are taken as fused, "
                "operands cross the bus once"
            )
        }

    def channel_multiple(self, dtype: str = "f32") -> int:
        """Return the array's columns, or the channels that its vendor packs."""
        return self.array.multiple


def __getattr__(name: str) -> ArrayEngine:
    """Return the engine of a preset, for the registry: DPU_B512 is `dpu-b512`."""
    key = name.lower().replace("_", "-")
    # other names, such as those that import and copy look up, are no arrays
    if name != name.upper() or key not in PRESETS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return ArrayEngine(PRESETS[key])
