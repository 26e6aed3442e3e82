"""Does a run compare what must agree before its first iteration, and train what can be trained?"""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import Runner, ValLoop
from PIL import Image
from shapes import write_shapes

from hire_mlp_mm.engine import test as run_test
from hire_mlp_mm.engine import train
from hire_mlp_mm.engine.agreement import WARNED, differences, lines
from hire_mlp_mm.engine.agreement.evaluators import figures
from hire_mlp_mm.engine.agreement.sides import Run
from hire_mlp_mm.engine.harden import harden
from hire_mlp_mm.errors import DataError, UserError
from tests.conftest import NANO, ROOT

SIZE = 64
TRAIN = "annotations/instances_training.json"
VAL = "annotations/instances_validation.json"
IMAGES = dict(training="images/training/", validation="images/validation/")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, train=4, val=2, size=SIZE)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """A folder per class: three in `train` and `val`, two of the same in `few`; a list from 1."""
    root = tmp_path_factory.mktemp("folders")
    for split, names in dict(train="abc", val="abc", few="bc", first="ab").items():
        for name in names:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (32, 32), (90 * i, 40, 9)).save(folder / f"{i}.png")
    (root / "train.txt").write_text("a/0.png 1\nb/0.png 2\nc/0.png 3\n")
    return root


@pytest.fixture(autouse=True)
def own_scope(monkeypatch):
    """A runner sets the scope and the log of its process; here they are put back."""
    monkeypatch.setattr(DefaultScope, "_instance_dict", DefaultScope._instance_dict.copy())
    monkeypatch.setattr(MMLogger, "_instance_dict", MMLogger._instance_dict.copy())


@pytest.fixture(autouse=True)
def no_pretty_configs(monkeypatch):
    """Half of the time of a short run goes into the layout of its config's copies."""
    monkeypatch.setattr(Config, "pretty_text", "")


BACKBONE = dict(type="HireMLP", arch=dict(NANO, depths=(1, 1, 1, 1)))
STEPS = dict(type="IterBasedTrainLoop", max_iters=1, val_interval=1)


def detector(root: Path) -> Config:
    cfg = Config.fromfile(ROOT / "configs/retinanet_hire_t_1x_coco.py")
    shape_cfg = Config.fromfile(ROOT / "configs/cascade_mask_rcnn_hire_nano_shapes.py")
    cfg.model.backbone = dict(BACKBONE, out_indices=(1, 2, 3))
    cfg.model.neck.update(in_channels=[12, 16, 20], out_channels=8)
    cfg.model.test_cfg.score_thr = 0.0  # something is found from the beginning
    cfg.model.bbox_head.update(num_classes=3, in_channels=8, feat_channels=8, stacked_convs=1)
    for key in ("train_dataloader", "val_dataloader", "test_dataloader"):
        cfg[key] = copy.deepcopy(shape_cfg[key])
        cfg[key].dataset.data_root = str(root)
    evaluator = dict(type="CocoMetric", ann_file=str(root / VAL), metric="bbox")
    return short(cfg, evaluator)


def segmentor(root: Path) -> Config:
    cfg = Config.fromfile(ROOT / "configs/upernet_hire_nano_shapes.py")
    cfg.model.backbone = BACKBONE
    cfg.model.data_preprocessor.size = (SIZE, SIZE)
    cfg.model.decode_head.update(in_channels=[8, 12, 16, 20], channels=8)
    cfg.model.auxiliary_head.update(in_channels=16, channels=8)
    for key in ("train_dataloader", "val_dataloader", "test_dataloader"):
        cfg[key].dataset.data_root = str(root)
    return short(cfg, dict(type="IoUMetric", iou_metrics=["mIoU"]))


def classifier(root: Path) -> Config:
    cfg = Config.fromfile(ROOT / "configs/hire_t_imagenet.py")
    cfg.model.backbone = dict(BACKBONE, out_indices=(3,))
    cfg.model.head.update(in_channels=20, num_classes=3)
    cfg.model.data_preprocessor.num_classes = 3
    pipeline = [dict(type="LoadImageFromFile"), dict(type="PackInputs")]
    for split in ("train", "val", "test"):
        folder = "train" if split == "train" else "val"
        dataset = dict(type="CustomDataset", data_root=str(root), data_prefix=folder)
        cfg[f"{split}_dataloader"] = dict(
            batch_size=2, num_workers=0, collate_fn=dict(type="default_collate"),
            sampler=dict(type="DefaultSampler", shuffle=False),
            dataset=dict(dataset, pipeline=pipeline),
        )  # fmt: skip
    return short(cfg, dict(type="Accuracy", topk=(1, 2)))


