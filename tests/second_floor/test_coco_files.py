"""Is everything that a COCO file loses, or that makes a figure wrong, refused or counted?"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mmdet.registry import METRICS as MMDET_METRICS
from mmengine.registry import DATASETS, METRICS, init_default_scope
from PIL import Image

from hire_mlp_mm.data.coco import check_coco
from hire_mlp_mm.engine.guarded import base
from hire_mlp_mm.engine.guarded import coco as guarded
from hire_mlp_mm.errors import DataError

CLASSES = ("worker", "flask", "van")
IDS = (3, 17, 40)
WIDTH, HEIGHT = 64, 48
META = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")


def sound() -> dict[str, Any]:
    """The content of a file that is right: four images with three boxes each, all with masks."""
    images = [dict(id=7 + i, file_name=f"{i}.jpg", height=HEIGHT, width=WIDTH) for i in range(4)]
    annotations = []
    for number in range(12):
        x, y, w, h = 2.0 + 20 * (number % 3), 3.0 + number, 16.0, 20.0
        annotations.append(
            dict(
                id=number + 1,
                image_id=images[number // 3]["id"],
                category_id=IDS[number % 3],
                bbox=[x, y, w, h],
                area=w * h,
                iscrowd=0,
                segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
            )
        )
    categories = [dict(id=key, name=name) for key, name in zip(IDS, CLASSES, strict=True)]
    return dict(images=images, categories=categories, annotations=annotations)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder with the images, and others to be found there."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "part").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    for name in ("0", "1", "2", "3", "part/4", unicodedata.normalize("NFC", "Größe")):
        Image.fromarray(pixels).save(folder / f"{name}.jpg")
    return folder


@pytest.fixture(autouse=True)
def scope():
    init_default_scope("mmdet")


@pytest.fixture
def lines(monkeypatch) -> list[str]:
    """What is written into the log."""
    said: list[str] = []
    for module in (base, guarded):
        monkeypatch.setattr(module, "print_log", lambda line, **_: said.append(line))
    return said


class Files:
    """A file, and what a run makes of it: its data set, and its evaluator."""

    def __init__(self, path: Path, images: Path) -> None:
        self.path, self.images = path, images

    def write(self, content: Any) -> None:
        self.path.write_text(json.dumps(content))

    def dataset(self, test: bool = False, masks: bool = True, **settings: Any) -> Any:
        pipeline = [
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=masks),
            dict(type="PackDetInputs", meta_keys=META),
        ]
        options = dict(
            type="hire_mlp_mm.CocoDataset",
            ann_file=str(self.path),
            data_prefix=dict(img=f"{self.images}/"),
            metainfo=dict(classes=CLASSES),
            pipeline=pipeline,
            test_mode=test,
        )
        return DATASETS.build({**options, **settings})

    def metric(self, masks: bool = True, **settings: Any) -> Any:
        kinds = ["bbox", "segm"] if masks else "bbox"
        options = dict(type="hire_mlp_mm.CocoMetric", ann_file=str(self.path), metric=kinds)
        return METRICS.build({**options, **settings})

    def figures(self, masks: bool = True) -> list[float]:
        """AP of boxes, and of masks, of a detector that predicts the truth which it loads."""
        dataset, metric = self.dataset(test=True, masks=masks), self.metric(masks)
        metric.dataset_meta = dataset.metainfo
        for sample in dataset:
            found = sample["data_samples"]
            truth = found.gt_instances
            predicted = dict(
                bboxes=truth.bboxes.tensor, labels=truth.labels, scores=torch.ones(len(truth))
            )
            if masks:
                predicted["masks"] = torch.from_numpy(truth.masks.to_ndarray()).bool()
            one = dict(img_id=found.img_id, ori_shape=found.ori_shape, pred_instances=predicted)
            metric.process({}, [one])
        results = metric.evaluate(len(dataset))
        return [results[f"coco/{kind}_mAP"] for kind in metric.metrics]


@pytest.fixture
def files(tmp_path, images) -> Files:
    return Files(tmp_path / "truth.json", images)


Change = Callable[[dict[str, Any]], Any]


def first(**fields: Any) -> Change:
    """Change the first annotation."""
    return lambda content: content["annotations"][0].update(fields)


def every(**fields: Any) -> Change:
    """Change all annotations."""
    return lambda content: [one.update(fields) for one in content["annotations"]]


def image(**fields: Any) -> Change:
    """Change the second image."""
    return lambda content: content["images"][1].update(fields)


def category(**fields: Any) -> Change:
    """Change the second category."""
    return lambda content: content["categories"][1].update(fields)


def without(key: str, *fields: str) -> Change:
    """Leave out fields of all records of a list."""

    def change(content: dict[str, Any]) -> None:
        for one in content[key]:
            for field in fields:
                one.pop(field, None)

    return change


def polygon(*parts: Any) -> Change:
    return first(segmentation=[*parts])


def corners(content: dict[str, Any]) -> None:
    for one in content["annotations"]:
        x, y, w, h = one["bbox"]
        one["bbox"] = [x, y, x + w, y + h]


def fractions(content: dict[str, Any]) -> None:
    for one in content["annotations"]:
        x, y, w, h = one["bbox"]
        one["bbox"] = [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT]


def text_of_one_image(content: dict[str, Any]) -> None:
    content["images"][1]["id"] = "8"


WHOLE = [WIDTH * HEIGHT]
# What is refused both for a training and for an evaluation: the change, and what is said.
FAULTS: dict[str, tuple[Change, str]] = {
    # the file
    "images are a record": (
        lambda content: content.update(images={}), ": expected COCO's format, with a list 'images'"
    ),
    "no images": (lambda content: content.update(images=[]), ": the list 'images' is empty"),
    "no categories": (
        lambda content: content.update(categories=[]), ": the list 'categories' is empty"
    ),
    "no list of annotations": (
        lambda content: content.update(annotations=None), ", with a list 'annotations'"
    ),
    "a record that is none": (
        lambda content: content["annotations"].append([1]),
        ": entry 13 of 'annotations' is [1]; expected a record in braces",
    ),
    # what is missing
    "no size": (without("images", "width", "height"), "record 7 of 'images' lacks height, width"),
    "no file name": (without("images", "file_name"), "record 7 of 'images' lacks file_name"),
    "a file name that is null": (image(file_name=None), "record 8 of 'images' lacks file_name"),
    "no ids": (without("annotations", "id"), 'record "without id" of \'annotations\' lacks id'),
    "no category": (
        without("annotations", "category_id"), "record 1 of 'annotations' lacks category_id"
    ),
    "no box, no mask": (
        without("annotations", "bbox", "segmentation"), "record 1 of 'annotations' lacks bbox"
    ),
    "no name": (without("categories", "name"), "record 3 of 'categories' lacks name"),
    # ids
    "one id of two images": (
        image(id=7), "two records of 'images' have the id 7 (files \"0.jpg\" and \"1.jpg\")"
    ),
    "one id of two annotations": (
        first(id=12), "two records of 'annotations' have the id 12 (of the images 7 and 10)"
    ),
    "one id of two categories": (
        category(id=3), "two records of 'categories' have the id 3 (names \"worker\" and \"flask\")"
    ),
    "an image's id as text": (
        first(image_id="7"), "annotation 1 has the image_id \"7\", text, where the ids of 'images'"
    ),
    "a category's id as text": (
        first(category_id="3"), "annotation 1 has the category_id \"3\", text"
    ),
    "an id as text among numbers": (
        text_of_one_image, "a record of 'images' has the id \"8\", text, where the ids"
    ),
    "an id that is true": (first(id=True), "has the id true; expected a number or text"),
    "an id that is a list": (image(id=[1]), "has the id [1]; expected a number or text"),
    "an id that is NaN": (first(image_id=float("nan")), "has the image_id NaN; expected"),
    # images
    "a size of nothing": (image(width=0), "image 8 has the size 0 x 48; expected"),
    "a size as text": (image(height="48"), 'image 8 has the size 64 x "48"; expected'),
    "a size with a fraction": (image(height=47.5), "image 8 has the size 64 x 47.5; expected"),
    "a name that is a number": (image(file_name=3), "image 8 has the file_name 3; expected"),
    "a name with a line end": (
        image(file_name="1.jpg\n"), 'image 8 has the file_name "1.jpg\\n"; expected the name of'
    ),
    "two images of one file": (
        image(file_name="./0.jpg"), "the images 7 and 8 are one file, ./0.jpg"
    ),
    "a missing file": (image(file_name="9.jpg"), "9.jpg not found"),
    "two missing files": (
        lambda content: [one.update(file_name=f"x{one['id']}") for one in content["images"][:2]],
        "x7 not found (and 1 more of its 4 images)",
    ),
    "another suffix": (image(file_name="1.JPG"), "1.JPG not found: the folder has '1.jpg', which"),
    "composed letters": (
        image(file_name=unicodedata.normalize("NFD", "Größe.jpg")),
        ".jpg not found: the folder has 'Größe.jpg', which is spelt with other",
    ),
    "a folder too much": (image(file_name="train/1.jpg"), "1.jpg is there; data_prefix.img or"),
    "a path of Windows": (image(file_name="part\\4.jpg"), "write its file_name with / in the"),
    "a path of another machine": (
        image(file_name="/home/me/9.jpg"), "write its file_name relative to data_prefix.img"
    ),
    # names
    "another order": (
        lambda content: content["categories"].reverse(),
        " has the categories van, flask, worker; expected the config's worker, flask, van",
    ),
    "a class that is missing": (
        lambda content: content["categories"].pop(), " has no category van, which the config's"
    ),
    "a space in a name": (
        category(name="flask "), "; it has 'flask ' where the config has 'flask'"
    ),
    "a capital in a name": (category(name="Flask"), "; it has 'Flask' where the config has"),
    "a name that is a number, too": (
        category(name=2), "category 17 has the name 2; expected text"
    ),
    "two categories of one name": (
        lambda content: content["categories"].append(dict(id=41, name="van")),
        "the categories 40, 41 are all called 'van'; rename one",
    ),
    # boxes
    "three numbers": (first(bbox=[1, 2, 3]), "annotation 1 has the box [1, 2, 3]; expected x, y"),
    "five numbers": (first(bbox=[1, 2, 3, 4, 5]), "annotation 1 has the box [1, 2, 3, 4, 5]"),
    "text": (first(bbox=["1", 2, 3, 4]), 'annotation 1 has the box ["1", 2, 3, 4]; expected'),
    "a record for a box": (first(bbox=dict(x=1)), 'annotation 1 has the box {"x": 1}; expected'),
    "true": (first(bbox=[True, 2, 30, 40]), "annotation 1 has the box [true, 2, 30, 40]"),
    "NaN": (first(bbox=[float("nan"), 1, 9, 9]), "annotation 1 has the box [NaN, 1, 9, 9]"),
    "infinity": (first(bbox=[1, 1, float("inf"), 9]), "annotation 1 has the box [1, 1, Infinity"),
    "a number too large": (first(bbox=[1, 1, 10**400, 9]), "annotation 1 has the box [1, 1, 1000"),
    "corners": (corners, "boxes reach beyond their image, and lie within it if their last two"),
    "fractions": (fractions, "all 12 boxes lie between 0 and 1; expected x, y, width and height"),
    "an area of text": (first(area="320"), 'annotation 1 has the area "320"; expected a number'),
    "an area that is NaN": (first(area=float("nan")), "annotation 1 has the area NaN"),
    "iscrowd of text": (first(iscrowd="0"), 'annotation 1 has the iscrowd "0"; expected 0 or 1'),
    "ignore of text": (first(ignore="0"), 'annotation 1 has the ignore "0"; expected 0 or 1'),
    "iscrowd 2": (first(iscrowd=2), "annotation 1 has the iscrowd 2; expected 0 or 1"),
    "all are crowds": (every(iscrowd=1), "skipped 12 boxes marked as crowd (iscrowd)"),
    "all are ignored, or of other images": (
        every(image_id=99), "skipped 12 boxes of an image that the file does not list"
    ),
    # masks
    "no mask": (without("annotations", "segmentation"), "annotation 1 has no mask, its"),
    "null": (first(segmentation=None), "segmentation is null; draw the mask, or take a recipe "
             "without masks, such as retinanet_hire_s_1x_coco"),
    "no polygon": (polygon(), "annotation 1 has no mask, its segmentation is []"),
    "an empty record": (first(segmentation={}), "annotation 1 has no mask, its segmentation is {}"),
    "a polygon alone": (
        first(segmentation=[1, 2, 30, 4, 5, 60]), "expected a list of polygons, each a list [x1,"
    ),
    "text for a polygon": (polygon("1 2 3"), 'has the segmentation ["1 2 3"]; expected a list of'),
    "text for a mask": (first(segmentation="1 2 3"), 'its segmentation is "1 2 3"'),
    "text in a polygon": (polygon(["1", 2, 30, 4, 5, 60]), 'has a polygon with the value "1"'),
    "null in a polygon": (polygon([None, 2, 30, 4, 5, 60]), "has a polygon with the value null"),
    "NaN in a polygon": (polygon([float("nan"), 2, 30, 4, 5, 60]), "polygon with the value NaN"),
    "a polygon without end": (polygon([1e9, 2, 30, 4, 5, 60]), "with the value 1000000000.0"),
    "run lengths of another size": (
        first(segmentation=dict(size=[WIDTH, HEIGHT], counts=[0, *WHOLE])),
        "has a mask of the size [64, 48]; expected [48, 64] (height, width) as its image",
    ),
    "run lengths without counts": (
        first(segmentation=dict(size=[HEIGHT, WIDTH])), "has run lengths (counts) null that cannot"
    ),
    "too few run lengths": (  # pycocotools reads memory that is not its own
        first(segmentation=dict(size=[HEIGHT, WIDTH], counts=[0, 9])),
        "has run lengths of 9 pixels in all; expected the 3072 of its image",
    ),
    "run lengths below zero": (
        first(segmentation=dict(size=[HEIGHT, WIDTH], counts=[80, -8, 3000])), "cannot be read"
    ),
    "run lengths as text that ends early": (
        first(segmentation=dict(size=[HEIGHT, WIDTH], counts="0P`")), "cannot be read"
    ),
    "run lengths in other letters": (
        first(segmentation=dict(size=[HEIGHT, WIDTH], counts="0é")), "cannot be read"
    ),
}  # fmt: skip
AFTER_ALL = {  # which the evaluator cannot know: it has no classes, and reads no image
    "a missing file", "two missing files", "another suffix", "composed letters", "another order",
    "a folder too much", "a path of Windows", "a path of another machine", "a space in a name",
    "a class that is missing", "a capital in a name",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_before_the_first_iteration(fault, files):
    change, message = FAULTS[fault]
    change(content := sound())
    files.write(content)
    builders = [files.dataset, lambda: files.dataset(test=True), files.metric]
    if fault in AFTER_ALL:
        builders.pop()
    if fault in ("all are crowds", "all are ignored, or of other images"):
        builders.pop(1)  # its images can be predicted
    for build in builders:
        with pytest.raises(DataError) as raised:
            build()
        line = str(raised.value)
        assert line.startswith(str(files.path))
        assert message in line
        assert "\n" not in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (sound()["images"], " holds a list; expected COCO's annotations, with a list 'images'"),
        ([dict(image_id=1, score=0.5)], " holds predictions (a list of results); expected COCO's"),
        (3, ": expected COCO's format, with a list 'images'"),
        ({"a": 1}, ": expected COCO's format, with a list 'images'"),
    ],
    ids=["a list", "predictions", "a number", "other JSON"],
)
def test_a_file_of_another_kind(content, message, files):
    files.write(content)
    for build in (files.dataset, files.metric):
        with pytest.raises(DataError) as raised:
            build()
        assert str(raised.value).startswith(f"{files.path}{message}")


@pytest.mark.parametrize("cut", [0, 1000])
def test_a_file_that_ends_early(cut, files):
    files.path.write_text(json.dumps(sound())[:cut])
    for build in (files.dataset, files.metric):
        with pytest.raises(DataError, match=r"truth.json cannot be read: JSONDecodeError"):
            build()


def test_a_file_that_is_not_text(files):
    files.path.write_bytes(b"\x80\x02")
    for build in (files.dataset, files.metric):
        with pytest.raises(DataError, match=r"truth.json cannot be read: UnicodeDecodeError"):
            build()


def test_marks_of_the_encoding_are_no_fault(files):
    """Windows' editors write them."""
    files.path.write_bytes(b"\xef\xbb\xbf" + json.dumps(sound()).encode())
    assert files.figures() == [1, 1]


