"""Does `hire-mlp data` say what it understood, write a config that is whole, and check alone?"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from hire_mlp_mm.cli import main
from hire_mlp_mm.configure import use_data
from hire_mlp_mm.data.layout import Hints
from hire_mlp_mm.engine.config import read_config

CLASSES = ("cat", "dog", "emu")
RECIPE = "hire_t_imagenet"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder per class: 12 images to train on, 6 to validate with."""
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(CLASSES):
            for i in range(count):
                path = tmp_path / "pets" / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((40 + i, 60, 3), 80 * label, np.uint8)).save(path)
    return tmp_path / "pets"


@pytest.fixture
def masks(tmp_path, monkeypatch):
    """Images beside masks, without splits: three labels, and 255."""
    monkeypatch.chdir(tmp_path)
    for i in range(5):
        labels = np.zeros((40, 60), np.uint8)
        labels[10:], labels[20:], labels[30:] = 1, 2, 255
        for name, values in (("images", np.stack([labels * 50] * 3, -1)), ("masks", labels)):
            path = tmp_path / "street" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    return tmp_path / "street"


def outcome(capsys, *words) -> tuple[int, str, str]:
    """The exit code, the output, the errors."""
    try:
        main(["data", *map(str, words)])
        code = 0
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


def test_a_config_is_written_with_what_changed_and_a_sheet(folder, tmp_path, capsys):
    code, out, err = outcome(capsys, RECIPE, "pets", "--out", "mine.py")
    assert (code, err) == (0, "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.py", "mine_data.png", "pets"]
    text = Path("mine.py").read_text(encoding="utf-8")
    head = text[: text.index("\n\n")]
    assert head.startswith(f"# {RECIPE} with the data of {folder}")
    assert "# Kept: all else. For you to decide:" in head
    for line in head.splitlines()[2:]:
        assert line.strip("# ") in out
    expected = use_data(read_config(RECIPE), folder, out="other.py")
    assert Config.fromfile("mine.py").to_dict() == expected.to_dict()
    assert out.splitlines()[-1].endswith("train it with hire-mlp train mine.py --auto-scale-lr")
    with Image.open("mine_data.png") as sheet:
        assert sheet.width > 1000
        assert len(sheet.convert("RGB").getcolors(1 << 24)) > 3


def test_the_table_counts_images_and_classes(folder, capsys):
    (folder / "train" / "notes.txt").write_text("x")
    out = outcome(capsys, RECIPE, folder, "--check")[1]
    rows = [line.split() for line in out.splitlines()]
    assert ["train", "12", "0", "60x40", "to", "60x43"] in rows
    assert ["images", "train", "val"] in rows
    for name in CLASSES:
        assert [name, "4", "2"] in rows
    assert "train: 1 file .txt" in out


def test_nothing_is_overwritten(folder, tmp_path, capsys):
    Path("mine_data.png").write_text("mine")
    for words in (["--out", "mine.py"], ["--out", "mine.py", "--val", "0.2"]):
        code, _, err = outcome(capsys, RECIPE, folder, *words)
        assert code == 2
        assert re.fullmatch(r"hire-mlp data: error: \S+mine_data\.png exists; name .* --out\n", err)
    assert Path("mine_data.png").read_text() == "mine"
    assert not Path("mine.py").exists()


def test_the_config_is_named_after_both(folder, capsys):
    assert outcome(capsys, RECIPE, "pets")[0] == 0
    assert Path("hire_t_imagenet_pets.py").is_file()


def test_the_folder_may_stand_first_and_images_get_a_size(folder, capsys):
    code, out, _ = outcome(capsys, "pets", RECIPE, "--size", "96x96", "--out", "mine.py")
    assert code == 0
    assert "pipeline.1.scale: 224 -> 96" in out
    head = Path("mine.py").read_text(encoding="utf-8").partition("\n\n")[0]
    assert head.count("-> 96\n") == 3


@pytest.mark.parametrize("names", [["road,car,sky"], ["road", "car", "sky"], ["road,", "car,sky"]])
def test_names_with_commas_or_spaces(names, masks, capsys):
    words = ["upernet_hire_t_ade20k", masks, "--val", "0.4", "--check", "--classes", *names]
    assert "3 classes (road, car, sky)" in outcome(capsys, *words)[1]


def test_a_drawn_split(masks, tmp_path, capsys):
    words = ["--val", "0.4", "--seed", "3", "--arch", "tiny", "--weights", "none", "--epochs", "2"]
    words += ["--out", "mine.py", "--classes", "road", "car", "sky"]
    code, _, err = outcome(capsys, "upernet_hire_s_ade20k", masks, *words)
    assert (code, err) == (0, "")
    lists = {s: Path(f"mine_{s}.txt").read_text().split() for s in ("train", "val")}
    assert sorted(lists["train"] + lists["val"]) == list("01234")
    assert len(lists["val"]) == 2
    cfg = Config.fromfile("mine.py")
    assert cfg.train_dataloader.dataset.metainfo.classes == ("road", "car", "sky")
    assert cfg.train_dataloader.dataset.ann_file == str(tmp_path / "mine_train.txt")
    assert cfg.model.backbone.arch == "tiny"
    assert cfg.train_cfg.max_iters == 2
    hints = Hints(["road", "car", "sky"], 0.4, 3)
    again = use_data(
        read_config("upernet_hire_s_ade20k"), masks, hints, out="again.py", arch="tiny",
        checkpoint="none", epochs=2,
    )  # fmt: skip
    assert again.pretty_text.replace("again_", "mine_") == cfg.pretty_text


