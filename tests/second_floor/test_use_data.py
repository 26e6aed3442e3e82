"""Does a data set of one's own, put into any config of the hosts, give a config that runs?"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, MODELS, PARAM_SCHEDULERS, DefaultScope
from PIL import Image

import hire_mlp_mm
from hire_mlp_mm.configure import make_data, use_data
from hire_mlp_mm.configure.changes import as_list
from hire_mlp_mm.data.layout import Layout, Split
from hire_mlp_mm.engine import load_config, train
from hire_mlp_mm.engine.builds import parts_of
from hire_mlp_mm.engine.config import read_config
from hire_mlp_mm.errors import UserError
from tests.conftest import NANO

CLASSES = ["red cell", "flask", "größe"]
SIZE = (64, 48)

# One config for each way in which a model counts classes, or a loader finds its data.
CONFIGS = {
    "a recipe of ours": "retinanet_hire_t_1x_coco",
    "masks": "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "a list of heads": "mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py",
    "queries": "mmdet::detr/detr_r50_8xb2-150e_coco.py",
    "weights of the classes, no stuff": "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py",
    "mixed images": "mmdet::yolox/yolox_tiny_8xb8-300e_coco.py",
    "a pipeline that is switched": "mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py",
    "repeated and joined, VOC's metric": "mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py",
    "two metrics": "mmdet::cityscapes/mask-rcnn_r50_fpn_1x_cityscapes.py",
    "balanced classes, LVIS": "mmdet::lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py",
    "two heads": "upernet_hire_t_ade20k",
    "heads that the config names in part": "mmseg::stdc/stdc1_4xb12-80k_cityscapes-512x1024.py",
    "weights of the classes in the loss": "mmseg::ddrnet/"
    "ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py",
    "a head in a head": "mmseg::knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py",
    "queries for pixels": "mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py",
    "two data sets of masks": "mmseg::pspnet/pspnet_r50-d8_4xb4-20k_voc12aug-512x512.py",
    "a classifier of ours": "hire_t_imagenet",
    "a preprocessor at the top": "mmpretrain::resnet/resnet18_8xb32_in1k.py",
    "a head in the backbone": "mmpretrain::vgg/vgg11_8xb32_in1k.py",
    "small images": "mmpretrain::resnet/resnet18_8xb16_cifar10.py",
    "patches": "mmpretrain::vision_transformer/vit-base-p32_64xb64_in1k-384px.py",
}


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """A data set of each task, of six images and two splits."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)

    def save(path: Path, values: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.astype(np.uint8)).save(path)

    for i in range(6):
        save(root / f"images/{i}.jpg", rng.integers(0, 255, (*SIZE[::-1], 3)))
        save(root / f"masks/{i}.png", rng.integers(0, 4, SIZE[::-1]))
        save(root / f"folders/{CLASSES[i % 3]}/{i}.jpg", rng.integers(0, 255, (*SIZE[::-1], 3)))
    names = [f"{i}.jpg" for i in range(6)]
    parts = dict(train=names[:4], val=names[4:])
    boxes = {s: Split(root / "images", coco=boxes_of(part)) for s, part in parts.items()}
    masks = {s: Split(root / "images", root / "masks", names=n) for s, n in parts.items()}
    folders = {s: Split(root / "folders") for s in parts}
    order = sorted(CLASSES)
    layouts = [
        Layout("detection", "made here", root, CLASSES, boxes, has_masks=True),
        Layout("segmentation", "made here", root, CLASSES, masks, ignore_index=3),
        Layout("classification", "a folder per class", root, order, folders),
    ]
    return {layout.task: layout for layout in layouts}


def boxes_of(names: list[str]) -> dict:
    """A box and a mask for each image, of the classes in turn."""
    images, annotations = [], []
    for i, name in enumerate(names, 1):
        images.append(dict(id=i, file_name=name, width=SIZE[0], height=SIZE[1]))
        polygon = [[8, 8, 40, 8, 40, 40, 8, 40]]
        one = dict(id=i, image_id=i, category_id=1 + i % 3, bbox=[8, 8, 32, 32], area=1024)
        annotations.append(dict(one, iscrowd=0, segmentation=polygon))
    categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)]
    return dict(images=images, annotations=annotations, categories=categories)


