"""Layer selection: rounds of sensitivity analysis, selection, joint check and cut.

Source: Pavlitska et al. (2024), "Iterative Filter Pruning for Concatenation-based CNN
Architectures".

As published
    Each round measures every group alone at a few rates, ranks groups by the saving in parameters
    and in FLOPs, each times quality^exponent, cuts the first few of both lists, and fine-tunes. The
    exponent falls over the rounds.

Changed
    Sensitivities of single groups do not add up, so each selection is measured together and backed
    off from if quality falls by more than `max_drop`, but not below what the round has to save to
    meet the budget. Lists are those of the costs in the budget, with a third one by latency. Trials
    are networks refitted in closed form (`refit`), and exponents are larger where single groups
    cost little (`scaled`). The first entries of a sorted list are taken; the published search moves
    a threshold, which need not end if values are equal. Fine-tuning is optional (`tune`). The last
    round gives channels back until the budget is just met.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from onnxprune.criteria.memo import Memo
from onnxprune.errors import UsageError, plural
from onnxprune.files import hash_key
from onnxprune.ir.io import Model
from onnxprune.repair import REPAIRS
from onnxprune.search.base import (
    Kept,
    Search,
    keep_best,
    remaining_scores,
    settings,
    widen_groups,
)
from onnxprune.search.compose import Reduced, reduce_model, unreduced
from onnxprune.search.journal import Journal
from onnxprune.search.refitted import Refitted
from onnxprune.search.selection import (
    LAYERS,
    LayerSelectionSettings,
    Record,
    Selection,
    list_sizes,
    list_value,
    select,
)
from onnxprune.search.sensitivity import SensitivityBench, Sweep
from onnxprune.surgery.cut import cut
from onnxprune.types import Plan

# relative loss of quality of a typical group at the least rate that the exponents are meant for,
# and the least loss that is distinguished from none
TYPICAL_LOSS, LEAST_LOSS = 0.01, 1e-5


class _TrialNetwork:
    """The network that trials are cut from: the original, or a smaller, tuned one.

    Attributes
    ----------
    reduced
        Map between its channels and those of the original.
    bench
        Measures trials; its base holds the channels kept so far.
    free
        Groups that may be cut.
    scores
        Scores of the channels of each group.
    """

    def __init__(
        self, search: Search, chosen: LayerSelectionSettings, reduced: Reduced, fixed: Kept
    ) -> None:
        is_original = reduced.analysis is search.analysis
        context = search.context
        if not is_original:
            # results of one round are of no use in another
            context = replace(context, analysis=reduced.analysis, memo=Memo())
        self.search, self.reduced, self.analysis = search, reduced, reduced.analysis
        self.scores = replace(search, context=context).own_scores(chosen.refit)
        self.free = tuple(
            name
            for name in self.scores
            if name in reduced.origin and not reduced.original_groups(name) & fixed.keys()
        )
        # no path of a model: the bench receives the analysis instead
        sweep = Sweep(
            "",
            reduced.analysis.options,
            self.scores,
            search.gate("method layer-selection"),
            time=chosen.latency_layers > 0,
            threads=context.threads,
            batch_size=context.batch_size,
        )
        self.bench = SensitivityBench(
            sweep,
            reduced.analysis,
            search.analysis.model,
            Refitted.of(context) if chosen.refit else None,
        )
        # a smaller network has the fixed groups cut already
        self.bench.base = dict(fixed) if is_original else {}

    @property
    def left(self) -> Kept:
        """Return a copy of the channels kept so far."""
        return dict(self.bench.base)

    def met(self, kept: Kept) -> bool:
        """Return True if the budgets are met when this network keeps `kept`."""
        return self.search.met(self.reduced.compose(kept))

    def widths(self, name: str) -> list[int]:
        """Return the widths of a group that give the original group an allowed width."""
        return self.reduced.widths(name, self.search.constraints)

    def narrowed(self, name: str, rate: float) -> tuple[int, ...]:
        """Return the channels that a group keeps if at least `rate` of the remaining ones go.

        () if no allowed width is that small.
        """
        left = len(self.bench.base.get(name, self.scores[name]))
        count = max((w for w in self.widths(name) if w <= left * (1 - rate)), default=0)
        if count <= 0:
            return ()
        return keep_best(remaining_scores(self.scores, self.bench.base, name), count)


def layer_selection(search: Search) -> Plan:
    """Return the plan of as many rounds as the budget needs.

    Without tuning, the rounds mask more and more of one network. With it, each round begins with
    the smaller model, and the last round's model is the result (`Search.on_model`).

    Raises
    ------
    TargetError
        The rounds end above the budget.
    UsageError
        An option is invalid, or tuning is requested and not available.
    """
    options = settings(LayerSelectionSettings, search.options, "layer-selection")
    chosen = _fill_list_sizes(options, search)
    if chosen.tune and search.tune is None:
        raise UsageError(
            "method-option",
            f"layer-selection: tune={chosen.tune} works only in `optimize` with --data; leave it "
            "out here",
        )
    kept: Kept = {}
    if search.constraints.ratios:
        kept = search.fixed(search.own_scores(chosen.refit))
    fixed = kept
    reduced, network, model = unreduced(search.analysis), None, None
    rounds: list[dict[str, float]] = []
    factor = 1.0
    while len(rounds) < chosen.rounds and not search.met(kept):
        network = network or _TrialNetwork(search, chosen, reduced, fixed)
        if chosen.scaled and not rounds:
            factor = _compute_exponent_factor(chosen, network)
        left, quality = _run_round(chosen, network, len(rounds), factor)
        # a round may choose groups without an allowed smaller width
        before = network.left
        shrunk = sum(len(k) < len(before.get(n, network.scores[n])) for n, k in left.items())
        if not shrunk:
            break
        network.bench.base, kept = left, network.reduced.compose(left)
        macs = search.analysis.cost(kept).macs
        rounds.append({"macs": macs, "groups": shrunk, "quality": quality})
        if chosen.tune:
            model = _tune(chosen, network, len(rounds))
            # the next round starts from the tuned model, with new groups and scores
            reduced, network = reduce_model(search.analysis, kept, model), None
    if not search.met(kept):
        more = "max_drop or rounds" if search.constraints.measured else "rounds"
        raise search.missed(
            kept,
            f"layer-selection stopped after {plural(len(rounds), 'round')}; raise {more}, or give "
            "higher rates (--method-option)",
        )
    if model is None:
        return search.plan(kept, method="layer-selection", rounds=rounds)
    search.on_model(model)
    return search.plan(kept, method="layer-selection", rounds=rounds, tuned=chosen.tune)


def _fill_list_sizes(chosen: LayerSelectionSettings, search: Search) -> LayerSelectionSettings:
    """Return the settings with list sizes of -1 resolved by the costs in the budgets."""
    budgets = search.constraints.budgets.keys()
    # the costs that each list serves
    costs = {
        "params": {"params", "bytes"},
        "flops": {"macs", "activation_bytes"},
        "latency": search.constraints.measures.keys(),
    }
    sizes: dict[str, Any] = {
        f"{name}_layers": LAYERS[name] if names & budgets else 0
        for name, names in costs.items()
        if getattr(chosen, f"{name}_layers") < 0
    }
    return replace(chosen, **sizes)


def _compute_exponent_factor(chosen: LayerSelectionSettings, network: _TrialNetwork) -> float:
    """Return the factor on the exponents, at least 1.

    With the published exponents the search takes most of a few groups of a deep network, because
    none of them alone costs quality. The factor makes a group of median loss at the least rate
    weigh as much as one that costs TYPICAL_LOSS. The constant was chosen by divergence on
    calibration images not used otherwise (ResNet-56: 0.035 instead of 0.104). Exponents are not
    reduced where groups cost more, which was worse on a detector.
    """
    least_rate = replace(chosen, rates=str(chosen.ascending[0]))
    records = _measure_groups(least_rate, network, _round_journal(network, 0), 0, 1.0)
    base = records[0]["quality"]
    losses = [math.log(base / max(r["quality"], LEAST_LOSS)) for r in records[1:]]
    if not losses:
        return 1.0
    return max(TYPICAL_LOSS / max(float(np.median(losses)), LEAST_LOSS), 1.0)


def _round_journal(network: _TrialNetwork, number: int) -> Journal:
    """Return the journal of a round; its keys depend on the network and what it keeps so far."""
    digest = network.analysis.digest[:16]
    return network.search.journal.below(f"round {number} {digest} {hash_key(network.left)[:16]}:")


def _run_round(
    chosen: LayerSelectionSettings, network: _TrialNetwork, number: int, factor: float
) -> tuple[Kept, float]:
    """Return the channels kept after round `number`, and the quality with them.

    Quality is the agreement with the model that the search started from.
    """
    journal = _round_journal(network, number)
    records = _measure_groups(chosen, network, journal, number, factor)
    added: Kept = {}
    # take one more group per list until the round saves its share
    for extra in range(len(network.free) if len(records) > 1 else 0):
        choices = select(records, _schedule(chosen, number, factor, extra))
        # best first: `_check_together` takes a prefix
        by_value = sorted(choices, key=lambda c: -c.value)
        added = {c.group: network.narrowed(c.group, c.rate) for c in by_value}
        if added and _saves_share(chosen, network, {**network.left, **added}, number):
            break
    return _check_together(chosen, network, added, journal, number, float(records[0]["quality"]))


def _tune(chosen: LayerSelectionSettings, network: _TrialNetwork, number: int) -> Model:
    """Cut, repair and fine-tune the network."""
    search, analysis = network.search, network.analysis
    plan = analysis.plan(network.left)
    model = cut(analysis, plan)
    if chosen.repair != "none":
        context = replace(search.context, analysis=analysis, memo=Memo())
        model = REPAIRS.get(chosen.repair)(analysis, plan, model, context)
    search.progress(f"layer-selection round {number}, tuning with {chosen.tune}")
    assert search.tune is not None  # checked at the start of the search
    return search.tune(model, chosen.tune, chosen.tune_epochs)


def _measure_groups(
    chosen: LayerSelectionSettings,
    network: _TrialNetwork,
    journal: Journal,
    number: int,
    factor: float,
) -> list[Record]:
    """Return the sensitivities of a round, the record of the uncut network first.

    A group is measured at ascending rates while some list values the next rate more.
    """
    bench, how = network.bench, _schedule(chosen, number, factor)

    def measure(index: int, group: str, rate: float, kept: tuple[int, ...]) -> Record:
        about = {"index": index, "group": group, "rate": rate}
        return journal.recall(
            f"{group} {len(kept)}",
            lambda: {**about, **bench.figures({group: kept} if group else {})},
        )

    records = [measure(-1, "", 0.0, ())]
    for index, group in enumerate(network.free):
        best: dict[str, float] = {}
        for rate in chosen.ascending:
            kept = network.narrowed(group, rate)
            if not kept:
                break
            records.append(measure(index, group, rate, kept))
            values = {n: list_value(n, records[-1], how, records[0]) for n in list_sizes(how)}
            # higher rates only cost more quality once no list gains
            if not any(v > best.get(n, 0.0) for n, v in values.items()):
                break
            best = {n: max(v, best.get(n, 0.0)) for n, v in values.items()}
        network.search.progress(
            f"layer-selection round {number + 1}, {index + 1} of {len(network.free)}: {group}, "
            f"quality {records[-1]['quality']:.4f}"
        )
    return records


def _schedule(
    chosen: LayerSelectionSettings, number: int, factor: float, extra: int = 0
) -> Selection:
    """Return the selection of a round: exponents times `factor`, lists longer by `extra`.

    Exponents change linearly to `end_map` in the last round. Empty lists stay empty.
    """
    share = number / max(chosen.rounds - 1, 1)

    def exponent(start: float) -> float:
        return factor * (start + (chosen.end_map - start) * share)

    def length(layers: int) -> int:
        return layers + extra if layers else 0

    return Selection(
        length(chosen.params_layers),
        length(chosen.flops_layers),
        length(chosen.latency_layers),
        exponent(chosen.params_map),
        exponent(chosen.flops_map),
        exponent(chosen.latency_map),
    )


def _saves_share(
    chosen: LayerSelectionSettings, network: _TrialNetwork, left: Kept, number: int
) -> bool:
    """Return True if a round that keeps `left` saves its equal share of the excess."""
    return not network.search.behind_schedule(
        network.reduced.compose(network.left),
        network.reduced.compose(left),
        chosen.rounds - number,
    )


def _check_together(
    chosen: LayerSelectionSettings,
    network: _TrialNetwork,
    added: Kept,
    journal: Journal,
    number: int,
    before: float,
) -> tuple[Kept, float]:
    """Return the channels kept with the best choices that keep quality together, and the quality.

    Bisects for the most choices whose joint quality is at least `before` * (1 - max_drop), but
    takes as many as the round's share of the savings needs.

    Parameters
    ----------
    added
        Channels kept per chosen group, the best choice first.
    before
        Quality before the round.
    """
    names = list(added)
    if not names:
        return network.left, before

    def measure(count: int) -> tuple[Kept, float]:
        left = _trim(network, {n: added[n] for n in names[:count]})
        name = f"together {sorted((n, len(k)) for n, k in left.items())}"
        record = journal.recall(name, lambda: {"quality": network.bench.figures(left)["quality"]})
        return left, float(record["quality"])

    # the least number of choices that saves the share of the round, whatever the quality
    low = len(names)
    for count in range(1, len(names)):
        left = {**network.left, **{n: added[n] for n in names[:count]}}
        if _saves_share(chosen, network, left, number):
            low = count
            break
    # all choices first: they often keep the quality
    high = count = len(names)
    while low < high:
        if measure(count)[1] >= before * (1 - chosen.max_drop):
            low = count
        else:
            high = count - 1
        count = (low + high + 1) // 2
    return measure(low)


def _trim(network: _TrialNetwork, added: Kept) -> Kept:
    """Return the channels kept with these choices, widened until the budget is just met.

    The last choice is widened first, then the earlier ones and the groups of earlier rounds, so
    that no group can have one more step of its width. For a measured budget only the last choice
    is, as each trial takes time.
    """
    left = {**network.left, **added}
    if not network.met(left):
        return left
    order = [*reversed(added), *(n for n in left if n in network.free and n not in added)]
    if network.search.constraints.measured:
        order = order[:1]
    wider = widen_groups(left, order, network.scores, network.widths, network.met)
    return {n: k for n, k in wider.items() if len(k) < network.analysis.group(n).size}
