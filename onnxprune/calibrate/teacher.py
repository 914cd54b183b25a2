"""Labels and targets of a batch as another model gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.calibrate.backward import LABELS, Loss
from onnxprune.calibrate.backward.losses import signs, start_tensor
from onnxprune.model.io import Model
from onnxprune.model.runtime import Session


class Teacher:
    """What a smaller model is to say, drawn from what another model with the same heads says.

    Labels of a head with classes are drawn from its softmax; targets of any other are its values less a sign, as if drawn from a distribution of
    variance 1 around them. Squared gradients of these losses are, in expectation, the smaller model's Fisher information and, above it, the squared
    gradient of its distance to the teacher, which is 0 where the two say the same.
    """

    def __init__(self, model: Model, losses: Sequence[Loss], threads: int = 1) -> None:
        self.starts = {loss: start_tensor(model, loss) for loss in losses}
        self.session = Session(model, list(dict.fromkeys(self.starts.values())), threads=threads)

    def draw(self, feeds: Mapping[str, np.ndarray], generator: np.random.Generator) -> dict[str, np.ndarray]:
        """A value for the input of each loss."""
        found = self.session.run(feeds)
        return {loss.input: _drawn(loss, found[start], generator) for loss, start in self.starts.items()}


def _drawn(loss: Loss, head: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return (head + generator.gumbel(size=head.shape)).argmax(loss.axis) if loss.kind == LABELS else head - signs(head.shape, generator)