def layout_for(cfg: Config, layouts: dict[str, Layout]) -> Layout:
    return layouts[
        dict(mmdet="detection", mmseg="segmentation", mmpretrain="classification")[
            cfg.default_scope
        ]
    ]


def counts(model: torch.nn.Module) -> dict[str, int]:
    """The number of classes of each module that has one and tells the data's classes."""
    return {
        name: module.num_classes
        for name, module in model.named_modules()
        if isinstance(getattr(module, "num_classes", None), int)
        and module.num_classes != -1
        and "rpn_head" not in name
        and type(module).__name__ != "STDCHead"
    }


@pytest.mark.parametrize("name", CONFIGS.values(), ids=CONFIGS)
def test_any_config_gets_heads_loaders_and_evaluators(name, layouts, tmp_path):
    given = read_config(name)
    before = given.pretty_text
    layout = layout_for(given, layouts)
    cfg = use_data(given, layout, out=tmp_path / "mine.py")
    assert given.pretty_text == before
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = copy.deepcopy(cfg.model)
        model.setdefault("data_preprocessor", cfg.get("data_preprocessor"))
        found = counts(MODELS.build(model))
        for split in ("train", "val", "test"):
            dataset = DATASETS.build(cfg[f"{split}_dataloader"].dataset)
            assert list(dataset.metainfo["classes"]) == layout.classes
            sample = dataset[0]["data_samples"]
            assert max(labels_of(sample).tolist(), default=0) < 3
        for split in ("val", "test"):
            Evaluator(cfg[f"{split}_evaluator"]).dataset_meta = dataset.metainfo
    assert set(found.values()) == {3}, found
    for weights in weights_of(cfg.model):
        assert len(weights) == 4
    text = Config.fromstring(cfg.pretty_text, ".py")
    assert text.to_dict() == cfg.to_dict()


def labels_of(sample) -> torch.Tensor:
    """The labels of a packed sample, without ignored pixels."""
    if "gt_instances" in sample:
        return sample.gt_instances.labels
    if "gt_sem_seg" in sample:
        return sample.gt_sem_seg.data[sample.gt_sem_seg.data != 3]
    return sample.gt_label


def weights_of(part):
    """All weights of classes in a config."""
    values = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    if isinstance(part, dict) and isinstance(part.get("class_weight"), (list, tuple)):
        yield part["class_weight"]
    for value in values:
        yield from weights_of(value)


NANO_CHANGES = {
    "retinanet_hire_t_1x_coco": {
        "model.neck.in_channels": list(NANO["dims"])[1:],
        "model.neck.out_channels": 16,
        "model.bbox_head.in_channels": 16,
        "model.bbox_head.feat_channels": 16,
    },
    "semantic_fpn_hire_t_ade20k": {
        "model.neck.in_channels": list(NANO["dims"]),
    },
    "hire_t_imagenet": {"model.head.in_channels": NANO["dims"][-1]},
}


@pytest.mark.parametrize("name", NANO_CHANGES)
def test_the_config_trains_and_validates(name, layouts, tmp_path, guarded):
    """A recipe with a small network, as it is written to a file."""
    given = read_config(name)
    given.model.backbone.arch = NANO
    given.model.backbone.init_cfg = None
    given.merge_from_dict(NANO_CHANGES[name])
    change = make_data(given, layout_for(given, layouts), out=tmp_path / "mine.py", epochs=1)
    *_, written = change.write(name)
    cfg = load_config(str(written), str(tmp_path / "work"))
    for key in list(cfg):
        smaller(cfg[key])
    cfg.randomness = dict(seed=0)
    if cfg.default_scope == "mmpretrain":
        cfg.train_dataloader.batch_size = 2
    train(cfg)
    last = Path(cfg.work_dir, "last_checkpoint").read_text()
    assert Path(last).is_file()