def text_ids(key: str, link: str) -> Change:
    def change(content: dict[str, Any]) -> None:
        for one in content[key]:
            one["id"] = f"a{one['id']}"
        for one in content["annotations"] if link else ():
            one[link] = f"a{one[link]}"

    return change


def from_zero(content: dict[str, Any]) -> None:
    for key, link in (("images", "image_id"), ("categories", "category_id"), ("annotations", "")):
        ids = {one["id"]: number for number, one in enumerate(content[key])}
        for one in content[key]:
            one["id"] = ids[one["id"]]
        for one in content["annotations"] if link else ():
            one[link] = ids[one[link]]


def as_fractions(content: dict[str, Any]) -> None:
    for one in content["images"]:
        one.update(id=float(one["id"]), height=float(HEIGHT), width=float(WIDTH))
    for one in content["annotations"]:
        one.update(id=float(one["id"]), category_id=float(one["category_id"]))


def run_lengths(content: dict[str, Any]) -> None:
    for one in content["annotations"]:
        mask = np.zeros((HEIGHT, WIDTH), int)
        x, y, w, h = map(int, one["bbox"])
        mask[y : y + h, x : x + w] = 1
        column = mask.ravel(order="F")
        edges = np.flatnonzero(np.diff(column)) + 1
        lengths = np.diff([0, *edges, len(column)]).tolist()
        one["segmentation"] = dict(size=[HEIGHT, WIDTH], counts=lengths)


