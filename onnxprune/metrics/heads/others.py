"""Heads of other detectors: with anchors, without, with heat maps and with queries."""

from __future__ import annotations

from functools import cache

import numpy as np

from onnxprune.metrics.heads.arrays import (
    PYRAMID,
    Candidates,
    Raw,
    are_shares,
    cells,
    count_cells,
    expect,
    find_roles,
    find_strides,
    from_center,
    from_deltas,
    from_distances,
    grid,
    join,
    probabilities,
    softmax,
)
from onnxprune.metrics.heads.yolo import MOST_QUERIES

NANODET_BINS = 8
RETINA_ANCHORS = 9  # 3 shapes of 3 sizes per position
HEAT_STRIDE = 4  # of CenterNet's maps
QUERY_STEP = 50  # numbers of queries are multiples of it: 100, 300, 900
MEAN_SCORE = 0.25  # few queries see an object, and each of one class
# boxes that lie this far outside the image, as a share of it, are no fractions
OUTSIDE = 0.5
# variances of box coordinates, as in the paper of SSD
_CENTER_SCALE, _SIDE_SCALE = 0.1, 0.2


def nanodet(raw: Raw) -> Candidates | None:
    """Decode NanoDet: class scores, then a distribution over 8 distances for each side.

    NanoDet-Plus has a fourth stride and measures from the corner of its cells, not their center.
    """
    sides = 4 * NANODET_BINS
    for value in (*raw.flat(), *(join(m) for m in [raw.maps()] if m), *_join_pairs(raw, sides)):
        count = value.shape[2] - sides
        strides = find_strides(value.shape[1], raw.size)
        # distributions are logits: as probabilities they would be classes of another head
        if count < 1 or strides is None or are_shares(value[..., count:]):
            continue
        place, stride = cells(raw.size, strides)
        shift = 0.0 if len(strides) == 4 else 0.5
        distances = expect(value[..., count:], NANODET_BINS) * stride
        corners = from_distances((place + shift) * stride, distances)
        return Candidates(corners, probabilities(value[..., :count]))
    return None


def _join_pairs(raw: Raw, sides: int) -> list[np.ndarray]:
    """Return scores and distributions, which are outputs of their own per level, as one array."""
    boxes = [v for v in raw.flat() if v.shape[2] == sides]
    scores = [v for v in raw.flat() if v.shape[2] != sides]
    if not boxes or [v.shape[1] for v in boxes] != [v.shape[1] for v in scores]:
        return []
    if len({v.shape[2] for v in scores}) != 1:
        return []
    rows = [np.concatenate(pair, 2) for pair in zip(scores, boxes, strict=True)]
    rows.sort(key=lambda v: -v.shape[1])
    return [np.concatenate(rows, 1)]


def fcos(raw: Raw) -> Candidates | None:
    """Decode FCOS: scores, distances and centerness per position, strides 8 to 128.

    Concatenated outputs are those of torchvision: distances in strides, from the corner of a cell.
    Maps are those of the authors and of mmdetection: distances in pixels, from its center.
    """
    roles = find_roles(raw)
    count = count_cells(raw.size, PYRAMID)
    if roles is None or roles.centers is None or roles.scores.shape[1] != count:
        return None
    place, stride = cells(raw.size, PYRAMID)
    if any(v.ndim == 4 for v in raw.outputs.values()):
        corners = from_distances((place + 0.5) * stride, roles.boxes)
    else:
        corners = from_distances(place * stride, roles.boxes * stride)
    scores = np.sqrt(probabilities(roles.scores) * probabilities(roles.centers))
    return Candidates(corners, scores)


