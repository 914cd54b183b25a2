"""Joint refit of the linear nodes of a part of the network: what leaves the part shall be as in the whole network.

Node by node, kept channels can only be what they were. Together, the first nodes of a part may take over what the cut channels did,
because the last ones read them anew: the squared error behind the part falls by a further fifth to third. Gradients are made by
onnxruntime (`onnxprune.autodiff`); the minimizer is L-BFGS (Liu and Nocedal 1989) in coordinates in which the problem is close to
round: inputs decorrelated by their second moments, outputs scaled by how much the part's exits depend on them, which are the two
factors of K-FAC (Martens and Grosse 2015, 1503.05671). Aim as in block reconstruction for quantization (Li et al. 2021, 2102.05426).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper

from onnxprune.autodiff import VECTOR, WHOLE, Loss, Place, gradient_model
from onnxprune.criteria.base import Context
from onnxprune.errors import ModelError, OnnxpruneError
from onnxprune.ir.extract import extract
from onnxprune.ir.io import Model
from onnxprune.ir.model import EditableModel, ModelView
from onnxprune.ir.runtime import Session
from onnxprune.repair.fits import set_values
from onnxprune.repair.parts import Part
from onnxprune.repair.problem import Problem
from onnxprune.statistics.im2col import columns, outputs, positions
from onnxprune.statistics.segmented_run import SegmentedRun

STEPS = 24  # of the descent; a third more takes a quarter more time and gains nothing on images that no fit saw
BATCHES, VALUES = (
    (32, 64),
    64,
)  # samples a step, between these so that this many values leave the part for each unknown
LEAST_BATCH = 8  # where the effort does not allow more, or nothing is done
PASSES = 3  # a gradient costs as much as three runs
SOLVES = 4  # triangular ones a step, from coordinates to weights and back
MOMENTUM = 0.9
RATE = 0.7  # of the inverse of the largest curvature, falling to 0
CAUTION = (1.0, 4.0)  # tries: shorter steps and a stronger pull
PULL = 36.0  # towards the solutions node by node, times unknowns over fitted values, in units of the error that a change would make
POWERS = 4  # iterations for the largest curvature
SPREAD = 64  # positions a step for each input of a node, at least
EQUATIONS = 4  # values that leave the part, for each unknown, at least
CHUNK_BYTES = 4_000_000  # of columns at a time, to stay in the processor's cache
DAMPING = 1.0  # of the mean variance of a node's inputs; directions in which they hardly vary are best left alone
LEAST_DEPENDENCE = 1e-2  # of the mean square; a dead output would else go anywhere
WANTED = "/wanted"  # ending of the input that an exit is compared with

Mark = tuple[int, list[dict[str, np.ndarray]]]


def refine(
    part: Part,
    problems: Sequence[Problem],
    model: EditableModel,
    begin: Mark,
    cut: SegmentedRun,
    wanted: Mapping[str, list[np.ndarray]],
    held: int,
    effort: float,
    context: Context,
) -> bool:
    """Refit the weights of a part together; whether that was better on samples that were not fitted. `model` is changed then.

    begin: the cut network before the part, which `cut` is behind now; wanted: values of the whole network by exit, a batch each, at
    the positions that are left; held: batches at the beginning that judge, without which nothing is done; effort: multiplications that it
    may take.
    """
    blocks = [p for p in problems if p.systems]
    alike = [
        v[0].dtype == np.float32 and v[0].shape == cut.values(e)[0].shape for e, v in wanted.items()
    ]
    if (
        not held
        or len(blocks) < 2
        or not part.exits
        or len(alike) < len(part.exits)
        or not all(alike)
    ):
        return False
    shapes = [(*map(float, p.shape), p.outputs) for p in blocks]
    a_sample, a_step = (
        PASSES * sum(g * k * o * places for g, k, o, places in shapes),
        SOLVES * sum(g * k * o * (k + o) for g, k, o, _ in shapes),
    )
    most = int((effort / (STEPS + POWERS) - a_step) / a_sample)
    if most < LEAST_BATCH:
        return False
    fixed = context.data is None or context.data.inputs.batch is not None
    samples = _Samples.of(
        blocks, begin, cut, wanted, held, fixed, np.random.default_rng((context.seed, part.start))
    )
    if samples is None:
        return False
    try:
        return _Joint(part, blocks, model, cut, samples, context).refine(most)
    except OnnxpruneError:  # no gradient passes one of the nodes
        return False


@dataclass(frozen=True)
class _Samples:
    """What enters and leaves a part, in pieces of as many samples each: values by tensor. found: what the cut network gives. The last pieces are held out."""

    given: list[dict[str, np.ndarray]]
    wanted: list[dict[str, np.ndarray]]
    found: list[dict[str, np.ndarray]]
    count: int
    held: int

    @property
    def fitted(self) -> int:
        """Pieces that are fitted."""
        return len(self.given) - self.held

    @staticmethod
    def of(
        problems: Sequence[Problem],
        begin: Mark,
        cut: SegmentedRun,
        targets: Mapping[str, list[np.ndarray]],
        held: int,
        fixed: bool,
        rng: np.random.Generator,
    ) -> _Samples | None:
        """In random order; None where there are too few for the unknowns."""
        width = max(4.0 * p.outputs * p.shape[0] * p.shape[1] for p in problems)
        size = cut.counts[0] if fixed else int(np.clip(CHUNK_BYTES / width, 1, cut.counts[0]))
        pieces = [(i, s) for i, n in enumerate(cut.counts) for s in range(0, n - size + 1, size)]
        judging = [p for p in pieces if p[0] < held]
        pieces = [pieces[i] for i in rng.permutation(len(pieces)) if pieces[i][0] >= held] + judging

        def taken(tensors: Mapping[str, np.ndarray], i: int, s: int) -> dict[str, np.ndarray]:
            lead = {
                n: len(v) // cut.counts[i] if v.ndim and len(v) % cut.counts[i] == 0 else 0
                for n, v in tensors.items()
            }
            return {
                n: v[s * lead[n] : (s + size) * lead[n]] if lead[n] else v
                for n, v in tensors.items()
            }

        samples = _Samples(
            [taken(begin[1][i], i, s) for i, s in pieces],
            [taken({e: v[i] for e, v in targets.items()}, i, s) for i, s in pieces],
            [taken({e: cut.state[i][e] for e in targets}, i, s) for i, s in pieces],
            size,
            len(judging),
        )
        enough = (
            bool(judging)
            and samples.fitted > 0
            and samples.values >= EQUATIONS * sum(int(np.prod(p.shape)) for p in problems)
        )
        return samples if enough else None

    @property
    def values(self) -> int:
        """That leave the part and are fitted."""
        return self.fitted * sum(v.size for v in self.wanted[0].values()) if self.wanted else 0


class _Joint:
    """The error of a part as a function of its weights."""

    def __init__(
        self,
        part: Part,
        problems: Sequence[Problem],
        model: EditableModel,
        cut: SegmentedRun,
        samples: _Samples,
        context: Context,
    ) -> None:
        self.model, self.samples, self.rng = (
            model,
            samples,
            np.random.default_rng((context.seed, part.start)),
        )
        self.names = [n for p in problems for n in (p.fit.weight, p.fit.bias) if n]
        shapes = {n: v.shape for n, v in samples.given[0].items()} | {
            n: model.weights[n].shape for n in self.names
        }
        segment = extract(
            model,
            cut.shapes,
            cut.nodes[part.start : part.end],
            set(samples.given[0]),
            list(part.exits),
            self.names,
        )
        self.heads = {e: _squared(segment, e, v) for e, v in samples.wanted[0].items()}
        shapes |= {f"{e}{WANTED}": v.shape for e, v in samples.wanted[0].items()}
        self.places = [Place(p.fit.linear.out, p.fit.linear.out_axis, form=WHOLE) for p in problems]
        heads = list(self.heads.values())
        read = {p.node.input[0] for p in problems} - set(samples.given[0])
        built = gradient_model(
            segment,
            self.places,
            [Loss(VECTOR, h) for h in heads],
            shapes,
            samples.count,
            [*heads, *sorted(read)],
        )
        if built.blocked:
            raise ModelError("no-gradient", f"no gradient passes {built.blocked[0].node!r}")
        self.feeds = {f.loss.head: (f.name, f.shape) for f in built.feeds.values()}
        self.gradients = built.outputs
        self.session = Session(built.model, threads=context.threads, arena=True)
        spread = {
            e: sum(
                float(np.var(w[e], dtype=np.float64)) * w[e].size
                for w in samples.wanted[: samples.fitted]
            )
            for e in self.heads
        }
        self.weights = {e: 1.0 / max(s, 1e-30) / len(spread) for e, s in spread.items()}
        self.blocks = [_Block.of(p, model) for p in problems]

    def refine(self, most: int) -> bool:
        """Descend, and write what was found if samples that were not fitted agree; where they do not, once more in shorter steps and with a stronger
        pull. most: samples a step.
        """
        s = self.samples
        wanted = min(
            np.clip(
                VALUES * sum(b.size for b in self.blocks) * s.fitted * s.count / s.values, *BATCHES
            ),
            most,
        )
        batch = max(1, min(round(wanted / s.count), s.fitted))
        held, some = range(s.fitted, len(s.given)), range(-(-batch // 2))
        self.scale_outputs(some)
        start = np.concatenate([b.coordinates() for b in self.blocks])
        before, curvature = self.before(held), self.curvature(start, some)
        for caution in CAUTION:
            with np.errstate(over="ignore", invalid="ignore"):
                at = self.descend(start, curvature, caution, batch)
            if np.isfinite(at).all() and self.error(at, held) < before:
                for name, value in self.parameters(at).items():
                    set_values(self.model, name, value)
                return True
        return False

    def descend(
        self, start: np.ndarray, curvature: float, caution: float, batch: int
    ) -> np.ndarray:
        """Where accelerated stochastic gradients lead (Nesterov 1983)."""
        pull = 2 * PULL * caution * len(start) / self.samples.values
        rate = RATE / caution / (curvature + pull)
        at, move = start, np.zeros_like(start)
        order: list[int] = []
        for step in range(STEPS):
            if len(order) < batch:
                order += self.rng.permutation(self.samples.fitted).tolist()
            ahead = at + MOMENTUM * move
            slope = self.slope(ahead, order[:batch], self.rng) + pull * (ahead - start)
            del order[:batch]
            move = MOMENTUM * move - rate * (1 - step / STEPS) * slope
            at = at + move
            if not np.isfinite(at).all():
                break
        return at

    def curvature(self, start: np.ndarray, pieces: Sequence[int]) -> float:
        """The largest one, about: power iterations on differences of slopes."""
        seed = self.rng.integers(2**32)
        here = self.slope(start, pieces, np.random.default_rng(seed))
        way, size, found = here, 1e-2 * float(np.linalg.norm(start)), 0.0
        for _ in range(POWERS):
            way = way * (size / max(float(np.linalg.norm(way)), 1e-30))
            way = self.slope(start + way, pieces, np.random.default_rng(seed)) - here
            found = max(found, float(np.linalg.norm(way)) / size)
        return found

    def parameters(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """Initializers by name."""
        values: dict[str, np.ndarray] = {}
        at = 0
        for block in self.blocks:
            values |= block.parameters(self.model, vector[at : at + block.size])
            at += block.size
        return values

    def error(self, vector: np.ndarray, pieces: Sequence[int]) -> float:
        """Share of the exits' variance over these samples."""
        parameters, total = self.parameters(vector), 0.0
        for i in pieces:
            out = self.run(i, parameters, self.samples.wanted[i])
            total += sum(w * float(out[self.heads[e]].item()) for e, w in self.weights.items())
        return total * self.samples.fitted / len(pieces)

    def before(self, pieces: Sequence[int]) -> float:
        """`error` of the weights as they are, by what the cut network has given."""
        s = self.samples
        total = sum(
            w * float(np.square(s.found[i][e] - s.wanted[i][e], dtype=np.float64).sum())
            for e, w in self.weights.items()
            for i in pieces
        )
        return total * s.fitted / len(pieces)

    def slope(
        self, vector: np.ndarray, pieces: Sequence[int], rng: np.random.Generator
    ) -> np.ndarray:
        """Gradient of the error by the coordinates, from these samples and some of their positions."""
        parameters = self.parameters(vector)
        sums = (
            [np.zeros_like(b.rows) for b in self.blocks],
            [np.zeros(b.rows.shape[:2]) for b in self.blocks],
        )
        for i in pieces:
            out = self.run(i, parameters, self.samples.wanted[i])
            for block, place, by_rows, by_shift in zip(
                self.blocks, self.places, *sums, strict=False
            ):
                most = -(-SPREAD * block.rows.shape[2] // (len(pieces) * self.samples.count))
                block.add_slope(
                    out | self.samples.given[i],
                    out[self.gradients[place]],
                    most,
                    rng,
                    by_rows,
                    by_shift,
                )
        return np.concatenate([b.slope(*s) for b, *s in zip(self.blocks, *sums, strict=False)]) * (
            self.samples.fitted / len(pieces)
        )

    def scale_outputs(self, pieces: Sequence[int]) -> None:
        """Set how much the exits depend on each output: random signs there, brought back, squared (Hutchinson 1990)."""
        rng, parameters = (
            np.random.default_rng(0),
            {n: self.model.weights[n].array() for n in self.names},
        )
        sums: list[np.ndarray] = [np.zeros(b.depends.shape) for b in self.blocks]
        for i in pieces:
            away = {
                e: v
                - (rng.integers(0, 2, v.shape, np.int8) - np.float32(0.5))
                / np.float32(np.sqrt(self.weights[e]))
                for e, v in self.samples.found[i].items()
            }
            out = self.run(i, parameters, away)
            for block, place, squares in zip(self.blocks, self.places, sums, strict=False):
                g = block.outputs(out[self.gradients[place]])
                squares += g @ g.swapaxes(1, 2)
        for block, squares in zip(self.blocks, sums, strict=False):
            squares *= self.samples.fitted / len(pieces)
            lift = max(
                LEAST_DEPENDENCE
                * float(np.einsum("goo->", squares))
                / squares.shape[0]
                / squares.shape[1],
                1e-24,
            )
            block.depends[...] = np.linalg.cholesky(squares + lift * np.eye(squares.shape[1]))

    def run(
        self, piece: int, parameters: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """One piece forwards and backwards."""
        seeds = {
            self.feeds[h][0]: np.full(self.feeds[h][1], self.weights[e], np.float32)
            for e, h in self.heads.items()
        }
        feeds = {
            **self.samples.given[piece],
            **{f"{e}{WANTED}": v for e, v in wanted.items()},
            **seeds,
            **parameters,
        }
        return self.session.run({n: feeds[n] for n in self.session.inputs})


@dataclass(frozen=True)
class _Block:
    """One node's weight in round coordinates. rows, bias: as they are, None where no bias can be set; triangle, mean: of its inputs, a group each
    (`System.spread`); depends: (groups, outputs, outputs) a lower triangle, how much the exits depend on its outputs.
    """

    problem: Problem
    rows: np.ndarray
    bias: np.ndarray | None
    triangle: np.ndarray
    mean: np.ndarray
    depends: np.ndarray

    @staticmethod
    def of(problem: Problem, model: ModelView) -> _Block:
        """At the model's weights; `depends` is still to be set."""
        rows, (triangle, mean) = (
            problem.rows(model),
            (np.stack(v) for v in zip(*(s.spread(DAMPING) for s in problem.systems), strict=False)),
        )
        bias = model.weights[problem.fit.bias].array() if problem.fit.bias else None
        return _Block(
            problem, rows, bias, triangle, mean, np.zeros((*rows.shape[:2], rows.shape[1]))
        )

    @property
    def size(self) -> int:
        """Coordinates: of the rows, and of a shift where it is free."""
        return self.rows.size + (0 if self.bias is None else self.depends[..., 0].size)

    def coordinates(self) -> np.ndarray:
        """Of the weight as it is."""
        at = np.zeros(self.size)
        at[: self.rows.size] = (self.depends.swapaxes(1, 2) @ self.rows @ self.triangle).ravel()
        return at

    def parameters(self, model: ModelView, at: np.ndarray) -> dict[str, np.ndarray]:
        """Initializers at these coordinates. The shift is what mean inputs give, so that rows change nothing of it."""
        z = _solved(self.depends, at[: self.rows.size].reshape(self.rows.shape), transposed=True)
        rows = _solved(self.triangle, z.swapaxes(1, 2), transposed=True).swapaxes(1, 2)
        values = {self.problem.fit.weight: self.problem.stored(model, rows)}
        if self.bias is not None:
            shift = _solved(
                self.depends, at[self.rows.size :].reshape(*self.rows.shape[:2], 1), transposed=True
            )[..., 0] + np.einsum("gok,gk->go", self.rows - rows, self.mean)
            values[self.problem.fit.bias] = (
                self.bias + (self.problem.scale * shift).reshape(self.bias.shape)
            ).astype(self.bias.dtype)
        return values

    def add_slope(
        self,
        values: Mapping[str, np.ndarray],
        gradient: np.ndarray,
        most: int,
        rng: np.random.Generator,
        by_rows: np.ndarray,
        by_shift: np.ndarray,
    ) -> None:
        """Add a piece's gradient by rows and by the shift, from at most so many positions a sample."""
        how = self.problem.how
        at = positions(gradient.shape, how.spatial, most, rng)
        x, g = columns(values[self.problem.node.input[0]], how, at), self.outputs(gradient, at)
        share = gradient.size / g.size
        for group, (gg, xx) in enumerate(zip(g, np.split(x, len(g)), strict=False)):
            by_rows[group] += (
                share * (xx @ gg.T).T
            )  # this way round it is a third faster where outputs are few
        by_shift += share * g.sum(2, dtype=np.float64)

    def slope(self, by_rows: np.ndarray, by_shift: np.ndarray) -> np.ndarray:
        """By the coordinates."""
        if self.bias is not None:
            by_rows = by_rows - by_shift[..., None] * self.mean[:, None]
        rows = _solved(self.depends, _solved(self.triangle, by_rows.swapaxes(1, 2)).swapaxes(1, 2))
        return np.concatenate(
            [
                rows.ravel(),
                *(
                    []
                    if self.bias is None
                    else [_solved(self.depends, by_shift[..., None]).ravel()]
                ),
            ]
        )

    def outputs(self, values: np.ndarray, at: tuple[np.ndarray, ...] | None = None) -> np.ndarray:
        """A tensor behind the node as (groups, outputs, positions), everywhere or at some of the positions."""
        how = self.problem.how
        at = (
            at if at is not None else tuple(np.arange(n) for n in values.shape[2 : 2 + how.spatial])
        )
        return outputs(values, how, at).reshape(*self.rows.shape[:2], -1)


def _solved(triangles: np.ndarray, values: np.ndarray, *, transposed: bool = False) -> np.ndarray:
    """X of L X = values, or of L' X, a group each; triangles: (groups, n, n), lower."""
    from scipy.linalg import solve_triangular

    return np.stack(
        [
            solve_triangular(t, v, lower=True, trans=int(transposed), check_finite=False)
            for t, v in zip(triangles, values, strict=False)
        ]
    )


def _squared(segment: Model, tensor: str, values: np.ndarray) -> str:
    """Append the squared distance of a tensor from an input; its name."""
    graph = segment.proto.graph
    wanted, away, squares, total = (
        f"{tensor}{end}" for end in (WANTED, "/away", "/squares", "/distance")
    )
    graph.input.append(helper.make_tensor_value_info(wanted, TensorProto.FLOAT, values.shape))
    graph.node.append(helper.make_node("Sub", [tensor, wanted], [away]))
    graph.node.append(helper.make_node("Mul", [away, away], [squares]))
    graph.node.append(helper.make_node("ReduceSum", [squares], [total], keepdims=1))
    graph.output.append(helper.make_empty_tensor_value_info(total))
    return total
