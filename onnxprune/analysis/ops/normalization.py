"""Normalizations."""

from __future__ import annotations

from onnxprune.analysis.rule import Rule, View, axes_letters, axis_attribute

_BATCH_NORMALIZATION_PER_CHANNEL = 9  # first opset without the attribute `spatial`


def layer_normalization(view: View) -> Rule:
    """Normalize over `axis` and all axes after it, which scale and bias have as well."""
    names = axes_letters(view)
    axis = axis_attribute(view, -1, len(names))
    tail = names[axis:]
    left = [" ".join(names)] + [" ".join(tail)] * (view.inputs - 1)
    stats = " ".join([*names[:axis], *"1" * len(tail)])
    return Rule(f"{', '.join(left)} -> {' '.join(names)}, {stats}, {stats}", mixes=tail)


def rms_normalization(view: View) -> Rule:
    """Divide by the root mean square over `axis` and all axes after it; zeros add nothing."""
    names = axes_letters(view)
    axis = axis_attribute(view, -1, len(names))
    tail = names[axis:]
    left = [" ".join(names)] + [" ".join(tail)] * (view.inputs - 1)
    stats = " ".join([*names[:axis], *"1" * len(tail)])
    pattern = f"{', '.join(left)} -> {' '.join(names)}, {stats}"
    if view.has_output(1):  # the inverse of the root, which no scale corrects
        return Rule(pattern, mixes=tail)
    return Rule(pattern, sums=tail, root_mean=(tail, 1))


def batch_normalization(view: View) -> Rule:
    """Normalize per channel by stored statistics.

    In training mode the statistics are those of the batch, over all axes except that of the
    channels; the updated ones are further outputs. Before opset 9, parameters of a node with
    spatial=0 have all axes but that of the batch.
    """
    if view.opset < _BATCH_NORMALIZATION_PER_CHANNEL and not view.integer("spatial", 1):
        return Rule("n c *, c *, c *, c *, c * -> n c *", freeze="*")
    # the first opset with training_mode is 14; before, further outputs mean training
    training = view.outputs > 1 or bool(view.integer("training_mode", 0))
    right = "n c *" + ", c" * (view.outputs - 1)
    return Rule(f"n c *, c, c, c, c -> {right}", mixes="n*" if training else "")


def group_normalization(view: View) -> Rule:
    """Normalize per group of channels; scale and bias are per group before opset 21."""
    scale = "(g c)" if view.opset >= 21 else "g"
    return Rule(
        f"n (g c) *, {scale}, {scale} -> n (g c) *",
        {"g": "num_groups"},
        mixes="c*",
        refit={"num_groups": "g"},
    )


def mean_variance_normalization(view: View) -> Rule:
    """Normalize over `axes`, by default all but that of the channels."""
    names = axes_letters(view)
    axes = view.integers("axes")
    # the default of the operator: batch and space of an image
    mixed = {names[a] for a in ([0, 2, 3] if axes is None else axes)}
    return Rule(f"{' '.join(names)} -> {' '.join(names)}", mixes="".join(sorted(mixed)))


def local_response_normalization(view: View) -> Rule:
    """Divide by a sum over `size` neighboring channels; a size of 1 leaves each on its own."""
    return Rule("n c * -> n c *", mixes="" if view.integer("size", 0) == 1 else "c")


def lp_normalization(view: View) -> Rule:
    """Divide by the norm along `axis`, to which a zero adds nothing."""
    names = axes_letters(view)
    axis = axis_attribute(view, -1, len(names))
    return Rule(f"{' '.join(names)} -> {' '.join(names)}", sums=names[axis])
