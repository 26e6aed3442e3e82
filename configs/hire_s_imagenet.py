"""Hire-MLP-Small, ImageNet-1K, 300 epochs and 10 to cool down: the authors' train.py.

Published: 82.1 % top-1 (README of github.com/ggjy/Hire-Wave-MLP.pytorch), 4.2 GFLOPs at
224 x 224; 33.1 M parameters. Not rerun here.

Source: train.py of that repository, its defaults and the commands of its README: AdamW, learning
rate 5e-4 x batch / 512, weight decay 0.05, none on biases and 1-D parameters, no gradient
clipping, repeated augmentation (3 x), mixup 0.8 or cutmix 1.0 in every batch, label smoothing
0.1, no EMA, seed 3407. Its README has the command of Tiny (8 GPUs x 256 images) and of Base
(8 x 128, as here); Small's and Large's are not published.

    bash tools/dist_train.sh configs/hire_s_imagenet.py 8 --amp

To evaluate the authors' weights:

    python tools/convert_checkpoint.py hire_mlp_small.pth classifier.pth --classifier
    python tools/test.py configs/hire_s_imagenet.py classifier.pth
"""

_base_ = ["./_base_/imagenet.py", "./_base_/classification.py"]

model = dict(
    type="ImageClassifier",
    data_preprocessor=dict(
        type="ClsDataPreprocessor",
        num_classes=1000,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    # The norm on the last map is the classifier's final norm. Not published for Small: drop path;
    # 0.1 is train.py's default and that of the authors' dense Small backbone.
    backbone=dict(type="HireMLP", arch="small", out_indices=(3,), drop_path_rate=0.1),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=1000,
        in_channels=512,
        init_cfg=dict(type="TruncNormal", layer="Linear", std=0.02),
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1, mode="original"),
        cal_acc=False,
    ),
    train_cfg=dict(augments=[dict(type="Mixup", alpha=0.8), dict(type="CutMix", alpha=1.0)]),
)

lr, warmup_lr, min_lr = 1e-3, 1e-6, 1e-5
epochs, warmup_epochs, cooldown_epochs = 300, 20, 10
# What is left of the cosine where it takes over, (1 + cos(pi * 19 / 300)) / 2: timm counts its
# epochs from the start, not from the end of the warm-up.
cosine = 0.9901355873108609
param_scheduler = [
    # timm's warm-up aims at `lr`, this one 1 % below it, where the cosine goes on: exact from
    # epoch 20 on. (train.py steps after each epoch, so its schedule lags behind by one epoch.)
    dict(
        type="LinearLR",
        start_factor=warmup_lr / lr,
        end_factor=cosine + (1 - cosine) * min_lr / lr,
        by_epoch=True,
        begin=0,
        end=warmup_epochs + 1,
    ),
    dict(
        type="CosineAnnealingLR",
        eta_min=min_lr,
        T_max=epochs,
        by_epoch=True,
        begin=warmup_epochs,
        end=epochs + 1,
        last_step=warmup_epochs - 1,
    ),
]
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    paramwise_cfg=dict(flat_decay_mult=0.0),
)
auto_scale_lr = dict(enable=False, base_batch_size=1024)  # 8 GPUs x 128 images

# As train.py: every 20 epochs, and every epoch after 260.
train_cfg = dict(
    type="EpochBasedTrainLoop",
    max_epochs=epochs + cooldown_epochs,
    val_interval=20,
    dynamic_intervals=[(261, 1)],
)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
randomness = dict(seed=3407, diff_rank_seed=True)