def short(cfg: Config, evaluator: dict) -> Config:
    """One iteration, one validation."""
    cfg.train_dataloader.batch_size = 2
    cfg.train_cfg, cfg.param_scheduler, cfg.launcher = STEPS, [], "none"
    cfg.val_evaluator, cfg.test_evaluator = evaluator, copy.deepcopy(evaluator)
    cfg.default_hooks.checkpoint = dict(type="CheckpointHook", by_epoch=False, interval=1)
    return cfg


KINDS = {"detector": detector, "segmentor": segmentor, "classifier": classifier}


@pytest.fixture
def config(shapes, folders, tmp_path):
    """Make the config of a kind of model, with some values by their dotted keys."""

    def config(kind: str, **values: object) -> Config:
        cfg = KINDS[kind](folders if kind == "classifier" else shapes)
        cfg.work_dir = str(tmp_path / "work")
        cfg.merge_from_dict({key.replace("__", "."): value for key, value in values.items()})
        return cfg

    return config


def refused(cfg: Config, checkpoint: str | None = None) -> str:
    """The line with which a training, or the test of a checkpoint, is refused."""
    with pytest.raises(DataError) as raised:
        run_test(cfg, checkpoint) if checkpoint else train(cfg)
    line = str(raised.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("kind", KINDS)
def test_what_agrees_is_trained_and_tested(kind, config):
    train(config(kind))
    checkpoint = Path(config(kind).work_dir, "iter_1.pth")
    assert checkpoint.is_file()
    assert run_test(config(kind), str(checkpoint))


# Heads ------------------------------------------------------------------------------------------

HEADS = {
    # Once a label from 3 on scores, CocoMetric ends with an IndexError.
    "a detector's head with more": (
        "detector", dict(model__bbox_head__num_classes=80),
        r"model.bbox_head \(RetinaHead\) has num_classes=80, and val_dataloader.dataset "
        r"\(CocoDataset\) 3 classes \(circle, square, triangle\): set model.bbox_head.num_classes "
        r"to 3",
    ),
    "a detector's head with fewer": (
        "detector", dict(model__bbox_head__num_classes=2),
        r"has num_classes=2, and train_dataloader.dataset .* set model.bbox_head.num_classes to 3",
    ),
    "a segmentor's heads with fewer": (
        "segmentor",
        dict(model__decode_head__num_classes=3, model__auxiliary_head__num_classes=3),
        r"and 1 more parts have num_classes=3, .* set model.decode_head.num_classes, "
        r"model.auxiliary_head.num_classes to 4",
    ),
    "the labels of mixed images": (
        "classifier", dict(model__data_preprocessor__num_classes=1000),
        r"model.data_preprocessor \(ClsDataPreprocessor\) has num_classes=1000, and model.head 3: "
        r".*set model.data_preprocessor.num_classes=3",
    ),
    "a mean over outputs that no image has": (
        "classifier",
        dict(model__head__num_classes=9, model__data_preprocessor__num_classes=9,
             val_evaluator=dict(type="SingleLabelMetric", _delete_=True)),
        r"model.head .* has num_classes=9, .*; val_evaluator \(SingleLabelMetric\) has no other",
    ),
    "more than there are": (
        "classifier", dict(val_evaluator__topk=[1, 5]),
        r"val_evaluator.topk asks for the accuracy of the first 5, and model.head has 3 classes: "
        r"set val_evaluator.topk=\[1\]",
    ),
    "weights of other classes": (
        "segmentor", dict(model__decode_head__loss_decode__class_weight=[1.0, 2.0, 3.0]),
        r"model.decode_head.loss_decode.class_weight has 3 weights, and model.decode_head "
        r"num_classes=4",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "values", "message"), HEADS.values(), ids=HEADS)
def test_heads_and_data(kind, values, message, config):
    line = refused(config(kind, **values))
    assert re.search(message, line), line


@pytest.mark.parametrize("kind", ["segmentor", "classifier"])
def test_more_outputs_than_classes_that_do_no_harm_are_said(kind, config):
    """mmseg takes such a pixel for a wrong one, as it is."""
    heads = dict(model__decode_head__num_classes=9, model__auxiliary_head__num_classes=9)
    if kind == "classifier":
        heads = dict(model__head__num_classes=9, model__data_preprocessor__num_classes=9)
    cfg = config(kind, **heads)
    train(cfg)
    (log,) = Path(cfg.work_dir).glob("*/*.log")
    assert "unless that is meant" in log.read_text()


class Head(torch.nn.Module):
    def __init__(self, num_classes: int, **attributes: object) -> None:
        super().__init__()
        self.num_classes = num_classes
        vars(self).update(attributes)


class STDCHead(Head):
    """mmseg's of this name learns where classes meet."""


class RPNHead(Head):
    """mmdet's has one class."""


class Part(torch.nn.Module):
    """Of a model."""


def run_of(model: torch.nn.Module, **classes: tuple[str, ...]) -> Run:
    """A run of a model on data sets with some classes, by their split."""

    class Thing:
        def __init__(self, **attributes: object) -> None:
            vars(self).update(attributes)

    class Loops(Thing):
        cfg = Config(dict(model=dict()))
        param_schedulers, hooks, max_iters = None, (), 1

    loops = {}
    for split, names in classes.items():
        dataset = Thing(metainfo=dict(classes=names))
        loader = Thing(dataset=dataset, batch_sampler=None, sampler=None)
        loops[f"{split}_loop"] = Thing(dataloader=loader, evaluator=None)
    return Run.of(Loops(model=model, **loops), tuple(classes))


def test_parts_with_a_number_of_their_own():
    """None of these has an output for each class of the data."""
    model = torch.nn.ModuleDict({"rpn_head": Head(1), "bbox_head": Head(3), "aux": STDCHead(2)})
    model["backbone"] = Head(-1)
    model["backbone"].inner = Head(2)
    model["proposals"] = RPNHead(1)  # as bbox_head of a detector that proposes alone
    model["mask_head"] = Head(1, class_agnostic=True)
    model["data_preprocessor"] = Head(1)
    assert differences(run_of(model, train=("a", "b", "c"))) == []
    model["other"] = Head(2)
    (line,) = differences(run_of(model, train=("a", "b", "c")))
    assert "model.other (Head) has num_classes=2" in line


def test_models_that_read_their_classes_have_no_outputs_for_them():
    model = Part()
    model.bbox_head, model.language_model = Head(2), Part()
    assert differences(run_of(model, train=("a", "b", "c"), val=("d", "e"))) == []


# Data sets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("val", "message"),
    [
        (("a", "c", "b"), "label 1 is 'b' in the one and 'c' in the other; set metainfo.classes"),
        (("b", "c"), "label 0 is 'a' in the one and 'b' in the other, the second lacks a"),
        (("a", "B", "c", "d"), "the first lacks b, the second lacks B, d"),
        (("a", "b"), None),  # no label means another class
        ((), None),
    ],
)
def test_classes_of_the_splits(val, message):
    lines = differences(run_of(Part(), train=("a", "b", "c"), val=val))
    if message is None:
        assert lines == []
    else:
        (line,) = lines
        assert message in line
        assert "val_dataloader.dataset and" in line or "and val_dataloader.dataset" in line


