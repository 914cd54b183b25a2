"""Callback that fine-tunes the model between the rounds of a search.

It is injected because `search` must not import `tune`.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.criteria.base import Context
from onnxprune.events import Event
from onnxprune.files import hash_key
from onnxprune.ir.io import Model, digest
from onnxprune.run.recipe import Recipe
from onnxprune.run.stages import Stages
from onnxprune.tune.settings import TuneSettings


@dataclass
class Tuner:
    """Callable (model, loss, epochs) -> the model, tuned on the calibration data.

    The original is the teacher. A checkpoint in the run directory lets a killed run resume.

    Attributes
    ----------
    model
        Final model of a search that tunes, used instead of a repaired cut; None before.
    """

    stages: Stages
    context: Context
    recipe: Recipe
    model: Model | None = None

    def __call__(self, model: Model, loss: str, epochs: int) -> Model:
        """Tune a model, or read the result from its checkpoint if that is finished."""
        # needs torch, which is optional
        from onnxprune.tune.finetune import tune

        recipe, context = self.recipe, self.context
        settings = TuneSettings(
            loss=loss,
            epochs=epochs,
            batch_size=recipe.batch_size,
            augment="flip" if recipe.flip else "none",
            threads=recipe.threads or 1,  # torch rounds sums by their number
            seed=recipe.seed,
            class_offset=recipe.class_offset,
        )
        # of all that the result depends on, so that no other model's checkpoint is resumed
        name = hash_key(
            digest(model), loss, epochs, recipe.plain("runtime"), recipe.flip, recipe.class_offset
        )
        run = self.stages.run
        return tune(
            model,
            context.required_data("tuning"),
            settings,
            teacher=context.analysis.model,
            checkpoint=run.file(f"tune-{name[:12]}.checkpoint") if run else None,
            on_event=self._report,
        ).model

    def accept(self, model: Model) -> None:
        """Keep the final model of the search."""
        self.model = model

    def _report(self, event: Event) -> None:
        """Report the progress of tuning as that of the running stage."""
        self.stages.progress(None, f"tuning, {event.detail}", event.left_s)
