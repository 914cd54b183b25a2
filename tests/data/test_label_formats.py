"""Label formats: the same known boxes, masks and classes in every layout, and damaged ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
from label_sets import (
    MODEL,
    OBJECTS,
    SIZES,
    boxes_of,
    coco,
    expected,
    labels_of,
    picture,
    pictures,
    voc,
    yolo,
)
from PIL import Image

from onnxprune.data.label_formats import FORMATS, parse_labeled
from onnxprune.data.label_formats.masks import _color_keys, read_mask
from onnxprune.data.label_formats.reading import inside, read_xml
from onnxprune.data.labeled import open_labeled
from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import DataError


def test_boxes_are_equal_in_all_formats(tmp_path):
    pytest.importorskip("yaml")
    flat = tmp_path / "flat"
    coco(tmp_path / "coco")
    flat.mkdir()
    file = coco(flat, images=".")
    file.rename(flat / "_annotations.coco.json")
    (flat / "annotations").rmdir()
    places = [
        tmp_path / "coco",
        tmp_path / "coco" / "annotations" / "instances_val2017.json",
        flat,
        yolo(tmp_path / "yolo"),
        tmp_path / "yolo" / "data.yaml",
        yolo(tmp_path / "bare", yaml=False),
        voc(tmp_path / "voc"),
    ]
    for place in places:
        for rows, truth in zip(boxes_of(place), expected(), strict=True):
            assert np.allclose(rows, truth), place


def test_each_format_says_what_it_is(tmp_path):
    pytest.importorskip("yaml")
    file = coco(tmp_path / "coco")
    text = open_labeled(file, MODEL).describe()
    assert "2 labeled images with boxes of 3 classes (COCO JSON instances_val2017.json)" in text
    assert "(YOLO text, split val)" in open_labeled(yolo(tmp_path / "y"), MODEL).describe()
    assert "(Pascal VOC)" in open_labeled(voc(tmp_path / "v"), MODEL).describe()
    first = open_labeled(file, MODEL).fingerprint()
    file.write_text(file.read_text().replace('"iscrowd": 0', '"iscrowd": 1'))
    assert open_labeled(file, MODEL).fingerprint() != first


def test_coco_keeps_crowds_areas_ids_and_image_sizes(tmp_path):
    file = coco(tmp_path, iscrowd=1)
    (batch, _) = open_labeled(file, MODEL).labeled_batches(1)
    assert batch.labels["boxes"][:, 6:].tolist() == [[1, 5.5], [1, 5.5]]
    assert batch.labels["image_size"].tolist() == [list(SIZES[0])]
    assert batch.labels["size"].tolist() == [[32, 32]]
    ids = boxes_of(f"coco-ids:{file}")
    assert [row[:, 0].tolist() for row in ids] == [[90, 3], [7]]


def test_voc_classes_have_their_published_order_and_difficult_ones_do_not_count(tmp_path):
    rows = boxes_of(voc(tmp_path, names=("tvmonitor", "aeroplane", "cat")))
    assert [r[:, 0].tolist() for r in rows] == [[7, 19], [0]]
    batches = list(open_labeled(tmp_path, MODEL).labeled_batches(1))
    assert batches[0].labels["boxes"][:, 6].tolist() == [0, 1]


def test_polygons_of_yolo_become_boxes(tmp_path):
    yolo(tmp_path, yaml=False)
    (tmp_path / "labels" / "val" / "a.txt").write_text("4 0.1 0.2 0.5 0.3 0.4 0.8\n")
    assert np.allclose(boxes_of(tmp_path)[0], [[4, 0.1, 0.2, 0.5, 0.8]])


def test_crops_move_boxes_and_masks(tmp_path):
    """A 40x60 image, its shorter side resized to 32 and the center 32x32: the middle 40x40."""
    file = coco(tmp_path / "c")
    options = {"preprocess": Preprocess(resize=32)}
    rows = boxes_of(file, **options)[0]
    # pixels 10 to 50 of the width remain
    truth = [[2, 0, 4 / 40, 20 / 40, 20 / 40], [0, 20 / 40, 10 / 40, 1, 1]]
    assert np.allclose(rows, truth)
    batch = next(iter(open_labeled(file, MODEL, **options).labeled_batches(1)))
    assert batch.labels["image_size"].tolist() == [[40, 40]]
    assert batch.labels["boxes"][:, 7].tolist() == [0, 0]  # both boxes are cut
    picture(tmp_path / "m" / "images" / "a.png", SIZES[0])
    mask = np.repeat(np.arange(60, dtype=np.uint8)[None], 40, 0)
    (tmp_path / "m" / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "m" / "masks" / "a.png")
    masks = next(iter(open_labeled(tmp_path / "m", MODEL, **options).labeled_batches(1)))
    assert np.array_equal(masks.labels["masks"][0], mask[:, 10:50])


def test_masks_of_cityscapes_voc_and_plain_folders(tmp_path):
    city = tmp_path / "city"
    for k, value in enumerate((7, 33)):
        name = f"ulm_{k}"
        picture(city / "leftImg8bit" / "val" / "ulm" / f"{name}_leftImg8bit.png", SIZES[k])
        end = "_gtFine_labelIds.png"
        picture(city / "gtFine" / "val" / "ulm" / f"{name}{end}", SIZES[k], value, "L")
    assert [int(m[0, 0]) for m in labels_of(city, "masks")] == [0, 18]
    trained = city / "gtFine" / "val" / "ulm" / "ulm_0_gtFine_labelTrainIds.png"
    picture(trained, SIZES[0], 255, "L")
    assert int(labels_of(city, "masks")[0][0, 0]) == 255
    assert "Cityscapes, split val" in open_labeled(city, MODEL).describe()
    plain = tmp_path / "plain"
    pictures(plain / "images")
    picture(plain / "masks" / "a.png", SIZES[0], 3, "L")
    picture(plain / "masks" / "b_mask.png", SIZES[1], (128, 0, 128))  # class 5 of VOC: bottle
    assert [int(m[0, 0]) for m in labels_of(plain, "masks")] == [3, 5]


def test_colors_of_voc_are_the_published_ones(tmp_path):
    published = {0: (0, 0, 0), 1: (128, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    published[255] = (224, 224, 192)
    keys, classes = _color_keys()
    assert len(np.unique(keys)) == 256
    for kind, color in published.items():
        assert read_mask(picture(tmp_path / f"{kind}.png", (2, 2), color))[0, 0] == kind
    with pytest.raises(DataError, match=r"color \(1, 2, 3\), which is no class"):
        read_mask(picture(tmp_path / "wrong.png", (2, 2), (1, 2, 3)))


def test_a_folder_of_boxes_and_masks_asks_for_a_choice(tmp_path):
    voc(tmp_path)
    for name, size in zip("ab", SIZES, strict=True):
        picture(tmp_path / "SegmentationClass" / f"{name}.png", size, 15, "L")
        (tmp_path / "JPEGImages" / f"{name}.png").rename(tmp_path / "JPEGImages" / f"{name}.jpg")
    with pytest.raises(DataError, match=f"choose one: voc:{tmp_path} or masks:{tmp_path}"):
        open_labeled(tmp_path, MODEL)
    assert int(labels_of(f"masks:{tmp_path}", "masks")[0][0, 0]) == 15
    assert len(boxes_of(f"voc:{tmp_path}")) == 2
    assert parse_labeled("voc:x")[0] == "voc" and parse_labeled("x:y")[0] == ""


def test_folders_of_classes_with_splits_and_orders(tmp_path):
    for split, count in (("train", 2), ("val", 1)):
        for name in ("n02", "n01"):
            for k in range(count):
                picture(tmp_path / split / name / f"{k}.png", (8, 8))
    assert labels_of(tmp_path) == [0, 1]
    assert "(split val)" in open_labeled(tmp_path, MODEL).describe()
    assert len(labels_of(tmp_path / "train")) == 4
    (tmp_path / "LOC_synset_mapping.txt").write_text("n09 other\nn02 second\nn01 first, last\n")
    assert labels_of(tmp_path) == [2, 1]
    (tmp_path / "LOC_synset_mapping.txt").write_text("n02 second\n")
    with pytest.raises(DataError, match="no line for class 'n01'"):
        open_labeled(tmp_path, MODEL)


@pytest.mark.parametrize(
    ("name", "text", "classes"),
    [
        ("l.csv", "filename,label\na.png,1\nb.png,0\n", [1, 0]),
        ("l.csv", "label;image\ndog;a.png\ncat;b.png\n", [1, 0]),
        ("l.csv", "ImageId,PredictionString\na,n2 1 2 3 4\nb,n1 1 2 3 4 n1 5 6 7 8\n", [1, 0]),
        ("val.txt", "a.png 65\nsub/b.png 3\n", [65, 3]),
        ("l.tsv", "a.png\t4\nb.png\t4\n", [4, 4]),
    ],
)
def test_tables_of_classes(tmp_path, name, text, classes):
    picture(tmp_path / "a.png", (8, 8))
    picture(tmp_path / "sub" / "b.png", (8, 8))
    (tmp_path / name).write_text(text)
    assert labels_of(tmp_path / name) == classes


def test_hugging_face_data_sets(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow (extra datasets) is not installed")
    pytest.importorskip("pyarrow.parquet")
    pictures(tmp_path / "p")
    images = [
        {"bytes": (tmp_path / "p" / n).read_bytes(), "path": None} for n in ("a.png", "b.png")
    ]
    features = {
        "image": {"_type": "Image"},
        "label": {"names": ["x", "y"], "_type": "ClassLabel"},
    }
    table = pyarrow.table({"image": images, "label": [1, 0]})
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    saved = tmp_path / "saved" / "test"
    saved.mkdir(parents=True)
    (saved / "dataset_info.json").write_text("{}")
    (saved / "state.json").write_text("{}")
    with pyarrow.ipc.new_stream(str(saved / "data-00000-of-00001.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert labels_of(tmp_path / "saved") == labels_of(saved) == [1, 0]
    damaged = table.set_column(0, "image", [[{"bytes": b"GIF89a", "path": None}, images[1]]])
    assert list(table.column_names) == list(damaged.column_names)
    broken = tmp_path / "broken"
    broken.mkdir()
    pyarrow.parquet.write_table(damaged, broken / "test-0.parquet")
    assert labels_of(broken) == [0] and "row 0" in open_labeled(broken, MODEL).skipped[0]
    hub = tmp_path / "hub" / "data"
    hub.mkdir(parents=True)
    coco_boxes = []
    for rows in OBJECTS:
        sides = [[x1, y1, x2 - x1, y2 - y1] for _, x1, y1, x2, y2 in rows]
        coco_boxes.append({"bbox": sides, "category": [row[0] for row in rows]})
    boxes = pyarrow.table({"image": images, "objects": coco_boxes})
    pyarrow.parquet.write_table(boxes, hub / "validation-00000-of-00001.parquet")
    for rows, truth in zip(boxes_of(tmp_path / "hub"), expected(), strict=True):
        assert np.allclose(rows, truth)
    (hub / "validation-00000-of-00001.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="are damaged"):
        open_labeled(tmp_path / "hub", MODEL)


def test_entities_are_refused(tmp_path):
    bomb = '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'
    with pytest.raises(DataError, match="declares a document type"):
        open_labeled(voc(tmp_path, extra=bomb), MODEL)
    deep = tmp_path / "deep.xml"
    deep.write_text("<a>" * 10_000)
    with pytest.raises(DataError, match="nested deeper"):
        read_xml(deep)


def test_relative_folders_are_read(tmp_path, monkeypatch):
    picture(tmp_path / "photos" / "a.png", (8, 8))
    (tmp_path / "list.txt").write_text("photos/a.png 3\n")
    coco(tmp_path / "c")
    monkeypatch.chdir(tmp_path)
    assert labels_of("list.txt") == [3]
    assert len(boxes_of("c")) == 2
    monkeypatch.chdir(tmp_path / "c" / "annotations")
    assert len(boxes_of("instances_val2017.json")) == 2


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../x.png", "a\0b"])
def test_paths_of_labels_stay_inside_the_data_folder(tmp_path, name):
    with pytest.raises(DataError, match="outside that folder"):
        inside(tmp_path, name)
    file = coco(tmp_path / "c")
    data = json.loads(file.read_text())
    data["images"][0]["file_name"] = name
    file.write_text(json.dumps(data))
    with pytest.raises(DataError, match="outside that folder"):
        open_labeled(file, MODEL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("images"), "lists images, annotations, categories"),
        (lambda d: d["annotations"][0].update(image_id=5), "which is not listed"),
        (lambda d: d["annotations"][0].update(category_id=5), "unknown category 5"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2]), "not enough values"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, 3, "x"]), "could not convert"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, 3, float("nan")]), "not finite"),
        (lambda d: d["annotations"][0].pop("bbox"), "no 'bbox'"),
        (lambda d: d["annotations"].append(3), "are damaged"),
        (
            lambda d: d["images"].append({"id": 9, "file_name": "none.png"}),
            "1 of 3 labeled images not found",
        ),
    ],
)
def test_damaged_coco_is_one_sentence(tmp_path, change, message):
    file = coco(tmp_path)
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(DataError, match=message) as caught:
        open_labeled(file, MODEL)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.1 0.2\n", "is not a class with a box"),
        ("x 1 2 3 4\n", "could not convert"),
        ("0.5 0.1 0.1 0.1 0.1\n", "class 0.5 is not a number"),
        ("0 nan 0.1 0.1 0.1\n", "not finite"),
    ],
)
def test_damaged_yolo_is_one_sentence(tmp_path, text, message):
    yolo(tmp_path, yaml=False)
    (tmp_path / "labels" / "val" / "a.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        open_labeled(tmp_path, MODEL)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("val: [", "it is not YAML"),
        ("- 1", "no table of splits"),
        ("names: [a]", "no val, test or train"),
        ("val: ../../../etc", "outside that folder"),
        ("val: images/none", "which is not at"),
        ("a: &a [1]\nval: *a", "has aliases"),
        ("val: !!python/object/apply:os.system [ls]", "it is not YAML"),
    ],
)
def test_damaged_data_yaml_is_one_sentence(tmp_path, text, message):
    pytest.importorskip("yaml")
    yolo(tmp_path)
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        open_labeled(tmp_path, MODEL)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("value", ["<a><b></a>", "<annotation><object/></annotation>", "", "text"])
def test_damaged_voc_is_one_sentence(tmp_path, value):
    voc(tmp_path)
    (tmp_path / "Annotations" / "a.xml").write_text(value)
    with pytest.raises(DataError, match="are damaged"):
        open_labeled(tmp_path, MODEL)


def test_every_format_has_a_row():
    assert {name: FORMATS.get(name).fallback for name in FORMATS}["folders"]
    assert all(text for _, text in FORMATS.rows())
