"""Requested gradients and the model that computes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxprune.autodiff.losses import Feed
from onnxprune.ir.io import Model

ROWS, MOMENTS, WHOLE = "rows", "moments", "whole"


@dataclass(frozen=True)
class Place:
    """An activation whose gradient is requested.

    Attributes
    ----------
    tensor : str
        Name of the activation.
    axis : int
        Channel axis.
    node, slot : str, int
        Node and input position: the activation as this node reads it. "" = with all its uses.
    form : str
        ROWS: activation times gradient, per sample and channel. MOMENTS: (channels, channels),
        products of two channels' gradients, summed over samples and positions. WHOLE: the
        gradient in the shape of the activation.
    """

    tensor: str
    axis: int
    node: str = ""
    slot: int = 0
    form: str = ROWS


@dataclass(frozen=True)
class Blocked:
    """A node without a gradient.

    Attributes
    ----------
    node, op : str
        Name and operator; op "" = a place that cannot be reduced to samples and channels.
    reason : str
        Why there is no gradient.
    places : tuple of Place
        Places that needed it.
    """

    node: str
    op: str
    reason: str
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Gradient:
    """A model with gradients as outputs.

    Attributes
    ----------
    model : Model
        Model to run.
    outputs : mapping of Place to str
        Name of the output of each place.
    feeds : mapping of str to Feed
        Inputs that the losses add.
    blocked : tuple of Blocked
        Nodes without a gradient.
    samples : int
        Batch size.
    sizes : mapping of Place to int
        Elements of each place's tensor.
    """

    model: Model
    outputs: Mapping[Place, str]
    feeds: Mapping[str, Feed]
    blocked: tuple[Blocked, ...]
    samples: int
    sizes: Mapping[Place, int] = field(default_factory=dict)
