"""Examples of the page: each input as a picture, with the predictions of both models."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from markupsafe import Markup

from onnxprune.report.data import Report
from onnxprune.report.example import Example, Prediction, class_color
from onnxprune.report.text import clip

MOST_EXAMPLES = 8
MOST_BOXES = 20
LABELS = "Labels"  # title of the panel with what is labeled
MOST_TEXTS = 5  # boxes with class and score
MOST_LETTERS = 24  # of a class
LETTERS = 0.06  # height of a text on a picture, of its longer side: pictures are shown in any size
# letters of a data URI, and of all of them: the page stays small whatever report.json holds
MOST_PICTURE, MOST_PICTURES = 90_000, 600_000
AGREES = 0.9  # agreement of boxes and pixels from which an example has the color of success
# a picture from report.json may be anything: only these forms are put on the page
_PICTURE = re.compile(r"data:image/(?:png|jpeg);base64,[A-Za-z0-9+/]+={0,2}")
_SMALL = 64  # pixels: pictures of at most so many per side are enlarged without smoothing


@dataclass(frozen=True)
class ClassBar:
    """A class of a prediction; share: its probability or share of the pixels."""

    name: str
    share: float
    color: str
    is_label: bool


@dataclass(frozen=True)
class Panel:
    """One model's prediction: a picture, None without, and classes."""

    title: str
    svg: Markup | None
    bars: list[ClassBar]
    summary: str


@dataclass(frozen=True)
class ExampleView:
    """An example with its pictures.

    Attributes
    ----------
    svg
        The input alone; None if the panels show it.
    verdict
        How far both predictions agree, in words; "" if that is not known.
    """

    row: Example
    svg: Markup | None
    panels: list[Panel]
    verdict: str
    agrees: bool


def example_views(report: Report) -> list[ExampleView]:
    """Return the examples of the page."""
    views, left = [], MOST_PICTURES
    for i, row in enumerate(report.examples[:MOST_EXAMPLES]):
        left -= sum(len(part.picture) for part in (row, row.before, row.after, row.truth))
        # an example without its picture still has its predictions
        views.append(_view(row, i, left >= 0))
    return views


def _view(row: Example, number: int, has_pictures: bool) -> ExampleView:
    """Return one example."""
    width, height = (max(1, min(4096, int(side))) for side in row.size)
    size = (width, height)
    picture = row.picture if has_pictures and _is_picture(row.picture) else ""
    # boxes and masks are drawn over the input, so that it is not shown once more
    over = bool(picture) and row.kind in ("boxes", "mask")
    svg = None
    if picture and not over:
        svg = _draw(size, f"{row.name}, as the model gets it", picture, f"input-{number}")
    panels: list[Panel] = []
    for title, prediction in _list_predictions(row):
        drawn = None
        summary = _summarize(row, prediction)
        label = f"{row.name}, {title.lower()}: {summary or 'prediction'}"
        if over:
            # the first panel holds the picture, the others refer to it
            source = "" if panels else picture
            has_scores = title != LABELS
            drawn = _draw(size, label, source, f"input-{number}", prediction, has_scores)
        elif picture and row.kind == "image" and _is_picture(prediction.picture):
            drawn = _draw(size, label, prediction.picture, "")
        panels.append(Panel(title, drawn, _list_bars(row, prediction), summary))
    agreement = row.agreement
    return ExampleView(
        row, svg, panels, _spell_agreement(row), agreement is None or agreement > 0.9
    )


def _list_predictions(row: Example) -> list[tuple[str, Prediction]]:
    """Return what is shown side by side: the labels, if there are any, and both predictions."""
    pair = [("Before", row.before), ("After", row.after)]
    has_labels = row.kind in ("boxes", "mask") and len(row.truth) > 0
    return [(LABELS, row.truth), *pair] if has_labels else pair


def _is_picture(text: str) -> bool:
    """Return whether a text is a picture that may be put on the page."""
    return len(text) <= MOST_PICTURE and bool(_PICTURE.fullmatch(text))


