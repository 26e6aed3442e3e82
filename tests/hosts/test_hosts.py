"""Do OpenMMLab's other hosts train with the backbone, after `hire-mlp swap`? `make test-hosts`."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import MODELS, RUNNERS, DefaultScope
from mmengine.structures import InstanceData
from PIL import Image

from hire_mlp_mm.configure import make_swap
from hire_mlp_mm.engine.config import read_config
from hire_mlp_mm.errors import UserError

pytest.importorskip("mmpose")
SHALLOW = dict(depths=(1, 1, 1, 1), dims=(64, 128, 320, 512))  # tiny's channels
POSE = "mmpose::body_2d_keypoint"
HEAT_MAPS = f"{POSE}/topdown_heatmap/coco"


def swapped(config: str, folder) -> Config:
    """The config that `hire-mlp swap` writes, with a shallow network."""
    (folder / "mine.py").write_text(make_swap(read_config(config), "tiny", "none").text(config))
    cfg = Config.fromfile(folder / "mine.py")
    cfg.model.backbone.update(arch=SHALLOW, drop_path_rate=0.0)
    return cfg


@pytest.fixture
def people(tmp_path):
    """A data set of four photographs with a person's 17 keypoints each, as COCO has them."""
    rng = np.random.default_rng(0)
    images, persons = [], []
    for i in range(1, 5):
        name = f"{i:012}.jpg"
        Image.fromarray(rng.integers(0, 256, (96, 80, 3), np.uint8)).save(tmp_path / name)
        images.append(dict(id=i, file_name=name, width=80, height=96))
        points = [value for k in range(17) for value in (10 + 3 * k, 10 + 4 * k, 2)]
        person = dict(keypoints=points, num_keypoints=17, bbox=[5, 5, 60, 80])
        persons.append(dict(person, id=i, image_id=i, category_id=1, area=4800, iscrowd=0))
    kinds = [dict(id=1, name="person")]
    content = dict(images=images, annotations=persons, categories=kinds)
    (tmp_path / "people.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize(
    "config",
    [
        f"{HEAT_MAPS}/td-hm_res50_8xb64-210e_coco-256x192.py",
        f"{HEAT_MAPS}/td-hm_hrnet-w32_8xb64-210e_coco-256x192.py",
        f"{POSE}/rtmpose/coco/rtmpose-t_8xb256-420e_coco-256x192.py",
    ],
)
def test_a_pose_estimator_trains_and_is_tested(config, people):
    cfg = swapped(config, people)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.update(data_root=str(people), ann_file="people.json", bbox_file="")
        loader.dataset.data_prefix = dict(img="")
    steps = cfg.train_dataloader.dataset.pipeline  # albumentations is no part of MMPose
    cfg.train_dataloader.dataset.pipeline = [s for s in steps if s.type != "Albumentation"]
    cfg.val_evaluator.ann_file = str(people / "people.json")
    cfg.test_cfg = cfg.test_dataloader = cfg.test_evaluator = None
    cfg.train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
    cfg.update(work_dir=str(people / "work"), param_scheduler=[], custom_hooks=[])
    runner = RUNNERS.build(cfg)
    runner.model.init_weights()
    before = {name: p.detach().clone() for name, p in runner.model.backbone.named_parameters()}
    runner.train()
    after = dict(runner.model.backbone.named_parameters())
    assert [name for name, p in before.items() if torch.equal(p, after[name])] == []
    assert "val/coco/AP" in runner.message_hub.log_scalars
    assert list((people / "work").glob("*.pth"))


@pytest.mark.parametrize(
    ("config", "index"),
    [
        (f"{HEAT_MAPS}/td-hm_res50_8xb64-210e_coco-256x192.py", 3),  # stride 32
        (f"{HEAT_MAPS}/td-hm_ViTPose-small_8xb64-210e_coco-256x192.py", 2),  # stride 16
    ],
)
def test_a_pose_estimator_keeps_the_stride_of_its_heat_maps(config, index, tmp_path):
    assert list(swapped(config, tmp_path).model.backbone.out_indices) == [index]