def smaller(part) -> None:
    """Let pipelines make images of 64 pixels, in this process."""
    pairs = (
        part.items()
        if isinstance(part, dict)
        else enumerate(part)
        if isinstance(part, list)
        else ()
    )
    for key, value in [*pairs]:
        if key in ("scale", "crop_size") and isinstance(value, (int, tuple)):
            part[key] = 64 if isinstance(value, int) else (64, 64)
        elif key == "num_workers":
            part[key] = 0
        elif key == "persistent_workers":
            part[key] = False
        elif isinstance(value, (dict, list)):
            smaller(value)


REFUSED = [
    ("upernet_hire_t_ade20k", "detection", {}, "model EncoderDecoder is for segmentation"),
    ("mask_rcnn_hire_t_1x_coco", "detection", dict(has_masks=False), "retinanet_hire_s_1x_coco"),
    ("upernet_hire_t_ade20k", "segmentation", dict(classes=["cat"]), "background,cat"),
    (
        "mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py",
        "detection",
        {},
        "panoptic, with 53 classes of stuff",
    ),
    ("mmdet::htc/htc_r50_fpn_1x_coco.py", "detection", {}, "maps of classes beside the boxes"),
    ("mmdet::rpn/rpn_r50_fpn_1x_coco.py", "detection", {}, "RPN is no detector"),
    (
        "mmdet::fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py",
        "detection",
        {},
        "proposals",
    ),
    ("mmseg::san/san-vit-b16_voc12aug-640x640.py", "segmentation", {}, "classes as text"),
    ("mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py", "classification", {}, "MAE"),
]


@pytest.mark.parametrize(("name", "task", "changed", "said"), REFUSED)
def test_what_cannot_be_is_refused_in_a_line(name, task, changed, said, layouts, tmp_path):
    layout = copy.copy(layouts[task])
    layout.__dict__.update(changed)
    with pytest.raises(UserError, match=re.escape(said)) as error:
        use_data(read_config(name), layout, out=tmp_path / "mine.py")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


# Sizes -------------------------------------------------------------------------------------------

SIZED = {
    "retinanet_hire_t_1x_coco": ((640, 480), {"Resize": {(640, 480)}}),
    "mask_rcnn_hire_t_3x_coco": (
        (640, 640),
        {"Resize": {(640, 640)}, "RandomCrop": {(307, 480)}},
    ),
    "upernet_hire_t_ade20k": (
        (320, 256),
        {"Resize": {(1280, 256)}, "RandomResize": {(1280, 256)}, "RandomCrop": {(256, 320)}},
    ),
    "mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-769x769.py": (
        (512, 512),
        {"RandomCrop": {(512, 512)}},
    ),
    "hire_t_imagenet": (
        (128, 128),
        {"RandomResizedCrop": {128}, "CenterCrop": {128}, "ResizeEdge": {146}},
    ),
}


@pytest.mark.parametrize("name", SIZED)
def test_a_size_is_that_of_all_pipelines(name, layouts):
    """Of those that inferencers take, too; and of a segmentor's batches and windows."""
    size, expected = SIZED[name]
    given = read_config(name)
    change = make_data(given, layout_for(given, layouts), out="none.py", size=size)
    cfg = change.cfg
    found: dict[str, set] = {}
    for part in (
        cfg[key] for key in cfg if key.endswith(("dataloader", "n_pipeline", "t_pipeline"))
    ):
        for _, step in parts_of(dict(part=part)):
            value = step.get("scale", step.get("crop_size")) if "type" in step else None
            if value is not None:
                found.setdefault(step["type"], set()).add(value)
    assert {kind: found[kind] for kind in expected} == expected
    if given.default_scope == "mmseg":
        assert cfg.model.data_preprocessor.size == size[::-1]
    if cfg.model.get("test_cfg", {}).get("mode") == "slide":
        assert (cfg.model.test_cfg.crop_size, cfg.model.test_cfg.stride) == (size, (341, 341))
    assert any("_dataloader.dataset.pipeline." in line for line in change.changes)
    assert any(line.endswith("still the recipe's augmentations") for line in change.advice())


