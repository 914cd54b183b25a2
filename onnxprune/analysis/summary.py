"""Summary of an analysis: groups with their widths, and what is frozen."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.errors import plural
from onnxprune.summary import Summarized
from onnxprune.types import Cost, Frozen, Group


class AnalysisSummary(Summarized):
    """Texts of `Analysis`."""

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]

    def cost(self) -> Cost:
        """Return the costs, see `Analysis`."""
        raise NotImplementedError

    def _title(self) -> str:
        """Return numbers of channels, groups, MACs and frozen axes."""
        channels = sum(group.size for group in self.groups)
        return (
            f"{plural(channels, 'channel')} in {plural(len(self.groups), 'group')}, "
            f"{self.cost().macs:,} MACs, {plural(len(self.frozen), 'frozen axis', 'frozen axes')}"
        )

    def _rows(self) -> Sequence[Sequence[str]]:
        """Return one row per group."""
        rows = [("group", "channels", "exact")]
        rows += [(g.name, str(g.size), "yes" if g.exact else "no") for g in self.groups]
        return rows
