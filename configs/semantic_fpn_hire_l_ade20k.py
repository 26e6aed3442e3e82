"""Semantic FPN, Hire-MLP-Large, ADE20K, 40k. No figure is published; 99.3 M parameters.

The authors released no ImageNet weights of Large, so this stops until it is told which to take:
--cfg-options model.backbone.init_cfg.checkpoint=FILE, or model.backbone.init_cfg=None for none.
"""

_base_ = "./semantic_fpn_hire_s_ade20k.py"

model = dict(
    # Not published for this recipe; 0.3 is the default of the authors' Large backbone.
    backbone=dict(arch="large", drop_path_rate=0.3, init_cfg=dict(checkpoint="hire-mlp://large")),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
