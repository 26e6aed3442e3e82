"""Detection of blood cells (BCCD), from scratch, the same for every backbone: RetinaNet.

Photographs of 640 x 480 are shown at 320 x 240. Trained on the 205 of the data set's `train`; what
is tested are the 159 of its `val` and `test`, and only the last figure counts.
"""

_base_ = ["../../_base_/retinanet.py", "../../_base_/detection.py", "./training.py"]

custom_imports = dict(imports=["hire_mlp_mm", "study_parts"])
custom_hooks = [*_base_.custom_hooks, *_base_.study_hooks]

side, channels, convs, max_iters = dict(nano=(320, 64, 2, 500), paper=(640, 256, 4, 5000))[
    "{{$STUDY_SIZE:nano}}"
]
input_size = (side * 4 // 5, side)  # of 3 to 4, padded to a multiple of 32
model = dict(
    neck=dict(out_channels=channels),
    bbox_head=dict(
        num_classes=3, in_channels=channels, feat_channels=channels, stacked_convs=convs
    ),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(side, side), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(side, side), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(
        type="PackDetInputs",
        # `instances`: the metric has no file of the boxes and gathers them itself
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "instances"),
    ),
]
photographs = dict(
    type="XMLDataset",
    data_root="{{$STUDY_DATA:data/}}/bccd",
    data_prefix=dict(sub_data_root=""),
    metainfo=dict(classes=("RBC", "WBC", "Platelets")),
)
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        **photographs,
        ann_file="ImageSets/Main/train.txt",
        filter_cfg=dict(bbox_min_size=1),  # one box of the data set has no area
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    dataset=dict(
        type="ConcatDataset",
        datasets=[
            dict(
                **photographs,
                ann_file=f"ImageSets/Main/{split}.txt",
                test_mode=True,
                pipeline=test_pipeline,
            )
            for split in ("val", "test")
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="CocoMetric", metric="bbox")
test_evaluator = val_evaluator

train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=max_iters // 5)
param_scheduler = [
    dict(_base_.warm_up, end=50),
    dict(_base_.cosine, end=max_iters),
]
default_hooks = _base_.hooks
log_processor = dict(by_epoch=False)
