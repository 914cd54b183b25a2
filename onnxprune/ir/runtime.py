"""Running a model with onnxruntime, for statistics and checks; `engines` is where it is timed."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper

from onnxprune.errors import ModelError
from onnxprune.ir.io import Model, save, to_bytes
from onnxprune.ir.nodes import nested

LOOP_LIMIT_S = 8.0  # of a run of a model with a Loop, whose number of rounds a file can set to anything; see loop_limit_s
MAPPED_BYTES = 32_000_000  # of weights; a session from memory holds them three times for a moment


class Session:
    """An onnxruntime CPU session on a model.

    Parameters
    ----------
    outputs
        Tensors to return; None = the graph's outputs. Others than those are made outputs of a copy.
    optimize
        Let onnxruntime fuse. Off, every named tensor of the graph exists and float rounding is that of the single operators.
    arena
        Keep freed memory for the next tensors: faster (up to twice) for graphs with many large ones, at a higher peak.
    """

    def __init__(
        self,
        model: Model,
        outputs: Sequence[str] | None = None,
        *,
        threads: int = 1,
        optimize: bool = True,
        arena: bool = False,
    ) -> None:
        import onnxruntime

        if outputs is not None:
            model = with_outputs(model, outputs)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.enable_cpu_mem_arena = arena
        options.add_session_config_entry("session.disable_prepacking", "1" if not optimize else "0")
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = (
            level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        )
        try:
            self._session = _open(onnxruntime, model, options)
        except Exception as problem:  # onnxruntime's exceptions share no base class
            raise ModelError(
                "model-refused", f"onnxruntime refuses the model: {_first_line(problem)}"
            ) from problem
        self._limit_s = (
            loop_limit_s()
            if any(n.op_type == "Loop" for g in nested(model.proto.graph) for n in g.node)
            else None
        )
        self.inputs = {i.name: (i.shape, i.type) for i in self._session.get_inputs()}
        self.outputs = (
            list(outputs) if outputs is not None else [o.name for o in self._session.get_outputs()]
        )

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Values by output name; ModelError where the run fails."""
        try:
            with _ended_after(self._limit_s) as options:
                return dict(
                    zip(
                        self.outputs,
                        self._session.run(self.outputs, dict(feeds), options),
                        strict=False,
                    )
                )
        except TimeoutError as problem:
            raise ModelError(
                "run-endless",
                f"{problem}; a Loop may run forever, or set ONNXPRUNE_LOOP_LIMIT_S to more seconds",
            ) from problem
        except Exception as problem:
            raise ModelError(
                "run-failed", f"onnxruntime cannot run the model: {_first_line(problem)}"
            ) from problem


def loop_limit_s() -> float:
    """Seconds that one run of a model with a Loop may take: ONNXPRUNE_LOOP_LIMIT_S, or LOOP_LIMIT_S."""
    try:
        return float(os.environ.get("ONNXPRUNE_LOOP_LIMIT_S", LOOP_LIMIT_S))
    except ValueError:
        return LOOP_LIMIT_S


@contextlib.contextmanager
def _ended_after(seconds: float | None) -> Iterator[Any]:
    """Options of a run that ends by itself; TimeoutError where it had to."""
    import onnxruntime

    if seconds is None:
        yield None
        return
    options = onnxruntime.RunOptions()
    over = threading.Event()

    def end() -> None:
        over.set()
        options.terminate = True

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield options
    except Exception as problem:
        if over.is_set():
            raise TimeoutError(f"a run has not ended after {seconds:g} s") from problem
        raise
    finally:
        timer.cancel()


def example_feeds(
    model: Model, seed: int = 0, shapes: Mapping[str, Sequence[int]] | None = None
) -> dict[str, np.ndarray]:
    """Seeded random inputs that fit a model.

    Floats are standard normal, integers 0 or 1, both in the declared type. Dynamic axes: 2 for the first, 64 for the last two
    of four, 16 otherwise; equal symbols get equal lengths. `shapes` overrides by input name.
    """
    rng = np.random.default_rng(seed)
    symbols: dict[str, int] = {}
    feeds = {}
    for info in model.proto.graph.input:
        if info.name in model.weights:
            continue
        kind = info.type.tensor_type
        dims = []
        for i, d in enumerate(kind.shape.dim):
            default = 2 if i == 0 else 64 if len(kind.shape.dim) == 4 and i > 1 else 16
            dims.append(
                d.dim_value
                if d.HasField("dim_value")
                else symbols.setdefault(d.dim_param, default)
                if d.dim_param
                else default
            )
        dims = list((shapes or {}).get(info.name, dims))
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        floating = np.issubdtype(dtype, np.floating) or dtype.name == "bfloat16"
        feeds[info.name] = (
            rng.standard_normal(dims) if floating else rng.integers(0, 2, dims)
        ).astype(dtype)
    return feeds


def with_outputs(model: Model, names: Sequence[str]) -> Model:
    """A copy whose outputs are the named tensors."""
    copy = model.edit()
    known = {
        v.name: v
        for v in (*copy.proto.graph.output, *copy.proto.graph.value_info, *copy.proto.graph.input)
    }
    infos = [known.get(n) or helper.make_empty_tensor_value_info(n) for n in names]
    del copy.proto.graph.output[:]
    copy.proto.graph.output.extend(infos)
    return copy


def _open(onnxruntime: Any, model: Model, options: Any) -> Any:
    """A session from memory; of a large model through a temporary folder, from where onnxruntime maps the weights instead of copying them."""
    providers = ["CPUExecutionProvider"]
    if model.size_bytes() <= MAPPED_BYTES:
        return onnxruntime.InferenceSession(to_bytes(model), options, providers=providers)
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        path = Path(folder) / "model.onnx"
        save(model, path, external_data=True)
        return onnxruntime.InferenceSession(str(path), options, providers=providers)


def _first_line(problem: Exception) -> str:
    lines = str(problem).strip().splitlines()
    return lines[0][:300] if lines else type(problem).__name__