def yolo_batch(kind):
    meta = dict(batch_input_shape=(128, 128), img_shape=(128, 128))
    boxes = torch.tensor([[i, 0, 20.0, 30.0, 90.0, 100.0] for i in range(2)])
    images = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8)
    if "PPYOLOE" in kind:  # its own preprocessor wants a list
        images = list(images)
    return dict(inputs=images, data_samples=dict(bboxes_labels=boxes, img_metas=[meta] * 2))


def text_batch(kind):
    from mmocr.structures import TextDetDataSample

    meta = dict(img_shape=(128, 128), ori_shape=(128, 128))
    samples = [TextDetDataSample(metainfo=meta) for _ in range(2)]
    for sample in samples:
        corners = [np.array([20, 30, 100, 30, 100, 60, 20, 60], np.float32)]
        fields = dict(polygons=corners, labels=torch.zeros(1), ignored=torch.zeros(1, dtype=bool))
        sample.gt_instances = InstanceData(**fields)
    images = [torch.randint(0, 256, (3, 128, 128), dtype=torch.uint8) for _ in samples]
    return dict(inputs=images, data_samples=samples)


def clip_batch(kind):
    from mmaction.structures import ActionDataSample

    samples = [ActionDataSample().set_gt_labels(i) for i in range(2)]
    clips = [torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8) for _ in samples]
    return dict(inputs=clips, data_samples=samples)


@pytest.mark.parametrize(
    ("config", "batch"),
    [
        ("mmyolo::yolov5/yolov5_n-v61_syncbn_fast_8xb16-300e_coco.py", yolo_batch),
        ("mmyolo::yolov6/yolov6_n_syncbn_fast_8xb32-300e_coco.py", yolo_batch),
        ("mmyolo::yolov7/yolov7_tiny_syncbn_fast_8x16b-300e_coco.py", yolo_batch),
        ("mmyolo::yolov8/yolov8_n_syncbn_fast_8xb16-500e_coco.py", yolo_batch),
        ("mmyolo::ppyoloe/ppyoloe_s_fast_8xb32-300e_coco.py", yolo_batch),
        ("mmyolo::rtmdet/rtmdet_s_syncbn_fast_8xb32-300e_coco.py", yolo_batch),
        ("mmocr::textdet/dbnet/dbnet_resnet18_fpnc_1200e_icdar2015.py", text_batch),
        ("mmocr::textdet/psenet/psenet_resnet50_fpnf_600e_icdar2015.py", text_batch),
        (
            "mmaction::recognition/trn/trn_imagenet-pretrained-r50_8xb16-1x1x8-50e_sthv2-rgb.py",
            clip_batch,
        ),
    ],
    ids=lambda value: value.split("/")[1] if isinstance(value, str) else None,
)
def test_a_model_of_another_host_trains_a_step(config, batch, tmp_path):
    cfg = swapped(config, tmp_path)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model).train()
        for counter in ("epoch", "iter"):  # as the runner does; some ask
            MessageHub.get_current_instance().update_info(counter, 0)
        data = model.data_preprocessor(batch(cfg.model.data_preprocessor.type), training=True)
        loss, _ = model.parse_losses(model(**data, mode="loss"))
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("mmocr::textrecog/satrn/satrn_shallow-small_5e_st_mj.py", "gives strides"),
        ("mmocr::textdet/maskrcnn/mask-rcnn_resnet50_fpn_160e_icdar2015.py", "no `backbone`"),
        (
            "mmaction::recognition/slowonly/slowonly_r50_8xb16-4x16x1-256e_kinetics400-rgb.py",
            "cannot be run on an image alone",
        ),
    ],
    ids=lambda value: value.split("/")[1] if "/" in value else None,
)
def test_what_cannot_be_swapped_is_refused_in_a_line(config, said, tmp_path):
    with pytest.raises(UserError, match=said) as caught:
        swapped(config, tmp_path)
    assert len(str(caught.value).splitlines()) == 1
