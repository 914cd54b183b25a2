"""Models whose time is computed instead of measured."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import numpy as np

from onnxprune.engines.base import Compiled
from onnxprune.ir.io import Model
from onnxprune.ir.runtime import Session


class ComputedModel(Compiled):
    """A graph whose time is computed; its outputs are onnxruntime's."""

    def __init__(self, model: Model) -> None:
        self.outputs = tuple(o.name for o in model.proto.graph.output)
        self._model = model
        self._session: Session | None = None

    @property
    @abstractmethod
    def latency_ms(self) -> float:
        """Computed time of one run."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run onnxruntime; the session is created on first use."""
        # most callers need only the latency, for which the model is not run
        if self._session is None:
            self._session = Session(self._model)
        return self._session.run(feeds)

    def sample(self, feeds: Mapping[str, np.ndarray], count: int) -> list[float]:
        """Return the computed latency `count` times."""
        return [self.latency_ms] * count
