"""Conversion of an ONNX graph to a differentiable torch module, and of its values back.

Nothing is exported again: the parameters are the graph's own initializers, by name. An operator is
a row of `ops.OPS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import helper

from onnxprune.errors import DataError, ModelError
from onnxprune.ir.io import Model
from onnxprune.ir.weights import ArrayWeight
from onnxprune.tune.call import Tensor, torch
from onnxprune.tune.ops_shape import from_numpy
from onnxprune.tune.prepared_graph import NO_GATES, Gates, PreparedGraph, prepare_graph, run_nodes

Transform = Callable[[str, Tensor], Tensor]


class OnnxModule(torch.nn.Module):
    """A graph that runs in torch, built by `to_module`.

    Attributes
    ----------
    names : tuple of str
        Initializers that are parameters, in the order of `parameters()`.
    statistics : tuple of str
        Running means and variances of BatchNormalization: buffers, updated in training mode.
    transform : function or None
        (initializer name, parameter) -> value used in the forward pass; masks weights. `values`
        returns transformed values.
    gates : mapping
        (node name, input position) -> function applied to that input; masks activations.
    """

    def __init__(self, graph: PreparedGraph) -> None:
        super().__init__()
        self.steps, self.inputs, self.outputs = graph.steps, graph.inputs, graph.outputs
        self.names = tuple(n for n in graph.values if n in graph.trainable)
        self.statistics = tuple(n for n in graph.values if n in graph.running)
        self.weights = torch.nn.ParameterList(
            [torch.nn.Parameter(graph.values[n]) for n in self.names]
        )
        for i, name in enumerate(self.statistics):
            # names of buffers must not contain dots, those of tensors may
            self.register_buffer(f"statistic{i}", graph.values[name].clone())
        self.constants = {
            n: v for n, v in graph.values.items() if n not in graph.trainable | graph.running
        }
        self.transform: Transform | None = None
        self.gates: Gates = NO_GATES
        self._batch, self._mode = graph.batch, graph.mode

    @property
    def declared_batch(self) -> int:
        """Batch size that the graph's input declares; 0 if it is dynamic."""
        return self._batch.declared

    def named(self) -> dict[str, Tensor]:
        """Return the parameters by initializer name."""
        return dict(zip(self.names, self.weights, strict=True))

    def buffers_by_name(self) -> dict[str, Tensor]:
        """Return the running statistics by initializer name."""
        return {n: getattr(self, f"statistic{i}") for i, n in enumerate(self.statistics)}

    def forward(
        self, feeds: Mapping[str, Tensor] | Tensor, outputs: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Run the graph.

        Parameters
        ----------
        feeds
            Input tensors by name, or the single input; any batch size.
        outputs
            Tensors to return, inner ones included; None = the graph's outputs.
        """
        feeds = {self.inputs[0]: feeds} if isinstance(feeds, torch.Tensor) else feeds
        missing = [n for n in self.inputs if n not in feeds]
        if missing:
            given = ", ".join(map(repr, feeds)) or "nothing"
            raise DataError(
                "data-input",
                f"the graph reads {', '.join(map(repr, missing))}, the data has {given}",
            )
        names = tuple(self.outputs if outputs is None else outputs)
        self._mode["training"] = self.training
        self._set_batch(feeds)
        env: dict[str, Tensor] = {
            **self.constants,
            **self.buffers_by_name(),
            **self._compute_effective(),
        }
        for name, value in feeds.items():
            # initializers in half precision became float32 parameters: inputs must match them
            half = value.dtype in (torch.float16, torch.bfloat16)
            env[name] = value.float() if half else value
        # the recording pass needs shapes only
        gates = NO_GATES if self._batch.recording else self.gates
        run_nodes(self.steps, env, frozenset(names), gates)
        unknown = [n for n in names if n not in env]
        if unknown:
            raise ModelError("tensor-unknown", f"the graph has no tensor {unknown[0]!r}")
        return {n: env[n] for n in names}

    def _compute_effective(self) -> dict[str, Tensor]:
        """Return the parameters as the forward pass uses them."""
        if self.transform is None:
            return self.named()
        return {n: self.transform(n, w) for n, w in self.named().items()}

    def _set_batch(self, feeds: Mapping[str, Tensor]) -> None:
        """Record the batch size.

        If the graph declares another one, it runs once at its own size, which shows the shapes
        that its literals stand for.
        """
        batch, shapes = self._batch, tuple(tuple(feeds[n].shape[1:]) for n in self.inputs)
        batch.actual = feeds[self.inputs[0]].shape[0] if feeds and feeds[self.inputs[0]].ndim else 0
        if not batch.rebased or batch.inputs == shapes or batch.recording:
            return
        actual, training = batch.actual, self._mode["training"]
        # in training mode the pass would update running statistics with zeros
        batch.recording, self.training = True, False
        zeros = {n: v.new_zeros(batch.declared, *v.shape[1:]) for n, v in feeds.items()}
        try:
            with torch.no_grad():
                self.forward(zeros, ())
        finally:
            batch.recording, batch.actual = False, actual
            self.training = self._mode["training"] = training
        # literals depend on spatial sizes too: a new input shape is recorded anew
        batch.inputs = shapes

    def values(self) -> dict[str, np.ndarray]:
        """Return parameters and running statistics by initializer name, float32 or float64."""
        with torch.no_grad():
            # copies, because the arrays would share memory with the parameters
            tensors = {**self._compute_effective(), **self.buffers_by_name()}
            return {n: t.detach().cpu().numpy().copy() for n, t in tensors.items()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OnnxModule:
        """Move float constants too; scalars, shapes and indices stay on the host."""
        super()._apply(fn, recurse)
        self.constants = {
            n: fn(v) if v.is_floating_point() and v.ndim else v for n, v in self.constants.items()
        }
        return self


def to_module(model: Model) -> OnnxModule:
    """Convert the graph of `model` to torch, in inference mode.

    Float initializers with a gradient (weights, biases, scales, tables) are parameters, running
    statistics are buffers; shapes, indices, limits and the scalars of formulas are constants.
    Half precision is computed in float32.

    Raises
    ------
    ModelError
        An operator without a row, named with its node.
    """
    return OnnxModule(prepare_graph(model)).eval()


def write_back(model: Model, module: OnnxModule) -> Model:
    """Return `model` with the module's values: same graph, same names, same types."""
    weights = dict(model.weights)
    for name, value in module.values().items():
        weight = weights[name]
        dtype = helper.tensor_dtype_to_np_dtype(weight.dtype)
        weights[name] = ArrayWeight(weight.dtype, value.astype(dtype).reshape(weight.shape))
    return replace(model, weights=weights)


def as_feeds(value: Any, module: OnnxModule) -> dict[str, Tensor]:
    """Return arrays by input name, or the single array, as tensors on the module's device."""
    # a module without parameters is on the host
    device = next(iter(module.parameters()), torch.empty(0)).device
    arrays = {module.inputs[0]: value} if isinstance(value, np.ndarray) else value
    return {
        n: from_numpy(np.asarray(a)).to(device) for n, a in arrays.items() if n in module.inputs
    }
