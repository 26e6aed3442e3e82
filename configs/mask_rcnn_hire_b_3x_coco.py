"""Mask R-CNN, Hire-MLP-Base, COCO, 3x.

Published: 48.1 box AP, 43.1 mask AP (quoted in arXiv 2202.06510, table 11), 334 GFLOPs at
1280 x 800; 77.9 M parameters. Not rerun here.
"""

_base_ = "./mask_rcnn_hire_s_3x_coco.py"

model = dict(backbone=dict(arch="base", init_cfg=dict(checkpoint="hire-mlp://base")))
