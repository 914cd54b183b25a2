"""Small worlds: an operator between products that give every axis its freedom.

Each operand is computed by `Einsum("i,iabc->abc", x, W)`, so that every axis of it can be cut from
W, and each output is consumed by `Einsum("abc,abco->o", t, V)`. What is frozen in such a graph is
frozen by the operator. Values are integers or small multiples of powers of two, so that float64
holds every sum and product exactly, whatever its order.
"""

from __future__ import annotations

import itertools
import math
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

LENGTHS = (1, 2, 3)  # of every axis
INPUT, PROVED = "x", "proved"  # graph input; name of the node under proof
FEED = (1.0, 2.0)  # positive, so that positive weights give positive operands
COMPUTED, CONSTANT, SHARED = "computed", "constant", "shared"  # operands, see Graph
WIDTH = 2  # outputs of a consuming product
IR_VERSION = 10
OPSET = 21
_LETTERS = "abcdefgh"

Array = Any  # what numpy makes an array of
Build = Callable[["Graph", SimpleNamespace], Sequence[str] | str | None]


def shapes(*ranks: int, lengths: Sequence[int] = LENGTHS) -> list[tuple[int, ...]]:
    """Return all shapes of these ranks."""
    return [s for rank in ranks for s in itertools.product(lengths, repeat=rank)]


class Graph:
    """A graph that is built node by node.

    Attributes
    ----------
    dtype
        Element type of floats: float64 for the reference evaluator, float32 for onnxruntime.
    opset
        Version of the standard operator set.
    mode
        COMPUTED: an operand is computed from the input. CONSTANT: it is a weight, so that the
        operator runs on weights alone. SHARED: operands of one shape are one computed tensor.
    shares
        Whether an operand is used twice.
    """

    def __init__(
        self, seed: int, dtype: type[np.floating], opset: int, mode: str = COMPUTED
    ) -> None:
        self.dtype, self.opset, self.mode = dtype, opset, mode
        self.shares = False
        self._operands: dict[tuple[object, ...], str] = {}
        self.rng = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self.domains: set[str] = set()
        self.outputs: list[str] = []

    @property
    def float_type(self) -> int:
        """Element type of floats, as ONNX numbers it."""
        return int(helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype)))

    def constant(self, values: Array, dtype: Any = None) -> str:
        """Add an initializer; return its name."""
        name = f"w{len(self.weights)}"
        array = np.asarray(values, self.dtype if dtype is None else dtype)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def integers(self, *values: int) -> str:
        """Add a list of int64, such as axes or sizes."""
        return self.constant(values, np.int64)

    def weight(
        self,
        shape: Sequence[int],
        low: int = -4,
        high: int = 5,
        scale: float = 1,
        dtype: Any = None,
    ) -> str:
        """Add a weight of random integers in [low, high) times a power of two."""
        return self.constant(self.rng.integers(low, high, tuple(shape)) * scale, dtype)

    def free(self, shape: Sequence[int], low: int = -4, high: int = 5, scale: float = 1) -> str:
        """Compute a tensor whose axes can all be cut; its values are in 3 * [low, high) * scale."""
        if self.mode == CONSTANT:
            return self.weight(shape, low, high, scale)
        key = (tuple(shape), low, high, scale)
        if self.mode == SHARED and key in self._operands:
            self.shares = True
            return self._operands[key]
        letters = _LETTERS[: len(shape)]
        weight = self.weight((len(FEED), *shape), low, high, scale)
        tensor = self.node("Einsum", INPUT, weight, name="", equation=f"i,i{letters}->{letters}")
        self._operands[key] = tensor
        return tensor

    def cast(self, tensor: str, to: int) -> str:
        """Convert the elements of a tensor."""
        return self.node("Cast", tensor, name="", to=to)

    def node(
        self, op: str, *inputs: str, name: str = PROVED, domain: str = "", **attributes: Any
    ) -> str:
        """Add a node of one output; return the output."""
        return self.node_of(1, op, *inputs, name=name, domain=domain, **attributes)[0]

    def node_of(
        self,
        outputs: int,
        op: str,
        *inputs: str,
        name: str = PROVED,
        domain: str = "",
        **attributes: Any,
    ) -> list[str]:
        """Add a node; return its outputs. Attributes of None are left out."""
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        given = {k: v for k, v in attributes.items() if v is not None}
        label = name or f"n{len(self.nodes)}"
        operands = list(inputs)
        while operands and not operands[-1]:
            operands.pop()
        self.nodes.append(helper.make_node(op, operands, names, label, domain=domain, **given))
        self.domains.add(domain)
        return names

    def consume(self, tensor: str, value: np.ndarray) -> None:
        """Multiply a tensor by a weight along all axes; the products are an output of the graph."""
        if value.dtype != self.dtype:
            tensor = self.cast(tensor, self.float_type)
        letters = _LETTERS[: value.ndim]
        weight = self.weight((*value.shape, WIDTH), -9, 10)
        if self.mode == CONSTANT:  # then the result is the weight of a product
            product = f"i,{letters}->{letters}"
            tensor = self.node("Einsum", INPUT, tensor, name="", equation=product)
        equation = f"{letters},{letters}o->o"
        self.outputs.append(self.node("Einsum", tensor, weight, name="", equation=equation))

    def model(self, outputs: Sequence[str] = ()) -> ModelProto:
        """Return the graph; `outputs` replace those of the consuming products."""
        infos = [helper.make_tensor_value_info(INPUT, self.float_type, [len(FEED)])]
        if outputs:
            results = [helper.make_empty_tensor_value_info(name) for name in outputs]
        else:
            results = [
                helper.make_tensor_value_info(n, self.float_type, [WIDTH]) for n in self.outputs
            ]
        graph = helper.make_graph(self.nodes, "world", infos, results, self.weights)
        imports = [helper.make_opsetid("", self.opset)]
        imports += [helper.make_opsetid(d, 1) for d in sorted(self.domains - {""})]
        return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)