def test_label_0_of_the_splits():
    """They may have masks of two kinds, so that is said and not refused."""
    run = run_of(Part(), train=("a", "b"), val=("a", "b"))
    for (_, dataset), reduces in zip(run.parts, (True, False), strict=True):
        dataset.reduce_zero_label = reduces
        dataset.ignore_index = 255
    (line,) = lines(WARNED, run)
    assert line.startswith("val_dataloader.dataset has reduce_zero_label=False and train_data")
    assert differences(run) == []


def test_a_folder_that_one_split_lacks_is_named(config):
    line = refused(config("classifier", train_dataloader__dataset__data_prefix="few"))
    assert "label 0 is 'a' in the one and 'b' in the other, the second lacks a" in line
    assert line.endswith("every class needs a folder in both")
    train(config("classifier", val_dataloader__dataset__data_prefix="first"))


PALETTE = [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
WRAPPERS = {
    "ConcatDataset": lambda one, two: dict(type="ConcatDataset", datasets=[one, two]),
    "RepeatDataset": lambda one, _: dict(type="RepeatDataset", times=2, dataset=one),
    "ClassBalancedDataset": lambda one, _: dict(
        type="ClassBalancedDataset", oversample_thr=0.1, dataset=one
    ),
    "MultiImageMixDataset": lambda one, _: dict(
        type="MultiImageMixDataset", dataset=one, pipeline=[]
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_data_sets_within_others(wrapper, config):
    """Trained, with a palette in one of them; the key of one whose classes differ is named."""

    def wrapped(**of_second: object) -> Config:
        cfg = config("detector")
        first, second = cfg.train_dataloader.dataset, copy.deepcopy(cfg.train_dataloader.dataset)
        del second.metainfo["palette"]
        second.update(of_second)
        one = first if wrapper == "ConcatDataset" else second
        cfg.train_dataloader.dataset = WRAPPERS[wrapper](one, second)
        return cfg

    train(wrapped())
    line = refused(wrapped(metainfo=dict(classes=("square", "triangle")), ann_file=TRAIN))
    inner = "datasets.1" if wrapper == "ConcatDataset" else "dataset"
    assert f"train_dataloader.dataset.{inner}" in line
    assert "'circle' in the one and 'square' in the other" in line


def test_an_evaluator_takes_one_description(config):
    cfg = config("detector")
    first, second = cfg.val_dataloader.dataset, copy.deepcopy(cfg.val_dataloader.dataset)
    second.metainfo.palette = PALETTE
    cfg.val_dataloader.dataset = dict(type="ConcatDataset", datasets=[first, second])
    line = refused(cfg)
    assert "within val_dataloader.dataset have another metainfo each (palette)" in line
    second.metainfo.palette = first.metainfo.palette
    first.indices, second.indices = [0], [1]
    train(cfg)


# Evaluators -------------------------------------------------------------------------------------


def changed(folder: Path, source: str, change) -> str:
    """A COCO file of another content."""
    content = json.loads(Path(source).read_text())
    change(content)
    (folder / "changed.json").write_text(json.dumps(content))
    return str(folder / "changed.json")


def reverse(content: dict) -> None:
    content["categories"].reverse()


def rename(content: dict) -> None:
    content["categories"][1]["name"] = "Square"


def add_images(content: dict) -> None:
    content["images"].append(dict(content["images"][0], id=999, file_name="other.jpg"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (reverse, "has the categories triangle, square, circle, and val_dataloader.dataset the "),
        (rename, "has no category square, and val_dataloader.dataset has that class"),
        (add_images, "lists 3 images, and val_dataloader.dataset has 2 of them: the objects of"),
    ],
)
def test_the_file_of_an_evaluator(change, message, config, shapes, tmp_path):
    file = changed(tmp_path, str(shapes / VAL), change)
    line = refused(config("detector", val_evaluator__ann_file=file))
    assert line.startswith(f"val_evaluator.ann_file {file} {message}")
    assert line.endswith(f"set it to the file of the data set, {shapes / VAL}")


def number_from_one(content: dict) -> None:
    """Other images under the same ids."""
    for record in content["images"]:
        record["file_name"] = f"other/{record['file_name']}".replace("0000", "1000")


def number_elsewhere(content: dict) -> None:
    for record in content["images"]:
        record["id"] += 1000
    for record in content["annotations"]:
        record["image_id"] += 1000


def enlarge(content: dict) -> None:
    """Of other sizes, under the same ids and names."""
    content["images"][0]["width"] += 1


@pytest.mark.parametrize(
    ("change", "count"), [(number_from_one, 2), (number_elsewhere, 2), (enlarge, 1)]
)
def test_another_splits_file(change, count, config, shapes, tmp_path):
    file = changed(tmp_path, str(shapes / VAL), change)
    line = refused(config("detector", val_evaluator__ann_file=file))
    assert f"val_evaluator.ann_file {file} lacks {count} of the 2 images of val_dataload" in line
    assert f"such as {shapes / 'images/validation/00000.jpg'}; set it to the file" in line


@pytest.mark.parametrize(
    ("values", "cure"),
    [
        (dict(indices=1), "leave out val_dataloader.dataset.indices"),
        (
            dict(test_mode=False, filter_cfg=dict(filter_empty_gt=True)),
            "set val_dataloader.dataset.test_mode=True",
        ),
    ],
)
def test_part_of_the_images(values, cure, config, shapes, tmp_path):
    """All others would count as missed."""

    def empty_first(content: dict) -> None:
        first = content["images"][0]["id"]
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] != first]

    file = changed(tmp_path, str(shapes / VAL), empty_first)
    cfg = config("detector", val_evaluator__ann_file=file, val_dataloader__dataset__ann_file=file)
    cfg.val_dataloader.dataset.update(values)
    line = refused(cfg)
    assert "lists 2 images, and val_dataloader.dataset has 1 of them" in line
    assert cure in line


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            dict(val_dataloader__batch_size=2, val_dataloader__drop_last=True),
            "val_dataloader.drop_last=True leaves out 1 of the 3 images of val_dataloader.dataset",
        ),
        (
            dict(val_dataloader__sampler__type="InfiniteSampler"),
            "val_dataloader.sampler (InfiniteSampler) has no end",
        ),
    ],
    ids=["drop_last", "no end"],
)
@pytest.mark.parametrize("kind", ["detector", "segmentor"])
def test_an_evaluation_has_all_images_once(kind, values, message, config, shapes, tmp_path):
    root = Path(shutil.copytree(shapes, tmp_path / "shapes"))
    write_shapes(root, train=4, val=3, size=SIZE)
    cfg = config(kind, val_evaluator__ann_file=str(root / VAL), **values)
    if kind == "segmentor":
        del cfg.val_evaluator["ann_file"]
    cfg.val_dataloader.dataset.data_root = str(root)
    assert message in refused(cfg)