def compressed(content: dict[str, Any]) -> None:
    from pycocotools import mask

    run_lengths(content)
    for one in content["annotations"]:
        written = mask.frPyObjects(one["segmentation"], HEIGHT, WIDTH)
        one["segmentation"]["counts"] = written["counts"].decode()


# What has one meaning only works, for the evaluator, too.
RIGHT: dict[str, Change] = {
    "as it is": lambda content: None,
    "ids from 0": from_zero,
    "one id is 0": first(id=0),
    "annotations numbered by text": text_ids("annotations", ""),
    "images numbered by text": text_ids("images", "image_id"),
    "categories numbered by text": text_ids("categories", "category_id"),
    "numbers with a fraction": as_fractions,
    "ids below zero": first(id=-1),
    "no iscrowd": without("annotations", "iscrowd"),
    "iscrowd null": every(iscrowd=None),
    "iscrowd false": every(iscrowd=False),
    "no area": without("annotations", "area"),
    "no bbox": without("annotations", "bbox", "area"),
    "run lengths": run_lengths,
    "run lengths as text": compressed,
    "one crowd": first(iscrowd=1),
    "a name with a folder": image(file_name="part/4.jpg"),
    "a name in other letters": image(file_name="Größe.jpg"),
    "another category": lambda content: content["categories"].insert(0, dict(id=1, name="x")),
}


