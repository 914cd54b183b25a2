"""Joint refit of the linear nodes of a block, so that its exits match the original network's.

Node by node, kept channels can only reproduce themselves. Jointly, the first nodes of a block may
take over what the removed channels contributed, because the last ones are refitted to them: the
squared error after the block decreases by a further fifth to third. (The aim is that of block
reconstruction for quantization, Li et al. 2021, arXiv 2102.05426.)

Gradients are computed by onnxruntime (`onnxprune.autodiff`). The minimizer is stochastic gradient
descent with Nesterov's acceleration (Nesterov 1983) in whitened coordinates (see `whitening`),
which starts from the sequential solution. The learning rate follows from the largest curvature,
estimated by power iteration, and decreases linearly to 0. The descent stops when the error on
held-out samples no longer falls; the weights with the least such error are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from onnx import TensorProto, helper

from onnxprune.autodiff import VECTOR, WHOLE, Gradient, Loss, Place, gradient_model
from onnxprune.criteria.base import Context
from onnxprune.errors import ModelError, OnnxpruneError
from onnxprune.ir.extract import extract
from onnxprune.ir.model import EditableModel, Model
from onnxprune.ir.runtime import Session
from onnxprune.parallel import ordered_map
from onnxprune.repair.block_samples import BlockSamples
from onnxprune.repair.blocks import Block
from onnxprune.repair.fits import set_values
from onnxprune.repair.problem import LayerProblem
from onnxprune.repair.whitening import WhitenedLayer
from onnxprune.statistics.segmented_run import Mark, SegmentedRun

# Of the descent, at most. A third more takes a quarter more time and gains nothing on
# held-out images.
STEPS = 24
MIN_DECREASE = 1e-3  # of the held-out error between checks; a smaller one may be chance
STEPS_PER_CHECK = 4  # of the error on held-out samples, which takes a fifth of a step
MOMENTUM = 0.9
LEARNING_RATE = 0.7  # times the inverse of the largest curvature
# Pulls to the sequential solution, in units of the error that a change would make; multiplied by
# unknowns / fitted values, because fewer equations are fitted more easily.
L2_PENALTY = 36.0
ATTEMPTS = (1.0, 4.0)  # factors by which the rate is divided and the penalty multiplied
POWER_ITERATIONS = 4  # for the largest curvature; more change the rate by a few percent
# Samples per step: as many as give VALUES_PER_UNKNOWN output values of the block per unknown, but
# within these limits. A block is not refitted if the budget does not allow MIN_BATCH.
BATCH_LIMITS = (32, 64)
VALUES_PER_UNKNOWN = 64
MIN_BATCH = 8
POSITIONS_PER_INPUT = 64  # of a node's gradient per step, at least
# Of the mean squared dependence. Without it, the weights of an output that the exits do not depend
# on would move freely.
MIN_DEPENDENCE = 1e-2
_TARGET = "/wanted"  # ending of the graph input that holds the target of an exit
# Costs in runs of the block and in triangular solves
_RUNS_PER_GRADIENT = 3
_SOLVES_PER_STEP = 4  # from coordinates to weights and back, for both factors


def refit_block(
    block: Block,
    problems: Sequence[LayerProblem],
    model: EditableModel,
    begin: Mark,
    pruned: SegmentedRun,
    targets: Mapping[str, list[np.ndarray]],
    held_out: int,
    multiplications: float,
    context: Context,
) -> bool:
    """Refit the weights of a block jointly.

    Parameters
    ----------
    problems
        Solved problems of its nodes.
    model
        Pruned model, changed if the refit succeeds.
    begin
        The pruned network at the start of the block.
    pruned
        The pruned network at its end.
    targets
        Exit -> values in the original at the kept positions, per batch.
    held_out
        Number of leading batches that validate the result; nothing is done without any.
    multiplications
        Computing budget.

    Returns
    -------
    bool
        True if the weights were changed, because the error on held-out samples decreased.
    """
    problems = [p for p in problems if p.systems]
    if not held_out or len(problems) < 2 or not block.exits:
        return False
    if len(targets) < len(block.exits) or not _are_comparable(targets, pruned):
        return False
    most = _choose_batch_size(problems, multiplications)
    if most < MIN_BATCH:
        return False
    fixed = context.data is None or not context.data.inputs.divisible
    rng = np.random.default_rng((context.seed, block.start))
    samples = BlockSamples.of(problems, begin, pruned, targets, held_out, fixed, rng)
    if samples is None:
        return False
    try:
        return JointRefit(block, problems, model, pruned, samples, context).run(most)
    except OnnxpruneError:  # no gradient passes one of the nodes
        return False


def _are_comparable(targets: Mapping[str, list[np.ndarray]], pruned: SegmentedRun) -> bool:
    """Return True if all targets are float32 and have the shapes of the pruned network's exits."""
    return all(
        v[0].dtype == np.float32 and v[0].shape == pruned.values(e)[0].shape
        for e, v in targets.items()
    )


