"""What a rule of the backward table is given: one forward node, and the gradients of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto

from onnxprune.autodiff.tape import Tape, Value
from onnxprune.ir.nodes import attribute


class NoGradient(Exception):
    """A rule cannot say what the gradient of this node is; the message says why. Caught by the builder, never shown as an error."""


@dataclass(frozen=True)
class Step:
    """One node on the way back.

    inputs, outputs: None where a name is empty or the shape unknown; grads: of the outputs, None where nothing flows;
    needs: inputs whose gradient is asked for; known: the value of an input, None where it depends on the data.
    """

    node: NodeProto
    tape: Tape = field(repr=False)
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value | None, ...]
    grads: tuple[Value | None, ...]
    needs: tuple[bool, ...]
    known: Callable[[int], np.ndarray | None] = field(repr=False)

    @property
    def grad(self) -> Value:
        """Gradient of the first output."""
        if self.grads[0] is None:
            raise NoGradient("only a secondary output is used")
        return self.grads[0]

    @property
    def x(self) -> Value:
        """The first input."""
        return self.operand(0)

    @property
    def y(self) -> Value:
        """The first output."""
        value = self.outputs[0]
        if value is None:
            raise NoGradient("the shape of the output is not known")
        return value

    def operand(self, index: int) -> Value:
        """An input that must be there."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise NoGradient(f"input {index} is absent or its shape is not known")
        return value

    def optional(self, index: int) -> Value | None:
        """An input that may be absent."""
        return (
            self.inputs[index] if index < len(self.node.input) and self.node.input[index] else None
        )

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute of the node."""
        return attribute(self.node, name, default)

    def numbers(
        self, index: int, name: str = "", default: Sequence[float] | None = None
    ) -> list[Any] | None:
        """A list that is an input in new opsets and an attribute in old ones, such as axes or pads."""
        if index < len(self.node.input) and self.node.input[index]:
            value = self.known(index)
            if value is None:
                raise NoGradient(f"input {index} ({self.node.input[index]}) depends on the data")
            return np.asarray(value).ravel().tolist()
        found = self.attribute(name) if name else None
        if isinstance(found, float):
            return [found]
        return list(found) if found is not None else None if default is None else list(default)

    def only_first(self) -> None:
        """Refuse where an input other than the first needs a gradient."""
        if any(self.needs[1:]):
            wanted = [n for n, need in zip(self.node.input, self.needs, strict=False) if need]
            raise NoGradient(
                f"the gradient of a parameter that is computed from data is not supported ({wanted[-1]})"
            )


Rule = Callable[[Step], Sequence[Value | None]]