@pytest.mark.parametrize("change", RIGHT.values(), ids=RIGHT)
def test_what_can_mean_one_thing_only_gives_the_right_figure(change, files):
    change(content := sound())
    files.write(content)
    assert files.figures() == [1, 1]
    assert len(files.dataset()) == 4


# What is left out, or looks odd: the change, and what a training and a test say.
COUNTED: dict[str, tuple[Change, str]] = {
    "a crowd": (first(iscrowd=1), "skipped 1 box marked as crowd (iscrowd)"),
    "ignored": (first(ignore=1), "skipped 1 box marked to be ignored"),
    "no size": (first(bbox=[5, 5, 0, 0]), "skipped 1 box of zero area or thinner than a pixel"),
    "a thin box": (first(bbox=[5, 5, 0.5, 9]), "skipped 1 box of zero area or thinner"),
    "a size below zero": (first(bbox=[5, 5, -3, 9]), "skipped 1 box of negative size"),
    "no area": (first(area=0), "skipped 1 box whose area is given as 0 or less"),
    "outside": (first(bbox=[70, 5, 9, 9]), "skipped 1 box outside the image"),
    "partly outside": (first(bbox=[50, 5, 40, 9]), "; 1 box beyond the edge of the image"),
    "an area below zero": (first(area=-5), "skipped 1 box whose area is given as 0 or less"),
    "an area of another size": (
        first(area=4000), "; 1 box with an area under a hundredth or over twice of width"
    ),
    "an area in other units": (first(area=1), "; 1 box with an area under a hundredth"),
    "of no image": (first(image_id=99), "skipped 1 box of an image that the file does not list"),
    "of no class": (
        first(category_id=9), "skipped 1 box of categories that are not among the classes (9)"
    ),
    "a flat polygon": (polygon([2, 2, 9, 2, 20, 2]), "; 1 mask without a pixel"),
    "a polygon outside": (polygon([90, 2, 99, 2, 95, 20]), "; 1 mask without a pixel"),
    "a polygon of another object": (
        polygon([30, 30, 50, 30, 50, 46, 30, 46]), "; 1 mask mostly outside their box"
    ),
    "a part of four numbers": (
        polygon([2, 2, 20, 20, 2, 20], [2, 2, 9, 9]),
        "; 1 part of masks that are no polygons (left out)",
    ),
    "run lengths of nothing": (
        first(segmentation=dict(size=[HEIGHT, WIDTH], counts=WHOLE)), "; 1 mask without a pixel"
    ),
}  # fmt: skip
# In a training alone: an evaluation would fail at its end, or give another figure.
LEARNT: dict[str, tuple[Change, str]] = {
    "four numbers": (
        polygon([2, 2, 9, 9]),
        "skipped 1 box whose mask has no polygon of three points or more",
    ),
    "an odd number": (polygon([2, 2, 9, 9, 2, 9, 3]), "skipped 1 box whose mask has no polygon"),
    "an empty part": (polygon([2, 2, 20, 20, 2, 20], []), "; 1 part of masks that are no polygons"),
}


