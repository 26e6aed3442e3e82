"""Are wrong masks found before the first iteration, and what is not learnt from them named?"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mmcv.transforms import BaseTransform
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import TRANSFORMS
from PIL import Image

from hire_mlp_mm.data.labels import Labels
from hire_mlp_mm.data.masks import LARGE_SAMPLE, check_masks, passed_over
from hire_mlp_mm.engine.harden import harden, harden_dataset
from hire_mlp_mm.errors import DataError

CLASSES = ("road", "van", "tree")
MASKS = 4
SIZE = 10, 8  # width, height
STEPS = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")]


def mask_of(*values: int) -> np.ndarray:
    """Stripes of these values."""
    width, height = SIZE
    columns = np.arange(width) * len(values) // width
    return np.tile(np.array(values)[columns], (height, 1)).astype(np.uint8)


def write(data: Path, name: str, mask: Image.Image, image: Image.Image | None = None) -> None:
    for folder in ("images", "masks"):
        (data / folder).mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", SIZE)).save(data / "images" / f"{name}.jpg")
    mask.save(data / "masks" / f"{name}.png", "PNG")


def write_all(data: Path, change: Callable[[np.ndarray], object], *values: int) -> None:
    for i in range(MASKS):
        mask = change(mask_of(*values))
        write(data, str(i), mask if isinstance(mask, Image.Image) else Image.fromarray(mask))


@pytest.fixture
def data(tmp_path) -> Path:
    write_all(tmp_path / "data", np.asarray, 0, 1, 2, 255)
    return tmp_path / "data"


def config(data: Path, **settings: object) -> ConfigDict:
    cfg = dict(type="BaseSegDataset", data_root=str(data), metainfo=dict(classes=CLASSES))
    cfg["data_prefix"] = dict(img_path="images", seg_map_path="masks")
    return ConfigDict({**cfg, "pipeline": STEPS, **settings})


def build(cfg: ConfigDict):
    """A guarded data set of MMSegmentation."""
    init_default_scope("mmseg")
    harden_dataset(cfg)
    return DATASETS.build(cfg)


def check(data: Path, sample: bool = False, **meaning: object):
    stems = [path.stem for path in (data / "images").iterdir()]
    pairs = [(f"{data}/images/{stem}.jpg", f"{data}/masks/{stem}.png") for stem in stems]
    return check_masks(
        pairs, Labels(**{"classes": CLASSES, **meaning}), str(data / "masks"), sample
    )


def read_by_the_host(data: Path, **settings: object) -> np.ndarray:
    init_default_scope("mmseg")
    dataset = DATASETS.build(config(data, **settings))
    return np.stack([dataset[i]["gt_seg_map"] for i in range(len(dataset))])


MEANINGS = {
    "as they are": {},
    "0 is no class": dict(reduce_zero_label=True),
    "some of many classes": dict(label_map={0: 1, 1: 255, 2: 0}),
    "both": dict(label_map={0: 1, 1: 0}, reduce_zero_label=True),
    "another label is ignored": dict(ignore_index=2, classes=CLASSES[:2]),
}


@pytest.mark.parametrize("name", MEANINGS)
def test_labels_are_counted_as_the_host_reads_them(name, data, monkeypatch):
    meaning = Labels(**{"classes": CLASSES, **MEANINGS[name]})
    report = check(data, **MEANINGS[name])
    monkeypatch.setattr("mmseg.datasets.BaseSegDataset.get_label_map", lambda *_: meaning.label_map)
    read = read_by_the_host(data, reduce_zero_label=meaning.reduce_zero_label)
    counts = np.bincount(read.reshape(-1), minlength=256)
    assert list(report.per_class.values()) == counts[: len(meaning.classes)].tolist()


def turned(mask: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(mask.T)


def palette(mask: np.ndarray) -> Image.Image:
    image = Image.fromarray(mask)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0] + [0] * 759)
    return image


def black_and_white(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(mask > 0)


READ = {
    "8 bits": (np.asarray, (0, 1, 2)),
    "a palette": (palette, (0, 1, 2)),
    "1 bit": (black_and_white, (0, 1)),
    "16 bits": (lambda mask: mask.astype(np.uint16), (0, 1, 2)),
}


@pytest.mark.parametrize("kind", READ)
def test_kinds_of_masks_that_are_read(kind, tmp_path):
    change, values = READ[kind]
    write_all(tmp_path, change, 0, 1, 2)
    report = check(tmp_path)
    assert not report.faults
    assert [i for i, pixels in enumerate(report.per_class.values()) if pixels] == list(values)
    build(config(tmp_path))[0]


def to_jpeg(data: Path) -> None:
    for path in (data / "masks").iterdir():
        Image.open(path).point(lambda value: value * 40).save(path, "JPEG", quality=50)


def values(*new: int, change: Callable[[np.ndarray], object] = np.asarray):
    return lambda data: write_all(data, change, *new)


def file(name: str, change: Callable[[Path], object]):
    return lambda data: change(data / name)


COLOURS = "; `hire-mlp data` makes labels of colours, if a table names them"
OF_NO_CLASS = "4 of 4 masks have labels of no class"
REFUSED = {
    "no mask": (
        file("masks/1.png", Path.unlink), {},
        "/1.png not found, the mask of {data}/images/1.jpg",
    ),
    "no masks": (
        lambda data: shutil.rmtree(data / "masks"), {},
        "/0.png not found, the mask of {data}/images/0.jpg (4 of 4 masks are missing)",
    ),
    "masks of another name": (
        file("masks", lambda masks: [path.rename(path.with_name(f"{path.stem}_L.png"))
                                     for path in [*masks.iterdir()]]), {},
        "; there is 0_L.png (seg_map_suffix) (4 of 4 masks are missing)",
    ),
    "empty": (file("masks/1.png", lambda path: path.write_bytes(b"")), {}, "/1.png: the file is"),
    "truncated": (
        file("masks/2.png", lambda path: path.write_bytes(path.read_bytes()[:50])), {},
        "/2.png cannot be decoded: truncated, damaged or of an unknown format",
    ),
    "another size": (
        values(0, 1, change=turned), {},
        "/0.png is read with the shape (10, 8); expected (8, 10) as the image, with one class per "
        "pixel (4 of 4 masks have another shape than their images)",
    ),
    "colours": (
        values(0, 1, change=lambda mask: palette(mask).convert("RGB")), {},
        "/0.png is read with the shape (8, 10, 3); expected (8, 10) as the image, with one class "
        f"per pixel{COLOURS} (4 of 4 masks have another shape than their images)",
    ),
    "colours and alpha": (
        values(0, 1, change=lambda mask: palette(mask).convert("RGBA")), {}, "shape (8, 10, 4)",
    ),
    "a palette that OpenCV reads": (
        values(0, 1, change=palette),
        dict(pipeline=[STEPS[0], dict(type="LoadAnnotations", imdecode_backend="cv2")]),
        "/0.png is read with the shape (8, 10, 3)",
    ),
    "1 bit that OpenCV reads": (
        values(0, 1, change=black_and_white),
        dict(pipeline=[STEPS[0], dict(type="LoadAnnotations", imdecode_backend="cv2")]),
        ": the values of 4 masks are 0 and 255, and 255 is ignored",
    ),
    "16 bits": (
        values(0, 1, change=lambda mask: mask.astype(np.uint16) + 256), {},
        "/0.png has the label 257; mmseg reads 8 bits of it (4 of 4 masks have labels beyond 8",
    ),
    "a label too large": (
        values(0, 1, 2, 7), {},
        "/0.png has the label 7 in 16 pixels; expected 0 to 2, or 255 for pixels to ignore "
        f"({OF_NO_CLASS}: 7)",
    ),
    "a label more than classes": (
        values(0, 1, 2, 3), {},
        f"({OF_NO_CLASS}: 3); name one class more, or set ignore_index=3 (if 3 is no class, also "
        "in heads and metrics) or reduce_zero_label=True (if 0 is no class, and 1 the first)",
    ),
    "labels from 1": (
        values(1, 2, 3), {},
        f"({OF_NO_CLASS}: 3); set reduce_zero_label=True, which takes 1 for the first class",
    ),
    "labels from 1, reduced": (
        values(0, 3, 4), dict(reduce_zero_label=True),
        "has the label 4 in 24 pixels; expected 1 to 3, or 0 and 255 for pixels to ignore",
    ),
    "JPEG": (to_jpeg, {}, "; JPEG changes labels: write masks as PNG"),
    "255 where 1 was meant": (
        values(0, 255), {},
        ": the values of 4 masks are 0 and 255, and 255 is ignored, so that no pixel is of van, "
        "tree; write 1 in place of 255",
    ),
    "255 where 1 was meant, another label ignored": (
        values(0, 255), dict(ignore_index=2, metainfo=dict(classes=CLASSES[:2])),
        "has the label 255 in 40 pixels; expected 0 to 1, or 2 for pixels to ignore "
        f"({OF_NO_CLASS}: 255); write 1 in place of 255",
    ),
    "255 and 0 reduced": (
        values(0, 255), dict(reduce_zero_label=True),
        ": the values of 4 masks are 0 and 255, and 0 (reduce_zero_label) and 255 are ignored",
    ),
    "all ignored": (
        values(255), {}, ": every pixel of 4 masks is ignored: there is nothing to learn"
    ),
    "all 0, reduced": (
        values(0), dict(reduce_zero_label=True),
        ": every pixel of 4 masks is ignored (reduce_zero_label ignores 0)",
    ),
    "one class": (
        values(0, 1), dict(reduce_zero_label=True, metainfo=dict(classes=["crack"])),
        ": crack is the one class, and there is nothing to tell it from",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_wrong_masks_are_refused_in_one_line(fault, data):
    change, settings, line = REFUSED[fault]
    change(data)
    with pytest.raises(DataError) as raised:
        build(config(data, **settings))
    assert line.format(data=data) in str(raised.value)
    assert str(raised.value).startswith(f"{data}/masks")
    assert "\n" not in str(raised.value)


NAMED = {
    "a class that never occurs": ((0, 2), {}, ["class van has no pixel in 4 masks"]),
    "classes": ((0,), {}, ["classes van, tree have no pixel in 4 masks"]),
    "the last, where 0 is a class of one's own": (
        (0, 1, 2), dict(reduce_zero_label=True),
        ["class tree has no pixel in 4 masks; reduce_zero_label takes 1 for road and ignores 0: "
         "set it to False, if 0 is road"],
    ),
    "honest": ((0, 1, 2), {}, []),
    "honest, reduced": ((0, 1, 2, 3), dict(reduce_zero_label=True), []),
}  # fmt: skip


@pytest.mark.parametrize("test", [False, True])
@pytest.mark.parametrize("case", NAMED)
def test_classes_without_a_pixel_are_named(case, test, data, said):
    new, settings, lines = NAMED[case]
    values(*new)(data)
    build(config(data, test_mode=test, **settings))
    assert said[1:] == [f"{data}/masks: {line}" for line in lines]


def test_what_is_passed_over_is_counted(data, said):
    for name in ("a.jpeg", "b.jpeg", "c.JPG"):
        Image.new("RGB", SIZE).save(data / "images" / name, "JPEG")
    (data / "images/list.txt").write_text("")
    for name in ("d.png", "inner/e.png", "f.txt"):
        (data / "masks/inner").mkdir(exist_ok=True)
        (data / "masks" / name).write_text("")
    build(config(data))
    assert said == [
        f"{data}/masks: 4 images of 3 classes; skipped 2 masks without an image; skipped 2 images "
        ".jpeg (img_suffix is .jpg); skipped 1 image .JPG (img_suffix is .jpg)"
    ]
    with pytest.raises(DataError, match=r"for BaseSegDataset; skipped 4 images .jpg"):
        build(config(data, img_suffix=".png", seg_map_suffix=".tif"))


def test_a_mask_that_is_all_ignored_is_counted(data, said):
    write(data, "1", Image.fromarray(mask_of(255)))
    build(config(data))
    assert said[0].endswith("4 images of 3 classes; 1 mask whose pixels are all ignored")


def test_images_and_masks_in_one_folder(data):
    for path in [*(data / "masks").iterdir()]:
        path.rename(data / "images" / path.name)
    settings = dict(data_prefix=dict(img_path="images", seg_map_path="images"))
    assert len(build(config(data, **settings))) == MASKS
    assert not passed_over(str(data / "images"), str(data / "images"), ".jpg", ".png")


def test_a_list_of_names(data, said):
    (data / "list.txt").write_text("1\n3\n")
    assert len(build(config(data, ann_file="list.txt"))) == 2
    assert said == [f"{data}/masks: 2 images of 3 classes"]  # the others are not meant
    (data / "list.txt").write_text("1\n3\n1\n")
    build(config(data, ann_file="list.txt"))
    assert said[1] == f"{data}/masks: 3 images of 3 classes; 1 image named again in the list"
    (data / "list.txt").write_text("1\n9\n")
    with pytest.raises(DataError, match=r"images/9\.jpg not found"):
        build(config(data, ann_file="list.txt"))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_images_that_exif_turns(orientation, data, said):
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.new("RGB", SIZE).save(data / "images/0.jpg", exif=exif)
    expected = []
    if orientation == 6:  # by a quarter
        with pytest.raises(DataError, match=r"expected \(10, 8\) as .* \(turned as its EXIF says"):
            build(config(data))
        Image.fromarray(turned(mask_of(0, 1, 2))).save(data / "masks/0.png")
    if orientation > 1:
        expected = ["1 image of 4, read as EXIF turns them; their masks have to be turned already"]
    assert build(config(data))[0]["img"].shape[:2] == ((10, 8) if orientation == 6 else (8, 10))
    assert said[1:] == [f"{data}/masks: {line}" for line in expected]
    steps = [dict(type="LoadImageFromFile", color_type="color_ignore_orientation"), STEPS[1]]
    if orientation == 3:
        build(config(data, pipeline=steps))
        assert len(said) == 3


def test_a_run_looks_into_a_part_of_many_masks(tmp_path, monkeypatch):
    """And into more where a class does not occur; the command looks into all."""
    write(tmp_path, "0", Image.fromarray(mask_of(0, 1)))
    (tmp_path / "stray.png").write_bytes(b"")
    Image.fromarray(mask_of(0, 7)).save(tmp_path / "stray.png")
    image, mask = (str(tmp_path / name) for name in ("images/0.jpg", "masks/0.png"))
    pairs = [(image, mask)] * (LARGE_SAMPLE * 2)
    pairs[1] = (image, str(tmp_path / "stray.png"))
    report = check_masks(pairs, Labels(CLASSES), "masks", sample=True)
    assert not report.faults
    assert report.images == len(pairs)
    assert report.notes == [": class tree has no pixel in 1000 of 2000 masks"]
    report = check_masks(pairs, Labels(CLASSES[:2]), "masks", sample=True)
    assert not report.notes
    assert sum(report.per_class.values()) == 200 * mask_of(0).size
    report = check_masks(pairs, Labels(CLASSES), "masks")
    assert f"stray.png has the label 7 in {mask_of(0).size // 2} pixels" in report.faults[0]


def test_without_masks_there_is_nothing_to_check(data):
    shutil.rmtree(data / "masks")
    assert len(build(config(data, pipeline=STEPS[:1], test_mode=True))) == MASKS


@pytest.fixture
def custom():
    """Steps of somebody's own, which make labels of whatever masks hold."""

    @TRANSFORMS.register_module()
    class LoadWhite(LoadAnnotations):
        def _load_seg_map(self, results: dict) -> None:
            super()._load_seg_map(results)
            results["gt_seg_map"] = results["gt_seg_map"] // 255

    @TRANSFORMS.register_module()
    class WhiteIsVan(BaseTransform):
        def transform(self, results: dict) -> dict:
            results["gt_seg_map"][results["gt_seg_map"] == 255] = 1
            return results

    yield
    for name in ("LoadWhite", "WhiteIsVan"):
        TRANSFORMS.module_dict.pop(name)


