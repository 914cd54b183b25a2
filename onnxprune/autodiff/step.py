"""Arguments of a gradient rule: one forward node and the gradients of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto

from onnxprune.autodiff.tape import Tape, Value
from onnxprune.ir.nodes import attribute


class NoGradient(Exception):
    """Raised by a rule that has no gradient for this node, with the reason.

    The builder catches it and reports the node as blocked.
    """


@dataclass(frozen=True)
class BackwardStep:
    """One node of the backward pass.

    Attributes
    ----------
    node : NodeProto
        Forward node.
    tape : Tape
        Receives the nodes of the backward graph.
    inputs, outputs : tuple of Value or None
        None if the name is empty or the shape unknown.
    grads : tuple of Value or None
        Gradients of the outputs; None = the loss does not depend on the output.
    needs : tuple of bool
        True for inputs whose gradient is needed.
    known : function
        Input index -> its value, None if it depends on the data.
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
        """Return an input; raise NoGradient if it is absent."""
        # optional inputs at the end may be absent from the list
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise NoGradient(f"input {index} is absent or its shape is not known")
        return value

    def optional(self, index: int) -> Value | None:
        """Return an optional input, None if it is absent."""
        if index >= len(self.node.input) or not self.node.input[index]:
            return None
        return self.inputs[index]

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute of the node, or the default."""
        return attribute(self.node, name, default)

    def numbers(
        self, index: int, name: str = "", default: Sequence[float] | None = None
    ) -> list[Any] | None:
        """Return a list that is an input in new opsets and an attribute in old ones.

        Parameters
        ----------
        index
            Position of the input.
        name
            Name of the attribute; "" = there is none.
        default
            Value if both are absent.

        Raises
        ------
        NoGradient
            The input depends on the data.
        """
        if index < len(self.node.input) and self.node.input[index]:
            value = self.known(index)
            if value is None:
                raise NoGradient(f"input {index} ({self.node.input[index]}) depends on the data")
            return np.asarray(value).ravel().tolist()
        numbers = self.attribute(name, default) if name else default
        # Clip before opset 11 has single numbers
        if isinstance(numbers, float):
            return [numbers]
        return None if numbers is None else list(numbers)

    def only_first(self) -> None:
        """Raise NoGradient if an input other than the first needs a gradient."""
        if any(self.needs[1:]):
            names = [n for n, need in zip(self.node.input, self.needs, strict=True) if need]
            raise NoGradient(
                "the gradient of a parameter that is computed from data is not supported "
                f"({names[-1]})"
            )


# returns one gradient per input; None = not needed
Rule = Callable[[BackwardStep], Sequence[Value | None]]
