"""Group Fisher pruning inside the training loop: a hook with channel masks that close.

Every input of a convolution or product that carries channels passes a mask. The squared gradient
of a channel's mask, per sample and summed over its coupled copies and all positions before the
square, is accumulated over `interval` steps. Then the channels with the least importance for their
cost are removed, until the target is met.

Source: Liu et al. 2021, "Group Fisher Pruning for Practical Network Compression".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.allocators.base import Constraints, ordered, widths
from onnxprune.allocators.budgets import first_missed, unreachable
from onnxprune.analysis.groups import Analysis
from onnxprune.engines.cost.channel_costs import NORMALIZATIONS, channel_costs
from onnxprune.errors import UsageError, unknown
from onnxprune.statistics.gradients import copies
from onnxprune.tune.bridge import OnnxModule
from onnxprune.tune.call import Tensor, torch
from onnxprune.tune.distributed import join_world
from onnxprune.tune.losses import Head
from onnxprune.types import Plan

CUTS = 50  # cuts of a network unless `step` sets the channels per cut
_ALMOST_DONE = 0.999  # largest share that is reported before the target is met
_TINY = 1e-12


@dataclass(frozen=True)
class Pruning:
    """Rhythm and normalization of the cuts.

    Attributes
    ----------
    interval : int
        Training steps between two cuts.
    step : int
        Channels per cut; 0 = a fiftieth of all.
    lr_ratio : float
        Factor on the learning rate while channels are removed.
    normalization : str
        Key of NORMALIZATIONS: the cost that divides a channel's importance.
    engine : str
        Engine that measures the normalization "latency".
    """

    interval: int = 25
    step: int = 0
    lr_ratio: float = 1.0
    normalization: str = "flops"
    engine: str = "onnxruntime"

    def __post_init__(self) -> None:
        """Check the values; raise UsageError for one out of range."""
        if self.normalization not in NORMALIZATIONS:
            raise unknown("normalization", self.normalization, NORMALIZATIONS)
        if self.step < 0 or self.interval < 1 or self.lr_ratio <= 0:
            raise UsageError(
                "tune-setting",
                f"step {self.step} must be at least 0, interval {self.interval} at least 1, "
                f"lr_ratio {self.lr_ratio} above 0",
            )


class PruneByFisher:
    """Hook for `tune.finetune.tune` that closes channel masks while the network is trained.

    Parameters
    ----------
    analysis
        Analysis of the model that is trained.
    constraints
        Budgets on counted costs, and the allowed widths.
    pruning
        Rhythm and normalization of the cuts.
    labeled
        Take gradients of the training loss; False = of a loss on labels drawn from the outputs.
    seed
        Seed of the drawn labels.
    threads
        Threads of measurements.

    Raises
    ------
    UsageError
        A budget on a measured cost, which cannot be followed during training.
    """

    def __init__(
        self,
        analysis: Analysis,
        constraints: Constraints,
        pruning: Pruning,
        *,
        labeled: bool,
        seed: int = 0,
        threads: int = 1,
    ) -> None:
        measured = [c for c in constraints.budgets if c not in analysis.cost().as_dict()]
        if measured:
            raise UsageError(
                "target-counted",
                f"target {measured[0]} cannot be followed while training; "
                "give macs, params, bytes or activation_bytes",
            )
        self.analysis = analysis
        self.constraints = constraints
        self.pruning = pruning
        self.labeled = labeled
        self.seed = seed
        self.threads = threads
        places, lost = copies(analysis)
        self.tables = {(p.node, p.slot): (p.axis, table) for p, table in places.items()}
        # a group is pruned only if masks reach all causes of its channels
        reached = {c for table in places.values() for c in table.ravel().tolist()} - lost
        self.groups = [
            g.name for g in analysis.groups if reached.issuperset(analysis.causes[g.name].tolist())
        ]
        self.kept: dict[str, np.ndarray] = {
            n: np.ones(analysis.group(n).size, bool) for n in self.groups
        }
        channels = sum(analysis.group(n).size for n in self.groups)
        self.count = pruning.step or max(1, channels // CUTS)
        # indexed by cause; the last entry collects frozen positions
        self.sums = torch.zeros(analysis.axes.causes + 1, dtype=torch.float64)
        self.masked: dict[tuple[str, int], Tensor] = {}
        self.latency_costs: dict[str, np.ndarray] = {}

    @property
    def max_cuts(self) -> int:
        """Number of cuts after which all channels are removed."""
        return -(-sum(m.size for m in self.kept.values()) // self.count)

    def plan(self) -> Plan:
        """Return the plan with the kept channels of the analyzed model."""
        return self.analysis.plan(
            self._list_indices(),
            method="group-fisher",
            training=True,
            **vars(self.pruning),
            seed=self.seed,
        )

    def start(self, module: OnnxModule) -> None:
        """Apply the masks in the forward pass."""
        device = next(iter(module.parameters())).device
        self.sums = self.sums.to(device)
        # a position is closed if any of its causes is removed
        removed = self.analysis.removed(self._list_indices())
        module.gates = {
            key: self._build_gate(key, axis, ~removed[table].any(1), device)
            for key, (axis, table) in self.tables.items()
        }

    def before_step(self, module: OnnxModule, step: int) -> None:
        """Remove channels after each interval."""
        if step and step % self.pruning.interval == 0 and self.done() != 1.0:
            world = join_world(str(self.sums.device))
            # weight `size` makes the average a sum: each process saw other samples
            world.average([self.sums], world.size)
            self._cut(self.sums.cpu().numpy())
            # importance is that of the present interval: removed channels change the others'
            self.sums.zero_()
            self.start(module)

    def observe(
        self,
        loss: Tensor,
        tensors: Mapping[str, Tensor],
        heads: Sequence[Head],
        samples: int,
        step: int,
    ) -> None:
        """Add the squared mask gradients of a batch."""
        # the sum over samples, so that each sample's gradient is its own
        total = loss * samples if self.labeled else _draw_loss(tensors, heads, self.seed, step)
        live = {k: v for k, v in self.masked.items() if v.requires_grad}
        # allow_unused: the loss need not depend on every masked tensor
        gradients = torch.autograd.grad(
            total, list(live.values()), retain_graph=True, allow_unused=True
        )
        rows = torch.zeros(samples, len(self.sums), dtype=torch.float64, device=self.sums.device)
        for (key, value), gradient in zip(live.items(), gradients, strict=True):
            if gradient is None:
                continue
            axis, table = self.tables[key]
            per_sample = _sum_by_sample((value.detach() * gradient).double(), axis, samples)
            # several causes may meet in one position; each of them receives its gradient
            for column in torch.from_numpy(table.T.copy()).to(rows.device):
                rows.index_add_(1, column, per_sample)
        self.sums += rows.square().sum(0)
        self.masked = {}

    def done(self) -> float | None:
        """Return the saved share of what the first missed budget demands; 1 = all are met."""
        kept = self._list_indices()
        missed = first_missed(self.analysis, self.constraints, kept)
        if missed is None:
            return 1.0
        original = self.analysis.cost().as_dict()[missed]
        present = self.analysis.cost(kept).as_dict()[missed]
        demanded = original - self.constraints.budgets[missed]
        # 1 means that all budgets are met
        return min((original - present) / max(demanded, _TINY), _ALMOST_DONE)

    def accepts(self, step: int) -> bool:
        """Return True once the target is met."""
        return self.done() == 1.0

    def signature(self) -> str:
        """Return model, budgets and settings as text."""
        return f"{self.analysis.digest} {self.constraints} {self.pruning} {self.labeled}"

    def state(self) -> dict[str, Any]:
        """Return the kept channels and the sums of the present interval."""
        return {"sums": self.sums, "kept": {n: torch.from_numpy(m) for n, m in self.kept.items()}}

    def restore(self, module: OnnxModule, state: Mapping[str, Any]) -> None:
        """Take the masks and sums of a checkpoint."""
        self.sums, self.kept = state["sums"], {n: m.numpy() for n, m in state["kept"].items()}
        self.start(module)

    def _list_indices(self) -> dict[str, tuple[int, ...]]:
        """Return the kept channels by group."""
        return {n: tuple(np.flatnonzero(m).tolist()) for n, m in self.kept.items()}

    def _build_gate(
        self, key: tuple[str, int], axis: int, kept: np.ndarray, device: Any
    ) -> Callable[[Tensor], Tensor]:
        """Return a function that multiplies by a mask and records the product for its gradient."""
        mask = torch.from_numpy(kept.astype(np.float32)).to(device)

        def apply(value: Tensor) -> Tensor:
            shape = [1] * value.ndim
            shape[axis] = -1
            product = value * mask.to(value.dtype).reshape(shape)
            if torch.is_grad_enabled():
                self.masked[key] = product
            return product

        return apply

    def _cut(self, sums: np.ndarray) -> None:
        """Close the masks with the least importance for their cost.

        Stops after `count` channels, or once the target is met.
        """
        removed = 0
        while removed < self.count and self._find_missed() is not None:
            costs = self._measure_costs()
            steps = []
            for name in self.groups:
                step = self._find_next_step(name, sums[self.analysis.causes[name]], costs[name])
                if step is not None:
                    steps.append(step)
            if not steps:
                cost = self._find_missed() or next(iter(self.constraints.budgets))
                raise unreachable(self.analysis, self.constraints, self._list_indices(), cost)
            # one group per iteration: its removal changes the costs of the others
            _, name, channels = min(steps, key=lambda step: step[0])
            self.kept[name][channels] = False
            removed += len(channels)

    def _find_next_step(
        self, name: str, scores: np.ndarray, costs: np.ndarray
    ) -> tuple[float, str, np.ndarray] | None:
        """Return (importance over cost, group, channels) of the step to the next allowed width."""
        kept = np.flatnonzero(self.kept[name])
        width = next((w for w in widths(len(scores), self.constraints) if w < len(kept)), None)
        if width is None:
            return None
        channels = kept[ordered(scores[kept])[: len(kept) - width]]
        return float(scores[channels].sum() / costs[channels].sum()), name, channels

    def _measure_costs(self) -> dict[str, np.ndarray]:
        """Return the cost of each channel at the present widths; latency is measured once only."""
        if self.pruning.normalization != "latency" or not self.latency_costs:
            self.latency_costs = channel_costs(
                self.analysis,
                self.pruning.normalization,
                self.pruning.engine,
                threads=self.threads,
                kept=self._list_indices(),
            )
        return self.latency_costs

    def _find_missed(self) -> str | None:
        """Return the first cost over its budget, None if all are met."""
        return first_missed(self.analysis, self.constraints, self._list_indices())


def _draw_loss(
    tensors: Mapping[str, Tensor], heads: Sequence[Head], seed: int, step: int
) -> Tensor:
    """Return the sum over samples of a loss without labels.

    Cross-entropy against classes drawn from the outputs; for outputs without classes the product
    with a random vector of signs.
    """
    entropy = [seed, step, join_world("").rank]
    generator = torch.Generator().manual_seed(
        int(np.random.SeedSequence(entropy).generate_state(1)[0])
    )
    terms = []
    for head in heads:
        values = tensors[head.tensor]
        if head.axis is None:
            # drawn on the host, so that all devices get the same values
            signs = torch.randint(0, 2, values.shape, generator=generator).to(values.device) * 2 - 1
            terms.append((values * signs).sum())
        else:
            rows = values.movedim(head.axis, -1).flatten(0, -2)
            probabilities = rows.detach().softmax(-1).cpu()
            labels = torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(rows.device)
            terms.append(torch.nn.functional.cross_entropy(rows, labels, reduction="sum"))
    return torch.stack(terms).sum()


def _sum_by_sample(values: Tensor, axis: int, samples: int) -> Tensor:
    """Return (samples, channels): the sum over all other positions.

    A tensor without an axis for the samples counts as one sample.
    """
    shape = values.shape
    own = next((i for i, n in enumerate(shape) if n == samples and i != axis), None)
    # windows or patches of a sample are consecutive on axis 0
    if own is None and axis and len(values) % samples == 0:
        values, own, axis = values.unflatten(0, (samples, -1)), 0, axis + 1
    if own is None:
        total = values.movedim(axis, 0).flatten(1).sum(1)[None]
        return torch.cat([total, values.new_zeros(samples - 1, shape[axis])])
    rows = values.movedim((own, axis), (0, 1))
    return rows.flatten(2).sum(2) if values.ndim > 2 else rows
