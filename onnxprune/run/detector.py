"""Recognition of a detector's head, so that its boxes can be scored and compared."""

from __future__ import annotations

from dataclasses import replace

from onnxprune.data.dataset import Data
from onnxprune.data.labeled import LabeledData
from onnxprune.errors import OnnxpruneError
from onnxprune.ir.io import Model
from onnxprune.ir.runtime import Session
from onnxprune.metrics.decoding import recognized_head
from onnxprune.metrics.detection import BOX_METRICS
from onnxprune.metrics.fidelity import find_input_sizes
from onnxprune.metrics.heads import describe_outputs
from onnxprune.run.recipe import Recipe

LEAST_RANK = 2  # of an output of boxes


def name_decoder(model: Model, data: Data | LabeledData, recipe: Recipe) -> tuple[Recipe, str]:
    """Return the recipe with the decoder that the model's outputs call for, and a sentence on it.

    The recipe is unchanged and the sentence "" if it names a decoder, the outputs are boxes or of
    no known head, or the metrics need no boxes. The model is run on one sample, so that both models
    of a comparison are decoded alike.

    Raises
    ------
    UsageError
        Two heads have this layout, and a metric needs boxes.
    """
    needed = any(name in BOX_METRICS for name in recipe.metric)
    if recipe.decoder is not None or (recipe.metric and not needed) or not _may_detect(model):
        return recipe, ""
    try:
        feeds = next(iter(data.batches(1)))
        sizes = find_input_sizes(feeds)
        if not sizes:
            return recipe, ""
        outputs = Session(model, threads=recipe.compute_threads).run(feeds)
        name = recognized_head(outputs, sizes)
    except OnnxpruneError:
        # without labels, outputs in doubt are compared as numbers; with them, scoring needs boxes
        if needed:
            raise
        return recipe, ""
    if name is None:
        return recipe, ""
    text = (
        f"outputs look like {name}: {describe_outputs(outputs)}; decoding with {name} "
        "(--decoder chooses another)"
    )
    return replace(recipe, decoder=name), text


def _may_detect(model: Model) -> bool:
    """Return whether the outputs have the rank of boxes; others save a run."""
    graph = model.proto.graph
    images = [v for v in graph.input if len(v.type.tensor_type.shape.dim) == 4]
    ranks = [len(v.type.tensor_type.shape.dim) for v in graph.output]
    # a rank of 0 is that of an output whose shape is not declared
    return len(images) == 1 and any(rank > LEAST_RANK or rank == 0 for rank in ranks)
