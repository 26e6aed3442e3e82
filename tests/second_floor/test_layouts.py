"""Is a data set understood as it lies in a folder? (COCO, VOC, YOLO, masks, a folder per class)"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hire_mlp_mm.data.layout import Hints, Layout
from hire_mlp_mm.data.mask_files import decode_by_table, write_masks
from hire_mlp_mm.data.read import read_layout
from hire_mlp_mm.data.report import count
from hire_mlp_mm.errors import UserError

SIZE = (40, 20)  # width, height of every image
IMAGE = None  # stands for an image of that size


def lay(root: Path, files: dict) -> Path:
    """Write files: images for None, masks for arrays, json for dicts, else text or bytes."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is IMAGE:
            Image.new("RGB", SIZE, (90, 120, 30)).save(path)
        elif isinstance(content, np.ndarray):
            Image.fromarray(content).save(path)
        elif isinstance(content, Image.Image):
            content.save(path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(json.dumps(content) if isinstance(content, dict) else content)
    return root


def read(root: Path, files: dict, **hints) -> Layout:
    """Write files and read them; nothing may be written by that."""
    lay(root, files)
    before = sorted(root.rglob("*"))
    layout = read_layout(root, Hints(**hints))
    assert sorted(root.rglob("*")) == before
    return layout


def refused(root: Path, files: dict, **hints) -> str:
    """Write files, and return the one line with which they are refused."""
    lay(root, files)
    with pytest.raises(UserError) as raised:
        read_layout(root, Hints(**hints))
    line = str(raised.value)
    assert "\n" not in line
    return line


def notes_of(layout: Layout) -> str:
    return "\n".join(layout.notes)


def boxes(layout: Layout, split: str = "train") -> list[list[float]]:
    coco = layout.splits[split].coco
    return [annotation["bbox"] for annotation in coco["annotations"]]


def files_of(layout: Layout, split: str) -> list[str]:
    """The images of a converted split, which have to be there."""
    here = layout.splits[split]
    names = [image["file_name"] for image in here.coco["images"]]
    assert all((here.images / name).is_file() for name in names)
    return names


# COCO --------------------------------------------------------------------------------------------

SQUARE = [[1, 1, 9, 1, 9, 9, 1, 9]]


def coco(names=("a.jpg",), categories=("cat", "dog"), mask=SQUARE, **more) -> dict:
    """The content of a COCO file with one object in each image."""
    images = [
        dict(id=i, file_name=name, width=40, height=20) for i, name in enumerate(names, start=1)
    ]
    annotations = [
        dict(id=i, image_id=i, category_id=7, bbox=[1, 1, 8, 8], area=64, iscrowd=0)
        | ({} if mask is None else {"segmentation": mask})
        for i in range(1, len(images) + 1)
    ]
    kinds = [dict(id=7 + i, name=name, supercategory="") for i, name in enumerate(categories)]
    return dict(images=images, annotations=annotations, categories=kinds) | more


COCO_LAYOUTS = {
    "usual": {
        "annotations/instances_train2017.json": coco(),
        "annotations/instances_val2017.json": coco(["b.jpg"]),
        "annotations/captions_train2017.json": dict(images=[], annotations=[]),
        "train2017/a.jpg": IMAGE,
        "val2017/b.jpg": IMAGE,
    },
    "the same names in both splits": {
        "annotations/train.json": coco(),
        "annotations/val.json": coco(),
        "images/train/a.jpg": IMAGE,
        "images/val/a.jpg": IMAGE,
    },
    "json beside the images": {
        "train/_annotations.coco.json": coco(),
        "valid/_annotations.coco.json": coco(["b.jpg"]),
        "train/a.jpg": IMAGE,
        "valid/b.jpg": IMAGE,
    },
    "json above the folders": {
        "train.json": coco(),
        "val.json": coco(["b.jpg"]),
        "train/a.jpg": IMAGE,
        "val/b.jpg": IMAGE,
    },
    "folders in the file names": {
        "annotations/train.json": coco(["train/a.jpg"]),
        "annotations/val.json": coco(["val/b.jpg"]),
        "images/train/a.jpg": IMAGE,
        "images/val/b.jpg": IMAGE,
    },
    "one folder of images": {
        "train.json": coco(),
        "val.json": coco(["b.jpg"]),
        "images/a.jpg": IMAGE,
        "images/b.jpg": IMAGE,
    },
    "one level too deep": {
        "mine/annotations/train.json": coco(),
        "mine/annotations/val.json": coco(["b.jpg"]),
        "mine/train/a.jpg": IMAGE,
        "mine/val/b.jpg": IMAGE,
    },
}


@pytest.mark.parametrize("files", COCO_LAYOUTS.values(), ids=COCO_LAYOUTS)
def test_coco_files_are_matched_with_their_images(tmp_path, files):
    layout = read(tmp_path, files)
    assert (layout.task, layout.kind) == ("detection", "COCO json")
    assert layout.classes == ["cat", "dog"]
    assert layout.has_masks
    assert set(layout.splits) == {"train", "val"}
    for name, split in layout.splits.items():
        content = json.loads(split.annotations.read_text())
        assert name in str(split.annotations).replace("valid", "val")
        paths = [split.images / image["file_name"] for image in content["images"]]
        assert all(path.is_file() for path in paths)
    if all("b.jpg" not in name for name in files):
        assert layout.splits["train"].images != layout.splits["val"].images


@pytest.mark.parametrize(
    ("mask", "right"),
    [
        (None, False),
        ([], False),
        ([[1, 2, 3, 4]], False),
        ([[1, 1, 9, 1, 9]], False),
        (SQUARE, True),
        ({"counts": "abc", "size": [20, 40]}, True),
    ],
)
def test_masks_of_coco_are_only_promised_where_every_object_has_one(tmp_path, mask, right):
    files = {"train.json": coco(["a.jpg", "c.jpg"], mask=mask), "val.json": coco(["b.jpg"])}
    images = {f"images/{name}.jpg": IMAGE for name in "abc"}
    layout = read(tmp_path, files | images)
    assert layout.has_masks is right
    assert ("2 of 3 objects have no mask" in notes_of(layout)) is not right


def test_a_share_of_a_coco_file_becomes_the_validation_split(tmp_path):
    names = [f"{i}.jpg" for i in range(10)]
    files = {"all.json": coco(names)} | {f"images/{name}": IMAGE for name in names}
    layout = read(tmp_path, files, val=0.2)
    train, val = (files_of(layout, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (8, 2)
    assert sorted(train + val) == names
    for split in layout.splits.values():
        ids = {image["id"] for image in split.coco["images"]}
        assert {annotation["image_id"] for annotation in split.coco["annotations"]} == ids
    assert "2 of 10 training images, drawn with seed 0" in notes_of(layout)
    again = read_layout(tmp_path, Hints(val=0.2))
    assert files_of(again, "val") == val == ["0.jpg", "4.jpg"]  # the same on every machine
    assert files_of(read_layout(tmp_path, Hints(val=0.2, seed=1)), "val") != val


def test_a_category_that_groups_the_others_is_no_class(tmp_path):
    content = coco(categories=("dog", "cat"))
    content["categories"] = [
        dict(id=0, name="pets", supercategory="none"),
        dict(id=7, name="cat", supercategory="pets"),
        dict(id=8, name="dog", supercategory="pets"),
    ]
    files = {"train.json": content, "val.json": content, "images/a.jpg": IMAGE}
    layout = read(tmp_path, files)
    assert layout.classes == ["cat", "dog"]
    assert "'pets' is left out" in notes_of(layout)


def test_classes_of_a_person_are_taken_in_the_files_order(tmp_path):
    content = coco(categories=("cat", "dog", "cow"))
    files = {"train.json": content, "val.json": content, "images/a.jpg": IMAGE}
    layout = read(tmp_path, files, classes=["cow", "cat"])
    assert layout.classes == ["cat", "cow"]
    assert "in the order of train.json" in notes_of(layout)
    assert "'" not in refused(tmp_path, {}, classes=["cat", "horse"])
    assert "horse" in refused(tmp_path, {}, classes=["cat", "horse"])


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"train.json": b'{"images": ['}, "train.json cannot be read"),
        ({"train.json": coco(["x/z.jpg"])}, "train.json: none of its 1 image, such as x/z.jpg"),
        ({"train.json": coco(["x\\a.jpg"])}, "expected /"),
        ({"train.json": coco()}, "add --val 0.2"),
        ({"val.json": coco()}, "only val; expected a split 'train'"),
        (
            {"train.json": coco(categories=("cat", "cat")), "val.json": coco()},
            "are all called 'cat'",
        ),
        ({"train.json": coco(categories=("cat", 3)), "val.json": coco()}, "has the name 3"),
        ({"train.json": coco(images=[None])}, "entry 1 of 'images' is"),
        ({"train.json": coco(categories=("cat", None))}, "lacks name"),
    ],
)
def test_coco_files_are_refused_in_a_line(tmp_path, files, words):
    assert words in refused(tmp_path, {"images/a.jpg": IMAGE} | files)


