"""Inference engines that models are measured on, by name."""

from __future__ import annotations

from typing import Any

from onnxprune.registry import Registry


class Engines(Registry):
    """Registry of engines; others by form: `systolic24x32`, `remote:HOST`, `table:FILE`."""

    def get(self, name: str) -> Any:
        """Return the engine of that name.

        Raises
        ------
        UsageError
            The name is neither registered nor describes an array, a host or a table.
        """
        # imported here: most names need neither, and the table must stay cheap to import
        if name not in self:
            if name.startswith("remote:"):
                from onnxprune.engines.remote import parse_remote_name

                return parse_remote_name(name)
            if name.startswith("table:"):
                from onnxprune.engines.cost.table import parse_table_name

                return parse_table_name(name)
            from onnxprune.engines.cost.systolic import parse_array_name

            engine = parse_array_name(name)
            if engine is not None:
                return engine
        return super().get(name)


_MEASURED = {
    "onnxruntime": (
        "onnxprune.engines.onnxruntime:CPU",
        "onnxruntime on the CPU; outputs of other engines are compared with it",
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
        "OpenVINO on the CPU in float32; bfloat16 with --precision bf16",
    ),
    "ncnn": (
        "onnxprune.engines.ncnn:ENGINE",
        "ncnn on the CPU in a separate process; models are converted by pnnx",
    ),
    "mnn": ("onnxprune.engines.mnn:ENGINE", "MNN on the CPU"),
    "tensorrt": (
        "onnxprune.engines.tensorrt:ENGINE",
        "TensorRT 10 or 11 on an NVIDIA GPU or Jetson, by its Python bindings",
    ),
    "trtexec": ("onnxprune.engines.trtexec:ENGINE", "TensorRT by its command line tool trtexec"),
}

# latency is computed from the shapes; nothing runs
_COMPUTED = {
    "systolic8": "weight-stationary systolic array, 8 x 8, 1 GHz",
    "systolic16": (
        "weight-stationary systolic array, 16 x 16, 1 GHz; "
        "other sizes by name, e.g. systolic24x32-500mhz-8b"
    ),
    "systolic32": "weight-stationary systolic array, 32 x 32, 1 GHz",
    "gemmini": "Gemmini's default 16 x 16 array",
    "dpu-b512": "AMD DPUCZDX8G, size B512, 300 MHz",
    "dpu-b800": "AMD DPUCZDX8G, size B800, 300 MHz",
    "dpu-b1024": "AMD DPUCZDX8G, size B1024, 300 MHz",
    "dpu-b1152": "AMD DPUCZDX8G, size B1152, 300 MHz",
    "dpu-b1600": "AMD DPUCZDX8G, size B1600, 300 MHz",
    "dpu-b2304": "AMD DPUCZDX8G, size B2304, 300 MHz",
    "dpu-b3136": "AMD DPUCZDX8G, size B3136, 300 MHz",
    "dpu-b4096": "AMD DPUCZDX8G, size B4096, 300 MHz",
    "ethos-u55-32": "Arm Ethos-U55, 32 MACs per cycle",
    "ethos-u55-64": "Arm Ethos-U55, 64 MACs per cycle",
    "ethos-u55-128": "Arm Ethos-U55, 128 MACs per cycle",
    "ethos-u55-256": "Arm Ethos-U55, 256 MACs per cycle",
    "ethos-u65-256": "Arm Ethos-U65, 256 MACs per cycle",
    "ethos-u65-512": "Arm Ethos-U65, 512 MACs per cycle",
}


def _locate(name: str) -> str:
    """Return where the registry finds a computed array."""
    return f"onnxprune.engines.cost.systolic:{name.upper().replace('-', '_')}"


ENGINES = Engines(
    "engine",
    "onnxprune.engines",
    {
        **_MEASURED,
        **{name: (_locate(name), f"computed: {text}") for name, text in _COMPUTED.items()},
    },
)
