"""One operator with its inputs, as a model, for tests of gradient rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import ModelProto, helper, numpy_helper

IMAGE = (2, 4, 6, 8)


@dataclass(frozen=True)
class Case:
    """One operator with its inputs.

    Attributes
    ----------
    op, attributes, opset
        Operator, attributes and opset of the node.
    data
        Shapes of the inputs that vary.
    constants
        Following inputs; "" = absent.
    positive
        Draw data from (0.2, 1.2).
    outputs, head
        Number of outputs, and the one that is differentiated.
    note
        Distinguishes cases of one operator.
    mixed
        Axis 0 does not hold samples.
    """

    op: str
    data: Sequence[Sequence[int]] = (IMAGE,)
    constants: Sequence[Any] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 17
    positive: bool = False
    outputs: int = 1
    head: int = 0
    note: str = ""
    mixed: bool = False

    @property
    def samples(self) -> int:
        """Number of samples with gradients of their own."""
        first = {shape[0] for shape in self.data}
        return first.pop() if len(first) == 1 and not self.mixed else 1

    def __str__(self) -> str:
        return "-".join(map(str, filter(None, (self.op, self.note, self.opset))))

    def model(self, dtype: type = np.float32) -> ModelProto:
        """Build x0, x1... -> op -> y0, y1...; all float constants in `dtype`."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        inputs = [f"x{i}" for i in range(len(self.data))]
        infos = [
            helper.make_tensor_value_info(n, kind, list(s))
            for n, s in zip(inputs, self.data, strict=True)
        ]
        names, initializers = list(inputs), []
        for i, value in enumerate(self.constants):
            names.append("" if isinstance(value, str) else f"c{i}")
            if not isinstance(value, str):
                array = np.asarray(value)
                if array.dtype.kind == "f" and not self._fixed:
                    array = array.astype(dtype)
                initializers.append(numpy_helper.from_array(array, f"c{i}"))
        outputs = [f"y{i}" for i in range(self.outputs)]
        node = helper.make_node(self.op, names, outputs, name="node", **self.attributes)
        head = outputs[self.head]
        graph = helper.make_graph(
            [node], "case", infos, [helper.make_empty_tensor_value_info(head)], initializers
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self.opset)],
            ir_version=8 if self.opset < 22 else 11,
        )

    @property
    def _fixed(self) -> bool:
        """True if the type of constants does not follow the data."""
        return self.op in ("Resize", "Upsample")

    def feeds(self) -> dict[str, np.ndarray]:
        """Draw float64 values, none within 1e-3 of an integer, where operators have kinks."""
        generator = np.random.default_rng(0)
        values = {}
        for i, shape in enumerate(self.data):
            if self.positive:
                x = generator.uniform(0.2, 1.2, shape)
            else:
                x = generator.standard_normal(shape) * 2
            near = np.abs(x - np.round(x)) < 1e-3
            values[f"x{i}"] = np.where(near, x + 0.01, x).astype(np.float32).astype(np.float64)
        return values


def weight(*shape: int) -> np.ndarray:
    """Draw normal values."""
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)