@pytest.mark.parametrize("wrapper", ["RepeatDataset", "ConcatDataset"])
def test_an_image_that_comes_twice(wrapper, config):
    cfg = config("detector")
    cfg.val_dataloader.dataset = WRAPPERS[wrapper](
        cfg.val_dataloader.dataset, copy.deepcopy(cfg.val_dataloader.dataset)
    )
    assert "val_dataloader.dataset has 4 samples of 2 images, and val_evaluator" in refused(cfg)


def test_a_file_of_another_encoding(config, shapes, tmp_path):
    file = tmp_path / "marked.json"
    file.write_bytes((shapes / VAL).read_text().encode("utf-8-sig"))
    files = dict.fromkeys(("val_evaluator__ann_file", "val_dataloader__dataset__ann_file"))
    train(config("detector", **dict.fromkeys(files, str(file))))


def test_no_interval_of_validations(config):
    line = refused(config("detector", train_cfg__val_interval=0))
    assert line.startswith("train_cfg.val_interval is 0: set it to 1 or more")


def test_classes_without_names(config):
    cfg = config("segmentor")
    del cfg.val_dataloader.dataset["metainfo"]
    assert refused(cfg).endswith("set val_dataloader.dataset.metainfo.classes")


@pytest.mark.parametrize("key", ["model__decode_head__ignore_index", "val_evaluator__ignore_index"])
def test_a_class_that_is_ignored_is_said(key, config):
    cfg = config("segmentor", **{key: 0})
    train(cfg)
    (log,) = Path(cfg.work_dir).glob("*/*.log")
    said = key.removesuffix("__ignore_index").replace("__", ".")
    assert f"{said} ignores label 0, the class background, and train_data" in log.read_text()


