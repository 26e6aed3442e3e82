"""Does a folder for each class give the labels that its names say, and is nothing lost unsaid?"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.config import ConfigDict
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from hire_mlp_mm.data.folders import check_folders, check_list
from hire_mlp_mm.engine.harden import harden_dataset
from hire_mlp_mm.errors import DataError

CLASSES = ("flask", "van", "worker")
IMAGES = 2  # of each class


def draw(path: Path, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 90, 90)).save(path, "JPEG")


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in CLASSES:
        for i in range(IMAGES):
            draw(tmp_path / "data" / name / f"{i}.jpg")
    return tmp_path / "data"


def build(folder: Path, **settings: object):
    """A guarded data set of MMPretrain."""
    init_default_scope("mmpretrain")
    cfg = dict(type="CustomDataset", data_root=str(folder.parent), data_prefix=folder.name)
    cfg = ConfigDict({**cfg, "pipeline": [dict(type="LoadImageFromFile")], **settings})
    harden_dataset(cfg)
    return DATASETS.build(cfg)


def labels(dataset) -> list[tuple[str, int]]:
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    return [("/".join(Path(one["img_path"]).parts[-2:]), one["gt_label"]) for one in infos]


def test_honest_folders_are_read_as_the_host_reads_them(folder, said):
    ours = build(folder)
    theirs = DATASETS.build(dict(type="CustomDataset", data_root=str(folder)))
    assert labels(ours) == labels(theirs)
    assert ours.metainfo == theirs.metainfo
    assert ours.CLASSES == CLASSES
    assert said == [f"{folder}: 6 images of 3 classes"]
    assert check_folders(folder).per_class == dict.fromkeys(CLASSES, IMAGES)


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir"])
@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize("classes", [None, CLASSES])
def test_what_programs_leave_behind_is_no_class(name, empty, classes, folder, said):
    honest = labels(build(folder))
    (folder / name).mkdir()
    if not empty:
        draw(folder / name / "1.jpg")
    dataset = build(folder, **({} if classes is None else dict(classes=classes)))
    assert labels(dataset) == honest
    assert dataset.metainfo["classes"] == dataset.CLASSES == CLASSES
    assert dataset.folder_to_idx == {name: i for i, name in enumerate(CLASSES)}
    assert f"{folder}: left out {name}, which is no class" in said
    again = pickle.loads(pickle.dumps(dataset))  # as for a worker that is not a fork
    assert labels(again) == honest
    assert again.CLASSES == CLASSES


def rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / old).rename(folder / new)


def empty_folder(folder: Path) -> None:
    for path in (folder / "van").iterdir():
        path.unlink()


def to_jfif(folder: Path) -> None:
    for path in [*folder.rglob("*.jpg")]:
        path.rename(path.with_suffix(".jfif"))


def one_alone(folder: Path) -> None:
    new = folder / "train"
    new.mkdir()
    for name in CLASSES:
        (folder / name).rename(new / name)


def flat(folder: Path) -> None:
    for path in [*folder.rglob("*.jpg")]:
        path.rename(folder / f"{path.parent.name}{path.name}")
    for name in CLASSES:
        (folder / name).rmdir()


def nothing(folder: Path) -> None:
    pass


REFUSED = {
    "no folder of a class": (
        lambda folder: (empty_folder(folder), (folder / "van").rmdir()), CLASSES,
        " has no folder of the class van; MMPretrain numbers the folders that it finds; make an "
        "empty folder, if it has no images here",
    ),
    "a folder of no class": (
        lambda folder: draw(folder / "old" / "1.jpg"), CLASSES,
        " has the folder old, which is no class",
    ),
    "a class of another name": (
        rename("van", "Van"), CLASSES, " has no folder of the class van, the folder Van, which is"
    ),
    "another order": (
        nothing, ("van", "flask", "worker"),
        " has the folders flask, van, worker, which are the labels 0, 1, ... in this order; the "
        "config names the classes van, flask, worker",
    ),
    "names that say what numbers mean, of another number": (
        nothing, ("a", "b"),
        " has 3 folders (flask, van, worker), and the data set 2 classes (a, b)",
    ),
    "no image that the host knows": (
        to_jfif, None, " has no images in its folders flask, van, worker, but 6 .jfif"
    ),
    "one folder too deep": (one_alone, None, " has the folder train alone"),
    "no folders": (
        flat, None, " has no folders; expected a folder for each class; 6 images lie in it"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_labels_that_names_do_not_say_are_refused_in_one_line(fault, folder):
    change, classes, line = REFUSED[fault]
    change(folder)
    with pytest.raises(DataError) as raised:
        build(folder, **({} if classes is None else dict(classes=classes)))
    assert f"{folder}{line}" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_1000_names_of_imagenet_are_not_taken_for_three_folders(folder):
    with pytest.raises(DataError, match=r"has 3 folders .* and the data set 1000 classes \(tench,"):
        build(folder, type="ImageNet")
    assert build(folder, type="ImageNet", classes=["a", "b", "c"]).CLASSES == ("a", "b", "c")


def test_a_class_without_images_is_named(folder, said):
    empty_folder(folder)
    assert [label for _, label in labels(build(folder))] == [0, 0, 2, 2]
    assert f"{folder}: class van has no images" in said


def test_files_that_are_passed_over_are_counted_by_suffix(folder, said):
    (folder / "van/0.jpg").rename(folder / "van/0.jfif")
    (folder / "van/1.jpg").rename(folder / "van/1.JPG")  # which is read
    draw(folder / "flask/c.avif")
    draw(folder / "flask/d.avif")
    draw(folder / "worker/inner folder/3.jpg")  # so is this one
    draw(folder / "lone.jpg")
    draw(folder / "van/.ipynb_checkpoints/9.jpg")
    (folder / "van/notes.txt").write_text("")
    (folder / "van/.hidden.jpg").write_text("")
    dataset = build(folder)
    extensions = "(not among the data set's `extensions`)"
    assert said == [
        f"{folder}: 7 images of 3 classes; skipped 2 images .avif {extensions}"
        f"; skipped 1 image .jfif {extensions}; skipped 1 file .txt"
        "; skipped 1 image outside of the folders",
        f"{folder}: 1 image within folders such as .ipynb_checkpoints of a class, read as others",
    ]
    assert len(dataset) == 7
    report = check_folders(folder, suffixes=(".jfif",))
    assert report.images == 1
    assert report.skipped[f"images .jpg {extensions}"] == 7


def test_without_labels_folders_are_no_classes(folder):
    draw(folder / "lone.jpg")
    assert len(build(folder, with_label=False)) == 7
    assert check_folders(folder, labelled=False).images == 7


LINES = {
    "names with spaces": ("flask/0.jpg 0\nvan/a b.jpg 1\n", None),
    "no label": (
        "flask/0.jpg 0\nflask/1.jpg\n",
        ", line 2: expected a file, a space and a label from 0 to 2; found flask/1.jpg",
    ),
    "another separator": ("flask/0.jpg,0\n", ", line 1: expected a file, a space"),
    "a table's head": ("file label\nflask/0.jpg 0\n", ", line 1: expected a file, a space"),
    "an empty line": ("flask/0.jpg 0\n\nvan/0.jpg 1\n", ", line 2: expected a file, a space"),
    "a label of no class": (
        "flask/0.jpg 0\nvan/0.jpg 3\n",
        ", line 2: expected a file, a space and a label from 0 to 2; found van/0.jpg 3",
    ),
    "a label below zero": ("flask/0.jpg -1\n", ", line 1: expected a file, a space"),
    "missing images": (
        "flask/0.jpg 0\nvan/7.jpg 1\nvan/8.jpg 1\n",
        "van/7.jpg not found (2 of 3 images are missing)",
    ),
}


@pytest.mark.parametrize("case", LINES)
def test_a_list_of_files_and_labels(case, folder, said):
    draw(folder / "van/a b.jpg")
    content, fault = LINES[case]
    (folder / "list.txt").write_text(content)
    settings = dict(data_root=str(folder), data_prefix="", ann_file="list.txt", classes=CLASSES)
    if fault is None:
        assert labels(build(folder, **settings)) == [("flask/0.jpg", 0), ("van/a b.jpg", 1)]
        assert said[1:] == [f"{folder}/list.txt: class worker has no images"]
        return
    with pytest.raises(DataError) as raised:
        build(folder, **settings)
    assert str(raised.value).startswith(f"{folder}/list.txt")
    assert fault in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_list_names_images_twice(folder):
    (folder / "list.txt").write_text("van/0.jpg 0\nvan/0.jpg 1\n")
    report = check_list(folder / "list.txt", folder)
    assert report.images == 2
    assert report.notes == [": 1 line with an image that a line before has"]


def test_within_other_data_sets(folder):
    (folder / ".ipynb_checkpoints").mkdir()
    init_default_scope("mmpretrain")
    part = dict(type="CustomDataset", data_root=str(folder), pipeline=[])
    cfg = ConfigDict(type="ClassBalancedDataset", oversample_thr=0.1, dataset=part)
    harden_dataset(cfg)
    assert len(DATASETS.build(cfg)) == 6
    part["classes"] = CLASSES[::-1]
    cfg = ConfigDict(type="ConcatDataset", datasets=[dict(part)])
    harden_dataset(cfg)
    with pytest.raises(DataError, match="put them into the folders' order"):
        DATASETS.build(cfg)


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere not found"):
        build(tmp_path / "nowhere")