def test_a_segmentor_that_takes_images_as_they_are_gets_a_step_for_their_size(layouts, tmp_path):
    change = make_data(
        read_config("upernet_hire_nano_shapes"),
        layouts["segmentation"],
        out=tmp_path / "mine.py",
        size=(48, 32),
    )
    steps = [step.type for step in change.cfg.train_dataloader.dataset.pipeline]
    assert steps[1:4] == ["LoadAnnotations", "Resize", "RandomCrop"]
    with change.beside.written():
        pass
    for split, shape in dict(train=(32, 43), val=(48, 64), test=(48, 64)).items():
        with DefaultScope.overwrite_default_scope("mmseg"):
            sample = DATASETS.build(change.cfg[f"{split}_dataloader"].dataset)[0]
        assert sample["inputs"].shape[1:] == (32, 43)
        assert sample["data_samples"].gt_sem_seg.shape == shape  # a figure is of the whole mask
    assert change.cfg.model.data_preprocessor.size == (32, 48)
    assert "pipelines: resize to 48 x 32, in the image's own ratio" in change.changes


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        (
            "mmdet::yolox/yolox_tiny_8xb8-300e_coco.py",
            (640, 640),
            "model.data_preprocessor.batch_augments.0 has sizes of its own",
        ),
        (
            "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py",
            (640, 640),
            "model.data_preprocessor.batch_augments.0 has sizes of its own",
        ),
        ("hire_t_imagenet", (320, 240), "--size 320x240: a classifier crops squares"),
        (
            "mmpretrain::vision_transformer/vit-base-p32_64xb64_in1k-384px.py",
            (224, 224),
            "model.backbone is made for img_size=384",
        ),
    ],
)
def test_a_config_with_sizes_of_its_own_is_refused(name, size, said, layouts):
    given = read_config(name)
    with pytest.raises(UserError) as error:
        make_data(given, layout_for(given, layouts), out="none.py", size=size)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


# Classes -----------------------------------------------------------------------------------------


def test_figures_of_each_class_are_asked_for_where_they_are_that_classs_own(layouts):
    """pycocotools sorts the ids of categories, and the host names them in the file's order."""
    given, layout = read_config("retinanet_hire_t_1x_coco"), layouts["detection"]
    assert make_data(given, layout, out="none.py").cfg.val_evaluator.classwise
    layout = copy.deepcopy(layout)
    for split in layout.splits.values():
        for one in split.coco["categories"]:
            one["id"] = 9 - one["id"]
    assert not make_data(given, layout, out="none.py").cfg.val_evaluator.classwise


def test_a_head_that_has_its_number_by_default_gets_it(layouts, tmp_path):
    given = read_config("mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py")
    given.model.roi_head.mask_head.pop("num_classes")
    cfg = use_data(given, layouts["detection"], out=tmp_path / "mine.py")
    assert cfg.model.roi_head.mask_head.num_classes == 3


@pytest.mark.parametrize(("count", "topk"), [(3, (1,)), (5, (1,)), (6, (1, 5))])
def test_top_k_is_of_the_classes(count, topk, layouts, tmp_path):
    layout = copy.copy(layouts["classification"])
    layout.classes = [f"class {i}" for i in range(count)]
    cfg = use_data(read_config("mmpretrain::resnet/resnet18_8xb32_in1k.py"), layout, out="none.py")
    assert tuple(cfg.model.head.topk) == tuple(cfg.val_evaluator.topk) == topk


def test_what_is_ignored_is_ignored_everywhere(layouts, tmp_path):
    name = "mmseg::ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py"
    cfg = use_data(read_config(name), layouts["segmentation"], out=tmp_path / "mine.py")
    assert cfg.model.data_preprocessor.seg_pad_val == 3
    assert cfg.model.decode_head.ignore_index == 3
    assert {loss.ignore_label for loss in cfg.model.decode_head.loss_decode} == {3}
    assert cfg.val_evaluator.ignore_index == 3
    [crop] = [s for s in cfg.train_dataloader.dataset.pipeline if s.type == "RandomCrop"]
    assert crop.ignore_index == 3


@pytest.mark.parametrize("reduced", [True, False])
def test_zero_is_read_as_the_masks_have_it(reduced, layouts, tmp_path):
    layout = copy.copy(layouts["segmentation"])
    layout.reduce_zero_label, layout.ignore_index = reduced, 255
    cfg = use_data(read_config("upernet_hire_t_ade20k"), layout, out=tmp_path / "mine.py")
    said = re.findall(r"reduce_zero_label=(\w+)", cfg.pretty_text)
    assert len(said) > 6
    assert set(said) == {str(reduced)}


