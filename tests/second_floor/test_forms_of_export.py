"""Do the export forms give what the hosts' `predict` gives, and is what has no form refused?"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.ops import batched_nms
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch.nn import functional as F

from hire_mlp_mm.deploy import boxes, matrix
from hire_mlp_mm.deploy.check import Agreement, compare_one, predict_by_host
from hire_mlp_mm.deploy.exporting import Preprocessed, randomize
from hire_mlp_mm.deploy.facts import facts_of
from hire_mlp_mm.deploy.formats import as_sequence
from hire_mlp_mm.deploy.forms import NoFormError, form_of
from hire_mlp_mm.engine.config import read_config
from hire_mlp_mm.errors import UserError
from tests.conftest import ROOT

# One block for each stage; heads of 8 channels and 5 classes.
ARCH = dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), region_sizes=(4, 3, 3, 2))
CHANNELS = 8
NARROW = dict(in_channels=CHANNELS, feat_channels=CHANNELS, num_classes=5)
STRIDES = [8, 16, 32, 64, 128]
SQUARES = dict(type="AnchorGenerator", ratios=[1.0], octave_base_scale=8, scales_per_octave=1)
SQUARES |= dict(strides=STRIDES)
POINTS = dict(type="MlvlPointGenerator", offset=0, strides=STRIDES)
QUALITY = dict(type="QualityFocalLoss", use_sigmoid=True)
DISTANCES = dict(type="DistancePointBBoxCoder")
ONE_STAGE: dict[str, dict[str, Any]] = dict(
    retinanet={},
    softmax=dict(loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False)),
    fcos=dict(type="FCOSHead", strides=STRIDES),
    fcos_normed=dict(type="FCOSHead", strides=STRIDES, norm_on_bbox=True, centerness_on_reg=True),
    atss=dict(type="ATSSHead", anchor_generator=SQUARES),
    gfl=dict(type="GFLHead", anchor_generator=SQUARES, loss_cls=QUALITY, reg_max=7),
    rtmdet=dict(
        type="RTMDetSepBNHead", anchor_generator=POINTS, bbox_coder=DISTANCES, loss_cls=QUALITY
    ),
)
TWO_STAGES = ("faster_rcnn", "mask_rcnn", "cascade_mask_rcnn")
SIZES = ((64, 64), (75, 203), (161, 97))


def one_stage(name: str, **test_cfg: Any) -> ConfigDict:
    """A narrow detector of one stage."""
    model = Config.fromfile(ROOT / "configs" / "_base_" / "retinanet.py").model
    model.backbone.arch = ARCH
    model.neck.update(in_channels=[CHANNELS] * 3, out_channels=CHANNELS)
    head = dict(NARROW, stacked_convs=1, **ONE_STAGE[name])
    head |= dict(norm_cfg=dict(type="BN")) if "type" in head else {}
    model.bbox_head = head if "type" in head else dict(model.bbox_head, **head)
    model.test_cfg.update(test_cfg)
    return model


def two_stages(name: str, rcnn: Any = None, rpn: Any = None, **options: Any) -> ConfigDict:
    """A narrow detector of two stages; options are of its box heads, or `mask_...` of the other."""
    file = "mask_rcnn" if name == "faster_rcnn" else name
    model = Config.fromfile(ROOT / "configs" / "_base_" / f"{file}.py").model
    model.backbone.arch = ARCH
    model.neck.update(in_channels=[CHANNELS] * 4, out_channels=CHANNELS)
    model.rpn_head.update(in_channels=CHANNELS, feat_channels=CHANNELS)
    heads = model.roi_head
    for extractor in (heads.bbox_roi_extractor, heads.mask_roi_extractor):
        extractor.out_channels = CHANNELS
    several = isinstance(heads.bbox_head, list)
    for head in heads.bbox_head if several else [heads.bbox_head]:
        head.update(in_channels=CHANNELS, fc_out_channels=16, num_classes=5)
        head.update({key: x for key, x in options.items() if not key.startswith("mask_")})
        if several:
            head.update(conv_out_channels=CHANNELS, num_shared_convs=1)
    heads.mask_head.update(in_channels=CHANNELS, conv_out_channels=CHANNELS, num_classes=5)
    heads.mask_head.update(num_convs=1, class_agnostic=options.get("mask_class_agnostic", False))
    if name == "faster_rcnn":
        model.type = "FasterRCNN"
        del heads["mask_head"], heads["mask_roi_extractor"]
    model.test_cfg.rpn.update(dict(nms_pre=50, max_per_img=30) | (rpn or {}))
    model.test_cfg.rcnn.update(rcnn or {})
    return model


def built(cfg: ConfigDict, scope: str = "mmdet") -> Any:
    """A model with random weights that matter, for inference."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(cfg)
    randomize(model)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval().requires_grad_(False)


