"""Hand-off targets by name: devices and tool flows on machines without onnxprune."""

from __future__ import annotations

from onnxprune.registry import Registry

TARGETS = Registry(
    "hand-off target",
    "onnxprune.handoff",
    {
        "jetson": (
            "onnxprune.deploy.jetson:TARGET",
            "NVIDIA Jetson: latency by trtexec or TensorRT's Python bindings (8 to 11), power by "
            "tegrastats, DLA compatibility checks",
        ),
        "remote": (
            "onnxprune.deploy.targets.remote:TARGET",
            "any machine with Python: latency by its onnxruntime or OpenVINO",
        ),
        "hls4ml": (
            "onnxprune.deploy.targets.hls4ml:TARGET",
            "hls4ml: C++ simulation with g++; synthesis if Vitis HLS is installed",
        ),
        "nngen": (
            "onnxprune.deploy.targets.nngen:TARGET",
            "NNgen: Verilog; clock cycles by Icarus Verilog",
        ),
        "finn": (
            "onnxprune.deploy.targets.finn:TARGET",
            "FINN: dataflow accelerator with a folding configuration",
        ),
        "vitis-ai": (
            "onnxprune.deploy.targets.vitis_ai:TARGET",
            "AMD Vitis AI: quantize and compile for a DPUCZDX8G",
        ),
        "gemmini": (
            "onnxprune.deploy.targets.gemmini:TARGET",
            "Gemmini: onnxruntime-riscv in spike or FireSim",
        ),
        "vela": (
            "onnxprune.deploy.targets.vela:TARGET",
            "Arm Ethos-U: int8 TFLite by onnx2tf, compiled by Vela",
        ),
    },
)