# Pascal VOC --------------------------------------------------------------------------------------


def xml(*objects: str, name="a.jpg", size="<size><width>40</width><height>20</height></size>"):
    """An XML file of objects that `thing` wrote."""
    return f"<annotation><filename>{name}</filename>{size}{''.join(objects)}</annotation>"


def thing(name="cat", corners=(1, 1, 40, 20), more="") -> str:
    keys = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{k}>{v}</{k}>" for k, v in zip(keys, corners, strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>"


VOC_LAYOUTS = {
    "lists": {
        "JPEGImages/a.jpg": IMAGE,
        "JPEGImages/b.jpg": IMAGE,
        "Annotations/a.xml": xml(thing()),
        "Annotations/b.xml": xml(thing("dog"), name="b.jpg"),
        "ImageSets/Main/train.txt": "a\n",
        "ImageSets/Main/val.txt": "b\r\n",
        "ImageSets/Main/trainval.txt": "a\nb\n",
    },
    "two levels too deep": {
        "VOCdevkit/VOC2007/JPEGImages/a.jpg": IMAGE,
        "VOCdevkit/VOC2007/JPEGImages/b.jpg": IMAGE,
        "VOCdevkit/VOC2007/Annotations/a.xml": xml(thing()),
        "VOCdevkit/VOC2007/Annotations/b.xml": xml(thing("dog"), name="b.jpg"),
        "VOCdevkit/VOC2007/ImageSets/Main/trainval.txt": "a\n",
        "VOCdevkit/VOC2007/ImageSets/Main/test.txt": "b\n",
    },
    "beside the images": {
        "train/a.jpg": IMAGE,
        "train/a.xml": xml(thing()),
        "valid/b.jpg": IMAGE,
        "valid/b.xml": xml(thing("dog"), name="b.jpg"),
    },
    "folders in each split": {
        "train/images/a.jpg": IMAGE,
        "train/annotations/a.xml": xml(thing()),
        "val/images/b.jpg": IMAGE,
        "val/annotations/b.xml": xml(thing("dog"), name="b.jpg"),
    },
    "splits in each folder": {
        "images/train/a.jpg": IMAGE,
        "annotations/train/a.xml": xml(thing()),
        "images/val/b.jpg": IMAGE,
        "annotations/val/b.xml": xml(thing("dog"), name="b.jpg"),
    },
}


@pytest.mark.parametrize("files", VOC_LAYOUTS.values(), ids=VOC_LAYOUTS)
def test_voc_files_are_converted(tmp_path, files):
    layout = read(tmp_path, files)
    assert (layout.task, layout.kind) == ("detection", "Pascal VOC XML")
    assert layout.classes == ["cat", "dog"]
    assert not layout.has_masks
    assert files_of(layout, "train") == ["a.jpg"]
    assert files_of(layout, "val") == ["b.jpg"]
    assert boxes(layout) == [[0, 0, 40, 20]]  # corners are pixels, counted from 1
    (annotation,) = layout.splits["val"].coco["annotations"]
    assert annotation["category_id"] == 2  # as in `categories`, the same in all splits
    assert annotation["id"] == 1  # never 0


def voc(objects=(), image="JPEGImages/a.jpg", file="Annotations/a.xml", **more) -> dict:
    """A data set of two images, of which the first is in the training split."""
    lists = {"ImageSets/Main/train.txt": "a", "ImageSets/Main/val.txt": "z"}
    last = {"JPEGImages/z.jpg": IMAGE, "Annotations/z.xml": xml(thing("zebra"), name="z.jpg")}
    return lists | last | {image: IMAGE, file: xml(*objects, **more)}


@pytest.mark.parametrize(
    ("corners", "right"),
    [
        ((11, 6, 20, 15), [10, 5, 10, 10]),
        ((0, 6, 20, 15), [0, 6, 20, 9]),  # edges, then
        ((1.5, 2.25, 10.5, 12.75), [0.5, 1.25, 10.0, 11.5]),
        ((1, 1, 50, 30), [0, 0, 50, 30]),  # beyond the image: for the check
    ],
)
def test_corners(tmp_path, corners, right):
    assert boxes(read(tmp_path, voc([thing(corners=corners)]))) == [right]