def photograph(height: int, width: int) -> np.ndarray:
    random = np.random.default_rng(height)
    return random.integers(0, 256, (height, width, 3), np.uint8)


def assert_host(model: Any, sizes: Any = SIZES) -> list[int]:
    """The form finds what the host finds, no more and no less; return how much on each image."""
    masks = hasattr(model, "roi_head") and model.roi_head.with_mask
    form, counts = form_of(model, pasted=masks), []
    for size in sizes:
        wanted, (_, image), probabilities = predict_by_host(model, photograph(*size))
        with torch.no_grad():
            found = dict(zip(form.names, form.module(image), strict=True))
        assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)
        agreement = Agreement()
        compare_one(found, wanted, probabilities, form, agreement)
        assert not agreement.explained
        assert agreement.box < 1e-3
        assert max(agreement.score, agreement.mask) < 1e-5
        assert not masks or found["pasted"].shape == wanted.masks.shape == (len(wanted), *size)
        counts.append(len(wanted))
    return counts


@pytest.mark.parametrize("name", ONE_STAGE)
def test_one_stage(name):
    assert max(assert_host(built(one_stage(name)))) > 50


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("faster_rcnn", {}),
        ("faster_rcnn", dict(reg_class_agnostic=True)),
        ("mask_rcnn", {}),
        ("mask_rcnn", dict(mask_class_agnostic=True)),
        ("cascade_mask_rcnn", {}),
        ("cascade_mask_rcnn", dict(reg_class_agnostic=True)),
    ],
)
def test_two_stages(name, options):
    assert min(assert_host(built(two_stages(name, **options)))) > 5


AGNOSTIC = dict(type="nms", iou_threshold=0.5, class_agnostic=True)


@pytest.mark.parametrize("name", ["retinanet", "gfl", "mask_rcnn", "cascade_mask_rcnn"])
@pytest.mark.parametrize(
    ("cfg", "most"),
    [
        (dict(score_thr=0.999), 0),
        (dict(max_per_img=1), 1),
        (dict(nms=AGNOSTIC), 100),
        (dict(max_per_img=100_000, nms=dict(type="nms", iou_threshold=0.99)), 100_000),
    ],
)
def test_test_cfg(name, cfg, most):
    """Nothing found, one box, the boxes of all classes together, and many."""
    model = built(one_stage(name, **cfg) if name in ONE_STAGE else two_stages(name, rcnn=cfg))
    counts = assert_host(model, SIZES[:2])
    assert max(counts) <= most
    assert most == 0 or min(counts) > 0


@pytest.mark.parametrize("smallest", [-1, 0, 20, 1000])
@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_smallest_box(name, smallest):
    """At 1000 pixels nothing is left, of a detector of two stages not even proposals."""
    cfg = dict(min_bbox_size=smallest)
    model = built(one_stage(name, **cfg) if name in ONE_STAGE else two_stages(name, rpn=cfg))
    counts = assert_host(model, SIZES[:2])
    assert (max(counts) == 0) == (smallest == 1000)


