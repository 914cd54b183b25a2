"""A test graph, and graphs with one operator between two layers that can be cut."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A graph to analyze.

    Attributes
    ----------
    text
        See graph_text.net.
    opset
        Version of the standard operator set.
    groups
        Sizes of the groups in ascending order; None if they do not matter.
    allow
        Operators opened by allow_mixing.
    ir_version
        Version of the file format.
    """

    text: str
    opset: int = 17
    groups: tuple[int, ...] | None = None
    allow: tuple[str, ...] = ()
    ir_version: int = 10


HEAD = (
    "float[2,4,6,6] x | float[8,4,3,3] w1, float[8] b1, float[5,8,1,1] w2, {extra} | "
    "a = Conv(x, w1, b1); {nodes}; y = Conv(b, w2)"
)


def between(
    nodes: str,
    extra: str = "",
    opset: int = 17,
    groups: tuple[int, ...] | None = (8,),
    allow: tuple[str, ...] = (),
) -> Case:
    """Return nodes that compute `b` from `a`, eight channels between two convolutions."""
    return Case(HEAD.format(nodes=nodes, extra=extra).replace(",  |", " |"), opset, groups, allow)


_TOKENS = (
    "float[2,6,4] x | float[4,8] w1, float[8,5] w2, {extra} | a = MatMul(x, w1); {nodes}; "
    "y = MatMul(b, w2)"
)


def tokens(
    nodes: str,
    extra: str = "",
    opset: int = 17,
    groups: tuple[int, ...] | None = (8,),
    allow: tuple[str, ...] = (),
) -> Case:
    """Return nodes that compute `b` from `a`, (batch, position, eight channels)."""
    return Case(
        _TOKENS.format(nodes=nodes, extra=extra).replace(",  |", " |"), opset, groups, allow
    )
