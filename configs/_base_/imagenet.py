"""ImageNet-1K, 224 x 224: the augmentation of the authors' train.py (timm's, by MMPretrain).

The data root is $IMAGENET_ROOT, or data/imagenet/ without it; in it lie train/ and val/, a folder
for each class.

RandAugment is timm's rand-m9-mstd0.5-inc1. train.py asks for colour jitter 0.4, too, but timm
leaves it out where RandAugment acts, so there is none here. MMPretrain differs from timm in small
things: OpenCV decodes and warps, the noise of erased pixels is cut to 0..255, and the partners of
mixup are drawn, where timm takes the batch in reverse.
"""

data_root = "{{$IMAGENET_ROOT:data/imagenet/}}"
# The transforms see BGR images.
bgr_mean = [103.53, 116.28, 123.675]
bgr_std = [57.375, 57.12, 58.395]

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", scale=224, backend="pillow", interpolation="bicubic"),
    dict(type="RandomFlip", prob=0.5),
    dict(
        type="RandAugment",
        policies="timm_increasing",
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(pad_val=[round(x) for x in bgr_mean], interpolation="bicubic"),
    ),
    dict(
        type="RandomErasing",
        erase_prob=0.25,
        mode="rand",  # timm's `pixel`: noise of the data's mean and spread
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=bgr_mean,
        fill_std=bgr_std,
    ),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="ResizeEdge", scale=256, edge="short", backend="pillow", interpolation="bicubic"),
    dict(type="CenterCrop", crop_size=224),
    dict(type="PackInputs"),
]

train_dataloader = dict(
    batch_size=128,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type="RepeatAugSampler", num_repeats=3),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="ImageNet", data_root=data_root, split="train", pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="ImageNet", data_root=data_root, split="val", pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="Accuracy", topk=(1, 5))
test_evaluator = val_evaluator