# The numbers of which a graph does not know how many there are ------------------------------------


finite = st.floats(0, 1, width=32)
scores = st.lists(finite, max_size=12).map(torch.tensor)


@settings(deadline=None)
@given(scores=scores, limit=st.integers(1, 15))
def test_best(scores, limit):
    index = boxes.best(scores, limit)
    expected = scores.sort(descending=True).values[:limit]
    assert scores[index].tolist() == expected.tolist()
    assert len(set(index.tolist())) == len(index)


@settings(deadline=None)
@given(count=st.integers(0, 12), limit=st.integers(0, 15))
def test_first(count, limit):
    x = torch.arange(3 * count).view(count, 3)
    assert boxes.first(x, limit).tolist() == x[:limit].tolist()


@settings(deadline=None)
@given(
    corners=st.lists(
        st.tuples(*[st.integers(0, 20)] * 4, st.integers(0, 2)), min_size=1, max_size=12
    ),
    agnostic=st.booleans(),
    threshold=st.sampled_from([0.3, 0.5, 0.9]),
    limit=st.integers(1, 15),
)
def test_suppress(corners, agnostic, threshold, limit):
    """As mmcv's function, on boxes of whole pixels, where overlaps at the threshold are common."""
    corner = torch.tensor(corners, dtype=torch.float32).reshape(-1, 5)
    given_boxes = torch.cat([corner[:, :2], corner[:, :2] + corner[:, 2:4]], 1)
    groups, scores = corner[:, 4].long(), torch.linspace(1, 0.1, len(corner))
    nms = dict(type="nms", iou_threshold=threshold, class_agnostic=agnostic)
    cfg = ConfigDict(nms=nms, max_per_img=limit)
    kept = boxes.suppress(given_boxes, scores, groups, cfg)
    _, expected = batched_nms(given_boxes, scores, groups, dict(nms))
    assert kept.tolist() == expected[:limit].tolist()


def test_paste():
    """As sampling at every pixel, for boxes that leave the image, and one without extent."""
    torch.manual_seed(0)
    masks = torch.rand(5, 28, 28)
    places = [[3.2, 4.7, 30.1, 22.9], [-9.5, -3.0, 50.0, 60.0], [0, 0, 40, 31], [7, 7, 8, 9]]
    places += [[5.0, 2.0, 5.0, 20.0]]
    given_boxes = torch.tensor(places)
    y, x = torch.meshgrid(torch.arange(31) + 0.5, torch.arange(40) + 0.5, indexing="ij")
    x0, y0, x1, y1 = given_boxes[:, :, None, None].unbind(1)
    grid = torch.stack([(x - x0) / (x1 - x0) * 2 - 1, (y - y0) / (y1 - y0) * 2 - 1], -1)
    grid[grid.isinf()] = 0  # of the box without extent, as the host has it
    expected = F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]
    assert torch.allclose(boxes.paste(masks, given_boxes, (31, 40)), expected, atol=1e-4)


# Segmentors, classifiers, and images as they are loaded -------------------------------------------

MAPS = dict(in_channels=[CHANNELS] * 4, in_index=[0, 1, 2, 3], channels=8, num_classes=5)
MAP = dict(in_channels=CHANNELS, in_index=3, channels=8, num_classes=5)
SEGMENTORS: dict[str, Any] = dict(
    upernet=dict(type="UPerHead", **MAPS),
    corners=dict(type="UPerHead", align_corners=True, **MAPS),
    one_class=dict(type="FCNHead", **dict(MAP, num_classes=2), out_channels=1, threshold=0.3),
    # Heads that give more than the logits, and two in a row.
    encnet=dict(type="EncHead", num_codes=4, **dict(MAPS, in_channels=[CHANNELS] * 4)),
    danet=dict(type="DAHead", pam_channels=4, **MAP),
    ocrnet=[dict(type="FCNHead", **MAP), dict(type="OCRHead", ocr_channels=4, **MAP)],
)