@pytest.mark.parametrize("case", {**COUNTED, **LEARNT})
def test_what_is_lost_is_counted(case, files, lines):
    """The counts are the host's: what is left is what it gives to the model."""
    change, said = {**COUNTED, **LEARNT}[case]
    change(content := sound())
    files.write(content)
    dataset = files.dataset()
    assert said in lines[0]
    left = sum(len(sample["data_samples"].gt_instances) for sample in dataset)
    assert left + sum(dataset.report.skipped.values()) == 12
    assert left == sum(dataset.report.per_class.values())
    if case in LEARNT:
        with pytest.raises(DataError, match=r"annotation 1 has a polygon of \d numbers"):
            files.metric()
    else:
        lines.clear()
        files.figures()
        assert said in lines[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            first(bbox=[5, 5, 0, 0]),
            "1 box that cannot be found (see what was skipped), counted as missed",
        ),
        (polygon([2, 2, 9, 2, 20, 2]), "1 box whose mask has no pixel, counted as missed"),
    ],
)
def test_an_evaluation_says_what_no_detector_can_find(change, said, files, lines):
    change(content := sound())
    files.write(content)
    assert min(files.figures()) < 1
    assert any(said in line for line in lines)


def test_an_area_below_zero_is_not_counted_as_missed(files, lines):
    first(area=-5)(content := sound())
    files.write(content)
    assert files.figures() == [1, 1]
    assert not any("missed" in line for line in lines)


