"""UperNet with a narrow head on a small HireMLP, from scratch; part of `make demo`.

Data: 400 images of tools/shapes.py, 100 held out. 120 iterations of 8 images.
Measured, seed 0: 0.836 mIoU over background, circle, square and triangle.

    python tools/shapes.py FOLDER
    SHAPES_ROOT=FOLDER/ python tools/train.py configs/upernet_hire_nano_shapes.py
"""

_base_ = ["./_base_/upernet.py", "./_base_/shapes.py", "./_base_/segmentation.py"]

dims = (32, 64, 128, 192)
num_classes = 4

model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(arch=dict(_delete_=True, depths=(2, 2, 2, 2), dims=dims)),
    decode_head=dict(in_channels=list(dims), channels=64, num_classes=num_classes),
    auxiliary_head=dict(in_channels=dims[2], channels=64, num_classes=num_classes),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
dataset = dict(
    type="BaseSegDataset",
    metainfo=dict(
        classes=("background", *_base_.shape_classes),
        palette=[(0, 0, 0), *_base_.shape_palette],
    ),
    img_suffix=".jpg",
    seg_map_suffix=".png",
)
train_dataloader = dict(
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator

max_iters = 120
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=30)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, by_epoch=False, begin=0, end=20),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=20, end=max_iters, eta_min=1e-5),
]
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.01),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=max_iters, max_keep_ckpts=1),
)
log_processor = dict(window_size=10)
