"""Examples on the page: pictures, boxes, masks, and what is not let onto the page."""

from __future__ import annotations

from dataclasses import replace

import pytest
from example_rows import PIXEL, examples
from pages import full

from onnxprune.report import html
from onnxprune.report.data import Report
from onnxprune.report.example import Example
from onnxprune.report.example_view import example_views


def page(**changes: object) -> str:
    """Return the page of a report whose only example is that of boxes, changed."""
    row = Example.from_json({**examples("x")[1], **changes})
    return html.page(replace(full(3), examples=(row,)))


def test_boxes_are_drawn_at_their_place_within_the_picture() -> None:
    text = page()
    # 0.1 to 0.6 of 320, 0.1 to 0.9 of 200
    assert text.count('x="32.0" y="20.0" width="160.0" height="160.0"') == 2
    # -0.5 to 1.5 of the width is cut to the picture
    assert text.count('x="0.0" y="0.0" width="320.0" height="100.0"') == 2
    assert "50.0% of the boxes agree" in text and text.count("2: 0.87") == 2


def test_picture_is_on_the_page_once_and_referred_to() -> None:
    text = page()
    assert text.count(PIXEL) == 1 and text.count('<use href="#input-0"') == 1


def test_labels_are_shown_beside_the_predictions_without_scores() -> None:
    boxes = page(truth={"boxes": [[0.25, 0.1, 0.5, 0.9, 1.0, 4]]})
    # the first panel holds the picture, the predictions refer to it
    assert boxes.count(PIXEL) == 1 and boxes.count('<use href="#input-0"') == 2
    assert "Labels: 1 box<" in boxes and ">4</text>" in boxes
    assert 'x="80.0" y="20.0" width="80.0" height="160.0"' in boxes
    mask = page(**{**examples("x")[2], "truth": {"classes": [[7, 0.5]], "picture": PIXEL}})
    assert mask.count(PIXEL) == 4 and ">Labels</p>" in mask and '<i class="t"' in mask
    assert "truth" not in Example.from_json(examples("x")[1]).to_json()


@pytest.mark.parametrize(
    "picture",
    [
        "https://example.com/a.png",
        "data:image/svg+xml;base64,PHN2Zz4=",
        'data:image/png;base64,AAAA"><script>',
        "data:image/png;base64," + "A" * 200_000,
    ],
    ids=["address", "svg", "quote", "large"],
)
def test_pictures_of_other_forms_are_left_out(picture: str) -> None:
    text = page(picture=picture, before={"picture": picture}, kind="image")
    assert picture not in text and "<image" not in text


def test_page_stays_small_whatever_the_pictures_are() -> None:
    picture = "data:image/png;base64," + "A" * 89_000
    rows = [Example.from_json({**examples("x")[2], "picture": picture}) for _ in range(8)]
    rows = [replace(row, before={"picture": picture}, after={"picture": picture}) for row in rows]
    report = full(1500, "/model/layer/block/attention/projection/MatMul" * 2)
    text = html.page(replace(report, examples=tuple(rows)))
    assert len(text.encode()) < 1_500_000 and text.count("<image") == 6


def test_numbers_of_a_wrong_type_are_rejected() -> None:
    report = replace(full(3), examples=(Example.from_json({**examples("x")[1], "size": ["a", 2]}),))
    with pytest.raises(ValueError, match="invalid literal"):
        example_views(Report.from_json(report.to_json()))
