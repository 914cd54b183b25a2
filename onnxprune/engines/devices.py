"""Devices that models are pruned for: multiples of channels with their evidence, and their tools.

Each figure says where it comes from; `onnxprune devices` prints the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from onnxprune.errors import unknown

HERE = "measured here"
_TENSORRT = (
    "https://docs.nvidia.com/deeplearning/tensorrt/latest/performance/best-practices.html "
    "(optimizing for tensor cores)"
)
_DLA = (
    "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/"
    "dla-layer-restrictions.html"
)
_NEON = "width of a 128-bit NEON register; not measured"
_NONE = "no published figure found: the default of --round-to"


@dataclass(frozen=True)
class Multiple:
    """Channels that a device computes at once.

    Attributes
    ----------
    channels
        The multiple.
    evidence
        Where the figure comes from.
    """

    channels: int
    evidence: str


@dataclass(frozen=True)
class Device:
    """A device or class of CPUs.

    Attributes
    ----------
    name, title
        Name on the command line, name in sentences.
    multiples
        Precision -> multiple.
    precision
        Precision whose multiple holds for those that are not listed.
    handoff
        Target of `onnxprune handoff`, whose table holds the supported operators; "" = none.
    engine
        Engine that measures or models it on this machine; "" = none.
    sparse
        Whether it has sparse tensor cores.
    """

    name: str
    title: str
    multiples: Mapping[str, Multiple] = field(default_factory=dict)
    precision: str = "f32"
    handoff: str = ""
    engine: str = ""
    sparse: bool = False

    def channel_multiple(self, precision: str) -> int:
        """Return the multiple at a precision, else at the device's usual one."""
        return self.multiples.get(precision, self.multiples[self.precision]).channels


def _tensor_cores(name: str, title: str, sparse: bool) -> Device:
    """Return a Jetson whose GPU runs the model."""
    multiples = {"f16": Multiple(8, _TENSORRT), "int8": Multiple(32, _TENSORRT)}
    return Device(name, title, multiples, "f16", "jetson", sparse=sparse)


def _x86(name: str, title: str, lanes: int, evidence: str, int8: Multiple) -> Device:
    """Return a class of CPUs that onnxruntime runs on."""
    multiples = {"f32": Multiple(lanes, evidence), "int8": int8}
    return Device(name, title, multiples, handoff="remote", engine="onnxruntime")


_STAIRCASE = f"{HERE}: a 3x3 convolution of 31 channels takes 2.1 times as long as one of 32"
_VNNI = Multiple(4, f"{HERE}: U8S8 convolutions of 33 channels take 2.5 times as long as of 32")
_BLOCKED = "block of onnxruntime's NCHWc layout on AVX2; not measured"
_AS_FLOAT = "as float32; not measured"
_DPU = "AMD PG338, table of architectures"

DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        _tensor_cores("jetson-orin-nano", "Jetson Orin Nano", True),
        _tensor_cores("jetson-orin-nx", "Jetson Orin NX", True),
        _tensor_cores("jetson-agx-orin", "Jetson AGX Orin", True),
        Device(
            "jetson-agx-orin-dla",
            "Jetson AGX Orin, DLA core",
            {"f16": Multiple(16, _DLA), "int8": Multiple(32, _DLA)},
            "f16",
            "jetson",
        ),
        _tensor_cores("jetson-xavier", "Jetson Xavier (NX or AGX)", False),
        replace(
            _tensor_cores("gpu-ampere", "NVIDIA GPU from Ampere on, TensorRT", True),
            handoff="",
            engine="tensorrt",
        ),
        Device(
            "rpi5",
            "Raspberry Pi 5 (Cortex-A76)",
            {"f32": Multiple(4, _NEON), "f16": Multiple(8, _NEON), "int8": Multiple(16, _NEON)},
            handoff="remote",
        ),
        _x86("x86-avx2", "x86 with AVX2", 8, _BLOCKED, Multiple(8, _AS_FLOAT)),
        _x86("x86-avx512", "x86 with AVX-512", 16, _STAIRCASE, Multiple(16, _AS_FLOAT)),
        _x86("x86-vnni", "x86 with AVX-512 VNNI", 16, _STAIRCASE, _VNNI),
        Device(
            "ethos-u55",
            "Arm Ethos-U55",
            {"int8": Multiple(16, f"{HERE} by Vela 5.2: width 12 takes 87 to 92 % of 16")},
            "int8",
            "vela",
            "ethos-u55-128",
        ),
        Device(
            "ethos-u65",
            "Arm Ethos-U65",
            {"int8": Multiple(16, "as Ethos-U55, whose blocks it has; not measured")},
            "int8",
            "vela",
            "ethos-u65-256",
        ),
        Device(
            "dpu-b4096",
            "AMD DPUCZDX8G B4096",
            {"int8": Multiple(16, _DPU)},
            "int8",
            "vitis-ai",
            "dpu-b4096",
        ),
        Device(
            "dpu-b1152",
            "AMD DPUCZDX8G B1152",
            {"int8": Multiple(12, _DPU)},
            "int8",
            "vitis-ai",
            "dpu-b1152",
        ),
        Device("hailo8", "Hailo-8", {"int8": Multiple(8, _NONE)}, "int8"),
        Device(
            "rknn-rk3588",
            "Rockchip RK3588 NPU",
            {
                "int8": Multiple(
                    16,
                    "block c2 of the native layout NC1HWC2, "
                    "https://docs.rs/rknn-runtime/0.1.1/rknn_runtime/tensor/"
                    "struct.Nc1hwc2Layout.html; not measured",
                )
            },
            "int8",
        ),
    )
}


def get_device(name: str) -> Device:
    """Return the device of that name; UsageError with the nearest name if there is none."""
    if name not in DEVICES:
        raise unknown("device", name, DEVICES)
    return DEVICES[name]