@pytest.mark.parametrize(
    "change",
    [every(bbox=[900.0, 5, 9, 9]), every(segmentation=[[0.1, 0.1, 0.2, 0.1, 0.2, 0.2]])],
    ids=["boxes of larger images", "masks between 0 and 1"],
)
def test_an_evaluation_in_which_nothing_can_be_found_is_refused(change, files):
    change(content := sound())
    files.write(content)
    with pytest.raises(DataError, match="none of its 12 boxes can be found; "):
        files.metric()


@pytest.mark.parametrize("classes", [(), (1, 2, 3)])
def test_classes_that_are_no_names(classes, files):
    files.write(sound())
    with pytest.raises(DataError, match=r"metainfo.classes is .*; write the names of the classes"):
        files.dataset(metainfo=dict(classes=classes))


def test_images_that_are_left_out_are_counted(files, lines):
    content = sound()
    content["images"][0]["width"] = 20
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] == 10]
    files.write(content)
    dataset = files.dataset(filter_cfg=dict(filter_empty_gt=True, min_size=32))
    assert len(dataset) == 1
    assert lines[0].endswith(
        "1 of 4 images, 3 without boxes; skipped 1 image smaller than 32 pixels"
    )


def test_without_masks_they_are_not_looked_at(files):
    content = sound()
    content["annotations"][0]["segmentation"] = None
    content["annotations"][1]["segmentation"] = [[1, 2, 3, 4]]
    files.write(content)
    assert files.figures(masks=False) == [1]
    assert len(files.dataset(masks=False)) == 4