# Schedules ---------------------------------------------------------------------------------------


SCHEDULES = [
    "retinanet_hire_t_1x_coco",
    "mask_rcnn_hire_t_3x_coco",
    "hire_t_imagenet",
    "upernet_hire_t_ade20k",
    "mmdet::yolox/yolox_tiny_8xb8-300e_coco.py",
    "mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py",
    "mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py",
    "mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py",
    "mmpretrain::resnet/resnet18_8xb32_in1k.py",
]


@pytest.mark.parametrize("epochs", [1, 3, 20])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_of_any_length_warms_up_and_decays(name, epochs, layouts):
    """The learning rate reaches the recipe's, and ends as near to zero as the recipe's."""
    given = read_config(name)
    layout = many(layout_for(given, layouts), 200)
    cfg = make_data(given, layout, out="none.py", epochs=epochs).cfg
    full = given.optim_wrapper.optimizer.lr
    batch = cfg.train_dataloader.batch_size
    drops = cfg.train_dataloader.get("drop_last")
    epoch = 200 // batch if drops else -(-200 // batch)
    total = cfg.train_cfg.get("max_iters") or cfg.train_cfg.max_epochs * epoch
    assert total == epochs * epoch
    rates = simulate(cfg, full, epoch, total)
    assert max(rates) > 0.5 * full
    if epochs > 1:
        assert rates[-1] < 0.6 * full
    assert cfg.train_cfg.get("val_interval", 1) <= total


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_shorter_training_is_validated_as_often_and_saved_at_its_end(epochs, layouts):
    """Of 260 iterations, with a validation after each 65, and a line of the log after each 10."""
    given = read_config("retinanet_hire_nano_shapes")
    assert (given.train_cfg.max_iters, given.train_cfg.val_interval) == (260, 65)
    layout = many(layout_for(given, layouts), 200)
    cfg = make_data(given, layout, out="none.py", epochs=epochs).cfg
    total = cfg.train_cfg.max_iters
    assert total < 100
    assert 3.5 < total / cfg.train_cfg.val_interval < 4.5
    assert cfg.default_hooks.checkpoint.interval == total
    assert 5 <= total / cfg.default_hooks.logger.interval <= 10


def many(layout: Layout, count: int) -> Layout:
    """The same data set with so many images to train on, of which none is opened."""
    layout = copy.copy(layout)
    names = [f"{layout.classes[i % 3]}/{i}.jpg" for i in range(count)]
    content = dict(layout.splits["train"].coco or {})
    content["images"] = [dict(id=i, file_name=n, width=64, height=64) for i, n in enumerate(names)]
    coco = content if layout.task == "detection" else None
    train = Split(layout.root / "images", layout.root, coco, None if coco else names)
    layout.splits = {**layout.splits, "train": train}
    return layout