@pytest.mark.parametrize("corners", [(5, 6, 5, 6), (5, 6, 5, 9), (9, 6, 5, 9)])
def test_boxes_without_area_are_kept_to_be_counted(tmp_path, corners):
    layout = read(tmp_path, voc([thing(corners=corners), thing()]))
    first, second = layout.splits["train"].coco["annotations"]
    assert min(first["bbox"][2:]) <= 0
    assert first["area"] == 0
    assert (first["iscrowd"], second["iscrowd"]) == (1, 0)  # no evaluator counts it as missed
    assert "1 object without width or height" in notes_of(layout)
    assert "Annotations/a.xml" in notes_of(layout)


@pytest.mark.parametrize("place", ["{}.jpg {}.xml", "images/{}.jpg annotations/{}.xml"])
def test_a_share_of_voc_files(tmp_path, place):
    files = {}
    for i in range(10):
        image, file = place.format(i, i).split(" ")
        files |= {image: IMAGE, file: xml(thing(), name=f"{i}.jpg")}
    layout = read(tmp_path, files, val=0.2)
    assert [len(files_of(layout, split)) for split in ("train", "val")] == [8, 2]


def test_difficult_objects_are_ignored_and_counted(tmp_path):
    layout = read(tmp_path, voc([thing(more="<difficult>1</difficult>"), thing()]))
    crowds = [a["iscrowd"] for a in layout.splits["train"].coco["annotations"]]
    assert crowds == [1, 0]
    assert "1 object marked difficult" in notes_of(layout)


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
def test_a_missing_size_is_the_images(tmp_path, size):
    image = read(tmp_path, voc([thing()], size=size)).splits["train"].coco["images"][0]
    assert (image["width"], image["height"]) == SIZE


def test_a_size_that_is_not_the_images_is_said(tmp_path):
    size = "<size><width>20</width><height>40</height></size>"
    layout = read(tmp_path, voc([thing()], size=size))
    assert "another size than their image has: Annotations/a.xml" in notes_of(layout)
    image = layout.splits["train"].coco["images"][0]
    assert (image["width"], image["height"]) == (20, 40)  # for which the boxes are


def test_a_missing_size_is_that_of_the_turned_image(tmp_path):
    files = voc([thing()], size="")
    lay(tmp_path, files)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE).save(tmp_path / "JPEGImages/a.jpg", exif=exif)
    image = read_layout(tmp_path).splits["train"].coco["images"][0]
    assert (image["width"], image["height"]) == SIZE[::-1]


def test_odd_voc_files_are_said(tmp_path):
    files = voc([], name="other.jpg") | {
        "JPEGImages/bare.jpg": IMAGE,
        "Annotations/lone.xml": xml(thing(), name="lone.jpg"),
        "JPEGImages/.ipynb_checkpoints/a.jpg": IMAGE,
        "__MACOSX/._a.jpg": b"",
    }
    layout = read(tmp_path, files)
    assert files_of(layout, "train") == ["a.jpg"]  # without objects
    said = notes_of(layout)
    assert "1 .xml file without image: Annotations/lone.xml" in said
    assert "1 image without .xml file (one without <object> says that nothing is there): " in said
    assert "JPEGImages/bare.jpg" in said
    assert "Annotations/a.xml (other.jpg)" in said
    assert "1 .ipynb_checkpoints, 1 __MACOSX" in said


@pytest.mark.parametrize("stem", ["Bild ä 1", "图片", "a.b"])
def test_names_in_any_letters(tmp_path, stem):
    files = voc([thing("Käse")], f"JPEGImages/{stem}.jpg", f"Annotations/{stem}.xml")
    files["ImageSets/Main/train.txt"] = f"{stem}\n"
    layout = read(tmp_path, files)
    assert files_of(layout, "train") == [f"{stem}.jpg"]
    assert layout.classes == ["Käse", "zebra"]


def test_an_accent_may_be_written_in_two_ways(tmp_path):
    files = voc([thing()], "JPEGImages/a\u0308.jpg", "Annotations/\u00e4.xml")
    files["ImageSets/Main/train.txt"] = "\u00e4"
    assert files_of(read(tmp_path, files), "train") == ["a\u0308.jpg"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("<annotation><object>", "a.xml is no XML"),
        ("<!DOCTYPE x><svg></svg>", "<svg>; expected <annotation>"),
        (xml("<object><name>cat</name></object>"), "object 1 has the box '', '', '', ''"),
        (xml(thing(), thing(corners=("x", 1, 2, 3))), "object 2 has the box 'x', '1'"),
        (xml(thing(corners=("nan", 1, 2, 3))), "object 1 has the box 'nan'"),
        (xml(thing("")), "object 1 has no <name>"),
    ],
)
def test_voc_files_are_refused_in_a_line_with_their_name(tmp_path, content, words):
    line = refused(tmp_path, voc() | {"Annotations/a.xml": content})
    assert words in line
    assert str(tmp_path / "Annotations/a.xml") in line


def test_a_list_that_names_what_is_not_there(tmp_path):
    line = refused(tmp_path, voc([thing()]) | {"ImageSets/Main/val.txt": "z\ny"})
    assert "val.txt lists y, without an image or .xml file (1 of 2)" in line


def test_images_in_two_lists_are_said(tmp_path):
    layout = read(tmp_path, voc([thing()]) | {"ImageSets/Main/val.txt": "z\na"})
    assert "1 image of val is also in train" in notes_of(layout)


def test_names_that_differ_in_capitals_are_said(tmp_path):
    layout = read(tmp_path, voc([thing("cat"), thing("Cat")]))
    assert layout.classes == ["Cat", "cat", "zebra"]
    assert "differ in capitals alone: Cat, cat" in notes_of(layout)


def test_names_not_asked_for_are_kept_for_the_count(tmp_path):
    layout = read(tmp_path, voc([thing("cat"), thing("cow")]), classes=["zebra", "cat"])
    categories = [c["name"] for c in layout.splits["train"].coco["categories"]]
    assert layout.classes == ["cat", "zebra"]
    assert categories == ["cat", "zebra", "cow"]


# YOLO --------------------------------------------------------------------------------------------