def test_run_lengths_that_a_pipeline_leaves_out_are_counted(files, lines):
    """`poly2mask=False` keeps polygons alone."""
    content = sound()
    run_lengths(copied := copy.deepcopy(content))
    content["annotations"][0] = copied["annotations"][0]
    files.write(content)
    steps = [
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations", with_bbox=True, with_mask=True, poly2mask=False),
        dict(type="PackDetInputs", meta_keys=META),
    ]
    dataset = files.dataset(pipeline=steps)
    assert "skipped 1 box whose mask has no polygon" in lines[0]
    assert sum(len(sample["data_samples"].gt_instances) for sample in dataset) == 11


@pytest.mark.parametrize(("orientation", "told"), [(1, False), (2, True), (3, True), (4, True)])
def test_images_that_exif_turns_by_half_or_mirrors(orientation, told, files, lines, tmp_path):
    """Their sizes say nothing of it, as they do of a turn by a quarter."""
    exif = Image.Exif()
    exif[0x112] = orientation
    for number in range(4):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"{number}.jpg", exif=exif)
    files.images = tmp_path
    files.write(sound())
    files.dataset()
    note = f"4 images of 4 looked into, such as {tmp_path}/0.jpg, are read mirrored or turned by"
    assert told == any(note in line for line in lines)
    lines.clear()
    load = dict(type="LoadImageFromFile", color_type="color_ignore_orientation")
    files.dataset(pipeline=[load])
    assert len(lines) == 1


def test_images_without_labels(files):
    """Nothing to learn stops a training, and nothing to compare an evaluation."""
    files.write({**sound(), "annotations": []})
    with pytest.raises(DataError, match=r"'annotations' is empty: there is nothing to learn; if"):
        files.dataset()
    with pytest.raises(DataError, match=r"'annotations' is empty: there is nothing to evaluate"):
        files.metric()
    assert len(files.dataset(filter_cfg=dict(filter_empty_gt=False))) == 4
    content = sound()
    del content["annotations"]
    files.write(content)
    assert len(files.dataset(test=True)) == 4
    assert files.metric(format_only=True, outfile_prefix=str(files.path))
    assert len(files.dataset(filter_cfg=dict(filter_empty_gt=False))) == 4


def test_a_class_without_a_box_is_said(files, lines):
    content = sound()
    content["annotations"] = [one for one in content["annotations"] if one["category_id"] != 17]
    files.write(content)
    files.dataset()
    assert lines[-1].endswith(": class flask has no box")


def test_classes_that_are_one_text(files):
    """`classes=("worker")` lacks the comma that makes it a list."""
    report = check_coco(sound(), "truth.json", classes="worker")
    assert report.faults == [": metainfo.classes is the text 'worker'; write ('worker',)"]


def test_figures_of_each_class_are_that_classs_own(files):
    """pycocotools sorts the ids, and the host gives the names in the file's order."""
    content = sound()
    for one in content["annotations"]:
        one["category_id"] = 43 - one["category_id"] if one["category_id"] != 17 else 17
    content["categories"][0]["id"], content["categories"][2]["id"] = 40, 3
    files.write(content)
    assert files.figures() == [1, 1]
    with pytest.raises(DataError, match="the figures of classwise=True would be those of other"):
        files.metric(classwise=True)
    files.write(sound())
    assert files.metric(classwise=True)


def test_missing_images_are_not_asked_for_where_they_may_be(files):
    """Elsewhere than on this machine, or replaced as the config wants it."""
    content = sound()
    content["images"][0]["file_name"] = "gone.jpg"
    files.write(content)
    for options in (dict(backend_args=dict(backend="http")), dict(ignore_empty=True)):
        assert len(files.dataset(pipeline=[dict(type="LoadImageFromFile", **options)])) == 4
    assert len(files.dataset(pipeline=[])) == 4
    with pytest.raises(DataError, match=r"there is no folder /no/images/; see data_prefix.img"):
        files.dataset(data_prefix=dict(img="/no/images/"))