def simulate(cfg: Config, rate: float, epoch: int, total: int) -> list[float]:
    """The learning rate of each iteration, by the host's schedulers."""
    ends = {True: total // epoch, False: total}  # as a runner completes them
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        schedulers = [
            PARAM_SCHEDULERS.build(
                {"end": ends[one.get("by_epoch", True)], **copy.deepcopy(one)},
                default_args=dict(optimizer=optimizer, epoch_length=epoch),
            )
            for one in as_list(cfg.param_scheduler)
        ]
    optimizer.step()
    rates = []
    for i in range(1, total + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        for one in schedulers:
            if not one.by_epoch or i % epoch == 0:
                one.step()
    return rates


def test_a_recipe_of_its_own_length_keeps_its_schedule(layouts):
    """But for a warm-up that would last for most of it."""
    given = read_config("retinanet_hire_t_1x_coco")
    change = make_data(given, many(layouts["detection"], 4000), out="none.py")
    assert change.cfg.param_scheduler == given.param_scheduler
    assert change.cfg.train_cfg == given.train_cfg
    few = make_data(given, many(layouts["detection"], 100), out="none.py")
    assert few.cfg.param_scheduler[0].end == 12 * 50 // 10
    assert "param_scheduler.0.end: 500 -> 60" in few.changes
    assert few.cfg.auto_scale_lr == given.auto_scale_lr


def test_a_batch_is_no_larger_than_the_data(layouts):
    cfg = make_data(read_config("hire_t_imagenet"), layouts["classification"], out="none.py").cfg
    assert cfg.train_dataloader.drop_last
    assert cfg.train_dataloader.batch_size == 4  # of 6 images


# Files -------------------------------------------------------------------------------------------


def test_files_beside_the_config(layouts, tmp_path):
    """What the folder does not have is written, and what is there already stops all."""
    given = read_config("retinanet_hire_t_1x_coco")
    cfg = use_data(given, layouts["detection"], out=tmp_path / "mine.py")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine_train.json", "mine_val.json"]
    assert cfg.val_evaluator.ann_file == str(tmp_path / "mine_val.json")
    assert cfg.test_evaluator == cfg.val_evaluator
    content = json.loads((tmp_path / "mine_train.json").read_text())
    assert [c["name"] for c in content["categories"]] == CLASSES
    (tmp_path / "mine_train.json").unlink()
    with pytest.raises(UserError, match=r"mine_val\.json exists; name another config with --out"):
        use_data(given, layouts["detection"], out=tmp_path / "mine.py")
    assert [path.name for path in tmp_path.iterdir()] == ["mine_val.json"]


def test_a_test_split_of_its_own(layouts, tmp_path):
    layout = copy.copy(layouts["detection"])
    layout.splits = {**layout.splits, "test": layout.splits["train"]}
    given = read_config("retinanet_hire_t_1x_coco")
    cfg = use_data(given, layout, out=tmp_path / "mine.py")
    assert cfg.test_dataloader.dataset.ann_file == str(tmp_path / "mine_test.json")
    assert cfg.test_evaluator.ann_file == str(tmp_path / "mine_test.json")
    assert cfg.val_evaluator.ann_file == str(tmp_path / "mine_val.json")


def test_masks_of_colours_are_written_as_labels(tmp_path):
    root = tmp_path / "data"
    table = {(0, 0, 0): 255, (255, 0, 0): 0, (0, 0, 255): 1}
    for i in range(2):
        colours = np.zeros((8, 8, 3), np.uint8)
        colours[2:], colours[5:] = (255, 0, 0), (0, 0, 255)
        for name, values in ((f"images/{i}.jpg", colours), (f"masks/{i}.png", colours)):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(root / name)
    splits = {s: Split(root / "images", root / "masks") for s in ("train", "val")}
    layout = Layout("segmentation", "colours", root, ["red", "blue"], splits, mask_table=table)
    cfg = use_data(read_config("upernet_hire_t_ade20k"), layout, out=tmp_path / "mine.py")
    with DefaultScope.overwrite_default_scope("mmseg"):
        sample = DATASETS.build(cfg.val_dataloader.dataset)[1]["data_samples"]
    labels = sample.gt_sem_seg.data[0].numpy()
    assert [labels[0, 0], labels[3, 0], labels[6, 0]] == [255, 0, 1]
    assert (tmp_path / "mine_masks/val/1.png").is_file()


def test_named_images_of_classes_are_listed_with_their_labels(layouts, tmp_path):
    layout = copy.copy(layouts["classification"])
    names = {"train": [f"{c}/{i}.jpg" for i, c in enumerate(CLASSES)], "val": ["flask/4.jpg"]}
    layout.splits = {s: Split(layout.root / "folders", names=n) for s, n in names.items()}
    cfg = use_data(read_config("hire_t_imagenet"), layout, out=tmp_path / "mine.py")
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        found = DATASETS.build(cfg.train_dataloader.dataset)
    labels = {Path(found[i]["data_samples"].img_path).parent.name for i in range(3)}
    assert labels == set(CLASSES)
    for i in range(3):
        info = found.get_data_info(i)
        assert layout.classes[info["gt_label"]] == Path(info["img_path"]).parent.name


def test_a_failure_takes_away_what_was_written(layouts, tmp_path):
    """Here the pipeline fails on the first sample."""
    given = read_config("retinanet_hire_t_1x_coco")
    given.train_dataloader.dataset.pipeline.insert(1, dict(type="Resize", scale=(0, 0)))
    change = make_data(given, layouts["detection"], out=tmp_path / "mine.py")
    with pytest.raises(UserError, match="Resize") as error:
        change.write("mine")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


# Another backbone in the same step ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dims"),
    [
        ("retinanet_hire_t_1x_coco", [96, 192, 384, 768]),
        ("mmdet::retinanet/retinanet_r50_fpn_1x_coco.py", [96, 192, 384, 768]),
        ("hire_t_imagenet", [768]),
    ],
)
def test_an_arch_comes_with_its_channels(name, dims, layouts, tmp_path):
    given = read_config(name)
    layout = layout_for(given, layouts)
    cfg = use_data(given, layout, out=tmp_path / "mine.py", arch="large", checkpoint="none")
    backbone = cfg.model.backbone
    assert (backbone.type, backbone.arch, backbone.get("init_cfg")) == ("HireMLP", "large", None)
    given = cfg.model.neck.get("in_channels") or [cfg.model.head.in_channels]
    assert list(given) == dims[-len(given) :]


def test_weights_want_a_backbone_of_ours(layouts, tmp_path):
    given = read_config("mmdet::retinanet/retinanet_r50_fpn_1x_coco.py")
    with pytest.raises(UserError, match="expected --arch, too, for ResNet"):
        use_data(given, layouts["detection"], out=tmp_path / "mine.py", checkpoint="my.pth")


def test_the_host_runs_it_with_every_guarantee(layouts, tmp_path):
    given = read_config("mmdet::retinanet/retinanet_r50_fpn_1x_coco.py")
    cfg = use_data(given, layouts["detection"], out=tmp_path / "mine.py")
    assert cfg.runner_type == "hire_mlp_mm.Runner"
    assert hire_mlp_mm.__name__ in cfg.custom_imports.imports


LAZY = """
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import DefaultSampler
from mmengine.optim import MultiStepLR, OptimWrapper
from mmengine.runner import EpochBasedTrainLoop
from mmpretrain.datasets import ImageNet, PackInputs, RandomResizedCrop
from mmpretrain.evaluation import Accuracy
from mmpretrain.models import GlobalAveragePooling, ImageClassifier, LinearClsHead, ResNet
from mmpretrain.models.losses import CrossEntropyLoss
from torch.optim import SGD

default_scope = None
model = dict(
    type=ImageClassifier,
    backbone=dict(type=ResNet, depth=18),
    neck=dict(type=GlobalAveragePooling),
    head=dict(
        type=LinearClsHead, num_classes=9, in_channels=512, loss=dict(type=CrossEntropyLoss)
    ),
)
pipeline = [dict(type=LoadImageFromFile), dict(type=RandomResizedCrop, scale=32)]
pipeline.append(dict(type=PackInputs))
dataset = dict(type=ImageNet, data_root="gone", pipeline=pipeline)
sampler = dict(type=DefaultSampler, shuffle=True)
train_dataloader = dict(batch_size=2, num_workers=0, sampler=sampler, dataset=dataset)
val_dataloader = train_dataloader
val_evaluator = dict(type=Accuracy, topk=(1, 5))
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=10)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.1))
param_scheduler = dict(type=MultiStepLR, by_epoch=True, milestones=[3, 6])
"""


def test_a_config_that_imports_its_classes(layouts, tmp_path, capfd):
    (tmp_path / "lazy.py").write_text(LAZY)
    given = Config.fromfile(tmp_path / "lazy.py")
    change = make_data(given, layouts["classification"], out=tmp_path / "mine.py")
    *_, written = change.write("lazy.py")
    cfg = read_config(str(written))
    kinds = [cfg.train_dataloader.dataset.type, cfg.val_evaluator.type, cfg.train_cfg.type]
    assert kinds == ["CustomDataset", "Accuracy", "EpochBasedTrainLoop"]
    assert (cfg.default_scope, cfg.model.head.num_classes) == ("mmpretrain", 3)
    assert "val_evaluator: topk [1]" in change.changes  # still Accuracy
    assert "registry" not in "".join(capfd.readouterr())
