"""Examples for the tests of the page."""

from __future__ import annotations

from typing import Any

# one red pixel
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMB"
    "AQDJ/pLvAAAAAElFTkSuQmCC"
)


def examples(name: str) -> list[dict[str, Any]]:
    """Return one example of each kind; `name` is part of every text in them."""
    classes = {"classes": [[name, 0.8], [3, 0.2]]}
    boxes = {"boxes": [[0.1, 0.1, 0.6, 0.9, 0.87, 2], [-0.5, 0.0, 1.5, 0.5, 0.3, 7]]}
    mask = {"classes": [[1, 0.6], [0, 0.4]], "picture": PIXEL}
    kinds = {"classes": classes, "boxes": boxes, "mask": mask, "image": {"picture": PIXEL}, "": {}}
    return [
        {
            "name": f"{name} {i}",
            "kind": kind,
            "input": f"{name} 3x8x8, -1 to 1",
            "picture": PIXEL,
            "size": [320, 200],
            "note": name,
            "label": name,
            "agreement": 0.5,
            "before": prediction,
            "after": prediction,
        }
        for i, (kind, prediction) in enumerate(kinds.items())
    ]