def _choose_batch_size(problems: Sequence[LayerProblem], multiplications: float) -> int:
    """Return the number of samples per step within a computing budget."""
    per_sample = per_step = 0.0
    for problem in problems:
        g, k, o = map(float, problem.shape)
        per_sample += g * k * o * problem.outputs
        per_step += g * k * o * (k + o)
    steps = STEPS + POWER_ITERATIONS
    budget = multiplications / steps - _SOLVES_PER_STEP * per_step
    return int(budget / (_RUNS_PER_GRADIENT * per_sample))


class JointRefit:
    """Error of a block as a function of its weights, and its minimization.

    Attributes
    ----------
    model
        Pruned model.
    samples
        Inputs and targets of the block.
    layers
        Weights in whitened coordinates; a vector of coordinates concatenates those of all layers.
    weights
        Factor on each exit's squared error: 1 / (its variance times the number of exits).
    names
        Refitted initializers.
    """

    def __init__(
        self,
        block: Block,
        problems: Sequence[LayerProblem],
        model: EditableModel,
        pruned: SegmentedRun,
        samples: BlockSamples,
        context: Context,
    ) -> None:
        self.model, self.samples = model, samples
        self.rng = np.random.default_rng((context.seed, block.start))
        self.names = [n for p in problems for n in (p.fit.weight, p.fit.bias) if n]
        self._places = [
            Place(p.fit.linear.out, p.fit.linear.out_axis, form=WHOLE) for p in problems
        ]
        segment = extract(
            model,
            pruned.shapes,
            pruned.nodes[block.start : block.end],
            set(samples.inputs[0]),
            list(block.exits),
            self.names,
        ).edit()
        self._distances = {
            exit_: _append_distance(segment, exit_, v) for exit_, v in samples.targets[0].items()
        }
        gradient = self._differentiate(segment.freeze(), problems)
        self._seeds = {f.loss.head: (f.name, f.shape) for f in gradient.feeds.values()}
        self._gradients = gradient.outputs
        self.session = Session(gradient.model, arena=True)
        self.threads = context.threads
        self.weights = self._weigh_exits()
        self.layers = [WhitenedLayer.of(p, model) for p in problems]

    def _differentiate(self, segment: Model, problems: Sequence[LayerProblem]) -> Gradient:
        """Return the graph that computes the distances and their gradient by the node outputs."""
        inputs, targets = self.samples.inputs[0], self.samples.targets[0]
        shapes = {n: v.shape for n, v in inputs.items()}
        shapes |= {n: tuple(self.model.weights[n].shape) for n in self.names}
        shapes |= {f"{e}{_TARGET}": v.shape for e, v in targets.items()}
        heads = list(self._distances.values())
        # inputs of nodes that are not inputs of the block
        inner = {p.node.input[0] for p in problems} - set(inputs)
        gradient = gradient_model(
            segment,
            self._places,
            [Loss(VECTOR, h) for h in heads],
            shapes,
            self.samples.count,
            [*heads, *sorted(inner)],
        )
        if gradient.blocked:
            node = gradient.blocked[0].node
            raise ModelError("no-gradient", f"no gradient passes {node!r}")
        return gradient

    def _weigh_exits(self) -> dict[str, float]:
        """Return the factor on each exit's squared error."""
        fitted = self.samples.targets[: self.samples.fitted]
        energy = {
            e: sum(float(np.var(t[e], dtype=np.float64)) * t[e].size for t in fitted)
            for e in self._distances
        }
        return {e: 1.0 / max(s, 1e-30) / len(energy) for e, s in energy.items()}

    def run(self, most: int) -> bool:
        """Minimize the error; write the weights if the error on held-out samples decreases.

        If it does not, try once more with a lower rate and a higher penalty.

        Parameters
        ----------
        most
            Samples per step, at most.

        Returns
        -------
        bool
            True if the weights were written.
        """
        s = self.samples
        unknowns = sum(layer.size for layer in self.layers)
        samples = VALUES_PER_UNKNOWN * unknowns * s.fitted * s.count / s.values
        samples = min(np.clip(samples, *BATCH_LIMITS), most)
        batch = max(1, min(round(samples / s.count), s.fitted))
        held_out, some = range(s.fitted, len(s.inputs)), range(-(-batch // 2))
        self.scale_outputs(some)
        start = np.concatenate([layer.coordinates() for layer in self.layers])
        before, curvature = self.initial_error(held_out), self.estimate_curvature(start, some)
        for caution in ATTEMPTS:
            with np.errstate(over="ignore", invalid="ignore"):
                z = self.descend(start, before, curvature, caution, batch)
            if z is not start:
                for name, value in self.parameters(z).items():
                    set_values(self.model, name, value)
                return True
        return False

    def descend(
        self, start: np.ndarray, before: float, curvature: float, caution: float, batch: int
    ) -> np.ndarray:
        """Return the best coordinates of an accelerated stochastic gradient descent.

        They are `start` itself if no check of the held-out error is below that of the start.

        Parameters
        ----------
        before
            Held-out error of the start.
        curvature
            Largest curvature of the error.
        caution
            Divides the rate and multiplies the penalty.
        batch
            Chunks per step.
        """
        penalty = 2 * L2_PENALTY * caution * len(start) / self.samples.values
        lr = LEARNING_RATE / caution / (curvature + penalty)
        z, move, best, least = start, np.zeros_like(start), start, before
        held_out = range(self.samples.fitted, len(self.samples.inputs))
        order: list[int] = []
        for step in range(STEPS):
            # a new permutation once all chunks have been used
            if len(order) < batch:
                order += self.rng.permutation(self.samples.fitted).tolist()
            # Nesterov: the gradient after the momentum step, not before it
            ahead = z + MOMENTUM * move
            gradient = self.gradient(ahead, order[:batch], self.rng) + penalty * (ahead - start)
            del order[:batch]
            move = MOMENTUM * move - lr * (1 - step / STEPS) * gradient
            z = z + move
            if (step + 1) % STEPS_PER_CHECK:
                continue
            error = self.error(z, held_out)
            # more steps would fit noise; an error that is not a number comes of a diverged descent
            if not error < (1 - MIN_DECREASE) * least:
                break
            best, least = z, error
        return best

    def estimate_curvature(self, start: np.ndarray, chunks: Sequence[int]) -> float:
        """Return the largest curvature, by power iterations on differences of gradients."""
        # the same positions in every gradient, so that differences are not noise
        seed = self.rng.integers(2**32)
        base = self.gradient(start, chunks, np.random.default_rng(seed))
        direction, size, result = base, 1e-2 * float(np.linalg.norm(start)), 0.0
        for _ in range(POWER_ITERATIONS):
            direction = direction * (size / max(float(np.linalg.norm(direction)), 1e-30))
            moved = self.gradient(start + direction, chunks, np.random.default_rng(seed))
            direction = moved - base
            result = max(result, float(np.linalg.norm(direction)) / size)
        return result

    def parameters(self, z: np.ndarray) -> dict[str, np.ndarray]:
        """Return the initializers at coordinates z, by name."""
        values: dict[str, np.ndarray] = {}
        start = 0
        for layer in self.layers:
            values |= layer.parameters(self.model, z[start : start + layer.size])
            start += layer.size
        return values

    def error(self, z: np.ndarray, chunks: Sequence[int]) -> float:
        """Return the squared error as a share of the exits' variance, mean over exits."""
        total = 0.0
        for _, out in self.run_chunks(chunks, self.parameters(z)):
            total += sum(w * float(out[self._distances[e]].item()) for e, w in self.weights.items())
        return total * self.samples.fitted / len(chunks)

    def initial_error(self, chunks: Sequence[int]) -> float:
        """Return the error of the weights before the joint refit, from the stored exits."""
        s = self.samples
        total = 0.0
        for exit_, weight in self.weights.items():
            for i in chunks:
                difference = s.outputs[i][exit_] - s.targets[i][exit_]
                total += weight * float(np.square(difference, dtype=np.float64).sum())
        return total * s.fitted / len(chunks)

    def gradient(
        self, z: np.ndarray, chunks: Sequence[int], rng: np.random.Generator
    ) -> np.ndarray:
        """Return the gradient of the error by the coordinates, estimated on these chunks.

        Parameters
        ----------
        rng
            Chooses the output positions.
        """
        by_rows = [np.zeros_like(layer.rows) for layer in self.layers]
        by_shift = [np.zeros(layer.rows.shape[:2]) for layer in self.layers]
        samples = len(chunks) * self.samples.count
        for i, out in self.run_chunks(chunks, self.parameters(z)):
            values = out | self.samples.inputs[i]
            calls = []
            for layer, place, rows, shift in zip(
                self.layers, self._places, by_rows, by_shift, strict=True
            ):
                most = -(-POSITIONS_PER_INPUT * layer.rows.shape[2] // samples)
                by_output = out[self._gradients[place]]
                at = layer.draw(by_output, most, rng)
                calls.append(partial(layer.add_gradient, values, by_output, at, rows, shift))
            # each layer has sums of its own, to which chunks are added in order
            for _ in ordered_map(lambda call: call(), calls, self.threads):
                pass
        parts = [
            layer.to_coordinates(rows, shift)
            for layer, rows, shift in zip(self.layers, by_rows, by_shift, strict=True)
        ]
        return np.concatenate(parts) * (self.samples.fitted / len(chunks))

    def scale_outputs(self, chunks: Sequence[int]) -> None:
        """Set how much the exits depend on each node output.

        Random signs at the exits are propagated back and squared (Hutchinson 1990). To inject them,
        targets are moved away from the present exits.
        """
        rng = np.random.default_rng(0)
        parameters = {n: self.model.weights[n].array() for n in self.names}
        sums: list[np.ndarray] = [np.zeros(layer.dependence.shape) for layer in self.layers]
        for i in chunks:
            moved = {
                e: v
                - (rng.integers(0, 2, v.shape, np.int8) - np.float32(0.5))
                / np.float32(np.sqrt(self.weights[e]))
                for e, v in self.samples.outputs[i].items()
            }
            out = self.run_chunk(i, parameters, moved)
            for layer, place, squares in zip(self.layers, self._places, sums, strict=True):
                g = layer.outputs(out[self._gradients[place]])
                squares += g @ g.swapaxes(1, 2)
        for layer, squares in zip(self.layers, sums, strict=True):
            squares *= self.samples.fitted / len(chunks)
            groups, outs, _ = squares.shape
            trace = float(np.einsum("goo->", squares))
            lift = max(MIN_DEPENDENCE * trace / groups / outs, 1e-24)
            layer.dependence[...] = np.linalg.cholesky(squares + lift * np.eye(outs))

    def run_chunks(
        self, chunks: Sequence[int], parameters: Mapping[str, np.ndarray]
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yield chunks in order with what `run_chunk` returns for the targets."""

        def run(i: int) -> tuple[int, dict[str, np.ndarray]]:
            return i, self.run_chunk(i, parameters, self.samples.targets[i])

        return ordered_map(run, chunks, self.threads)

    def run_chunk(
        self, chunk: int, parameters: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Run one chunk forward and backward.

        Returns
        -------
        dict
            Distances of the exits, inputs of the nodes, and gradients of the error.
        """
        feeds = dict(self.samples.inputs[chunk])
        feeds |= {f"{e}{_TARGET}": v for e, v in targets.items()}
        for exit_, distance in self._distances.items():
            name, shape = self._seeds[distance]
            feeds[name] = np.full(shape, self.weights[exit_], np.float32)
        feeds |= parameters
        return self.session.run({n: feeds[n] for n in self.session.inputs})


def _append_distance(segment: EditableModel, tensor: str, values: np.ndarray) -> str:
    """Append the squared distance of a tensor from a new graph input; return its name.

    Parameters
    ----------
    values
        Values of the tensor, for their shape.
    """
    graph = segment.proto.graph
    target, difference = f"{tensor}{_TARGET}", f"{tensor}/away"
    squares, distance = f"{tensor}/squares", f"{tensor}/distance"
    graph.input.append(helper.make_tensor_value_info(target, TensorProto.FLOAT, values.shape))
    graph.node.append(helper.make_node("Sub", [tensor, target], [difference]))
    graph.node.append(helper.make_node("Mul", [difference, difference], [squares]))
    graph.node.append(helper.make_node("ReduceSum", [squares], [distance], keepdims=1))
    graph.output.append(helper.make_empty_tensor_value_info(distance))
    return distance