def test_a_check_writes_nothing_and_finds_all(masks, tmp_path, capsys):
    words = ["upernet_hire_s_ade20k", masks, "--classes", *CLASSES, "--val", "0.4", "--check"]
    assert outcome(capsys, *words)[0] == 0
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(masks / "masks" / "2.png")
    (masks / "masks" / "3.png").write_bytes((masks / "masks" / "3.png").read_bytes()[:50])
    code, out, err = outcome(capsys, *words)
    assert code == 1
    said = out + err
    assert "Traceback" not in said
    assert "2.png" in said or "3.png" in said
    assert [p.name for p in tmp_path.iterdir()] == ["street"]


def test_findings_stop_before_anything_is_written(masks, tmp_path, capsys):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(masks / "masks" / "2.png")
    words = ["upernet_hire_s_ade20k", masks, "--classes", *CLASSES, "--val", "0.4"]
    code, _, err = outcome(capsys, *words)
    assert code == 2
    assert "2.png" in err
    assert err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["street"]


WRONG = {
    ("hire_t_imagenet",): "the following arguments are required: folder",
    ("hire_t_imagenet", "gone"): "gone does not exist",
    ("hire_x_imagenet", "pets"): "config hire_x_imagenet not found",
    ("hire_t_imagenet", "pets", "--val", "2"): "--val is 2.0; expected a share",
    ("hire_t_imagenet", "pets", "--size", "224"): "--size 224: expected width x height, from 32x32",
    ("hire_t_imagenet", "pets", "--size", "96x64"): "a classifier crops squares",
    ("hire_t_imagenet", "pets", "--epochs", "0"): "--epochs 0: expected 1 or more",
    ("hire_t_imagenet", "pets", "--out", "a.txt"): "expected a .py file",
    ("hire_t_imagenet", "pets", "--out", "no/a.py"): "in a folder that exists",
    ("hire_t_imagenet", "pets", "--weights", "gone.pth"): "weight file gone.pth not found",
    ("retinanet_hire_t_1x_coco", "pets"): "is for detection",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_mistake_is_one_line(words, folder, tmp_path, capsys):
    code, _, err = outcome(capsys, *words)
    assert code == 2
    assert err.startswith("hire-mlp data: error: ")
    assert WRONG[words] in err
    assert err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["pets"]


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (dict(id=1, file_name="1.jpg"), "lacks height, width"),
        (dict(id=1, file_name="1.jpg", width="64", height=48), 'has the size "64" x 48'),
    ],
)
def test_a_check_lists_images_without_a_size(image, said, tmp_path, capsys):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (64, 48)).save(tmp_path / split / "1.jpg")
        box = dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 9, 9], area=81, iscrowd=0)
        content = dict(images=[image], annotations=[box], categories=[dict(id=1, name="cat")])
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    code, out, _ = outcome(capsys, "retinanet_hire_t_1x_coco", tmp_path, "--check")
    assert code == 1
    assert said in out


def boxes_of(tmp_path, names: dict[str, str], **first: object) -> None:
    """Two splits of an image with a box of each of some categories, by split, then changed."""
    for split, words in names.items():
        (tmp_path / split).mkdir(exist_ok=True)
        Image.new("RGB", (64, 48)).save(tmp_path / split / f"{split}.jpg")
        image = dict(id=1, file_name=f"{split}.jpg", width=64, height=48)
        boxes = [
            dict(id=i, image_id=1, category_id=i, bbox=[1, 1, 9, 9], area=81, iscrowd=0)
            for i in range(1, len(words.split()) + 1)
        ]
        boxes[0].update(first)
        categories = [dict(id=i, name=name) for i, name in enumerate(words.split(), 1)]
        content = dict(images=[image], annotations=boxes, categories=categories)
        (tmp_path / f"{split}.json").write_text(json.dumps(content))


LOST = {
    "nothing": (dict(train="cat dog", val="cat dog"), {}, ""),
    "a crowd": (dict(train="cat dog cow", val="cat dog cow"), dict(iscrowd=1), "no box"),
    "a box outside": (
        dict(train="cat dog", val="cat dog"), dict(bbox=[80, 1, 9, 9]),
        "train: 1 box outside the image, such as in train.jpg",
    ),
    "a slip of one split": (
        dict(train="cat flask", val="cat flask flaks"), {},
        "classes (flaks), such as in val.jpg; is 'flaks' a slip for 'flask'?",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LOST)
def test_a_check_fails_where_boxes_or_classes_are_lost(case, tmp_path, capsys):
    names, first, said = LOST[case]
    boxes_of(tmp_path, names, **first)
    code, out, err = outcome(capsys, "retinanet_hire_t_1x_coco", tmp_path, "--check")
    assert code == int(bool(said)), out
    assert said in out
    assert bool(said) == ("finding" in err)


def test_a_class_that_one_split_lacks_is_a_finding(tmp_path, capsys):
    boxes_of(tmp_path, dict(train="flask flaks", val="flask flaks"))
    content = json.loads((tmp_path / "val.json").read_text())
    content["annotations"].pop()
    (tmp_path / "val.json").write_text(json.dumps(content))
    code, out, _ = outcome(capsys, "retinanet_hire_t_1x_coco", tmp_path, "--check")
    assert code == 1
    assert "class flaks has no box; is 'flaks' a slip for 'flask'?" in out
    words = ["retinanet_hire_t_1x_coco", tmp_path, "--check", "--classes", "flask"]
    assert outcome(capsys, *words)[0] == 0  # the others are left out on purpose


def test_a_check_lists_images_that_cannot_be_opened(folder, capsys):
    broken = next((folder / "train").glob("*/*"))
    broken.write_bytes(b"no image")
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    code, out, _ = outcome(capsys, RECIPE, folder, "--check")
    assert code == 1
    assert f"    {broken} is no image that can be read" in out
