"""UperNet, Hire-MLP-Small, ADE20K, 80k iterations: the authors' config, value by value.

Published: 46.1 mIoU single-scale, 47.1 multi-scale (quoted in arXiv 2202.06510, table 7), 930
GFLOPs at 2048 x 512 (without the auxiliary head), 63 M parameters. Not rerun here.

Source: ggjy/Hire-Wave-MLP.pytorch, mmseg-v0.11/configs/upernet/hire_mlp_small_512x512_ade20k.py:
8 GPUs x 4 images, AdamW 1.2e-4, weight decay 0.01 on everything, BatchNorm included, drop path
0.2, SyncBN everywhere.

    bash tools/dist_train.sh configs/upernet_hire_s_ade20k.py 8 --amp
    bash tools/dist_test.sh configs/upernet_hire_s_ade20k.py CHECKPOINT 8 --tta   # multi-scale
"""

_base_ = ["./_base_/upernet.py", "./_base_/ade20k.py", "./_base_/segmentation.py"]

model = dict(
    backbone=dict(
        drop_path_rate=0.2, init_cfg=dict(type="Pretrained", checkpoint="hire-mlp://small")
    )
)

max_iters = 80000
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=2000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
param_scheduler = [
    # Both from iteration 0 on: mmcv 1.x multiplies the warm-up onto the decay. mmengine counts
    # end - begin - 1 steps, hence the 801 and the + 1.
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=801),
    dict(type="PolyLR", eta_min=0.0, power=1.0, begin=0, end=max_iters + 1, by_epoch=False),
]
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1.2e-4, betas=(0.9, 0.999), weight_decay=0.01),
)
auto_scale_lr = dict(enable=False, base_batch_size=32)  # 8 GPUs x 4 images
