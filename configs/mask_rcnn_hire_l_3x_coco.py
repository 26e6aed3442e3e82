"""Mask R-CNN, Hire-MLP-Large, COCO, 3x. No figure is published; 115.2 M parameters.

The authors released no ImageNet weights of Large, so this stops until it is told which to take:
--cfg-options model.backbone.init_cfg.checkpoint=FILE, or model.backbone.init_cfg=None for none.
"""

_base_ = "./mask_rcnn_hire_s_3x_coco.py"

model = dict(
    backbone=dict(arch="large", init_cfg=dict(checkpoint="hire-mlp://large")),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