def test_masks_that_are_not_there(config):
    line = refused(config("detector", val_evaluator__metric=["bbox", "segm"]))
    assert "asks for 'segm', and the model (RetinaNet) gives no masks" in line
    assert line.endswith("set val_evaluator.metric=bbox")


def test_boxes_of_samples(config):
    """As of VOC's XML files under CocoMetric: it has nothing to compare with."""
    line = refused(config("detector", val_evaluator__ann_file=None))
    assert line.startswith("val_evaluator (CocoMetric) has no ann_file, and the samples of ")
    cfg = config("detector", val_evaluator__ann_file=None)
    cfg.val_dataloader.dataset.pipeline[-1].meta_keys += ("instances",)
    train(cfg)


def test_the_ignored_label(config):
    values = dict(train_dataloader__dataset__ignore_index=254, model__decode_head__ignore_index=254)
    line = refused(config("segmentor", **values))
    assert "train_dataloader.dataset ignores label 254, and model.auxiliary_head 255" in line


# Figures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("detector", "coco/bbox_mAP", None),
        ("detector", "bbox_mAP", "did you mean 'coco/bbox_mAP'?"),
        ("segmentor", "mIoU", None),
        ("segmentor", "mAP", "does not give: aAcc, mIoU, mAcc"),
        ("classifier", "accuracy/top1", None),
        ("classifier", "accuracy/top5", "does not give: accuracy/top1, accuracy/top2"),
        ("classifier", "auto", None),
    ],
)
def test_the_best_checkpoint(kind, name, message, config):
    cfg = config(kind, default_hooks__checkpoint__save_best=name)
    if message is None:
        train(cfg)
        assert list(Path(cfg.work_dir).glob("best_*.pth"))
    else:
        line = refused(cfg)
        assert line.startswith(f"default_hooks.checkpoint.save_best is {name!r}, which ")
        assert message in line


def test_an_early_stop_that_would_never_come(config):
    stop = dict(type="EarlyStoppingHook", monitor="top1", rule="greater")
    line = refused(config("classifier", custom_hooks=[stop]))
    assert line.startswith("EarlyStoppingHook's monitor is 'top1', which val_evaluator does not")