def _summarize(row: Example, prediction: Prediction) -> str:
    """Return a prediction in words, for screen readers and captions."""
    if row.kind == "boxes":
        count = len(prediction.boxes)
        return f"{count} {'box' if count == 1 else 'boxes'}"
    if row.kind in ("classes", "mask") and prediction.classes:
        name, share = prediction.classes[0]
        return f"class {clip(name, MOST_LETTERS)} {float(share):.0%}"
    return ""


def _spell_agreement(row: Example) -> str:
    """Return how far both predictions agree."""
    if row.agreement is None:
        return ""
    if row.kind == "classes":
        return "same class" if row.agreement else "other class"
    what = "boxes" if row.kind == "boxes" else "pixels"
    return f"{float(row.agreement):.1%} of the {what} agree"


def _list_bars(row: Example, prediction: Prediction) -> list[ClassBar]:
    """Return the classes of a prediction."""
    if row.kind not in ("classes", "mask"):
        return []
    bars = []
    for name, share in prediction.classes:
        color = ""
        # classes of a mask are known by their color
        if row.kind == "mask":
            color = f"rgb{class_color(int(name))}"
        share = min(max(float(share), 0.0), 1.0)
        is_label = bool(row.label) and str(name) == str(row.label)
        bars.append(ClassBar(clip(name, MOST_LETTERS), share, color, is_label))
    return bars


def _draw(
    size: tuple[int, int],
    label: str,
    picture: str,
    name: str,
    prediction: Prediction | None = None,
    has_scores: bool = True,
) -> Markup:
    """Return a picture with the masks and boxes of a prediction.

    Parameters
    ----------
    picture
        Data URI; "" to refer to the picture of that `name` on the page.
    """
    width, height = size
    attributes = {"viewBox": f"0 0 {width} {height}", "role": "img", "aria-label": label}
    attributes["class"] = "shot small" if max(size) <= _SMALL else "shot"
    svg = ET.Element("svg", attributes)
    sides = {"width": str(width), "height": str(height)}
    if picture:
        mark = {"id": name} if name else {}
        ET.SubElement(svg, "image", {**mark, "href": picture, **sides})
    else:
        ET.SubElement(svg, "use", {"href": f"#{name}"})
    if prediction is not None and _is_picture(prediction.picture):
        ET.SubElement(svg, "image", {"href": prediction.picture, **sides})
    boxes = prediction.boxes[:MOST_BOXES] if prediction is not None else ()
    # those with the highest scores last, on top, and with a text: more texts would cover each other
    for place, box in reversed(list(enumerate(boxes))):
        text = f"{int(box[5])}: {box[4]:.2f}" if has_scores else f"{int(box[5])}"
        _draw_box(svg, [float(value) for value in box], size, text if place < MOST_TEXTS else "")
    return Markup(ET.tostring(svg, encoding="unicode"))


def _draw_box(svg: ET.Element, box: list[float], size: tuple[int, int], text: str) -> None:
    """Draw a box, and a text if there is one."""
    width, height = size
    # boxes may exceed the picture
    x1, y1, x2, y2 = (min(max(value, 0.0), 1.0) for value in box[:4])
    color = f"rgb{class_color(int(box[5]))}"
    place = {"x": f"{x1 * width:.1f}", "y": f"{y1 * height:.1f}"}
    sides = {"width": f"{(x2 - x1) * width:.1f}", "height": f"{(y2 - y1) * height:.1f}"}
    ET.SubElement(svg, "rect", {**place, **sides, "class": "found-box", "stroke": color})
    if not text:
        return
    letters = LETTERS * max(size)
    # inside of the box where there is no room above it
    top = y1 * height - letters / 4 if y1 * height > 1.3 * letters else y1 * height + letters
    position = {"x": f"{x1 * width + letters / 5:.1f}", "y": f"{top:.1f}"}
    style = f"font-size:{letters:.1f}px"
    ET.SubElement(svg, "text", {**position, "style": style}).text = text
