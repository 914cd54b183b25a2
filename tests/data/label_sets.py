"""The same boxes and images in the layouts of several data sets."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from onnxprune.data.labeled import open_labeled

MODEL = {"x": (["N", 3, 32, 32], "tensor(float)")}
SIZES = ((40, 60), (50, 30))  # height and width of the two images
# class, x1, y1, x2, y2 in pixels
OBJECTS = (((2, 6, 4, 30, 20), (0, 30, 10, 60, 40)), ((1, 3, 5, 15, 45),))
NAMES = ("cat", "dog", "zebra")


def picture(path, size, value=0, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size if mode in "LP" else (*size, 3)
    image = Image.fromarray(np.full(shape, value, np.uint8))
    if mode == "P":
        image = image.convert("P")
    image.save(path)
    return path


def pictures(folder, names=("a.png", "b.png")):
    for name, size in zip(names, SIZES, strict=True):
        picture(folder / name, size)


def expected() -> list[np.ndarray]:
    """Class and corners as fractions."""
    tables = []
    for rows, (h, w) in zip(OBJECTS, SIZES, strict=True):
        table = np.array(rows, float)
        table[:, 1:] /= np.array([w, h, w, h])
        tables.append(table)
    return tables


def boxes_of(spec, model=MODEL, **options) -> list[np.ndarray]:
    """Class and corners of each image."""
    tables = []
    for batch in open_labeled(spec, model, **options).labeled_batches(1):
        rows = batch.labels["boxes"]
        half = rows[:, 4:6] / 2
        tables.append(np.column_stack([rows[:, 1], rows[:, 2:4] - half, rows[:, 2:4] + half]))
    return tables


def labels_of(spec, name="labels"):
    return [b.labels[name][0] for b in open_labeled(spec, MODEL).labeled_batches(1)]


def coco(folder, ids=(7, 3, 90), images="val2017", **more):
    """Write COCO's layout; category ids are not in the order of the classes."""
    pictures(folder / images)
    order = sorted(ids)
    notes = []
    for image, rows in enumerate(OBJECTS):
        for kind, x1, y1, x2, y2 in rows:
            box = [x1, y1, x2 - x1, y2 - y1]
            note = {"image_id": 100 + image, "category_id": order[kind], "bbox": box, "area": 5.5}
            notes.append({"id": len(notes) + 1, "iscrowd": 0, **note, **more})
    file = folder / "annotations" / "instances_val2017.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": 100 + k, "file_name": n, "height": h, "width": w}
        for k, (n, (h, w)) in enumerate(zip(("a.png", "b.png"), SIZES, strict=True))
    ]
    categories = [{"id": i, "name": str(i)} for i in ids]
    file.write_text(json.dumps({"images": rows, "annotations": notes, "categories": categories}))
    return file


def yolo(folder, yaml=True, split="val"):
    pictures(folder / "images" / split)
    for k, (rows, (h, w)) in enumerate(zip(OBJECTS, SIZES, strict=True)):
        lines = []
        for kind, x1, y1, x2, y2 in rows:
            box = (x1 + x2) / 2 / w, (y1 + y2) / 2 / h, (x2 - x1) / w, (y2 - y1) / h
            lines.append(" ".join(map(repr, (kind, *map(float, box)))))
        file = folder / "labels" / split / f"{'ab'[k]}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines) + "\n")
    if yaml:
        (folder / "data.yaml").write_text(
            f"path: .\ntrain: images/train\nval: images/{split}\nnames: {list(NAMES)}\n"
        )
    return folder


def voc(folder, names=NAMES, extra=""):
    pictures(folder / "JPEGImages")
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    for k, (rows, (h, w)) in enumerate(zip(OBJECTS, SIZES, strict=True)):
        objects = "".join(
            f"<object><name>{names[kind]}</name><difficult>{int(kind == 0)}</difficult><bndbox>"
            f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
            "</bndbox></object>"
            for kind, x1, y1, x2, y2 in rows
        )
        (folder / "Annotations" / f"{'ab'[k]}.xml").write_text(
            f"{extra}<annotation><filename>{'ab'[k]}.png</filename><size><width>{w}</width>"
            f"<height>{h}</height></size>{objects}</annotation>"
        )
    return folder
