"""Semantic FPN, Hire-MLP-Small, ADE20K, 40k iterations: the authors' config, value by value.

No figure is published (the authors' repository has the config and no result); 36.9 M parameters.

Source: ggjy/Hire-Wave-MLP.pytorch, mmseg-v0.11/configs/sem_fpn/hire_mlp_small_512x512_ade20k.py:
8 GPUs x 4 images, AdamW 2e-4, weight decay 0.05 on everything, BatchNorm included, drop path
0.1, SyncBN everywhere, no warm-up.

    bash tools/dist_train.sh configs/semantic_fpn_hire_s_ade20k.py 8 --amp
"""

_base_ = ["./_base_/semantic_fpn.py", "./_base_/ade20k.py", "./_base_/segmentation.py"]

model = dict(
    backbone=dict(
        drop_path_rate=0.1, init_cfg=dict(type="Pretrained", checkpoint="hire-mlp://small")
    )
)

max_iters = 40000
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=4000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
param_scheduler = [
    # mmengine counts end - begin - 1 steps, hence the + 1.
    dict(type="PolyLR", eta_min=0.0, power=0.9, begin=0, end=max_iters + 1, by_epoch=False),
]
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-4, betas=(0.9, 0.999), weight_decay=0.05),
)
auto_scale_lr = dict(enable=False, base_batch_size=32)  # 8 GPUs x 4 images