SINGLE = dict(type="SingleLabelMetric", average="micro", thrs=(0.1, None))
FIGURES = {
    "detector": [
        dict(metric=["bbox", "proposal"], classwise=True),
        dict(metric="bbox", prefix="mine"),
        dict(metric="bbox", metric_items=["mAP_50"]),
    ],
    "segmentor": [dict(iou_metrics=["mDice", "mFscore"])],
    "classifier": [
        dict(topk=2, thrs=(0.1, None)),
        SINGLE,
        dict(type="SingleLabelMetric", average=None, items=["recall"]),
    ],
}


@pytest.mark.parametrize(
    ("kind", "options"), [(kind, one) for kind, several in FIGURES.items() for one in several]
)
def test_the_names_are_those_that_a_validation_gives(kind, options, config, monkeypatch):
    """Of every option that changes them."""
    cfg = config(kind)
    cfg.val_evaluator.update(options)
    if "type" in options:
        cfg.val_evaluator.pop("topk")
    runner = Runner.from_cfg(harden(cfg))
    loop = ValLoop(runner, cfg.val_dataloader, harden(cfg).val_evaluator)
    monkeypatch.setattr(runner, "_val_loop", loop)
    (side,) = Run.of(runner, ("val",)).sides
    assert sorted(figures(side) or ()) == sorted(loop.run())


# Models and batches -----------------------------------------------------------------------------

TWO = dict(classes=("rest", "thing"), palette=[(0, 0, 0), (9, 9, 9)])
CANNOT = {
    "a sigmoid forgotten": (
        "segmentor",
        dict(model__decode_head__num_classes=2, model__decode_head__out_channels=1,
             model__auxiliary_head=None,
             train_dataloader__dataset__metainfo=TWO,
             val_dataloader__dataset__metainfo=TWO),
        "has one output and a loss over a softmax, which is 1 for a single output: there is "
        "nothing to learn; set model.decode_head.num_classes=2 (background and object), and either "
        "model.decode_head.out_channels=2, or 1 with model.decode_head.loss_decode.use_sigmoid="
        "True",
    ),
    "a pool under a norm": (
        "segmentor", dict(train_dataloader__batch_size=1),
        "model.decode_head (UPerHead) pools a map to 1 x 1 pixel before a BatchNorm, which cannot "
        "train on one image: set train_dataloader.batch_size to 2 or more, or model.decode_head."
        "norm_cfg",
    ),
    "a last batch of one": (
        "segmentor",
        dict(train_dataloader__batch_size=3, train_dataloader__sampler__type="DefaultSampler",
             train_cfg__max_iters=2),
        "set train_dataloader.drop_last=True (the last batch of 4 images has 1)",
    ),
    "windows of no size": (
        "segmentor", dict(model__test_cfg=dict(mode="slide", crop_size=(32, 32))),
        "model.test_cfg.mode is 'slide', and stride of the windows is not set",
    ),
    "a misspelt option of the norms": (
        "segmentor", dict(optim_wrapper__paramwise_cfg=dict(norm_decay_mul=0.0)),
        "optim_wrapper.paramwise_cfg.norm_decay_mul has no effect; did you mean 'norm_decay_mult'?",
    ),
    "no iterations": (
        "segmentor", dict(train_cfg__max_iters=0),
        "train_cfg.max_iters is 0, and nothing would be trained: set it to 1 or more",
    ),
    "no epochs": (
        "classifier",
        dict(train_cfg=dict(_delete_=True, type="EpochBasedTrainLoop", max_epochs=0)),
        "train_cfg.max_epochs is 0, and nothing would be trained",
    ),
    "labels beyond the head": (
        "classifier", dict(train_dataloader__dataset__ann_file="train.txt"),
        "train.txt has the labels 1 to 3, and model.head num_classes=3; expected 0 to 2: write "
        "labels from 0",
    ),
    "no batch": (
        "classifier", dict(train_dataloader__batch_size=128, train_dataloader__drop_last=True),
        "train_dataloader.dataset has 6 images, and train_dataloader.batch_size=128 with drop_last "
        "leaves no batch: set train_dataloader.batch_size to 6 or less",
    ),
}  # fmt: skip


def test_labels_that_count_from_one_are_said(config):
    cfg = config("classifier", train_dataloader__dataset__ann_file="train.txt")
    cfg.model.head.num_classes = cfg.model.data_preprocessor.num_classes = 9
    train(cfg)
    log = max(Path(cfg.work_dir).glob("*/*.log")).read_text()
    assert "train.txt has the labels 1 to 3, and none is 0, the first of model.head's 9" in log