YAML = "names: [cat, dog]\nnc: 2\n"
BOX = "1 0.5 0.5 0.5 0.5\n"
YOLO_LAYOUTS = {
    "splits in each folder": {
        "data.yaml": YAML + "path: ../datasets/mine\ntrain: images/train\nval: images/val\n",
        "images/train/a.jpg": IMAGE,
        "labels/train/a.txt": BOX,
        "images/val/b.jpg": IMAGE,
        "labels/val/b.txt": BOX,
    },
    "folders in each split": {
        "data.yaml": YAML + "train: ../train/images\nval: ../valid/images\n",
        "train/images/a.jpg": IMAGE,
        "train/labels/a.txt": BOX,
        "valid/images/b.jpg": IMAGE,
        "valid/labels/b.txt": BOX,
    },
    "lists": {
        "my.yml": "names: {0: cat, 1: dog}\npath: /somebody/mine\ntrain: train.txt\nval: val.txt\n",
        "train.txt": "./images/a.jpg\n",
        "val.txt": "/somebody/mine/images/b.jpg\n",
        "images/a.jpg": IMAGE,
        "labels/a.txt": BOX,
        "images/b.jpg": IMAGE,
        "labels/b.txt": BOX,
    },
    "names in a text file": {
        "classes.txt": "cat\ndog\n",
        "images/train/a.jpg": IMAGE,
        "labels/train/a.txt": BOX,
        "images/val/b.jpg": IMAGE,
        "labels/val/b.txt": BOX,
    },
    "names in a yaml file without splits": {
        "data.yaml": YAML,
        "train/images/a.jpg": IMAGE,
        "train/labels/a.txt": BOX,
        "val/images/b.jpg": IMAGE,
        "val/labels/b.txt": BOX,
    },
    "numbers in a text file": {
        "classes.txt": "1 dog\n0 cat\n",
        "images/train/a.jpg": IMAGE,
        "labels/train/a.txt": BOX,
        "images/val/b.jpg": IMAGE,
        "labels/val/b.txt": BOX,
    },
    "beside the images": {
        "classes.txt": "cat\ndog\n",
        "train/a.jpg": IMAGE,
        "train/a.txt": BOX,
        "val/b.jpg": IMAGE,
        "val/b.txt": BOX,
    },
}


@pytest.mark.parametrize("files", YOLO_LAYOUTS.values(), ids=YOLO_LAYOUTS)
def test_yolo_files_are_converted(tmp_path, files):
    layout = read(tmp_path, files)
    assert (layout.task, layout.kind) == ("detection", "YOLO txt")
    assert layout.classes == ["cat", "dog"]
    assert files_of(layout, "train") == ["a.jpg"]
    assert files_of(layout, "val") == ["b.jpg"]
    (annotation,) = layout.splits["train"].coco["annotations"]
    assert annotation["bbox"] == [10, 5, 20, 10]
    assert annotation["category_id"] == 2
    assert "segmentation" not in annotation
    assert not layout.has_masks


def yolo(labels: str | None, yaml=YAML + "train: images\nval: val/images\n") -> dict:
    """A data set of two images, of which the first is in the training split."""
    files = {"data.yaml": yaml, "images/a.jpg": IMAGE, "val/images/z.jpg": IMAGE}
    files["val/labels/z.txt"] = BOX
    return files if labels is None else files | {"labels/a.txt": labels}


@pytest.mark.parametrize("label", ["labels/{}.txt", "images/{}.txt"])
def test_a_share_of_yolo_files(tmp_path, label):
    files = {"classes.txt": "cat\ndog"}
    for i in range(10):
        files |= {f"images/{i}.jpg": IMAGE, label.format(i): BOX}
    layout = read(tmp_path, files, val=0.2)
    assert [len(files_of(layout, split)) for split in ("train", "val")] == [8, 2]
    assert len(boxes(layout)) == 8


def test_polygons_of_yolo_are_masks(tmp_path):
    polygon = "0 0.25 0.5 0.75 0.5 0.75 1.0\n"
    layout = read(tmp_path, yolo(polygon) | {"val/labels/z.txt": polygon})
    (annotation,) = layout.splits["train"].coco["annotations"]
    assert annotation["segmentation"] == [[10, 10, 30, 10, 30, 20]]
    assert annotation["bbox"] == [10, 10, 20, 10]
    assert annotation["area"] == 100
    assert layout.has_masks
    mixed = read(tmp_path, {"val/labels/z.txt": BOX})
    assert not mixed.has_masks
    assert "1 of 2 objects are polygons" in notes_of(mixed)


@pytest.mark.parametrize(("labels", "words"), [("", "1 empty label"), (None, "1 image without")])
def test_images_without_objects_are_kept_and_said(tmp_path, labels, words):
    layout = read(tmp_path, yolo(labels))
    assert files_of(layout, "train") == ["a.jpg"]
    assert boxes(layout) == []
    assert words in notes_of(layout)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (BOX + "2 .5 .5 .1 .1", "object 2: class 2, but data.yaml has the names 0 to 1"),
        (BOX + "0 20 10 5 5", "line 2 (0 20 10 5 5): expected shares"),
        ("0 .5 .5 .1", "line 1 (0 .5 .5 .1): 3 numbers after the class"),
        ("0 .5 .5 .1 .1 .9 .7 .1", "7 numbers after the class"),
        ("cat .5 .5 .1 .1", "line 1 (cat .5 .5 .1 .1): expected the number of a class"),
        ("-1 .5 .5 .1 .1", "expected the number of a class"),
        ("0 nan .5 .1 .1", "expected shares"),
    ],
)
def test_yolo_files_are_refused_in_a_line_with_their_name(tmp_path, labels, words):
    line = refused(tmp_path, yolo(labels))
    assert words in line
    assert str(tmp_path / "labels/a.txt") in line


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("names: [a, b\ntrain: images", "data.yaml is no yaml"),
        ("names: [a, b]\nnc: 3\ntrain: images\nval: val", "'nc' is 3, but 'names' has 2"),
        ("names: [a, on]\ntrain: images\nval: val", "name 1 is True in yaml; put it into quotes"),
        (
            "names: {0: a, 2: b}\ntrain: images\nval: val",
            "the numbers 0, 2, without 1; expected 0 to 1",
        ),
        (
            "names: [a, b]\ntrain: photos\nval: val",
            "'train' of data.yaml names photos, which is not in",
        ),
        ("names: [a, a]\ntrain: images\nval: val", "the name 'a' twice"),
        ("names: [a, b]\ntrain: images\n", "no validation split: add --val 0.2"),
    ],
)
def test_yaml_files_are_refused_in_a_line(tmp_path, yaml, words):
    assert words in refused(tmp_path, yolo(BOX, yaml))


def test_a_test_split_that_is_not_there_is_passed_over(tmp_path):
    yaml = YAML + "train: images\nval: val/images\ntest: ../test/images\n"
    layout = read(tmp_path, yolo(BOX, yaml) | {"other.yaml": "a: [1"[:3]})
    assert set(layout.splits) == {"train", "val"}
    assert "'test' of data.yaml names ../test/images, which is not in" in notes_of(layout)


