"""Segmentation of street scenes (CamVid), from scratch, the same for every backbone: UperNet.

Photographs of 480 x 360 are shown at 240 x 180; the masks that are compared have their full size.
Trained on the 367 of `train`; what is tested are the 233 of `test`, and only the last figure
counts.
"""

_base_ = ["../../_base_/upernet.py", "../../_base_/segmentation.py", "./training.py"]

custom_imports = dict(imports=["hire_mlp_mm", "study_parts"])
custom_hooks = [*_base_.custom_hooks, *_base_.study_hooks]

width, channels, max_iters = dict(nano=(240, 64, 600), paper=(480, 512, 7800))[
    "{{$STUDY_SIZE:nano}}"
]
scale = (width, width * 3 // 4)
input_size = (scale[1], scale[0])
void = 11  # its index in the masks
heads = dict(num_classes=11, channels=channels, ignore_index=void)
model = dict(
    data_preprocessor=dict(size=input_size, seg_pad_val=void),
    decode_head=heads,
    auxiliary_head=heads,
)

classes = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car"),
    *("pedestrian", "bicyclist"),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="Resize", scale=scale),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=scale),
    dict(type="LoadAnnotations"),  # after the resizing, which leaves the masks alone so
    dict(type="PackSegInputs"),
]
photographs = dict(
    type="BaseSegDataset",
    data_root="{{$STUDY_DATA:data/}}/camvid",
    img_suffix=".jpg",
    seg_map_suffix=".png",
    metainfo=dict(classes=classes),
    ignore_index=void,
    reduce_zero_label=False,
)
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        **photographs,
        data_prefix=dict(img_path="images/train", seg_map_path="annotations/train"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    dataset=dict(
        **photographs,
        data_prefix=dict(img_path="images/test", seg_map_path="annotations/test"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"], ignore_index=void)
test_evaluator = val_evaluator

train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=max_iters // 3)
param_scheduler = [
    dict(_base_.warm_up, end=50),
    dict(_base_.cosine, end=max_iters),
]
default_hooks = _base_.hooks
