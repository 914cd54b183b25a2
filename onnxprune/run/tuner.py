"""Tuning between the rounds of a search: searches and tuning are siblings, so a run hands this down."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.criteria.base import Context
from onnxprune.events import Event
from onnxprune.ir.io import Model, digest
from onnxprune.run.recipe import Recipe
from onnxprune.run.rundir import key
from onnxprune.run.stages import Stages
from onnxprune.tune.settings import TuneSettings


@dataclass
class Tuner:
    """(model, loss, epochs) -> tuned by the run's calibration data after the original, with a checkpoint in the run directory.

    model: what the search ended with where it tuned; it takes the place of a repair of the original.
    """

    stages: Stages
    context: Context
    recipe: Recipe
    model: Model | None = None

    def __call__(self, model: Model, loss: str, epochs: int) -> Model:
        """The tuned model; a run that was killed goes on from its checkpoint, and a finished one is read from it."""
        from onnxprune.tune.finetune import tune

        recipe, context = self.recipe, self.context
        settings = TuneSettings(
            loss=loss,
            epochs=epochs,
            batch_size=recipe.batch_size,
            augment="flip" if recipe.flip else "none",
            threads=recipe.threads,
            seed=recipe.seed,
            class_offset=recipe.class_offset,
        )
        what = key(
            digest(model), loss, epochs, recipe.plain("runtime"), recipe.flip, recipe.class_offset
        )
        place = self.stages.run.file(f"tune-{what[:12]}.checkpoint") if self.stages.run else None
        return tune(
            model,
            context.required_data("tuning"),
            settings,
            teacher=context.analysis.model,
            checkpoint=place,
            on_event=self._told,
        ).model

    def made(self, model: Model) -> None:
        """The search ended with this."""
        self.model = model

    def _told(self, event: Event) -> None:
        self.stages.progress(None, f"tuning, {event.detail}", event.left_s)
