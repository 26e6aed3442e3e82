"""Hire-MLP-Tiny, ImageNet-1K: the command of the authors' README, 8 GPUs x 256 images.

Published: 79.7 % top-1 (README of github.com/ggjy/Hire-Wave-MLP.pytorch), 2.1 GFLOPs at
224 x 224; 18.0 M parameters. Not rerun here.
"""

_base_ = "./hire_s_imagenet.py"

model = dict(backbone=dict(arch="tiny", drop_path_rate=0.0))

train_dataloader = dict(batch_size=256)
auto_scale_lr = dict(base_batch_size=2048)
lr = 2e-3  # 5e-4 x 2048 / 512
optim_wrapper = dict(optimizer=dict(lr=lr))
param_scheduler = [
    dict(
        _base_.param_scheduler[0],
        start_factor=_base_.warmup_lr / lr,
        end_factor=_base_.cosine + (1 - _base_.cosine) * _base_.min_lr / lr,
    ),
    _base_.param_scheduler[1],
]