def whole_config(name: str, **changes: Any) -> Config:
    """A recipe with a narrow backbone, and with changes of its model."""
    cfg = Config.fromfile(ROOT / "configs" / f"{name}.py")
    cfg.model.backbone.arch = ARCH
    for key, value in changes.items():
        cfg.model[key] = value  # `update` would merge
    return cfg


def segmentor(name: str) -> Config:
    head = SEGMENTORS[name]
    row = dict(type="CascadeEncoderDecoder", num_stages=2) if isinstance(head, list) else {}
    return whole_config("upernet_hire_s_ade20k", decode_head=head, auxiliary_head=None, **row)


def classifier(**head: Any) -> Config:
    head = dict(type="LinearClsHead", in_channels=CHANNELS, num_classes=5) | head
    return whole_config("hire_s_imagenet", head=head, train_cfg=None)


def loaded_image(height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(photograph(height, width)).permute(2, 0, 1).contiguous()


@pytest.mark.parametrize("name", SEGMENTORS)
def test_segmentor(name):
    """Its logits are those of the host's predictions, of a batch, too."""
    cfg = segmentor(name)
    model = built(cfg.model, "mmseg")
    form = form_of(model)
    images = [loaded_image(75, 203), loaded_image(75, 203).flip(1)]
    given = model.data_preprocessor(dict(inputs=images))["inputs"]
    with torch.no_grad():
        found = form.module(given)
        wanted = model.predict(given)
    for ours, theirs in zip(found, wanted, strict=True):
        ours = ours.sigmoid() if len(ours) == 1 else ours  # the host gives these as probabilities
        assert torch.allclose(ours, theirs.seg_logits.data, atol=1e-6)


def test_classifier():
    model = built(classifier().model, "mmpretrain")
    given = model.data_preprocessor(dict(inputs=[loaded_image(64, 96)] * 2))["inputs"]
    with torch.no_grad():
        found, wanted = form_of(model).module(given), model.predict(given)
    assert found.sum(1).tolist() == pytest.approx([1, 1])
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(ours, theirs.pred_score, atol=1e-6)


@pytest.mark.parametrize(
    ("cfg", "scope"),
    [
        (segmentor("upernet"), "mmseg"),
        (classifier(), "mmpretrain"),
        (whole_config("retinanet_hire_s_1x_coco", **one_stage("retinanet")), "mmdet"),
    ],
)
def test_normalising_in_the_graph(cfg, scope):
    model = built(cfg.model, scope)
    form = form_of(model)
    within = Preprocessed(form.module, facts_of(cfg, model, task=form.task))
    image = loaded_image(64, 96)
    given = model.data_preprocessor(dict(inputs=[image]))["inputs"]
    with torch.no_grad():
        found, wanted = as_sequence(within(image[None])), as_sequence(form.module(given))
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


# Refused -----------------------------------------------------------------------------------------

SOFT = dict(nms=dict(type="soft_nms", iou_threshold=0.5))
REFUSED = {
    "mmdet::tood/tood_r50_fpn_1x_coco.py": "TOODHead .* _predict_by_feat_single is TOODHead's own",
    "mmdet::yolox/yolox_tiny_8xb8-300e_coco.py": "YOLOXHead .* predict_by_feat is YOLOXHead's own",
    "mmdet::detr/detr_r50_8xb2-150e_coco.py": "DETR has no export form: predict is",
    "mmdet::htc/htc-without-semantic_r50_fpn_1x_coco.py": "HybridTaskCascadeRoIHead .* own",
    "mmdet::point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py": "PointRendRoIHead .* own",
    "mmdet::seesaw_loss/mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1.py": "SeesawLoss has an",
    "mmdet::fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py": "FastRCNN .*: it has no rpn_head",
    "mmdet::rpn/rpn_r50_fpn_1x_coco.py": "RPNHead",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    """In a line, with the reason, and without a look at the weights."""
    model = read_config(name).model
    model.backbone = dict(type="HireMLP", arch=ARCH)
    with torch.device("meta"):
        model = built(model)
    with pytest.raises(NoFormError, match=REFUSED[name]) as error:
        form_of(model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("cfg", "scope", "reason"),
    [
        (one_stage("retinanet", **SOFT), "mmdet", "RetinaHead: test_cfg.nms=.*soft_nms.*expected"),
        (two_stages("mask_rcnn", rcnn=SOFT), "mmdet", "StandardRoIHead: test_cfg.nms=.*soft_nms"),
        (two_stages("mask_rcnn", rcnn=dict(mask_thr_binary=-1)), "mmdet", "mask_thr_binary: exp"),
        (one_stage("retinanet", nms_pre=-1), "mmdet", "expected max_per_img and nms_pre above 0"),
        (classifier(type="MultiLabelLinearClsHead").model, "mmpretrain", "predict is MultiLabel"),
    ],
)
def test_refused_settings(cfg, scope, reason):
    with pytest.raises(NoFormError, match=reason):
        form_of(built(cfg, scope))


@pytest.mark.parametrize(
    ("cfg", "scope"),
    [(one_stage("retinanet"), "mmdet"), (classifier().model, "mmpretrain")],
)
def test_nothing_to_paste(cfg, scope):
    with pytest.raises(UserError, match="pasted masks"):
        form_of(built(cfg, scope), pasted=True)


# The table ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cfg", "scope", "kind"),
    [
        (one_stage("retinanet"), "mmdet", "FPN + RetinaHead"),
        (one_stage("gfl"), "mmdet", "FPN + GFLHead"),
        (
            two_stages("mask_rcnn"),
            "mmdet",
            "FPN + RPNHead + StandardRoIHead + Shared2FCBBoxHead + FCNMaskHead",
        ),
        (
            two_stages("cascade_mask_rcnn"),
            "mmdet",
            "FPN + RPNHead + CascadeRoIHead + ConvFCBBoxHead + FCNMaskHead",
        ),
        (segmentor("ocrnet").model, "mmseg", "FCNHead + OCRHead"),
        (classifier().model, "mmpretrain", "GlobalAveragePooling + LinearClsHead"),
    ],
)
@pytest.mark.parametrize("sort", [".onnx", "int8"])
@pytest.mark.parametrize("known", ["validated", "available", "", "fails: TypeError: sizes"])
def test_table(cfg, scope, kind, known, sort, monkeypatch):
    """Its kinds are named by the parts of a model, and what is in it is asked before a trace."""
    said: list[str] = []
    model = built(cfg, scope)
    assert matrix.kind_of(model) == kind
    rows = {kind: {sort: known}} if known else {}
    monkeypatch.setattr(matrix, "table", lambda: rows)
    if known.startswith("fails"):
        line = rf"{re.escape(kind)} does not go into {sort} files: {known}"
        with pytest.raises(NoFormError, match=line):
            matrix.check_standing(model, sort, said.append)
    else:
        matrix.check_standing(model, sort, said.append)
    assert len(said) == (not known)  # nobody has tried it


def test_table_as_it_is():
    for results in matrix.table().values():
        assert set(results) == {".onnx", ".pt2", "int8"}
        for result in results.values():
            assert result in ("validated", "available") or result.startswith(
                ("fails: ", "not tried: ")
            )


@pytest.mark.parametrize(
    "kind",
    [
        "FPN + RetinaHead",
        "FPN + FCOSHead",
        "FPN + RPNHead + StandardRoIHead + Shared2FCBBoxHead",
        "FPN + RPNHead + StandardRoIHead + Shared2FCBBoxHead + FCNMaskHead",
        "FPN + RPNHead + CascadeRoIHead + ConvFCBBoxHead + FCNMaskHead",
        "PSPHead",
    ],
)
def test_families_that_are_validated(kind):
    assert matrix.standing(kind, ".onnx") == "validated"
