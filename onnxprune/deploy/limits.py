"""Node tests of common hardware limits, shared by the hand-off targets."""

from __future__ import annotations

from onnxprune.deploy.bundle import Finding, NodeTest
from onnxprune.deploy.nodes import GraphNode


def no_limits(ops: str) -> dict[str, tuple[NodeTest, ...]]:
    """Return rows of a table for operators (separated by spaces) that have no limits."""
    return {op: () for op in ops.split()}


def kernel_at_most(most: int, severity: str = "unsupported") -> NodeTest:
    """Return a test for kernel sides up to `most`."""

    def test(node: GraphNode) -> Finding:
        if any(k > most for k in node.kernel):
            yield severity, f"kernel {_format(node.kernel)} is larger than {most}"

    return test


def stride_at_most(most: int, severity: str = "unsupported") -> NodeTest:
    """Return a test for strides up to `most`."""

    def test(node: GraphNode) -> Finding:
        if any(s > most for s in node.get("strides", ())):
            yield severity, f"stride {_format(node.get('strides'))} is larger than {most}"

    return test


def rank(size: int, severity: str = "unsupported") -> NodeTest:
    """Return a test for a first input with `size` axes."""

    def test(node: GraphNode) -> Finding:
        # an unknown shape is noted once for the model, see prepare
        shape = node.shape(0)
        if shape is not None and len(shape) != size:
            yield severity, f"input has shape {_format(shape)}; {size} axes are needed"

    return test


def no_dilation(severity: str = "unsupported") -> NodeTest:
    """Return a test for dilations of 1."""

    def test(node: GraphNode) -> Finding:
        if any(d != 1 for d in node.get("dilations", ())):
            yield severity, f"dilation {_format(node.get('dilations'))} is not supported"

    return test


def no_groups(depthwise: bool, severity: str = "unsupported") -> NodeTest:
    """Return a test for one group, or, with `depthwise`, as many as channels."""

    def test(node: GraphNode) -> Finding:
        group = node.get("group", 1)
        if group > 1 and not (depthwise and node.depthwise):
            kinds = "dense and depthwise" if depthwise else "dense"
            yield severity, f"{group} groups; only {kinds} convolutions are supported"

    return test


def constant_weights(severity: str = "unsupported") -> NodeTest:
    """Return a test for a second operand that is an initializer."""

    def test(node: GraphNode) -> Finding:
        if not node.constant(1):
            yield severity, "both operands are activations; the second must be constant"

    return test


def symmetric_pads(severity: str = "unsupported") -> NodeTest:
    """Return a test for equal padding before and after each axis."""

    def test(node: GraphNode) -> Finding:
        pads = node.get("pads", ())
        # ONNX lists all begins, then all ends
        half = len(pads) // 2
        if tuple(pads[:half]) != tuple(pads[half:]):
            yield severity, f"pads {_format(pads)} differ before and after an axis"
        # VALID means no padding; SAME pads unevenly at some sizes
        if node.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            yield severity, f"auto_pad is {node.get('auto_pad')}; explicit pads are needed"

    return test


def channels_multiple(multiple: int) -> NodeTest:
    """Return a test for output channels that fill the array; its severity is always "slow"."""

    def test(node: GraphNode) -> Finding:
        channels = node.channels
        # only outputs: inputs are the outputs of another layer, which is tested itself
        if channels is not None and channels[1] % multiple:
            out = channels[1]
            padded = -(-out // multiple) * multiple
            idle = 100 * (1 - out / padded)
            yield (
                "slow",
                f"{out} output channels cost as much as {padded} "
                f"(multiple of {multiple}): {idle:.0f} % idle",
            )

    return test


def clip_is(*bounds: tuple[float, float]) -> NodeTest:
    """Return a test for a Clip with one of the given (lower, upper) bounds."""

    def test(node: GraphNode) -> Finding:
        actual = _clip_bounds(node)
        if actual not in bounds:
            text = f"{actual}" if actual else "computed bounds"
            allowed = " or ".join(map(str, bounds))
            yield "unsupported", f"Clip to {text}; only {allowed} is supported"

    return test


def _clip_bounds(node: GraphNode) -> tuple[float, float] | None:
    """Return (lower, upper) of a Clip; None if they are computed."""
    # bounds are attributes before opset 11; -1, for an absent one, is no bound of any target
    if node.get("max") is not None or node.get("min") is not None:
        return float(node.get("min", -1)), float(node.get("max", -1))
    low, high = node.value(1), node.value(2)
    if low is None or high is None or low.size != 1 or high.size != 1:
        return None
    return float(low), float(high)


def leaky_slope(slope: float, note: str) -> NodeTest:
    """Return a test for a LeakyRelu with that slope only; `note` tells what it needs."""

    def test(node: GraphNode) -> Finding:
        alpha = node.get("alpha", 0.01)
        # a value may be rounded: 26/256 to 0.1016
        if abs(alpha - slope) < 1e-4:
            yield "note", note
        else:
            yield "unsupported", f"slope is {alpha:g}, {slope:g} is supported; {note}"

    return test


def attribute_is(
    name: str, default: object, *allowed: object, severity: str = "unsupported"
) -> NodeTest:
    """Return a test for an attribute with one of the allowed values."""

    def test(node: GraphNode) -> Finding:
        value = node.get(name, default)
        if value not in allowed:
            yield severity, f"{name} is {value}; {' or '.join(map(str, allowed))} is supported"

    return test


def same_shapes(severity: str = "unsupported") -> NodeTest:
    """Return a test for activations that are not broadcast."""

    def test(node: GraphNode) -> Finding:
        a, b = node.shape(0), node.shape(1)
        # a constant operand is a bias or scale, no second image
        if a and b and a != b and not node.constant(0) and not node.constant(1):
            yield severity, f"broadcasting {_format(a)} with {_format(b)} is not supported"

    return test


def always(severity: str, text: str) -> NodeTest:
    """Return a test with the same sentence for every node of the operator."""

    def test(node: GraphNode) -> Finding:
        yield severity, text

    return test


def _format(values: object) -> str:
    """Return lengths as "3x3", anything else as text."""
    return "x".join(str(v) for v in values) if isinstance(values, (list, tuple)) else str(values)
