"""RetinaNet, Hire-MLP-Large, COCO, 1x.

Published: 44.9 box AP (quoted in arXiv 2202.06510, table 6), 424 GFLOPs at 1280 x 800,
105.8 M parameters. Not rerun here.

The authors released no ImageNet weights of Large, so this stops until it is told which to take:
--cfg-options model.backbone.init_cfg.checkpoint=FILE, or model.backbone.init_cfg=None for none.
"""

_base_ = "./retinanet_hire_s_1x_coco.py"

model = dict(
    # Not published; 0.3 is the default of the authors' dense Large backbone.
    backbone=dict(arch="large", drop_path_rate=0.3, init_cfg=dict(checkpoint="hire-mlp://large")),
    neck=dict(in_channels=[192, 384, 768]),
)
