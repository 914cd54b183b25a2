"""Canonical form: functions inlined, constants as initializers, known shape arithmetic folded.

Only what is known for any input is folded, so no dynamic size becomes static.
"""

from __future__ import annotations

from onnxprune.errors import ModelError
from onnxprune.ir.inference import infer, reject_contradictions
from onnxprune.ir.limits import check_ends, check_expansion, check_nodes, check_sizes
from onnxprune.ir.model import EditableModel, Model, ModelView
from onnxprune.ir.nodes import STANDARD_DOMAINS
from onnxprune.ir.passes.channel_shuffle import replace_shuffles
from onnxprune.ir.passes.expand_fused import expand_fused
from onnxprune.ir.passes.fold_constants import fold_constants, inline_branches
from onnxprune.ir.passes.fold_weight_standardization import fold_weight_standardization
from onnxprune.ir.passes.inline_functions import inline_functions
from onnxprune.ir.passes.lift_constants import lift_constants
from onnxprune.ir.passes.names import (
    name_batch_statistics,
    name_body_outputs,
    rename_duplicates,
)
from onnxprune.ir.passes.range_scalars import make_range_scalars
from onnxprune.ir.passes.rank_branches import choose_branch_by_rank
from onnxprune.ir.passes.remove_unused import remove_dead, remove_identities
from onnxprune.ir.passes.separate_states import separate_states
from onnxprune.ir.passes.sequences import replace_sequences
from onnxprune.ir.passes.slice_assign import rewrite_slice_assignments
from onnxprune.ir.passes.split_fused_qkv import split_fused_projections
from onnxprune.ir.passes.unpack_attention import unpack_attention
from onnxprune.ir.passes.validate import check_loops, validate
from onnxprune.ir.shapes import Shapes

OLDEST_OPSET = 7


def canonicalize(model: ModelView) -> Model:
    """Return an equivalent model in canonical form.

    Raises
    ------
    ModelError
        As of `canonicalize_with_shapes`.
    """
    return canonicalize_with_shapes(model)[0]


def canonicalize_with_shapes(model: ModelView) -> tuple[Model, Shapes | None]:
    """Return an equivalent model in canonical form, and the shapes of its tensors.

    The shapes are None if no pass needed those of the final graph, or a rank is unknown for which
    `infer` would ask a fallback.

    Raises
    ------
    ModelError
        The opset is below 7, a name is undefined or defined twice, the nodes are not in topological
        order, or a node contradicts its operator's definition.
    """
    if model.opset < OLDEST_OPSET:
        raise ModelError(
            "opset-unsupported",
            f"opset {model.opset} is older than {OLDEST_OPSET}; "
            "convert the model with onnx.version_converter",
        )
    # before functions are inlined: a few calls of calls unfold to any size
    check_nodes(model.proto)
    copy = inline_functions(model.edit())
    # passes and cuts insert nodes of the standard set, which the model then has to import
    if all(o.domain not in STANDARD_DOMAINS for o in copy.proto.opset_import):
        copy.proto.opset_import.add(version=copy.opset)
    try:
        with reject_contradictions():
            shapes = _apply_passes(copy)
    except RecursionError:
        raise ModelError("model-invalid", "graphs are nested too deep") from None
    # names of unknown lengths follow the nodes
    if remove_dead(copy) or (shapes and shapes.open):
        shapes = None
    return copy.freeze(), shapes


def _apply_passes(model: EditableModel) -> Shapes | None:
    """Run the passes in order; each later one relies on the form that the earlier ones leave.

    Returns
    -------
    Shapes or None
        Those of the final graph, if they are known.
    """
    check_ends(model.proto.graph)
    # a sparse constant is larger once it is a weight
    held = model.size_bytes() + model.proto.ByteSize()
    rename_duplicates(model.proto.graph)
    lift_constants(model)
    name_body_outputs(model.proto.graph)
    name_batch_statistics(model.proto.graph)
    validate(model)
    remove_identities(model)
    # before anything is computed from the shapes
    shapes = infer(model)
    # lengths in a branch that never runs need not make sense
    if inline_branches(model.proto.graph, shapes):
        remove_identities(model)
        shapes = infer(model)
    tried: set[str] = set()
    while choose_branch_by_rank(model, shapes, tried):
        remove_identities(model)
        shapes = infer(model)
        # conditions on the rank are known now
        while inline_branches(model.proto.graph, shapes):
            remove_identities(model)
            shapes = infer(model)
    check_loops(model.proto.graph, shapes)
    check_sizes(shapes)
    check_expansion(model, shapes, held)
    changed = make_range_scalars(model, shapes) | fold_constants(model, shapes)
    # an expanded node may tell the rank that the expansion of another one needs
    while expand_fused(model, shapes):
        shapes, changed = infer(model), False
    # | and not or: both passes have to run
    if replace_sequences(model, shapes) | unpack_attention(model, shapes):
        remove_identities(model)
        shapes, changed = infer(model), False
    changed |= fold_weight_standardization(model, shapes) | separate_states(model)
    if rewrite_slice_assignments(model, shapes):
        remove_identities(model)
        changed = True
    # inference takes a third of the time of an analysis, and gives the same for the same graph
    if changed:
        shapes = infer(model)
    changed = replace_shuffles(model, shapes)
    if split_fused_projections(model, shapes):
        remove_identities(model)
        changed = True
    return None if changed else shapes
