"""Mask R-CNN, Hire-MLP-Base, COCO, 1x.

Published: 45.2 box AP, 41.0 mask AP (quoted in arXiv 2202.06510, table 6), 334 GFLOPs at
1280 x 800, 77.8 M parameters. Not rerun here.
"""

_base_ = "./mask_rcnn_hire_s_1x_coco.py"

model = dict(
    # Not published; 0.2 is the default of the authors' dense Base backbone.
    backbone=dict(arch="base", drop_path_rate=0.2, init_cfg=dict(checkpoint="hire-mlp://base"))
)