def test_numbers_without_names(tmp_path):
    files = yolo(BOX)
    del files["data.yaml"]
    files = {name.replace("val/images", "images/val"): f for name, f in files.items()}
    files = {name.replace("val/labels", "labels/val"): f for name, f in files.items()}
    assert "numbers its classes (1) and has no names for them" in refused(tmp_path, files)
    assert read_layout(tmp_path, Hints(classes=["cat", "dog"])).classes == ["cat", "dog"]


def test_key_points_are_left_out_and_said(tmp_path):
    yaml = YAML + "kpt_shape: [1, 3]\ntrain: images\nval: val/images\n"
    row = BOX.strip() + " 0.5 0.5 2\n"
    layout = read(tmp_path, yolo(row, yaml) | {"val/labels/z.txt": row})
    assert boxes(layout) == [[10, 5, 20, 10]]
    assert "key points are left out" in notes_of(layout)


def test_labels_without_image_are_said(tmp_path):
    layout = read(tmp_path, yolo(BOX) | {"labels/lone.txt": BOX, "labels/classes.txt": "cat\ndog"})
    assert "1 label file without image: labels/lone.txt" in notes_of(layout)


# Images and masks --------------------------------------------------------------------------------


def mask(*values: int) -> np.ndarray:
    """A mask of these labels, in columns."""
    columns = np.resize(np.array(values, dtype=np.uint8), SIZE[0])
    return np.tile(columns, (SIZE[1], 1))


def pairs(*places: str, content=None) -> dict:
    """Images and masks at places such as `images/train/{}.jpg masks/train/{}.png`."""
    files = {}
    for number, place in enumerate(places):
        image, label = place.format(number, number).split(" ")
        files |= {image: IMAGE, label: mask(0, 1, 2) if content is None else content}
    return files


MASK_LAYOUTS = {
    "images/{} annotations/{}": ("images/SPLIT/{}.jpg annotations/SPLIT/{}.png", ".jpg", ".png"),
    "img_dir/{} ann_dir/{}": ("img_dir/SPLIT/{}.png ann_dir/SPLIT/{}.png", ".png", ".png"),
    "{}/images {}/masks": ("SPLIT/images/{}.jpg SPLIT/masks/{}.png", ".jpg", ".png"),
    "{} {}annot": ("SPLIT/{}.png SPLITannot/{}.png", ".png", ".png"),
    "{} {}_labels": ("SPLIT/x{}.png SPLIT_labels/x{}_L.png", ".png", "_L.png"),
    "subfolders": (
        "leftImg8bit/SPLIT/aachen/{}_leftImg8bit.png gtFine/SPLIT/aachen/{}_gtFine_labelIds.png",
        "_leftImg8bit.png",
        "_gtFine_labelIds.png",
    ),
    "{}_images {}_masks": ("SPLIT_images/{}.jpg SPLIT_masks/{}.png", ".jpg", ".png"),
    "images_{} masks_{}": ("images_SPLIT/{}.jpg masks_SPLIT/{}.png", ".jpg", ".png"),
    "ground truth": ("SPLIT/images/{}.jpg SPLIT/ground_truth/{}.png", ".jpg", ".png"),
    "together": ("SPLIT/{}.jpg SPLIT/{}_mask.png", ".jpg", "_mask.png"),
    "together, one suffix": ("SPLIT/{}.png SPLIT/{}_mask.png", ".png", "_mask.png"),
    "suffix in capitals": ("images/SPLIT/{}.JPG masks/SPLIT/{}.png", ".JPG", ".png"),
}


@pytest.mark.parametrize(("place", "image", "label"), MASK_LAYOUTS.values(), ids=MASK_LAYOUTS)
def test_masks_are_matched_with_their_images(tmp_path, place, image, label):
    places = [place.replace("SPLIT", split) for split in ("train", "val", "train")]
    layout = read(tmp_path, pairs(*places), classes=["sky", "road", "car"])
    assert (layout.task, layout.kind) == ("segmentation", "images and masks")
    assert set(layout.splits) == {"train", "val"}
    assert listed(layout, "train") == 2
    assert listed(layout, "val") == 1
    assert layout.mask_table is None
    assert (layout.reduce_zero_label, layout.ignore_index) == (False, 255)
    stem = "_" if image.startswith("_") else ""  # what both have may be on either side
    assert layout.image_suffix in (image, image.removeprefix(stem))
    assert layout.mask_suffix in (label, label.removeprefix(stem))


def listed(layout: Layout, name: str) -> int:
    """Count the images of a split as MMSegmentation finds them; their masks have to be there."""
    split = layout.splits[name]
    images = split.names or [
        path.relative_to(split.images).as_posix()
        for path in split.images.rglob(f"*{layout.image_suffix}")
    ]
    for image in images:
        assert (split.images / image).is_file()
        label = image.removesuffix(layout.image_suffix) + layout.mask_suffix
        assert (split.annotations / label).is_file()
    return len(images)


def test_a_share_of_flat_folders(tmp_path):
    files = pairs(*["images/{}.jpg masks/{}.png"] * 10)
    layout = read(tmp_path, files, classes=["a", "b", "c"], val=0.3)
    train, val = (layout.splits[name].names for name in ("train", "val"))
    assert (len(train), len(val)) == (7, 3)
    assert not set(train) & set(val)


def test_of_two_folders_of_masks_the_fuller_one_is_taken_and_said(tmp_path):
    files = pairs(*["images/{}.jpg masks/{}.png"] * 3) | {"labels/0.png": mask(0)}
    files |= {"logo.png": IMAGE}
    layout = read(tmp_path, files, classes=["a", "b", "c"], val=0.3)
    assert layout.splits["train"].annotations == tmp_path / "masks"
    assert layout.splits["train"].images == tmp_path / "images"
    assert "passed over for all: 1 other folder of masks: labels" in notes_of(layout)


def test_lists_of_a_voc_folder_split_the_masks(tmp_path):
    files = pairs(*["JPEGImages/{}.jpg SegmentationClass/{}.png"] * 3)
    files |= {"ImageSets/Segmentation/train.txt": "0\n2", "ImageSets/Segmentation/val.txt": "1"}
    layout = read(tmp_path, files, classes=["a", "b", "c"])
    assert layout.splits["train"].names == ["0.jpg", "2.jpg"]
    assert layout.splits["val"].names == ["1.jpg"]


