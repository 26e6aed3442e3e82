"""Cascade Mask R-CNN, Hire-MLP-Small, COCO, 3x schedule, multi-scale training.

Published: 50.7 box AP, 44.2 mask AP (quoted in arXiv 2202.06510, table 11), 734 GFLOPs at
1280 x 800; 90.6 M parameters. Not rerun here.

The authors published no detection config. This is the recipe of the peers that the paper compares
with (Swin's Cascade Mask R-CNN 3x: AdamW 1e-4, weight decay 0.05, none on norms, 8 GPUs x 2
images, 36 epochs with steps at 27 and 33); the 4conv1fc box heads follow from the FLOPs. BatchNorm
is synchronised over GPUs, as in the authors' segmentation recipe; how they treated it in detection
is not known.

    bash tools/dist_train.sh configs/cascade_mask_rcnn_hire_s_coco.py 8 --amp
"""

_base_ = [
    "./_base_/cascade_mask_rcnn.py",
    "./_base_/coco_instance_multiscale.py",
    "./_base_/detection.py",
]

model = dict(
    backbone=dict(
        drop_path_rate=0.2,  # not published for Hire-MLP; Swin-S and AS-MLP-S use 0.2
        init_cfg=dict(type="Pretrained", checkpoint="hire-mlp://small"),
    )
)

max_epochs = 36
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
param_scheduler = [
    # MMDetection 2's default warm-up, which Swin's config inherits.
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(
        type="MultiStepLR",
        begin=0,
        end=max_epochs,
        by_epoch=True,
        milestones=[27, 33],
        gamma=0.1,
    ),
]
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)  # 8 GPUs x 2 images