@dataclass(frozen=True)
class Space:
    """All worlds of a row: a graph per combination of choices.

    Attributes
    ----------
    ops
        Operators of the rule table that the worlds are for.
    build
        Adds the node under proof to a graph and returns the outputs to consume; None if the
        choices do not go together.
    choices
        Name -> values. "opset" is that of the graph; "op" is set to the operator.
    exact
        Operators whose cut must equal the masked original to the bit.
    runtime
        Evaluator: "reference" (float64), or "onnxruntime" (float32) for operators that are not
        in the standard.
    tolerances
        Operator -> relative tolerance, where it is not that of the evaluator.
    """

    ops: tuple[str, ...]
    build: Build
    choices: Mapping[str, Sequence[Any]]
    exact: frozenset[str] = frozenset()
    runtime: str = "reference"
    tolerances: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of combinations per operator."""
        return math.prod(map(len, self.choices.values()))

    def at(self, op: str, index: int) -> SimpleNamespace:
        """Return a combination of choices by its number."""
        picked: dict[str, Any] = {"op": op}
        for name, values in self.choices.items():
            index, place = divmod(index, len(values))
            picked[name] = values[place]
        return SimpleNamespace(**picked)

    def combinations(self, op: str, limit: int) -> Iterator[SimpleNamespace]:
        """Yield all combinations, in random order if there are more than `limit`.

        The caller stops at the limit, as it does not count combinations that do not go together.
        """
        if len(self) <= limit:
            order: Iterator[int] = iter(range(len(self)))
        else:
            order = _draw(len(self), random.Random(zlib.crc32(op.encode())))
        for index in order:
            yield self.at(op, index)


def _draw(count: int, draw: random.Random) -> Iterator[int]:
    """Yield all numbers below `count` in random order, without a list of them."""
    seen: set[int] = set()
    while len(seen) < count:
        index = draw.randrange(count)
        if index not in seen:
            seen.add(index)
            yield index


@dataclass(frozen=True)
class World:
    """One graph to prove.

    Attributes
    ----------
    op
        Operator under proof.
    choices
        What it was built from, in words.
    model
        The graph.
    original
        What it computes.
    tolerance
        Largest difference, relative to the largest value of an output; 0 demands equal bits. None
        is that of the evaluator.
    runtime
        Evaluator.
    """

    op: str
    choices: str
    model: ModelProto = field(repr=False)
    original: list[np.ndarray] = field(repr=False)
    tolerance: float | None
    runtime: str


def space(
    ops: str,
    exact: str | bool = "",
    runtime: str = "reference",
    tolerances: Mapping[str, float] | None = None,
    **choices: Sequence[Any],
) -> Callable[[Build], Space]:
    """Return a decorator that makes a Space of a function that builds graphs.

    Parameters
    ----------
    ops
        Operators, split on whitespace.
    exact
        Those of them that are demanded to the bit; True for all.
    runtime
        Evaluator.
    tolerances
        Operator -> tolerance, see `Space`.
    choices
        Values per parameter of the function.
    """
    names = tuple(ops.split())
    bits = names if exact is True else tuple(str(exact or "").split())

    def wrap(build: Build) -> Space:
        return Space(names, build, choices, frozenset(bits), runtime, tolerances or {})

    return wrap
