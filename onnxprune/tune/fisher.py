"""Masks of channels that close while a network is trained: the hook of Group Fisher pruning inside the training loop.

Source: Liu et al. 2021, "Group Fisher Pruning for Practical Network Compression", and METHODS.md section 3. Every input of a convolution or product that
carries channels passes a mask. The squared gradient of a channel's mask, a sample, summed over its coupled copies and all positions before the square, is
added up over `interval` steps; then the channels with the least of it for what they cost go, until the target is met.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.allocators.base import Constraints, first_missed, ordered, unreachable, widths
from onnxprune.analysis.groups import Analysis
from onnxprune.engines.cost.channel_costs import NORMALIZATIONS, channel_costs
from onnxprune.errors import TargetError, UsageError, unknown
from onnxprune.statistics.gradients import copies
from onnxprune.tune.bridge import OnnxModule
from onnxprune.tune.call import Tensor, torch
from onnxprune.tune.distributed import join_world
from onnxprune.tune.losses import Head
from onnxprune.types import Plan

CUTS = 50  # of a whole network, where `step` does not say it


@dataclass(frozen=True)
class Pruning:
    """interval: steps of training between two cuts; step: channels of a cut, 0 = a fiftieth of all; lr_ratio: share of the learning rate while channels
    go; normalization: of NORMALIZATIONS, what a channel's importance is divided by; engine: whose latency.
    """

    interval: int = 25
    step: int = 0
    lr_ratio: float = 1.0
    normalization: str = "flops"
    engine: str = "onnxruntime"

    def __post_init__(self) -> None:
        if self.normalization not in NORMALIZATIONS:
            raise unknown("normalization", self.normalization, NORMALIZATIONS)
        if self.step < 0 or self.interval < 1 or self.lr_ratio <= 0:
            raise UsageError(
                "tune-setting",
                f"step {self.step} must be 0 or more, interval {self.interval} at least 1, lr_ratio {self.lr_ratio} above 0",
            )


class PruneByFisher:
    """A hook for `tune.finetune.tune`: masks that close while the network is trained."""

    def __init__(
        self,
        analysis: Analysis,
        constraints: Constraints,
        how: Pruning,
        *,
        labeled: bool,
        seed: int = 0,
        threads: int = 1,
    ) -> None:
        measured = [c for c in constraints.budgets if c not in analysis.cost().as_dict()]
        if measured:
            raise UsageError(
                "target-counted",
                f"target {measured[0]} cannot be followed while training; give macs, params, bytes or activation_bytes",
            )
        self.analysis, self.constraints, self.how, self.labeled, self.seed, self.threads = (
            analysis,
            constraints,
            how,
            labeled,
            seed,
            threads,
        )
        places, lost = copies(analysis)
        self.tables = {(p.node, p.slot): (p.axis, table) for p, table in places.items()}
        reached = {c for table in places.values() for c in table.ravel().tolist()} - lost
        self.groups = [
            g.name for g in analysis.groups if reached.issuperset(analysis.causes[g.name].tolist())
        ]
        self.kept: dict[str, np.ndarray] = {
            n: np.ones(analysis.group(n).size, bool) for n in self.groups
        }
        self.count = how.step or max(1, sum(analysis.group(n).size for n in self.groups) // CUTS)
        self.sums = torch.zeros(analysis.axes.causes + 1, dtype=torch.float64)
        self.passed: dict[tuple[str, int], Tensor] = {}
        self.timed: dict[str, np.ndarray] = {}

    @property
    def most_cuts(self) -> int:
        """Cuts until nothing is left, at the most."""
        return -(-sum(m.size for m in self.kept.values()) // self.count)

    def plan(self) -> Plan:
        """Which channels stay, of the analyzed model."""
        return self.analysis.plan(
            self._indices(), method="group-fisher", training=True, **vars(self.how), seed=self.seed
        )

    def start(self, module: OnnxModule) -> None:
        """Masks enter the forward pass."""
        device = next(iter(module.parameters())).device
        self.sums = self.sums.to(device)
        gone = self.analysis.removed(self._indices())
        module.gates = {
            key: self._gate(key, axis, ~gone[table].any(1), device)
            for key, (axis, table) in self.tables.items()
        }

    def before_step(self, module: OnnxModule, step: int) -> None:
        """A cut after each interval."""
        if step and step % self.how.interval == 0 and self.done() != 1.0:
            world = join_world(str(self.sums.device))
            world.average([self.sums], world.size)
            self._cut(self.sums.cpu().numpy())
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
        goal = loss * samples if self.labeled else _drawn(tensors, heads, self.seed, step)
        live = {k: v for k, v in self.passed.items() if v.requires_grad}
        gradients = torch.autograd.grad(
            goal, list(live.values()), retain_graph=True, allow_unused=True
        )
        rows = torch.zeros(samples, len(self.sums), dtype=torch.float64, device=self.sums.device)
        for (key, value), gradient in zip(live.items(), gradients, strict=False):
            if gradient is None:
                continue
            axis, table = self.tables[key]
            found = _by_sample((value.detach() * gradient).double(), axis, samples)
            for column in torch.from_numpy(table.T.copy()).to(rows.device):
                rows.index_add_(1, column, found)
        self.sums += rows.square().sum(0)
        self.passed = {}

    def done(self) -> float | None:
        """Share of the first budget's way that is behind."""
        kept = self._indices()
        missed = first_missed(self.analysis, self.constraints, kept)
        if missed is None:
            return 1.0
        whole, now, limit = (
            self.analysis.cost().as_dict()[missed],
            self.analysis.cost(kept).as_dict()[missed],
            self.constraints.budgets[missed],
        )
        return min((whole - now) / max(whole - limit, 1e-12), 0.999)

    def accepts(self, step: int) -> bool:
        """Once the target is met."""
        return self.done() == 1.0

    def signature(self) -> str:
        """The model, the budgets and how they are met."""
        return f"{self.analysis.digest} {self.constraints} {self.how} {self.labeled}"

    def state(self) -> dict[str, Any]:
        """What stays, and the sums of the present interval."""
        return {"sums": self.sums, "kept": {n: torch.from_numpy(m) for n, m in self.kept.items()}}

    def restore(self, module: OnnxModule, state: Mapping[str, Any]) -> None:
        """Of a checkpoint."""
        self.sums, self.kept = state["sums"], {n: m.numpy() for n, m in state["kept"].items()}
        self.start(module)

    def _indices(self) -> dict[str, tuple[int, ...]]:
        return {n: tuple(np.flatnonzero(m).tolist()) for n, m in self.kept.items()}

    def _gate(
        self, key: tuple[str, int], axis: int, stays: np.ndarray, device: Any
    ) -> Callable[[Tensor], Tensor]:
        """Multiplies by a mask, and keeps what comes out for its gradient."""
        mask = torch.from_numpy(stays.astype(np.float32)).to(device)

        def pass_on(value: Tensor) -> Tensor:
            shape = [1] * value.ndim
            shape[axis] = -1
            out = value * mask.to(value.dtype).reshape(shape)
            if torch.is_grad_enabled():
                self.passed[key] = out
            return out

        return pass_on

    def _cut(self, sums: np.ndarray) -> None:
        """Close the masks of the channels with the least importance for their cost, until `count` are gone or the target is met."""
        removed = 0
        while (
            removed < self.count
            and first_missed(self.analysis, self.constraints, self._indices()) is not None
        ):
            costs = self._costs()
            bundles = [
                b
                for n in self.groups
                for b in [self._bundle(n, sums[self.analysis.causes[n]], costs[n])]
                if b is not None
            ]
            if not bundles:
                raise self._missed()
            _, name, channels = min(bundles, key=lambda b: b[0])
            self.kept[name][channels] = False
            removed += len(channels)

    def _bundle(
        self, name: str, scores: np.ndarray, costs: np.ndarray
    ) -> tuple[float, str, np.ndarray] | None:
        """(importance over cost, group, channels) of the step to the next allowed width."""
        left = np.flatnonzero(self.kept[name])
        target = next((w for w in widths(len(scores), self.constraints) if w < len(left)), None)
        if target is None:
            return None
        part = left[ordered(scores[left])[: len(left) - target]]
        return float(scores[part].sum() / costs[part].sum()), name, part

    def _costs(self) -> dict[str, np.ndarray]:
        """What a channel costs at the present widths; time, which is measured, once."""
        if self.how.normalization != "latency" or not self.timed:
            self.timed = channel_costs(
                self.analysis,
                self.how.normalization,
                self.how.engine,
                threads=self.threads,
                kept=self._indices(),
            )
        return self.timed

    def _missed(self) -> TargetError:
        cost = first_missed(self.analysis, self.constraints, self._indices()) or next(
            iter(self.constraints.budgets)
        )
        return unreachable(self.analysis, self.constraints, self._indices(), cost)