PLACES = ("images/train/{}.jpg masks/train/{}.png", "images/val/{}.jpg masks/val/{}.png")


@pytest.mark.parametrize(
    ("values", "hints", "right"),
    [
        # values of the masks; classes and ignore; (reduce_zero_label, ignore_index)
        ((0, 1, 2), dict(classes="abc"), (False, 255)),
        ((0, 1, 255), dict(classes="abc"), (False, 255)),
        ((0, 1, 2, 3), dict(classes="abc", ignore=3), (False, 3)),
        ((0, 1, 2, 3), dict(classes="abc", ignore=0), (True, 255)),
        ((0, 1, 255), dict(classes="abc", ignore=3), (False, 255)),
        ((0, 1, 2), dict(classes="abc", ignore=0), (True, 255)),
        ((1, 2, 3), dict(classes="abc"), (True, 255)),
        ((1, 2), dict(classes="abc"), (False, 255)),
        ((0, 1, 2), dict(classes=["background", "b", "c"], ignore=0), (False, 0)),
    ],
)
def test_what_the_values_mean(tmp_path, values, hints, right):
    hints["classes"] = list(hints["classes"])
    layout = read(tmp_path, pairs(*PLACES, content=mask(*values)), **hints)
    assert (layout.reduce_zero_label, layout.ignore_index) == right
    assert layout.classes == hints["classes"]
    assert layout.mask_table is None


@pytest.mark.parametrize(
    ("values", "hints", "words"),
    [
        ((0, 1, 2), {}, "3 labels (0 to 2) and no names: give --classes with 3 names"),
        ((0, 255), {}, "2 labels (0, 255) and no names: give --classes with 2 names"),
        (
            (0, 1, 2, 3),
            dict(classes="abc"),
            "value 3 is in 25 % of the pixels (first in masks/train/0.png), but 3 classes are 0 to "
            "2: give --ignore 3, or --ignore 0 if 0 is no class and 1 is a, or 4 names",
        ),
        ((0, 7, 9), dict(classes="abc"), "(also 9): expected 10 names"),
        ((0, 1), dict(classes="a"), "one class (a) is nothing to tell from another"),
        ((0, 255), dict(classes="abc"), "the values 0 and 255; expected 2 names, got 3"),
        ((255,), dict(classes="abc"), "every pixel of the masks is 255"),
    ],
)
def test_values_of_no_class_are_refused(tmp_path, values, hints, words):
    if "classes" in hints:
        hints["classes"] = list(hints["classes"])
    assert words in refused(tmp_path, pairs(*PLACES, content=mask(*values)), **hints)


@pytest.mark.parametrize(
    ("values", "hints", "written"),
    [
        ((0, 255), dict(classes="ab"), (0, 1)),
        ((0, 1, 2, 255), dict(classes="ab", ignore=2), (0, 1, 255, 255)),
    ],
)
def test_values_that_the_host_cannot_read_are_written_anew(tmp_path, values, hints, written):
    hints["classes"] = list(hints["classes"])
    layout = read(tmp_path / "data", pairs(*PLACES, content=mask(*values)), **hints)
    new = write_masks(layout, tmp_path / "out")
    label = np.asarray(Image.open(tmp_path / "out/val/1.png"))
    assert (label == mask(*written)).all()
    assert new.splits["val"].annotations == tmp_path / "out/val"
    assert (new.mask_table, new.ignore_index) == (None, 255)


def colours(*columns: tuple[int, int, int]) -> np.ndarray:
    """A mask of these colours, in columns."""
    return np.array(columns, dtype=np.uint8)[mask(*range(len(columns)))]


SKY, ROAD, VOID = (128, 200, 250), (64, 64, 64), (0, 0, 0)
TABLES = {
    "class_dict.csv": "name,r,g,b\nsky,128,200,250\nroad,64,64,64\nVoid,0,0,0\n",
    "label_colors.txt": "128 200 250\tsky\n64 64 64\troad\n0 0 0\tVoid\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nsky:128,200,250::\nroad:64,64,64::\n"
    "Void:0,0,0::\n",
    "colormap.csv": "id,name,r,g,b\n0,sky,128,200,250\n1,road,64,64,64\n2,Void,0,0,0\n",
}


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("table", TABLES)
def test_colours_become_labels(tmp_path, table, mode):
    picture = Image.fromarray(colours(SKY, ROAD, VOID)).convert(mode)
    files = pairs(*PLACES, content=picture) | {table: TABLES[table]}
    layout = read(tmp_path / "data", files)
    assert layout.classes == ["sky", "road"]
    assert layout.palette == [SKY, ROAD]
    assert layout.mask_table == {SKY: 0, ROAD: 1, VOID: 255}
    assert "Void" in notes_of(layout)
    new = write_masks(layout, tmp_path / "out")
    assert listed(new, "train") == 1
    label = Image.open(tmp_path / "out/train/0.png")
    assert label.mode == "L"
    assert (np.asarray(label) == mask(0, 1, 255)).all()
    with pytest.raises(UserError, match="exists already"):
        write_masks(layout, tmp_path / "out")


def test_colours_without_their_names(tmp_path):
    files = pairs(*PLACES, content=colours(SKY, ROAD))
    assert "2 colours ((64, 64, 64), (128, 200, 250))" in refused(tmp_path, files)
    line = refused(tmp_path, {"class_dict.csv": "name,r,g,b\nsky,128,200,250\nsea,1,2,3\n"})
    assert "the colour (64, 64, 64) is in 50 % of the pixels (first in masks/train/0.png)" in line


def test_grey_colours_are_labels(tmp_path):
    picture = colours((0, 0, 0), (1, 1, 1), (255, 255, 255))
    layout = read(tmp_path / "data", pairs(*PLACES, content=picture), classes=["a", "b"])
    write_masks(layout, tmp_path / "out")
    label = np.asarray(Image.open(tmp_path / "out/val/1.png"))
    assert (label == mask(0, 1, 255)).all()


def test_a_palette_gives_the_colours(tmp_path):
    picture = Image.fromarray(mask(0, 1)).convert("P")
    picture.putpalette([*SKY, *ROAD])
    layout = read(tmp_path, pairs(*PLACES, content=picture), classes=["sky", "road"])
    assert layout.palette == [SKY, ROAD]
    assert layout.mask_table is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "sky\nroad\ntraffic light\n"),
        ("train/_classes.csv", "Pixel Value, Class\n0, sky\n1, road\n2, traffic light\n"),
        ("labels.txt", "0 sky\n1 road\n2 traffic light\n"),
        ("labels.csv", "name,value\ntraffic light,2\nsky,0\nroad,1\n"),
    ],
)
def test_names_from_files(tmp_path, name, text):
    layout = read(tmp_path, pairs(*PLACES) | {name: text})
    assert layout.classes == ["sky", "road", "traffic light"]
    assert name in notes_of(layout)