def test_files_of_other_formats_are_not_looked_at(files):
    """LVIS's files have no names of images, and panoptic ones no boxes."""
    files.write({"a": 1})
    for name in ("LVISMetric", "CocoPanopticMetric"):
        options = dict(ann_file=str(files.path))
        with guarded.whole_truth(MMDET_METRICS.get(name), options) as given:
            assert given is options


def test_faults_are_listed_up_to_a_bound(files):
    every(bbox=[1])(content := sound())
    content["annotations"] *= 20
    for number, one in enumerate(content["annotations"]):
        content["annotations"][number] = {**one, "id": number + 1}
    report = check_coco(content, "truth.json")
    assert len(report.faults) == 50
    with pytest.raises(DataError, match=r"annotation 1 has .* \(and 49 more such lines"):
        report.refuse()


def test_the_check_leaves_a_right_file_as_it_is():
    content = sound()
    report = check_coco(content, "truth.json", classes=CLASSES, masks=True)
    assert content == sound()
    assert (report.faults, report.notes, report.losses()) == ([], [], "")
    assert report.per_class == dict.fromkeys(CLASSES, 4)
    assert (report.images, report.empty) == (4, 0)


# Whatever is in a file ---------------------------------------------------------------------------

RLE = dict(size=[HEIGHT, WIDTH])
ODD = st.sampled_from(
    [
        None, True, False, 0, 1, -1, 2, 7, 10, 0.5, 1e300, 10**400, float("nan"), float("inf"),
        "", "7", "worker", "a b", [], [0], [1, 2, 3, 4], [5.0, 5, 9, 9], [0, 0, 1e8, 1e8], [[]],
        [[1, 2, 3, 4]], [[1, 2, 30, 4, 5, 30]], [[1, 2, 30, 4, 5, 30, 7]], [[0] * 6], [["a"] * 6],
        [[None] * 6], {}, dict(RLE, counts=[0, *WHOLE]), dict(RLE, counts="04"),
        dict(size=[1, 1], counts=[1]),
    ]
)  # fmt: skip
FIELDS = {
    "images": ["id", "file_name", "height", "width"],
    "categories": ["id", "name"],
    "annotations": ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation",
                    "ignore"],
}  # fmt: skip


@st.composite
def mutations(draw) -> list[tuple[str, int, str, Any]]:
    """Some changes of a file: (list, record, field or what is done with the record, value)."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from([*FIELDS, "annotations", "annotations"]))
        field = draw(st.sampled_from([*FIELDS[key], "drop a field", "twice", "gone", "none"]))
        value = draw(st.sampled_from(FIELDS[key])) if field == "drop a field" else draw(ODD)
        found.append((key, draw(st.integers(0, 11)), field, value))
    return found


def mutate(content: dict[str, Any], changes: list[tuple[str, int, str, Any]]) -> None:
    for key, place, field, value in changes:
        records = content[key]
        if not records:
            continue
        place %= len(records)
        if field == "twice":
            records.append(copy.deepcopy(records[place]))
        elif field == "gone":
            del records[place]
        elif field == "none" or not isinstance(records[place], dict):
            records[place] = value
        elif field == "drop a field":
            records[place].pop(value, None)
        else:
            records[place][field] = copy.deepcopy(value)


@settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(mutations(), st.booleans())
@example([("annotations", 0, "id", 0)], True)
@example([("annotations", 3, "segmentation", [[1, 2, 3, 4]])], True)
def test_whatever_a_file_holds(files, changes, masks):
    """It gives the right figure, or the loss is counted, or it is refused: never a traceback."""
    mutate(content := sound(), changes)
    files.write(content)
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for module in (base, guarded):
            patch.setattr(module, "print_log", lambda line, **_: said.append(line))
        with contextlib.suppress(DataError):
            figures = files.figures(masks)
            counted = re.search(
                r"skipped|beyond|without a pixel|are no polygons|missed", " ".join(said)
            )
            assert counted or set(figures) == {1}, figures
        with contextlib.suppress(DataError):
            dataset = files.dataset(masks=masks)
            left = sum(len(sample["data_samples"].gt_instances) for sample in dataset)
            assert left == sum(dataset.report.per_class.values())
