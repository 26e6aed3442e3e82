"""36 epochs on 8 GPUs x 2 images: Swin's and AS-MLP's 3x.

The authors published no detection recipe; theirs is compared with these two.
"""

_base_ = "./schedule_1x.py"

max_epochs = 36
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], end=max_epochs, milestones=[27, 33]),
]
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