def test_an_option_of_nobody_is_said_and_others_constructors_are_left_alone(config):
    cfg = config("segmentor", optim_wrapper__paramwise_cfg=dict(wanted=1))
    train(cfg)
    log = max(Path(cfg.work_dir).glob("*/*.log")).read_text()
    assert "WARNING - optim_wrapper.paramwise_cfg.wanted has no effect\n" in log


def test_samples_that_are_packed_before_they_are_mixed(config):
    cfg = config("detector")
    dataset = cfg.train_dataloader.dataset
    mosaic = dict(type="Mosaic", img_scale=(64, 64))
    mixed = dict(type="MultiImageMixDataset", dataset=dataset, pipeline=[mosaic])
    cfg.train_dataloader.dataset = dict(type="RepeatDataset", times=2, dataset=mixed)
    at = "train_dataloader.dataset.dataset"
    assert refused(cfg) == (
        f"{at}.pipeline (Mosaic) mixes samples that {at}.dataset has packed: move PackDetInputs "
        f"from {at}.dataset.pipeline to the end of {at}.pipeline"
    )


@pytest.fixture
def two_labels(shapes, tmp_path) -> str:
    """The data set with things of one kind."""
    root = Path(shutil.copytree(shapes, tmp_path / "two"))
    for path in root.glob("annotations/*/*.png"):
        labels = np.asarray(Image.open(path))
        Image.fromarray((labels > 0).astype(np.uint8)).save(path)
    return str(root)


WINDOWS = {
    "model.test_cfg.mode is 'slid'": dict(mode="slid"),
    "expected height and width of the windows": dict(mode="slide", crop_size=32, stride=16),
    "stride (48, 48) is longer than the windows": dict(
        mode="slide", crop_size=(32, 32), stride=(48, 48)
    ),
}


@pytest.mark.parametrize("message", WINDOWS)
def test_windows_that_do_not_see_the_image(message, config):
    assert message in refused(config("segmentor", model__test_cfg=WINDOWS[message]))


@pytest.mark.parametrize(("kind", "values", "message"), CANNOT.values(), ids=CANNOT)
def test_models_that_cannot_learn_or_run(kind, values, message, config, two_labels):
    if values.get("model__decode_head__num_classes") == 2:
        keys = (f"{split}_dataloader__dataset__data_root" for split in ("train", "val"))
        values = {**values, **dict.fromkeys(keys, two_labels)}
    assert message in refused(config(kind, **values))


@pytest.mark.parametrize(
    "values",
    [
        dict(train_dataloader__batch_size=1, norm=dict(type="GN", num_groups=4)),
        dict(train_dataloader__batch_size=3, train_dataloader__sampler__type="DefaultSampler"),
        dict(model__test_cfg=dict(mode="slide", crop_size=(32, 32), stride=(32, 32))),
        dict(train_dataloader__batch_size=9),  # drawn again and again
    ],
)
def test_their_cures(values, config):
    norm = values.pop("norm", None)
    cfg = config("segmentor", **values)
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head) if norm else ():
        head.norm_cfg = norm
    train(cfg)


# Checkpoints ------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(config, tmp_path) -> str:
    """Trained on a, b and c."""
    cfg = config("classifier")
    train(cfg)
    return str(shutil.copy(Path(cfg.work_dir, "iter_1.pth"), tmp_path / "trained.pth"))


def test_classes_of_a_checkpoint(checkpoint, config, folders, tmp_path):
    data = tmp_path / "data"
    for old, new in zip("abc", ("a", "bb", "c"), strict=True):
        for split in ("train", "val"):
            shutil.copytree(folders / split / old, data / split / new)

    def other() -> Config:
        cfg = config("classifier")
        for split in ("train", "val", "test"):
            cfg[f"{split}_dataloader"].dataset.data_root = str(data)
        return cfg

    line = refused(other(), checkpoint)
    assert line.startswith(f"{checkpoint} was trained on other classes than test_dataloader.")
    assert "label 1 is 'b' in the one and 'bb' in the other" in line
    assert line.endswith("(its dataset_meta: a, b, c)")
    line = refused_resume(other(), checkpoint)
    assert "than train_dataloader.dataset has: label 1 is 'b'" in line
    cfg = other()
    cfg.load_from = checkpoint
    train(cfg)
    log = max(Path(cfg.work_dir).glob("*/*.log"))
    assert "label 1 is 'b' in the one and 'bb' in the other" in log.read_text()


