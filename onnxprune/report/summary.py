"""Summary of a report: costs, latency and quality, before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onnxprune.report.text import amount
from onnxprune.summary import Summarized

_COSTS = (
    ("macs", "MACs", ""),
    ("params", "params", ""),
    ("bytes", "size", "B"),
    ("activation_bytes", "activations", "B"),
)


class ReportSummary(Summarized):
    """Texts of `Report`."""

    before: Any
    after: Any
    latency: Mapping[str, Any]
    quality: Mapping[str, Any]
    fidelity: Any
    verdicts: Sequence[Any]

    def _title(self) -> str:
        """Return the MACs, and the verdicts if there are any."""
        before, after = self.before.macs, self.after.macs
        share = f" ({100 * after / before:.1f} %)" if before else ""
        macs = f"{amount(before)} -> {amount(after)} MACs{share}"
        return "; ".join([macs, *(f"{v.aspect} {v.level}" for v in self.verdicts)])

    def _rows(self) -> Sequence[Sequence[str]]:
        """Return one row per cost, engine, metric and verdict."""
        return [("", "before", "after", "change"), *self._list_figures()]

    def _list_figures(self) -> Iterator[tuple[str, str, str, str]]:
        for name, label, unit in _COSTS:
            before, after = getattr(self.before, name), getattr(self.after, name)
            if before and after is not None:
                change = f"{100 * after / before:.1f} %"
                yield label, amount(before, unit), amount(after, unit), change
        for engine, row in self.latency.items():
            change = f"{row.speedup:.2f}x"
            yield engine, f"{row.before_ms:.3g} ms", f"{row.after_ms:.3g} ms", change
        for metric, row in self.quality.items():
            change = f"{row.after - row.before:+.3g}"
            yield metric, f"{row.before:.4g}", f"{row.after:.4g}", change
        if self.fidelity.agreement is not None:
            yield "agreement", "", f"{100 * self.fidelity.agreement:.1f} %", ""
        if self.fidelity.relative_error is not None:
            yield "relative error", "", f"{self.fidelity.relative_error:.3g}", ""
