"""Mask R-CNN, Hire-MLP-Large, COCO, 1x.

Published: 45.9 box AP, 41.7 mask AP (quoted in arXiv 2202.06510, table 6), 443 GFLOPs at
1280 x 800, 115.2 M parameters. Not rerun here.

The authors released no ImageNet weights of Large, so this stops until it is told which to take:
--cfg-options model.backbone.init_cfg.checkpoint=FILE, or model.backbone.init_cfg=None for none.
"""

_base_ = "./mask_rcnn_hire_s_1x_coco.py"

model = dict(
    # Not published; 0.3 is the default of the authors' dense Large backbone.
    backbone=dict(arch="large", drop_path_rate=0.3, init_cfg=dict(checkpoint="hire-mlp://large")),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