def refused_resume(cfg: Config, checkpoint: str) -> str:
    with pytest.raises(DataError) as raised:
        train(cfg, resume=checkpoint)
    return str(raised.value)


def test_a_fine_tuned_model_is_tested_on_its_own_classes(checkpoint, config, folders, tmp_path):
    """By the runner that has trained it, which loaded a checkpoint with others."""
    state = torch.load(checkpoint, weights_only=False)
    state["meta"]["dataset_meta"] = dict(classes=("x", "y", "z"))
    torch.save(state, tmp_path / "other.pth")
    cfg = config("classifier", load_from=str(tmp_path / "other.pth"))
    runner = Runner.from_cfg(harden(cfg))
    runner.train()
    assert runner.test()


# What fails nevertheless ------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["model", "iteration"])
def test_a_failure_says_its_cause_first_and_few_images(place, config, monkeypatch):
    """In the model, or outside of it, as in an evaluator."""

    def fail(*_: object, **__: object) -> None:
        raise ValueError("no valid anchor\nmore")

    cfg = config("segmentor", train_dataloader__batch_size=4)
    if place == "model":
        monkeypatch.setattr("mmseg.models.decode_heads.UPerHead.forward", fail)
    else:
        monkeypatch.setattr("mmseg.evaluation.IoUMetric.process", fail)
    line = refused(cfg)
    assert line.startswith(f"the {place} failed with ValueError: no valid anchor; the batch was /")
    assert line.count(".jpg (64 x 64)") == 2
    assert line.endswith(" and 2 more") == (place == "model")


def test_a_lone_value_under_a_batch_norm_says_what_to_set(config):
    """The last batch of a classifier's images, which are of 32 pixels."""
    cfg = config("classifier", train_dataloader__batch_size=1)
    line = refused(cfg)
    assert "set train_dataloader.batch_size to 2 or more and, for the last batch, train_" in line


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_that_are_not_packed(workers, config):
    cfg = config("detector", train_dataloader__num_workers=workers)
    cfg.train_dataloader.dataset.pipeline.pop()
    line = refused(cfg)
    assert "does each pipeline end in PackDetInputs" in line


UNBUILT = {
    "optim_wrapper.optimizer.type: no class is called 'AdamWW'; did you mean 'AdamW'?": dict(
        optim_wrapper__optimizer__type="AdamWW"
    ),
    "param_scheduler.0.type: no class is called 'MultiStepLRR'; did you mean 'MultiStepLR'?": dict(
        param_scheduler=[dict(type="MultiStepLRR", milestones=[1])]
    ),
    "val_evaluator.type: no class is called 'CocoMetrik'; did you mean 'CocoMetric'?": dict(
        val_evaluator__type="CocoMetrik"
    ),
    "train_dataloader.sampler.type: no class is called 'DefaultSamplr'; did you": dict(
        train_dataloader__sampler__type="DefaultSamplr"
    ),
    "optim_wrapper.constructor: no class is called 'Layers'": dict(
        optim_wrapper__constructor="Layers"
    ),
    "model.neck (FPN) cannot be built: AssertionError: assert 'num_groups' in": dict(
        model__neck__norm_cfg=dict(type="GN")
    ),
    "val_evaluator (CocoMetric) cannot be built: KeyError": dict(val_evaluator__metric="bbbox"),
    "layer decay: unknown norm_decay_mul in paramwise_cfg; did you mean 'norm_decay_mult'?": dict(
        optim_wrapper__constructor="hire_mlp_mm.LayerDecayOptimWrapperConstructor",
        optim_wrapper__paramwise_cfg=dict(decay_rate=0.9, norm_decay_mul=0.0),
    ),
    "train_dataloader.dataset.data_prefix is the text 'images/training/'; expected a dict": dict(
        train_dataloader__dataset__data_prefix="images/training/"
    ),
    "val_cfg is None, and val_dataloader and val_evaluator not: set val_cfg, or all": dict(
        val_cfg=None
    ),
    "Package lvis is not installed. Please run": dict(val_evaluator__type="LVISMetric"),
    "data_prefix has 'img_path'; expected 'img', the folder of the images": dict(
        train_dataloader__dataset__data_prefix=dict(_delete_=True, img_path="images/training/")
    ),
}


@pytest.mark.parametrize("message", UNBUILT)
def test_a_part_that_cannot_be_built_is_named(message, config):
    with pytest.raises(UserError) as raised:
        train(config("detector", **UNBUILT[message]))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