def retinanet(raw: Raw) -> Candidates | None:
    """Decode RetinaNet: 9 anchors per position, strides 8 to 128, as torchvision has them."""
    roles = find_roles(raw, RETINA_ANCHORS)
    count = RETINA_ANCHORS * count_cells(raw.size, PYRAMID)
    if roles is None or roles.centers is not None or roles.scores.shape[1] != count:
        return None
    place, stride = cells(raw.size, PYRAMID, RETINA_ANCHORS)
    # the shapes are the outer axis: height to width 1/2, 1 and 2, each of three sizes
    ratios, sizes = np.repeat([0.5, 1.0, 2.0], 3), np.tile(2.0 ** (np.arange(3) / 3), 3)
    sides = 4 * np.stack([sizes / np.sqrt(ratios), sizes * np.sqrt(ratios)], 1)
    sides = np.tile(sides, (len(place) // RETINA_ANCHORS, 1)) * stride
    anchors = np.concatenate([place * stride, sides], 1)
    return Candidates(from_deltas(anchors, roles.boxes), probabilities(roles.scores))


def ssd(raw: Raw) -> Candidates | None:
    """Decode SSD: scores of background and classes, and boxes or offsets from default boxes.

    Boxes that are ordered corners from 0 to 1 are decoded in the graph. Offsets need the default
    boxes: those of SSD300 (8732) and of SSDLite320 (3234) as torchvision has them are known.
    """
    roles = find_roles(raw)
    if roles is None or roles.centers is not None or roles.scores.shape[2] < 2:
        return None
    scores, boxes = roles.scores, roles.boxes
    sums = scores.sum(-1)
    shares = are_shares(scores) and bool(np.allclose(sums, 1, atol=1e-2))
    height, width = raw.size
    if shares and _are_corners(boxes):
        corners = boxes * np.array([width, height, width, height])
    elif boxes.shape[1] in DEFAULT_BOXES:
        defaults = DEFAULT_BOXES[boxes.shape[1]]() * np.array([width, height, width, height])
        deltas = boxes * np.repeat([_CENTER_SCALE, _SIDE_SCALE], 2)
        corners = from_deltas(defaults, deltas)
    else:
        return None
    # output 0 is the background
    return Candidates(corners, (scores if shares else softmax(scores))[..., 1:])


def _are_corners(boxes: np.ndarray) -> bool:
    """Return whether boxes are ordered corners about from 0 to 1."""
    near = (boxes >= -OUTSIDE).all() and (boxes <= 1 + OUTSIDE).all()
    return bool(near and (boxes[..., 2:] >= boxes[..., :2]).all())


@cache
def _default_boxes(kind: str) -> np.ndarray:
    """Return default boxes as fractions: center x, center y, width, height."""
    if kind == "ssd300":
        grids = (38, 19, 10, 5, 3, 1)
        steps = tuple(300 / s for s in (8, 16, 32, 64, 100, 300))
        scales = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
        ratios: tuple[tuple[int, ...], ...] = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
    else:
        grids = (20, 10, 5, 3, 2, 1)
        steps = tuple(map(float, grids))
        scales = (*np.linspace(0.2, 0.95, 6), 1.0)
        ratios = ((2, 3),) * 6
    rows = []
    for level, (side, step) in enumerate(zip(grids, steps, strict=True)):
        own, following = scales[level], scales[level + 1]
        shapes = [(own, own), (np.sqrt(own * following),) * 2]
        for ratio in np.sqrt(ratios[level]):
            shapes += [(own * ratio, own / ratio), (own / ratio, own * ratio)]
        y, x = np.indices((side, side))
        centers = (np.stack([x.ravel(), y.ravel()], 1) + 0.5) / step
        sides = np.tile(np.array(shapes), (len(centers), 1))
        rows.append(np.concatenate([np.repeat(centers, len(shapes), 0), sides], 1))
    return np.concatenate(rows)


DEFAULT_BOXES = {
    8732: lambda: _default_boxes("ssd300"),
    3234: lambda: _default_boxes("ssdlite320"),
}


def centernet(raw: Raw) -> Candidates | None:
    """Decode CenterNet: a heat map per class, sides and offsets in cells of 4 pixels.

    Positions that are no maximum of their 3 x 3 neighborhood have no box.
    """
    shape = grid(raw.size, HEAT_STRIDE)
    maps = {n.lower(): v for n, v in raw.outputs.items() if v.ndim == 4 and v.shape[2:] == shape}
    pairs = {n: v for n, v in maps.items() if v.shape[1] == 2}
    heats = [v for n, v in maps.items() if v.shape[1] != 2 or n.startswith(("hm", "heat"))]
    sides = [v for n, v in pairs.items() if n.startswith(("wh", "size"))]
    offsets = [v for n, v in pairs.items() if n.startswith(("reg", "off"))]
    # of three outputs without known names, sides come before offsets, as the authors wrote them
    if not sides and not offsets and len(pairs) == 2:
        sides, offsets = ([v] for v in pairs.values())
    if len(heats) != 1 or len(sides) != 1 or len(offsets) != 1:
        return None
    heat = probabilities(heats[0])
    padded = np.pad(heat, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    peaks = np.where(heat >= windows.max((-1, -2)), heat, 0.0)
    place, stride = cells(raw.size, (HEAT_STRIDE,))
    centers = (place + join(offsets)) * stride
    corners = from_center(np.concatenate([centers, join(sides) * stride], -1))
    return Candidates(corners, join([peaks]))


def rtdetr(raw: Raw) -> Candidates | None:
    """Decode RT-DETR, D-FINE and their kind: queries with boxes as fractions and class scores."""
    height, width = raw.size
    for scores, boxes in _query_pairs(raw):
        if scores.shape[1] <= MOST_QUERIES and _are_fractions(boxes):
            pixels = from_center(boxes) * np.array([width, height, width, height])
            return Candidates(pixels, probabilities(scores))
    return None


def detr(raw: Raw) -> Candidates | None:
    """Decode DETR: queries whose last class is no object."""
    roles = find_roles(raw)
    if roles is None or roles.scores.shape[1] != 100 or not _are_fractions(roles.boxes):
        return None
    height, width = raw.size
    pixels = from_center(roles.boxes) * np.array([width, height, width, height])
    return Candidates(pixels, softmax(roles.scores)[..., :-1])


def _query_pairs(raw: Raw) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (scores, boxes) of two outputs, or of one with the boxes in front."""
    values = list(raw.flat())
    if len(values) == 1 and values[0].shape[2] > 4:
        value = values[0]
        # tokens of a transformer have this rank too, in other numbers and with larger values
        sparse = value.shape[1] % QUERY_STEP == 0 and value[..., 4:].mean() < MEAN_SCORE
        is_head = sparse and are_shares(value[..., 4:])
        return [(value[..., 4:], value[..., :4])] if is_head else []
    roles = find_roles(raw)
    if roles is None or roles.centers is not None or roles.scores.shape[1] == 100:
        return []
    return [(roles.scores, roles.boxes)]


def _are_fractions(boxes: np.ndarray) -> bool:
    """Return whether boxes are center x, center y, width, height from 0 to 1."""
    return are_shares(boxes)