def test_values_from_a_file(tmp_path):
    files = pairs(*PLACES, content=mask(4, 9)) | {"labels.csv": "sky,9\nroad,4\n"}
    layout = read(tmp_path, files)
    assert layout.classes == ["road", "sky"]
    assert layout.mask_table == {(4, 4, 4): 0, (9, 9, 9): 1, (255, 255, 255): 255}


def test_what_has_no_like_is_passed_over_and_said(tmp_path):
    files = pairs(*PLACES, PLACES[0], PLACES[0]) | {
        "images/train/lone.jpg": IMAGE,
        "images/train/other.bmp": IMAGE,
        "masks/val/lone.png": mask(0),
    }
    layout = read(tmp_path, files, classes=["a", "b", "c"])
    assert layout.splits["train"].names == ["0.jpg", "2.jpg", "3.jpg"]
    assert layout.splits["val"].names is None
    said = notes_of(layout)
    assert "1 image without mask: lone.jpg" in said
    assert "1 image without the suffix .jpg: other.bmp" in said
    assert "1 mask without image: lone.png" in said


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (pairs("images/train/a{}.jpg masks/train/b{}.png"), "masks/train (such as b0.png)"),
        (pairs(*PLACES) | {"masks/val/1.png": colours(SKY)}, "expected one kind of masks"),
        (pairs(*PLACES) | {"masks/val/1.png": b"x"}, "masks/val/1.png is no mask"),
    ],
)
def test_masks_are_refused_in_a_line(tmp_path, files, words):
    assert words in refused(tmp_path, files, classes=["a", "b", "c"])


def test_images_without_masks_are_never_found_by_the_host(tmp_path):
    files = pairs(*PLACES) | {
        "images/train/.ipynb_checkpoints/0-checkpoint.jpg": IMAGE,
        "images/val/more/9.jpg": IMAGE,
        "images/test/5.jpg": IMAGE,
    }
    layout = read(tmp_path, files, classes=["a", "b", "c"])
    assert set(layout.splits) == {"train", "val"}
    assert layout.splits["train"].names == ["0.jpg"]
    assert layout.splits["val"].names == ["1.jpg"]
    said = "2 images in folders without masks: images/test/5.jpg, images/val/more/9.jpg"
    assert said in notes_of(layout)


def test_hidden_files_do_not_hinder_the_writing_of_masks(tmp_path):
    files = pairs(*PLACES, content=mask(0, 255)) | {"images/train/._0.jpg": b"\0"}
    layout = read(tmp_path / "data", files, classes=["a", "b"])
    write_masks(layout, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out/train").iterdir()] == ["0.png"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("jpg", "JPEG changes labels: write masks as PNG"),
        ("png", "(also 5 to 9): expected 10 names"),
    ],
)
def test_values_that_jpeg_made(tmp_path, name, words):
    places = [place.replace(".png", f".{name}") for place in PLACES]
    content = Image.fromarray(mask(0, 1, 4, 5, 6, 7, 8, 9))
    assert words in refused(tmp_path, pairs(*places, content=content), classes=["a", "b", "c"])


def test_grey_masks_with_a_table_are_read_by_its_colours(tmp_path):
    table = {"class_dict.csv": "name,r,g,b\nroad,255,255,255\nrest,0,0,0\n"}
    layout = read(tmp_path / "data", pairs(*PLACES, content=mask(0, 255)) | table)
    assert layout.classes == ["road", "rest"]
    write_masks(layout, tmp_path / "out")
    label = np.asarray(Image.open(tmp_path / "out/val/1.png"))
    assert (label == mask(1, 0)).all()  # road is white, wherever it stands in the table


def test_a_palette_and_a_table_have_to_agree(tmp_path):
    picture = Image.fromarray(mask(0, 1)).convert("P")
    picture.putpalette([*ROAD, *SKY])
    table = {"class_dict.csv": "name,r,g,b\nsky,128,200,250\nroad,64,64,64\n"}
    line = refused(tmp_path, pairs(*PLACES, content=picture) | table)
    assert "the value 0 for the colour (64, 64, 64), which is number 1 of class_dict.csv" in line


def test_masks_with_a_palette_are_checked_as_they_are_written(tmp_path):
    picture = Image.fromarray(mask(0, 1, 2, 255)).convert("P")
    picture.putpalette([*SKY, *ROAD] * 128)
    hints = dict(classes=["sky", "road"], ignore=2)
    layout = read(tmp_path / "data", pairs(*PLACES, content=picture), **hints)
    write_masks(layout, tmp_path / "out")
    content = (tmp_path / "data/masks/val/1.png").read_bytes()
    labels = decode_by_table(layout.mask_table, content)
    assert (labels == np.asarray(Image.open(tmp_path / "out/val/1.png"))).all()
    assert (labels == mask(0, 1, 255, 255)).all()


def test_a_number_to_ignore_among_numbers_from_one(tmp_path):
    files = pairs(*PLACES, content=mask(1, 2, 3)) | {"labels.csv": "sky,1\nroad,2\nsea,3\n"}
    layout = read(tmp_path, files, ignore=3)
    assert layout.classes == ["sky", "road"]
    assert layout.mask_table == {(1,) * 3: 0, (2,) * 3: 1, (3,) * 3: 255, (255,) * 3: 255}


# A folder per class ------------------------------------------------------------------------------


def folders(**splits: str) -> dict:
    """Two images in the folder of each class of a split; classes are letters."""
    return {
        f"{split}/{name}/{i}.jpg": IMAGE
        for split, names in splits.items()
        for name in names
        for i in range(2)
    }


def test_a_folder_per_class(tmp_path):
    layout = read(tmp_path, folders(train="ba", val="ab", test="ab"))
    assert (layout.task, layout.kind) == ("classification", "a folder per class")
    assert layout.classes == ["a", "b"]
    assert {name: split.images.name for name, split in layout.splits.items()} == {
        name: name for name in ("train", "val", "test")
    }
    assert all(split.names is None for split in layout.splits.values())


def test_the_test_split_validates_where_there_is_no_other(tmp_path):
    layout = read(tmp_path, folders(train="ab", test="ab"))
    assert layout.splits["val"] == layout.splits["test"]
    assert "validation: the test split" in notes_of(layout)
    layout = read_layout(tmp_path, Hints(val=0.5))
    assert layout.splits["val"].images == layout.splits["train"].images
    assert layout.splits["test"].names is None


