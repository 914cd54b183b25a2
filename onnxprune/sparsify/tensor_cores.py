"""Whether a 2:4 pattern pays on sparse tensor cores.

Statements of TensorRT's maintainers: sparse kernels are faster than dense ones from about 256
input and output channels on, where the taps of a kernel multiply the inputs (NVIDIA/TensorRT#3849,
#4065); end to end most convolutional networks gain less than 15 % (#2310); with QuantizeLinear and
DequantizeLinear no sparse kernel was chosen (#4694, a user's report).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from onnxprune.engines.devices import DEVICES, Device
from onnxprune.errors import plural
from onnxprune.ir.io import Model
from onnxprune.sparsify.report import TensorSparsity

LEAST_CHANNELS = (
    256  # of inputs times taps, and of outputs, from which on sparse kernels are faster
)
SOURCES = "NVIDIA/TensorRT issues 3849, 4065, 2310"
PATTERN = "2:4"


def pattern_warnings(
    model: Model, tensors: Iterable[TensorSparsity], pattern: str, device: Device | None = None
) -> Iterator[str]:
    """Yield why a pattern will not save time, as far as the device and the layers show it.

    Parameters
    ----------
    tensors
        Weights of the model, with their zeros.
    pattern
        Such as "2:4".
    device
        Device that will run the model; None = unknown.
    """
    if pattern != PATTERN:
        yield f"sparse tensor cores compute {PATTERN} patterns only, not {pattern}"
        return
    if device is not None and not device.sparse:
        known = ", ".join(d.name for d in DEVICES.values() if d.sparse)
        yield (
            f"{device.title} has no sparse tensor cores: the pattern saves no time there "
            f"(devices with them: {known})"
        )
        return
    patterned = [row for row in tensors if 2 * row.zeros >= row.size]
    small = [row for row in patterned if not _is_large(model, row)]
    if small:
        listed = ", ".join(row.tensor for row in small[:3])
        yield (
            f"{len(small)} of {plural(len(patterned), 'layer')} with the pattern have fewer than "
            f"{LEAST_CHANNELS} outputs, or inputs times taps, where dense kernels are as fast "
            f"({listed}{', ...' if len(small) > 3 else ''}); most convolutional networks gain at "
            f"most 15 % in all ({SOURCES})"
        )
    if any(node.op_type == "DequantizeLinear" for node in model.proto.graph.node):
        yield (
            "TensorRT was seen to choose no sparse kernels in graphs with QuantizeLinear and "
            "DequantizeLinear (NVIDIA/TensorRT issue 4694)"
        )


def _is_large(model: Model, row: TensorSparsity) -> bool:
    """Return whether sparse kernels are expected to be faster than dense ones."""
    values = math.prod(model.weights[row.tensor].shape)
    # of a weight, what is not outputs is inputs times taps
    return row.outputs >= LEAST_CHANNELS and values // max(row.outputs, 1) >= LEAST_CHANNELS