@pytest.mark.parametrize("own", ["LoadWhite", "WhiteIsVan"])
def test_what_own_steps_make_of_masks_is_their_matter(own, data, custom):
    values(0, 255)(data)
    pipeline = [STEPS[0], dict(type=own)] if own == "LoadWhite" else [*STEPS, dict(type=own)]
    dataset = build(config(data, pipeline=pipeline))
    assert set(np.unique(dataset[0]["gt_seg_map"])) == {0, 1}
    (data / "masks/1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png not found"):
        build(config(data, pipeline=pipeline))


def test_within_other_data_sets(data):
    (data / "masks/1.png").unlink()
    inner = dict(type="ConcatDataset", datasets=[config(data)])
    with pytest.raises(DataError, match=r"1\.png not found"):
        build(ConfigDict(type="RepeatDataset", times=2, dataset=inner))


class StoppedError(Exception):
    """At the first iteration."""


def test_masks_of_the_validation_split_are_looked_for_before_training(data, tmp_path):
    """By anybody's runner, as it reads the data of both splits before it begins."""
    shutil.copytree(data, tmp_path / "val")
    cfg = Config.fromfile("configs/upernet_hire_nano_shapes.py")
    cfg.work_dir = str(tmp_path / "work")
    for split, folder in (("train", data), ("val", tmp_path / "val")):
        loader = cfg[f"{split}_dataloader"]
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset = config(folder, metainfo=dict(classes=[*CLASSES, "sky"]))
    init_default_scope("mmseg")

    def stop(*_: object, **__: object) -> None:
        raise StoppedError

    runner = Runner.from_cfg(harden(cfg))
    runner.model.train_step = stop
    (tmp_path / "val/masks/2.png").unlink()
    with pytest.raises(DataError, match=r"val/masks/2\.png not found, the mask of"):
        runner.train()