def test_each_class_is_shared_out_by_itself(tmp_path):
    files = {f"{name}/{i}.jpg": IMAGE for name in ("cat", "dog") for i in range(10)}
    layout = read(tmp_path, files, val=0.2)
    for split, number in (("train", 8), ("val", 2)):
        names = layout.splits[split].names
        assert [sum(name.startswith(c) for name in names) for c in ("cat", "dog")] == [number] * 2


def test_a_class_that_a_split_lacks_does_not_shift_the_labels(tmp_path):
    layout = read(tmp_path, folders(train="abc", val="ac"))
    assert layout.classes == ["a", "b", "c"]
    assert layout.splits["train"].names is None
    assert layout.splits["val"].names == ["a/0.jpg", "a/1.jpg", "c/0.jpg", "c/1.jpg"]
    assert "val has no image of b" in notes_of(layout)
    assert "have no d, which other splits have" in refused(tmp_path, folders(val="d"))


def test_what_is_no_class_is_passed_over_and_said(tmp_path):
    files = folders(train="ab", val="ab") | {
        "train/.ipynb_checkpoints/x.jpg": IMAGE,
        "train/__MACOSX/._x.jpg": b"",
        "train/x.jpg": IMAGE,
        "train/a/notes.txt": "",
        "train/a/2.webp": IMAGE,
    }
    (tmp_path / "train/empty").mkdir(parents=True)
    layout = read(tmp_path, files)
    assert layout.classes == ["a", "b"]
    # MMPretrain would take the empty folder for a class, and leave .webp out.
    assert "a/2.webp" in layout.splits["train"].names
    assert len(layout.splits["train"].names) == 5
    said = notes_of(layout)
    assert "1 folder without images: empty" in said
    assert "1 image in no class's folder" in said
    assert "1 .txt" in said
    assert "1 .ipynb_checkpoints, 1 __MACOSX" in said


def test_images_beside_the_splits_are_said(tmp_path):
    layout = read(tmp_path, folders(train="ab", val="ab") | {"unlabelled/1.jpg": IMAGE})
    assert "passed over: 1 image elsewhere: unlabelled/1.jpg" in notes_of(layout)


def test_a_test_split_without_labels_is_passed_over(tmp_path):
    layout = read(tmp_path, folders(train="ab", val="ab") | {"test/1.jpg": IMAGE})
    assert set(layout.splits) == {"train", "val"}
    assert "passed over: test with 1 image and no folder per class" in notes_of(layout)


def test_classes_may_be_chosen_and_ordered(tmp_path):
    layout = read(tmp_path, folders(train="abc", val="abc"), classes=["c", "a"])
    assert layout.classes == ["c", "a"]
    assert layout.splits["val"].names == ["c/0.jpg", "c/1.jpg", "a/0.jpg", "a/1.jpg"]
    assert "not among --classes: b" in notes_of(layout)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (folders(train="ab") | {"val/1.jpg": IMAGE}, "1 image and no folder per class"),
        (folders(train="ab"), "add --val 0.2"),
    ],
)
def test_folders_are_refused_in_a_line(tmp_path, files, words):
    assert words in refused(tmp_path, files)


# Whatever lies in the folder ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "is empty; expected COCO json"),
        ({"a.txt": "", "b.txt": "", "c/d.jpg": IMAGE}, "no data set that is understood"),
        ({"data.zip": b""}, "unpack the .zip file first"),
        ({"train/images/a.jpg": IMAGE, "val/images/a.jpg": IMAGE}, "(2 .jpg in train, val)"),
        (
            {f"one/{name}": f for name, f in COCO_LAYOUTS["usual"].items()}
            | {f"two/{name}": f for name, f in folders(train="ab", val="ab").items()},
            "has 2 data sets; name one of them: one, two",
        ),
    ],
)
def test_what_is_not_understood_is_listed(tmp_path, files, words):
    assert words in refused(tmp_path, files)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.tar.gz", "is an archive; unpack it"),
        ("data.yaml", "is a file"),
        ("no", "does not exist"),
    ],
)
def test_what_is_no_folder(tmp_path, name, words):
    if name != "no":
        (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=words):
        read_layout(tmp_path / name)


@pytest.mark.parametrize(
    ("hints", "words"),
    [
        (dict(val=1.5), "--val is 1.5"),
        (dict(val=0), "--val is 0"),
        (dict(ignore=256), "--ignore is 256"),
        (dict(classes=[]), "--classes is "),
        (dict(classes=["a", "a"]), "a, a"),
    ],
)
def test_hints_that_cannot_be(tmp_path, hints, words):
    assert words in refused(tmp_path, folders(train="ab", val="ab"), **hints)


def test_of_two_formats_the_fuller_one_is_taken(tmp_path):
    both = VOC_LAYOUTS["folders in each split"] | {
        "train/labels/a.txt": BOX,
        "val/labels/b.txt": BOX,
    }
    layout = read(tmp_path, both)
    assert layout.kind == "Pascal VOC XML"
    assert "YOLO txt found, too" in notes_of(layout)


def test_the_task_decides_where_a_folder_has_data_for_two(tmp_path):
    places = [f"images/{s}/{{}}.jpg annotations/{s}/{{}}.png" for s in ("train", "val")]
    files = pairs(*places) | {
        "annotations/train.json": coco(["0.jpg"]),
        "annotations/val.json": coco(["1.jpg"]),
    }
    assert read(tmp_path, files).task == "detection"
    hints = dict(task="segmentation", classes=["a", "b", "c"])
    assert read(tmp_path, {}, **hints).task == "segmentation"
    line = refused(tmp_path / "other", folders(train="ab", val="ab"), task="detection")
    assert re.search("a data set for classification .* and the config is for detection", line)


def test_a_link_to_a_folder_above_is_not_followed(tmp_path):
    lay(tmp_path, folders(train="ab", val="ab"))
    (tmp_path / "train/a/up").symlink_to(tmp_path, target_is_directory=True)
    assert read_layout(tmp_path).classes == ["a", "b"]


@pytest.mark.parametrize(
    ("number", "what", "right"),
    [
        (1, "boxes of zero area", "1 box of zero area"),
        (2, "boxes of zero area", "2 boxes of zero area"),
        (1, "images .JPG (img_suffix is .jpg)", "1 image .JPG (img_suffix is .jpg)"),
        (1, "empty label files", "1 empty label file"),
        (1, "classes", "1 class"),
        (0, "training images", "0 training images"),
    ],
)
def test_one_thing_is_counted_in_the_singular(number, what, right):
    assert count(number, what) == right