def _drawn(tensors: Mapping[str, Tensor], heads: Sequence[Head], seed: int, step: int) -> Tensor:
    """Sum over samples of a loss without labels: cross-entropy against classes drawn from the answers, a vector of signs for outputs without classes."""
    generator = torch.Generator().manual_seed(
        int(np.random.SeedSequence([seed, step, join_world("").rank]).generate_state(1)[0])
    )
    terms = []
    for head in heads:
        values = tensors[head.tensor]
        if head.axis is None:
            signs = torch.randint(0, 2, values.shape, generator=generator).to(values.device) * 2 - 1
            terms.append((values * signs).sum())
        else:
            rows = values.movedim(head.axis, -1).flatten(0, -2)
            labels = torch.multinomial(rows.detach().softmax(-1).cpu(), 1, generator=generator)[
                :, 0
            ].to(rows.device)
            terms.append(torch.nn.functional.cross_entropy(rows, labels, reduction="sum"))
    return torch.stack(terms).sum()


def _by_sample(values: Tensor, axis: int, samples: int) -> Tensor:
    """(samples, channels): the sum over all other positions. A tensor without an axis for the samples counts as one sample."""
    own = next((i for i, n in enumerate(values.shape) if n == samples and i != axis), None)
    if (
        own is None and axis and len(values) % samples == 0
    ):  # windows or patches of a sample lie behind one another
        values, own, axis = values.unflatten(0, (samples, -1)), 0, axis + 1
    if own is None:
        return torch.cat(
            [
                values.movedim(axis, 0).flatten(1).sum(1)[None],
                values.new_zeros(samples - 1, values.shape[axis]),
            ]
        )
    return (
        values.movedim((own, axis), (0, 1)).flatten(2).sum(2)
        if values.ndim > 2
        else values.movedim((own, axis), (0, 1))
    )
