"""Measuring on the engine that will run the model, and handing over to those that cannot run here."""

from __future__ import annotations

from typing import Any

from onnxprune.registry import Registry


class Engines(Registry):
    """Engines by name, and modeled arrays of any size, clock and bandwidth by what the name says: `systolic24x32-500mhz-8b`."""

    def get(self, name: str) -> Any:
        """The engine; UsageError where there is no such."""
        if name not in self:
            from onnxprune.engines.cost.systolic import parse_array_name

            if (engine := parse_array_name(name)) is not None:
                return engine
        return super().get(name)


ENGINES = Engines(
    "engine",
    "onnxprune.engines",
    {
        "onnxruntime": (
            "onnxprune.engines.onnxruntime:CPU",
            "onnxruntime on the CPU; the reference for the outputs of the others",
        ),
        "onnxruntime-cuda": (
            "onnxprune.engines.onnxruntime:CUDA",
            "onnxruntime with its CUDA provider",
        ),
        "onnxruntime-tensorrt": (
            "onnxprune.engines.onnxruntime:TENSORRT",
            "onnxruntime with its TensorRT provider",
        ),
        "openvino": (
            "onnxprune.engines.openvino:ENGINE",
            "OpenVINO on the CPU, float32 pinned; bf16 on request",
        ),
        "ncnn": (
            "onnxprune.engines.ncnn:ENGINE",
            "ncnn on the CPU, in a process of its own; converted by pnnx",
        ),
        "mnn": ("onnxprune.engines.mnn:ENGINE", "MNN on the CPU"),
        "tensorrt": (
            "onnxprune.engines.tensorrt:ENGINE",
            "TensorRT 10 or 11 on an NVIDIA GPU or Jetson",
        ),
        "trtexec": ("onnxprune.engines.trtexec:ENGINE", "TensorRT by its command line tool"),
        "systolic8": (
            "onnxprune.engines.cost.systolic:SYSTOLIC8",
            "model: weight-stationary systolic array, 8 x 8, 1 GHz",
        ),
        "systolic16": (
            "onnxprune.engines.cost.systolic:SYSTOLIC16",
            "model: weight-stationary systolic array, 16 x 16, 1 GHz; any other by its name: systolic24x32-500mhz-8b",
        ),
        "systolic32": (
            "onnxprune.engines.cost.systolic:SYSTOLIC32",
            "model: weight-stationary systolic array, 32 x 32, 1 GHz",
        ),
        "gemmini": (
            "onnxprune.engines.cost.systolic:GEMMINI",
            "model: Gemmini's default 16 x 16 array",
        ),
        "dpu-b512": (
            "onnxprune.engines.cost.systolic:DPU_B512",
            "model: AMD DPUCZDX8G, size B512, 300 MHz",
        ),
        "dpu-b800": (
            "onnxprune.engines.cost.systolic:DPU_B800",
            "model: AMD DPUCZDX8G, size B800, 300 MHz",
        ),
        "dpu-b1024": (
            "onnxprune.engines.cost.systolic:DPU_B1024",
            "model: AMD DPUCZDX8G, size B1024, 300 MHz",
        ),
        "dpu-b1152": (
            "onnxprune.engines.cost.systolic:DPU_B1152",
            "model: AMD DPUCZDX8G, size B1152, 300 MHz",
        ),
        "dpu-b1600": (
            "onnxprune.engines.cost.systolic:DPU_B1600",
            "model: AMD DPUCZDX8G, size B1600, 300 MHz",
        ),
        "dpu-b2304": (
            "onnxprune.engines.cost.systolic:DPU_B2304",
            "model: AMD DPUCZDX8G, size B2304, 300 MHz",
        ),
        "dpu-b3136": (
            "onnxprune.engines.cost.systolic:DPU_B3136",
            "model: AMD DPUCZDX8G, size B3136, 300 MHz",
        ),
        "dpu-b4096": (
            "onnxprune.engines.cost.systolic:DPU_B4096",
            "model: AMD DPUCZDX8G, size B4096, 300 MHz",
        ),
        "ethos-u55-32": (
            "onnxprune.engines.cost.systolic:ETHOS_U55_32",
            "model: Arm Ethos-U55, 32 multiply-accumulates a cycle",
        ),
        "ethos-u55-64": (
            "onnxprune.engines.cost.systolic:ETHOS_U55_64",
            "model: Arm Ethos-U55, 64 multiply-accumulates a cycle",
        ),
        "ethos-u55-128": (
            "onnxprune.engines.cost.systolic:ETHOS_U55_128",
            "model: Arm Ethos-U55, 128 multiply-accumulates a cycle",
        ),
        "ethos-u55-256": (
            "onnxprune.engines.cost.systolic:ETHOS_U55_256",
            "model: Arm Ethos-U55, 256 multiply-accumulates a cycle",
        ),
        "ethos-u65-256": (
            "onnxprune.engines.cost.systolic:ETHOS_U65_256",
            "model: Arm Ethos-U65, 256 multiply-accumulates a cycle",
        ),
        "ethos-u65-512": (
            "onnxprune.engines.cost.systolic:ETHOS_U65_512",
            "model: Arm Ethos-U65, 512 multiply-accumulates a cycle",
        ),
    },
)
