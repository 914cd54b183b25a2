"""Execution by onnxruntime, for statistics and checks; latency is measured in `engines`."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from onnx import TensorProto, helper

from onnxprune.errors import ModelError
from onnxprune.ir.dictated import input_shapes
from onnxprune.ir.input_ranges import integer_ranges
from onnxprune.ir.io import INLINE_BYTES, serialize, to_bytes
from onnxprune.ir.model import EditableModel, ModelView
from onnxprune.ir.nodes import nested
from onnxprune.ir.weights import size_bytes
from onnxprune.parallel import ordered_map

Feeds = TypeVar("Feeds", bound=Mapping[str, np.ndarray])

# of one run of a model with a Loop, whose trip count a file can set to anything
LOOP_LIMIT_S = 8.0
SHARED_BYTES = 1_000_000  # of weights; a session from one message copies them several times
# of weights that numpy holds as onnxruntime does
_LENT_TYPES = frozenset(
    getattr(TensorProto, name)
    for name in "FLOAT DOUBLE FLOAT16 INT8 UINT8 INT16 UINT16 INT32 UINT32 INT64 UINT64".split()
)
MANY_NODES = 5000  # of a graph whose weights are kept from being prepacked in another way
# of onnxruntime's message for an operator that it does not have
_NO_KERNEL = ("is not a registered function/op", "Could not find an implementation for")
WITHOUT_RUNNING = (
    "without running the model, these commands work: onnxprune plan --criterion l2, "
    "and onnxprune cut with that plan"
)
_MAX_MESSAGE = 300  # characters of onnxruntime's message
# lengths of dynamic axes of example inputs
_EXAMPLE_BATCH, _EXAMPLE_SIDE, _EXAMPLE_LENGTH = 2, 64, 16


class Session:
    """An onnxruntime CPU session of a model.

    Parameters
    ----------
    model
        Model to run.
    outputs
        Tensors to return; None for the graph's outputs. Inner tensors become outputs of a copy.
    threads
        Runs of `run_each` at a time; each computes on one thread.
    optimize
        Let onnxruntime fuse nodes. Without, every tensor of the graph exists and rounding is that
        of the single operators.
    arena
        Reuse freed memory for later tensors: up to twice as fast for graphs with many large ones,
        at a higher peak.

    Attributes
    ----------
    inputs
        Input name -> (shape, onnxruntime's type string).
    outputs
        Names of the outputs.
    optimized
        Whether onnxruntime fused nodes; False if it can run the model only without.

    Raises
    ------
    ModelError
        onnxruntime rejects the model.
    """

    def __init__(
        self,
        model: ModelView,
        outputs: Sequence[str] | None = None,
        *,
        threads: int = 1,
        optimize: bool = True,
        arena: bool = False,
    ) -> None:
        import onnxruntime

        if outputs is not None:
            model = with_outputs(model, outputs)
        # without prepacking, opening a session takes time that is quadratic in nodes
        many = not optimize and len(model.proto.graph.node) > MANY_NODES
        if many:
            model = _open_weights(model)

        def make_options() -> Any:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            options.inter_op_num_threads = 1
            # fatal only: failures are raised, and warnings would go to the terminal
            options.log_severity_level = 4
            options.enable_cpu_mem_arena = arena
            # prepacked weights may run in another kernel, with other rounding
            disabled = "0" if optimize or many else "1"
            options.add_session_config_entry("session.disable_prepacking", disabled)
            return options

        try:
            opened = _open_any(onnxruntime, model, make_options, optimize)
            # the session reads lent weights, but does not own them
            self._session, self._lent, self.optimized = opened
        except Exception as problem:  # onnxruntime's exceptions share no base class
            text = f"onnxruntime rejects the model: {_first_line(problem)}"
            if any(words in str(problem) for words in _NO_KERNEL):
                text += f"; {WITHOUT_RUNNING}"
            raise ModelError("model-refused", text) from problem
        self._threads = threads
        has_loop = any(n.op_type == "Loop" for g in nested(model.proto.graph) for n in g.node)
        # only a Loop can run without an end
        self._limit_s = loop_limit_s() if has_loop else None
        self.inputs = {i.name: (i.shape, i.type) for i in self._session.get_inputs()}
        names = [o.name for o in self._session.get_outputs()]
        self.outputs = names if outputs is None else list(outputs)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the outputs by name.

        Raises
        ------
        ModelError
            The run fails, or a model with a Loop exceeds the time limit.
        """
        try:
            with _time_limit(self._limit_s) as options:
                values = self._session.run(self.outputs, dict(feeds), options)
                return dict(zip(self.outputs, values, strict=True))
        except TimeoutError as problem:
            raise ModelError(
                "run-endless",
                f"{problem}; a Loop may not terminate, or set ONNXPRUNE_LOOP_LIMIT_S higher",
            ) from problem
        except Exception as problem:  # onnxruntime's exceptions share no base class
            raise ModelError(
                "run-failed", f"onnxruntime cannot run the model: {_first_line(problem)}"
            ) from problem

    def run_each(self, batches: Iterable[Feeds]) -> Iterator[tuple[Feeds, dict[str, Any]]]:
        """Yield each batch in order with its outputs, as `run` returns them."""
        return ordered_map(lambda feeds: (feeds, self.run(feeds)), batches, self._threads)


def loop_limit_s() -> float:
    """Return the time limit in seconds for one run of a model with a Loop.

    The environment variable ONNXPRUNE_LOOP_LIMIT_S overrides LOOP_LIMIT_S.
    """
    try:
        return float(os.environ.get("ONNXPRUNE_LOOP_LIMIT_S", LOOP_LIMIT_S))
    # an invalid setting must not make every run fail
    except ValueError:
        return LOOP_LIMIT_S


@contextlib.contextmanager
def _time_limit(seconds: float | None) -> Iterator[Any]:
    """Yield options that terminate a run after `seconds`; TimeoutError if that happened."""
    import onnxruntime

    if seconds is None:
        yield None
        return
    options = onnxruntime.RunOptions()
    expired = threading.Event()

    def terminate() -> None:
        expired.set()
        options.terminate = True

    timer = threading.Timer(seconds, terminate)
    # a daemon, so that a pending timer does not keep the process alive
    timer.daemon = True
    timer.start()
    try:
        yield options
    except Exception as problem:
        # a run that fails for another reason just before the limit is not reported as endless
        if expired.is_set():
            raise TimeoutError(f"a run did not end within {seconds:g} s") from problem
        raise
    finally:
        timer.cancel()


def example_feeds(
    model: ModelView, seed: int = 0, shapes: Mapping[str, Sequence[int]] | None = None
) -> dict[str, np.ndarray]:
    """Return seeded random inputs that fit a model.

    Floats are standard normal, integers and booleans within `integer_ranges`, in the declared
    types. Dynamic axes have length 2 if first, 64 if among the last two of four, 16 otherwise;
    equal symbols get equal lengths.

    Parameters
    ----------
    shapes
        Input name -> shape that overrides these lengths.

    Raises
    ------
    ModelError
        An input is not a tensor, or its type is unknown.
    """
    rng = np.random.default_rng(seed)
    sizes = _choose_example_sizes(model) | {n: list(s) for n, s in (shapes or {}).items()}
    ranges = integer_ranges(model, sizes)
    feeds = {}
    for info in model.proto.graph.input:
        if info.name in model.weights:
            continue
        dims = sizes.get(info.name, [])
        kind = info.type.tensor_type.elem_type
        if kind not in TensorProto.DataType.values()[1:]:  # the first one is UNDEFINED
            raise ModelError("model-input", f"input {info.name!r} is not a tensor of a known type")
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        limits = ranges.get(info.name)
        values = rng.integers(*limits, dims) if limits else rng.standard_normal(dims)
        feeds[info.name] = np.asarray(values).astype(dtype)
    return feeds


def _choose_example_sizes(model: ModelView) -> dict[str, list[int]]:
    """Return a shape per input, with example lengths for dynamic axes."""
    symbols: dict[str, int] = {}
    sizes = {}
    for name, declared in input_shapes(model).items():
        dims = []
        for i, d in enumerate(declared):
            length = _EXAMPLE_BATCH if i == 0 else _EXAMPLE_LENGTH
            if len(declared) == 4 and i > 1:
                length = _EXAMPLE_SIDE
            if isinstance(d, int):
                length = d
            elif d is not None:
                length = symbols.setdefault(d, length)
            dims.append(length)
        sizes[name] = dims
    return sizes


def with_outputs(model: ModelView, names: Sequence[str]) -> EditableModel:
    """Return a copy whose outputs are the named tensors."""
    copy = model.edit()
    graph = copy.proto.graph
    known = {v.name: v for v in (*graph.output, *graph.value_info, *graph.input)}
    infos = [known.get(n) or helper.make_empty_tensor_value_info(n) for n in names]
    del graph.output[:]
    graph.output.extend(infos)
    return copy


def _open_any(
    onnxruntime: Any, model: ModelView, make_options: Callable[[], Any], optimize: bool
) -> tuple[Any, list[Any], bool]:
    """Open a session; return it with the weights that are lent to it, and whether it is optimized.

    onnxruntime's optimizer breaks some valid graphs, mostly quantized ones; they run without it.
    """
    level = onnxruntime.GraphOptimizationLevel
    options = make_options()
    if optimize:
        options.graph_optimization_level = level.ORT_ENABLE_ALL
        # an unoptimized graph is the fallback, since the optimizer may be at fault
        with contextlib.suppress(Exception):
            return *_open(onnxruntime, model, options), True
        # options hold the weights of the session that they opened
        options = make_options()
    options.graph_optimization_level = level.ORT_DISABLE_ALL
    return *_open(onnxruntime, model, options), False


def _open(onnxruntime: Any, model: ModelView, options: Any) -> tuple[Any, list[Any]]:
    """Open a session; return it with the weights that are lent to it.

    Large weights are neither written to a file nor copied.
    """
    values: list[Any] = []
    if model.size_bytes() > SHARED_BYTES:
        model, lent = _lend_weights(onnxruntime, model)
        values = list(lent.values())
        options.add_external_initializers(list(lent), values)
    # weights that are lent do not count towards the limit of one message
    content = b"".join(serialize(model)) if values else to_bytes(model)
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session, values


def _open_weights(model: ModelView) -> EditableModel:
    """Return a copy whose weights may be overridden by inputs, which are not prepacked."""
    copy = model.edit()
    graph = copy.proto.graph
    declared = {i.name for i in graph.input}
    for tensor in graph.initializer:
        # operators that demand constants demand vectors or numbers
        if len(tensor.dims) > 1 and tensor.name not in declared:
            graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return copy


def _lend_weights(onnxruntime: Any, model: ModelView) -> tuple[EditableModel, dict[str, Any]]:
    """Return a copy whose large weights are only declared, and their values by name."""
    copy = model.edit()
    lent: dict[str, Any] = {}
    # onnxruntime drops unused weights, and then finds none to replace
    used = {name for g in nested(copy.proto.graph) for n in g.node for name in n.input}
    for tensor in copy.proto.graph.initializer:
        weight = copy.weights[tensor.name]
        if tensor.data_type not in _LENT_TYPES or size_bytes(weight) <= INLINE_BYTES:
            continue
        if tensor.name not in used:
            continue
        # a view of the file where that is aligned
        array = np.require(weight.array(), requirements=["C", "A"])
        lent[tensor.name] = onnxruntime.OrtValue.ortvalue_from_numpy(array)
        tensor.data_location = TensorProto.EXTERNAL
        # no such file is opened, but an external tensor has to name one
        tensor.external_data.add(key="location", value="lent")
    return copy, lent


def _first_line(problem: Exception) -> str:
    lines = str(problem).strip().splitlines()
    return lines[0][:_MAX_MESSAGE] if lines else type(problem).__name__
