"""Classification of CIFAR-10, from scratch, the same for every backbone.

Images of 32 x 32 are shown at 64 x 64: the stages then have maps of 16, 8, 4 and 2, with regions
of 4, 3, 3 and 2 tokens. So tokens cross regions in the first three stages, and the last region is
padded in the second (8 to 9) and third (4 to 6). At 32 x 32 the last two stages would have maps
smaller than a region.
"""

_base_ = ["../../_base_/classification.py", "./training.py"]

custom_imports = dict(imports=["hire_mlp_mm", "study_parts"])
custom_hooks = [*_base_.custom_hooks, *_base_.study_hooks]

side, batch, max_iters = dict(nano=(64, 128, 1950), paper=(224, 64, 24000))["{{$STUDY_SIZE:nano}}"]
input_size = (side, side)
model = dict(
    type="ImageClassifier",
    data_preprocessor=dict(
        type="ClsDataPreprocessor",
        num_classes=10,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=10,
        init_cfg=dict(type="TruncNormal", layer="Linear", std=0.02),
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1, mode="original"),
        cal_acc=False,
    ),
)

data_root = "{{$STUDY_DATA:data/}}/cifar10"
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomCrop", crop_size=32, padding=4),
    dict(type="RandomFlip", prob=0.5),
    dict(type="Resize", scale=input_size),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=input_size),
    dict(type="PackInputs"),
]
train_dataloader = dict(
    batch_size=batch,
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="CustomDataset", data_root=data_root, data_prefix="train", pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    batch_size=500,
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="CustomDataset", data_root=data_root, data_prefix="test", pipeline=test_pipeline
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="Accuracy", topk=(1,))
test_evaluator = val_evaluator

train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=max_iters // 5)
param_scheduler = [
    dict(_base_.warm_up, end=200),
    dict(_base_.cosine, end=max_iters),
]
default_hooks = _base_.hooks
log_processor = dict(by_epoch=False)
