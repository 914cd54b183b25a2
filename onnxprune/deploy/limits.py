"""Rows of check lists: small tests of one node, shared by the hand-off targets."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.deploy.bundle import GraphNode, NodeTest

Finding = Iterator[tuple[str, str]]


def kernel_at_most(most: int, severity: str = "unsupported") -> NodeTest:
    """Kernel sides up to `most`."""

    def test(node: GraphNode) -> Finding:
        if any(k > most for k in node.kernel):
            yield severity, f"kernel {_size(node.kernel)} is larger than {most}"

    return test


def stride_at_most(most: int, severity: str = "unsupported") -> NodeTest:
    """Strides up to `most`."""

    def test(node: GraphNode) -> Finding:
        if any(s > most for s in node.get("strides", ())):
            yield severity, f"stride {_size(node.get('strides'))} is larger than {most}"

    return test


def rank(size: int, severity: str = "unsupported") -> NodeTest:
    """The first input has `size` axes."""

    def test(node: GraphNode) -> Finding:
        shape = node.shape(0)
        if shape is not None and len(shape) != size:
            yield severity, f"input of shape {_size(shape)}, not of {size} axes"

    return test


def no_dilation(severity: str = "unsupported") -> NodeTest:
    """Dilations are 1."""

    def test(node: GraphNode) -> Finding:
        if any(d != 1 for d in node.get("dilations", ())):
            yield severity, f"dilation {_size(node.get('dilations'))}"

    return test


def no_groups(depthwise: bool, severity: str = "unsupported") -> NodeTest:
    """One group, or (`depthwise`) as many as channels."""

    def test(node: GraphNode) -> Finding:
        group = node.get("group", 1)
        if group > 1 and not (depthwise and node.depthwise):
            yield (
                severity,
                f"{group} groups; only {'dense and depthwise' if depthwise else 'dense'} convolutions",
            )

    return test


def constant_weights(severity: str = "unsupported") -> NodeTest:
    """The second operand is an initializer."""

    def test(node: GraphNode) -> Finding:
        if not node.constant(1):
            yield severity, "both operands are activations"

    return test


def symmetric_pads(severity: str = "unsupported") -> NodeTest:
    """As much padding before as behind."""

    def test(node: GraphNode) -> Finding:
        pads = node.get("pads", ())
        half = len(pads) // 2
        if tuple(pads[:half]) != tuple(pads[half:]):
            yield severity, f"pads {_size(pads)} differ before and behind"
        if node.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            yield severity, f"auto_pad {node.get('auto_pad')}; explicit pads are needed"

    return test


def channels_multiple(multiple: int) -> NodeTest:
    """Widths that fill the array; a note of waste, never a refusal."""

    def test(node: GraphNode) -> Finding:
        channels = node.channels
        if channels is not None and channels[1] % multiple:
            out = channels[1]
            padded = -(-out // multiple) * multiple
            yield (
                "slow",
                f"{out} output channels cost what {padded} cost (multiple of {multiple}): {100 * (1 - out / padded):.0f} % idle",
            )

    return test


def clip_is(*bounds: tuple[float, float]) -> NodeTest:
    """Clip with one of the given (lower, upper) bounds."""

    def test(node: GraphNode) -> Finding:
        low, high = node.value(1), node.value(2)
        if node.get("max") is not None or node.get("min") is not None:
            found: tuple[float, float] | None = (
                float(node.get("min", -1)),
                float(node.get("max", -1)),
            )
        else:
            found = (
                (float(low), float(high))
                if low is not None and high is not None and low.size == high.size == 1
                else None
            )
        if found not in bounds:
            yield (
                "unsupported",
                f"Clip to {found if found else 'computed bounds'}; only "
                + ", ".join(str(b) for b in bounds),
            )

    return test


def leaky_slope(slope: float, note: str) -> NodeTest:
    """LeakyRelu with one slope only."""

    def test(node: GraphNode) -> Finding:
        alpha = node.get("alpha", 0.01)
        yield (
            ("note", note)
            if abs(alpha - slope) < 1e-4
            else ("unsupported", f"slope {alpha:g}, not {slope:g}; {note}")
        )

    return test


def attribute_is(
    name: str, default: object, *allowed: object, severity: str = "unsupported"
) -> NodeTest:
    """An attribute with one of the allowed values."""

    def test(node: GraphNode) -> Finding:
        value = node.get(name, default)
        if value not in allowed:
            yield severity, f"{name} is {value}, not {' or '.join(map(str, allowed))}"

    return test


def same_shapes(severity: str = "unsupported") -> NodeTest:
    """No broadcasting between activations."""

    def test(node: GraphNode) -> Finding:
        a, b = node.shape(0), node.shape(1)
        if a and b and a != b and not node.constant(0) and not node.constant(1):
            yield severity, f"broadcasts {_size(a)} with {_size(b)}"

    return test


def always(severity: str, text: str) -> NodeTest:
    """The same sentence for every node of the operator."""

    def test(node: GraphNode) -> Finding:
        yield severity, text

    return test


def _size(values: object) -> str:
    return "x".join(str(v) for v in values) if isinstance(values, (list, tuple)) else str(values)
